"""The work that is reported is the work that was done."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
from fixedpoint import kernels
from fixedpoint.testing import problems

EITHER = pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
DENSE = ["newton", "newton-bounded", "levenberg"]
SETTINGS = {"rtol": 1e-8, "atol": 0.0, "max_steps": 30, "on_failure": "return"}
TRACES = 6  # of f, for a solve under jit


@pytest.fixture
def problem(contraction):
    """A start, and the arguments."""
    b, z0 = np.random.default_rng(4).standard_normal((2, 4))
    return z0, (contraction(4, 1.1, 4), b)


@EITHER
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_every_call_counts(layer, counted, problem, solver, by, batch_ndim):
    """Those for difference quotients too; and a batch counts once."""
    z0, args = problem
    f, z0 = (
        counted(layer(np, by is fp.root)),
        np.stack([z0, 2 * z0]) if batch_ndim else z0,
    )
    sol = by(f, z0, args, solver=solver, batch_ndim=batch_ndim, **SETTINGS)
    assert sol.work == (f.calls, 0, 0)


@EITHER
def test_every_product_counts(layer, counted, problem, solver, by):
    z0, args = problem
    f = layer(np, by is fp.root)
    image, jvp = counted(f), counted(f.jvp)
    sol = by(image, z0, args, solver=solver, jvp=jvp, **SETTINGS)
    assert sol.work == (image.calls, 0, jvp.calls)


@EITHER
@pytest.mark.parametrize("solver", DENSE, indirect=True)
def test_a_jacobian_saves_all_products(layer, counted, problem, solver, by):
    z0, args = problem
    f = layer(np, by is fp.root)
    jacobian = counted(
        lambda z, *args: np.stack([f.jvp(z, e, *args) for e in np.eye(4)], axis=-1)
    )
    image = counted(f)
    sol = by(image, z0, args, solver=solver, jacobian=jacobian, **SETTINGS)
    assert sol.work == (image.calls, 0, 0)
    assert 0 < jacobian.calls <= int(sol.steps)


def calls_between_products(solver):
    """Python functions that run from one evaluation of F to the next, as a rule, and
    the evaluations.
    """
    F, marks, calls = problems.bratu(16).function, [], [0]

    def function(u):
        sys.setprofile(None)
        marks.append(calls[0])
        image = F(u)
        sys.setprofile(watch)
        return image

    def watch(frame, event, argument):
        del frame, argument
        calls[0] += event == "call"

    try:
        sol = fp.root(function, np.zeros((16, 16)), rtol=1e-8, solver=solver)
    finally:
        sys.setprofile(None)
    assert sol.work.f == len(marks)
    return int(np.median(np.diff(marks))), len(marks)


@pytest.mark.parametrize(
    "linear",
    [fp.GMRES(), fp.ConjugateGradient(), fp.ConjugateGradient(recycle=4)],
)
def test_calls_of_a_product(linear):
    """From F and back to it, on one array; and a batch of one takes as many
    evaluations.
    """
    solver = fp.NewtonKrylov(linear=linear)
    calls, evaluations = calls_between_products(solver)
    assert calls <= 28
    F = problems.bratu(16).function
    settings = {"rtol": 1e-8, "batch_ndim": 1, "solver": solver}
    batch = fp.root(lambda u: F(u[0])[None], np.zeros((1, 16, 16)), **settings)
    assert abs(batch.work.f - evaluations) <= 0.05 * evaluations


@EITHER
def test_every_library_does_the_same_work(
    xp_case, numpy_case, layer, problem, solver, by
):
    """Where it differentiates, a linearization stands for the caller's products."""
    z0, args = problem
    settings = {"by": by, "solver": solver, "rtol": 1e-6, "max_steps": 30}
    here, there = (
        case.solve(f, z0, args, **settings, **case.exact(f))
        for case in (xp_case, numpy_case)
        for f in [layer(case.xp, by is fp.root)]
    )
    assert here.work == there.work
    assert int(here.steps) == int(there.steps)


@pytest.mark.parametrize("xp_case", ["torch", "jax"], indirect=True)
def test_a_step_linearizes_once(xp_case, layer, counted, problem, solver):
    z0, args = problem
    f = counted(layer(xp_case.xp))
    sol = xp_case.solve(f, z0, args, solver=solver, **SETTINGS)
    assert sol.work.f <= f.calls <= sol.work.f + int(sol.steps)


def test_the_trace_counts_as_the_work_does(layer, problem, solver):
    z0, args = problem
    sol = fp.fixed_point(layer(np), z0, args, solver=solver, record=True, **SETTINGS)
    evaluations = sol.trace.evaluations[~np.isnan(sol.trace.evaluations)]
    assert evaluations[0] == 1
    assert evaluations[-1] == sum(sol.work)
    assert np.all(np.diff(evaluations) >= 1)
    assert len(evaluations) == int(sol.steps) + 1


def test_a_samples_steps_are_its_own(layer, contraction, solver):
    """Not those of the slowest; the evaluations are."""
    A, (b, z0) = contraction(3, 0.9), np.random.default_rng(1).standard_normal((2, 3))
    f = layer(np)
    fixed = fp.fixed_point(
        f, z0, (A, b), solver=solver, rtol=1e-12, max_steps=500
    ).value
    start = np.stack([fixed, z0])
    sol = fp.fixed_point(f, start, (A, b), solver=solver, batch_ndim=1, max_steps=500)
    alone = fp.fixed_point(f, z0, (A, b), solver=solver, max_steps=500)
    assert sol.steps[0] <= 3 < int(alone.steps) == sol.steps[1]
    assert bool(sol.converged.all())


def test_f_is_traced_a_bounded_number_of_times_under_jit(
    layer, counted, problem, solver
):
    z0, args = problem

    def traces(max_steps):
        f = counted(layer(jnp))
        settings = SETTINGS | {"solver": solver, "max_steps": max_steps}
        jax.make_jaxpr(lambda z, args: fp.fixed_point(f, z, args, **settings))(z0, args)
        return f.calls

    assert traces(10) == traces(1000) <= TRACES


def _frames_of_ours(call):
    """The most frames of the library between `call` and the function it is given."""
    found = []

    def counted():
        frame, names = sys._getframe(2), []
        while frame is not None:
            names.append(frame.f_globals.get("__name__", "").partition(".")[0])
            frame = frame.f_back
        found.append(sum(name.startswith("fixedpoint") for name in names))

    call(counted)
    return max(found)


@pytest.mark.parametrize("is_root", [False, True])
def test_few_frames_lie_between_a_call_and_f(is_root):
    """An error in f is read through these."""
    by = fp.root if is_root else fp.fixed_point

    def f(noted, z, a):
        noted()
        return a * z * z - 1.0 if is_root else 0.5 * z + a

    def in_numpy(noted):
        args = (2.0 * np.ones(3),)
        by(partial(f, noted), np.ones(3), args, solver=fp.Anderson())

    def in_torch(noted):
        args = (torch.full((3,), 2.0, requires_grad=True),)
        by(partial(f, noted), torch.ones(3), args, solver=fp.Anderson())

    with kernels.disabled():
        assert _frames_of_ours(in_numpy) <= 8
        assert _frames_of_ours(in_torch) <= 12


@pytest.mark.parametrize(
    ("solver", "most"),
    [(fp.Picard(), 280), (fp.Anderson(), 340), (fp.Broyden(), 470)],
)
def test_few_calls_make_a_step(python_calls, solver, most):
    """Beside those of f; a count that grows is time that everybody spends."""
    slopes, z0 = np.linspace(0.1, 0.9, 300), np.zeros(300)

    def run(steps):
        settings = {"rtol": 0.0, "max_steps": steps, "on_failure": "return"}
        fp.fixed_point(lambda z: slopes * z + 1.0, z0, solver=solver, **settings)

    with kernels.disabled():
        run(1)
        none, some, more = (python_calls(partial(run, k)) for k in (0, 15, 25))
    assert (more - some) / 10 <= most
    assert none <= 740
