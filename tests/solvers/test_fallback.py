"""Several solvers, tried one after the other."""

from dataclasses import dataclass

import numpy as np
import pytest

import fixedpoint as fp

Status = fp.Status


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


def test_samples_that_have_converged_keep_their_answer(compiled_case):
    a = np.array([[0.5], [-1.5], [0.0], [np.nan]])
    settings = {"batch_ndim": 1, "rtol": 1e-6, "max_steps": 120}
    f = lambda z, a: a * z + 1.0
    sequence = fp.Fallback([fp.Picard(), fp.Picard(damping=0.5)])
    sol = compiled_case.solve(f, np.zeros((4, 1)), (a,), solver=sequence, **settings)
    alone = compiled_case.solve(
        f, np.zeros((4, 1)), (a,), solver=fp.Picard(), **settings
    )
    status, method, steps = map(
        compiled_case.to_numpy, (sol.status, sol.method, sol.steps)
    )
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


def test_matrices_that_would_fill_the_memory_are_not_asked_for():
    """Those of a large batch of roots; a batch of fixed points has none."""
    names = lambda *kind: [rung.name for rung in fp.default_solver(*kind).sequence]
    assert names(1000, True, False, 60) == names(1000, True)
    assert names(1000, True, False, 70) == names(10_000, True) == ["NewtonKrylov"] * 2
    assert names(64, True, False, 10**6) == names(64, True)
    assert names(1000, False, False, 2) == names(1000, False)[:-1]


def test_a_scale_that_acceleration_leads_to_zero_is_found_soon():
    """Location and scale of a distribution of Student's by expectation-maximization:
    extrapolated, the scale vanishes, where the map is not defined.
    """
    evaluations = 0
    for seed in range(6):
        X = 7.0 * np.random.default_rng(seed).standard_t(1.5, 40) + 100.0

        def f(z, X=X):
            weights = 2.5 / (1.5 + ((X - z[0]) / z[1]) ** 2)
            mean = (weights * X).sum() / weights.sum()
            return np.stack([mean, np.sqrt((weights * (X - mean) ** 2).mean())])

        start = np.array([0.0, 1.0])
        known = fp.fixed_point(f, start, solver=fp.Picard(), rtol=1e-10).value
        with np.errstate(all="ignore"):
            sol = fp.fixed_point(f, start)
        np.testing.assert_allclose(sol.value, known, rtol=1e-5)
        evaluations += sol.work.f
    assert evaluations <= 5000


def test_a_batch_is_given_no_matrices():
    f = lambda z: 0.5 * z + 1.0
    one = fp.fixed_point(f, np.zeros(100))
    assert one.methods == ("Anderson", "NewtonKrylov", "Picard", "Newton")
    many = fp.fixed_point(f, np.zeros((2, 100)), batch_ndim=1)
    assert many.methods == ("Anderson", "NewtonKrylov", "Picard")


@pytest.mark.parametrize("given", [False, True])
def test_a_minimizer_of_a_scalar_residual_is_left(given):
    """z = c + tanh(Wz + b) with W > 1: the slope of F vanishes between two of its
    roots, or between the start and the only one, and whatever descends ends there.
    """
    rng, left = np.random.default_rng(0), 0
    for _ in range(60):
        W, b, c = rng.uniform(1.0, 1.5), rng.normal(), 2.0 * rng.normal()
        F = lambda z, W=W, b=b, c=c: np.tanh(W * z + b) + c - z
        slope = lambda z, W=W, b=b: np.diag(W / np.cosh(W * z + b) ** 2 - 1.0)
        start, jacobian = np.array([0.1 * rng.normal()]), slope if given else None
        sol = fp.root(F, start, jacobian=jacobian, on_failure="return")
        left += abs(F(sol.value)[0]) <= 1e-5
    assert left >= 58
