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


@pytest.fixture
def agrees(monkeypatch):
    """Ask that the answer is that of NumPy."""
    monkeypatch.setattr(numpy_algebra, "_LARGEST", 0)

    def answer(xp, a, solver):
        beside = lambda z: xp.roll(z, 1, -1) + xp.roll(z, -1, -1)
        f = lambda z, a: a * xp.cos(z) + 0.1 * beside(z)
        settings = {"solver": solver, "rtol": 1e-10, "batch_ndim": a.ndim}
        start = xp.ones((*a.shape, 9))
        return fp.fixed_point(f, start, (xp.asarray(a)[..., None],), **settings).value

    def agrees(a, solver):
        known, found = (answer(xp, a, solver) for xp in (np, jnp))
        np.testing.assert_allclose(found, known, rtol=1e-8)

    return agrees


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver_on_batches_of_jax(agrees, solver):
    agrees(np.linspace(0.2, 0.6, 3), solver)


def test_each_solver_on_one_sample_of_jax(agrees, each_solver):
    agrees(np.asarray(0.2), each_solver)
