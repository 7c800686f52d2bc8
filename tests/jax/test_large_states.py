"""JAX's own arithmetic outside of traces, which small states do not meet."""

import jax.numpy as jnp
import numpy as np
import pytest

import fixedpoint as fp
from fixedpoint_jax import numpy_algebra

SOLVERS = [
    fp.Picard(),
    fp.Anderson(),
    fp.Anderson(memory=3, type=1, damping=0.5),
    fp.Broyden(),
    fp.Broyden(memory=2, update="bad"),
    fp.Broyden(line_search=True),
    fp.SQUAREM(),
    fp.Newton(),
    fp.LevenbergMarquardt(),
    fp.NewtonKrylov(),
    fp.NewtonKrylov(linear=fp.GMRES(restart=3)),
    fp.NewtonKrylov(linear=fp.BiCGStab()),
    fp.NewtonKrylov(linear=fp.ConjugateGradient(recycle=2)),
    fp.PseudoTransient(),
    fp.Fallback([fp.SQUAREM(), fp.Newton()]),
    None,
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver_on_arrays_of_jax(monkeypatch, solver):
    """The answer is that of NumPy, a batch's and that of one sample."""
    monkeypatch.setattr(numpy_algebra, "_LARGEST", 0)

    def f(xp):
        beside = lambda z: xp.roll(z, 1, -1) + xp.roll(z, -1, -1)
        return lambda z, a: a * xp.cos(z) + 0.1 * beside(z)

    a = np.linspace(0.2, 0.6, 3)[:, None]
    settings = {"solver": solver, "rtol": 1e-10}
    known = fp.fixed_point(f(np), np.ones((3, 9)), (a,), batch_ndim=1, **settings).value
    batch = fp.fixed_point(
        f(jnp), jnp.ones((3, 9)), (jnp.asarray(a),), batch_ndim=1, **settings
    )
    np.testing.assert_allclose(batch.value, known, rtol=1e-8)
    one = fp.fixed_point(f(jnp), jnp.ones(9), (0.2,), **settings)
    np.testing.assert_allclose(one.value, known[0], rtol=1e-8)
