"""What JAX compiles of a solve: in operations, programs and bytes, never in seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import fixedpoint as fp
from fixedpoint_jax import programs

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


def program(n, transform=lambda solve: solve, by=fp.fixed_point, **settings):
    """That of a solve in n unknowns."""
    f, z0, args = layer(n)
    solve = transform(lambda *args: by(f, z0, args, **settings).value.sum())
    return jax.make_jaxpr(solve)(*args).jaxpr


def traced(*args, **settings):
    """The operations of a solve."""
    return operations(program(*args, **settings))


@pytest.mark.parametrize(
    ("settings", "most"),
    [({"solver": fp.Anderson(memory=5)}, 1085), ({}, 2130)],
    ids=["anderson", "default"],
)
def test_a_solve_is_a_bounded_number_of_operations(settings, most):
    assert traced(256, **settings) <= most


@pytest.mark.parametrize(("n", "most"), [(256, 4380), (4, 2775)])
def test_a_gradient_is_a_bounded_number_of_operations(n, most):
    assert traced(n, jax.grad) <= most


@pytest.mark.parametrize(
    ("by", "solver", "most"),
    [
        (fp.fixed_point, "picard", 3),
        (fp.fixed_point, "anderson", 3),
        (fp.fixed_point, "newton", 4),
        (fp.fixed_point, None, 5),
        (fp.root, "broyden", 4),
        (fp.root, None, 10),
    ],
)
def test_a_trace_evaluates_f_in_few_places(by, solver, most):
    """At the start, in a step, and for all that is asked before samples end: a network
    takes long to compile.
    """
    settings = {} if solver is None else {"solver": solver}
    assert str(program(256, by=by, **settings)).count(" tanh ") <= most


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
    [(fp.Anderson(memory=5), 20.5), (fp.Broyden(memory=5), 21)],
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


def test_outside_of_traces_f_sees_arrays_of_jax_that_nobody_writes_to():
    seen, then = [], []

    def f(z):
        seen.append(z), then.append(np.array(z))
        return jnp.cos(z)

    z0 = jax.device_put(jnp.arange(3.0), jax.devices()[0])
    value = fp.fixed_point(f, z0).value
    for z in (value, *seen):
        assert isinstance(z, jax.Array)
        assert z.committed
        assert z.devices() == z0.devices()
    np.testing.assert_array_equal(np.stack(seen), np.stack(then))


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_what_a_trace_tries_where_no_solver_is_named(by):
    sol = jax.eval_shape(lambda z: by(jnp.cos, z), jnp.zeros(3))
    assert len(repr(sol)) < 1000  # nothing of how it was solved
    tried = fp.default_solver(3, by is fp.root, is_compiled=True)
    assert sol.methods == tuple(solver.name for solver in tried.sequence)


@pytest.mark.parametrize("solve", [fp.fixed_point, fp.root])
def test_no_symbol_outlives_its_trace(solve):
    f = lambda z, a: jnp.cos(z) * a
    total = lambda a: solve(f, jnp.ones(3) + a, (a,)).value.sum()
    with jax.checking_leaks():
        jax.eval_shape(total, 0.5)
        jax.eval_shape(jax.grad(total), 0.5)
    ends = lambda a: fp.bracketed_root(f, jnp.ones(3), a + 3.0, (a,)).value.sum()
    with jax.checking_leaks():
        jax.eval_shape(jax.grad(ends), 0.5)


def test_a_solve_under_jit_is_part_of_its_program():
    kept = list(programs._programs)
    f = lambda z, a: jnp.cos(z) * a
    solve = lambda a: fp.fixed_point(f, jnp.ones(7), (a,), solver="picard").value
    jax.eval_shape(solve, 0.5)
    assert list(programs._programs) == kept


def test_a_map_that_holds_a_tracer_is_compiled_too():
    methods, start = [], jnp.zeros(2)

    def loss(W):  # the start is known: only the closure tells
        sol = fp.fixed_point(lambda z: jnp.tanh(W * z + 1.0), start)
        methods.append(sol.methods)
        return sol.value.sum()

    jax.eval_shape(jax.grad(loss), jnp.ones(2))
    assert methods == [("Anderson", "Anderson")]


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="of older releases")
@pytest.mark.parametrize("solver", ["picard", "anderson", "newton"])
@pytest.mark.parametrize("varies", [True, False])
def test_a_start_varies_over_the_mesh_axes_that_its_image_varies_over(solver, varies):
    mesh = jax.sharding.Mesh(jax.devices()[:1], "d")
    spec = jax.sharding.PartitionSpec("d")
    x = jnp.arange(4.0)

    def solve(x, common=lambda x: x):
        f = lambda z, x: 0.5 * jnp.tanh(z[::-1]) + common(x)
        return fp.fixed_point(f, jnp.zeros(4), (x,), solver=solver).value

    mean = lambda x: jax.lax.pmean(x, "d")
    spread = jax.shard_map(
        solve if varies else lambda x: solve(x, mean),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec if varies else jax.sharding.PartitionSpec(),
    )
    np.testing.assert_allclose(jax.jit(spread)(x), solve(x), rtol=1e-5)


@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="of older releases")
@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_each_device_of_a_mesh_differentiates_a_problem_of_its_own(by):
    mesh = jax.sharding.Mesh(jax.devices()[:1], "d")
    spec = jax.sharding.PartitionSpec("d")
    x = jnp.arange(4.0)

    def total(x):
        f = lambda z, x: 0.5 * jnp.tanh(z[::-1]) + x - (z if by is fp.root else 0.0)
        return by(f, jnp.zeros(4), (x,), solver="newton").value

    gradient = jax.grad(lambda x: total(x).sum())
    inside = jax.shard_map(gradient, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(inside)(x), gradient(x), rtol=1e-12)
