"""Maps that hold a loop of a number of turns that is not known: forward mode alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixedpoint as fp

TIGHT = {"rtol": 1e-12, "adjoint": fp.ImplicitAdjoint(rtol=1e-12)}


def halved_root(z, a):
    """√(2 + za)/2, by Heron's iteration."""
    goes_on = lambda y: jnp.max(jnp.abs(y * y - 2.0 - z * a)) > 1e-14
    turn = lambda y: 0.5 * (y + (2.0 + z * a) / y)
    return 0.5 * jax.lax.while_loop(goes_on, turn, jnp.ones_like(z))


def known(a):
    """The positive solution of 4z² = 2 + za, and its derivatives up to the second."""
    root = np.sqrt(a * a + 32.0)
    return (a + root) / 8, (1 + a / root) / 8, 4.0 / root**3


def as_root(f):
    return lambda z, a: z - f(z, a)


@pytest.mark.parametrize("is_root", [False, True])
def test_tangents_and_those_of_tangents(is_root):
    solve, f = (
        (fp.root, as_root(halved_root)) if is_root else (fp.fixed_point, halved_root)
    )
    value = lambda a: solve(f, jnp.ones(3), (a,), **TIGHT).value
    first = jax.jacfwd(value)
    found = jax.jit(lambda a: (value(a), first(a), jax.jacfwd(first)(a)))(0.3)
    for derivative, expected in zip(found, known(0.3), strict=True):
        np.testing.assert_allclose(derivative, expected, rtol=1e-9)


def test_a_loop_that_is_run_again_leaves_reverse_mode():
    """A constant that a loop makes, in a map whose values are not kept for reverse
    mode.
    """

    def f(z, a):
        count = jax.lax.while_loop(lambda n: n < 3.0 + 0.0 * a, lambda n: n + 1.0, 0.0)
        return jnp.cos(0.1 * jax.lax.stop_gradient(count) * z) + a

    def gradient(f):
        value = lambda a: fp.fixed_point(f, jnp.zeros(3), (a,), **TIGHT).value.sum()
        return jax.grad(value)(0.3)

    expected = gradient(lambda z, a: jnp.cos(0.3 * z) + a)
    np.testing.assert_allclose(gradient(jax.checkpoint(f)), expected, rtol=1e-9)


def test_reverse_mode_names_the_loop():
    value = lambda a: fp.fixed_point(halved_root, jnp.ones(3), (a,)).value.sum()
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(value)(0.3)
