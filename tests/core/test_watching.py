"""Those who watch a solve: a logger, and a progress bar."""

import io
import logging
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp


def steep(z, a):
    """No contraction where a is large."""
    return a / (1.0 + z * z)


SLOPES = np.array([[0.5], [9.0], [8.0]])
FALLBACK = fp.Fallback(["picard", "newton"])


@pytest.fixture
def told(caplog):
    """What the logger was told until now, from a level on."""
    caplog.set_level(logging.DEBUG, logger="fixedpoint")

    def messages(least=logging.DEBUG):
        ours = (record for record in caplog.records if record.name == "fixedpoint")
        return [record.getMessage() for record in ours if record.levelno >= least]

    return messages


def test_a_method_that_leaves_samples_to_the_next_one_is_heard_of(eager_case, told):
    settings = {"solver": FALLBACK, "batch_ndim": 1}
    sol = eager_case.solve(steep, np.ones((3, 1)), (SLOPES,), **settings)
    assert np.asarray(sol.method).tolist() == [0, 1, 1]
    (left,) = told(logging.INFO)
    assert left == "Picard left 2 of 3 samples unsolved (STALLED): trying Newton"


@pytest.mark.parametrize("policy", ["return", "nan"])
def test_a_failure_is_heard_of_whatever_is_done_about_it(policy, told):
    sol = fp.fixed_point(lambda z: z + 1.0, 1.0, solver="newton", on_failure=policy)
    expected = [f"fixed_point by Newton: {sol.message}; {sol.work}"]
    assert told(logging.INFO) == expected


@pytest.mark.parametrize("solver", ["picard", "anderson"])
def test_success_is_a_detail_and_steps_are_none(solver, told):
    sol = fp.fixed_point(lambda z: 0.9 * z + 1.0, np.ones(3), solver=solver)
    assert int(sol.steps) > 1
    assert len(told()) == 1
    assert not told(logging.INFO)


def test_the_solve_of_a_derivative_is_heard_of_too(told):
    a = torch.tensor(0.5, requires_grad=True)
    f = lambda z, a: a * torch.cos(z)
    fp.fixed_point(f, torch.tensor(1.0), (a,)).value.backward()
    subjects = [message.partition(" by ")[0] for message in told()]
    assert subjects == ["fixed_point", "the adjoint solve"]


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transforms_of_torch_are_told_of_too(transform, told):
    f = lambda z, a: 0.5 * z + a
    value = lambda a: fp.fixed_point(f, torch.ones(()), (a,), solver="picard").value
    transform(value)(torch.ones(2 if transform is torch.func.vmap else ()))
    assert told()[0].startswith(
        "fixed_point by Picard: converged (Picard); largest err"
    )


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_a_failure_inside_of_a_transform_is_told_as_one(transform):
    f = lambda z, a: z + a
    value = lambda a: fp.fixed_point(f, torch.ones(()), (a,), solver="picard").value
    with pytest.raises(fp.ConvergenceError, match="fixed_point failed: stalled"):
        transform(value)(torch.ones(2 if transform is torch.func.vmap else ()))


@pytest.mark.slow
def test_forward_mode_of_jax_tells_nothing(told):
    f = lambda z, a: 0.5 * z + a
    value = lambda a: fp.fixed_point(f, jnp.ones(()), (a,), solver=fp.Picard()).value
    assert jax.jvp(value, (1.0,), (1.0,))[1] == pytest.approx(2.0)
    assert not [text for text in told() if text.startswith("fixed_point")]


def test_a_trace_tells_nothing(told):
    def value(a):
        f = lambda z, a: 0.5 * z + a
        return fp.fixed_point(f, jnp.asarray(1.0), (a,), solver=fp.Picard()).value

    jax.jit(value)(0.5)
    assert not told()


def shown(file):
    """The steps and the residual of the last picture of a bar."""
    last = file.getvalue().rstrip("\n").split("\r")[-1]
    steps, residual = re.fullmatch(
        r".*?(\d+) steps .*residual ([^]]*)\]\s*", last
    ).groups()
    return int(steps), residual


def test_a_bar_ends_with_the_last_step_and_the_largest_residual(eager_case):
    file, settings = io.StringIO(), {"solver": fp.Picard(), "batch_ndim": 1}
    with fp.Progress(file=file) as bar:
        start, args = np.ones((2, 1)), (SLOPES[:2] / 9.0,)
        sol = eager_case.solve(steep, start, args, callback=bar, **settings)
    residuals = eager_case.to_numpy(sol.residual_norm)
    assert shown(file) == (int(max(sol.steps)), f"{residuals.max():.1e}")
    assert file.getvalue().endswith("\n")


def test_a_bar_shows_arrays_of_jax():
    file = io.StringIO()
    with fp.Progress(file=file) as bar:
        bar(1, jnp.ones(2), jnp.asarray([0.5, 0.25]))
    assert shown(file) == (1, "5.0e-01")


def test_a_bar_begins_anew_with_another_solve():
    file = io.StringIO()
    with fp.Progress(file=file) as progress:
        fp.fixed_point(lambda z: 0.9 * z + 1.0, 1.0, solver="picard", callback=progress)
        sol = fp.fixed_point(np.cos, 1.0, solver="anderson", callback=progress)
    assert shown(file)[0] == int(sol.steps)


def test_a_bar_ends_its_line_where_f_raises():
    def broken(z):
        if z != 1.0:
            raise KeyError("weights")
        return 0.5 * z

    file = io.StringIO()
    with pytest.raises(KeyError, match="weights"), fp.Progress(file=file) as progress:
        fp.fixed_point(broken, 1.0, callback=progress)
    assert file.getvalue().endswith("\n")


def test_the_residual_is_read_only_to_be_drawn(monkeypatch):
    drawn = []
    draw = fp.Progress._write_residual
    monkeypatch.setattr(
        fp.Progress, "_write_residual", lambda bar: drawn.append(draw(bar))
    )
    with fp.Progress(file=io.StringIO(), mininterval=3600.0) as progress:
        sol = fp.fixed_point(
            lambda z: 0.9 * z + 1.0, 1.0, solver="picard", callback=progress
        )
    assert int(sol.steps) > 50
    assert len(drawn) == 1


def test_without_tqdm_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tqdm"):
        fp.Progress()
