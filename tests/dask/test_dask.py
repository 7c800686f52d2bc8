"""Dask's arrays, on its threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint as fp

da = pytest.importorskip("dask.array")

FACTORS = np.linspace(0.1, 0.5, 6)
CHUNKS = 2

SOLVERS = [
    fp.Picard(),
    fp.Anderson(memory=3),
    fp.Broyden(memory=4),
    fp.SQUAREM(),
    fp.NewtonKrylov(),
]
# Evaluations in a step; the linear solves of Newton's method take more.
EVALUATIONS = {"Picard": 1, "Anderson": 1, "Broyden": 1, "SQUAREM": 2}


def whole(z, a):
    return a * np.cos(z) + 0.1 * z.mean(axis=-1, keepdims=True)


class Counted:
    """The same map chunk by chunk, and how often it ran."""

    def __init__(self):
        self.chunks = 0

    def of_chunk(self, z, a):
        self.chunks += z.size > 0  # Dask tries functions on nothing
        return a * np.cos(z)

    def __call__(self, z, a):
        assert z.chunks[-1] == (CHUNKS,) * 3
        image = da.map_blocks(self.of_chunk, z, a, dtype=z.dtype)
        return image + 0.1 * z.mean(axis=-1, keepdims=True)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_the_steps_of_numpy_and_each_evaluation_once(solver):
    f, settings = Counted(), {"solver": solver, "rtol": 1e-5, "norm": "leaves"}
    a = da.from_array(FACTORS, chunks=CHUNKS)
    sol = fp.fixed_point(f, da.zeros_like(a), (a,), **settings)
    known = fp.fixed_point(whole, np.zeros(6), (FACTORS,), **settings)
    assert f.chunks == 3 * sol.work.f
    assert sol.work == known.work
    assert sol.work.f <= EVALUATIONS.get(solver.name, 99) * int(sol.steps) + 1
    assert (sol.status, sol.steps) == (known.status, known.steps)
    assert isinstance(sol.value, da.Array)
    np.testing.assert_allclose(sol.value.compute(), known.value, rtol=1e-8)


ROWS = st.sampled_from([(4,), (1, 3), (2, 2)])
COLUMNS = st.sampled_from([(6,), (2, 4), (1, 2, 3), (3, 3), (1,) * 6])


@settings(max_examples=5)
@given(
    solver=st.sampled_from(SOLVERS[:4]),
    rows=ROWS,
    columns=COLUMNS,
    is_batch=st.booleans(),
)
def test_chunks_do_not_matter(solver, rows, columns, is_batch):
    """After a few steps."""
    a = np.outer([1.0, 0.5, 0.8, 0.2], FACTORS)
    lazy = da.from_array(a, chunks=(rows, columns))

    def after_steps(start, a, cos):
        return fp.fixed_point(
            lambda z, a: a * cos(z) + 0.1 * z.mean(axis=-1, keepdims=True),
            start,
            (a,),
            solver=solver,
            batch_ndim=int(is_batch),
            norm="leaves",
            rtol=0.0,
            max_steps=3,
            on_failure="return",
        )

    sol = after_steps(da.zeros_like(lazy), lazy, da.cos)
    known = after_steps(np.zeros_like(a), a, np.cos)
    np.testing.assert_array_equal(sol.status, known.status)
    np.testing.assert_allclose(sol.value.compute(), known.value, rtol=1e-10)
    np.testing.assert_allclose(sol.residual_norm, known.residual_norm, rtol=1e-6)


def test_batches_of_roots_in_a_dict():
    rows = np.array([[0.2], [0.4], [0.1], [0.5]]) * np.ones((4, 6))
    lazy = da.from_array(rows, chunks=(2, 3))

    def of(cos):
        return lambda x, a: {"u": x["u"] - a * cos(x["u"]), "v": 2.0 * x["v"] - 1.0}

    def start(zeros):
        return {"u": zeros, "v": zeros[:, :2]}

    settings = {"batch_ndim": 1, "solver": fp.Anderson(), "rtol": 1e-5}
    sol = fp.root(of(da.cos), start(da.zeros_like(lazy)), (lazy,), **settings)
    known = fp.root(of(np.cos), start(np.zeros((4, 6))), (rows,), **settings)
    assert sol.converged.all()
    for name, leaf in known.value.items():
        np.testing.assert_allclose(sol.value[name].compute(), leaf, rtol=1e-6)


def test_callers_arrays_are_left_alone():
    z0 = da.from_array(np.zeros(12), chunks=CHUNKS).persist()
    sol = fp.fixed_point(lambda z: 0.5 * da.cos(z), z0, solver=fp.Broyden())
    assert sol.converged
    np.testing.assert_array_equal(z0.compute(), 0.0)


def test_failures_are_seen():
    z0 = da.zeros(12, chunks=CHUNKS)
    with pytest.raises(fp.ConvergenceError, match="max_steps"):
        fp.fixed_point(lambda z: z + 1.0, z0, solver=fp.Picard(), max_steps=3)
    sol = fp.fixed_point(lambda z: z + np.nan, z0, on_failure="return")
    assert sol.status == fp.Status.NON_FINITE


def test_chunks_of_unknown_size_are_refused():
    z0 = da.arange(12.0, chunks=CHUNKS)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        fp.fixed_point(da.cos, z0[z0 > 5.0])
