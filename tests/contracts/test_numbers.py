"""A number to start from gives a number back: what ``Solution[float]`` says of it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fixedpoint as fp


@pytest.mark.parametrize("start", [1.0, 1, np.float64(1.0), np.int64(1)])
@pytest.mark.parametrize("solver", [None, *("picard", "anderson", "newton")])
def test_a_fixed_point_from_a_number_is_a_float(start, solver):
    value = fp.fixed_point(np.cos, start, solver=solver).value
    assert isinstance(value, float)
    assert math.isclose(value, 0.7390851332151607, rel_tol=1e-5)
    assert {value: f"{value:.3f}"} == {value: "0.739"}  # hashable, and formatted


def test_a_root_from_a_number_is_one():
    assert isinstance(fp.root(lambda x: x**3 - 8.0, 3.0).value, float)
    assert isinstance(fp.root(lambda x: x**2 + 1.0, 1.0 + 1.0j).value, complex)


def test_the_precision_is_that_of_the_number():
    value = fp.fixed_point(np.cos, np.float32(1.0)).value
    assert type(value) is np.float32


def test_an_array_without_axes_is_no_number():
    value = fp.fixed_point(lambda z: np.asarray(np.cos(z)), np.array(1.0)).value
    assert type(value) is np.ndarray


def test_numbers_in_containers_are_numbers_beside_arrays():
    start = {"a": 0.0, "b": np.zeros(2), "c": (0.0, 0.0)}

    def f(z):
        a, (c, d) = z["a"], z["c"]
        return {"a": 0.5 * a + 1.0, "b": 0.5 * z["b"] + a, "c": (0.5 * c, 0.2 * d)}

    value = fp.fixed_point(f, start).value
    assert type(value["b"]) is np.ndarray
    assert all(isinstance(x, float) for x in (value["a"], *value["c"]))


@pytest.mark.parametrize("ends", [(0.0, 2.0), (0, 2), (-math.inf, math.inf)])
def test_a_root_between_numbers_is_one(ends):
    assert isinstance(fp.bracketed_root(lambda x: x - 1.25, *ends).value, float)


def test_a_root_is_an_array_where_an_end_or_an_argument_is():
    ends = np.zeros(2), 2.0
    assert fp.bracketed_root(lambda x: x - 1.0, *ends).value.shape == (2,)
    a = np.ones(2)
    found = fp.bracketed_root(lambda x, a: x - a, 0.0, 2.0, (a,))
    assert found.value.shape == (2,)


def test_products_with_the_derivative_are_numbers():
    sol = fp.fixed_point(np.cos, 1.0)
    assert isinstance(sol.linearize()(1.0), float)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("on_failure", ["return", "nan"])
def test_what_failed_is_a_number_as_well(on_failure):
    found = fp.fixed_point(lambda z: z + 1.0, 0.0, on_failure=on_failure)
    assert isinstance(found.value, float)


def test_each_step_has_a_number():
    steps = fp.steps(lambda z: 0.5 * z + 1.0, 0.0)
    assert isinstance(next(iter(steps)).value, float)


def test_what_comes_with_it_is_that_of_the_number():
    found = fp.fixed_point(lambda z: (0.5 * z + 1.0, z + 1.0), 0.0, has_aux=True)
    assert isinstance(found.value, float)
    assert math.isclose(found.aux, 3.0, rel_tol=1e-5)
