"""What conjugate gradients remember of a solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixedpoint_jax
from fixedpoint.linear.conjugate_gradient import _written
from fixedpoint.numpy_backend import NumpyBackend
from fixedpoint.spaces import space_of


@pytest.mark.parametrize("new", [3.0, np.inf, np.nan])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("traced", [False, True])
def test_a_window_that_is_full_keeps_its_numbers(new, steps, traced):
    """Whatever comes after them, an overflow included."""
    numbers, new = np.array([[1.0, 2.0]]), np.array([new])
    expected = numbers.copy()
    if steps < 2:
        expected[:, steps] = new
    if traced:
        space = space_of(fixedpoint_jax.JaxBackend(), (jnp.zeros((1, 3)),), 1)
        write = jax.jit(lambda *given: _written(space, *given))
        found = write(jnp.asarray(numbers), steps, jnp.asarray(new))
    else:
        space = space_of(NumpyBackend(), (np.zeros((1, 3)),), 1)
        found = _written(space, numbers, steps, new)
    np.testing.assert_array_equal(found, expected)
