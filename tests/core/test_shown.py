"""Representations are short, whatever arrays there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
import fixedpoint_jax
import fixedpoint_torch
from fixedpoint.shown import brief
from fixedpoint_models import AugmentedDEQ


def solved():
    W = (0.01 * torch.ones(50, 50)).requires_grad_()
    f = lambda z, W: torch.tanh(W @ z + 1.0)
    sol = fp.fixed_point(f, torch.zeros(50), (W,), record=True, rtol=1e-6)
    sol.value.sum().backward()
    return sol


def layer():
    layer = fixedpoint_torch.DEQ(lambda z, x: torch.cos(z + x))
    layer(torch.ones(40, 3))
    return layer


def augmented():
    model = AugmentedDEQ(
        lambda z, x, w: 0.5 * z + x, lambda z, x, y, w: ((z - y) ** 2).sum(-1)
    )
    zero = torch.zeros(20, 30)
    return model.solve(zero, zero, params=None, y=zero + 1.0)


CELL = jax.tree_util.Partial(lambda w, z, *, b: w @ z + b, jnp.eye(50), b=jnp.ones(50))
REPRESENTED = {
    "solution": solved,
    "state": lambda: solved().state,
    "backward": lambda: solved().backward,
    "trace": lambda: fp.Trace(np.ones((40, 9)), np.ones((40, 9))),
    "statistics": lambda: layer().statistics,
    "augmented": augmented,
    "map": lambda: fp.Map(np.cos, jacobian=np.eye(50)),
    "adjoint": lambda: fp.ImplicitAdjoint(warm_start={"a": torch.ones(500)}),
    "torch layer": lambda: fixedpoint_torch.DEQ(CELL, rtol=torch.full((500,), 1e-3)),
    "jax layer": lambda: fixedpoint_jax.DEQ(CELL),
}


@pytest.mark.parametrize("name", REPRESENTED)
def test_representations_are_short(name):
    shown = repr(REPRESENTED[name]())
    assert len(shown) < 800
    lines = shown.splitlines()
    assert len(lines) < 9


@pytest.mark.parametrize("name", sorted(REPRESENTED.keys() - {"solution", "state"}))
def test_long_arrays_are_what_they_are_like(name):
    assert "of shape (" in repr(REPRESENTED[name]())


def test_short_arrays_are_shown(xp_case):
    array = xp_case.asarray(np.array([1.0, 2.0]))
    assert brief([array, {"a": (array,)}]).count("2.") == 2
    long = brief(xp_case.asarray(np.zeros((7, 1))))
    assert "of shape (7, 1)," in long
    assert long.endswith("float64>")


def test_representations_inside_a_trace():
    def f(a):
        sol = fp.fixed_point(lambda z, a: 0.5 * jnp.cos(a * z), jnp.ones(9), (a,))
        assert "of shape (9,)" in brief(sol.value)
        assert "AndersonState" in repr(sol.state)
        return sol.value.sum()

    jax.jit(f)(1.0)
