"""Small linear systems in a trace, beside LAPACK's solutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixedpoint_jax.elimination import gauss_jordan_in_loop

solved = jax.jit(gauss_jordan_in_loop, static_argnames="is_definite")


def test_systems_that_need_pivots():
    rng = np.random.default_rng(0)
    matrices, rhs = rng.standard_normal((7, 4, 4)), rng.standard_normal((7, 4))
    matrices[:, 0, 0] = 0.0
    known = np.linalg.solve(matrices, rhs[..., None])[..., 0]
    np.testing.assert_allclose(solved(matrices, rhs), known, rtol=1e-11)


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e8])
def test_definite_systems_of_columns_that_differ_in_length(condition):
    """The error is that of a stable method: of the size of the condition of the system
    whose diagonal is ones, whatever the units of the unknowns.
    """
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((50, 6, 6)))[0]
    values = np.logspace(0.0, -np.log10(condition), 6)
    lengths = 10.0 ** rng.uniform(-8.0, 8.0, (50, 6))
    matrices = np.einsum("bij,j,bkj->bik", basis, values, basis)
    matrices *= lengths[:, :, None] * lengths[:, None, :]
    scaled = rng.standard_normal((50, 6))
    rhs = np.einsum("bij,bj->bi", matrices, scaled / lengths)
    found = np.asarray(solved(matrices, rhs, is_definite=True)) * lengths
    errors = np.linalg.norm(found - scaled, axis=1) / np.linalg.norm(scaled, axis=1)
    assert errors.max() <= 100 * condition * np.finfo(float).eps
    assert jnp.isfinite(found).all()
