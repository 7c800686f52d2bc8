"""What holds of every method, of those that track state and adjoint."""

import gc
import tracemalloc

import array_api_strict
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fixedpoint_models import (
    AugmentedDEQ,
    BarzilaiBorwein,
    ConditionalGradient,
    Momentum,
    TrackedDescent,
    TrackedLBFGS,
    TrackedNewton,
    ball,
    linear_minimizer,
)
from fixedpoint_torch import numpy_algebra

B, N, M = 3, 6, 4
RNG = np.random.default_rng(1)
MATRIX = RNG.standard_normal((N, N))
MATRIX *= 0.5 / np.linalg.norm(MATRIX, 2)
DRIVE, DATA = RNG.standard_normal((N, M)), RNG.standard_normal((B, N))
PARAMS = {"W": torch.tensor(MATRIX), "U": torch.tensor(DRIVE), "scale": 1.0}
START = torch.zeros(B, N, dtype=torch.float64), torch.zeros(B, M, dtype=torch.float64)


def f(z, x, p):
    """Homogeneous of degree one in z, x and the scale."""
    drive = (z @ p["W"].T + x @ p["U"].T) / p["scale"]
    return p["scale"] * torch.tanh(drive)


def separable(o, x, y, p):
    return ((o - y) ** 2).sum(-1) + 0.1 * (x**2).sum(-1)


def coupled(o, x, y, p):
    """Differences between neighbors, along which a vector of ones is nothing."""
    return ((o - y).diff(dim=-1) ** 2).sum(-1) + 0.1 * (x**2).sum(-1)


METHODS = {
    "newton": TrackedNewton(),
    "L-BFGS": TrackedLBFGS(),
    "momentum": TrackedDescent(rule=Momentum(step_size=0.0625, momentum=0.5)),
    "normalized": TrackedDescent(rule=Momentum(step_size=0.125, normalized=True)),
    "Barzilai and Borwein": TrackedDescent(rule=BarzilaiBorwein(step_size=0.0625)),
}


def iterate(loss, method, scale=1.0, height=1.0, **settings):
    """The iterate after a few steps, all lengths multiplied by `scale` and ℓ by
    `height`.
    """
    model = AugmentedDEQ(f, lambda *at: height * loss(*at))
    return model.iterate(
        *START,
        params={**PARAMS, "scale": scale},
        y=scale * torch.tensor(DATA),
        method=method,
        on_failure="return",
        **{"max_steps": 6, "atol": 0.0} | settings,
    ).value


@pytest.mark.parametrize("loss", [separable, coupled])
@pytest.mark.parametrize(
    "name", ["newton", "L-BFGS", "momentum", "Barzilai and Borwein"]
)
def test_lengths_scale_exactly(name, loss):
    """z, x and y in other units: ℓ is in their square, and μ in their own."""
    ours, theirs = (
        iterate(loss, METHODS[name], scale=scale) for scale in (1.0, 2.0**9)
    )
    for block in ("z", "mu", "x"):
        torch.testing.assert_close(
            theirs[block], 2.0**9 * ours[block], rtol=0.0, atol=0.0
        )


@pytest.mark.parametrize("loss", [separable, coupled])
@pytest.mark.parametrize("name", ["newton", "L-BFGS", "normalized"])
def test_the_unit_of_the_loss_is_nothing(name, loss):
    ours, theirs = (
        iterate(loss, METHODS[name], height=height) for height in (1.0, 2.0**-9)
    )
    torch.testing.assert_close(theirs["x"], ours["x"], rtol=0.0, atol=0.0)
    torch.testing.assert_close(theirs["mu"], 2.0**-9 * ours["mu"], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("loss", [separable, coupled])
def test_newton_solves_least_squares_at_once(loss):
    """With a linear f its first step is the last, whether or not the loss is
    separable.
    """
    linear = lambda z, x, p: z @ p["W"].T + x @ p["U"].T
    method = TrackedNewton(damping=1e-9)
    x = (
        AugmentedDEQ(linear, loss)
        .iterate(
            *START,
            params=PARAMS,
            y=torch.tensor(DATA),
            method=method,
            max_steps=0,
            on_failure="return",
        )
        .value["x"]
    )
    sensitivity = np.linalg.solve(np.eye(N) - MATRIX, DRIVE)
    rows = np.eye(N) if loss is separable else np.diff(np.eye(N), axis=0)
    A, b = rows @ sensitivity, DATA @ rows.T
    expected = np.linalg.solve(A.T @ A + 0.1 * np.eye(M), A.T @ b.T).T
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-8)


def left_after_the_first_step(read_out, masks, x=START[1]):
    """Of the excess of a masked least-squares loss."""
    linear = lambda z, x, p: z @ p["W"].T + x @ p["U"].T
    read = torch.tensor(read_out)
    seen = lambda o, x, y, p: (y[1] * (o - y[0]) ** 2).sum(-1) + 0.1 * (x**2).sum(-1)
    y = np.random.default_rng(2).standard_normal((B, len(read_out)))
    method = TrackedNewton(damping=1e-9)
    found = (
        AugmentedDEQ(linear, seen, lambda z, p: z @ read.T)
        .iterate(
            START[0],
            x,
            params=PARAMS,
            y=(torch.tensor(y), torch.tensor(masks)),
            method=method,
            max_steps=0,
            on_failure="return",
        )
        .value["x"]
        .numpy()
    )
    S = read_out @ np.linalg.solve(np.eye(N) - MATRIX, DRIVE)
    start, parts = np.asarray(x[0]), []
    for step, image, mask in zip(found, y, masks, strict=True):
        hessian = S.T @ (mask[:, None] * S) + 0.1 * np.eye(M)
        best = np.linalg.solve(hessian, S.T @ (mask * image))
        now, before = (v @ hessian @ v for v in (step - best, start - best))
        parts.append(now / before)
    return np.array(parts)


MANY = 3000
READ_OUT = RNG.standard_normal((MANY, N))
HIDDEN = (RNG.random((B, MANY)) < 0.7) * 1.0


def test_a_few_entries_stand_for_a_large_output():
    """The first step is nearly that of the whole curvature, of 3000 entries."""
    assert left_after_the_first_step(READ_OUT, HIDDEN).max() < 0.1


def test_entries_count_by_what_they_weigh():
    """Four of 3000 entries hold nearly all of the curvature."""
    uneven = READ_OUT * np.where(np.arange(MANY) % 750 == 7, 300.0, 1.0)[:, None]
    masks = np.where(np.arange(MANY) % 750 == 7, 1.0, HIDDEN)
    assert left_after_the_first_step(uneven, masks).max() < 0.03


def test_all_entries_count_where_a_sample_sees_few():
    masks = HIDDEN * np.array([1.0, 0.0, 1.0])[:, None]
    masks[1, ::60] = 1.0
    assert left_after_the_first_step(READ_OUT, masks).max() < 1e-12


def test_an_output_that_no_input_moves():
    """All that is left of the loss is the penalty on x."""
    assert (
        left_after_the_first_step(0.0 * READ_OUT, HIDDEN, START[1] + 1.0).max() < 1e-12
    )


def test_newton_takes_the_same_path_on_eager_jax_as_in_torch():
    """From a separable loss of many entries, its Hessian seen by two products."""
    image = np.random.default_rng(2).standard_normal((B, MANY))

    def path(to):
        W, U, C, *y = map(to, (MATRIX, DRIVE, READ_OUT, image, HIDDEN))
        model = AugmentedDEQ(
            lambda z, x, p: z @ W.T + x @ U.T,
            lambda o, x, y, p: (y[1] * (o - y[0]) ** 2).sum(-1) + 0.1 * (x**2).sum(-1),
            lambda z, p: z @ C.T,
        )
        return model.iterate(
            to(np.zeros((B, N))),
            to(np.zeros((B, M))),
            params=None,
            y=tuple(y),
            method=TrackedNewton(),
            max_steps=4,
            on_failure="return",
        ).value

    expected = path(torch.tensor)
    for block, found in path(jnp.asarray).items():
        np.testing.assert_allclose(
            found, expected[block], rtol=1e-8, atol=1e-10, err_msg=block
        )


@pytest.mark.usefixtures("young_heap")
def test_newton_remembers_as_much_however_long_it_runs():
    """The most bytes of all tensors and arrays, early and late: a trial that waits
    takes a state more.
    """
    wide, held = torch.linspace(-1.0, 1.0, 50_000, dtype=torch.float64), [0, 0]
    model = AugmentedDEQ(
        lambda z, x, w: torch.tanh(0.5 * z + w * x),
        lambda z, x, y, w: ((z - y) ** 2).mean(-1) + (x**2).sum(-1),
    )

    def count(step, value, norm):
        if step in (8, 9, 10, 18, 19, 20):
            gc.collect()
            alive = [a for a in gc.get_objects() if issubclass(type(a), torch.Tensor)]
            tensors = sum(a.nelement() * a.element_size() for a in alive)
            # Which knows NumPy's arrays.
            seen = tensors + tracemalloc.get_traced_memory()[0]
            held[step > 10] = max(held[step > 10], seen)
        return False

    tracemalloc.start()
    try:
        TrackedNewton().solve(
            model,
            torch.zeros(1, len(wide), dtype=torch.float64),
            None,
            torch.zeros(1, 1, dtype=torch.float64),
            wide,
            wide,
            max_steps=50,
            rtol=0.0,
            atol=0.0,
            callback=count,
            on_failure="return",
        )
    finally:
        tracemalloc.stop()
    early, late = held
    assert late - early < 0.5 * wide.nelement() * wide.element_size()


@pytest.mark.parametrize("loss", [separable, coupled])
def test_newton_takes_the_same_path_in_torch_as_in_numpy(loss, monkeypatch):
    """Its small algebra is NumPy's as a rule, and Torch's for large states and on
    accelerators.
    """
    by_numpy = iterate(loss, METHODS["newton"])["x"]
    monkeypatch.setattr(numpy_algebra, "holds", lambda leaves: False)
    torch.testing.assert_close(
        iterate(loss, METHODS["newton"])["x"], by_numpy, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_solution_knows_the_products_with_the_joint_map(method):
    """Of which the method itself asks nothing; against central differences, wherever
    it ended.
    """
    model, y = AugmentedDEQ(f, separable), torch.tensor(DATA)
    settings = {"method": method, "max_steps": 20, "on_failure": "return"}
    sol = model.iterate(*START, params=PARAMS, y=y, **settings)
    here = model.problem(sol.value, PARAMS, y)
    length = sol.value["x"].norm(dim=-1) / here.input_terms.norm(dim=-1)

    def image(step):
        state = {name: sol.value[name] + step * v[name] for name in v}
        at = model.problem(state, PARAMS, y)
        moved = state["x"] - length[:, None] * at.input_gradient
        return {"z": at.value, "mu": at.state_gradient, "x": moved}

    torch.manual_seed(0)
    v = {name: torch.randn_like(leaf) for name, leaf in sol.value.items()}
    ahead, behind, found = image(1e-5), image(-1e-5), sol.linearize()(v)
    for name in v:
        known = (ahead[name] - behind[name]) / 2e-5
        np.testing.assert_allclose(found[name], known, rtol=1e-6, atol=1e-8)


# Descent needs no automatic differentiation where the products are given.

NAMESPACES = {"numpy": np, "strict": array_api_strict, "torch": torch, "jax": jnp}
RULES = {
    "momentum": (Momentum(step_size=0.05, momentum=0.5), None),
    "Barzilai and Borwein": (BarzilaiBorwein(step_size=0.02), None),
    "conditional gradient": (
        ConditionalGradient(oracle=linear_minimizer(0.5), step_size=0.5),
        ball(0.5),
    ),
}


def linear_quadratic(xp, project=None, unit=1.0):
    """A model with products by hand, its data, and a state of zeros."""
    W, U, y = (
        xp.asarray(array.tolist(), dtype=xp.float64) for array in (MATRIX, DRIVE, DATA)
    )
    zeros = xp.zeros((B, N), dtype=xp.float64), xp.zeros((B, M), dtype=xp.float64)

    def linear(z, x, p):
        return z @ W.T + x @ U.T

    def loss(z, x, y, p):
        fit, size = xp.sum((z - y) ** 2, axis=-1), xp.sum(x**2, axis=-1)
        return unit * (fit + 0.1 * size)

    def slopes(z, x, y, p):
        return loss(z, x, y, p), (unit * 2.0 * (z - y), unit * 0.2 * x)

    products = lambda z, x, p: (linear(z, x, p), lambda mu: (mu @ W, mu @ U))
    model = AugmentedDEQ(
        linear, loss, project=project, vjp=products, loss_gradient=slopes
    )
    return model, y, zeros


def path(xp, rule, project):
    """The input after a few steps."""
    model, y, zeros = linear_quadratic(xp, project)
    return model.iterate(
        *zeros,
        params=None,
        y=y,
        method=TrackedDescent(rule=rule),
        max_steps=8,
        on_failure="return",
    ).value["x"]


@pytest.mark.parametrize("name", NAMESPACES)
@pytest.mark.parametrize("far", [0.0, 1e6])
@pytest.mark.parametrize("is_descent", [False, True], ids=["L-BFGS", "descent"])
def test_a_claim_is_right_from_any_start_in_any_unit(name, far, is_descent):
    """On every array library; a power of two as unit changes no evaluation."""
    xp, found = NAMESPACES[name], []
    for unit in (1.0, 2.0**-30, 2.0**30):
        model, y, (z, x) = linear_quadratic(xp, unit=unit)
        steps = BarzilaiBorwein(step_size=2.0**-6 / unit)
        descent = TrackedDescent(rule=steps, sweeps=8)
        method = descent if is_descent else TrackedLBFGS()
        found.append(
            model.iterate(
                z,
                x + far,
                params=None,
                y=y,
                method=method,
                rtol=1e-4,
                max_steps=300,
                on_failure="return",
            )
        )
    map_ = np.linalg.solve(np.eye(N) - np.asarray(MATRIX), np.asarray(DRIVE))
    normal = map_.T @ map_ + 0.1 * np.eye(M)
    exact = np.linalg.solve(normal, map_.T @ np.asarray(DATA).T).T
    value, converged = map(np.asarray, (found[0].value["x"], found[0].converged))
    errors = np.linalg.norm(value - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert converged.all()
    assert errors.max() <= 1e-3
    for other in found[1:]:
        assert other.work == found[0].work
        np.testing.assert_array_equal(other.value["x"], found[0].value["x"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["strict", "torch", "jax"])
def test_descent_takes_the_same_path_with_every_array_library(name, rule):
    rule = RULES[rule]
    found = path(NAMESPACES[name], *rule)
    np.testing.assert_allclose(
        np.asarray(found), path(np, *rule), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", NAMESPACES)
def test_the_users_functions_see_arrays_of_the_users_library(name):
    """Small tensors are computed with in NumPy: an oracle does not notice."""
    kinds, oracle, project = set(), linear_minimizer(0.5), ball(0.5)

    def noted(function):
        return lambda x: (kinds.add(type(x)), function(x))[1]

    xp, rule = NAMESPACES[name], ConditionalGradient(oracle=noted(oracle))
    found = path(xp, rule, noted(project))
    assert kinds == {type(found)} == {type(xp.zeros(1))}


def test_descent_without_products_names_what_is_missing():
    model = AugmentedDEQ(lambda z, x, p: z, separable)
    zeros = np.zeros((B, N)), np.zeros((B, M))
    with pytest.raises(TypeError, match="vector-Jacobian products"):
        model.iterate(*zeros, params=None, y=DATA, method=METHODS["momentum"])
