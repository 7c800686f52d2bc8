"""The unit of the loss is nothing to the augmented system: neither to what is found nor
to what is said of it.
"""

import jax
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import fixedpoint as fp
from fixedpoint_models import (
    AugmentedDEQ,
    BarzilaiBorwein,
    ConditionalGradient,
    JointIteration,
    Momentum,
    TrackedDescent,
    TrackedLBFGS,
    TrackedNewton,
    ball,
    linear_minimizer,
)

B, N, M, K = 2, 8, 3, 5


def network(seed):
    """A contracting cell, what is seen of its states, and data, in NumPy."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((N, N))
    W *= 0.6 / np.linalg.norm(W, 2)
    params = {
        "W": W,
        "U": rng.standard_normal((N, M)),
        "C": rng.standard_normal((K, N)),
    }
    return params, 2.0 * rng.standard_normal((B, K))


def cell(z, x, p):
    return torch.tanh(z @ p["W"].T + x @ p["U"].T)


def seen(z, p):
    return z @ p["C"].T


def posed(unit, penalty=0.1, project=None, **rest):
    """The model whose loss is multiplied by a unit."""

    def loss(o, x, y, p):
        return unit * (((o - y) ** 2).sum(-1) + penalty * (x**2).sum(-1))

    return AugmentedDEQ(cell, loss, seen, project=project, **rest)


def solved(unit, method=None, seed=0, dtype=torch.float64, start=0.0, **rest):
    """The joint solution from an input of this size, nothing else being named."""
    control = {key: rest.pop(key) for key in {"solver", "max_steps"} & rest.keys()}
    given = jax.tree.map(lambda a: torch.tensor(a, dtype=dtype), network(seed))
    zeros = torch.zeros(B, N, dtype=dtype), start + torch.zeros(B, M, dtype=dtype)
    return posed(unit, **rest).iterate(
        *zeros,
        params=given[0],
        y=given[1],
        method=method,
        **control,
        on_failure="return",
    )


def minima(seed, penalty=0.1):
    """The best input of each sample, by SciPy, z solved for to 1e-12."""
    p, y = network(seed)

    def objective(x, target):
        z, before = np.zeros(N), np.ones(N)
        while np.abs(z - before).max() > 1e-12:
            z, before = np.tanh(p["W"] @ z + p["U"] @ x), z
        return ((p["C"] @ z - target) ** 2).sum() + penalty * x @ x

    return np.stack([minimize(objective, np.zeros(M), row, tol=1e-12).x for row in y])


PROJECTED = "box", "ball", "simplex"


def methods(unit):
    """Of a step size that is named, the unit is that of x² over ℓ."""
    momentum = Momentum(step_size=2.0**-7 / unit, momentum=0.5)
    steps = BarzilaiBorwein(step_size=2.0**-7 / unit)
    normalized = Momentum(step_size=2.0**-5, normalized=True)
    return {
        "default": None,
        "newton": TrackedNewton(),
        "L-BFGS": TrackedLBFGS(),
        "momentum": TrackedDescent(rule=momentum, sweeps=4),
        "normalized": TrackedDescent(rule=normalized, sweeps=4),
        "Barzilai and Borwein": TrackedDescent(rule=steps, sweeps=4),
    }


CASES = [
    *(("free", name) for name in methods(1.0)),
    *((kind, "default") for kind in PROJECTED),
    *((kind, "Barzilai and Borwein") for kind in PROJECTED),
]


@settings(max_examples=3, deadline=None)
@given(st.integers(-40, 40), st.integers(0, 99), st.sampled_from([0.0, 1.0, 1e4]))
@example(-24, 0, 0.0)
@example(24, 1, 1e4)
@example(-28, 34, 0.0)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_power_of_two_changes_nothing(projection, kind, name, power, seed, start):
    ours, theirs = (
        solved(
            unit,
            methods(unit)[name],
            seed,
            start=start,
            penalty=0.1 * (seed % 2),
            project=projection(kind, -0.2, 0.3, 0.4),
            max_steps=40,
        )
        for unit in (1.0, 2.0**power)
    )
    for block, unit in (("x", 1.0), ("z", 1.0), ("mu", 2.0**power)):
        expected = unit * ours.value[block]
        torch.testing.assert_close(theirs.value[block], expected, rtol=0.0, atol=0.0)
    assert torch.equal(theirs.steps, ours.steps)
    assert torch.equal(theirs.status, ours.status)
    assert theirs.work == ours.work


@pytest.mark.parametrize("name", ["L-BFGS", "Barzilai and Borwein"])
def test_no_projection_is_asked_of_points_far_away(projection, name):
    """In float32 and a large unit: there one onto a simplex has no digits."""
    project, (params, y) = projection("simplex", 0.0, 1.0, 1.0), network(0)
    p, y = jax.tree.map(lambda a: torch.tensor(a).float(), (params, y))
    start = torch.zeros(B, N), torch.full((B, M), 1.0 / M)
    found = []
    for unit in (1.0, 2.0**50):
        model, method = posed(unit, project=project), methods(unit)[name]
        found.append(model.solve(*start, params=p, y=y, method=method, max_steps=200))
    ours, theirs = found
    torch.testing.assert_close(theirs.x, ours.x, rtol=0.0, atol=0.0)
    for block, unit in (("x", 2.0**50), ("z", 1.0), ("mu", 2.0**50)):
        expected = unit * ours.kkt[block]
        torch.testing.assert_close(theirs.kkt[block], expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("unit", [1e-12, 1e-7, 1e-3, 1.0, 1e3, 1e7, 1e12])
@pytest.mark.parametrize("name", ["default", "L-BFGS"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_minimum_is_found_in_every_unit(dtype, name, unit):
    for seed in range(3):
        sol = solved(unit, methods(1.0)[name], seed, dtype)
        np.testing.assert_allclose(sol.value["x"], minima(seed), atol=5e-4)
        assert bool(sol.converged.all())
        assert int(sol.steps.max()) < 60


@pytest.mark.parametrize("unit", [1e-7, 1e7])
@pytest.mark.parametrize(
    "how",
    [
        {"solver": fp.Anderson()},
        {"method": JointIteration(step_size=0.02, later=0.01, memory=5)},
        {"method": TrackedDescent(rule=Momentum(step_size=0.01), sweeps=2)},
    ],
)
def test_what_is_not_a_minimum_is_not_said_to_be_one(how, unit):
    """A step size of another unit leads nowhere."""
    sol = solved(unit, **how)
    error = np.linalg.norm(np.asarray(sol.value["x"]) - minima(0), axis=-1)
    assert not np.any(np.asarray(sol.converged) & ~(error < 1e-2))


@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e7])
@pytest.mark.parametrize("name", ["default", "L-BFGS"])
def test_a_start_that_is_optimal_has_converged(name, unit):
    """Where the loss is zero, and so are its gradients."""
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: unit * ((z - y) ** 2).sum(-1),
    )
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    sol = model.iterate(2.0 * x, x, params=None, y=2.0 * x, method=methods(1.0)[name])
    assert bool(sol.converged.all())
    assert int(sol.steps) <= 1
    torch.testing.assert_close(sol.value["x"], x, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e7])
@pytest.mark.parametrize("radius", [1e-6, 1.0])
def test_an_attack_goes_to_the_boundary_of_a_ball_of_any_size(radius, unit):
    """From zero, where x has no length to compare a step with."""
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x / radius,
        lambda z, x, c, p: unit * (c * z).sum(-1),
        project=ball(radius),
    )
    zero, c = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    attack = TrackedDescent(rule=ConditionalGradient(oracle=linear_minimizer(radius)))
    for method in (attack, TrackedLBFGS()):
        sol = model.iterate(zero, zero, params=None, y=c, method=method)
        expected = radius * torch.tensor([[-0.6, -0.8]])
        torch.testing.assert_close(sol.value["x"], expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
def test_the_unit_of_an_input_is_nothing_to_the_test(unit):
    """x in another unit, and its penalty with it."""
    scaled = AugmentedDEQ(
        lambda z, x, p: cell(z, unit * x, p),
        lambda o, x, y, p: ((o - y) ** 2).sum(-1) + 0.1 * ((unit * x) ** 2).sum(-1),
        seen,
    )
    p, y = jax.tree.map(torch.tensor, network(0))
    zeros = torch.zeros(B, N).double(), torch.zeros(B, M).double()
    sol = scaled.iterate(*zeros, params=p, y=y)
    np.testing.assert_allclose(unit * sol.value["x"], minima(0), atol=5e-4)


def test_a_tolerance_that_is_named_is_absolute():
    """That of residuals in the units of the loss, which any input meets."""
    model, (p, y) = posed(1e-9), jax.tree.map(torch.tensor, network(0))
    zeros = torch.zeros(B, N).double(), torch.zeros(B, M).double()
    method = TrackedLBFGS()
    loose, close = (
        model.iterate(*zeros, params=p, y=y, method=method, rtol=0.0, atol=atol)
        for atol in (1e-6, 1e-12)
    )
    assert int(loose.steps.max()) < int(close.steps.max())
    np.testing.assert_allclose(close.value["x"], minima(0), atol=1e-2)


@pytest.mark.parametrize("name", methods(1.0))
def test_a_loss_may_need_neither_parameters_nor_data(name):
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x, lambda z, x, y, p: ((z - 1.0) ** 2).sum(-1)
    )
    zero = torch.zeros(2, 3, dtype=torch.float64)
    sol = model.solve(
        zero,
        zero,
        params=None,
        y=None,
        method=methods(1.0)[name],
        max_steps=2000,
        on_failure="return",
    )
    np.testing.assert_allclose(sol.x, 0.5, atol=2e-2)
