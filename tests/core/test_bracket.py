"""Bracketed roots against closed forms, on every backend; what is not a root is not
called one.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import fixedpoint as fp
from fixedpoint_torch import HiddenTensorError

FIELDS = ("value", "status", "steps", "residual_norm")
EPS = np.finfo(np.float64).eps


def cube(x, a):
    return x**3 - a


# Roots.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_closed_forms(jit_case, dtype):
    """x³ = a, tan x = a, eˣ = a and x = a, each in its own entry."""
    xp = jit_case.xp
    a = np.array([5.0, 0.3, 7.0, -0.125], dtype)

    def function(x, a):
        return xp.stack([x[0] ** 3, xp.tan(x[1]), xp.exp(x[2]), x[3]]) - a

    lower, upper = np.array([0, 0, -1, -3], dtype), np.array([9, 1.5, 40, 8], dtype)
    sol = jit_case.bracketed(function, lower, upper, (a,))
    expected = np.array([np.cbrt(a[0]), np.arctan(a[1]), np.log(a[2]), a[3]])
    assert jit_case.statuses(sol) == ["CONVERGED"] * 4
    assert jit_case.to_numpy(sol.value).dtype == dtype
    np.testing.assert_allclose(
        jit_case.to_numpy(sol.value), expected, rtol=8 * float(np.finfo(dtype).eps)
    )


def test_a_number_a_row_and_a_table_of_brackets(compiled_case):
    for shape in [(), (3,), (2, 3), (2, 0)]:
        a = 1.0 + np.arange(float(math.prod(shape))).reshape(shape)
        sol = compiled_case.bracketed(cube, 0.0 * a, a + 1.0, (a,), on_failure="raise")
        assert all(getattr(sol, field).shape == shape for field in FIELDS)
        np.testing.assert_allclose(
            compiled_case.to_numpy(sol.value), np.cbrt(a), rtol=8 * EPS
        )


def test_the_residual_is_that_of_the_value(jit_case):
    a = np.array([2.0, 3.0, 700.0])
    sol = jit_case.bracketed(cube, 0.0 * a, a, (a,), max_steps=4)
    assert jit_case.statuses(sol) == ["MAX_STEPS"] * 3
    expected = np.abs(jit_case.to_numpy(cube(sol.value, jit_case.asarray(a))))
    np.testing.assert_allclose(
        jit_case.to_numpy(sol.residual_norm), expected, rtol=1e-12
    )


def test_ends_in_any_order_are_one_bracket(jit_case):
    a = np.array([2.0, 3.0])
    one = jit_case.bracketed(cube, 0.0 * a, a, (a,))
    other = jit_case.bracketed(cube, a, 0.0 * a, (a,))
    for sol in (one, other):
        np.testing.assert_allclose(
            jit_case.to_numpy(sol.value), np.cbrt(a), rtol=8 * EPS
        )


def test_an_end_that_is_a_root_takes_no_step(jit_case):
    a = np.array([0.0, 8.0, 0.0])
    sol = jit_case.bracketed(
        cube, np.array([0.0, 1.0, 0.0]), np.array([2.0, 2.0, 0.0]), (a,)
    )
    assert jit_case.statuses(sol) == ["CONVERGED"] * 3
    assert jit_case.to_numpy(sol.value).tolist() == [0.0, 2.0, 0.0]
    assert jit_case.to_numpy(sol.steps).tolist() == [0, 0, 0]
    assert int(sol.work.f) == 2


def test_ends_broadcast(xp_case):
    lower, upper = (
        xp_case.asarray(np.zeros((2, 1))),
        xp_case.asarray(np.array([3.0, 4.0, 5.0])),
    )
    a = xp_case.asarray(np.arange(1.0, 7.0).reshape(2, 3))
    for one, other in [(lower, upper), (upper, lower), (0.0, upper + 0 * lower)]:
        sol = fp.bracketed_root(cube, one, other, (a,))
        np.testing.assert_allclose(
            xp_case.to_numpy(sol.value), np.cbrt(xp_case.to_numpy(a)), rtol=8 * EPS
        )


def test_two_python_floats():
    sol = fp.bracketed_root(lambda x: x**2 - 2.0, 0.0, 2.0)
    assert isinstance(sol.value, float)
    assert float(sol.value) == pytest.approx(math.sqrt(2), rel=8 * EPS)


def test_the_ends_are_not_written_to(xp_case):
    lower, upper = xp_case.asarray(np.zeros(3)), xp_case.asarray(np.arange(1.0, 4.0))
    fp.bracketed_root(lambda x: x - 0.5, lower, upper)
    assert xp_case.to_numpy(lower).tolist() == [0.0] * 3
    assert xp_case.to_numpy(upper).tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "ends", [(0, 1), ([0], [1]), (np.array([0]), 1.0), (0.0, np.array(1))]
)
def test_whole_numbers_are_ends(ends):
    sol = fp.bracketed_root(lambda x: x - 0.3, *ends)
    np.testing.assert_allclose(sol.value, 0.3, rtol=8 * EPS)


def test_ends_take_the_shape_and_precision_of_the_function(jit_case):
    a = np.array([0.2, 0.6])
    sol = jit_case.bracketed(lambda x, a: x - a, np.float32(0.0), np.float32(1.0), (a,))
    np.testing.assert_allclose(jit_case.to_numpy(sol.value), a, rtol=8 * EPS)
    counted = jit_case.bracketed(
        lambda x, A: x - jit_case.xp.sum(A),
        np.zeros(2),
        np.ones(2),
        (0.1 * np.eye(3),),
    )
    np.testing.assert_allclose(
        jit_case.to_numpy(counted.value), [0.3, 0.3], rtol=8 * EPS
    )


# Ends that are not known.

BEYOND = {
    "far": (lambda xp, x: x - 1e20, 0.0, math.inf, 1e20),
    "near zero": (lambda xp, x: x - 1e-20, 0.0, math.inf, 1e-20),
    "to the left": (lambda xp, x: x + 7e5, -math.inf, 3.0, -7e5),
    "both ways": (lambda xp, x: xp.exp(x) - 1e10, -math.inf, math.inf, math.log(1e10)),
    "slow": (lambda xp, x: xp.log(x) - 200.0, 1.0, math.inf, math.exp(200.0)),
    "flat": (lambda xp, x: xp.tanh(x - 3e5), math.inf, 0.0, 3e5),
    "undefined farther out": (
        lambda xp, x: xp.sqrt(40.0 - x) - 1.0,
        0.0,
        math.inf,
        39.0,
    ),
}


@pytest.mark.parametrize("name", list(BEYOND))
def test_an_infinite_end_is_searched_for(jit_case, name):
    F, lower, upper, root = BEYOND[name]
    sol = jit_case.bracketed(
        lambda x: F(jit_case.xp, x), np.array(lower), np.array(upper)
    )
    assert jit_case.statuses(sol) == ["CONVERGED"]
    assert float(sol.value) == pytest.approx(root, rel=1e-13)
    assert int(sol.steps) <= 60


def test_a_bad_bracket_is_expanded_if_asked(jit_case):
    lower, upper = np.array([1.0, 4.0, -2.0, 5.0]), np.array([2.0, 5.0, 3.0, 6.0])
    a = np.array([27.0, 27.0, 1.0, -1e9])
    plain = jit_case.bracketed(cube, lower, upper, (a,))
    assert jit_case.statuses(plain) == [
        "NO_BRACKET",
        "NO_BRACKET",
        "CONVERGED",
        "NO_BRACKET",
    ]
    assert np.isinf(jit_case.to_numpy(plain.error)[0])
    sol = jit_case.bracketed(cube, lower, upper, (a,), expand=True)
    np.testing.assert_allclose(jit_case.to_numpy(sol.value), np.cbrt(a), rtol=8 * EPS)


def test_no_bracket_is_found_where_there_is_none(jit_case):
    for sides in (
        {"upper": np.array(math.inf)},
        {"upper": np.array(1.0), "expand": True},
    ):
        sol = jit_case.bracketed(lambda x: x**2 + 1.0, np.array(-3.0), **sides)
        assert jit_case.statuses(sol) == ["NO_BRACKET"]


# What is watched, and what is told.


def test_tolerances_for_each_entry(jit_case):
    a, xtol = np.array([0.2, 0.6, 0.7]), np.array([1e-2, 1e-6, 0.0])
    sol = jit_case.bracketed(
        cube,
        0.0 * a,
        1.0 + 0.0 * a,
        (a,),
        xtol=jit_case.asarray(xtol),
        rtol=0.0,
    )
    error, steps = (jit_case.to_numpy(x) for x in (sol.error, sol.steps))
    assert np.all(np.abs(jit_case.to_numpy(sol.value) - np.cbrt(a)) <= error + 4 * EPS)
    assert np.all(error <= 2 * xtol + 4 * EPS)
    assert steps[0] < steps[1] < steps[2]
    atol = jit_case.asarray(np.array([1e-1, 1e-8, 0.0]))
    sol = jit_case.bracketed(cube, 0.0 * a, 1.0 + 0.0 * a, (a,), atol=atol)
    norm = jit_case.to_numpy(sol.residual_norm)
    assert np.all(norm <= [0.1, 1e-8, EPS])


def test_the_last_bracket_holds_the_root(jit_case):
    a = np.array([0.2, 0.6, 5.0])
    sol = jit_case.bracketed(cube, 3.0 + 0.0 * a, 0.0 * a, (a,), max_steps=5)
    lower, upper, error = (jit_case.to_numpy(x) for x in (*sol.bracket, sol.error))
    assert np.all((lower <= np.cbrt(a)) & (np.cbrt(a) <= upper))
    np.testing.assert_allclose(error, upper - lower, rtol=1e-12)


def test_the_trace_and_the_callback_see_every_step(xp_case):
    seen = []
    sol = fp.bracketed_root(
        lambda x: x**3 - 2.0,
        xp_case.asarray(np.zeros(2)),
        3.0,
        record=True,
        callback=lambda step, x, size: seen.append((step, xp_case.to_numpy(size)[0])),
    )
    steps = int(sol.steps[0])
    assert [step for step, _ in seen] == list(range(1, steps + 1))
    norms = xp_case.to_numpy(sol.trace.residual_norm)[0]
    np.testing.assert_array_equal(norms[1:], [size for _, size in seen])
    assert xp_case.to_numpy(sol.trace.evaluations)[0, steps] == sol.work.f == steps + 2


def test_a_search_can_be_ended(xp_case):
    def ended(**settings):
        start = xp_case.asarray(np.zeros(1))
        sol = fp.bracketed_root(
            lambda x: x - 0.3, start, 1.0, on_failure="return", **settings
        )
        return fp.Status(int(sol.status[0])).name, int(sol.work.f)

    assert ended(callback=lambda step, x, size: True, rtol=0.0) == ("STOPPED", 3)
    F = lambda x: x**9 - 0.3
    sol = fp.bracketed_root(
        F,
        xp_case.asarray(np.zeros(1)),
        1.0,
        budget=fp.Budget(evaluations=5),
        on_failure="return",
    )
    assert (fp.Status(int(sol.status[0])).name, int(sol.work.f)) == ("OUT_OF_BUDGET", 5)


def test_what_is_returned_besides_is_that_of_the_root(jit_case):
    def F(x, a):
        return x**3 - a, {"square": x * x}

    a = np.array([2.0, 3.0])
    call = lambda a: fp.bracketed_root(F, 0.0 * a, 3.0, (a,), has_aux=True).aux[
        "square"
    ]
    run = jax.jit(call) if jit_case.name == "jax-jit" else call
    square = jit_case.to_numpy(run(jit_case.asarray(a)))
    np.testing.assert_allclose(square, np.cbrt(a) ** 2, rtol=16 * EPS)


# What it costs.

NASTY = {
    "flat cube": (lambda x: x**3, -1, 2, 0),
    "flat cube off center": (lambda x: x**3, -1e-3, 1e6, 0),
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
    sol = numpy_case.bracketed(F, np.array(float(lower)), np.array(float(upper)))
    assert numpy_case.statuses(sol) == ["CONVERGED"]
    assert int(sol.steps) <= 60
    tolerance = 16 * EPS * max(1, abs(math.log(abs(root) or 1)))
    assert float(sol.value) == pytest.approx(root, rel=tolerance, abs=0)


def test_a_smooth_function_takes_few_steps(jit_case):
    a = np.linspace(1.0, 50.0, 40)
    sol = jit_case.bracketed(cube, 0.0 * a, 0.0 * a + 10.0, (a,))
    assert jit_case.to_numpy(sol.steps).max() <= 12


def test_a_step_is_one_evaluation(xp_case, counted):
    F = counted(cube)
    a = np.array([2.0, 1.0, 30.0])
    sol = xp_case.bracketed(F, np.array([0.0, 1.0, 0.0]), a + 1.0, (a,))
    assert F.calls == int(sol.work.f) == 2 + xp_case.to_numpy(sol.steps).max()
    assert xp_case.to_numpy(sol.steps)[1] == 0


# What is no root.


def step(x):
    return np.where(x < 0.3, -1.0, 1.0)


VERDICTS = {
    "same sign": (lambda x: x**2 + 1.0, -1, 2, "NO_BRACKET"),
    "no width": (lambda x: x - 0.3, 1, 1, "NO_BRACKET"),
    "jump": (step, -1, 2, "STALLED"),
    "jump on a slope": (lambda x: 1e3 * (x - 0.3) + step(x), -1, 2, "STALLED"),
    "uneven jump": (lambda x: np.where(x < 0.3, -1.0, 0.01), -1, 2, "STALLED"),
    "jump among huge values": (lambda x: step(x) * np.exp(x), -1, 700, "STALLED"),
    "jump among infinite values": (
        lambda x: step(x) + np.sinh(x),
        -900,
        800,
        "STALLED",
    ),
    "pole": (lambda x: 1 / (x - 0.3), -1, 2, "DIVERGED"),
    "pole at zero": (lambda x: 1 / x, -1, 2, "DIVERGED"),
    "infinite on both sides": (lambda x: step(x) * np.inf, -1, 2, "DIVERGED"),
    "pole on one side": (
        lambda x: np.where(x < 0.3, -1.0, 1 / (x - 0.3)),
        -1,
        2,
        "STALLED",
    ),
    "root on one side": (
        lambda x: np.where(x < 0.3, -1.0, x - 0.3),
        -1,
        2,
        "CONVERGED",
    ),
    "NaN at an end": (np.log, -1, 2, "NON_FINITE"),
    "NaN at a trial": (
        lambda x: x - 0.3 + 0 * np.sqrt(np.abs(x - 0.4) - 0.2),
        -1,
        2,
        "NON_FINITE",
    ),
    "an end is NaN": (lambda x: x, -1, np.nan, "NON_FINITE"),
    "root beside NaN": (np.log, -1, 1, "CONVERGED"),
}


@pytest.mark.parametrize("name", list(VERDICTS))
def test_what_is_no_root_is_told_by_its_status(numpy_case, name):
    F, lower, upper, expected = VERDICTS[name]
    sol = numpy_case.bracketed(F, np.array(float(lower)), np.array(float(upper)))
    assert numpy_case.statuses(sol) == [expected]
    assert int(sol.steps) <= 80


def test_verdicts_on_every_backend(jit_case):
    """A root, a jump, a pole, no bracket, NaN in F, and as an end."""
    xp = jit_case.xp

    def function(x, kind):
        root, jump, pole = (
            x - 0.3,
            xp.where(x < 0.3, -1 + 0 * x, 1 + 0 * x),
            1 / (x - 0.3),
        )
        value = xp.where(kind == 1, jump, xp.where(kind == 2, pole, root))
        return xp.where(kind == 3, x**2 + 1.0, xp.where(kind == 4, x + math.nan, value))

    kind = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 0.0])
    upper = np.array([2.0, 2.0, 2.0, 2.0, 2.0, math.nan])
    sol = jit_case.bracketed(function, 0 * kind - 1.0, upper, (kind,))
    expected = [
        "CONVERGED",
        "STALLED",
        "DIVERGED",
        "NO_BRACKET",
        "NON_FINITE",
        "NON_FINITE",
    ]
    assert jit_case.statuses(sol) == expected


def test_an_undefined_trial_is_not_finite(xp_case):
    def function(x):
        if bool(xp_case.xp.any(x == 0.5)):
            raise fp.DomainError("not here")
        return x - 0.3

    sol = xp_case.bracketed(function, np.array([-1.0]), np.array([2.0]))
    assert xp_case.statuses(sol) == ["NON_FINITE"]
    assert float(sol.value[0]) == -1.0
    assert float(sol.residual_norm[0]) == pytest.approx(1.3)


knots = st.lists(
    st.floats(-1e3, 1e3, allow_subnormal=False), min_size=3, max_size=6
).map(np.array)


@given(y=knots, jumps=knots, ends=st.tuples(*[st.floats(-1e4, 1e4)] * 2))
def test_convergence_is_certified_by_a_change_of_sign(numpy_case, y, jumps, ends):
    """Whatever F is, jumps and all: signs differ at the ends, and close to the value or
    F = 0.
    """

    def function(x):
        smooth = np.interp(x, np.linspace(-1e4, 1e4, y.size), y)
        return smooth + jumps[(np.abs(x) % jumps.size).astype(int)]

    sol = numpy_case.bracketed(function, np.array(ends[0]), np.array(ends[1]))
    signs = np.sign(function(np.array(ends)))
    if signs[0] * signs[1] > 0:
        assert numpy_case.statuses(sol) == ["NO_BRACKET"]
    if bool(sol.converged) and float(sol.residual_norm) > 0:
        x, width = float(sol.value), 9 * EPS * abs(float(sol.value)) + 1e-300
        near = function(np.array([x - width, x, x + width]))
        assert near.min() < 0 < near.max()
        assert min(ends) <= x <= max(ends)


@given(slope=st.floats(-100, 100), root=st.floats(-0.9, 0.9), jump=st.floats(-7, 7))
def test_a_jump_is_never_called_a_root(numpy_case, slope, root, jump):
    """Unless it is smaller than √eps of what F is at the ends."""
    F = lambda x: 10**slope * (x - root + np.where(x < root, -(10**jump), 10**jump))
    sol = numpy_case.bracketed(F, np.array(-1.0), np.array(1.0))
    assert numpy_case.statuses(sol) == ["STALLED"]


roots = st.floats(1e-3, 0.9).flatmap(lambda x: st.sampled_from([x, -x]))


@given(slope=st.floats(-100, 100), root=roots, power=st.sampled_from([1 / 3, 1, 3]))
def test_a_root_is_always_called_one(numpy_case, slope, root, power):
    F = lambda x: 10.0**slope * np.sign(x - root) * np.abs(x - root) ** power
    sol = numpy_case.bracketed(F, np.array(-1.0), np.array(1.0))
    assert numpy_case.statuses(sol) == ["CONVERGED"]
    assert float(sol.value) == pytest.approx(root, rel=10 * EPS, abs=1e-100)


# Tolerances.


@pytest.mark.parametrize(
    "settings", [{"xtol": 1e-3}, {"rtol": 1e-3}, {"rtol": 0.0}, {"atol": 1e-3}]
)
def test_tolerances(jit_case, settings):
    a = np.array([2.0, 3.0, 30.0])
    root = np.cbrt(a)
    sol = jit_case.bracketed(cube, 0.0 * a, a, (a,), **settings)
    assert jit_case.statuses(sol) == ["CONVERGED"] * 3
    error = np.abs(jit_case.to_numpy(sol.value) - root)
    width = {"rtol": 4 * EPS, "xtol": 0.0} | settings
    allowed = 2 * (width["xtol"] + max(width["rtol"], 2 * EPS) * root)
    assert (error <= np.maximum(allowed, settings.get("atol", 0.0))).all()


def test_a_wide_bracket_ends_only_where_the_function_fell(numpy_case):
    """At the tolerance asked for, a steep root and a jump look the same; further on
    they do not.
    """
    settings = {"xtol": 1e-2}
    steep = numpy_case.bracketed(
        lambda x: np.tanh(1e5 * (x - 0.3)),
        np.array(-1.0),
        np.array(2.0),
        **settings,
    )
    jump = numpy_case.bracketed(step, np.array(-1.0), np.array(2.0), **settings)
    assert numpy_case.statuses(steep) == ["CONVERGED"]
    assert float(steep.residual_norm) < 0.5
    assert numpy_case.statuses(jump) == ["STALLED"]


# Each entry by itself.

GOOD, FLAT, JUMP, NOWHERE, NAN, SOLVED = range(6)


def of_kind(xp):
    def function(x, kind):
        value = xp.where(kind == FLAT, (x - 0.3) ** 9, x * x * x - 0.2)
        value = xp.where(kind == JUMP, xp.where(x < 0.3, -1 + 0 * x, 1 + 0 * x), value)
        value = xp.where(kind == NOWHERE, 1 + x * x, value)
        value = xp.where(kind == NAN, xp.where(x > 0, x + math.nan, x - 5), value)
        return xp.where(kind == SOLVED, x + 1.0, value)

    return function


def assert_same(case, batch, index, alone):
    for field in FIELDS:
        one = case.to_numpy(getattr(batch, field))[index]
        np.testing.assert_array_equal(
            one, case.to_numpy(getattr(alone, field))[0], field
        )


@settings(max_examples=5)
@given(kinds=st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_every_entry_is_as_if_alone(eager_case, kinds):
    kind = np.array(kinds, float)
    F = of_kind(eager_case.xp)
    batch = eager_case.bracketed(F, 0 * kind - 1.0, 0 * kind + 2.0, (kind,))
    for index in range(4):
        one = kind[index : index + 1]
        assert_same(
            eager_case,
            batch,
            index,
            eager_case.bracketed(F, 0 * one - 1.0, 0 * one + 2.0, (one,)),
        )


def test_backends_agree(jit_case, numpy_case):
    kind = np.array([GOOD, FLAT, JUMP, NOWHERE, NAN, SOLVED], float)
    one, other = (
        case.bracketed(of_kind(case.xp), 0 * kind - 1.0, 0 * kind + 2.0, (kind,))
        for case in (jit_case, numpy_case)
    )
    np.testing.assert_array_equal(jit_case.to_numpy(one.status), other.status)
    np.testing.assert_allclose(jit_case.to_numpy(one.value), other.value, rtol=8 * EPS)


@pytest.mark.parametrize("exponent", [-600, -30, 30, 600])
def test_scaling_the_function_scales_its_residual_alone(xp_case, exponent):
    a = np.array([0.2, 0.7, 1.0])
    scaled = lambda x, a: (x * x * x - a) * 2.0**exponent
    one = xp_case.bracketed(lambda x, a: x * x * x - a, 0 * a - 1.0, 0 * a + 2.0, (a,))
    other = xp_case.bracketed(scaled, 0 * a - 1.0, 0 * a + 2.0, (a,))
    for field in ("value", "status", "steps"):
        first, second = (xp_case.to_numpy(getattr(sol, field)) for sol in (one, other))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("exponent", [-200, -30, 30, 200])
def test_scaling_the_brackets_scales_the_roots(xp_case, exponent):
    scale, a = 2.0**exponent, np.array([0.2, 0.7, 1.0])
    one = xp_case.bracketed(lambda x, a: x * x * x - a, 0 * a - 1.0, 0 * a + 2.0, (a,))
    scaled = lambda x, a: (x / scale) * (x / scale) * (x / scale) - a
    other = xp_case.bracketed(scaled, 0 * a - scale, 0 * a + 2.0 * scale, (a,))
    np.testing.assert_array_equal(
        scale * xp_case.to_numpy(one.value), xp_case.to_numpy(other.value)
    )


# What a failure does.


def test_policies(xp_case):
    a = xp_case.asarray(np.array([-1.0, 2.0]))
    F = lambda x, a: x**2 - a
    call = lambda policy: fp.bracketed_root(
        F, 0.0 * a, 0.0 * a + 3.0, (a,), on_failure=policy
    )
    with pytest.raises(
        fp.ConvergenceError, match=r"bracketed_root failed: .*same sign at both ends"
    ):
        call("raise")
    with pytest.warns(fp.ConvergenceWarning, match="same sign"):
        call("warn")
    assert np.isnan(xp_case.to_numpy(call("nan").value)).tolist() == [True, False]
    assert np.isnan(xp_case.to_numpy(call("return").value)).tolist() == [False, False]


def test_a_trace_fills_what_failed_with_nan():
    a = jnp.asarray([-1.0, 2.0])
    call = jax.jit(
        lambda a: fp.bracketed_root(lambda x, a: x**2 - a, 0.0 * a, 3.0, (a,)).value
    )
    assert np.isnan(call(a)).tolist() == [True, False]


def test_the_message_names_the_method():
    sol = fp.bracketed_root(lambda x: x**2 - 2.0, 0.0, 2.0)
    assert "message: converged (Chandrupatla); largest error " in repr(sol)


def test_linearization(xp_case):
    a = xp_case.asarray(np.array([1.0, 8.0]))
    sol = fp.bracketed_root(lambda x, a: 1e-30 * (x**3 - a), 0.0 * a, 5.0, (a,))
    product = sol.linearize()(xp_case.asarray(np.array([1.0, -2.0])))
    np.testing.assert_allclose(xp_case.to_numpy(product), [3e-30, -24e-30], rtol=1e-5)


ONE = np.array([0.0, 0.0])


@pytest.mark.parametrize(
    ("error", "match", "lower", "upper", "settings"),
    [
        (
            TypeError,
            "lower must be a floating-point array, got builtins.str",
            "0",
            1,
            {},
        ),
        (TypeError, "real floating-point dtype, got complex128", ONE + 0j, 1.0, {}),
        (
            TypeError,
            "all leaves must come from one array library",
            ONE,
            torch.ones(2),
            {},
        ),
        (
            ValueError,
            r"must broadcast .* shapes \(2,\) and \(3,\)",
            ONE,
            np.ones(3),
            {},
        ),
        (ValueError, "rtol must be finite and not negative", ONE, 1.0, {"rtol": -1.0}),
        (
            ValueError,
            "xtol must be finite and not negative",
            ONE,
            1.0,
            {"xtol": math.inf},
        ),
        (
            ValueError,
            "atol must be finite and not negative",
            ONE,
            1.0,
            {"atol": math.nan},
        ),
        (
            ValueError,
            r"xtol must broadcast to the shape \(2,\)",
            ONE,
            1.0,
            {"xtol": np.ones(3)},
        ),
        (ValueError, "max_steps must be an integer", ONE, 1.0, {"max_steps": -1}),
        (ValueError, "on_failure must be one of", ONE, 1.0, {"on_failure": "stop"}),
        (TypeError, "adjoint must be an adjoint", ONE, 1.0, {"adjoint": fp.Picard()}),
        (
            TypeError,
            r"args must be a tuple, got list: write args=\(x,\)",
            ONE,
            1.0,
            {"args": []},
        ),
    ],
)
def test_bad_input(error, match, lower, upper, settings):
    with pytest.raises(error, match=match):
        fp.bracketed_root(lambda x: x - 0.5, lower, upper, **settings)


@pytest.mark.parametrize(
    ("F", "error", "match"),
    [
        (
            lambda x: x[:1],
            ValueError,
            r"keep the shape of lower: expected \(2,\), got \(1,\)",
        ),
        (lambda x: x.astype(np.float32), TypeError, "keep the dtype of lower"),
        (
            lambda x: torch.tensor(x.tolist()),
            TypeError,
            "must return an array for lower",
        ),
        (lambda x: [x], ValueError, "must return a container like lower"),
        (3.0, TypeError, "F must be callable, got float"),
        (fp.operators.Map(np.cos), TypeError, "an operator has fixed points"),
    ],
)
def test_a_bad_function(F, error, match):
    with pytest.raises(error, match=match):
        fp.bracketed_root(F, ONE, 1.0)


def test_no_steps(jit_case):
    sol = jit_case.bracketed(
        lambda x: x - 0.3, np.array([0.0]), np.array([1.0]), max_steps=0
    )
    assert jit_case.statuses(sol) == ["MAX_STEPS"]
    assert int(sol.work.f) == 2


# Derivatives on Torch.


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def cube_root(a, lower=0.0, upper=10.0, **settings):
    ends = torch.full_like(a, lower), torch.full_like(a, upper)
    return fp.bracketed_root(cube, *ends, (a,), **settings).value


def tracked(*tensors):
    return tuple(tensor.clone().requires_grad_() for tensor in tensors)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def wavy_root(a, b):
    F = lambda x, a, b: x + a * torch.sin(x) - b
    return fp.bracketed_root(F, torch.full_like(b, -9.0), 9.0, (a, b)).value


def test_gradcheck():
    inputs = tracked(double(0.5, -0.3), double(1.0, 2.0))
    assert gradcheck(wavy_root, inputs, check_forward_ad=True)
    assert gradgradcheck(wavy_root, inputs)


def test_derivatives_of_any_order():
    (a,) = tracked(double(1.0, 8.0, 27.0))
    derivative, factor = cube_root(a), 1.0
    for order in range(3):
        (derivative,) = torch.autograd.grad(derivative.sum(), a, create_graph=True)
        factor *= 1 / 3 - order
        close(derivative, factor * a ** (1 / 3 - order - 1))


@pytest.mark.parametrize("slope", [1e-3, 1e3, -5.0, 1e-30, 1e30, 1e-200])
def test_the_derivative_does_not_depend_on_the_scale_of_the_function(slope):
    (a,) = tracked(double(1.0, 8.0))
    F = lambda x, a: slope * (x**3 - a)
    sol = fp.bracketed_root(F, torch.zeros_like(a), 10.0, (a,))
    (found,) = torch.autograd.grad(sol.value.sum(), a)
    close(found, 1 / (3 * sol.value.detach() ** 2))
    assert sol.backward.products == 1
    assert sol.backward.status.tolist() == [1, 1]


def test_no_derivative_flows_to_the_ends():
    lower, upper, a = tracked(double(0.0, 0.0), double(5.0, 6.0), double(1.0, 8.0))
    value = fp.bracketed_root(cube, lower, upper, (a,)).value
    found = torch.autograd.grad(value.sum(), (lower, upper, a), allow_unused=True)
    assert all(end is None or not end.any() for end in found[:2])
    close(found[2], 1 / (3 * value.detach() ** 2))


@pytest.mark.parametrize(
    "in_dims",
    [(0, 0, 0), (None, 0, None), (0, None, None), (None, None, 0), (None, 1, 0)],
)
def test_vmap_over_any_of_the_inputs(in_dims):
    full = [double(0.0, -1.0, -2.0), double(5.0, 6.0, 7.0), double(1.0, 8.0, 27.0)]
    full = [tensor[:, None] + double(0.0, 0.5) for tensor in full]
    inputs = [
        t.movedim(0, d) if d is not None else t[0]
        for t, d in zip(full, in_dims, strict=True)
    ]
    root = lambda lower, upper, a: fp.bracketed_root(cube, lower, upper, (a,)).value
    mapped = torch.func.vmap(root, in_dims=in_dims)(*inputs)
    single = [
        root(
            *[
                t.select(d, i) if d is not None else t
                for t, d in zip(inputs, in_dims, strict=True)
            ]
        )
        for i in range(3)
    ]
    close(mapped, torch.stack(single))


def test_vmap_sees_the_function_itself():
    """Not x − (x − F), in which a small F is rounded to nothing."""
    scales = double(1.0, 1e-20, 1e-200)
    root = lambda s: (
        fp.bracketed_root(
            lambda x, s: s * (x**3 - 2), torch.zeros_like(s), 2.0, (s,)
        ).value
    )
    close(torch.func.vmap(root)(scales), torch.full_like(scales, 2 ** (1 / 3)))


def test_transforms():
    a = double(1.0, 8.0, 27.0)
    expected = 1 / (3 * a ** (2 / 3))
    close(torch.func.vmap(torch.func.grad(cube_root))(a), expected)
    close(torch.func.jacrev(cube_root)(a), torch.diag(expected))
    close(torch.func.jacfwd(cube_root)(a), torch.diag(expected))
    close(torch.func.jvp(cube_root, (a,), (a,))[1], expected * a)
    hessian = torch.func.jacfwd(torch.func.jacrev(lambda a: cube_root(a).sum()))(a)
    close(hessian, torch.diag(-2 / 9 * a ** (-5 / 3)))


def test_a_flat_root_has_no_derivative():
    F = lambda x, a: (x - a) ** 3
    (a,) = tracked(double(0.0, 0.25))

    def value(**settings):
        return fp.bracketed_root(
            F, torch.full_like(a, -1.0), 1.0, (a,), **settings
        ).value

    with pytest.raises(fp.ConvergenceError, match="a linear solve failed"):
        value().sum().backward()
    nan = value(adjoint=fp.ImplicitAdjoint(on_failure="nan"))
    assert torch.autograd.grad(nan.sum(), a)[0].isnan().all()


def test_an_entry_that_failed_leaves_the_gradients_of_the_others():
    (a,) = tracked(double(-1.0, 2.0))
    F = lambda x, a: x**2 - a
    sol = fp.bracketed_root(F, torch.zeros_like(a), 3.0, (a,), on_failure="return")
    (found,) = torch.autograd.grad(sol.value[1], a)
    close(found, double(0.0, 1 / (2 * math.sqrt(2))))


def test_parameters_of_a_module():
    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(double(2.0, 3.0))

        def forward(self, x, power):
            return x**power - self.a

    module = Shift()
    value = fp.bracketed_root(module, double(0.0, 0.0), 3.0, (2,)).value
    value.sum().backward()
    close(module.a.grad, 1 / (2 * module.a.detach().sqrt()))


def test_a_hidden_tensor_is_found():
    (a,) = tracked(double(2.0))
    with pytest.raises(HiddenTensorError):
        fp.bracketed_root(lambda x: x**3 - a, double(0.0), 3.0)


# Transforms of JAX.


def test_jax_maps():
    a = jnp.asarray([1.0, 8.0, 27.0])
    root = lambda a, upper: (
        fp.bracketed_root(cube, jnp.zeros_like(a), upper, (a,)).value
    )
    for call in (jax.vmap(root), jax.jit(jax.vmap(root))):
        np.testing.assert_allclose(call(a, a + 1.0), [1.0, 2.0, 3.0], rtol=8 * EPS)
    rows = jax.vmap(root, in_axes=(0, None))(a, jnp.asarray(30.0))
    np.testing.assert_allclose(rows, [1.0, 2.0, 3.0], rtol=8 * EPS)


def test_ends_in_tuples_are_those_in_lists():
    sol = fp.bracketed_root(lambda x: x**2 - np.array([2.0, 9.0]), (0, 1), (2.0, 4.0))
    assert np.allclose(sol.value, [np.sqrt(2.0), 3.0])
