"""Convex games between patches: their equilibria, derivatives, and what training is
good for.
"""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

import fixedpoint as fp
from fixedpoint_models.data import photographs
from fixedpoint_models.games import PatchGame, proximal_step, train_denoiser
from fixedpoint_models.patch_grid import PatchGrid, cosines

OTHERS = (torch.uint8, torch.half, torch.float64, torch.complex64)
TIGHT = {"rtol": 1e-12, "atol": 1e-13, "max_steps": 20_000}


def small_game(seed=0, size=3, atoms=14, **settings):
    """A game in double precision, with dictionaries and penalties at random."""
    settings = {"ridge": 0.05, "coupling": 0.7} | settings
    game = PatchGame(size, atoms, **settings).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        game.atoms.copy_(torch.randn(game.atoms.shape, generator=generator))
        game.synthesis.copy_(torch.randn(game.atoms.shape, generator=generator))
        game.raw_weights.uniform_(-4.0, -1.5, generator=generator)
        game.raw_curvatures.uniform_(-3.0, 1.0, generator=generator)
        for name, rate in (("mix", 1.0), ("window", 0.5), ("trust", 1.0)):
            if game.seen is not None:
                drawn = getattr(game.seen, name)
                drawn.copy_(rate * torch.randn(drawn.shape, generator=generator))
    return game


def images(shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def windows(height, width, size, stride):
    """The flat indices of the pixels of each patch, row by row."""
    index = np.arange(height * width).reshape(height, width)
    return [
        index[i : i + size, j : j + size].ravel()
        for i in range(0, height - size + 1, stride)
        for j in range(0, width - size + 1, stride)
    ]


class Costs:
    """The agents' problems for one image, written out in NumPy from the definition of
    the game.
    """

    def __init__(self, game, image, codes):
        self.D = game.dictionary().detach().numpy()
        weights = game.weights(game.look(image[None, None])).detach().numpy()
        weights = weights.reshape(len(game.raw_weights), -1)
        # One column for each agent, as there is of codes.
        self.w = np.broadcast_to(weights, codes.shape)
        self.c = game.curvatures().detach().numpy()
        self.kappa, self.rho, self.z = game.coupling, game.ridge, codes
        self.image = image.numpy().ravel()
        self.windows = windows(*image.shape, game.grid.size, game.grid.stride)

    def average(self, codes):
        total, count = np.zeros_like(self.image), np.zeros_like(self.image)
        for k, pixels in enumerate(self.windows):
            total[pixels] += self.piece(k, codes[:, k])
            count[pixels] += 1
        return total / count

    def piece(self, agent, code):
        """Dz and the mean of the agent's patch."""
        return self.D @ code + self.image[self.windows[agent]].mean()

    def penalty(self, agent, code):
        size, w = np.abs(code), self.w[:, agent]
        beyond = self.c * size**2 / 2 + w**2 / self.c / 2
        return np.where(size < w / self.c, w * size, beyond).sum()

    def slope(self, agent, code):
        """Of the penalty without the ridge, for codes that are not zero."""
        return np.sign(code) * np.maximum(self.w[:, agent], self.c * np.abs(code))

    def cost(self, agent, code):
        """Of one agent, with the codes of the others as they are."""
        codes, pixels = self.z.copy(), self.windows[agent]
        codes[:, agent] = code
        piece = self.piece(agent, code)
        gap, apart = self.image[pixels] - piece, piece - self.average(codes)[pixels]
        smooth = gap @ gap + self.rho * code @ code + self.kappa * apart @ apart
        return smooth / 2 + self.penalty(agent, code)

    def rows(self, agent):
        """X and y of the agent's cost ½‖y − Xz‖² and the penalty without the ridge,
        up to a constant.
        """
        others, pixels = self.z.copy(), self.windows[agent]
        others[:, agent] = 0.0
        mean, count = self.image[pixels].mean(), np.zeros(len(pixels))
        without = self.average(others)[pixels] - mean
        for those in self.windows:
            count += np.isin(pixels, those)
        share = math.sqrt(self.kappa) * (1 - 1 / count)[:, None]
        X = [self.D, share * self.D, math.sqrt(self.rho) * np.eye(len(self.w))]
        y = [
            self.image[pixels] - mean,
            math.sqrt(self.kappa) * without,
            np.zeros(len(self.w)),
        ]
        return np.concatenate(X), np.concatenate(y)


@pytest.mark.parametrize(
    ("coupling", "stride", "filters"),
    [(0.0, 1, 0), (0.7, 1, 0), (5.0, 2, 0), (0.7, 1, 8)],
)
def test_no_agent_gains_by_itself(coupling, stride, filters):
    """Zero is in the subdifferential of each agent's cost, the others' codes held
    fixed.
    """
    settings = {"coupling": coupling, "stride": stride, "filters": filters}
    game, noisy = small_game(**settings), images((1, 1, 7, 9))
    sol = game.solve(noisy, **TIGHT)
    assert sol.value.shape == (1, 14, len(windows(7, 9, 3, stride)))
    costs = Costs(game, noisy[0, 0], sol.value[0].detach().numpy())
    on = np.zeros(2)
    for agent in range(len(costs.windows)):
        (X, y), z, w = costs.rows(agent), costs.z[:, agent], costs.w[:, agent]
        slope, own = X.T @ (X @ z - y), costs.slope(agent, z)
        np.testing.assert_allclose(slope[z != 0], -own[z != 0], atol=1e-6)
        assert (np.abs(slope) <= w + 1e-6)[z == 0].all()
        on += np.array([(z != 0).sum(), (np.abs(z) > w / costs.c).sum()])
    assert 0.1 * costs.z.size < on[1] < on[0] - 0.1 * costs.z.size
    assert on[0] < 0.9 * costs.z.size


def test_deviations_cost():
    """As the test above, but for the costs themselves rather than their derivatives."""
    game, noisy = small_game(), images((1, 1, 6, 6))
    codes = game.solve(noisy, **TIGHT).value[0].detach().numpy()
    costs, rng = Costs(game, noisy[0, 0], codes), np.random.default_rng(0)
    for agent in range(len(costs.windows)):
        here = costs.cost(agent, codes[:, agent])
        for size in (1.0, 1e-2, 1e-4):
            code = codes[:, agent] + size * rng.standard_normal(len(codes))
            assert costs.cost(agent, code) > here


def lasso(X, y, w):
    """The minimizer of ½‖y − Xz‖² + Σ wₖ|zₖ| by scikit-learn, whose penalty has one
    weight.
    """
    model = Lasso(alpha=1 / len(y), fit_intercept=False, tol=1e-14, max_iter=1_000_000)
    return model.fit(X / w, y).coef_ / w


@pytest.mark.parametrize(
    ("coupling", "ridge", "atoms"),
    [(0.0, 0.001, 7), (0.0, 0.02, 14), (0.7, 0.001, 7), (0.7, 0.02, 14)],
)
def test_codes_are_those_of_scikit_learn(coupling, ridge, atoms):
    """Without coupling each patch's own; with it, the best response to those of the
    others. The curvatures are so small that no code is beyond the ℓ₁ norm.
    """
    game, noisy = (
        small_game(coupling=coupling, ridge=ridge, atoms=atoms),
        images((1, 1, 5, 6)),
    )
    with torch.no_grad():
        game.raw_curvatures.fill_(-20.0)
    codes = game.solve(noisy, **TIGHT).value[0].detach().numpy()
    costs = Costs(game, noisy[0, 0], codes)
    for agent in range(len(costs.windows)):
        best = lasso(*costs.rows(agent), costs.w[:, agent])
        np.testing.assert_allclose(codes[:, agent], best, atol=1e-6)


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson(memory=10), None])
@pytest.mark.parametrize("step", [0.5, 1.15, None])
def test_the_equilibrium_depends_on_neither_solver_nor_step(solver, step):
    game, noisy = small_game(), images((2, 1, 6, 5))
    there = game.solve(noisy, **TIGHT).value
    other = small_game(step=step, solver=solver).solve(noisy, **TIGHT)
    torch.testing.assert_close(other.value, there, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("coupling", "filters"), [(0.0, 0), (5.0, 0), (5.0, 8)])
def test_the_equilibrium_is_one_from_any_start(coupling, filters):
    """Where the atoms are twice as many as the pixels, and more of the codes large."""
    settings = {"coupling": coupling, "atoms": 18, "filters": filters}
    game, noisy = small_game(**settings), images((1, 1, 6, 7))
    there = game.solve(noisy, **TIGHT).value
    for seed, size in enumerate((0.1, 1.0, 100.0)):
        start = size * (images(there.shape, seed) - 0.5)
        found = game.solve(noisy, start, solver=fp.Picard(), **TIGHT).value
        torch.testing.assert_close(found, there, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("coupling", "filters"), [(0.0, 0), (0.7, 0), (5.0, 0), (5.0, 8)]
)
def test_the_map_is_the_contraction_that_is_promised(coupling, filters):
    game = small_game(coupling=coupling, filters=filters)
    noisy = images((1, 1, 6, 7))
    params, shape = game.params(noisy), game.solve(noisy).value.shape
    own, factor = game.own(noisy, params), 1 / (1 + game.step * game.ridge)
    for seed in range(10):
        a, b = images(shape, seed) - 0.5, images(shape, 10 + seed) - 0.5
        moved = proximal_step(a, own, params) - proximal_step(b, own, params)
        assert moved.norm() <= factor * (a - b).norm() * (1 + 1e-12)


def test_brightness_is_not_coded():
    """An image brighter all over has the same codes."""
    game, noisy = small_game(), images((1, 1, 6, 7))
    codes, brighter = (game.solve(image, **TIGHT).value for image in (noisy, noisy + 3))
    torch.testing.assert_close(brighter, codes, rtol=1e-8, atol=1e-9)
    moved = game.reconstruct(brighter, noisy + 3) - game.reconstruct(codes, noisy)
    torch.testing.assert_close(moved, torch.full_like(noisy, 3.0))


def seen_by_windows(seen, image, grid):
    """What surroundings are, patch by patch in NumPy."""
    size, stride = grid.size, grid.stride
    places = [
        [(i, j) for j in range(0, image.shape[1] - size + 1, stride)]
        for i in range(0, image.shape[0] - size + 1, stride)
    ]
    rates = np.exp(-seen.log_scales.detach().numpy()[:, 0])

    def logs(i, j):
        patch = image[i : i + size, j : j + size].ravel()
        answers = seen.filters.detach().numpy().T @ (patch - patch.mean())
        return np.log(1 + (rates * answers) ** 2)

    own = np.array([[logs(*place) for place in row] for row in places])
    entries = [own]
    for reach in seen.reaches:
        r, mean = reach // stride, np.empty_like(own)
        for i, j in np.ndindex(own.shape[:2]):
            near = own[max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1]
            mean[i, j] = near.mean((0, 1))
        entries.append(mean)
    return np.concatenate(entries, 2).reshape(-1, len(rates) * len(entries)).T - 0.5


@pytest.mark.parametrize("stride", [1, 2])
def test_surroundings_are_means_over_patches_within_reach(stride):
    game = small_game(stride=stride, filters=5, reaches=(1, 4))
    noisy = images((2, 1, 7, 11))
    seen = game.look(noisy).detach().numpy()
    for k in range(2):
        expected = seen_by_windows(game.seen, noisy[k, 0].numpy(), game.grid)
        np.testing.assert_allclose(seen[k], expected, atol=1e-12)


def test_pixels_are_weighted_means_of_those_in_patches():
    game, noisy = small_game(filters=6), images((1, 1, 5, 6))
    codes = game.solve(noisy, **TIGHT).value
    pieces = game.synthesis @ codes + game.grid.cut(noisy).mean(1, keepdim=True)
    shares = game.seen.shares(game.look(noisy))
    total, weight = np.zeros(30), np.zeros(30)
    for k, pixels in enumerate(windows(5, 6, 3, 1)):
        total[pixels] += (shares * pieces)[0, :, k].detach().numpy()
        weight[pixels] += shares[0, :, k].detach().numpy()
    expected = (total / weight).reshape(5, 6)
    image = game.reconstruct(codes, noisy)[0, 0].detach().numpy()
    np.testing.assert_allclose(image, expected, atol=1e-12)


def test_surroundings_do_nothing_before_training():
    noisy = images((1, 1, 9, 9)).float()
    plain, seeing = (PatchGame(4, 20, filters=filters) for filters in (0, 7))
    torch.testing.assert_close(seeing.denoise(noisy), plain.denoise(noisy))


def test_games_on_other_grids_share_their_parameters():
    game, noisy = small_game(), images((1, 1, 7, 7))
    other, fresh = game.with_stride(2), small_game(stride=2)
    assert game.grid.stride == 1
    assert other.atoms is game.atoms
    torch.testing.assert_close(other.denoise(noisy), fresh.denoise(noisy))


def test_the_synthesis_dictionary_has_no_part_in_the_game():
    game, noisy = small_game(), images((1, 1, 6, 7))
    codes, image = game.solve(noisy, **TIGHT).value, game.denoise(noisy)
    with torch.no_grad():
        game.synthesis.mul_(2.0)
    torch.testing.assert_close(game.solve(noisy, **TIGHT).value, codes)
    means = game.grid.average(
        game.grid.cut(noisy).mean(1, keepdim=True).expand(-1, 9, -1), noisy.shape
    )
    torch.testing.assert_close(game.denoise(noisy) - means, 2 * (image - means))


def test_strong_coupling_brings_agreement():
    noisy = images((1, 1, 8, 8))
    spreads = []
    for coupling in (0.0, 1.0, 20.0):
        game = small_game(coupling=coupling)
        sol = game.solve(noisy, solver=fp.Picard(), rtol=1e-5, max_steps=5000)
        means = game.grid.cut(noisy).mean(1, keepdim=True)
        pieces = means + game.dictionary() @ sol.value
        mean = game.grid.cut(game.grid.average(pieces, noisy.shape))
        spreads.append(float((pieces - mean).detach().norm()))
    assert spreads[0] > 1.1 * spreads[1] > 1.21 * spreads[2]


# Derivatives


def layer(game, noisy):
    """The denoised image as a function of the parameters."""
    names = [name for name, _ in game.named_parameters()]

    def call(*parameters):
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(game, values, (noisy,))

    return call


TIGHT_GAME = {
    "rtol": 1e-13,
    "atol": 1e-14,
    "adjoint": fp.ImplicitAdjoint(rtol=1e-12, max_steps=5000),
}


def test_gradients_agree_with_differences():
    """Along random directions; of the parameters, each is compared below."""
    game, noisy = small_game(size=2, atoms=5, **TIGHT_GAME), images((2, 1, 4, 3))
    noisy.requires_grad_(True)
    parameters = tuple(game.parameters())
    settings = {"eps": 1e-5, "atol": 1e-5, "rtol": 1e-5, "fast_mode": True}
    torch.autograd.gradcheck(layer(game, noisy), parameters, **settings)
    torch.autograd.gradcheck(game, (noisy,), **settings)


@pytest.mark.parametrize(("coupling", "filters"), [(0.0, 0), (0.7, 0), (0.7, 8)])
def test_gradients_agree_with_unrolled_steps(coupling, filters):
    game = small_game(coupling=coupling, filters=filters, **TIGHT_GAME)
    noisy = images((2, 1, 6, 6))
    clean = images(noisy.shape, 2)
    implicit = torch.autograd.grad(
        (game(noisy) - clean).square().sum(), game.parameters()
    )
    params = game.params(noisy)
    own = game.own(noisy, params)
    codes = torch.zeros_like(params["dictionary"].T @ own["target"])
    for _ in range(1500):
        codes = proximal_step(codes, own, params)
    loss = (game.reconstruct(codes, noisy) - clean).square().sum()
    for here, there in zip(
        implicit, torch.autograd.grad(loss, game.parameters()), strict=True
    ):
        assert there.abs().max() > 1e-3
        torch.testing.assert_close(
            here, there, rtol=1e-5, atol=1e-5 * float(there.abs().max())
        )


# The denoiser


@pytest.mark.parametrize("filters", [0, 8])
def test_images_do_not_depend_on_their_batch(filters):
    game, noisy = (
        small_game(filters=filters),
        images((3, 1, 6, 7)) * torch.tensor([1.0, 0.1, 10.0])[:, None, None, None],
    )
    together = game.solve(noisy, **TIGHT)
    for k in range(3):
        alone = game.solve(noisy[k : k + 1], **TIGHT)
        torch.testing.assert_close(
            together.value[k], alone.value[0], rtol=1e-9, atol=1e-10
        )
        assert abs(int(together.steps[k]) - int(alone.steps[0])) <= 2


def test_patches_of_any_grid_average_to_the_image():
    for size, stride, shape in ((3, 1, (5, 7)), (3, 2, (7, 5)), (2, 2, (4, 6))):
        grid, image = PatchGrid(size, stride), images((2, 1, *shape))
        patches = grid.cut(image)
        for column, pixels in enumerate(windows(*shape, size, stride)):
            torch.testing.assert_close(
                patches[1, :, column], image[1].flatten()[pixels]
            )
        torch.testing.assert_close(grid.average(patches, image.shape), image)


def test_the_cosines_are_complete():
    basis = cosines(4, 25)
    assert basis.shape == (16, 25)
    assert torch.linalg.matrix_rank(basis) == 16
    torch.testing.assert_close(basis.norm(dim=0), torch.ones(25))
    torch.testing.assert_close(basis[:, 1:].mean(0), torch.zeros(24), rtol=0, atol=1e-6)
    torch.testing.assert_close(basis[:, 0], torch.full((16,), 0.25))


def psnr(found, clean):
    return float(
        (-10 * torch.log10((found - clean).square().mean(dim=(1, 2, 3)))).mean()
    )


def test_training_improves_on_the_cosines_and_on_the_noise():
    train, test = (torch.as_tensor(p)[:, None] for p in photographs(size=24, limit=40))
    noisy = test + 0.1 * torch.randn(
        test.shape, generator=torch.Generator().manual_seed(5)
    )
    game = PatchGame(5, 36, rtol=1e-3)
    untrained, first = game.denoise(noisy), copy.deepcopy(game)
    assert not untrained.requires_grad
    losses = train_denoiser(game, train, 0.1, 30, batch_size=4, learning_rate=2e-2)
    assert len(losses) == 30
    assert psnr(untrained, test) > psnr(noisy, test) + 3.0
    assert psnr(game.denoise(noisy), test) > psnr(untrained, test) + 0.3
    torch.testing.assert_close(first.denoise(noisy), untrained)
    assert (
        train_denoiser(first, train, 0.1, 2, batch_size=4, learning_rate=2e-2)[0]
        == losses[0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size must be an integer, 2 or more"),
        ({"size": 1, "atoms": 1}, "size must be an integer, 2 or more"),
        ({"atoms": 0}, "atoms must be an integer"),
        ({"stride": 0}, "stride must be an integer"),
        ({"size": 3, "stride": 4}, "stride must be at most the size, 3"),
        ({"weight": 0.0}, "weight must be positive"),
        ({"weight": math.inf}, "weight must be positive and finite"),
        ({"coupling": -1.0}, "coupling must be finite and not negative"),
        ({"ridge": math.nan}, "ridge must be positive"),
        ({"ridge": 0.0}, "ridge must be positive"),
        ({"curvature": 0.0}, "curvature must be positive"),
        ({"filters": -1}, "filters must be an integer"),
        ({"filters": 3, "reaches": (4, -1)}, "reaches must be an integer"),
        ({"step": -1.0}, "step must be positive"),
        ({"step": 2.0}, "step must be below 1.333"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PatchGame(**settings)


@pytest.mark.parametrize(
    "shape", [(8, 8), (1, 8, 8), (2, 3, 8, 8), (1, 1, 2, 8), (1, 1, 8, 8)]
)
def test_bad_images_are_named(shape):
    with pytest.raises(ValueError, match="image must be"):
        PatchGame(3, 9, stride=2).denoise(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape", [(8, 8), (1, 8, 8), (2, 3, 8, 8), (1, 1, 2, 8), (1, 1, 13, 1)]
)
def test_bad_images_in_tiles_are_named(shape):
    game = PatchGame(3, 9, stride=2)
    with pytest.raises(ValueError, match="image must be"):
        game.denoise_in_tiles(torch.zeros(shape), 8, 4)


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 1, 8, 8, dtype=d) for d in OTHERS] + [np.zeros((8, 8))]
)
def test_images_of_another_dtype_are_refused(image):
    game = PatchGame(3, 9)
    train = partial(train_denoiser, game, sigma=0.1, steps=1)
    message = "must be a tensor of torch.float32, the dtype of the parameters, got "
    for use in (game, game.denoise, game.denoise_in_tiles, train):
        with pytest.raises(TypeError, match=f"{message}{image.dtype}"):
            use(image)


def test_autocast_takes_images_of_its_dtype():
    game, noisy = PatchGame(3, 9, rtol=3e-2), images((1, 1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        denoised = game.denoise(noisy.bfloat16())
        with pytest.raises(TypeError, match=r"got torch\.uint8"):
            game.denoise(noisy.to(torch.uint8))
    expected = game.denoise(noisy.float())
    torch.testing.assert_close(denoised.float(), expected, rtol=0.0, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("atoms", [1, 2, 40])
def test_the_smallest_patches(atoms, dtype):
    noisy = images((1, 1, 4, 5)).to(dtype)
    denoised = PatchGame(2, atoms).to(dtype).denoise(noisy)
    assert denoised.dtype == dtype
    assert denoised.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"sigma": 0.0},
        {"steps": -1},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"images": torch.zeros(0, 1, 8, 8)},
    ],
)
def test_bad_settings_of_the_training_are_named(settings):
    given = {"images": torch.zeros(1, 1, 8, 8), "sigma": 0.1, "steps": 1} | settings
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
        train_denoiser(PatchGame(3, 9), **given)
