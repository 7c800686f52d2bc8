"""Derivatives on JAX inside jit, loops and lanes, through what f closes over, and of
failures.
"""

import functools
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fixedpoint as fp
from fixedpoint.testing.strategies import known_map
from fixedpoint_jax import programs


def tight(solver):
    """The settings of a solver that is compiled fast, since it stands alone."""
    adjoint = fp.ImplicitAdjoint(solver=solver, rtol=1e-13)
    return {"solver": solver, "rtol": 1e-13, "atol": 1e-15, "adjoint": adjoint}


TIGHT, NEWTON = tight(fp.Picard()), tight(fp.Newton(line_search=False))
KNOWN = known_map(3, radius=0.5, size=3, leaves=2)
TS = np.array([[0.0, 0.0], [0.2, -0.1], [-0.3, 0.4]])
WEIGHTS = np.array([1.0, -2.0, 0.5])


def solved(t):
    sol = fp.fixed_point(KNOWN, KNOWN.start(t), KNOWN.args(t), **TIGHT)
    return KNOWN.joined(sol.value)


def loss(t):
    return solved(t) @ WEIGHTS


def exact(order, t):
    """A derivative of the loss."""
    return np.tensordot(WEIGHTS, KNOWN.derivative(order, t), 1)


def square_root(z, b):
    """Newton's map for √b."""
    return 0.5 * (z + b / z)


def roots(b, order):
    """A derivative of √b."""
    return np.prod(0.5 - np.arange(order)) * np.asarray(b) ** (0.5 - order)


def along(function):
    """The derivative of a function of a number, in forward mode.

    ``jax.jacfwd`` is a ``jax.vmap`` of that, under which every loop is traced several
    times over.
    """
    return lambda b: with_slope(function)(b)[1]


def with_slope(function):
    """A function of a number, and its derivative in forward mode."""
    return lambda b: jax.jvp(function, (b,), (jnp.ones_like(b),))


def assert_close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-14)


# Under jit, checkpoints and loops.


def test_value_and_gradient_of_a_checkpoint():
    value, gradient = jax.jit(jax.value_and_grad(jax.checkpoint(loss)))(TS[1])
    assert_close(value, exact(0, TS[1]))
    assert_close(gradient, exact(1, TS[1]))


def over_scan(ts):
    return jax.lax.scan(lambda total, t: (total + loss(t), None), 0.0, ts)[0]


def over_map(ts):
    return jax.lax.map(loss, ts).sum()


def over_fori(ts):
    return jax.lax.fori_loop(0, len(ts), lambda i, total: total + loss(ts[i]), 0.0)


MOVED = 2.0 * TS + 1.0


def gradient_of_sum():
    """Of a sum over a loop, in which the terms do not mix."""
    return np.stack([exact(1, t) for t in TS])


def test_both_modes_through_a_scan():
    """The gradient, and its own derivative in a direction."""
    slope = lambda ts: jax.jvp(jax.grad(over_scan), (ts,), (MOVED,))
    gradient, pushed = jax.jit(slope)(jnp.asarray(TS))
    assert_close(gradient, gradient_of_sum())
    second = [exact(2, t) @ moved for t, moved in zip(TS, MOVED, strict=True)]
    assert_close(pushed, np.stack(second))


def test_reverse_mode_through_a_map():
    assert_close(jax.jit(jax.grad(over_map))(jnp.asarray(TS)), gradient_of_sum())


def test_forward_mode_through_a_loop():
    pushed = jax.jit(lambda ts: jax.jvp(over_fori, (ts,), (MOVED,))[1])(jnp.asarray(TS))
    assert_close(pushed, np.sum(gradient_of_sum() * MOVED))


def test_forward_mode_through_a_loop_of_unknown_length():
    """Each turn moves t along the solution there."""

    def turn(_, t):
        return t + 0.5 * solved(t)[:2]

    def pushed(t, turns):
        run = lambda t: jax.lax.fori_loop(0, turns, turn, t)
        return jax.jvp(run, (t,), (MOVED[0],))[1]

    t, moved = TS[1], MOVED[0]
    for _ in range(3):
        moved = moved + 0.5 * KNOWN.derivative(1, t)[:2] @ moved
        t = t + 0.5 * KNOWN.derivative(0, t)[:2]
    assert_close(jax.jit(pushed)(jnp.asarray(TS[1]), 3), moved)


def test_a_warm_start_carried_by_a_scan():
    """The last solution is the next start, and has no influence on the derivative."""

    def total(ts):
        def turn(z, t):
            sol = fp.fixed_point(KNOWN, z, KNOWN.args(t), **TIGHT)
            return sol.value, KNOWN.joined(sol.value) @ WEIGHTS

        return jax.lax.scan(turn, KNOWN.start(ts[0]), ts)[1].sum()

    assert_close(
        jax.jit(jax.grad(total))(jnp.asarray(TS)), np.stack([exact(1, t) for t in TS])
    )


def test_a_solution_leaves_jit_with_its_derivatives():
    @jax.jit
    def solve(t):
        return fp.fixed_point(KNOWN, KNOWN.start(t), KNOWN.args(t), **TIGHT)

    def of_solution(t):
        sol = solve(t)
        return KNOWN.joined(sol.value) @ WEIGHTS, sol

    gradient, sol = jax.grad(of_solution, has_aux=True)(jnp.asarray(TS[1]))
    assert bool(sol.converged)
    assert_close(KNOWN.joined(sol.value), KNOWN.derivative(0, TS[1]))
    assert_close(gradient, exact(1, TS[1]))
    joined = lambda t: KNOWN.joined(solve(t).value)
    pushed = jax.jvp(joined, (jnp.asarray(TS[1]),), (jnp.asarray(MOVED[0]),))[1]
    assert_close(pushed, KNOWN.derivative(1, TS[1]) @ MOVED[0])


# What f closes over.


def root_of_captured(b):
    return fp.fixed_point(lambda z: square_root(z, b), jnp.ones_like(b), **TIGHT).value


def both_orders(function, b):
    """The first and the second derivative of a function of a number."""
    return jax.jit(with_slope(jax.grad(function)))(jnp.asarray(b))


@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd])
def test_derivatives_by_what_is_captured(transform):
    assert_close(transform(root_of_captured)(jnp.asarray(2.5)), roots(2.5, 1))


@pytest.mark.parametrize("modes", ["rf", "ff", "fr"])
def test_derivatives_by_what_is_captured_under_jit(modes):
    """The first, and the second of it."""
    first = {"r": jax.grad, "f": along}[modes[0]](root_of_captured)
    both = {"r": jax.value_and_grad, "f": with_slope}[modes[1]](first)
    for order, derivative in enumerate(jax.jit(both)(jnp.asarray(2.5)), 1):
        assert_close(derivative, roots(2.5, order))


def test_lanes_of_what_is_captured():
    """Of the value and of the first and second derivative."""

    def slope(b):
        return jax.value_and_grad(root_of_captured)(b)[::-1]

    b = jnp.asarray([0.5, 2.0, 9.0])
    lanes = jax.jit(jax.vmap(jax.value_and_grad(slope, has_aux=True)))
    (first, value), second = lanes(b)
    for order, found in enumerate((value, first, second)):
        assert_close(found, roots(b, order))


def test_gradient_of_lanes_of_what_is_captured():
    b = jnp.asarray([0.5, 2.0, 9.0])
    gradient = jax.jit(jax.grad(lambda b: jax.vmap(root_of_captured)(b) @ WEIGHTS))
    assert_close(gradient(b), WEIGHTS * roots(b, 1))


def picked(gain, index):
    """2·gain[index], by a map that closes over both."""
    f = lambda z: 0.5 * z + gain[index]
    return fp.fixed_point(f, jnp.zeros(()), **TIGHT).value


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("transform", [jax.grad, along])
def test_a_tracer_captured_by_one_leaf_alone(transform, place):
    def solution(b):
        f = lambda z: tuple(
            square_root(u, b if k == place else 4.0) for k, u in enumerate(z)
        )
        return fp.fixed_point(f, (jnp.asarray(1.0),) * 2, **TIGHT).value[place]

    assert_close(transform(solution)(jnp.asarray(2.5)), roots(2.5, 1))


def test_integers_that_are_captured():
    """Reverse mode in lanes, and forward mode."""
    gain, index = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([2, 0])
    lanes = jax.jit(jax.vmap(jax.grad(picked), (None, 0)))
    assert_close(lanes(gain, index), 2.0 * np.eye(3)[[2, 0]])

    def pushed(gain, index):
        return jax.jvp(lambda gain: picked(gain, index), (gain,), (gain - 5.0,))[1]

    assert_close(jax.jit(pushed)(gain, index[0]), -4.0)


def test_a_captured_tracer_beside_concrete_arguments():
    """z = √(bc), where b is captured and c and the start are known numbers."""

    def solution(b):
        f = lambda z, c: square_root(z, b * c)
        return fp.fixed_point(f, jnp.asarray(1.0), (jnp.asarray(4.0),), **TIGHT).value

    for order, derivative in enumerate(both_orders(solution, 2.5), 1):
        assert_close(derivative, 2.0 * roots(2.5, order))


def test_one_array_captured_and_passed():
    """z = √(b·b): each of the two ways gives half of the derivative."""

    def solution(b):
        f = lambda z, c: square_root(z, b * c)
        return fp.fixed_point(f, jnp.ones_like(b), (b,), **TIGHT).value

    assert_close(jax.jit(jax.grad(solution))(3.0), 1.0)
    assert_close(jax.jit(along(solution))(3.0), 1.0)


def test_a_root_by_what_is_captured():
    def solution(b):
        return fp.root(lambda x: x**2 - b, jnp.ones_like(b), **NEWTON).value

    for order, derivative in enumerate(both_orders(solution, 2.5), 1):
        assert_close(derivative, roots(2.5, order))


def test_flags_and_keys_that_are_captured():
    """Neither has a derivative."""

    def solution(b, flag, key):
        noise = lambda: jax.random.normal(key)
        f = lambda z: square_root(z, jnp.where(flag, b, 4.0 * b)) + 0.0 * noise()
        return fp.fixed_point(f, jnp.ones_like(b), **TIGHT).value

    key, b, slope = jax.random.key(0), jnp.asarray(2.5), jax.jit(jax.grad(solution))
    for flag, factor in ((jnp.asarray(True), 1.0), (jnp.asarray(False), 2.0)):
        assert_close(slope(b, flag, key), factor * roots(2.5, 1))


# How often f is called.


@pytest.mark.parametrize(
    ("solver", "transform"),
    [
        (fp.Picard(), lambda g: g),
        (fp.Picard(), along),
        (None, jax.grad),
        (fp.Newton(), lambda g: along(jax.grad(g))),
        (fp.NewtonKrylov(), lambda g: along(jax.grad(g))),
    ],
)
def test_f_is_traced_once(counted, solver, transform):
    f = counted(lambda z, b: jnp.tanh(0.5 * z) + b)

    def solution(b):
        return fp.fixed_point(f, jnp.zeros(()), (b,), solver=solver).value

    jax.jit(transform(solution)).lower(jnp.asarray(0.3))
    assert f.calls == 1


# Memory.


def scratch(max_steps, adjoint):
    """The bytes that the compiled gradient needs besides arguments and results."""
    n = 1000

    def function(b):
        f = lambda z, b: jnp.cos(z) + b
        fixed = {
            "solver": fp.Picard(),
            "rtol": 0.0,
            "atol": 0.0,
            "on_failure": "return",
        }
        sol = fp.fixed_point(
            f, jnp.zeros(n), (b,), max_steps=max_steps, adjoint=adjoint, **fixed
        )
        return sol.value.sum()

    compiled = jax.jit(jax.grad(function)).lower(jnp.zeros(n)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_gradient_does_not_grow_with_the_steps():
    adjoint = fp.ImplicitAdjoint(solver=fp.Picard())
    few, many = (scratch(steps, adjoint) for steps in (10, 1000))
    assert few == many > 0


# Lanes do not disturb each other.


def test_gradients_of_many_lanes_by_newton():
    """Among them are residuals that are zero, or rounding, as the compiler chooses."""
    b = np.random.default_rng(0).uniform(0.1, 0.9, 400)

    def solution(b):
        f = lambda z, b: b * jnp.cos(z)
        return fp.fixed_point(f, jnp.ones(()), (b,), **NEWTON).value

    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(solution)))(b)
    assert_close(value, b * np.cos(value))
    assert_close(gradient, np.cos(value) / (1.0 + b * np.sin(value)))


# Failure is loud.

STIFF = known_map(1, radius=0.9999, size=6)


def starved(t, **settings):
    settings = {"max_steps": 3, "rtol": 1e-12, **settings}
    adjoint = fp.ImplicitAdjoint(**settings)
    sol = fp.fixed_point(
        STIFF,
        STIFF.start(t),
        STIFF.args(t),
        adjoint=adjoint,
        solver=NEWTON["solver"],
        rtol=1e-12,
        max_steps=10,
    )
    return sol.value.sum()


@pytest.mark.parametrize("policy", ["raise", "warn", "nan"])
def test_a_starved_adjoint_in_a_trace_is_not_a_number(policy):
    settings = {"on_failure": policy, "solver": fp.Picard()}
    gradient = jax.jit(jax.grad(functools.partial(starved, **settings)))
    assert np.isnan(gradient(np.zeros(2))).all()


@pytest.mark.parametrize("transform", [jax.grad, along])
def test_a_starved_adjoint_that_nobody_chose_is_not_a_number(transform):
    derivative = transform(lambda t: starved(t * np.ones(2)))
    assert np.isnan(jax.jit(derivative)(0.0))


def test_an_adjoint_in_a_trace_that_has_enough_steps():
    gradient = jax.jit(jax.grad(functools.partial(starved, max_steps=100)))(np.zeros(2))
    assert_close(gradient, STIFF.derivative(1).sum(0), 1e-6)


def shifted(b):
    """z = z + b, which at b = 0 has solutions, and loses them as b moves."""
    f = lambda z, b: z + b
    return fp.fixed_point(f, 1.0 + b, (b,), solver=fp.Picard()).value


def double(b):
    """A fixed point where J = 1."""
    f = lambda z, b: z - (z - b) ** 2
    return fp.fixed_point(f, b, (b,), solver=fp.Picard()).value


def double_root(b):
    """A root where F′ = 0."""
    return fp.root(lambda x, b: (x - b) ** 2, b, (b,), solver=fp.Newton()).value


@pytest.mark.parametrize(
    "derivative",
    [jax.grad(shifted), along(shifted), jax.grad(double), jax.grad(double_root)],
    ids=["shifted-r", "shifted-f", "double-r", "double_root-r"],
)
def test_a_singular_derivative_in_a_trace_is_not_a_number(derivative):
    assert np.isnan(jax.jit(derivative)(0.0))


def test_only_the_lanes_that_fail_are_not_numbers():
    a = jnp.asarray([0.1, 0.99, -0.2])
    adjoint = fp.ImplicitAdjoint(max_steps=15, rtol=1e-10, solver=fp.Picard())

    def solution(b, a):
        f = lambda z, b, a: a * z + b
        settings = {"solver": fp.Picard(), "max_steps": 5000, "adjoint": adjoint}
        return fp.fixed_point(f, b, (b, a), rtol=1e-12, **settings).value

    gradients = np.asarray(jax.jit(jax.vmap(jax.grad(solution)))(jnp.ones(3), a))
    assert np.isnan(gradients).tolist() == [False, True, False]
    assert_close(gradients[[0, 2]], 1.0 / (1.0 - np.asarray(a))[[0, 2]])


def test_a_number_of_python_to_start_from():
    def solution(b):
        return fp.fixed_point(lambda z, b: 0.5 * z + b, b, (b,), **TIGHT).value

    assert_close(jax.grad(solution)(1.0), 2.0)
    assert_close(jax.jit(jax.grad(solution))(1.0), 2.0)


def test_a_solve_that_fails_in_a_trace_has_neither_a_value_nor_a_derivative():
    def solution(b):
        f = lambda z, b: 0.9 * z + b
        return fp.fixed_point(f, b, (b,), max_steps=2, solver=fp.Picard()).value

    for function in (jax.value_and_grad(solution), with_slope(solution)):
        assert np.isnan(jax.jit(function)(1.0)).all()


def test_a_gradient_outside_of_jit_is_compiled_once(monkeypatch):
    monkeypatch.setattr(programs, "_programs", OrderedDict())

    def slope(a, b, power=2):
        def solution(a):  # a function of its own in every call
            f = lambda z, a: a * jnp.cos(z) ** power + b
            settings = {"solver": fp.Picard(), "adjoint": TIGHT["adjoint"]}
            return fp.fixed_point(f, jnp.ones(()), (a,), **settings).value

        return jax.grad(solution)(a)

    def exact(a, b):
        z = fp.fixed_point(lambda z: a * np.cos(z) ** 2 + b, 1.0, rtol=1e-14).value
        return np.cos(z) ** 2 / (1.0 + a * np.sin(2.0 * z))

    for a, b in ((0.3, 0.1), (0.4, 0.2), (0.2, 0.7)):  # what f captures may change
        np.testing.assert_allclose(slope(a, jnp.asarray(b)), exact(a, b), rtol=1e-5)
    assert len(programs._programs) == 1
    slope(0.3, jnp.asarray(0.1), power=3), slope(0.3, jnp.asarray(0.1), power=3)
    assert len(programs._programs) == 2  # another program


@pytest.fixture
def nothing_promoted():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_a_caller_who_forbids_promotion_has_derivatives(nothing_promoted, wrap):
    """Of z = a tanh(z) + 1 in a batch: dz/da = tanh(z)/(1 − a/cosh² z)."""
    f = lambda z, a: a * jnp.tanh(z) + jnp.ones_like(z)
    a, start = jnp.full((2, 3), 0.5), jnp.zeros((2, 3))

    def total(a):
        z = fp.fixed_point(f, start, (a,), batch_ndim=1, rtol=1e-12).value
        return z.sum(), z

    gradient, z = wrap(jax.grad(total, has_aux=True))(a)
    exact = np.tanh(z) / (1.0 - 0.5 / np.cosh(z) ** 2)
    np.testing.assert_allclose(gradient, exact, rtol=1e-9)


def test_a_map_is_held_to_what_its_caller_forbids(nothing_promoted):
    f = lambda z, a: a * jnp.tanh(z)
    with pytest.raises(ValueError, match="rank_promotion"):
        jax.jit(lambda a: fp.fixed_point(f, jnp.zeros((2, 3)), (a,)))(jnp.ones(3))


@pytest.mark.parametrize("transform", [jax.vmap, lambda f: jax.jit(jax.vmap(f))])
def test_a_tolerance_may_be_all_that_is_traced(transform):
    solve = lambda rtol: fp.fixed_point(
        jnp.cos, jnp.ones(2), rtol=rtol, solver=fp.Anderson()
    )
    sol = transform(solve)(jnp.asarray([1e-2, 1e-10]))
    errors = np.abs(np.asarray(sol.value) - 0.7390851332151607).max(-1)
    assert sol.steps[0] < sol.steps[1]
    assert errors[0] <= 1e-2
    assert errors[1] <= 1e-10
