"""Multiscale equilibrium networks."""

import copy

import pytest
import torch
from torch.nn import functional

import fixedpoint as fp
import fixedpoint_torch as ft
from fixedpoint_models import AugmentedDEQ
from fixedpoint_models.networks import (
    ClassHead,
    FiLM,
    ImageHead,
    ImageInjection,
    LatentInjection,
    MDEQCell,
    MDEQClassifier,
    MDEQDecoder,
)

SIDE, LATENT = 8, 3
TIGHT = {"rtol": 1e-12, "atol": 1e-13, "batch_ndim": 1}
BRANCHES = pytest.mark.parametrize("branches", [1, 2, 3, 4])


@pytest.fixture(autouse=True)
def _double():
    """Double precision by default, and the same numbers in every test."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def latent_cell(branches, **settings):
    channels, sides = (4,) * branches, [SIDE >> i for i in range(branches)]
    injection = LatentInjection(LATENT, channels, sides)
    return MDEQCell(channels, SIDE, injection, **({"groups": 2} | settings))


def image_cell(branches, **settings):
    channels = (4,) * branches
    return MDEQCell(
        channels, SIDE, ImageInjection(2, channels), **({"groups": 2} | settings)
    )


def radius(cell, x, batch):
    layer = ft.DEQ(cell, start=lambda x: cell.zero_state(batch), rtol=1e-8)
    return layer.spectral_radius(x)


def decoder(**settings):
    given = {"groups": 2, "activation": "softplus", "out_side": 8} | settings
    return MDEQDecoder(LATENT, (4, 4), 4, **given)


def decoder_loss(model):
    def loss(z, x, y, params):
        misfit = (model.head(z, params) - y) ** 2
        return misfit.mean((1, 2, 3)) + 0.05 * (x**2).sum(-1)

    return loss


def shapes(state):
    return [tuple(leaf.shape) for leaf in state]


def assert_close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# The cell


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
@BRANCHES
def test_a_step_keeps_the_shapes(branches, upsampling):
    channels = (8, 4, 6, 4)[:branches]
    cell = MDEQCell(
        channels,
        SIDE,
        ImageInjection(2, channels),
        groups=2,
        upsampling=upsampling,
        expansion=3,
    )
    z = cell.zero_state(5)
    assert shapes(z) == [(5, c, SIDE >> i, SIDE >> i) for i, c in enumerate(channels)]
    x = torch.randn(5, 2, SIDE, SIDE)
    assert shapes(cell(z, x)) == shapes(z)
    assert all(map(torch.equal, cell(z, x), cell.step(z, cell.inject(x))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_has_the_dtype_of_the_parameters(dtype):
    cell = latent_cell(2).to(dtype)
    z = cell.zero_state(2, 3)
    assert z[1].shape == (2, 3, 4, 4, 4)
    assert {leaf.dtype for leaf in z} == {dtype}
    assert (
        cell(cell.zero_state(2), torch.zeros(2, LATENT, dtype=dtype))[0].dtype == dtype
    )


@pytest.mark.parametrize(
    ("channels", "side", "settings", "message"),
    [
        ((), 8, {}, "channels"),
        ((4,) * 5, 16, {}, "channels"),
        ((4, 0), 8, {}, "channels"),
        ((4, 4, 4), 6, {}, "side must be a multiple of 4"),
        ((4,), 0, {}, "side"),
        ((4, 6), 8, {"groups": 4}, "groups must divide"),
        ((4,), 8, {"groups": 0}, "groups"),
        ((4, 4, 4, 4), 8, {"groups": 4}, "groups must be fewer"),
        ((4,), 8, {"activation": "step"}, "activation"),
        ((4,), 8, {"expansion": 0}, "expansion"),
        ((4,), 8, {"gain": 0.0}, "gain"),
        ((4,), 8, {"upsampling": "cubic"}, "upsampling"),
    ],
)
def test_bad_settings_of_a_cell_are_named(channels, side, settings, message):
    with pytest.raises(ValueError, match=message):
        MDEQCell(channels, side, torch.nn.Identity(), **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LatentInjection(0, (4,), (8,)), "latent"),
        (lambda: LatentInjection(3, (4, 4), (8,)), "sides"),
        (lambda: ImageInjection(0, (4,)), "in_channels"),
        (lambda: ImageInjection(1, (4,), shrink=0), "shrink"),
        (lambda: FiLM(torch.nn.Identity(), 0, (4,)), "task"),
        (lambda: ImageHead((4,), 8, out_side=12), "out_side"),
        (lambda: ImageHead((4,), 8, 0), "out_channels"),
        (lambda: ClassHead((4,), 8, 0), "classes"),
        (lambda: ClassHead((4,), 8, 3, grid=0), "grid"),
        (
            lambda: MDEQClassifier(
                1, 8, (8,), 10, weight_norm=False, fixed_lengths=True
            ),
            "fixed_lengths",
        ),
        (lambda: MDEQDecoder(3, (4, 4), 7), "side"),
        (lambda: MDEQClassifier(1, 12, (8,), 10, side=8), "side_in"),
        (lambda: MDEQClassifier(1, 8, (8, 4), 10, groups=4), "groups"),
        (lambda: MDEQClassifier(1, 8, (8,), 10, task=-1), "task"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("activation", ["relu", "softplus"])
@BRANCHES
def test_plain_iteration_converges_at_the_start(branches, activation):
    for cell, x in [
        (latent_cell(branches, activation=activation), torch.randn(4, LATENT)),
        (latent_cell(branches, activation=activation), torch.zeros(1, LATENT)),
        (image_cell(branches, activation=activation), torch.randn(4, 2, SIDE, SIDE)),
    ]:
        z0 = cell.zero_state(len(x))
        sol = fp.fixed_point(cell, z0, (x,), solver=fp.Picard(), batch_ndim=1)
        assert sol.converged.all()
        assert (radius(cell, x, len(x)) < 0.9).all()


@BRANCHES
def test_a_sample_does_not_see_the_others(branches):
    cell, x = image_cell(branches), torch.randn(3, 2, SIDE, SIDE)
    whole = fp.fixed_point(cell, cell.zero_state(3), (x,), **TIGHT)
    for i in range(3):
        alone = fp.fixed_point(cell, cell.zero_state(1), (x[i : i + 1],), **TIGHT)
        for part, leaf in zip(alone.value, whole.value, strict=True):
            assert_close(part[0], leaf[i])
        assert alone.steps[0] == whole.steps[i]


@pytest.mark.parametrize("weight_norm", [True, False])
def test_all_convolutions_are_weight_normalized_by_option(weight_norm):
    model = MDEQClassifier(1, 8, (4, 4, 4), 3, groups=2, weight_norm=weight_norm)
    for module in [*model.modules(), *decoder(weight_norm=weight_norm).modules()]:
        if isinstance(module, torch.nn.Conv2d):
            assert torch.nn.utils.parametrize.is_parametrized(module) == weight_norm


# Derivatives


@pytest.mark.parametrize("activation", ["relu", "softplus"])
@pytest.mark.parametrize("cell_of", [latent_cell, image_cell])
def test_implicit_gradients_are_those_of_a_long_iteration(cell_of, activation):
    cell = cell_of(2, activation=activation)
    shape = (LATENT,) if cell_of is latent_cell else (2, SIDE, SIDE)
    x = torch.randn(2, *shape, requires_grad=True)
    weights = [torch.randn_like(leaf) for leaf in cell.zero_state(2)]

    def gradients(z):
        total = sum((w * leaf).sum() for w, leaf in zip(weights, z, strict=True))
        return torch.autograd.grad(total, [x, *cell.parameters()])

    adjoint = fp.ImplicitAdjoint(rtol=1e-12)
    sol = fp.fixed_point(cell, cell.zero_state(2), (x,), adjoint=adjoint, **TIGHT)
    z = cell.zero_state(2)
    for _ in range(60):
        z = cell(z, x)
    for got, expected in zip(gradients(sol.value), gradients(z), strict=True):
        assert_close(got, expected, 1e-8)


def test_gradients_by_the_functions_reach_the_original_parameters():
    model = decoder()
    x, params = torch.randn(2, LATENT, requires_grad=True), model.params()
    sol = fp.fixed_point(model.f, model.zero_state(2), (x, params), **TIGHT)
    model.head(sol.value, params).square().sum().backward()
    by_functions = [x.grad, *(p.grad for p in model.parameters())]
    layer = ft.DEQ(
        model.cell, start=lambda x: model.zero_state(2), rtol=1e-12, atol=1e-13
    )
    output = model.readout(layer(x)).square().sum()
    by_layer = torch.autograd.grad(output, [x, *model.parameters()])
    for got, expected in zip(by_functions, by_layer, strict=True):
        assert_close(got, expected, 1e-8)


def test_transforms_of_a_step():
    cell = latent_cell(2, activation="softplus", upsampling="bilinear")
    x, v = torch.randn(3, LATENT), torch.randn(3, LATENT)
    z = tuple(torch.randn_like(leaf) for leaf in cell.zero_state(3))

    def total(x):
        return sum((leaf**3).sum() for leaf in cell(z, x))

    _, pushed = torch.func.jvp(total, (x,), (v,))
    gradient = torch.func.grad(total)(x)
    assert_close(pushed, (gradient * v).sum())
    _, curvature = torch.func.jvp(torch.func.grad(total), (x,), (v,))
    x = x.requires_grad_()
    (first,) = torch.autograd.grad(total(x), x, create_graph=True)
    assert_close(curvature, torch.autograd.grad((first * v).sum(), x)[0])


def test_forward_derivatives_along_the_parameters():
    model = decoder(weight_norm=False)  # which Torch differentiates in reverse alone
    x, z = (
        torch.randn(2, LATENT),
        tuple(torch.randn_like(leaf) for leaf in model.zero_state(2)),
    )
    weights = {name: w.detach() for name, w in model.named_parameters()}
    along = {name: torch.randn_like(w) for name, w in weights.items()}

    def total(weights):
        return sum((leaf**2).sum() for leaf in model.f(z, x, {"weights": weights}))

    _, pushed = torch.func.jvp(total, (weights,), (along,))
    gradients = torch.func.grad(total)(weights)
    assert_close(pushed, sum((g * along[name]).sum() for name, g in gradients.items()))


@pytest.mark.parametrize("task", [0, 3])
def test_a_mapped_sample_is_that_of_a_batch(task):
    model = MDEQClassifier(2, SIDE, (4, 4), 3, task, groups=2)
    params = model.params(torch.randn(4, 2, SIDE, SIDE))
    x = torch.randn(4, task) if task else torch.randn(4, 2, SIDE, SIDE)
    z = tuple(torch.randn_like(leaf) for leaf in model.zero_state(4))
    mapped = torch.func.vmap(model.f, ((0, 0), 0, {"weights": None, "image": 0}))
    for got, expected in zip(mapped(z, x, params), model.f(z, x, params), strict=True):
        assert_close(got, expected)


# Injections and heads


def test_no_modulation_without_a_task():
    plain, image = ImageInjection(2, (4, 4)), torch.randn(3, 2, SIDE, SIDE)
    film = FiLM(plain, 5, (4, 4))
    assert all(map(torch.equal, film((image, torch.zeros(3, 5))), plain(image)))
    features = film((image, torch.ones(3, 5)))
    assert not torch.allclose(features[0], plain(image)[0])
    scale, shift = film.maps[1](torch.ones(5)).chunk(2)
    by_hand = (1.0 + scale[:, None, None]) * plain(image)[1] + shift[:, None, None]
    assert_close(features[1], by_hand)


def test_a_task_may_modulate_a_latent_code():
    film = FiLM(LatentInjection(LATENT, (4,), (SIDE,)), 2, (4,))
    cell = MDEQCell((4,), SIDE, film, groups=2)
    x = torch.randn(2, LATENT), torch.randn(2, 2)
    assert fp.fixed_point(cell, cell.zero_state(2), (x,), batch_ndim=1).converged.all()


def test_a_larger_image_is_injected_whole():
    injection = ImageInjection(1, (4, 4), shrink=2)
    image = torch.zeros(1, 1, 16, 16)
    assert shapes(injection(image)) == [(1, 4, 8, 8), (1, 4, 4, 4)]
    for row, column in [(0, 0), (5, 6), (15, 15)]:
        moved = image.clone()
        moved[..., row, column] = 1.0
        assert not torch.equal(injection(moved)[0], injection(image)[0])


def test_an_image_is_read_off_all_branches():
    head = ImageHead((4, 2, 2), SIDE, 3, 32, sigmoid=True)
    z = tuple(torch.randn(2, c, SIDE >> i, SIDE >> i) for i, c in enumerate((4, 2, 2)))
    image = head(z)
    assert image.shape == (2, 3, 32, 32)
    assert ((image > 0.0) & (image < 1.0)).all()
    for i in range(3):
        moved = tuple(leaf + (k == i) for k, leaf in enumerate(z))
        assert not torch.allclose(head(moved), image)


def test_scores_are_linear_in_the_averages_over_squares():
    head = ClassHead((4, 2), 8, 5, grid=4)
    z = torch.randn(3, 4, 8, 8), torch.randn(3, 2, 4, 4)
    squares = z[0].unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    averages = torch.cat([squares.flatten(1), z[1].flatten(1)], 1)
    assert_close(head(z), averages @ head.linear.weight.T + head.linear.bias)


def test_a_grid_finer_than_a_map_is_its_pixels():
    head = ClassHead((4, 2), 6, 5, grid=4)
    assert head((torch.randn(2, 4, 6, 6), torch.randn(2, 2, 3, 3))).shape == (2, 5)
    assert head.linear.in_features == 4 * 16 + 2 * 9


def test_fixed_lengths_stay_and_directions_are_trained():
    model = MDEQClassifier(1, 8, (8, 4), 3, groups=2, fixed_lengths=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    z, params = model.zero_state(3), model.params(torch.rand(3, 1, 8, 8))
    model.head(
        model.f(z, torch.zeros(3, 1, 8, 8), params), params
    ).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert "cell.injection.convolutions.0.parametrizations.weight.original1" in moved
    assert not [n for n in moved if n.endswith(("original0", "norms.0.weight"))]
    for part in model.cell.modules():
        if isinstance(part, torch.nn.Conv2d):
            length = part.weight.flatten(1).norm(dim=1)
            assert_close(length, part.parametrizations.weight.original0.flatten())
        if isinstance(part, torch.nn.GroupNorm):
            assert not part.weight.requires_grad


# Models


def test_an_augmented_system_of_a_decoder():
    model, truth = decoder(), torch.randn(3, LATENT)
    params = model.params()
    with torch.no_grad():
        made = fp.fixed_point(
            model.f, model.zero_state(3), (truth, params), batch_ndim=1
        )
        y = model.head(made.value, params)
    loss, z0, x0 = decoder_loss(model), model.zero_state(3), torch.zeros(3, LATENT)
    joint = AugmentedDEQ(model.f, loss, step_size=0.5)
    sol = joint.solve(z0, x0, params=params, y=y, max_steps=200, rtol=1e-8)
    assert shapes(sol.z) == shapes(z0)
    assert all((norms < 1e-5).all() for norms in sol.kkt.values())
    assert (sol.objective < joint.objective(z0, x0, params=params, y=y)).all()
    assert sol.joint.converged.all()
    value = joint.lagrangian(sol.z, sol.mu, sol.x, params=params, y=y).sum()
    by_envelope = torch.autograd.grad(value, list(model.parameters()))
    reduced = fp.fixed_point(model.f, z0, (sol.x, params), **TIGHT).value
    by_solution = torch.autograd.grad(
        loss(reduced, sol.x, y, params).sum(), model.parameters()
    )
    for got, expected in zip(by_envelope, by_solution, strict=True):
        assert_close(got, expected, 1e-5)
        assert got.abs().max() > 0.0


def test_a_perturbation_that_misleads():
    model = MDEQClassifier(1, SIDE, (4, 4), 3, groups=2, activation="softplus")
    params, labels = (
        model.params(torch.randn(4, 1, SIDE, SIDE)),
        torch.tensor([0, 1, 2, 0]),
    )

    def loss(z, x, y, params):
        misfit = functional.cross_entropy(model.head(z, params), y, reduction="none")
        return 0.1 * (x**2).sum((1, 2, 3)) - misfit

    joint = AugmentedDEQ(model.f, loss, step_size=0.5)
    x0 = torch.zeros_like(params["image"])
    sol = joint.solve(model.zero_state(4), x0, params=params, y=labels)
    before = joint.objective(model.zero_state(4), x0, params=params, y=labels)
    assert (sol.objective < before).all()


def test_a_vector_for_all_images_of_a_task():
    model = MDEQClassifier(1, SIDE, (4, 4), 3, task=2, groups=2)
    image, v = torch.randn(2, 3, 1, SIDE, SIDE), torch.randn(2, 2)
    together = fp.fixed_point(
        model.f, model.zero_state(2, 3), (v, model.params(image)), **TIGHT
    )
    assert together.status.shape == (2,)
    each = v[:, None].expand(2, 3, 2).reshape(6, 2)
    params = model.params(image.flatten(0, 1))
    alone = fp.fixed_point(model.f, model.zero_state(6), (each, params), **TIGHT)
    scores = model.head(together.value, model.params(image))
    assert_close(scores.flatten(0, 1), model.head(alone.value, params))


def test_what_is_learnt_from_another_loss_reaches_the_weights():
    """As in meta-learning: the vector fits the support, the outer loss is that of the
    query.
    """
    model = MDEQClassifier(1, 4, (4,), 2, task=2, groups=2, activation="softplus")
    support, query = torch.randn(2, 1, 3, 1, 4, 4)
    y = torch.tensor([[0, 1, 1]])

    def loss(z, v, y, params):
        scores = model.head(z, params).transpose(1, 2)
        return functional.cross_entropy(scores, y, reduction="none").mean(1) + 0.5 * (
            v**2
        ).sum(-1)

    joint = AugmentedDEQ(model.f, loss, step_size=0.5)
    z0, v0 = model.zero_state(1, 3), torch.zeros(1, 2)
    tight = {"y": y, "rtol": 1e-10, "atol": 1e-12, "max_steps": 300}

    def outer(weights, adjoint=None):
        params = {"weights": weights, "image": support}
        v = joint.iterate(z0, v0, params=params, adjoint=adjoint, **tight).value["x"]
        params = {"weights": weights, "image": query}
        z = fp.fixed_point(model.f, z0, (v, params), **TIGHT).value
        return loss(z, v, y, params).sum()

    weights = model.params(support)["weights"]
    value = outer(weights, fp.ImplicitAdjoint(rtol=1e-10))
    gradients = torch.autograd.grad(value, list(weights.values()))
    moved = [torch.randn_like(w) for w in weights.values()]
    slope = sum((g * d).sum() for g, d in zip(gradients, moved, strict=True))

    def at(step):
        pairs = zip(weights.items(), moved, strict=True)
        return outer({name: (w + step * d).detach() for (name, w), d in pairs})

    assert_close(slope, (at(1e-5) - at(-1e-5)) / 2e-5, 1e-5)


def test_a_penalty_on_the_jacobian_lowers_the_radius():
    cell = latent_cell(2, gain=0.8)
    x, target = (
        torch.randn(2, LATENT),
        [torch.randn_like(leaf) for leaf in cell.zero_state(2)],
    )
    layer = ft.DEQ(
        cell,
        start=lambda x: cell.zero_state(2),
        max_steps=40,
        rtol=1e-4,
        on_failure="return",
    )
    generator = torch.Generator().manual_seed(0)

    def after(weight):
        trained = copy.deepcopy(layer)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
        for _ in range(20):
            step = int(torch.randint(1, 10, (1,), generator=generator))
            middle, end = trained.trajectory(x, steps=[step])
            loss = sum(((a - b) ** 2).mean() for a, b in zip(end, target, strict=True))
            for state in (middle, end):
                at = tuple(leaf.detach() for leaf in state)
                penalty = ft.jacobian_penalty(
                    trained.cell, at, (x,), probes=2, generator=generator
                )
                loss = loss + weight * penalty.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return trained.spectral_radius(x)

    before, with_penalty, without = layer.spectral_radius(x), after(1.0), after(0.0)
    assert (with_penalty < 0.9 * before).all()
    assert (with_penalty < without).all()


@pytest.mark.parametrize("again", ["state_dict", "deepcopy"])
def test_a_copy_computes_the_same(again):
    model, x = decoder(), torch.randn(2, LATENT)
    if again == "deepcopy":
        other = copy.deepcopy(model)
    else:
        other = decoder()
        other.load_state_dict(model.state_dict())
    z = tuple(torch.randn_like(leaf) for leaf in model.zero_state(2))
    images = model.f(z, x, model.params()), other.f(z, x, other.params())
    assert all(map(torch.equal, *images))
    assert torch.equal(model.head(z, model.params()), other.head(z, other.params()))
    shared = {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
    assert not shared
