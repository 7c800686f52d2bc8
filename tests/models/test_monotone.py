"""Monotone equilibria: unique, found by splitting, differentiated by the same
splitting.
"""

import copy
import itertools
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

import fixedpoint as fp
from fixedpoint.operators import (
    ForwardBackward,
    PeacemanRachford,
    SoftThreshold,
    largest_step,
    rectify,
    resolvent_matrix,
)
from fixedpoint_models import MonotoneDEQ, MonotoneLinear

SPLITTINGS = ["forward_backward", "peaceman_rachford"]
TIGHT = {"rtol": 1e-12, "atol": 1e-13, "max_steps": 50_000}
WIDTH = 5


def affine(z, W, c, *inverse):
    return z @ W.T + c


def resolvent(v, alpha, W, c, inverse):
    return v @ inverse.T


def monotone(seed, n=WIDTH, m=0.3, scale=1.0, skew=1.0):
    """W and c at random, with I − W ≥ mI."""
    rng = np.random.default_rng(seed)
    A, B = rng.uniform(-scale, scale, (2, n, n)) / math.sqrt(n)
    W = (1.0 - m) * np.eye(n) - A.T @ A + skew * (B - B.T)
    return W, rng.standard_normal(n)


def split(name, W, prox=rectify, step=None):
    """An operator, and what it takes beside W and c; all in NumPy."""
    if name == "forward_backward":
        return ForwardBackward(affine, prox, step or 0.75 * largest_step(W)), ()
    alpha = step or 2.0 / np.linalg.norm(np.eye(len(W)) - W, 2)
    return PeacemanRachford(affine, prox, resolvent, alpha), (
        resolvent_matrix(W, alpha),
    )


@pytest.fixture(params=SPLITTINGS)
def name(request):
    """Each splitting in turn."""
    return request.param


def equilibrium(W, c):
    """The z = max(Wz + c, 0), found among all 2ⁿ sets of entries that may be
    positive.
    """
    n, found = len(c), []
    for pattern in itertools.product([False, True], repeat=n):
        on = np.array(pattern)
        z = np.zeros(n)
        z[on] = np.linalg.solve(np.eye(on.sum()) - W[np.ix_(on, on)], c[on])
        if (z[on] > 0).all() and ((W @ z + c)[~on] <= 0).all():
            found.append(z)
    assert len(found) == 1
    return found[0]


# Proximal operators


def test_rectify(xp_case):
    v = np.array([-2.0, -0.0, 0.0, 3.0, np.nan, np.inf, -np.inf])
    image = xp_case.to_numpy(rectify(xp_case.asarray(v), 0.3))
    np.testing.assert_array_equal(image, [0.0, 0.0, 0.0, 3.0, np.nan, np.inf, 0.0])


def test_the_subgradient_at_a_kink_is_the_frameworks():
    v = np.array([-1.0, 0.0, 1.0])
    here = torch.tensor(v, requires_grad=True)
    there = torch.tensor(v, requires_grad=True)
    rectify(here).sum().backward()
    torch.relu(there).sum().backward()
    torch.testing.assert_close(here.grad, there.grad, rtol=0, atol=0)
    slope = jax.grad(lambda v: rectify(v).sum())(jnp.asarray(v))
    np.testing.assert_array_equal(slope, jax.grad(lambda v: jax.nn.relu(v).sum())(v))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_soft_threshold_minimizes(xp_case, alpha):
    """p minimizes αt|p| + (p − v)²/2: (v − p)/(αt) is a subgradient of |·| at p."""
    v = np.linspace(-5.0, 5.0, 21)
    p = xp_case.to_numpy(SoftThreshold(0.5)(xp_case.asarray(v), alpha))
    slope = (v - p) / (0.5 * alpha)
    np.testing.assert_allclose(slope[p != 0], np.sign(p[p != 0]), rtol=1e-12)
    assert (np.abs(slope[p == 0]) <= 1.0 + 1e-12).all()
    assert (p == 0).any()


# Operators


def textbook(name, W, c, u, step, count):
    """The iterates of z by the formulas of the literature, Peaceman-Rachford by its
    u.
    """
    n, iterates = len(c), []
    forward, inverse = np.eye(n) - W, np.linalg.inv(np.eye(n) + step * (np.eye(n) - W))
    for _ in range(count):
        if name == "forward_backward":
            u = np.maximum(u - step * (forward @ u - c), 0.0)
            iterates.append(u)
            continue
        z = inverse @ (u + step * c)
        reflected = 2 * z - u
        u = 2 * np.maximum(reflected, 0.0) - reflected
        iterates.append(inverse @ (u + step * c))
    return iterates


@pytest.mark.parametrize("step", [0.05, 0.4])
def test_iterates_are_those_of_the_literature(xp_case, name, step):
    W, c = monotone(0)
    operator, inverse = split(name, W, step=step)
    start = np.random.default_rng(1).standard_normal(WIDTH)
    u = start if name == "forward_backward" else start + step * (start - W @ start - c)
    args = (W, c, *inverse)
    iterates = xp_case.iterates(operator, start, args, solver=fp.Picard(), max_steps=8)
    assert len(iterates) == 8
    for here, there in zip(iterates, textbook(name, W, c, u, step, 8), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("step", [1e-3, 0.2, 1.0])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_the_residual_is_free_of_the_step(name, step, threshold):
    W, c = monotone(2)
    prox = SoftThreshold(threshold) if threshold else rectify
    operator, inverse = split(name, W, prox, step)
    z, target = np.linspace(-1.0, 1.0, WIDTH), W @ np.linspace(-1.0, 1.0, WIDTH) + c
    shrunk = np.sign(target) * np.maximum(np.abs(target) - 0.3, 0.0)
    undamped = shrunk if threshold else np.maximum(target, 0.0)
    residual = operator.evaluate(z, W, c, *inverse).residual
    np.testing.assert_allclose(residual, undamped - z, rtol=1e-13)


def test_an_evaluation_costs_one_of_each(counted):
    W, c = monotone(0)
    times, inverted = counted(affine), counted(resolvent)
    operator = PeacemanRachford(times, rectify, inverted, 0.5)
    operator.evaluate(c, W, c, resolvent_matrix(W, 0.5))
    assert (times.calls, inverted.calls) == (1, 1)


def test_containers(xp_case, name):
    """A state in two leaves has the iterates of one vector."""
    W, c = monotone(3)
    operator, inverse = split(name, W)
    expected = operator(c, W, c, *inverse)
    xp = xp_case.xp
    joined = lambda z: xp.concat([z["a"], z["b"]])
    parted = lambda v: {"a": v[:2], "b": v[2:]}
    leaves = type(operator)(
        *(lambda z, *args: parted(affine(joined(z), *args)), rectify),
        *(
            (lambda v, alpha, *args: parted(resolvent(joined(v), alpha, *args)),)
            if inverse
            else ()
        ),
        step_size=operator.step_size,
    )
    image = leaves(xp_case.tree(parted(c)), *xp_case.tree((W, c, *inverse)))
    together = np.concatenate([xp_case.to_numpy(image[key]) for key in "ab"])
    np.testing.assert_allclose(together, expected, rtol=1e-13)


def test_a_numpy_scalar_as_a_step_keeps_single_precision(name):
    W, c = (array.astype(np.float32) for array in monotone(0))
    operator, inverse = split(name, W, step=np.float64(0.3))
    assert operator(c, W, c, *inverse).dtype == np.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda step: ForwardBackward(affine, rectify, step),
        lambda step: PeacemanRachford(affine, rectify, resolvent, step),
        lambda step: resolvent_matrix(np.eye(2), step),
    ],
)
@pytest.mark.parametrize("step", [0.0, -1.0, float("nan")])
def test_the_step_is_positive(make, step):
    with pytest.raises(ValueError, match="step_size must be positive"):
        make(step)


@pytest.mark.parametrize("step", [0.5, 0.6])
def test_the_step_is_below_its_limit(step):
    assert ForwardBackward(affine, rectify, 0.49, 0.5).step_size == 0.49
    with pytest.raises(ValueError, match=r"step_size must be below 0\.5"):
        ForwardBackward(affine, rectify, step, 0.5)


def test_the_threshold_is_positive():
    with pytest.raises(ValueError, match="threshold must be positive"):
        SoftThreshold(0.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_step_is_where_contraction_ends(seed):
    m = 0.3
    W, _ = monotone(seed, m=m)
    gap = np.eye(WIDTH) - W
    limit = largest_step(W)
    norm = lambda alpha: np.linalg.norm(np.eye(WIDTH) - alpha * gap, 2)
    assert norm(0.999 * limit) < 1.0 < norm(1.001 * limit)
    assert limit >= 2 * m / np.linalg.norm(gap, 2) ** 2


def test_the_largest_step_on_every_library(xp_case):
    W, _ = monotone(0)
    assert largest_step(xp_case.asarray(W)) == pytest.approx(largest_step(W), rel=1e-12)
    inverse = np.linalg.inv(np.eye(WIDTH) + 0.7 * (np.eye(WIDTH) - W))
    matrix = xp_case.to_numpy(resolvent_matrix(xp_case.asarray(W), 0.7))
    np.testing.assert_allclose(matrix, inverse, rtol=1e-12, atol=1e-14)


def test_without_monotonicity_no_step_is_safe():
    with pytest.raises(ValueError, match="W must leave the symmetric part"):
        largest_step(np.array([[0.0, 3.0], [3.0, 0.0]]))


# Solutions


@pytest.mark.parametrize("skew", [0.2, 2.0])
def test_the_solution_on_every_library(jit_case, name, skew):
    W, c = monotone(4, skew=skew)
    operator, inverse = split(name, W)
    sol = jit_case.solve(operator, 0 * c, (W, c, *inverse), solver=fp.Picard(), **TIGHT)
    assert bool(sol.converged)
    np.testing.assert_allclose(
        jit_case.to_numpy(sol.value), equilibrium(W, c), atol=1e-10
    )


SOLVERS = [fp.Picard(), fp.Anderson(memory=4), fp.Broyden(), None]


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    m=st.floats(0.1, 2.0),
    scale=st.floats(0.0, 2.0),
    skew=st.floats(0.0, 2.0),
    start=st.floats(-100.0, 100.0),
)
@example(seed=1, n=1, m=1.5, scale=0.0, skew=0.0, start=1e-20)
def test_every_way_leads_to_the_one_equilibrium(seed, n, m, scale, skew, start):
    W, c = monotone(seed, n, m, scale, skew)
    expected = equilibrium(W, c)
    for name, solver in itertools.product(SPLITTINGS, SOLVERS):
        operator, inverse = split(name, W)
        args = (W, c, *inverse)
        sol = fp.fixed_point(operator, np.full(n, start), args, solver=solver, **TIGHT)
        np.testing.assert_allclose(sol.value, expected, rtol=1e-8, atol=1e-9)


def test_a_batch_of_equilibria(name):
    """Each with its own c: its answer and steps are those that it has alone."""
    W, _ = monotone(6)
    c = (
        np.random.default_rng(0).standard_normal((4, WIDTH))
        * np.logspace(-1, 1, 4)[:, None]
    )
    operator, inverse = split(name, W)
    settings = TIGHT | {"solver": fp.Picard(), "batch_ndim": 1}
    sol = fp.fixed_point(operator, 0 * c, (W, c, *inverse), **settings)
    for row, steps, z in zip(c, sol.steps, sol.value, strict=True):
        np.testing.assert_allclose(z, equilibrium(W, row), atol=1e-9)
        alone = fp.fixed_point(
            operator, 0 * row[None], (W, row[None], *inverse), **settings
        )
        assert abs(int(alone.steps[0]) - int(steps)) <= 1


def test_the_plain_iteration_diverges_where_splittings_converge(name):
    """Each unit excites the next and inhibits the one before, three times over."""
    B = 2.0 * np.roll(np.eye(3), 1, axis=0)
    W, c = 0.5 * np.eye(3) + B - B.T, np.array([1.0, 0.2, 0.1])
    plain = fp.fixed_point(
        lambda z, W, c: np.maximum(W @ z + c, 0.0),
        0 * c,
        (W, c),
        solver=fp.Picard(),
        on_failure="return",
    )
    assert fp.Status(int(plain.status)) in (fp.Status.DIVERGED, fp.Status.NON_FINITE)
    operator, inverse = split(name, W)
    sol = fp.fixed_point(operator, 0 * c, (W, c, *inverse), solver=fp.Picard(), **TIGHT)
    np.testing.assert_allclose(sol.value, equilibrium(W, c), atol=1e-9)


def test_douglas_rachford():
    """The damped operator converges even where I − W is only monotone: here it is
    skew.
    """
    W = np.array([[1.0, 2.0], [-2.0, 1.0]])
    c = np.array([-1.0, 3.0])  # z = (3, 1)/2 makes Wz + c = z
    operator, inverse = split("peaceman_rachford", W, step=0.5)
    settings = TIGHT | {"solver": fp.Picard()}
    sol = fp.fixed_point(
        operator.damped(0.5), np.zeros(2), (W, c, *inverse), **settings
    )
    np.testing.assert_allclose(sol.value, [1.5, 0.5], rtol=1e-9)


def test_the_resolvent_only_preconditions():
    """With a crude resolvent the solution and its derivatives are the same."""
    W, c = monotone(7)
    crude = np.linalg.inv(np.eye(WIDTH) + 0.5 * np.diag(np.diag(np.eye(WIDTH) - W))) / 2
    operator = PeacemanRachford(affine, rectify, resolvent, 0.5)
    check_gradients(operator, W, c, (crude,), fp.ImplicitAdjoint(rtol=1e-12))


# Steps in proximal operators


def tanh_prox(v, alpha):
    """prox^α of the h with prox¹ = tanh: z = tanh s, where (1 − α) tanh s + αs = v."""
    s = v / alpha
    for _ in range(60):
        slope = alpha + (1.0 - alpha) * (1.0 - np.tanh(s) ** 2)
        step = ((1.0 - alpha) * np.tanh(s) + alpha * s - v) / slope
        s = s - np.clip(step, -1.0, 1.0)
    return np.tanh(s)


PITFALLS = {
    "tanh": (tanh_prox, lambda v, alpha: np.tanh(v)),
    "soft": (
        SoftThreshold(0.4),
        lambda v, alpha: np.sign(v) * np.maximum(np.abs(v) - 0.4, 0.0),
    ),
}


@pytest.mark.parametrize("kind", PITFALLS)
@pytest.mark.parametrize("step", [1.0, 0.5, 0.1])
def test_the_step_belongs_into_the_proximal_operator(name, kind, step):
    right, wrong = PITFALLS[kind]
    W, c = np.array([[-0.5]]), np.array([1.0])
    exact = scipy.optimize.brentq(
        lambda z: wrong(-0.5 * z + 1.0, 1.0) - z, 0, 1, xtol=1e-15
    )
    operator, inverse = split(name, W, right, step)
    settings = TIGHT | {"solver": fp.Picard(), "on_failure": "return"}
    sol = fp.fixed_point(operator, np.zeros(1), (W, c, *inverse), **settings)
    assert bool(sol.converged)
    np.testing.assert_allclose(sol.value, exact, rtol=1e-10)
    mistaken, _ = split(name, W, wrong, step)
    sol = fp.fixed_point(
        mistaken, np.zeros(1), (W, c, *inverse), **settings | {"max_steps": 500}
    )
    assert bool(sol.converged) == (step == 1.0)


def test_an_activation_that_ignores_the_step_solves_another_equation():
    """The values that its own test, on the change of z, would have passed off as
    solutions.
    """
    W, c = np.array([[-0.5]]), np.array([1.0])
    for step, value in ((1.0, 0.603), (0.5, 0.566), (0.1, 0.445)):
        operator, _ = split("forward_backward", W, PITFALLS["tanh"][1], step)
        z = np.zeros(1)
        for _ in range(500):
            z = operator(z, W, c)
        assert z == pytest.approx(value, abs=5e-4)


# Derivatives


def gradients_of(operator, W, c, extra, weights, adjoint):
    """The derivatives of ⟨weights, z*⟩ by W and c, in Torch, and the solution."""
    tensors = [torch.tensor(a, requires_grad=True) for a in (W, c)]
    args = (*tensors, *map(torch.as_tensor, extra))
    start = torch.zeros(c.shape, dtype=torch.float64)
    sol = fp.fixed_point(
        operator, start, args, adjoint=adjoint, solver=fp.Picard(), **TIGHT
    )
    (torch.as_tensor(weights) @ sol.value).backward()
    return [t.grad.numpy() for t in tensors], sol


def dense_gradients(W, c, weights):
    """g = D(I − WᵀD)⁻¹v is the cotangent of the argument of max(·, 0)."""
    z = equilibrium(W, c)
    D = np.diag((z > 0).astype(float))
    g = D @ np.linalg.solve(np.eye(len(c)) - W.T @ D, weights)
    return [np.outer(g, z), g]


def check_gradients(operator, W, c, extra, adjoint):
    """Compare with the dense solve; return the solution, and its report."""
    weights = np.linspace(1.0, 2.0, len(c))
    found, sol = gradients_of(operator, W, c, extra, weights, adjoint)
    for here, there in zip(found, dense_gradients(W, c, weights), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-8, atol=1e-9)
    return sol


PICARD = fp.ImplicitAdjoint(solver=fp.Picard(), rtol=1e-12, max_steps=50_000)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 5),
    m=st.floats(0.2, 2.0),
    scale=st.floats(0.0, 1.5),
    skew=st.floats(0.0, 1.5),
)
def test_the_adjoint_is_the_splitting_of_the_transposed_system(seed, n, m, scale, skew):
    """Picard iteration converges backward, as fast as the bound of the forward one
    says.
    """
    W, c = monotone(seed, n, m, scale, skew)
    gap, eye = np.eye(n) - W, np.eye(n)
    for name in SPLITTINGS:
        operator, inverse = split(name, W)
        alpha = operator.step_size
        rate = np.linalg.norm(eye - alpha * gap, 2)
        if inverse:
            rate = np.linalg.norm(
                (eye - alpha * gap) @ np.linalg.inv(eye + alpha * gap), 2
            )
        sol = check_gradients(operator, W, c, inverse, PICARD)
        slack = np.linalg.cond(eye + alpha * gap) * math.sqrt(n)
        assert int(sol.backward.steps) <= 2 + math.log(1e-12 / slack) / math.log(
            min(rate, 0.9999)
        )


@pytest.mark.parametrize("adjoint", [fp.ImplicitAdjoint(rtol=1e-12), PICARD])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_agree_with_a_dense_solve(name, adjoint, seed):
    W, c = monotone(seed)
    operator, inverse = split(name, W)
    check_gradients(operator, W, c, inverse, adjoint)


def test_gradients_in_jax(name):
    W, c = monotone(1)
    operator, inverse = split(name, W)
    weights = jnp.linspace(1.0, 2.0, WIDTH)

    def objective(W, c):
        args = (W, c, *inverse)
        sol = fp.fixed_point(
            operator, 0 * c, args, adjoint=PICARD, solver=fp.Picard(), **TIGHT
        )
        return weights @ sol.value

    inverse = tuple(map(jnp.asarray, inverse))
    found = jax.jit(jax.grad(objective, argnums=(0, 1)))(jnp.asarray(W), jnp.asarray(c))
    for here, there in zip(
        found, dense_gradients(W, c, np.asarray(weights)), strict=True
    ):
        np.testing.assert_allclose(here, there, rtol=1e-8, atol=1e-9)


def test_nothing_flows_through_a_kink(name):
    """With c = 0 the solution is 0, and every unit at its kink, where the derivative is
    0.
    """
    W, c = monotone(0)
    operator, inverse = split(name, W)
    (by_matrix, by_vector), sol = gradients_of(operator, W, 0 * c, inverse, c, PICARD)
    np.testing.assert_array_equal(sol.value.detach(), 0.0)
    np.testing.assert_array_equal(by_matrix, 0.0)
    np.testing.assert_array_equal(by_vector, 0.0)


def test_second_derivatives(name):
    W, c = monotone(6, n=3)
    operator, inverse = split(name, W)
    inverse = tuple(map(torch.as_tensor, inverse))

    def smooth(W, c):
        args = (W, c, *inverse)
        sol = fp.fixed_point(
            operator,
            torch.zeros(3, dtype=W.dtype),
            args,
            adjoint=PICARD,
            solver=fp.Picard(),
            **TIGHT,
        )
        return (sol.value**3).sum()

    inputs = [torch.tensor(a, requires_grad=True) for a in (W, c)]
    assert (equilibrium(W, c) > 0).sum() >= 2
    torch.autograd.gradgradcheck(smooth, inputs, rtol=1e-6, atol=1e-6)


# Layers


def smallest_gap(layer):
    """The least eigenvalue of the symmetric part of I − W, and of I − W itself what m
    promises.
    """
    W = layer.state.weight().detach().double()
    return float(torch.linalg.eigvalsh(torch.eye(len(W)).double() - (W + W.T) / 2)[0])


def small_layer(name="peaceman_rachford", **settings):
    torch.manual_seed(0)
    settings = {"m": 0.4, "rtol": 1e-12, "splitting": name} | settings
    return MonotoneDEQ(3, WIDTH, **settings).double()


@given(
    seed=st.integers(0, 2**32 - 1), scale=st.floats(0.0, 100.0), m=st.floats(0.01, 10.0)
)
def test_the_parametrization_is_strongly_monotone(seed, scale, m):
    torch.manual_seed(seed)
    linear = MonotoneLinear(4, m).double()
    with torch.no_grad():
        linear.A.mul_(scale)
        linear.B.mul_(scale)
    z = torch.nn.functional.normalize(torch.randn(4, dtype=torch.float64), dim=0)
    product = z @ (z - linear(z))
    assert product.item() >= m - 1e-13 * (1 + m + scale**2)


def test_the_layer_solves_its_equation(name):
    layer = small_layer(name)
    x = torch.randn(7, 3, dtype=torch.float64)
    z = layer.solve(x, atol=1e-13).value
    z, W, drive = (
        t.detach().numpy() for t in (z, layer.state.weight(), layer.input(x))
    )
    for row, c in zip(z, drive, strict=True):
        np.testing.assert_allclose(row, equilibrium(W, c), atol=1e-10)


def test_the_layer_with_another_proximal_operator(name):
    layer = small_layer(name, prox=SoftThreshold(0.2))
    x = torch.randn(7, 3, dtype=torch.float64)
    z = layer.solve(x, atol=1e-13).value
    z, W, drive = (
        t.detach().numpy() for t in (z, layer.state.weight(), layer.input(x))
    )
    v = z @ W.T + drive
    np.testing.assert_allclose(
        np.sign(v) * np.maximum(np.abs(v) - 0.2, 0.0), z, atol=1e-10
    )
    assert (z < -0.1).any()


def test_a_smaller_step_takes_more_of_them(name):
    x = torch.randn(7, 3, dtype=torch.float64)
    steps = [
        small_layer(name, step=step).solve(x).steps.max() for step in (0.2, 0.1, 0.05)
    ]
    assert steps[0] < steps[1] < steps[2]


@pytest.mark.parametrize("shape", [(), (4,), (2, 4)])
def test_the_layer_takes_any_batch(name, shape):
    layer = small_layer(name)
    x = torch.randn(*shape, 3, dtype=torch.float64)
    z = layer(x)
    assert z.shape == (*shape, WIDTH)
    rows = layer(x.reshape(-1, 3)).reshape(z.shape)
    torch.testing.assert_close(z, rows, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("prox", [rectify, SoftThreshold(0.1)])
def test_gradients_of_the_layer(name, prox):
    layer = small_layer(name, prox=prox)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())
    assert set(parameters) == {"state.A", "state.B", "input.weight", "input.bias"}

    def call(x, *values):
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(layer, named, (x,))

    assert (call(x, *parameters.values()) != 0).any()
    torch.autograd.gradcheck(call, (x, *parameters.values()), fast_mode=True)


def test_a_warm_start_ends_where_the_cold_one_did(name):
    layer = small_layer(name)
    x = torch.randn(4, 3, dtype=torch.float64)
    cold = layer.solve(x)
    warm = layer.solve(x, z0=cold.value.detach(), rtol=1e-10)
    assert (warm.steps == 0).all()
    assert (cold.steps > 0).all()


def test_copies_are_independent(name):
    layer = small_layer(name)
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = layer(x)
    twin, other = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    with torch.no_grad():
        layer.state.A.add_(1.0)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    layer.load_state_dict(twin.state_dict())
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"m": 0.0}, "m must be positive"),
        ({"step": -1.0}, "step must be positive"),
        ({"splitting": "newton"}, "splitting must be one of"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MonotoneDEQ(3, 4, **settings)


def test_a_step_that_is_too_large_is_refused():
    x = torch.randn(4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="step must be below"):
        small_layer("forward_backward", step=100.0)(x)
    expected = small_layer("peaceman_rachford")(x)
    torch.testing.assert_close(
        small_layer("peaceman_rachford", step=100.0, max_steps=5000)(x),
        expected,
        rtol=1e-9,
        atol=1e-9,
    )


def test_training_lowers_the_loss_and_keeps_the_monotonicity(name):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    layer, head = MonotoneDEQ(64, 40, m=1.0, splitting=name), torch.nn.Linear(40, 10)
    model = torch.nn.Sequential(layer, head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        rows = slice(100 * (step % 15), 100 * (step % 15) + 100)
        loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.25 * losses[0]
    assert smallest_gap(layer) >= 1.0 - 1e-4
    with torch.no_grad():
        right = model(images[1500:]).argmax(-1) == labels[1500:]
    assert right.float().mean() > 0.7
