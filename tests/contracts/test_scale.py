"""Multiplying the problem by a power of two multiplies every iterate by it, exactly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint as fp

# Those whose iterates do not change when F alone is scaled.
NEWTON = [
    "broyden",
    "broyden-bad",
    "newton",
    "newton-bounded",
    "levenberg",
    "krylov",
    "krylov-bicgstab",
    "krylov-cg",
    "pseudo",
]
FIRST_ORDER = [
    fp.Picard(),
    fp.Picard(damping=0.7),
    fp.Anderson(memory=4),
    fp.Anderson(memory=3, damping=0.6),
    fp.Anderson(memory=4, regularization=1e-6),
]


@pytest.mark.parametrize("solver", FIRST_ORDER)
@given(power=st.integers(-40, 40), seed=st.integers(0, 99), max_steps=st.integers(1, 8))
def test_iterates_scale_exactly(
    eager_case, contraction, solver, power, seed, max_steps
):
    A = contraction(6, 0.95, seed)
    b, z0 = np.random.default_rng(seed).standard_normal((2, 6))
    scale = 2.0**power

    def solve(factor):
        return eager_case.solve(
            lambda z, A, b: A @ z + b,
            factor * z0,
            (A, factor * b),
            solver=solver,
            rtol=1e-8,
            atol=0.0,
            max_steps=max_steps,
        )

    plain, scaled = solve(1.0), solve(scale)
    np.testing.assert_array_equal(
        eager_case.to_numpy(scaled.value), scale * eager_case.to_numpy(plain.value)
    )
    assert int(plain.status) == int(scaled.status)
    assert int(plain.steps) == int(scaled.steps)
    assert float(scaled.residual_norm) == scale * float(plain.residual_norm)


SCALES = np.array([[2.0**-30], [1.0], [2.0**30]])


def scaled_iterates(case, f, z0, args, scale, factor=1.0, **settings):
    """The iterates of z ↦ c f(z/s) from s z0, divided by s."""
    scaled = lambda z, *args: factor * f(z / scale, *args)
    return np.array(case.iterates(scaled, scale * z0, args, **settings)) / scale


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_iterates_of_every_solver_scale_exactly(
    eager_case, contraction, layer, solver, by
):
    """Also where the products are difference quotients."""
    f, A = layer(eager_case.xp, by is fp.root), contraction(4, 1.3, 2)
    b, z0 = np.random.default_rng(2).standard_normal((2, 4))
    settings = {"by": by, "solver": solver, "max_steps": 8}
    plain, scaled = (
        scaled_iterates(eager_case, f, z0, (A, b), scale, scale, **settings)
        for scale in (1.0, 2.0**-40)
    )
    assert len(plain) > 1
    np.testing.assert_array_equal(scaled, plain)


@pytest.mark.parametrize("solver", NEWTON, indirect=True)
@pytest.mark.parametrize("power", [-30, 30])
def test_the_scale_of_the_residual_changes_no_iterate(
    numpy_case, contraction, layer, solver, power
):
    F, A = layer(np, is_root=True), contraction(4, 1.3, 2)
    b, x0 = np.random.default_rng(2).standard_normal((2, 4))
    settings = {"by": fp.root, "solver": solver, "max_steps": 8}
    plain, scaled = (
        scaled_iterates(numpy_case, F, x0, (A, b), 1.0, factor, **settings)
        for factor in (1.0, 2.0**power)
    )
    assert len(plain) > 1
    np.testing.assert_array_equal(scaled, plain)


def test_every_sample_scales_by_itself(eager_case, contraction, layer, solver):
    f, A = layer(eager_case.xp), contraction(4, 0.9, 2)
    b, z0 = np.random.default_rng(2).standard_normal((2, 4))
    g = lambda z, s, A, b: s * f(z / s, A, b)
    iterates = eager_case.iterates(
        g, SCALES * z0, (SCALES, A, b), solver=solver, batch_ndim=1, max_steps=8
    )
    assert len(iterates) > 1
    for rows in iterates:
        np.testing.assert_array_equal(rows / SCALES, np.stack([rows[1]] * 3))
