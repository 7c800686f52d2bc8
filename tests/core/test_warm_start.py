"""What a solver remembers of an earlier call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixedpoint as fp


@pytest.fixture
def solver(each_solver):
    """Each, as most users call it."""
    return each_solver


def layer(contraction, n=6, norm=0.95, seed=0):
    W = contraction(n, norm, seed)
    b = np.random.default_rng(seed + 10).standard_normal(n)
    return lambda z: np.tanh(W @ z + b)


@pytest.mark.parametrize("solver", [fp.Anderson(memory=10), fp.Broyden(memory=40)])
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax-jit"])
def test_what_a_solver_remembers_saves_evaluations(contraction, solver, xp):
    W, b = xp.asarray(contraction(8, 0.97)), xp.linspace(-1.0, 1.0, 8)

    def solve(z0, b, state):
        return fp.fixed_point(
            lambda z, W, b: xp.tanh(W @ z + b),
            z0,
            (W, b),
            solver=solver,
            rtol=1e-10,
            state=state,
            on_failure="return",
        )

    solve = jax.jit(solve) if xp is jnp else solve
    first = solve(xp.zeros(8), b, None)
    cold = solve(first.value, b + 1e-3, None)
    warm = solve(first.value, b + 1e-3, first.state)
    assert bool(warm.converged)
    assert int(warm.work.f) < int(cold.work.f)
    np.testing.assert_allclose(warm.value, cold.value, rtol=1e-8)


def test_what_a_solver_remembers_can_always_be_handed_on(contraction, solver):
    f = layer(contraction)
    first = fp.fixed_point(f, np.zeros(6), solver=solver, rtol=1e-4)
    sol = fp.fixed_point(f, first.value, solver=solver, rtol=1e-10, state=first.state)
    np.testing.assert_allclose(f(sol.value), sol.value, rtol=1e-8, atol=1e-9)
    again = fp.fixed_point(f, sol.value, solver=solver, rtol=1e-10, state=sol.state)
    assert int(again.steps) <= 2 or bool(again.precise)


def test_what_is_remembered_is_left_as_it_was(contraction):
    """It can be used twice, to the same end."""
    f = layer(contraction)
    for solver in (fp.Anderson(memory=4), fp.Broyden(memory=4)):
        state = fp.fixed_point(f, np.zeros(6), solver=solver, rtol=1e-3).state
        one, other = (
            fp.fixed_point(f, np.ones(6), solver=solver, rtol=1e-10, state=state)
            for _ in range(2)
        )
        np.testing.assert_array_equal(one.value, other.value)
        assert int(one.steps) == int(other.steps)


@pytest.mark.parametrize(
    "solver",
    [fp.Anderson(memory=3), fp.Broyden(memory=3), fp.LevenbergMarquardt(), fp.Newton()],
)
@pytest.mark.parametrize("shape", [(5,), (2, 6), (3, 6)])
def test_what_is_remembered_of_other_shapes_is_refused(solver, shape):
    state = fp.fixed_point(
        lambda z: 0.5 * z + 1.0, np.zeros((2, 5)), solver=solver
    ).state
    with pytest.raises(ValueError, match="state"):
        fp.fixed_point(
            lambda z: 0.5 * z + 1.0, np.zeros(shape), solver=solver, state=state
        )


@pytest.mark.parametrize("other", [fp.Anderson(memory=4), fp.Broyden(), fp.Picard()])
def test_what_another_solver_remembers_is_refused(other):
    state = fp.fixed_point(np.cos, np.ones(3), solver=fp.Anderson(memory=3)).state
    with pytest.raises(ValueError, match="state"):
        fp.fixed_point(np.cos, np.ones(3), solver=other, state=state)
