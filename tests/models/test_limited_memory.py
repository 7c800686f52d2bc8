"""L-BFGS in the input, where inputs have many entries or lie in a set."""

from itertools import product

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import fixedpoint as fp
from fixedpoint.adapters import backend_of
from fixedpoint.spaces import space_of
from fixedpoint_models import AugmentedDEQ, TrackedLBFGS, TrackedNewton, ball
from fixedpoint_models.secants import Curvature

SIZE = 2000
LIBRARIES = {"numpy": np, "strict": array_api_strict, "torch": torch, "jax": jnp}


@pytest.mark.parametrize("unit", [2.0**-20, 1.0, 2.0**20])
@pytest.mark.parametrize("kind", ["free", "box", "ball", "simplex"])
def test_the_nearest_point_of_a_set_is_its_projection(projection, kind, unit):
    """‖z − y‖² with z = z/2 + x is least at Π(y/2), and nothing is named."""
    y = torch.tensor(np.random.default_rng(0).standard_normal((2, SIZE)))
    project = projection(kind, -0.5, 0.3, 1.0)
    inside = project and (lambda x: unit * project(x / unit))
    loss = lambda z, x, y, p: ((z - y) ** 2).sum(-1)
    model = AugmentedDEQ(lambda z, x, p: 0.5 * z + x, loss, project=inside)
    zero = torch.zeros_like(y)
    sol = model.solve(zero, zero, params=None, y=unit * y, rtol=1e-7, atol=0.0)
    expected = 0.5 * unit * y if inside is None else inside(0.5 * unit * y)
    assert sol.joint.methods == ("TrackedLBFGS",)
    torch.testing.assert_close(sol.x, expected, rtol=1e-5, atol=1e-7 * unit)
    assert bool(sol.joint.converged.all())


def network(seed, rate):
    """A cell of a spectral radius of `rate` at zero, what is seen of it, and data."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((40, 40))
    W = rate * (W + W.T) / np.abs(np.linalg.eigvalsh(W + W.T)).max()
    U, C = rng.standard_normal((40, 300)) / 10, rng.standard_normal((30, 40)) / 5
    params = {"W": W, "U": U, "C": C}
    return params, C @ np.tanh(rng.standard_normal(40))


def cell(z, x, p):
    return torch.tanh(z @ p["W"].T + x @ p["U"].T)


def misfit(o, x, y, p):
    return ((o - y) ** 2).sum(-1) + 0.01 * (x**2).sum(-1)


@pytest.mark.parametrize("bound", [None, 0.05])
@pytest.mark.parametrize("rate", [0.5, 0.95])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_minimum_is_that_of_scipy(seed, rate, bound):
    """In a box too, and where the cell contracts slowly."""
    params, y = network(seed, rate)

    def objective(x):
        z = np.zeros(40)
        for _ in range(2000):
            z, before = np.tanh(params["W"] @ z + params["U"] @ x), z
            if np.abs(z - before).max() < 1e-14:
                break
        left = params["C"] @ z - y
        slope = 1.0 - z**2
        mu = np.linalg.solve(
            np.eye(40) - params["W"].T * slope, params["C"].T @ (2.0 * left)
        )
        gradient = params["U"].T @ (slope * mu) + 0.02 * x
        return left @ left + 0.01 * x @ x, gradient

    known = minimize(
        objective,
        np.zeros(300),
        method="L-BFGS-B",
        jac=True,
        bounds=None if bound is None else [(-bound, bound)] * 300,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-9},
    )
    held = None if bound is None else (lambda x: x.clamp(-bound, bound))
    model = AugmentedDEQ(cell, misfit, lambda z, p: z @ p["C"].T, project=held)
    zeros = torch.zeros(1, 40, dtype=torch.float64), torch.zeros(1, 300).double()
    sol = model.solve(
        *zeros,
        params=jax.tree.map(torch.tensor, params),
        y=torch.tensor(y)[None],
        rtol=1e-5,
        max_steps=400,
        on_failure="return",
    )
    np.testing.assert_allclose(float(sol.objective[0]), known.fun, rtol=1e-5)
    # Almost all inputs end on their bounds where the cell is slow: many steps.
    assert bool(sol.joint.converged.all()) or (rate, bound) == (0.95, 0.05)


@pytest.mark.parametrize(
    ("kind", "most"), [("box", 1500), ("ball", 600), ("simplex", 220)]
)
def test_curvature_is_learnt_along_the_set(projection, kind, most):
    """That of the gradient across it tells nothing: with it, two to eight times as many
    evaluations.
    """
    evaluations = 0
    for seed, bound in product(range(3), [0.02, 0.05, 0.1]):
        params, y = network(seed, 0.5)
        model = AugmentedDEQ(
            cell,
            misfit,
            lambda z, p: z @ p["C"].T,
            project=projection(kind, -bound, bound, 10.0 * bound),
        )
        given = {
            "params": jax.tree.map(torch.tensor, params),
            "y": torch.tensor(y)[None],
        }
        zeros = torch.zeros(1, 40, dtype=torch.float64), torch.zeros(1, 300).double()
        evaluations += model.iterate(*zeros, **given, rtol=1e-5, max_steps=400).work.f
        if kind == "simplex":
            break
    assert evaluations < most


@pytest.mark.parametrize("rtol", [1e-2, 1e-5])
def test_no_simplex_of_two_entries_is_circled_in(projection, rtol):
    """A problem in one unknown: where the gradient is far from zero across the set,
    steps from its minimum led away, and back again.
    """
    project = projection("simplex", 0.0, 1.0, 1.0)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        W, U, C, c = (
            torch.tensor(rng.standard_normal(n)) for n in ((3, 3), (3, 2), (20, 3), 20)
        )
        W = 0.3 * W / torch.linalg.matrix_norm(W, 2)
        model = AugmentedDEQ(
            lambda z, x, p, W=W, U=U: torch.tanh(z @ W.T + x @ U.T),
            lambda z, x, y, p, C=C, c=c: (
                (torch.nn.functional.softplus(z @ C.T + c) - y) ** 2
            ).sum(-1),
            project=project,
        )
        y = abs(torch.tensor(rng.standard_normal((1, 20))))
        start = torch.zeros(1, 3).double(), torch.full((1, 2), 0.5).double()
        sol = model.solve(*start, params=None, y=y, rtol=rtol)
        assert int(sol.joint.steps[0]) < 40
        near = float(sol.x[0, 0]) + torch.linspace(-0.05, 0.05, 101).double()[:, None]
        near = near.clamp(0.0, 1.0)
        zeros = torch.zeros(101, 3, dtype=torch.float64)
        around = torch.cat([near, 1.0 - near], dim=1)
        least = model.objective(zeros, around, params=None, y=y).min()
        assert float(sol.objective[0]) < (1.0 + rtol) * float(least)


@pytest.mark.parametrize("newest", range(4))
def test_the_matrix_is_that_of_bfgs(newest):
    """That of dense updates, whatever slot holds the newest step, in two samples."""
    rng, memory, n = np.random.default_rng(newest), 4, 6
    A = rng.standard_normal((n, n))
    A = A @ A.T + np.eye(n)
    like = np.zeros((2, n))
    space = space_of(backend_of([like], ["x"]), (like,), 1)
    curvature = Curvature.unknown(space, memory)
    steps = rng.standard_normal((memory + newest + 1, 2, n))
    steps[2, 1] = 0.0  # which tells nothing of the second sample
    for k, s in enumerate(steps):
        pair = (s,), (s @ A,)
        known = space.dots(pair, (pair[0], pair[0]), (pair[1], pair[1]))
        curvature = curvature.noted(space, k % memory, pair, known)
    g = rng.standard_normal((2, n))
    (found,) = curvature.step(space, k % memory, (g,))
    for b in range(2):
        kept = [s[b] for s in steps[-memory:] if s[b].any()]
        last = A @ kept[-1]
        H = (kept[-1] @ last) / (last @ last) * np.eye(n)
        for s in kept:
            y = A @ s
            left = np.eye(n) - np.outer(s, y) / (s @ y)
            H = left @ H @ left.T + np.outer(s, s) / (s @ y)
        np.testing.assert_allclose(found[b], -H @ g[b], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("forcing", [0.5, 0.01])
def test_evaluations_are_counted(forcing):
    params, y = network(0, 0.9)
    calls = []

    def counted(z, x, p):
        calls.append(1)
        return cell(z, x, p)

    model = AugmentedDEQ(counted, misfit, lambda z, p: z @ p["C"].T)
    zeros = torch.zeros(1, 40, dtype=torch.float64), torch.zeros(1, 300).double()
    given = {"params": jax.tree.map(torch.tensor, params), "y": torch.tensor(y)[None]}
    method = TrackedLBFGS(forcing=forcing)
    sol = model.iterate(
        *zeros, method=method, max_steps=5, on_failure="return", **given
    )
    assert sol.work.f == len(calls)


def linear_path(xp, batch_ndim):
    """Iterates of a linear cell whose products are given, as no framework needs."""
    y = xp.asarray(np.random.default_rng(1).standard_normal((2, 3, 5)))
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: xp.sum((z - y) ** 2, axis=tuple(range(batch_ndim, 3))),
        project=lambda x: xp.clip(x, -0.3, 0.4),
        batch_ndim=batch_ndim,
        vjp=lambda z, x, p: (0.5 * z + x, lambda mu: (0.5 * mu, mu)),
        loss_gradient=lambda z, x, y, p: (
            xp.sum((z - y) ** 2, axis=tuple(range(batch_ndim, 3))),
            (2.0 * (z - y), 0.0 * x),
        ),
    )
    sol = model.iterate(0.0 * y, 0.0 * y, params=None, y=y, max_steps=60, rtol=1e-8)
    return np.asarray(sol.value["x"]), np.asarray(y)


@pytest.mark.parametrize("batch_ndim", [0, 1, 2])
@pytest.mark.parametrize("library", LIBRARIES)
def test_products_that_are_given_serve_any_library(library, batch_ndim):
    found, y = linear_path(LIBRARIES[library], batch_ndim)
    np.testing.assert_allclose(found, np.clip(0.5 * y, -0.3, 0.4), rtol=1e-6, atol=1e-8)


def test_jax_solves_under_jit_and_differentiates():
    """x = y/2 in a box: the derivative is one half where it is free."""
    y = jnp.asarray(np.random.default_rng(2).standard_normal((1, 200)))
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: ((z - y) ** 2).sum(-1),
        project=lambda x: x.clip(-0.3, 0.4),
    )

    @jax.jit
    def total(y):
        sol = model.iterate(0.0 * y, 0.0 * y, params=None, y=y, rtol=1e-8)
        return sol.value["x"].sum()

    value, slope = jax.value_and_grad(total)(y)
    inside = (0.5 * y > -0.3) & (0.5 * y < 0.4)
    np.testing.assert_allclose(value, jnp.clip(0.5 * y, -0.3, 0.4).sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, 0.5 * inside, atol=1e-6)


def test_a_step_that_overflows_is_taken_back():
    """z = 2eˣ is to be 50: the first step goes to x = 12."""
    model = AugmentedDEQ(
        lambda z, x, p: 2.0 * torch.exp(x) + 0.0 * z,
        lambda z, x, y, p: ((z - y) ** 2).sum(-1),
    )
    zero = torch.zeros(2, 300, dtype=torch.float64)
    y = torch.tensor([[50.0], [2.0]]).double().expand(2, 300)
    sol = model.solve(zero, zero, params=None, y=y)
    torch.testing.assert_close(sol.x, torch.log(0.5 * y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", [0.0, 1e-3])
def test_an_objective_that_is_zero_at_the_start(start):
    """The least ⟨c, z⟩ over a ball, with z = z/2 + x, is on its boundary."""
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, c, p: (c * z).sum(-1),
        project=ball(2.0),
    )
    c = torch.tensor(np.random.default_rng(4).standard_normal((2, 500)))
    sol = model.solve(0.0 * c, start + 0.0 * c, params=None, y=c)
    expected = -2.0 * c / c.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sol.x, expected, rtol=1e-4, atol=1e-4)


def test_a_start_outside_the_set_is_projected():
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: ((z - y) ** 2).sum(-1),
        project=ball(1.0),
    )
    y = torch.full((1, 300), 4.0, dtype=torch.float64)
    sol = model.solve(0.0 * y, 100.0 * y, params=None, y=y)
    assert float(sol.x.norm()) <= 1.0 + 1e-9


@pytest.mark.parametrize(("name", "value"), [("memory", 0), ("forcing", 0.0)])
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        TrackedLBFGS(**{name: value})


def test_a_policy_speaks_of_the_method():
    y = torch.ones(1, 300)
    bent = lambda z, x, y, p: -(z**2).sum(-1)
    model = AugmentedDEQ(lambda z, x, p: 0.5 * z + x, bent)
    with pytest.raises(fp.ConvergenceError, match="TrackedLBFGS"):
        model.solve(0.0 * y, y, params=None, y=y, max_steps=5)


def spoiled(row):
    """Three starts of which the second is not a number."""
    start = torch.zeros(3, 2, dtype=torch.float64)
    start[1] = row
    return start


@pytest.mark.parametrize("row", [torch.nan, torch.inf])
def test_a_start_that_is_not_finite_spoils_no_other(row):
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x, lambda z, x, y, p: ((z - 1.0) ** 2).sum(-1)
    )
    sound, poor = (
        model.solve(
            torch.zeros_like(start),
            start,
            params=None,
            y=None,
            on_failure="return",
            method=TrackedLBFGS(),
        )
        for start in (spoiled(0.0), spoiled(row))
    )
    assert poor.joint.converged.tolist() == [True, False, True]
    assert torch.equal(poor.x[::2], sound.x[::2])


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float64, torch.float32),
        (torch.complex128, torch.float64),
        (torch.complex128, torch.complex128),
    ],
)
def test_state_and_input_of_other_dtypes_are_solved_with_nothing_named(dtypes, recwarn):
    """x = Re y/2, or y/2, for z = z/2 + x and the loss |z − y|²."""
    z, x = (torch.zeros(2, 3, dtype=dtype) for dtype in dtypes)
    y = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).to(dtypes[0]) + 1.0
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x, lambda z, x, y, p: ((z - y).abs() ** 2).sum(-1)
    )
    sol = model.solve(z, x, params=None, y=y)
    assert sol.joint.methods == ("TrackedLBFGS",)
    torch.testing.assert_close(sol.x, 0.5 * y, rtol=1e-3, atol=0.0, check_dtype=False)
    assert not recwarn.list
    with pytest.raises(ValueError, match="real states and inputs of one dtype"):
        model.solve(z, x, params=None, y=y, method=TrackedNewton())


def test_a_projection_keeps_the_shape_of_an_input():
    zeros = torch.zeros(2, 3)
    for project, message in (
        (lambda x: x[:, :1], "project must keep the shape of x0"),
        (lambda x: None, "project returned None"),
    ):
        model = AugmentedDEQ(
            lambda z, x, p: 0.5 * z + x,
            lambda z, x, y, p: (z**2).sum(-1),
            project=project,
        )
        with pytest.raises(ValueError, match=message):
            model.solve(zeros, zeros, params=None, y=None)
