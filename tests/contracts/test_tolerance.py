"""What a tolerance bounds is the error, in the user's units: on problems whose answer
is known.
"""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint as fp
from fixedpoint.testing import problems as library

Status = fp.Status
SOLVERS = [
    None,
    fp.Newton(),
    fp.LevenbergMarquardt(),
    fp.NewtonKrylov(),
    fp.Broyden(),
    fp.Anderson(),
    fp.SQUAREM(),
    fp.Picard(),
    fp.PseudoTransient(),
]
MATRICES = [None, fp.Newton(), fp.LevenbergMarquardt()]


def named(solver):
    return "default" if solver is None else solver.name


by_solver = pytest.mark.parametrize("solver", SOLVERS, ids=named)
by_matrix = pytest.mark.parametrize("solver", MATRICES, ids=named)


def quiet(call, *args, **settings):
    with np.errstate(all="ignore"):
        return call(*args, on_failure="return", **settings)


# Single equations and small systems, which were once said to be solved where they were
# not.


def diode(v):
    return (5.0 - v) / 1e3 - 1e-14 * np.expm1(v / 0.02585)


def acid(h):
    return h**3 + 0.2 * h**2 - 1.779e-6 * h - 1.778e-19


ROOTS = {
    "cubic, from far": (lambda x: x**3 + x - 5.0, 1e5, 1.515980227),
    "exponential, from far": (lambda x: np.exp(x) - 2.0, 30.0, np.log(2.0)),
    "a diode": (diode, 2.0, 0.692490767),
    "mol per litre": (acid, 1e-7, [8.894551e-6, -9.994379e-14]),
    "flat start": (lambda x: x**2 - 2.0 * x, 1.0, [0.0, 2.0]),
    "stationary start": (lambda x: x**2 - 1.0, 0.0, [-1.0, 1.0]),
    "cosine from its top": (np.cos, 0.0, np.pi * (np.arange(-9, 9) + 0.5)),
    "tiny start": (lambda x: x - 5.0, 1e-8, 5.0),
    "tiny start of a cubic": (lambda x: x**3 - 8.0, 1e-4, 2.0),
    "large units": (lambda x: x - 3e8, 0.0, 3e8),
    "large values": (lambda x: 1e200 * (x - 2.0), 1.0, 2.0),
    "integers": (lambda x: x * x - 2.0, 1, np.sqrt(2.0)),
    "a list": (lambda x: x * x - 2.0, [1.0, 1.0], np.sqrt(2.0)),
    "pairs of units": (
        lambda x: np.array([1e7 * (x[0] - 1.0), np.exp(x[1]) - 4.0]),
        np.zeros(2),
        np.array([1.0, np.log(4.0)]),
    ),
}


@pytest.mark.parametrize("name", ROOTS)
def test_roots_by_default(name):
    """The answer, or the one of several that is nearest."""
    F, start, roots = ROOTS[name]
    sol = fp.root(F, start)
    if isinstance(roots, (list, np.ndarray)) and np.ndim(sol.value) == 0:
        roots = min(roots, key=lambda root: abs(root - sol.value))
    np.testing.assert_allclose(sol.value, roots, rtol=1e-5, atol=0.0)
    assert bool(np.all(sol.error <= 1e-6 * np.max(np.abs(sol.value))))


SINGLE = {
    "large": (lambda x, xp: 1e20 * (x - 2.0), 2.0),
    "square": (lambda x, xp: x * x - 2.0, np.sqrt(2.0)),
    "exponential": (lambda x, xp: xp.exp(x) - 2.0, np.log(2.0)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_precision(jit_case, name):
    F, root = SINGLE[name]
    sol = jit_case.solve(
        lambda x: F(x, jit_case.xp), np.full(2, 1.5, np.float32), by=fp.root
    )
    np.testing.assert_allclose(jit_case.to_numpy(sol.value), root, rtol=1e-5)
    assert bool(sol.converged)


def test_what_has_no_root_is_not_solved():
    """An equation whose residual is small beside another's is none the less one."""
    sol = quiet(
        fp.root, lambda x: np.array([1e8 * (x[0] - 1.0), x[1] ** 2 + 1e-2]), np.zeros(2)
    )
    assert not bool(sol.converged)


@by_solver
def test_parallel_planes_do_not_meet(solver):
    """Far out the rounding of the state would cover any residual."""
    F = lambda x: np.array([x[0] + x[1] - 1.0, x[0] + x[1] - 2.0])
    sol = quiet(fp.root, F, np.zeros(2), solver=solver)
    assert not bool(sol.converged)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_one_long_step_of_plain_iteration_tells_nothing(unit):
    """The residual of a pole is small far away from it."""
    F = lambda x: unit / (x / unit - 0.3)
    sol = quiet(fp.root, F, np.array([0.3 * (1.0 + 1e-9) * unit]), solver=fp.Picard())
    assert not bool(sol.converged)


@pytest.mark.parametrize("start", [-16.8, 0.9])
@pytest.mark.parametrize("size", 10.0 ** np.arange(-8, 9, 4))
@pytest.mark.parametrize("solver", [fp.Anderson(), fp.NewtonKrylov()])
def test_a_correction_that_underflows_is_not_zero(solver, start, size):
    """What has no root is not solved where squares are zero."""
    F = lambda x: size * np.exp(-x)
    sol = quiet(fp.root, F, np.array([start]), solver=solver)
    assert not bool(sol.converged)


@pytest.mark.parametrize("unit", [1e-7, 1.0, 9.3])
def test_a_runaway_does_not_end_at_the_limit_of_arithmetic(unit):
    """Far out, the residual of a map without a fixed point is but rounding."""
    f = lambda z: unit * np.sqrt((z / unit) ** 2 + 1.0)
    sol = quiet(fp.fixed_point, f, np.array([0.3 * unit]), solver=fp.Anderson())
    assert not bool(sol.converged)


@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e4])
def test_rounding_does_not_hide_a_slow_contraction(unit):
    """Nor does extrapolation from residuals that follow a rate of 1 − 1e-7."""
    f = lambda z: z + 1e-7 * (unit - z)
    for start in (0.02, 0.12, -3.0):
        sol = quiet(fp.fixed_point, f, np.array([start * unit]), solver=fp.SQUAREM())
        assert not bool(sol.converged) or abs(sol.value / unit - 1.0) <= 1e-5


FAR = [
    (fp.fixed_point, lambda z: 0.5 * z + 1.0, 1e15, 2.0),
    (fp.fixed_point, lambda z: 0.5 * (z + 2.0 / z), 1e16, 2.0**0.5),
    (fp.fixed_point, lambda z: np.sqrt(1.0 + z**-3.0), 3.57e-10, 1.2365057162),
    (fp.fixed_point, lambda z: (2.0 * z + z**-2.0) / 3.0, 1.29e-10, 1.0),
    (fp.root, lambda x: x**2 - 1e-26, 1.0, 1e-13),
    (fp.root, lambda x: x**3 - 8.0, 1e16, 2.0),
    (fp.root, lambda x: x - 1e-13, 1.0, 1e-13),
]


@by_solver
@pytest.mark.parametrize(("by", "f", "start", "answer"), FAR)
def test_what_was_once_larger_is_not_zero(by, f, start, answer, solver):
    """A start, or a step, of the wrong size does not make light of an error."""
    for shape in ((), (1,)):
        sol = quiet(by, f, np.full(shape, start), solver=solver)
        error = np.abs(np.abs(sol.value) / answer - 1.0)
        assert not bool(sol.converged) or error <= 1e-5
    assert bool(quiet(by, f, start).converged)


@by_solver
@pytest.mark.parametrize("constant", 10.0 ** np.array([-8.0, -16.0, -36.0]))
def test_a_small_concentration_beside_a_large_one(constant, solver):
    """Of a salt that dissolves hardly at all, from ones and beside a common ion."""
    for common in (0.0, 1e-3):
        F = lambda x, b=common: np.stack([x[0] * x[1] - constant, x[0] - x[1] - b])
        sol = quiet(fp.root, F, np.ones(2), solver=solver)
        first = np.hypot(0.5 * common, constant**0.5) + 0.5 * common
        answers = np.array([[first, constant / first], [-constant / first, -first]])
        error = np.abs(sol.value / answers - 1.0).max(-1).min()
        assert not bool(sol.converged) or error <= 1e-2  # Broyden's estimate is rough


def test_a_part_that_is_zero_is_an_answer(jit_case):
    """Beside others, which are not."""
    xp = jit_case.xp

    def f(z):
        rest = xp.cos(z[..., 1:])
        return xp.concat([0.5 * z[..., :1] + z[..., 1:2] - z[..., 2:], rest], axis=-1)

    for norm in ("entries", "leaves"):
        settings = {"solver": fp.Anderson(), "norm": norm, "batch_ndim": 1}
        sol = jit_case.solve(f, np.array([[1.0, 0.2, 0.9]]), **settings)
        answer = [[0.0, 0.7390851332, 0.7390851332]]
        np.testing.assert_allclose(jit_case.to_numpy(sol.value), answer, atol=1e-6)
        assert np.all(jit_case.to_numpy(sol.converged))


def test_a_sample_that_was_once_larger(jit_case):
    """Its neighbors are zero indeed."""
    f = lambda z, b: {"a": 0.5 * z["a"] + b, "b": 0.3 * z["b"]}
    start = {"a": np.array([[1e15], [1.0]]), "b": np.ones((2, 1))}
    args = (np.array([[1.0], [0.0]]),)
    for solver in (fp.Anderson(), fp.Picard()):
        sol = jit_case.solve(f, start, args, solver=solver, batch_ndim=1)
        value = jit_case.to_numpy(sol.value["a"])
        np.testing.assert_allclose(value, [[2.0], [0.0]], rtol=1e-5, atol=1e-9)
        assert np.all(jit_case.to_numpy(sol.converged))


def test_a_long_step_to_where_a_map_is_flat(jit_case):
    F = lambda x: x * jit_case.xp.exp(-(x**2))
    settings = {"solver": fp.Newton(), "max_steps": 100}
    sol = jit_case.solve(F, np.array([0.73]), by=fp.root, **settings)
    assert not bool(sol.converged)


FLAT = [
    (lambda x: np.exp(-(x**2)), 0.1, None),
    (lambda x: np.exp(-(x**2)), 0.06, None),
    (lambda x: x * np.exp(-(x**2)), 0.73, 0.0),
    (lambda x: x * np.exp(-(x**2)), 0.8, 0.0),
    (lambda r: np.exp(2.0 - 2.0 * r) - np.exp(1.0 - r), 1.7, 1.0),
]


@by_solver
@pytest.mark.parametrize("unit", [1e-6, 1e5])
@pytest.mark.parametrize(("F", "start", "answer"), FLAT)
def test_a_long_step_to_where_a_function_is_flat(F, start, answer, unit, solver):
    """What falls off faster than any power looks solved there."""
    sol = quiet(fp.root, lambda x: F(x / unit), np.array([start * unit]), solver=solver)
    if bool(sol.converged) and sol.residual_norm > 0.0:  # else nothing can be told
        assert answer is not None
        assert abs(sol.value[0] / unit - answer) <= 1e-5


def reactor(heat, cooling, ambient):
    """A stirred tank with a reaction of first order, whose rate is exponential in T."""

    def F(x):
        C, T = x
        burnt = 7.2e10 * np.exp(-8750.0 / T) * C
        balance = 350.0 - T + heat / 239.0 * burnt + cooling / 23900.0 * (ambient - T)
        return np.stack([1.0 - C - burnt, balance])

    def on_balance(T):
        C = 1.0 / (1.0 + 7.2e10 * np.exp(-8750.0 / T))
        return C, F(np.array([C, T]))[1]

    grid = np.linspace(250.0, 800.0, 5501)
    sign = np.signbit(on_balance(grid)[1])
    ends = np.flatnonzero(sign[1:] != sign[:-1])
    roots = [
        scipy.optimize.brentq(
            lambda T: on_balance(T)[1], grid[k], grid[k + 1], xtol=1e-12
        )
        for k in ends
    ]
    return F, np.array([[on_balance(T)[0], T] for T in roots])


@by_matrix
@pytest.mark.parametrize("units", [0.0, 4.0])
def test_a_matrix_from_far_away_tells_nothing_of_the_error(units, solver):
    """The rate, and with it the matrix, changes by orders of magnitude in a step."""
    rng, claimed = np.random.default_rng(1), 0
    for _ in range(16):
        ranges = ((2e4, 8e4), (1e4, 1e5), (290.0, 330.0))
        F, roots = reactor(*(rng.uniform(*ends) for ends in ranges))
        start = np.array([rng.choice([0.05, 0.5, 1.0]), rng.choice([300.0, 450.0])])
        u, e = 10.0 ** rng.uniform(-units, units, (2, 2))
        scaled = lambda y, F=F, u=u, e=e: e * F(u * y)
        sol = quiet(fp.root, scaled, start / u, solver=solver, rtol=1e-2)
        wrong = np.abs(u * sol.value / roots - 1.0).max(axis=-1).min()
        assert not bool(sol.converged) or wrong <= 0.1
        claimed += bool(sol.converged)
    assert claimed >= 7


@by_matrix
@pytest.mark.parametrize("unit", 10.0 ** np.arange(-8.0, 1.0))
def test_a_minimizer_of_the_residual_is_no_root(unit, solver):
    """Robertson's kinetics, an implicit step: the difference quotient of an unknown
    that begins with zero drowns, and what is left is solved by least squares.
    """

    def F(x, h=5e4):
        a, b, c = x[0], unit * x[1], x[2]
        one, two = 0.04 * a - 1e4 * b * c, 3e7 * b * b
        return np.stack([a - 1.0 + h * one, b - h * (one - two), c - h * two])

    answer = np.array([0.158102993, 7.49175666e-7 / unit, 0.841896258])
    settings = {"solver": solver, "rtol": 1e-5, "max_steps": 400}
    sol = quiet(fp.root, F, np.array([1.0, 0.0, 0.0]), **settings)
    if bool(sol.converged):
        np.testing.assert_allclose(sol.value, answer, rtol=1e-4)


# Maps.

SHARES = np.array([-2.0, 4.0])


def shares(d):
    target = SHARES - np.logaddexp(0.0, SHARES)
    return d + target - (d - np.logaddexp(0.0, d))


def two_leaves(z):
    return {"n": 0.5 * z["n"] + 5e5, "p": np.cos(z["p"])}


@pytest.mark.parametrize("seed", [22, 39])
def test_market_shares_by_squared_extrapolation(seed):
    """One direction contracts by a few thousandths a step, and extrapolation stirs up
    the others.
    """
    rng = np.random.default_rng(seed)
    tastes, known = rng.normal(size=(100, 6)), rng.normal(size=6) + 6.0

    def share(d):
        odds = np.exp(d + tastes)
        return (odds / (1.0 + odds.sum(1, keepdims=True))).mean(0)

    f = lambda d: d + np.log(share(known)) - np.log(share(d))
    settings = {"solver": fp.SQUAREM(), "rtol": 1e-3, "max_steps": 8000}
    value = fp.fixed_point(f, np.zeros(6), **settings).value
    np.testing.assert_allclose(value, known, rtol=1e-2)


def test_maps_by_default():
    tiny = fp.fixed_point(lambda z: 1e-9 * np.exp(-z / 1e-9), 0.0)
    np.testing.assert_allclose(tiny.value, 5.67143290e-10, rtol=1e-5)
    leaves = fp.fixed_point(two_leaves, {"n": np.array([1e6 + 1.0]), "p": np.zeros(1)})
    np.testing.assert_allclose(leaves.value["p"], 0.7390851332, rtol=1e-5)
    np.testing.assert_allclose(leaves.value["n"], 1e6, rtol=1e-5)
    logit = fp.fixed_point(shares, np.array([4.0, 9.0]))
    np.testing.assert_allclose(logit.value, SHARES, rtol=1e-5)


def decisions(seed, discount):
    """The Bellman operator of a random decision process, and its fixed point by policy
    iteration.
    """
    rng = np.random.default_rng(seed)
    P, reward = rng.random((3, 20, 20)) ** 8, rng.random((3, 20))
    P /= P.sum(axis=-1, keepdims=True)
    policy = np.zeros(20, dtype=int)
    for _ in range(50):
        rows = P[policy, np.arange(20)], reward[policy, np.arange(20)]
        value = np.linalg.solve(np.eye(20) - discount * rows[0], rows[1])
        policy = np.argmax(reward + discount * P @ value, axis=0)
    return lambda v: np.max(reward + discount * P @ v, axis=0), value


@pytest.mark.parametrize("discount", [0.9, 0.99, 0.999])
@pytest.mark.parametrize(
    "solver",
    [None, fp.Picard(), fp.Anderson(), fp.Newton(), fp.SQUAREM()],
    ids=named,
)
def test_value_iteration(discount, solver):
    bellman, value = decisions(0, discount)
    sol = quiet(fp.fixed_point, bellman, np.zeros(20), solver=solver, max_steps=20_000)
    assert bool(sol.converged)
    np.testing.assert_allclose(sol.value, value, rtol=1e-5)


def test_extrapolation_does_not_hide_a_slow_direction():
    """It stirs up fast ones."""
    errors = []
    for seed in range(6):
        bellman, value = decisions(seed, 0.999)
        settings = {"solver": fp.SQUAREM(), "rtol": 1e-4, "max_steps": 5000}
        sol = quiet(fp.fixed_point, bellman, np.zeros(20), **settings)
        if bool(sol.converged):
            errors.append(np.max(np.abs(sol.value / value - 1.0)))
    assert errors
    assert all(error <= 25 * 1e-4 for error in errors)


@by_solver
@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_a_slow_contraction(contraction, solver, rtol, unit):
    """A small step of it is not a small error."""
    A, b = contraction(8, 0.995, 5), np.random.default_rng(1).standard_normal(8) * unit
    exact = np.linalg.solve(np.eye(8) - A, b)
    sol = quiet(
        fp.fixed_point,
        lambda z: A @ z + b,
        0.0 * b,
        solver=solver,
        rtol=rtol,
        max_steps=20_000,
    )
    assert bool(sol.converged)
    assert np.linalg.norm(sol.value - exact) <= 10 * rtol * np.linalg.norm(exact)


# Answers that are zero, wholly or in an entry.


@by_solver
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_is_found_and_soon(solver, dtype):
    if isinstance(solver, fp.Picard):
        pytest.skip("a rate of one half takes forty steps; see below")
    for f in (lambda z: 0.5 * z, lambda z: 0.5 * np.sin(z)):
        sol = quiet(fp.fixed_point, f, np.ones(1, dtype), solver=solver)
        assert bool(sol.converged)
        assert abs(float(sol.value[0])) <= 1e-6
        assert int(sol.steps) <= 30


def test_plain_iteration_to_zero():
    sol = fp.fixed_point(lambda z: 0.5 * z, np.ones(1), solver=fp.Picard())
    assert int(sol.steps) <= 45
    dead = lambda z: np.maximum(0.5 * z + np.array([1.0, -1.0]), 0.0)
    np.testing.assert_allclose(
        fp.fixed_point(dead, np.ones(2)).value, [2.0, 0.0], rtol=1e-5
    )


def test_a_fraction_of_zero_beside_a_pressure():
    F = lambda x: np.array([x[0] - 1e5 * (1.0 + 0.1 * x[1]), x[1] * (1.0 + x[1])])
    sol = fp.root(F, np.array([2e5, 0.3]))
    np.testing.assert_allclose(sol.value, [1e5, 0.0], rtol=1e-5, atol=1e-9)


# The limit of the arithmetic.


@pytest.mark.parametrize("scale", [1.0, 1e12])
@by_matrix
def test_a_restart_at_the_answer_ends_at_once(solver, scale):
    F = lambda x: scale * (x * x - 2.0)
    sol = fp.root(F, np.sqrt(2.0), solver=solver)
    again = fp.root(F, sol.value, solver=solver)
    assert bool(again.converged)
    assert int(again.steps) <= 15


@by_solver
def test_a_restart_of_a_map_ends_at_once(solver):
    first = fp.fixed_point(np.cos, np.ones(3), solver=solver, rtol=1e-14)
    again = fp.fixed_point(np.cos, first.value, solver=solver)
    assert int(again.steps) <= 3
    np.testing.assert_allclose(again.value, 0.7390851332, rtol=1e-9)


@pytest.mark.parametrize("noise", [1e-10, 1e-7, 1e-4])
@by_matrix
def test_a_function_with_noise_is_solved_to_its_noise(solver, noise):
    """More than that cannot be asked, and the solution says that it was not."""

    def F(x):
        return x**3 - 2.0 + noise * np.sin(1e13 * x)

    sol = quiet(
        fp.root,
        F,
        np.array([2.0]),
        solver=solver,
        rtol=1e-12,
        jacobian=lambda x: 3.0 * x[None] ** 2,
    )
    np.testing.assert_allclose(sol.value, 2.0 ** (1.0 / 3.0), rtol=10 * noise)


def test_without_any_tolerance_a_fixed_number_of_steps_is_taken(solver):
    sol = quiet(
        fp.fixed_point,
        lambda z: np.cos(z) - 0.1 * z,
        np.ones(2),
        solver=solver,
        rtol=0.0,
        atol=0.0,
        max_steps=3,
    )
    assert int(sol.steps) == 3
    assert int(sol.status) == Status.MAX_STEPS


# Whatever the units.


def chemistry(x):
    """Three equations that couple what may be of any size."""
    a, b, c = x
    return np.stack([a * a + b - 3.0, np.exp(0.3 * b) + c - 2.5, a * c - 0.7])


POWERS = [(0, 0, 0), (40, 0, -40), (-30, 20, 7)]


@by_matrix
@pytest.mark.parametrize("unknowns", POWERS)
@pytest.mark.parametrize("equations", POWERS)
def test_steps_do_not_depend_on_units(solver, unknowns, equations):
    """With unknowns and equations multiplied by powers of two, digit by digit."""
    u, e = (np.ldexp(1.0, np.array(powers)) for powers in (unknowns, equations))
    start = np.array([2.0, 1.0, 0.5])
    plain = fp.root(chemistry, start, solver=solver)
    scaled = fp.root(lambda x: e * chemistry(x / u), u * start, solver=solver)
    assert int(scaled.steps) == int(plain.steps)
    np.testing.assert_allclose(scaled.value / u, plain.value, rtol=1e-9)


FAMILIES = {
    "cubic": (lambda x, a, xp: x**3 + a * x - (1.0 + a), 1.0),
    "exponential": (lambda x, a, xp: xp.exp(a * (x - 1.0)) - 1.0, 1.0),
    "logarithm": (lambda x, a, xp: xp.log(xp.abs(x)) + a * (x - 1.0), 1.0),
    "Kepler": (
        lambda x, a, xp: x - a * xp.sin(x) - (1.0 - a * float(np.sin(1.0))),
        1.0,
    ),
    "inverse": (lambda x, a, xp: a / x - a, 1.0),
    "square root": (
        lambda x, a, xp: x * xp.sqrt(1.0 + x * x) - float(np.sqrt(2.0)),
        1.0,
    ),
}


@given(
    name=st.sampled_from(sorted(FAMILIES)),
    a=st.floats(0.05, 0.95),
    unit=st.integers(-15, 15),
    scale=st.integers(-15, 15),
    start=st.floats(-1.0, 6.0),
    solver=st.sampled_from([None, fp.Newton(), fp.LevenbergMarquardt(), fp.Broyden()]),
)
@pytest.mark.parametrize("xp_case", ["numpy", "torch"], indirect=True)
def test_no_root_is_claimed_that_is_none(xp_case, name, a, unit, scale, start, solver):
    """At any units of the unknown and of the equation, from starts up to 10⁶ times the
    answer.
    """
    family, root = FAMILIES[name]
    u, e = 10.0**unit, 10.0**scale
    sol = xp_case.solve(
        lambda x: e * family(x / u, a, xp_case.xp),
        np.full(1, u * 10.0**start),
        by=fp.root,
        solver=solver,
    )
    if bool(sol.converged):
        x = xp_case.to_numpy(sol.value) / u
        with np.errstate(all="ignore"):
            near = np.abs(family(x * (1 + np.array([-1e-3, 1e-3])), a, np))
            assert abs(x - root) <= 1e-3 or abs(family(x, a, np)) <= 0.1 * near.max()


@given(
    n=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    radius=st.sampled_from([0.3, 0.9, 0.99]),
    unit=st.integers(-15, 15),
    start=st.floats(-2.0, 6.0),
    solver=st.sampled_from(SOLVERS),
)
@pytest.mark.parametrize("xp_case", ["numpy", "torch"], indirect=True)
def test_no_fixed_point_is_claimed_that_is_none(
    xp_case, n, seed, radius, unit, start, solver
):
    rng = np.random.default_rng(seed)
    A, z = rng.standard_normal((n, n)), rng.standard_normal(n)
    A *= radius / np.max(np.abs(np.linalg.eigvals(A)))
    u, xp = 10.0**unit, xp_case.xp
    sol = xp_case.solve(
        lambda y, A, z: u * (z + xp.tanh(A @ (y / u - z))),
        u * 10.0**start * np.ones(n),
        (A, z),
        solver=solver,
    )
    if bool(sol.converged):
        y = xp_case.to_numpy(sol.value) / u - z
        # An answer, if not the one that was put in: there may be others.
        assert np.linalg.norm(np.tanh(A @ y) - y) <= 1e-4 * np.linalg.norm(y + z)


# The problem library, with the default call.


@pytest.mark.parametrize("problem", library.systems(), ids=lambda p: p.name)
def test_systems_of_the_library_are_right_by_default(problem):
    """By what SciPy still corrects from there, where the root is regular."""
    sol = fp.root(problem.function, problem.start)
    polished = scipy.optimize.root(
        problem.function, sol.value, tol=1e-15, method="hybr"
    )
    assert bool(sol.converged)
    largest = np.max(np.abs(polished.fjac), initial=1e-300)
    residual = np.max(np.abs(problem.function(polished.x)))
    if (
        residual <= 1e-12 * largest
        and np.linalg.cond(jacobian(problem, polished.x)) < 1e8
    ):
        np.testing.assert_allclose(sol.value, polished.x, rtol=1e-5, atol=1e-9)


def jacobian(problem, x, step=1e-6):
    """By central differences, which is enough to tell whether a root is regular."""
    columns = []
    for j in range(x.size):
        h = step * max(1.0, abs(x[j])) * (np.arange(x.size) == j)
        columns.append(
            (problem.function(x + h) - problem.function(x - h)) / (2 * h.sum())
        )
    return np.stack(columns, axis=1)


# What is reported.


def test_the_error_is_reported_sample_by_sample(compiled_case):
    a = np.array([[0.5], [0.9], [0.97]])
    sol = compiled_case.solve(
        lambda z, a: a * z + 1.0,
        np.zeros((3, 1)),
        (a,),
        solver=fp.Picard(),
        batch_ndim=1,
    )
    error = compiled_case.to_numpy(sol.error)
    true = np.abs(compiled_case.to_numpy(sol.value) - 1.0 / (1.0 - a))[:, 0]
    assert error.shape == (3,)
    assert np.all(true <= 10 * error + 1e-12)
    assert np.all(error <= 1e-6 / (1.0 - a[:, 0]) * 1.01)


def test_the_residual_test_is_the_old_one():
    f = lambda z: 0.99 * z + 1.0
    loose, strict = (
        fp.fixed_point(f, np.zeros(1), solver=fp.Picard(), rtol=1e-3, test=test)
        for test in ("residual", "error")
    )
    assert abs(f(loose.value) - loose.value) <= 1e-3 * abs(f(loose.value))
    assert abs(loose.value[0] - 100.0) > 1.0
    assert abs(strict.value[0] - 100.0) <= 0.2


def test_one_norm_of_all_is_looser_than_one_of_each_entry():
    F = lambda x: np.array([x[0] - 1e6, np.exp(x[1]) - 4.0])
    sols = [
        fp.root(F, np.zeros(2), norm=norm, rtol=1e-3)
        for norm in ("entries", "euclidean")
    ]
    assert abs(sols[0].value[1] - np.log(4.0)) <= 1e-2 * np.log(4.0)
    assert int(sols[1].steps) <= int(sols[0].steps)


def test_samples_that_are_not_finite_are_not_numbers():
    f = lambda z: np.where(z > 1.0, np.nan, 0.5 * z + 1.0)
    sol = fp.fixed_point(f, np.array([[0.0], [np.nan]]), batch_ndim=1, on_failure="nan")
    assert np.all(np.isnan(sol.value))


@pytest.mark.parametrize("size", [20, 170])
def test_small_entries_in_single_precision_end_soon(size):
    """None is right to the tolerance, which is ten units in the last place of each."""
    rng = np.random.default_rng(0)
    A = 0.5 * np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)
    b = (10.0 ** rng.uniform(-4.0, 0.0, (16, size))).astype(np.float32)
    f, zeros = lambda z: z @ A + b, np.zeros((16, size), np.float32)
    sol = fp.fixed_point(f, zeros, batch_ndim=1)
    rough = fp.fixed_point(f, zeros, batch_ndim=1, test="residual")
    assert np.all(sol.precise | (sol.error <= 1e-5 * np.linalg.norm(sol.value, axis=1)))
    assert set(sol.method) == {0}
    assert sum(sol.work) <= 6 * sum(rough.work)


class LastPicard(fp.Picard):
    """Its last iterate counts, as of a method that descends on something else."""

    @property
    def latest(self):
        return True


def test_plain_iteration_that_keeps_its_last_iterate_ends_at_rounding():
    f = lambda z: (
        np.float32(0.9) * np.cos(z) + np.float32(0.1) * np.sin(np.float32(3.0) * z)
    )
    sol = fp.fixed_point(f, np.ones(3, np.float32), solver=LastPicard(), rtol=1e-9)
    assert bool(sol.precise)
    assert int(sol.steps) <= 200
