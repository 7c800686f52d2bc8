"""Every status is reached, and ends the same in any company."""

import numpy as np
import pytest

import fixedpoint as fp

Status = fp.Status


def flat_minimum(x):
    return x**2 + 1.0


def two_planes(x):
    """Two equations, no root, and a derivative that is singular everywhere."""
    return np.array([x[0] + x[1] - 1.0, x[0] + x[1] - 2.0])


def collapse():
    """Newton's first step on a map that is homogeneous, any multiple of (0.6, 0.8)
    fixed.
    """
    direction = np.array([0.6, 0.8])
    return fp.fixed_point(
        lambda z: np.linalg.norm(z) * direction,
        np.ones(2),
        solver=fp.Newton(),
        jacobian=lambda z: np.outer(direction, z / np.linalg.norm(z)),
        on_failure="return",
    )


def chaos(z):
    return 3.9 * z * (1.0 - z)


ENDS = {
    Status.CONVERGED: lambda: fp.fixed_point(np.cos, 1.0),
    Status.MAX_STEPS: lambda: fp.fixed_point(
        np.cos, 1.0, max_steps=1, on_failure="return"
    ),
    Status.NON_FINITE: lambda: fp.fixed_point(
        lambda z: z * np.nan, np.ones(1), on_failure="return"
    ),
    Status.STALLED: lambda: fp.fixed_point(
        lambda z: 1.0 / z, np.full(1, 2.0), solver=fp.Picard(), on_failure="return"
    ),
    Status.DIVERGED: lambda: fp.fixed_point(
        lambda z: 2.0 * z, np.ones(1), solver=fp.Picard(), on_failure="return"
    ),
    Status.LINEAR_SOLVE_FAILED: lambda: fp.root(
        two_planes, np.zeros(2), solver=fp.NewtonKrylov(), on_failure="return"
    ),
    Status.LINE_SEARCH_FAILED: lambda: fp.root(
        flat_minimum,
        np.ones(1),
        solver=fp.NewtonKrylov(),
        jvp=lambda x, v: -2.0 * x * v,
        on_failure="return",
    ),
    Status.STOPPED: lambda: fp.fixed_point(
        np.cos, 1.0, callback=lambda *_: True, on_failure="return"
    ),
    Status.OUT_OF_BUDGET: lambda: fp.fixed_point(
        np.cos, 1.0, budget=fp.Budget(evaluations=2), on_failure="return"
    ),
    Status.NO_BRACKET: lambda: fp.bracketed_root(
        lambda x: x * x + 1.0, -1.0, 2.0, on_failure="return"
    ),
    Status.SINGULAR: lambda: fp.root(
        two_planes, np.zeros(2), solver=fp.Newton(), on_failure="return"
    ),
    Status.COLLAPSED: collapse,
}


@pytest.mark.parametrize(
    "status", [status for status in Status if status != Status.RUNNING]
)
def test_every_status_is_reached_and_has_words(status):
    sol = ENDS[status]()
    assert int(sol.status) == status
    assert sol.message
    assert bool(sol.converged) == (status == Status.CONVERGED)


def test_a_residual_that_stays_the_same_ends_the_same_in_any_company(
    compiled_case, numpy_case
):
    """As z + 1 does: with a neighbor that has converged, alone, and in a trace."""
    ends = []
    for case, number in ((numpy_case, 1), (compiled_case, 1), (compiled_case, 2)):
        a = np.array([[1.0], [0.0]])[:number]
        sol = case.solve(
            lambda z, a: a * z + 1.0,
            np.zeros_like(a),
            (a,),
            solver=fp.Picard(),
            batch_ndim=1,
            max_steps=300,
        )
        ends.append((int(sol.status[0]), int(sol.steps[0])))
    assert ends[0][0] in (Status.STALLED, Status.MAX_STEPS)
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("solver", [fp.Broyden(), fp.Anderson(memory=3)])
def test_a_stall_is_counted_from_the_last_improvement_in_any_company(solver):
    """Steps that are not taken are none, alone as well as next to a sample that has
    ended.
    """
    f = lambda z, a: np.where(z > 1.0, np.nan, a[..., :1] * z * z + a[..., 1:])
    a, z0 = np.array([[1.2, 2.0]] * 2), np.array([[-0.1], [np.nan]])
    settings = {
        "solver": solver,
        "batch_ndim": 1,
        "on_failure": "return",
        "max_steps": 300,
    }
    alone = fp.fixed_point(f, z0[:1], (a[:1],), **settings)
    both = fp.fixed_point(f, z0, (a,), **settings)
    assert alone.status[0] == both.status[0] == Status.STALLED
    assert alone.steps[0] == both.steps[0]


def rewards(z):
    """Those of a state that all lead to: the residual grows in the first step."""
    return np.array([1.0, 0.0, 0.0, 0.0]) + 0.999 * z[0]


def turning(z):
    """A residual that passes through zero before it falls as its slower part does."""
    return np.array([0.9 * z[0] + z[1], 0.999 * z[1] + 1e-3])


@pytest.mark.parametrize(
    ("f", "start", "answer"),
    [
        (rewards, np.zeros(4), [1000.0, 999.0, 999.0, 999.0]),
        (turning, np.zeros(2), [10.0, 1.0]),
        (turning, np.array([1e3, 0.0]), [10.0, 1.0]),
    ],
)
def test_a_slow_contraction_does_not_stall(f, start, answer):
    sol = fp.fixed_point(f, start, solver=fp.Picard(), max_steps=20_000)
    np.testing.assert_allclose(sol.value, answer, rtol=1e-5)


@pytest.mark.parametrize("r", [3.5, 3.9, 4.0])
def test_what_comes_to_no_rest_stalls(r):
    f, settings = lambda z: r * z * (1.0 - z), {"max_steps": 10_000}
    sol = fp.fixed_point(f, 0.3, solver=fp.Picard(), on_failure="return", **settings)
    assert sol.status == Status.STALLED
