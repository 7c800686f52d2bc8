"""What the tolerance of a root is relative to."""

import numpy as np
import pytest

import fixedpoint as fp

Status = fp.Status
SOLVERS = [
    fp.Newton(),
    fp.NewtonKrylov(),
    fp.LevenbergMarquardt(),
    fp.PseudoTransient(),
]


def cubic(x):
    return x**3 + 2.0 * x - np.array([3.0, 12.0])


CUBIC_ROOT = np.array([1.0, 2.0])


@pytest.mark.parametrize("norm", ["euclidean", "max"])
@pytest.mark.parametrize(("rtol", "atol"), [(1e-4, 0.0), (0.0, 1e-3), (1e-3, 1e-2)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_root_is_relative_to_the_residual_at_the_start(solver, norm, rtol, atol):
    order = 2 if norm == "euclidean" else np.inf
    x0 = np.array([5.0, -4.0])
    sol = fp.root(
        cubic,
        x0,
        solver=solver,
        norm=norm,
        rtol=rtol,
        atol=atol,
        test="residual",
        record=True,
    )
    tolerance = atol + rtol * np.linalg.norm(cubic(x0), order)
    reached = np.linalg.norm(cubic(sol.value), order)
    np.testing.assert_allclose(sol.residual_norm, reached, rtol=1e-12)
    assert reached <= tolerance
    assert np.all(sol.trace.residual_norm[: int(sol.steps)] > tolerance)


@pytest.mark.parametrize("scale", [1e-100, 1e-8, 1e100])
def test_the_scale_of_the_function_does_not_matter_to_a_relative_tolerance(scale):
    x0, settings = (
        np.array([5.0, -4.0]),
        {"solver": fp.Newton(), "rtol": 1e-6, "atol": 0.0},
    )
    sol = fp.root(lambda x: scale * cubic(x), x0, **settings)
    assert int(sol.steps) == int(fp.root(cubic, x0, **settings).steps)
    np.testing.assert_allclose(sol.value, CUBIC_ROOT, rtol=1e-5)


def test_every_sample_of_a_root_has_its_own_tolerance(eager_case):
    a, rtol = np.array([[2.0], [1e6]]), np.array([1e-2, 1e-9])
    F = lambda x, a: x + 0.1 * eager_case.xp.sin(x) - a
    sol = fp.root(
        F,
        eager_case.asarray(np.ones((2, 1))),
        (eager_case.asarray(a),),
        solver=fp.Picard(),
        rtol=eager_case.asarray(rtol),
        atol=0.0,
        batch_ndim=1,
        test="residual",
    )
    x, norms = eager_case.to_numpy(sol.value), eager_case.to_numpy(sol.residual_norm)
    np.testing.assert_allclose(
        norms, np.abs(x + 0.1 * np.sin(x) - a)[:, 0], rtol=1e-5, atol=1e-9
    )
    assert np.all(norms <= rtol * np.abs(1.0 + 0.1 * np.sin(1.0) - a[:, 0]))


@pytest.mark.parametrize(
    ("F", "start", "answer"),
    [
        (lambda x: x**3 - 8.0, 3.0, 2.0),
        (lambda x: x * x - 2.0, 1.0, np.sqrt(2.0)),
        (lambda x: np.exp(x) - 2.0, 0.0, np.log(2.0)),
        (lambda x: np.cos(x) - x, 1.0, 0.7390851),
    ],
)
def test_differences_in_half_precision(F, start, answer):
    sol = fp.root(F, np.array([start], dtype=np.float16))
    np.testing.assert_allclose(sol.value, answer, rtol=1e-2)
