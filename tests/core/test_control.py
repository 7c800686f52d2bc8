"""Callbacks, budgets, and the trace of a solve."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixedpoint as fp

Status = fp.Status


@pytest.fixture
def solver(each_solver):
    """Each, as most users call it."""
    return each_solver


def cubic(x):
    return x**3 + 2.0 * x - np.array([3.0, 12.0])


def layer(contraction, n=6, norm=0.95, seed=0):
    W = contraction(n, norm, seed)
    b = np.random.default_rng(seed + 10).standard_normal(n)
    return lambda z: np.tanh(W @ z + b)


# Watching.


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
