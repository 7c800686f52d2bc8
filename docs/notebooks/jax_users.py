r"""
For JAX users
=============

With JAX arrays a solve is a Python loop outside transformations, and a
``lax.while_loop`` inside ``jit``. A :class:`~fixedpoint.Solution` is a pytree, and can
be returned from a jitted function.
"""

# %%
# Eager, and compiled
# -------------------

import jax
import jax.numpy as jnp

import fixedpoint as fp


def f(z, c):
    return c * jnp.cos(z)


c = jnp.array([1.0, 0.5])
print(fp.fixed_point(f, jnp.ones(2), (c,)))


@jax.jit
def solve(c):
    return fp.fixed_point(f, jnp.ones(2), (c,), solver=fp.Anderson())


jitted = solve(c)
print(jitted.value, bool(jitted.converged))

# %%
# Under ``jit`` every solver of a sequence is compiled, so the default sequence is short
# there. ``f`` itself is traced once. Under ``vmap`` each problem has its own status,
# and the loop runs until all are done:

mapped = jax.vmap(solve)(jnp.array([[1.0, 0.5], [0.3, 0.2]]))
print(mapped.converged, mapped.steps)

# %%
# Failures
# --------
#
# Nothing can be raised from inside a trace. There ``on_failure="raise"`` and ``"warn"``
# mean ``"nan"``. The status is in the solution:


@jax.jit
def runaway(start):
    return fp.fixed_point(lambda z: z + 1.0, start, max_steps=10, solver=fp.Anderson())


failed = runaway(jnp.zeros(1))
print(failed.value, fp.Status(int(failed.status)).name)

# %%
# Derivatives
# -----------
#
# Derivatives are those of the implicit function theorem, in forward and reverse mode
# and of any order, under ``jit``, ``vmap``, ``scan`` and ``checkpoint``. They are
# correct with respect to what ``f`` captures as well as to ``args``; with respect to
# the start ``z0`` they are zero.


def solution(c):
    g = lambda z: c * jnp.cos(z)
    return fp.fixed_point(g, jnp.ones(2), solver=fp.Anderson()).value


jacobian = jax.jit(jax.jacrev(solution))(c)
z = solution(c)
print(jacobian.diagonal(), jnp.cos(z) / (1 + c * jnp.sin(z)))

# %%
# A failed adjoint solve fills the gradient with NaN; ``ImplicitAdjoint(report=...)``
# names a function to be called with its status. See :doc:`/debugging_gradients`.
#
# A layer
# -------
#
# A :class:`fixedpoint_jax.DEQ` around a plain function is passed the parameters. Here
# one learns a function of two variables by gradient descent, with the whole step
# compiled.

from fixedpoint_jax import DEQ


def cell(z, x, params):
    return jnp.tanh(z @ params["W"] + x @ params["U"])


layer = DEQ(
    cell, solver=fp.Anderson(memory=5), start=lambda x, _: jnp.zeros((len(x), 16))
)


def predict(params, x):
    return layer(x, params) @ params["head"]


@jax.jit
def step(params, x, y):
    def loss(params):
        return jnp.mean((predict(params, x) - y) ** 2)

    value, gradient = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)


keys = jax.random.split(jax.random.key(0), 4)
params = {
    "W": 0.05 * jax.random.normal(keys[0], (16, 16)),
    "U": 1.5 * jax.random.normal(keys[1], (2, 16)),
    "head": 0.1 * jax.random.normal(keys[2], (16,)),
}
x = jax.random.uniform(keys[3], (64, 2), minval=-1.0)
y = jnp.sin(3.0 * x[:, 0] + x[:, 1])
losses = []
for _ in range(400):
    value, params = step(params, x, y)
    losses.append(float(value))
print(f"mean squared error {losses[0]:.3f} to {losses[-1]:.4f}")

# %%
# The course of training:

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(4.5, 2.8), layout="constrained")
axes.semilogy(losses)
axes.set(xlabel="step", ylabel="mean squared error")

# %%
# A cell can also be a pytree that contains its parameters:
# :doc:`/layers_in_jax_modules` shows Equinox and Flax. :doc:`/many_devices` is about
# several devices, and ``examples/equinox_decoder.py``, in the :doc:`/gallery`, trains a
# generative model and solves inverse problems with it.
