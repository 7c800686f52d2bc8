"""A solve that is driven step by step is the solve, step by step."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
from fixedpoint.testing import problems

A = np.array([[0.6, -0.5, 0.1], [0.4, 0.7, 0.0], [0.0, 0.2, -0.8]])
B = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]])


def f(z, A, b):
    return z @ A + b


def taken(case, f, z0, args=(), **settings):
    """All items, in NumPy."""
    with np.errstate(all="ignore"):
        items = list(fp.steps(f, case.tree(z0), case.tree(args), **settings))
    return items, [case.to_numpy(sol.value) for sol in items]


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", "newton"])
def test_each_item_is_the_solve_that_ends_there(eager_case, solver):
    settings = {"solver": solver, "batch_ndim": 1}
    items, values = taken(eager_case, f, 0.0 * B, (A, B), **settings)
    assert len(items) == int(max(items[-1].steps)) + 1
    last = len(items) - 1
    for step in {0, 1, min(2, last), last // 2, last}:
        ended = eager_case.solve(f, 0.0 * B, (A, B), max_steps=step, **settings)
        expected = eager_case.to_numpy(ended.value)
        np.testing.assert_allclose(values[step], expected, rtol=1e-10, atol=1e-13)
        assert items[step].work == ended.work
        steps = [eager_case.to_numpy(sol.steps) for sol in (items[step], ended)]
        np.testing.assert_array_equal(*steps)
        np.testing.assert_allclose(
            eager_case.to_numpy(items[step].residual_norm),
            eager_case.to_numpy(ended.residual_norm),
            rtol=1e-3,
            atol=1e-12,
        )


def test_on_jax_too():
    case_args = jnp.asarray(A), jnp.asarray(B[0])
    sol = fp.fixed_point(f, jnp.zeros(3), case_args, solver="picard", record=True)
    items = list(fp.steps(f, jnp.zeros(3), case_args, solver="picard"))
    assert len(items) == int(sol.steps) + 1
    np.testing.assert_array_equal(items[-1].value, sol.value)
    norms = [float(item.residual_norm) for item in items]
    # The item has the smallest so far; the trace has them all.
    lowest = np.minimum.accumulate(np.asarray(sol.trace.residual_norm))
    np.testing.assert_allclose(norms[:-1], lowest[:-1], rtol=1e-12)


def test_an_item_stays_as_it_was_when_the_next_is_taken(eager_case):
    items = fp.steps(
        f, *eager_case.tree((0.0 * B, (A, B))), solver=fp.Anderson(), batch_ndim=1
    )
    seen = [(sol, eager_case.to_numpy(sol.value).copy()) for sol in items]
    for sol, value in seen:
        np.testing.assert_array_equal(eager_case.to_numpy(sol.value), value)


def test_the_samples_that_run_say_so(eager_case):
    start, slopes = np.zeros((2, 1)), np.array([[0.1], [0.9]])
    args = {"solver": fp.Picard(), "batch_ndim": 1}
    items, _ = taken(eager_case, lambda z, a: a * z + 1.0, start, (slopes,), **args)
    statuses = [eager_case.to_numpy(sol.status) for sol in items]
    running = [(status == fp.Status.RUNNING).tolist() for status in statuses]
    first = int(items[-1].steps[0])
    assert running == [
        [step < first, step < len(items) - 1] for step in range(len(items))
    ]
    assert bool(np.all(eager_case.to_numpy(items[-1].converged)))


def test_a_fallback_goes_on_with_the_next_solver(eager_case):
    settings = {"solver": fp.Fallback(["picard", "newton"])}
    steep = lambda z: 9.0 / (1.0 + z * z)
    items, values = taken(eager_case, steep, np.ones(1), **settings)
    sol = eager_case.solve(steep, np.ones(1), **settings)
    assert len(items) == int(sol.steps) + 1
    assert int(items[-1].status) == fp.Status.CONVERGED
    assert int(items[-1].method) == int(sol.method) == 1
    np.testing.assert_allclose(values[-1], eager_case.to_numpy(sol.value), rtol=1e-10)
    assert items[-1].work == sol.work


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_few_steps_are_shared_as_in_a_solve(most):
    settings = {"solver": fp.Fallback(["newton", "picard"]), "max_steps": most}
    items = list(fp.steps(lambda z: z + 1.0, 0.0, **settings))
    sol = fp.fixed_point(lambda z: z + 1.0, 0.0, on_failure="return", **settings)
    last = items[-1]
    assert (int(last.status), int(last.steps)) == (int(sol.status), int(sol.steps))
    assert (last.work, float(last.value)) == (sol.work, float(sol.value))


def test_a_start_that_solves_is_the_only_item():
    (only,) = fp.steps(np.cos, fp.fixed_point(np.cos, 1.0, rtol=1e-15).value)
    assert only.converged
    assert only.work.f == 1


def test_roots():
    problem = problems.rosenbrock()
    F, start = problem.function, problem.start
    sol = fp.root(F, start, solver="newton")
    items = list(fp.steps(F, start, is_root=True, solver="newton"))
    np.testing.assert_array_equal(items[-1].value, sol.value)
    assert items[-1].work == sol.work


def test_f_is_evaluated_only_when_the_next_item_is_asked_for():
    calls = []

    def counted(z):
        calls.append(1)
        return 0.5 * z + 1.0

    items = fp.steps(counted, 0.0, solver="picard")
    assert not calls
    for number in range(1, 5):
        assert next(items).work.f == len(calls) == number


def test_what_is_wrong_with_the_arguments_is_told_by_the_call():
    with pytest.raises(TypeError, match="f must be callable"):
        fp.steps(3, 1.0)
    with pytest.raises(ValueError, match="leave batched_args out"):
        fp.steps(np.cos, np.ones((2, 1)), batch_ndim=1, batched_args=())


def test_the_callers_own_settings_hold_between_steps():
    a = torch.tensor(0.5, requires_grad=True)
    items = fp.steps(lambda z, a: a * torch.cos(z), torch.tensor(1.0), (a,))
    for sol in itertools.islice(items, 3):
        assert not sol.value.requires_grad
        assert torch.is_grad_enabled()
    loud = fp.steps(lambda z: 0.5 * z, np.ones(2), solver="picard")
    next(loud)
    with warnings.catch_warnings(), np.errstate(over="raise"):
        assert np.geterr()["over"] == "raise"
        next(loud)
        with pytest.raises(FloatingPointError):
            np.exp(np.array([1e3]))


def test_a_module_is_a_map():
    torch.manual_seed(0)
    cell = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).double()
    start = torch.zeros(3, 4, dtype=torch.float64)
    sol = fp.fixed_point(cell, start, batch_ndim=1, solver="anderson")
    *_, last = fp.steps(cell, start, batch_ndim=1, solver="anderson")
    torch.testing.assert_close(last.value, sol.value.detach(), rtol=1e-10, atol=1e-12)


def test_traces_and_transforms_are_refused():
    last = lambda a: [*fp.steps(lambda z, a: 0.5 * z + a, 0 * a, (a,))][-1].value
    with pytest.raises(TypeError, match="inside a trace of JAX steps cannot be asked"):
        jax.grad(last)(1.0)
    with pytest.raises(
        TypeError, match=r"transform of torch.func steps cannot be asked"
    ):
        torch.func.grad(last)(torch.tensor(1.0))
