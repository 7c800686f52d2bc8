"""What JAX compiles of a solve: in operations, programs and bytes, never in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import fixedpoint as fp

COMPILED = "/jax/core/compile/backend_compile_duration"
compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compilations.append(event)
)


def operations(jaxpr):
    """The equations of a program, with those of its loops and branches."""
    inner = [
        part
        for equation in jaxpr.eqns
        for part in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda leaf: isinstance(leaf, (Jaxpr, ClosedJaxpr)),
        )
    ]
    known = [getattr(part, "jaxpr", part) for part in inner]
    return len(jaxpr.eqns) + sum(operations(p) for p in known if hasattr(p, "eqns"))


def layer(n):
    """An affine layer under tanh, and its arguments."""
    generator = np.random.default_rng(0)
    W = 0.9 * np.linalg.qr(generator.standard_normal((n, n)))[0]
    args = jnp.asarray(W), jnp.asarray(generator.standard_normal(n))
    return lambda z, W, b: jnp.tanh(W @ z + b), jnp.zeros(n), args


def traced(n, transform=lambda solve: solve, **settings):
    """The operations of a solve in n unknowns."""
    f, z0, args = layer(n)
    solve = transform(lambda *args: fp.fixed_point(f, z0, args, **settings).value.sum())
    return operations(jax.make_jaxpr(solve)(*args).jaxpr)


@pytest.mark.parametrize(
    ("settings", "most"),
    [({"solver": fp.Anderson(memory=5)}, 1050), ({}, 2050)],
    ids=["anderson", "default"],
)
def test_a_solve_is_a_bounded_number_of_operations(settings, most):
    assert traced(256, **settings) <= most


def test_a_gradient_is_a_bounded_number_of_operations():
    assert traced(256, jax.grad) <= 5200


def test_a_matrix_takes_no_more_operations_the_larger_it_is():
    few, many = (traced(n, solver=fp.Newton()) for n in (70, 90))
    assert few == many


def test_outside_of_traces_the_map_alone_is_compiled():
    # A shape that no other test has, and whose operations are compiled for it.
    f, z0, args = layer(53)
    compilations.clear()
    sol = fp.fixed_point(f, z0, args)
    assert sol.converged
    count = compilations.count(COMPILED)
    assert 0 < count <= 10  # f has three operations


@pytest.mark.parametrize(
    ("solver", "most"),
    [(fp.Anderson(memory=5), 17), (fp.Broyden(memory=5), 21)],
    ids=["anderson", "broyden"],
)
def test_a_solve_holds_a_bounded_number_of_states(solver, most):
    n = 100_000
    state = jax.ShapeDtypeStruct((n,), jnp.float32)

    def solve(z, b):
        f = lambda z, b: 0.5 * jnp.cos(z) + b
        return fp.fixed_point(f, z, (b,), solver=solver).value

    memory = jax.jit(solve).lower(state, state).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= (most + 0.1) * 4 * n
