"""Bracketed roots against closed forms, on every backend; what is not a root is not called one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fixedpoint as fp
from fixedpoint_torch import HiddenTensorError

FIELDS = ("value", "status", "steps", "residual_norm")
EPS = np.finfo(np.float64).eps


def solve(case, F, lower, upper, args=(), **settings):
    """Solve on NumPy input, under jit if the case says so; failures are returned."""
    settings = {"on_failure": "return"} | settings

    def call(lower, upper, args):
        return fp.bracketed_root(F, lower, upper, args, **settings)

    run = jax.jit(call) if case.name == "jax-jit" else call
    with np.errstate(all="ignore"):
        return run(case.tree(lower), case.tree(upper), case.tree(args))


def statuses(case, sol):
    return [fp.Status(int(status)).name for status in case.to_numpy(sol.status).ravel()]


def cube(x, a):
    return x**3 - a


# Roots.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_closed_forms(jit_case, dtype):
    """x³ = a, tan x = a, eˣ = a and x = a, each in its own entry."""
    xp = jit_case.xp
    a = np.array([5.0, 0.3, 7.0, -0.125], dtype)

    def F(x, a):
        return xp.stack([x[0] ** 3, xp.tan(x[1]), xp.exp(x[2]), x[3]]) - a

    lower, upper = np.array([0, 0, -1, -3], dtype), np.array([9, 1.5, 40, 8], dtype)
    sol = solve(jit_case, F, lower, upper, (a,))
    expected = np.array([np.cbrt(a[0]), np.arctan(a[1]), np.log(a[2]), a[3]])
    assert statuses(jit_case, sol) == ["CONVERGED"] * 4
    assert jit_case.to_numpy(sol.value).dtype == dtype
    np.testing.assert_allclose(
        jit_case.to_numpy(sol.value), expected, rtol=8 * float(np.finfo(dtype).eps)
    )


def test_a_number_a_row_and_a_table_of_brackets(jit_case):
    for shape in [(), (3,), (2, 3), (2, 0)]:
        a = 1.0 + np.arange(float(math.prod(shape))).reshape(shape)
        sol = solve(jit_case, cube, 0.0 * a, a + 1.0, (a,), on_failure="raise")
        assert all(getattr(sol, field).shape == shape for field in FIELDS)
        np.testing.assert_allclose(jit_case.to_numpy(sol.value), np.cbrt(a), rtol=8 * EPS)


def test_the_residual_is_that_of_the_value(jit_case):
    a = np.array([2.0, 3.0, 700.0])
    sol = solve(jit_case, cube, 0.0 * a, a, (a,), max_steps=4)
    assert statuses(jit_case, sol) == ["MAX_STEPS"] * 3
    expected = np.abs(jit_case.to_numpy(cube(sol.value, jit_case.asarray(a))))
    np.testing.assert_allclose(jit_case.to_numpy(sol.residual_norm), expected, rtol=1e-12)


def test_ends_in_any_order_are_one_bracket(jit_case):
    a = np.array([2.0, 3.0])
    one = solve(jit_case, cube, 0.0 * a, a, (a,))
    other = solve(jit_case, cube, a, 0.0 * a, (a,))
    for sol in (one, other):
        np.testing.assert_allclose(jit_case.to_numpy(sol.value), np.cbrt(a), rtol=8 * EPS)


def test_an_end_that_is_a_root_takes_no_step(jit_case):
    a = np.array([0.0, 8.0, 0.0])
    sol = solve(jit_case, cube, np.array([0.0, 1.0, 0.0]), np.array([2.0, 2.0, 0.0]), (a,))
    assert statuses(jit_case, sol) == ["CONVERGED"] * 3
    assert jit_case.to_numpy(sol.value).tolist() == [0.0, 2.0, 0.0]
    assert jit_case.to_numpy(sol.steps).tolist() == [0, 0, 0]
    assert int(sol.work.f) == 2


def test_ends_broadcast(xp_case):
    lower, upper = xp_case.asarray(np.zeros((2, 1))), xp_case.asarray(np.array([3.0, 4.0, 5.0]))
    a = xp_case.asarray(np.arange(1.0, 7.0).reshape(2, 3))
    for one, other in [(lower, upper), (upper, lower), (0.0, upper + 0 * lower)]:
        sol = fp.bracketed_root(cube, one, other, (a,))
        np.testing.assert_allclose(
            xp_case.to_numpy(sol.value), np.cbrt(xp_case.to_numpy(a)), rtol=8 * EPS
        )


def test_two_python_floats():
    sol = fp.bracketed_root(lambda x: x**2 - 2.0, 0.0, 2.0)
    assert isinstance(sol.value, np.ndarray)
    assert float(sol.value) == pytest.approx(math.sqrt(2), rel=8 * EPS)


def test_the_ends_are_not_written_to(xp_case):
    lower, upper = xp_case.asarray(np.zeros(3)), xp_case.asarray(np.arange(1.0, 4.0))
    fp.bracketed_root(lambda x: x - 0.5, lower, upper)
    assert xp_case.to_numpy(lower).tolist() == [0.0] * 3
    assert xp_case.to_numpy(upper).tolist() == [1.0, 2.0, 3.0]


# What it costs.

NASTY = {
    "flat cube": (lambda x: x**3, -1, 2, 0),
    "flat cube off centre": (lambda x: x**3, -1e-3, 1e6, 0),
    "ninth power at zero": (lambda x: x**9, -1, 2, 0),
    "ninth power": (lambda x: (x - 1) ** 9, 0, 3, 1),
    "steep": (lambda x: np.tanh(50 * x), -1, 2, 0),
    "step-like": (lambda x: np.tanh(1e6 * (x - 0.3)), -1, 2, 0.3),
    "exponential": (lambda x: np.exp(x) - 1e6, -5, 50, np.log(1e6)),
    "overflowing": (lambda x: np.exp(x) - 1e6, -5, 5000, np.log(1e6)),
    "decaying": (lambda x: x * np.exp(-(x**2)), -1, 4, 0),
    "vertical": (lambda x: np.cbrt(x - 0.3), -1, 2, 0.3),
    "tiny root": (lambda x: x - 1e-20, -1, 2, 1e-20),
    "tiny flat root": (lambda x: x**3 - 1e-60, -1, 2, 1e-20),
    "logarithm": (lambda x: np.log(x) + 100, 1e-300, 1e300, np.exp(-100)),
    "reciprocal": (lambda x: 1 / x - 3, 1e-10, 1e10, 1 / 3),
    "small": (lambda x: 1e-200 * np.arctan(x - 3), -1e8, 1e10, 3),
}


@pytest.mark.parametrize("name", list(NASTY))
def test_no_function_takes_many_more_steps_than_a_number_has_bits(numpy_case, name):
    F, lower, upper, root = NASTY[name]
    sol = solve(numpy_case, F, np.array(float(lower)), np.array(float(upper)))
    assert statuses(numpy_case, sol) == ["CONVERGED"]
    assert int(sol.steps) <= 60
    tolerance = 16 * EPS * max(1, abs(math.log(abs(root) or 1)))
    assert float(sol.value) == pytest.approx(root, rel=tolerance, abs=0)


def test_a_smooth_function_takes_few_steps(jit_case):
    a = np.linspace(1.0, 50.0, 40)
    sol = solve(jit_case, cube, 0.0 * a, 0.0 * a + 10.0, (a,))
    assert jit_case.to_numpy(sol.steps).max() <= 12


def test_a_step_is_one_evaluation(xp_case, counted):
    F = counted(cube)
    a = np.array([2.0, 1.0, 30.0])
    sol = solve(xp_case, F, np.array([0.0, 1.0, 0.0]), a + 1.0, (a,))
    assert F.calls == int(sol.work.f) == 2 + xp_case.to_numpy(sol.steps).max()
    assert xp_case.to_numpy(sol.steps)[1] == 0


# What is no root.

VERDICTS = {
    "same sign": (lambda x: x**2 + 1.0, -1, 2, "NO_BRACKET"),
    "no width": (lambda x: x - 0.3, 1, 1, "NO_BRACKET"),
    "jump": (lambda x: np.sign(x - 0.3), -1, 2, "STALLED"),
    "jump on a slope": (lambda x: 1e3 * (x - 0.3) + np.sign(x - 0.3), -1, 2, "STALLED"),
    "uneven jump": (lambda x: np.where(x < 0.3, -1.0, 0.01), -1, 2, "STALLED"),
    "jump among huge values": (lambda x: np.sign(x - 0.3) * np.exp(x), -1, 700, "STALLED"),
    "jump among infinite values": (lambda x: np.sign(x - 0.3) + np.sinh(x), -900, 800, "CONVERGED"),
    "pole": (lambda x: 1 / (x - 0.3), -1, 2, "DIVERGED"),
    "pole at zero": (lambda x: 1 / x, -1, 2, "DIVERGED"),
    "infinite on both sides": (lambda x: np.sign(x - 0.3) * np.inf, -1, 2, "DIVERGED"),
    "pole on one side": (lambda x: np.where(x < 0.3, -1.0, 1 / (x - 0.3)), -1, 2, "STALLED"),
    "root on one side": (lambda x: np.where(x < 0.3, -1.0, x - 0.3), -1, 2, "CONVERGED"),
    "NaN at an end": (np.log, -1, 2, "NON_FINITE"),
    "NaN in between": (lambda x: np.where(x < 1.9, np.nan, 1.0) * x - 0.3, -1, 2, "NON_FINITE"),
    "NaN at a trial": (lambda x: x - 0.3 + 0 * np.sqrt(np.abs(x - 0.4) - 0.2), -1, 2, "NON_FINITE"),
    "an end is NaN": (lambda x: x, -1, np.nan, "NON_FINITE"),
    "root beside NaN": (np.log, -1, 1, "CONVERGED"),
}
