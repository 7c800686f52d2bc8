"""Multiplying the problem by a power of two multiplies every iterate by it, exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint as fp

SOLVERS = [
    fp.Picard(),
    fp.Picard(damping=0.7),
    fp.Anderson(memory=4),
    fp.Anderson(memory=3, damping=0.6),
    fp.Anderson(memory=4, regularization=1e-6),
]


@pytest.mark.parametrize("solver", SOLVERS)
@given(power=st.integers(-40, 40), seed=st.integers(0, 99), max_steps=st.integers(1, 8))
def test_iterates_scale_exactly(xp_case, contraction, solver, power, seed, max_steps):
    A = contraction(6, 0.95, seed)
    b, z0 = np.random.default_rng(seed).standard_normal((2, 6))
    scale = 2.0**power

    def solve(factor):
        return xp_case.solve(
            lambda z, A, b: A @ z + b, factor * z0, (A, factor * b),
            solver=solver, rtol=1e-8, atol=0.0, max_steps=max_steps,
        )  # fmt: skip

    plain, scaled = solve(1.0), solve(scale)
    np.testing.assert_array_equal(
        xp_case.to_numpy(scaled.value), scale * xp_case.to_numpy(plain.value)
    )
    assert int(plain.status) == int(scaled.status)
    assert int(plain.steps) == int(scaled.steps)
    assert float(scaled.residual_norm) == scale * float(plain.residual_norm)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("power", [-40, -7, 40])
def test_samples_of_a_batch_scale_each_by_themselves(xp_case, contraction, solver, power):
    A = contraction(5, 0.9)
    b = np.random.default_rng(1).standard_normal(5)
    rows = np.stack([b, 2.0**power * b])
    f = lambda z, A, b: xp_case.xp.sum(A * z[:, None, :], axis=-1) + b
    for max_steps in range(1, 9):
        sol = xp_case.solve(
            f, 0 * rows, (A, rows), solver=solver, rtol=0.0, atol=0.0,
            max_steps=max_steps, batch_ndim=1,
        )  # fmt: skip
        one, other = xp_case.to_numpy(sol.value)
        np.testing.assert_array_equal(other, 2.0**power * one)
