"""The augmented model, its data, its training, and the command line."""

import io
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from typer.testing import CliRunner

import fixedpoint as fp
from fixedpoint_models import (
    AugmentedDEQ,
    CheckpointError,
    DataError,
    DenseDecoder,
    Training,
    comparison,
    decode,
    demo,
    equilibrium_map,
    load_images,
    masked_loss,
    train,
)
from fixedpoint_models import training as training_module
from fixedpoint_models.__main__ import app
from fixedpoint_models.data import digits, square_masks

B, WIDTH, LATENT, PIXELS = 5, 12, 3, 16


@pytest.fixture
def problem():
    """A small decoder and images for it."""
    torch.manual_seed(0)
    decoder = DenseDecoder(PIXELS, WIDTH, LATENT, prior=0.1)
    y = (
        torch.rand(B, PIXELS, dtype=torch.float64),
        torch.ones(B, PIXELS, dtype=torch.float64),
    )
    zeros = (
        torch.zeros(B, WIDTH, dtype=torch.float64),
        torch.zeros(B, LATENT, dtype=torch.float64),
    )
    return decoder, y, zeros


def frozen(decoder):
    return {
        k: p.detach() if torch.is_tensor(p) else p for k, p in decoder.params().items()
    }


def solved(model, problem, **kw):
    decoder, y, (z, x) = problem
    settings = {
        "max_steps": 500,
        "rtol": 1e-10,
        "atol": 1e-10,
        "solver": fp.Anderson(memory=15),
    }
    return model.solve(z, x, params=frozen(decoder), y=y, **settings, **kw)


MODEL = AugmentedDEQ(equilibrium_map, masked_loss, decode, step_size=0.01)


def test_the_solution_is_a_minimum_that_scipy_finds_too(problem):
    decoder, (image, _), _ = problem
    params = {
        k: v.numpy() if torch.is_tensor(v) else v for k, v in frozen(decoder).items()
    }
    sol = solved(MODEL, problem)

    def objective(x, target):
        z = np.zeros((1, WIDTH))
        for _ in range(400):
            z = equilibrium_map(z, x[None], params)
        return float(
            masked_loss(decode(z, params), x[None], (target[None], 1.0), params)[0]
        )

    for i in range(B):
        start = sol.x[i].numpy() + 0.05
        reference = minimize(objective, start, args=(image[i].numpy(),), method="BFGS")
        np.testing.assert_allclose(sol.x[i], reference.x, atol=1e-4)
        np.testing.assert_allclose(sol.objective[i], reference.fun, rtol=1e-6)


def test_the_kkt_residuals_are_those_of_autograd(problem):
    decoder, y, _ = problem
    params = frozen(decoder)
    sol = MODEL.solve(*problem[2], params=params, y=y, max_steps=7, on_failure="return")
    z, x = sol.z.clone().requires_grad_(), sol.x.clone().requires_grad_()
    image = equilibrium_map(z, x, params)
    lagrangian = (
        masked_loss(decode(z, params), x, y, params).sum() + (sol.mu * image).sum()
    )
    state, step = torch.autograd.grad(lagrangian, (z, x))
    expected = {"z": image.detach() - sol.z, "mu": state - sol.mu, "x": step}
    for name, residual in expected.items():
        torch.testing.assert_close(
            sol.kkt[name], residual.norm(dim=1), rtol=1e-9, atol=1e-12
        )


def test_the_objective_is_that_of_a_fresh_equilibrium(problem):
    decoder, y, (z, x) = problem
    params = frozen(decoder)
    sol = MODEL.solve(
        z,
        x,
        params=params,
        y=y,
        solver=fp.Anderson(),
        max_steps=6,
        on_failure="return",
    )
    for _ in range(500):
        z = equilibrium_map(z, sol.x, params)
    expected, apparent = (
        masked_loss(decode(s, params), sol.x, y, params) for s in (z, sol.z)
    )
    torch.testing.assert_close(sol.objective, expected, rtol=1e-5, atol=0.0)
    assert (sol.objective - apparent).abs().max() > 1e-3


def test_the_envelope_gradient_is_that_of_the_optimal_objective(problem):
    decoder, y, _ = problem
    sol = solved(MODEL, problem)
    lagrangian = MODEL.lagrangian(sol.z, sol.mu, sol.x, params=decoder.params(), y=y)
    lagrangian.sum().backward()
    for parameter in decoder.parameters():
        direction = torch.randn_like(parameter)
        values = []
        for change in (1e-5, -2e-5):
            parameter.data.add_(direction, alpha=change)
            values.append(float(solved(MODEL, problem).objective.sum()))
        parameter.data.add_(direction, alpha=1e-5)
        difference = (values[0] - values[1]) / 2e-5
        assert float((parameter.grad * direction).sum()) == pytest.approx(
            difference, rel=2e-3
        )


def test_steps_cost_one_evaluation_each(problem):
    decoder, y, (z, x) = problem
    calls = []

    def f(*args):
        calls.append(1)
        return equilibrium_map(*args)

    model = AugmentedDEQ(f, masked_loss, decode)
    sol = model.iterate(
        z,
        x,
        params=frozen(decoder),
        y=y,
        solver=fp.Anderson(),
        max_steps=9,
        on_failure="return",
    )
    assert len(calls) == sol.work.f == 10


def test_a_projected_input_stays_in_its_set(problem):
    ball = lambda x: (
        x / torch.clamp(torch.linalg.norm(x, dim=1, keepdim=True) / 0.1, min=1.0)
    )
    sol = solved(
        AugmentedDEQ(
            equilibrium_map, masked_loss, decode, project=ball, step_size=0.01
        ),
        problem,
    )
    assert (sol.x.norm(dim=1) <= 0.1 + 1e-10).all()  # the tolerance of the solve
    assert float(sol.kkt["x"].max()) < 1e-8


def test_jax_agrees_with_torch(problem):
    decoder, y, start = problem
    to_jax = lambda tree: jax.tree.map(
        lambda leaf: jnp.asarray(leaf.numpy()) if torch.is_tensor(leaf) else leaf, tree
    )
    (z, x), params, data = (to_jax(part) for part in (start, frozen(decoder), y))
    there = MODEL.solve(
        z,
        x,
        params=params,
        y=data,
        max_steps=500,
        rtol=1e-10,
        atol=1e-10,
        solver=fp.Anderson(memory=15),
    )
    here = solved(MODEL, problem)
    np.testing.assert_allclose(there.x, here.x, atol=1e-8)
    np.testing.assert_allclose(there.objective, here.objective, rtol=1e-6)


# Derivatives of the augmented system.

OUTER = np.random.default_rng(1).standard_normal((2, 3))


def small_map(xp):
    return lambda z, x, params: xp.tanh(z @ params["W"].T + x @ params["U"].T)


def small_loss(z, x, y, params):
    return ((z - y) ** 2).sum(-1) + params["prior"] * (x**2).sum(-1)


def small_arguments():
    """The parameters and the data, in NumPy."""
    rng = np.random.default_rng(0)
    W, U = 0.15 * rng.standard_normal((5, 5)), rng.standard_normal((5, 3))
    return {"W": W, "U": U, "prior": np.asarray(0.5)}, rng.standard_normal((2, 5))


def outer_loss(value):
    """Another loss than that of the augmented system, which asks for z and x."""
    z, x = value["z"], value["x"]
    weights = torch.tensor(OUTER) if torch.is_tensor(x) else OUTER
    return (x**3 * weights).sum() + (z**2).sum()


def differentiated(xp, params, y):
    """The outer loss at the solution of the augmented system."""
    model = AugmentedDEQ(small_map(xp), small_loss, step_size=0.1)
    zeros = (xp.zeros(shape, dtype=xp.float64) for shape in ((2, 5), (2, 3)))
    sol = model.iterate(
        *zeros,
        params=params,
        y=y,
        rtol=1e-12,
        atol=1e-13,
        max_steps=1000,
        solver=fp.Anderson(memory=10),
        adjoint=fp.ImplicitAdjoint(rtol=1e-12),
    )
    return outer_loss(sol.value)


def by_dense_algebra(params, y):
    """The same by Newton's method on the stationarity conditions, with their dense
    Jacobian.

    Three steps are differentiated, from a solution that is held constant: enough for
    two orders.
    """

    def conditions(w, y):
        lagrangian = lambda z, mu, x: (
            small_loss(z, x, y, params) + mu @ (small_map(jnp)(z, x, params) - z)
        )
        return jnp.concatenate(jax.grad(lagrangian, (0, 1, 2))(w[:5], w[5:10], w[10:]))

    def solution(y):
        newton = lambda w: (
            w - jnp.linalg.solve(jax.jacfwd(conditions)(w, y), conditions(w, y))
        )
        w = jax.lax.fori_loop(
            0, 30, lambda _, w: jax.lax.stop_gradient(newton(w)), jnp.zeros(13)
        )
        return newton(newton(newton(jax.lax.stop_gradient(w))))

    w = jax.vmap(solution)(y)
    return outer_loss({"z": w[:, :5], "x": w[:, 10:]})


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_implicit_derivatives_are_those_of_dense_algebra(name):
    """Of first and second order, with respect to all parameters and the data."""
    arguments = small_arguments()
    as_jax = jax.tree.map(jnp.asarray, arguments)
    reference = lambda arguments: by_dense_algebra(*arguments)
    expected = jax.tree.leaves(jax.jit(jax.grad(reference))(as_jax))
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), arguments)
    push = lambda f: (
        lambda at: jax.jvp(jax.grad(f), (at,), (jax.tree.map(jnp.asarray, direction),))
    )
    curved = jax.tree.leaves(jax.jit(push(reference))(as_jax)[1])
    if name == "jax":
        loss = lambda arguments: differentiated(jnp, *arguments)
        gradient, moved = jax.jit(push(loss))(as_jax)
        found, second = jax.tree.leaves(gradient), jax.tree.leaves(moved)
    else:
        leaves, structure = jax.tree.flatten(arguments)
        leaves = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
        loss = differentiated(torch, *jax.tree.unflatten(structure, leaves))
        found = torch.autograd.grad(loss, leaves, create_graph=True)
        pairs = zip(found, jax.tree.leaves(direction), strict=True)
        slope = sum((g * torch.as_tensor(d)).sum() for g, d in pairs)
        second = torch.autograd.grad(slope, leaves)
        found = [g.detach() for g in found]
    for got, exact in zip([*found, *second], [*expected, *curved], strict=True):
        gap = np.linalg.norm(np.asarray(got) - np.asarray(exact))
        assert gap <= 1e-8 * np.linalg.norm(exact)


# The losses of the tasks: latent codes; adapted vectors; and attacks, on the boundary
# of a ball.

RADIUS = 0.4


def entropy(xp, z, y):
    """The cross-entropy of scores z and soft labels."""
    return -(y * (z - xp.log(xp.exp(z).sum(-1, keepdims=True)))).sum(-1)


def task_losses(xp):
    """Losses of z, x, y and the parameters, by task."""
    return {
        "inverse": lambda z, x, y, p: (
            (y[..., :4] * (z[..., :4] - y[..., 1:]) ** 2).sum(-1)
            + p["prior"] * (x**2).sum(-1)
        ),
        "meta": lambda z, x, y, p: (
            entropy(xp, 3 * z, abs(y)) + p["prior"] * (x**2).sum(-1)
        ),
        "attack": lambda z, x, y, p: -entropy(xp, 3 * z, abs(y)),
    }


def in_ball(x):
    return x * (RADIUS / torch.clamp(x.norm(dim=-1, keepdim=True), min=RADIUS))


def dense_task(name, params, y, start):
    """The outer loss by Newton's method on the conditions; for an attack, ‖x‖ = RADIUS
    is one.
    """
    loss = task_losses(jnp)[name]

    def conditions(w, y):
        lagrangian = lambda z, mu, x: (
            loss(z, x, y, params)
            + mu @ (small_map(jnp)(z, x, params) - z)
            + (w[13] * (x @ x - RADIUS**2) / 2 if name == "attack" else 0.0)
        )
        parts = jax.grad(lagrangian, (0, 1, 2))(w[:5], w[5:10], w[10:13])
        bound = w[10:13] @ w[10:13] - RADIUS**2 if name == "attack" else w[13]
        return jnp.concatenate([*parts, bound[None]])

    def solution(w, y):
        newton = lambda w: (
            w - jnp.linalg.solve(jax.jacfwd(conditions)(w, y), conditions(w, y))
        )
        w = jax.lax.fori_loop(0, 8, lambda _, w: jax.lax.stop_gradient(newton(w)), w)
        return newton(jax.lax.stop_gradient(w))

    w = jax.vmap(solution)(start, y)
    return outer_loss({"z": w[:, :5], "x": w[:, 10:13]})


@pytest.mark.parametrize("name", ["inverse", "meta", "attack"])
def test_implicit_derivatives_for_the_losses_of_the_tasks(name):
    arguments = small_arguments()
    leaves, structure = jax.tree.flatten(arguments)
    leaves = [torch.tensor(leaf, requires_grad=True) for leaf in leaves]
    params, y = jax.tree.unflatten(structure, leaves)
    project = in_ball if name == "attack" else None
    model = AugmentedDEQ(
        small_map(torch), task_losses(torch)[name], step_size=0.2, project=project
    )
    zeros = (torch.zeros(shape, dtype=torch.float64) for shape in ((2, 5), (2, 3)))
    sol = model.iterate(
        *zeros,
        params=params,
        y=y,
        rtol=1e-12,
        atol=1e-13,
        max_steps=3000,
        solver=fp.Anderson(memory=5),
        adjoint=fp.ImplicitAdjoint(rtol=1e-12),
    )
    found = torch.autograd.grad(outer_loss(sol.value), leaves, allow_unused=True)
    parts = [sol.value[key].detach() for key in ("z", "mu", "x")]
    force = model.problem({**sol.value}, params, y).input_gradient.norm(
        dim=-1, keepdim=True
    )
    start = torch.cat([*parts, force.detach() / RADIUS], -1).numpy()
    if name == "attack":
        assert np.allclose(np.linalg.norm(parts[2], axis=1), RADIUS)
    as_jax = jax.tree.map(jnp.asarray, arguments)
    reference = jax.jit(
        jax.grad(lambda arguments: dense_task(name, *arguments, start))
    )(as_jax)
    for got, exact in zip(found, jax.tree.leaves(reference), strict=True):
        gap = exact if got is None else got.numpy() - exact
        assert np.linalg.norm(gap) <= 1e-7 * max(np.linalg.norm(exact), 1e-3)


def test_without_an_adjoint_the_iterate_is_constant(problem):
    decoder, y, (z, x) = problem
    sol = MODEL.iterate(
        z, x, params=decoder.params(), y=y, max_steps=3, on_failure="return"
    )
    assert not any(leaf.requires_grad for leaf in sol.value.values())


def test_the_decoder_contracts_whatever_its_weights():
    decoder = DenseDecoder(PIXELS, WIDTH, LATENT, bound=0.8)
    with torch.no_grad():
        decoder.V.mul_(1e3)
    assert (
        float(torch.linalg.matrix_norm(decoder.params()["W"].detach(), ord=2))
        <= 0.8 + 1e-12
    )
    with pytest.raises(ValueError, match="bound"):
        DenseDecoder(PIXELS, bound=1.0)


# Training


SHORT = Training(epochs=4, batch_size=20, width=12, latent=3)


@pytest.fixture
def images():
    return torch.as_tensor(digits()[:60].reshape(60, -1))


def test_training_lowers_the_objective(images, tmp_path):
    settings = Training(epochs=15, batch_size=20, width=24, latent=4)
    y = (images, torch.ones_like(images))

    def objective(trained):
        z = torch.zeros(len(images), 24, dtype=torch.float64)
        return float(
            MODEL.objective(
                z, trained.codes, params=frozen(trained.decoder), y=y
            ).mean()
        )

    first = train(
        images, Training(epochs=1, batch_size=20, width=24, latent=4), tmp_path / "a"
    )
    assert objective(train(images, settings, tmp_path / "b")) < 0.5 * objective(first)


def test_an_interrupted_run_ends_as_if_it_had_not_been(images, tmp_path, monkeypatch):
    whole = train(images, SHORT, tmp_path / "whole.pt", progress=False)
    epoch = training_module._epoch

    def interrupted(run, *args):
        if run.epoch == 2:
            raise KeyboardInterrupt
        return epoch(run, *args)

    monkeypatch.setattr(training_module, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(images, SHORT, tmp_path / "part.pt", progress=False)
    monkeypatch.setattr(training_module, "_epoch", epoch)
    resumed = train(images, SHORT, tmp_path / "part.pt", progress=False)
    for ours, theirs in zip(
        resumed.decoder.parameters(), whole.decoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(resumed.codes, whole.codes)


def test_a_checkpoint_is_taken_up_by_any_number_of_threads():
    """Sums of as many numbers depend on it."""
    images, found = (
        torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        set(),
    )
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(training_module.fingerprint(images))
    torch.set_num_threads(1)
    assert len(found) == 1


def test_a_checkpoint_of_something_else_is_refused(images, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    train(images, SHORT, checkpoint, progress=False)
    with pytest.raises(CheckpointError, match="other settings"):
        train(images, Training(epochs=5), checkpoint, progress=False)
    with pytest.raises(CheckpointError, match="other images"):
        train(images[:50], SHORT, checkpoint, progress=False)
    checkpoint.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        train(images, SHORT, checkpoint, progress=False)


def test_whitened_codes_have_unit_second_moment(images, tmp_path):
    trained = train(images, SHORT, tmp_path / "checkpoint.pt", progress=False)
    root = torch.linalg.lstsq(trained.decoder.U, trained.params()["U"]).solution
    codes = torch.linalg.solve(root, trained.codes.T)
    torch.testing.assert_close(
        (codes @ codes.T / len(images)).detach(),
        torch.eye(3, dtype=torch.float64),
        rtol=0.0,
        atol=1e-8,
    )


# Data


def write_images(folder, number=40, size=(6, 5)):
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(number):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


def test_a_folder_of_images_is_read_in_grey(tmp_path):
    folder = write_images(tmp_path / "images")
    Image.new("RGB", (5, 6), (255, 0, 0)).save(folder / "0.png")
    images = load_images(folder)
    assert images.shape == (40, 6, 5)
    np.testing.assert_allclose(images[0], 76 / 255)


def test_bytes_in_an_archive_are_scaled(tmp_path):
    array = np.arange(40 * 16, dtype=np.uint8).reshape(40, 4, 4)
    np.savez(tmp_path / "images.npz", array)
    np.testing.assert_array_equal(load_images(tmp_path / "images.npz"), array / 255.0)


def bad_folder(path, kind):
    if kind == "empty":
        path.mkdir()
        return path
    write_images(path)
    if kind == "sizes":
        Image.new("L", (9, 9)).save(path / "5.png")
    else:
        (path / "7.png").write_text("these are words")
    return path


def bad_archive(path, kind):
    array = np.zeros((40, 4, 4))
    archive = path.with_suffix(".npz")
    if kind == "nan":
        array[3, 1, 1] = np.nan
    elif kind == "range":
        array[0] = 7.0
    elif kind == "shape":
        array = array[0]
    elif kind == "integers":
        array = array.astype(np.int64)
    elif kind == "few":
        array = array[:5]
    elif kind == "objects":
        array = np.array([{"a": 1}], dtype=object)
    np.savez(archive, array)
    if kind == "truncated":
        archive.write_bytes(archive.read_bytes()[:100])
    return archive


BAD = {
    ("folder", "empty"): "no image files",
    ("folder", "sizes"): "one size",
    ("folder", "text"): "7.png: not an image",
    ("archive", "nan"): "image 3 holds NaN",
    ("archive", "range"): r"\[0, 1\]",
    ("archive", "shape"): "expected the shape",
    ("archive", "integers"): "bytes or floats",
    ("archive", "few"): "at least 40",
    ("archive", "objects"): "plain arrays",
    ("archive", "truncated"): "plain arrays",
}


@pytest.fixture(params=list(BAD), ids="-".join)
def bad(request, tmp_path):
    """A file or folder that cannot be used, and what must be said of it."""
    where, kind = request.param
    make = bad_folder if where == "folder" else bad_archive
    return make(tmp_path / "data", kind), BAD[request.param]


def test_bad_data_is_named(bad):
    path, message = bad
    with pytest.raises(DataError, match=message):
        load_images(path)


def test_masks_hide_one_square():
    masks = square_masks(30, 8, 8, seed=0)
    assert (masks.sum(axis=(1, 2)) == 64 - 16).all()
    for mask in masks:
        rows, columns = np.nonzero(mask == 0)
        assert np.ptp(rows) == np.ptp(columns) == 3


# The command line


def invoke(*arguments):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


def test_bad_data_ends_with_one_line_and_code_2(bad, tmp_path):
    result = invoke("--data", bad[0], "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--backend", "tensorflow"), "torch, jax"),
        (("--data", "nowhere"), "nowhere"),
        (("--epochs", "0"), "epochs"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(arguments, word, tmp_path):
    result = invoke(*arguments, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert word in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_demo_on_a_folder_of_images(tmp_path, monkeypatch):
    """Of the grids of methods, some."""
    kept = lambda name: name.endswith(("(5) of type 2, α=0.2", "0.2, Picard"))
    fewer = partial(demo.compare, seconds=0.1, keep=kept)
    monkeypatch.setattr(demo, "compare", fewer)
    folder = write_images(tmp_path / "images", number=60, size=(8, 8))
    output = tmp_path / "out"
    result = invoke(
        *("--data", folder, "--output", output),
        *("--epochs", 2, "--backend", "jax", "--full"),
    )
    assert result.exit_code == 0, result.output
    assert "worst ratio" in result.output
    assert "JAX and Torch" in result.output
    for picture in ("recovered.png", "race.png"):
        assert Image.open(io.BytesIO((output / picture).read_bytes())).width > 500
    shutil.rmtree(output)


def test_the_methods_of_the_short_demo_are_of_the_grids(problem):
    model = AugmentedDEQ(equilibrium_map, masked_loss, decode)
    grids = {*comparison.recipes(), *comparison.nested_methods(model.problem)}
    assert grids > demo.QUICK


def test_decoding_is_affine(problem):
    params = frozen(problem[0])
    z = torch.randn(2, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(decode(z, params) - params["c"], z @ params["C"].T)
