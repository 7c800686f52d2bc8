"""What a call may ask for besides a solution: tolerances, watchers, limits, memory,
company.
"""

import base64
import math
import re
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import torch

import fixedpoint as fp

Status = fp.Status
SOLVERS = [
    fp.Picard(),
    fp.Anderson(memory=4),
    fp.Broyden(),
    fp.SQUAREM(),
    fp.Newton(),
    fp.NewtonKrylov(),
    fp.LevenbergMarquardt(),
    fp.PseudoTransient(),
]
FIRST_ORDER = SOLVERS[:4]
ONE_EACH = SOLVERS[:3]  # that evaluate once a step


def cubic(x):
    return x**3 + 2.0 * x - np.array([3.0, 12.0])


CUBIC_ROOT = np.array([1.0, 2.0])


def layer(contraction, n=6, norm=0.95, seed=0):
    W = contraction(n, norm, seed)
    b = np.random.default_rng(seed + 10).standard_normal(n)
    return lambda z: np.tanh(W @ z + b)


# The tolerance of a root.


@pytest.mark.parametrize("norm", ["euclidean", "max"])
@pytest.mark.parametrize(("rtol", "atol"), [(1e-4, 0.0), (0.0, 1e-3), (1e-3, 1e-2)])
@pytest.mark.parametrize("solver", SOLVERS[4:])
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


def test_every_sample_of_a_root_has_its_own_tolerance(xp_case):
    a, rtol = np.array([[2.0], [1e6]]), np.array([1e-2, 1e-9])
    F = lambda x, a: x + 0.1 * xp_case.xp.sin(x) - a
    sol = fp.root(
        F,
        xp_case.asarray(np.ones((2, 1))),
        (xp_case.asarray(a),),
        solver=fp.Picard(),
        rtol=xp_case.asarray(rtol),
        atol=0.0,
        batch_ndim=1,
        test="residual",
    )
    x, norms = xp_case.to_numpy(sol.value), xp_case.to_numpy(sol.residual_norm)
    np.testing.assert_allclose(
        norms, np.abs(x + 0.1 * np.sin(x) - a)[:, 0], rtol=1e-5, atol=1e-9
    )
    assert np.all(norms <= rtol * np.abs(1.0 + 0.1 * np.sin(1.0) - a[:, 0]))


def test_a_root_at_the_start_takes_no_step():
    sol = fp.root(cubic, CUBIC_ROOT)
    assert (int(sol.status), int(sol.steps), sol.work.f) == (Status.CONVERGED, 0, 1)


# Watching.


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_callback_sees_every_step_in_containers(solver):
    seen = []
    f = lambda z: {"a": 0.5 * np.cos(z["a"]), "b": [0.3 * z["b"][0] + 1.0]}
    fp.fixed_point(
        f,
        {"a": np.ones(2), "b": [np.ones((1, 1))]},
        solver=solver,
        rtol=1e-9,
        callback=lambda step, z, norm: seen.append((step, z, norm)),
    )
    assert [step for step, *_ in seen] == list(range(1, len(seen) + 1))
    for _, z, norm in seen:
        image = f(z)
        residual = np.append(image["a"] - z["a"], image["b"][0] - z["b"][0])
        np.testing.assert_allclose(
            norm, np.linalg.norm(residual), rtol=1e-6, atol=1e-15
        )


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_callback_that_is_true_stops(contraction, solver):
    sol = fp.fixed_point(
        layer(contraction),
        np.zeros(6),
        solver=solver,
        rtol=0.0,
        atol=0.0,
        on_failure="return",
        callback=lambda step, *_: step == 2,
    )
    assert (int(sol.status), int(sol.steps)) == (Status.STOPPED, 2)


def test_a_callback_stops_the_samples_that_run_and_no_other():
    a = np.array([[0.0], [0.9], [0.99]])
    sol = fp.fixed_point(
        lambda z, a: a * z + 1.0,
        np.zeros((3, 1)),
        (a,),
        solver=fp.Picard(),
        batch_ndim=1,
        callback=lambda *seen: bool(seen[2][1] < 0.5),
        on_failure="return",
    )
    np.testing.assert_array_equal(
        sol.status, [Status.CONVERGED, Status.STOPPED, Status.STOPPED]
    )
    np.testing.assert_array_equal(sol.steps, [1, 7, 7])


def test_after_a_callback_stopped_no_other_solver_is_tried():
    sol = fp.root(
        cubic,
        np.ones(2),
        solver=fp.Fallback([fp.Newton(), fp.Broyden()]),
        rtol=1e-12,
        atol=0.0,
        callback=lambda *_: True,
        on_failure="return",
    )
    assert (int(sol.status), int(sol.steps), int(sol.method)) == (Status.STOPPED, 1, 0)


@pytest.mark.parametrize(
    "watcher", [{"callback": lambda *_: False}, {"budget": fp.Budget(seconds=1.0)}]
)
def test_a_trace_has_no_clock_and_no_callback(watcher):
    call = jax.jit(lambda z: fp.fixed_point(jnp.cos, z, **watcher).value)
    with pytest.raises(TypeError, match="max_steps"):
        call(jnp.ones(2))


# Budgets.


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("evaluations", [1, 7, 12])
def test_a_budget_of_evaluations_ends_the_solve(
    contraction, counted, solver, evaluations
):
    """After the step that reaches it."""
    f = counted(layer(contraction))
    settings = {"solver": solver, "rtol": 0.0, "atol": 0.0, "on_failure": "return"}
    sol = fp.fixed_point(
        f,
        np.zeros(6),
        budget=fp.Budget(evaluations=evaluations),
        record=True,
        max_steps=40,
        **settings,
    )
    spent = sol.trace.evaluations[: int(sol.steps) + 1]
    assert int(sol.status) == Status.OUT_OF_BUDGET
    assert spent[-1] == f.calls == sum(sol.work) >= evaluations
    assert np.all(spent[1:-1] < evaluations)


def test_a_budget_counts_products_too():
    jvp = lambda x, v: (3.0 * x**2 + 2.0) * v
    sol = fp.root(
        cubic,
        np.full(2, 9.0),
        solver=fp.Newton(),
        jvp=jvp,
        rtol=0.0,
        atol=0.0,
        budget=fp.Budget(evaluations=8),
        on_failure="return",
    )
    assert int(sol.status) == Status.OUT_OF_BUDGET
    assert (sol.work.f, sol.work.jvp) == (4, 6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_budget_of_seconds_ends_the_solve(solver):
    def sleepy(z):
        time.sleep(0.01)
        return np.cos(z)

    begin = time.monotonic()
    sol = fp.fixed_point(
        sleepy,
        np.ones(1),
        solver=solver,
        rtol=0.0,
        atol=0.0,
        max_steps=10_000,
        budget=fp.Budget(seconds=0.05),
        on_failure="return",
    )
    assert int(sol.status) == Status.OUT_OF_BUDGET
    assert 0.05 <= time.monotonic() - begin < 5.0


def test_a_budget_of_evaluations_holds_in_a_trace():
    call = jax.jit(
        lambda z: fp.fixed_point(
            lambda z: 0.5 * z,
            z,
            solver=fp.Picard(),
            rtol=0.0,
            atol=0.0,
            on_failure="return",
            budget=fp.Budget(evaluations=6),
        )
    )
    sol = call(jnp.ones(2))
    assert (int(sol.status), int(sol.steps), int(sol.work.f)) == (
        Status.OUT_OF_BUDGET,
        5,
        6,
    )


def test_after_a_spent_budget_no_other_solver_is_tried(counted):
    f = counted(lambda z: 0.999 * z + 1.0)
    sol = fp.fixed_point(
        f,
        np.zeros(1),
        solver=fp.Fallback([fp.Picard(), fp.Anderson()]),
        rtol=1e-9,
        budget=fp.Budget(evaluations=9),
        on_failure="return",
    )
    assert int(sol.status) == Status.OUT_OF_BUDGET
    assert f.calls == 9


@pytest.mark.parametrize(
    "settings",
    [{"evaluations": 0}, {"evaluations": 2.5}, {"seconds": 0.0}, {"seconds": -1.0}],
)
def test_a_budget_must_be_positive(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        fp.Budget(**settings)


# The trace.


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_trace_is_that_of_the_iterates(contraction, counted, solver):
    f = counted(layer(contraction))
    iterates, calls = [np.zeros(6)], [1]

    def watch(step, z, norm):
        iterates.append(z.copy())
        calls.append(f.calls)

    sol = fp.fixed_point(
        f,
        np.zeros(6),
        solver=solver,
        rtol=1e-8,
        max_steps=60,
        record=True,
        callback=watch,
    )
    steps = int(sol.steps)
    norms, evaluations = sol.trace
    assert norms.shape == evaluations.shape == (steps + 1,)
    expected = [np.linalg.norm(f(z) - z) for z in iterates]
    np.testing.assert_allclose(norms, expected, rtol=1e-6, atol=1e-15)
    np.testing.assert_array_equal(evaluations, calls)


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson(memory=3), fp.Broyden()])
def test_traces_agree_on_every_library(jit_case, numpy_case, solver):
    """In a trace as well, where there is room for all steps."""
    a = np.array([[0.3, 0.4], [0.8, 0.7]])
    f = lambda z, a: a * jit_case.xp.cos(z)
    settings = {
        "solver": solver,
        "batch_ndim": 1,
        "rtol": 1e-6,
        "max_steps": 25,
        "record": True,
    }
    here = jit_case.solve(f, np.zeros((2, 2)), (a,), **settings)
    there = numpy_case.solve(
        lambda z, a: a * np.cos(z), np.zeros((2, 2)), (a,), **settings
    )
    for one, other in zip(here.trace, there.trace, strict=True):
        rows = jit_case.to_numpy(one)
        columns = 26 if jit_case.name == "jax-jit" else there.steps.max() + 1
        assert rows.shape == (2, columns)
        for i, steps in enumerate(there.steps):
            taken = slice(0, steps + 1)
            np.testing.assert_allclose(
                rows[i, taken], other[i, taken], rtol=1e-6, atol=1e-12
            )
        assert np.all(np.isnan(rows[:, there.steps.max() + 1 :]))


def test_without_record_there_is_no_trace():
    assert fp.fixed_point(np.cos, 1.0).trace is None


def test_a_plot_has_a_line_for_each_sample():
    pytest.importorskip("matplotlib").use("Agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    a = np.array([[0.1], [0.5], [0.9]])
    sol = fp.fixed_point(
        lambda z, a: a * np.cos(z), np.ones((3, 1)), (a,), batch_ndim=1, record=True
    )
    figure, ax = pyplot.subplots()
    assert sol.plot(ax) is ax
    assert len(ax.lines) == 3
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), sol.trace.residual_norm[2])
    assert sol.plot() is pyplot.gca()
    pyplot.close(figure)


def test_without_a_trace_there_is_no_plot():
    with pytest.raises(ValueError, match="record=True"):
        fp.fixed_point(np.cos, 1.0).plot()


# Projections.


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_the_map_is_evaluated_at_projected_points_alone(solver):
    seen = []

    def f(z):
        seen.append(z)
        return 2.0 - 1.5 * np.log(z)

    sol = fp.fixed_point(
        f,
        np.full(2, 4.0),
        solver=solver,
        project=lambda z: np.clip(z, 0.5, 4.0),
        on_failure="return",
        max_steps=50,
    )
    assert np.min(seen) >= 0.5
    assert np.max(seen) <= 4.0
    assert np.all((sol.value >= 0.5) & (sol.value <= 4.0))
    np.testing.assert_allclose(
        sol.residual_norm, np.linalg.norm(f(sol.value) - sol.value), rtol=1e-12
    )


@pytest.mark.parametrize("solver", [fp.Newton(), fp.NewtonKrylov(), fp.Broyden()])
def test_projected_steps_reach_a_root_inside(solver):
    """Newton's step from 5 leads below zero, where the projection holds it at 0.1."""
    F = lambda x: {"x": np.log(x["x"])}
    sol = fp.root(
        F,
        {"x": np.array([5.0])},
        solver=solver,
        rtol=1e-8,
        project=lambda x: {"x": np.maximum(x["x"], 0.1)},
    )
    np.testing.assert_allclose(sol.value["x"], 1.0, atol=1e-6)


def test_a_projection_must_keep_the_structure():
    with pytest.raises(ValueError, match="project"):
        fp.fixed_point(lambda z: 0.5 * z, np.ones(2), project=lambda z: z[:1])


# Memory of an earlier call.


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


@pytest.mark.parametrize("solver", SOLVERS)
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


# Several solvers.


@dataclass(frozen=True, kw_only=True)
class GivesUp(fp.Picard):
    """Plain iteration that reports a failure at its third step."""

    def step(self, problem, point, state):
        step = super().step(problem, point, point.increment)
        step = step._replace(state=state + 1)
        if state < 2:
            return step
        failed = problem.space.xp.ones_like(
            point.residual_norm, dtype=problem.space.xp.int32
        )
        return step._replace(failure=failed * int(Status.LINE_SEARCH_FAILED))

    def init(self, problem, point):
        del problem, point
        return 0


def test_solvers_are_tried_in_order():
    """Plain iteration runs away on 2z − 1, and is not the method that finds the fixed
    point.
    """
    solver = fp.Fallback([fp.Picard(), fp.Newton(), fp.Anderson()])
    sol = fp.fixed_point(lambda z: 2.0 * z - 1.0, np.zeros(2), solver=solver)
    assert sol.methods == ("Picard", "Newton", "Anderson")
    assert int(sol.method) == 1
    np.testing.assert_allclose(sol.value, 1.0, rtol=1e-6)


def test_a_solver_that_succeeds_is_the_last():
    sol = fp.fixed_point(
        np.cos, np.ones(1), solver=fp.Fallback([fp.Anderson(), fp.Newton()])
    )
    alone = fp.fixed_point(np.cos, np.ones(1), solver=fp.Anderson())
    assert int(sol.method) == 0
    assert sol.work == alone.work
    np.testing.assert_array_equal(sol.value, alone.value)


def test_a_fallback_within_a_fallback_is_one_sequence():
    inner = fp.Fallback([fp.Picard(), fp.Newton()])
    assert fp.Fallback([inner, fp.Anderson()]).sequence == (
        fp.Picard(),
        fp.Newton(),
        fp.Anderson(),
    )
    with pytest.raises(ValueError, match="solvers"):
        fp.Fallback([])


@pytest.mark.parametrize("max_steps", [1, 2, 7, 30])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_solver_takes_half_of_the_steps_that_are_left(max_steps, number):
    """Nothing converges on z + 1; where z falls the next solver has begun."""
    seen = []
    sol = fp.fixed_point(
        lambda z: z + 1.0,
        np.zeros(1),
        solver=fp.Fallback([fp.Picard(damping=0.01**i) for i in range(number)]),
        max_steps=max_steps,
        on_failure="return",
        rtol=0.0,
        atol=0.0,
        callback=lambda _, z, __: seen.append(z[0]),
    )
    lengths = [
        len(part) for part in np.split(seen, np.flatnonzero(np.diff(seen) < 0.0) + 1)
    ]
    assert int(sol.steps) == sum(lengths) == max_steps
    assert sol.work.f == max_steps + 1
    left, expected = max_steps, []
    for rest in reversed(range(number)):
        expected.append(left if rest == 0 else (left + 1) // 2)
        left -= expected[-1]
    assert lengths == [length for length in expected if length]


def test_a_solver_that_gives_up_leaves_its_share_to_the_next():
    sol = fp.fixed_point(
        lambda z: 0.7 * z + 1.0,
        np.zeros(1),
        solver=fp.Fallback([GivesUp(), fp.Picard()]),
        max_steps=40,
        rtol=0.0,
        atol=2e-5,
        on_failure="return",
    )
    assert (int(sol.status), int(sol.steps), int(sol.method)) == (
        Status.CONVERGED,
        3 + 34,
        1,
    )


def test_each_solver_begins_at_the_start():
    seen = []
    f = lambda z: seen.append(z.copy()) or z + 1.0
    fp.fixed_point(
        f,
        np.full(1, 7.0),
        solver=fp.Fallback([fp.Picard(), fp.Picard(damping=0.5)]),
        max_steps=4,
        on_failure="return",
    )
    np.testing.assert_array_equal(np.ravel(seen), [7.0, 8.0, 9.0, 7.5, 8.0])


@pytest.mark.parametrize("order", [1, -1])
def test_if_all_fail_the_smallest_residual_is_returned(order):
    """Of z ↦ z/2: each damping brings it down in its own way in its 6, 3, 3 steps."""
    dampings = [0.2, 1.0, 0.5][::order]
    sol = fp.fixed_point(
        lambda z: 0.5 * z,
        np.ones(1),
        solver=fp.Fallback([fp.Picard(damping=d) for d in dampings]),
        max_steps=12,
        rtol=0.0,
        atol=0.0,
        on_failure="return",
    )
    assert int(sol.status) == Status.MAX_STEPS
    assert int(sol.method) == 1
    np.testing.assert_allclose(sol.value, 0.125)
    np.testing.assert_allclose(sol.residual_norm, 0.0625)


def test_samples_that_have_converged_keep_their_answer(jit_case):
    a = np.array([[0.5], [-1.5], [0.0], [np.nan]])
    settings = {"batch_ndim": 1, "rtol": 1e-6, "max_steps": 120}
    f = lambda z, a: a * z + 1.0
    sequence = fp.Fallback([fp.Picard(), fp.Picard(damping=0.5)])
    sol = jit_case.solve(f, np.zeros((4, 1)), (a,), solver=sequence, **settings)
    alone = jit_case.solve(f, np.zeros((4, 1)), (a,), solver=fp.Picard(), **settings)
    status, method, steps = map(jit_case.to_numpy, (sol.status, sol.method, sol.steps))
    np.testing.assert_array_equal(status, [1, 1, 1, Status.NON_FINITE])
    np.testing.assert_array_equal(method[:3], [0, 1, 0])
    for i in (0, 2):
        assert float(sol.value[i, 0]) == float(alone.value[i, 0])
        assert steps[i] == int(alone.steps[i])
    np.testing.assert_allclose(float(sol.value[1, 0]), 0.4, rtol=1e-5)
    assert steps[1] > int(alone.steps[0])


def test_steps_of_a_fallback_are_summed():
    f = lambda z: 3.0 * z + 1.0
    picard = fp.fixed_point(f, np.zeros(1), solver=fp.Picard(), on_failure="return")
    newton = fp.fixed_point(f, np.zeros(1), solver=fp.Newton())
    sol = fp.fixed_point(f, np.zeros(1), solver=fp.Fallback([fp.Picard(), fp.Newton()]))
    assert int(picard.status) == Status.DIVERGED
    assert int(sol.steps) == int(picard.steps) + int(newton.steps)
    assert sol.work.f == picard.work.f + newton.work.f - 1


def test_what_the_last_solver_remembers_goes_first_the_next_time():
    f = lambda z: 3.0 * z + 1.0
    solver = fp.Fallback([fp.Picard(), fp.Broyden()])
    first = fp.fixed_point(f, np.zeros(1), solver=solver)
    assert first.state.solver == fp.Broyden()
    again = fp.fixed_point(f, np.ones(1), solver=solver, state=first.state)
    assert int(again.steps) == 1


def test_the_defaults_are_sequences_by_kind_and_size():
    for size, is_root in (
        (10, True),
        (1000, True),
        (10_000, True),
        (10, False),
        (1000, False),
    ):
        solver = fp.default_solver(size, is_root)
        assert isinstance(solver, fp.Fallback)
        assert len(solver.sequence) >= 2
        z = np.zeros(size)
        solve = fp.root if is_root else fp.fixed_point
        sol = solve(lambda z, c=1.0 - 2.0 * is_root: c * (z - 1.0) / 2, z, atol=1.0)
        assert sol.methods == tuple(rung.name for rung in solver.sequence)


def test_a_batch_is_given_no_matrices():
    f = lambda z: 0.5 * z + 1.0
    one = fp.fixed_point(f, np.zeros(100))
    assert one.methods == ("Anderson", "NewtonKrylov", "Picard", "Newton")
    many = fp.fixed_point(f, np.zeros((2, 100)), batch_ndim=1)
    assert many.methods == ("Anderson", "NewtonKrylov", "Picard")


# Batches that shrink.


@pytest.mark.parametrize(
    ("library", "solver"),
    [*((np, s) for s in SOLVERS), *((torch, s) for s in SOLVERS), (jnp, fp.Picard())],
)
def test_finished_samples_leave_the_batch_and_nothing_else_changes(library, solver):
    asarray = torch.as_tensor if library is torch else library.asarray
    number = 2 if library is jnp else 8
    a = np.array([0.1, 0.8, 0.0, 0.3, 0.2, 0.95, 0.2, 0.1])[:number, None] * np.ones(3)
    b = np.linspace(0.5, 1.0, 3 * number).reshape(number, 3)
    rows = []

    def f(z, a, b, c):
        rows.append(int(z.shape[0]))
        return a * library.sin(z) + b + c

    args = tuple(map(asarray, (a, b, np.full(3, 0.1))))
    settings = {
        "solver": solver,
        "batch_ndim": 1,
        "rtol": asarray(np.geomspace(1e-2, 1e-8, number)),
        "atol": 0.0,
        "max_steps": 300,
        "on_failure": "return",
    }
    start = asarray(np.zeros((number, 3)))
    whole = fp.fixed_point(f, start, args, **settings)
    total, rows[:] = sum(rows), []
    few = fp.fixed_point(f, start, args, batched_args=(True, True, False), **settings)
    assert sum(rows) < total
    for field in ("value", "status", "steps", "residual_norm"):
        one, other = (np.asarray(getattr(sol, field)) for sol in (few, whole))
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15, err_msg=field)
    assert few.work == whole.work


def test_all_rows_are_put_back_in_their_places():
    """Rows that stop at any time, in any order, converged or not; the rest is solved
    anew.
    """
    rng = np.random.default_rng(0)
    a = rng.permutation(np.r_[np.linspace(0.0, 1.05, 30), np.nan, 7.0])[
        :, None
    ] * np.ones(2)
    settings = {
        "solver": fp.Anderson(memory=2),
        "batch_ndim": 1,
        "on_failure": "return",
    }
    settings |= {"max_steps": 80, "rtol": 1e-9}
    f = lambda z, a: a * np.sin(z) + 1.0
    z0 = rng.standard_normal((32, 2))
    whole = fp.fixed_point(f, z0, (a,), **settings)
    few = fp.fixed_point(f, z0, (a,), batched_args=(True,), **settings)
    for field in ("value", "status", "steps", "residual_norm", "method"):
        np.testing.assert_array_equal(getattr(few, field), getattr(whole, field), field)


def test_the_trace_of_a_shrinking_batch_is_that_of_its_samples():
    """Up to the last step of each."""
    a = np.array([[0.1], [0.9], [0.5], [0.2]])
    settings = {
        "solver": fp.Picard(),
        "batch_ndim": 1,
        "record": True,
        "max_steps": 200,
    }
    f = lambda z, a: a * z + 1.0
    whole = fp.fixed_point(f, np.zeros((4, 1)), (a,), **settings)
    few = fp.fixed_point(f, np.zeros((4, 1)), (a,), batched_args=(True,), **settings)
    for one, other in zip(few.trace, whole.trace, strict=True):
        for i, steps in enumerate(whole.steps):
            np.testing.assert_array_equal(one[i, : steps + 1], other[i, : steps + 1])


def test_a_sample_of_two_axes_leaves_with_its_row():
    a = np.array([[0.1, 0.2, 0.3], [0.9, 0.1, 0.2], [0.2, 0.2, 0.2], [0.0, 0.0, 0.95]])
    f = lambda z, a: a[..., None] * z + 1.0
    settings = {"solver": fp.Picard(), "batch_ndim": 2, "rtol": 1e-6}
    whole = fp.fixed_point(f, np.zeros((4, 3, 2)), (a,), **settings)
    few = fp.fixed_point(f, np.zeros((4, 3, 2)), (a,), batched_args=(True,), **settings)
    np.testing.assert_array_equal(few.value, whole.value)
    np.testing.assert_array_equal(few.steps, whole.steps)


def test_a_shrinking_batch_goes_through_a_fallback_with_its_own_tolerances():
    a = np.array([[0.5], [3.0], [0.2], [-4.0], [0.1], [0.3]])
    settings = {"solver": fp.Fallback([fp.Picard(), fp.Broyden()]), "batch_ndim": 1}
    settings |= {"rtol": 0.0, "atol": np.geomspace(1e-2, 1e-9, 6), "max_steps": 100}
    f = lambda z, a: a * z + 1.0
    whole = fp.fixed_point(f, np.zeros((6, 1)), (a,), **settings)
    few = fp.fixed_point(f, np.zeros((6, 1)), (a,), batched_args=(True,), **settings)
    np.testing.assert_array_equal(few.value, whole.value)
    np.testing.assert_array_equal(few.steps, whole.steps)
    np.testing.assert_array_equal(few.method, [0, 1, 0, 1, 0, 0])
    assert np.all(few.residual_norm <= settings["atol"])


def test_given_derivatives_shrink_with_the_batch():
    a = np.array([[2.0], [3.0], [1e4], [4.0]])
    rows = []

    def jacobian(x, a):
        rows.append(len(x))
        return 3.0 * x[..., None] ** 2 + 0.0 * a[..., None]

    sol = fp.root(
        lambda x, a: x**3 - a,
        np.ones((4, 1)),
        (a,),
        solver=fp.Newton(line_search=False),
        jacobian=jacobian,
        batch_ndim=1,
        batched_args=(True,),
        rtol=1e-12,
        atol=1e-9,
    )
    np.testing.assert_allclose(sol.value, np.cbrt(a), rtol=1e-9)
    assert rows[0] == 4
    assert rows[-1] == 1


def test_in_a_trace_the_batch_stays_whole():
    a = jnp.array([[0.1], [0.9], [0.5]])
    call = lambda z, a: fp.fixed_point(
        lambda z, a: a * z + 1.0, z, (a,), batch_ndim=1, batched_args=(True,), rtol=1e-8
    )
    traced = jax.jit(call)(jnp.zeros((3, 1)), a)
    np.testing.assert_allclose(traced.value, 1.0 / (1.0 - a), rtol=1e-6)


def test_solutions_of_a_shrinking_batch_are_differentiated():
    """z = az + 1 has dz/da = 1/(1 − a)²."""
    a = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64, requires_grad=True)
    sol = fp.fixed_point(
        lambda z, a: a * z + 1.0,
        torch.zeros(3, 1, dtype=torch.float64),
        (a,),
        batch_ndim=1,
        batched_args=(True,),
        rtol=1e-10,
    )
    (gradient,) = torch.autograd.grad(sol.value.sum(), a)
    np.testing.assert_allclose(gradient, 1.0 / (1.0 - a.detach()) ** 2, rtol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batched_args": (True,)}, "batch_ndim"),
        ({"batched_args": (True, False), "batch_ndim": 1}, "batched_args"),
        ({"batched_args": (True,), "batch_ndim": 1}, "rows"),
    ],
)
def test_batched_args_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        fp.fixed_point(
            lambda z, b: 0.5 * z + b, np.ones((2, 3)), (np.ones(3),), **settings
        )


def test_a_callback_and_a_shrinking_batch_exclude_each_other():
    with pytest.raises(ValueError, match="callback"):
        fp.fixed_point(
            lambda z, b: 0.5 * z + b,
            np.ones((2, 3)),
            (np.ones((2, 3)),),
            batch_ndim=1,
            batched_args=(True,),
            callback=lambda *_: False,
        )


# What a solution tells.


@pytest.mark.parametrize("is_root", [True, False])
def test_the_linearization_is_the_jacobian(xp_case, is_root):
    """Of sin(x)·w + x² in two leaves, in closed form."""
    xp, w = xp_case.xp, np.array([0.3, -0.2])
    f = lambda z, w: {
        "u": xp.sin(z["u"]) * w + 0.25 * z["v"] ** 2,
        "v": 0.5 * xp.cos(z["u"]),
    }
    start = xp_case.tree({"u": np.array([0.1, 0.2]), "v": np.array([0.5, 0.4])})
    args = (xp_case.asarray(w),)
    solve = fp.root if is_root else fp.fixed_point
    F = (lambda z, w: {k: z[k] - v for k, v in f(z, w).items()}) if is_root else f
    sol = solve(F, start, args, solver=fp.Picard(), rtol=1e-9)
    u, v = (xp_case.to_numpy(sol.value[name]) for name in "uv")
    p, q = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    image = sol.linearize()(xp_case.tree({"u": p, "v": q}))
    expected = {"u": np.cos(u) * w * p + 0.5 * v * q, "v": -0.5 * np.sin(u) * p}
    if is_root:
        expected = {"u": p - expected["u"], "v": q - expected["v"]}
    for name, value in expected.items():
        np.testing.assert_allclose(
            xp_case.to_numpy(image[name]), value, rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("given", ["jvp", "jacobian"])
def test_the_linearization_uses_what_was_given(given):
    A = np.array([[0.5, 0.1], [0.0, 0.2]])
    functions = {"jvp": lambda _, v: A @ v, "jacobian": lambda _: A}
    sol = fp.fixed_point(
        lambda z: A @ z + 1.0, np.zeros(2), **{given: functions[given]}
    )
    np.testing.assert_allclose(
        sol.linearize()(np.array([1.0, 2.0])), A @ [1.0, 2.0], rtol=1e-14
    )


def test_a_solution_from_a_trace_is_not_linearized():
    sol = jax.jit(lambda z: fp.fixed_point(jnp.cos, z))(jnp.ones(2))
    with pytest.raises(ValueError, match="trace"):
        sol.linearize()


def test_a_solution_tells_what_happened():
    sol = fp.fixed_point(
        lambda z: 0.5 * z, np.ones(1), solver=fp.Picard(), rtol=0.0, atol=1e-3
    )
    assert sol.message == (
        "converged (Picard); largest error 0.00098, residual norm 0.00049 after 10 "
        "steps"
    )
    assert repr(sol).splitlines() == [
        "Solution",
        "    value: 0.000976562 (numpy.ndarray of shape (1,), float64)",
        f"    message: {sol.message}",
        "    work: 11 evaluations, 0 vjp, 0 jvp",
    ]


def test_a_long_value_is_shown_by_its_head(jit_case):
    shown = repr(jit_case.solve(lambda z: 0.5 * z + 1.0, np.zeros(7)))
    assert "value: 2, 2, 2, 2, 2, 2, ... (" in shown
    assert "of shape (7,)" in shown


def test_the_leaves_of_a_container_are_counted():
    sol = fp.fixed_point(lambda z: {"a": 0.5 * z["a"] + 1.0}, {"a": np.zeros(2)})
    assert "value: dict of 1 arrays\n" in repr(sol)


def test_a_traced_solution_is_shown_without_numbers():
    shown = []

    @jax.jit
    def solve(z):
        sol = fp.fixed_point(lambda z: 0.5 * z, z, solver=fp.Picard(), record=True)
        shown.extend([repr(sol), sol._repr_html_()])
        return sol.value

    solve(jnp.ones(2))
    assert "of shape (2,)" in shown[0]
    assert "a symbol of a trace" in shown[0]
    assert "<img" not in shown[1]


def test_a_notebook_shows_the_trace():
    matplotlib = pytest.importorskip("matplotlib.pyplot")
    sol = fp.fixed_point(lambda z: {"<": 0.5 * z["<"]}, {"<": np.ones(2)}, record=True)
    before = matplotlib.get_fignums()
    page = sol._repr_html_()
    assert matplotlib.get_fignums() == before
    assert page.startswith("<table><tr><th>value</th><td>dict of 1 arrays</td>")
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page).group(1)
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "<img" not in fp.fixed_point(np.cos, 1.0)._repr_html_()


def test_the_names_of_scipy():
    def F(x):
        return np.stack([x[0] ** 2 + x[1] ** 2 - 4.0, x[0] - x[1]])

    theirs = scipy.optimize.root(F, [1.0, 2.0])
    ours = fp.root(F, np.array([1.0, 2.0]))
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-6)
    assert ours.success == theirs.success
    assert ours.nfev == ours.work.f > 0
    for name in ("x", "success", "nfev"):
        with pytest.raises(AttributeError):
            setattr(ours, name, None)


def test_a_batch_tells_how_many():
    a = np.array([[0.0], [0.5], [2.0], [np.nan]])
    sol = fp.fixed_point(
        lambda z, a: a * z + 1.0,
        np.zeros((4, 1)),
        (a,),
        solver=fp.Picard(),
        batch_ndim=1,
        on_failure="return",
    )
    assert "converged (Picard): 2 samples" in sol.message
    assert (
        "diverged: the residual grew without bound (Picard): 1 samples" in sol.message
    )
    assert "f was not finite" in sol.message


def test_a_batch_of_zero_has_a_message():
    sol = fp.fixed_point(np.cos, np.zeros((0, 2)), batch_ndim=1)
    assert sol.message == "no samples"
    assert "no samples" in repr(sol)


def test_an_error_says_the_same_and_holds_the_solution():
    with pytest.raises(fp.ConvergenceError, match="diverged") as caught:
        fp.fixed_point(lambda z: 3.0 * z + 1.0, np.zeros(1), solver=fp.Picard())
    assert caught.value.solution.message in str(caught.value)
    assert int(caught.value.solution.status) == Status.DIVERGED


# Statuses.


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
    jit_case, numpy_case
):
    """As z + 1 does: with a neighbor that has converged, alone, and in a trace."""
    ends = []
    for case, number in ((numpy_case, 1), (jit_case, 1), (jit_case, 2)):
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


# What is returned.


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("max_steps", [0, 1, 5, 37])
def test_on_failure_the_best_iterate_is_returned(solver, max_steps):
    """Of a map whose residuals rise and fall: the logistic map where it is chaotic."""
    iterates = [np.array([0.3])]
    sol = fp.fixed_point(
        chaos,
        iterates[0],
        solver=solver,
        rtol=0.0,
        atol=0.0,
        max_steps=max_steps,
        on_failure="return",
        callback=lambda _, z, __: iterates.append(z.copy()),
    )
    norms = [abs(chaos(z) - z)[0] for z in iterates]
    np.testing.assert_array_equal(sol.value, iterates[int(np.argmin(norms))])
    np.testing.assert_allclose(sol.residual_norm, min(norms), rtol=1e-12, atol=1e-300)


def test_what_satisfied_the_test_is_returned_even_if_another_residual_was_smaller():
    """The tolerance goes with ‖f(z)‖: 0.6 at z = 1.5 is within it, and 0.5 at z = 1 was
    not.
    """
    steps = {0.0: 1.0, 1.0: 0.5, 1.5: 0.6}
    sol = fp.fixed_point(
        lambda z: z + steps[z[0]],
        np.zeros(1),
        solver=fp.Picard(),
        rtol=0.3,
        test="residual",
    )
    assert int(sol.status) == Status.CONVERGED
    np.testing.assert_allclose([sol.value[0], sol.residual_norm], [1.5, 0.6])


def test_a_python_float_stays_a_scalar():
    sol = fp.root(lambda x: x * x - 2.0, 1.0)
    assert np.ndim(sol.value) == 0
    assert math.isclose(float(sol.value), math.sqrt(2.0), rel_tol=1e-6)


def test_aux_is_that_of_the_solution(xp_case):
    def f(z, b):
        return 0.5 * z + b, {"double": 2.0 * z}

    sol = xp_case.solve(
        f, np.zeros((2, 3)), (np.ones((2, 3)),), batch_ndim=1, has_aux=True
    )
    np.testing.assert_allclose(xp_case.to_numpy(sol.value), 2.0, rtol=1e-5)
    aux = xp_case.to_numpy(sol.aux["double"])
    np.testing.assert_array_equal(aux, 2.0 * xp_case.to_numpy(sol.value))


def test_aux_takes_one_evaluation_and_is_differentiated():
    calls = []

    def F(x, a):
        calls.append(1)
        return x**2 - a, a * x

    a = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    one = torch.ones(2, 1, dtype=torch.float64)
    sol = fp.root(F, one, (a[:, None],), batch_ndim=1, has_aux=True, atol=1e-13)
    assert sol.work.f <= len(calls)
    sol.aux.sum().backward()
    np.testing.assert_allclose(a.grad, 1.5 * np.sqrt([2.0, 3.0]), rtol=1e-7)  # (a√a)′


@pytest.mark.parametrize("f", [lambda z: z, lambda z: (z, 1, 2), lambda z: [z, 1]])
def test_aux_that_is_missing(f):
    with pytest.raises(ValueError, match="f must return a pair"):
        fp.fixed_point(f, np.ones(2), has_aux=True)


def test_operators_have_no_aux():
    with pytest.raises(TypeError, match="has_aux"):
        fp.fixed_point(fp.operators.Map(np.cos).damped(0.5), np.ones(2), has_aux=True)
