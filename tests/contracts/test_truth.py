"""The residual, its test, and the statuses: none is reported falsely.

What the tolerances say of errors is in ``test_tolerance.py``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint as fp

PICARD = fp.Picard()
FIRST_ORDER = [
    PICARD,
    fp.Picard(damping=0.3),
    fp.Anderson(memory=3),
    fp.Anderson(memory=2, damping=0.4),
]
FALL = 0.9
Status = fp.Status
EARLY = {Status.STALLED, Status.DIVERGED, Status.NON_FINITE}
FAILURES = set(Status) - {Status.RUNNING, Status.CONVERGED, Status.NO_BRACKET}

dampings = st.sampled_from([0.1, 0.5, 1.0, 1.5])
solvers = st.one_of(
    st.builds(fp.Picard, damping=dampings),
    st.builds(fp.Anderson, memory=st.sampled_from([1, 2, 5]), damping=dampings),
)
problems = st.fixed_dictionaries(
    {
        "n": st.sampled_from([1, 4]),
        "norm": st.floats(0.05, 1.6),
        "seed": st.integers(0, 2**31),
        "tanh": st.booleans(),
    }
)
stops = st.fixed_dictionaries(
    {
        "rtol": st.sampled_from([0.0, 1e-9, 1e-5, 1e-2]),
        "atol": st.sampled_from([0.0, 1e-8, 1e-3]),
        "max_steps": st.sampled_from([0, 1, 7, 40]),
    }
)


def build(case, problem, contraction):
    """The map z ↦ Wz + b, or its tanh, with its arguments and a start in NumPy."""
    rng = np.random.default_rng(problem["seed"])
    W = contraction(problem["n"], problem["norm"], problem["seed"])
    b, z0 = rng.standard_normal((2, problem["n"]))
    act = case.xp.tanh if problem["tanh"] else (lambda z: z)
    return (lambda z, W, b: act(W @ z + b)), z0, (W, b)


def outside(case, f, value, args):
    """‖f(z) − z‖ and ‖f(z)‖, evaluated anew."""
    image, z = (case.to_numpy(a) for a in (f(value, *case.tree(args)), value))
    return np.linalg.norm(image - z), np.linalg.norm(image)


def layered(case, by, problem, contraction, layer):
    """A problem that every solver applies to, its arguments, and a start in NumPy."""
    A = contraction(problem["n"], problem["norm"], problem["seed"])
    b, z0 = np.random.default_rng(problem["seed"]).standard_normal((2, problem["n"]))
    return layer(case.xp, by is fp.root), z0, (A, b)


def residual(case, f, value, args, by):
    """‖f(z) − z‖ or ‖F(x)‖, evaluated anew."""
    if by is fp.fixed_point:
        return outside(case, f, value, args)[0]
    return np.linalg.norm(case.to_numpy(f(value, *case.tree(args))))


@given(problem=problems, solver=solvers, stop=stops)
def test_residual_norm_is_that_of_the_returned_value(
    xp_case, contraction, problem, solver, stop
):
    f, z0, args = build(xp_case, problem, contraction)
    sol = xp_case.solve(f, z0, args, solver=solver, **stop)
    norm, scale = outside(xp_case, f, sol.value, args)
    reported = float(xp_case.to_numpy(sol.residual_norm))
    np.testing.assert_allclose(reported, norm, rtol=1e-12, atol=1e-15 * scale)


@given(problem=problems, solver=solvers, stop=stops)
def test_a_small_residual_is_claimed_if_and_only_if_it_is_one(
    xp_case, contraction, problem, solver, stop
):
    f, z0, args = build(xp_case, problem, contraction)
    sol = xp_case.solve(f, z0, args, solver=solver, test="residual", **stop)
    norm, scale = outside(xp_case, f, sol.value, args)
    first, _ = outside(xp_case, f, xp_case.asarray(z0), args)
    tolerance = stop["atol"] + stop["rtol"] * scale
    slack = 1e-14 * scale
    if bool(sol.converged):
        assert norm <= tolerance + slack
    else:
        ceiling = max(FALL * first, stop["atol"])
        assert int(sol.steps) == stop["max_steps"] or int(sol.status) in EARLY
        assert norm > min(tolerance, ceiling) - slack


@given(problem=problems, solver=solvers, stop=stops)
def test_evaluations_are_counted_and_none_is_wasted(
    xp_case, contraction, counted, problem, solver, stop
):
    f, z0, args = build(xp_case, problem, contraction)
    f = counted(f)
    sol = xp_case.solve(f, z0, args, solver=solver, **stop)
    assert f.calls == sol.work.f
    looks = f.calls - int(sol.steps) - 1
    # After a long last step there is one; a residual that does not fall for three steps
    # is compared with rounding.
    assert 0 <= looks <= 8


@settings(max_examples=10)
@given(problem=problems, stop=stops)
@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_every_solver_tells_the_truth_of_residuals(
    numpy_case, contraction, layer, counted, solver, by, problem, stop
):
    f, z0, args = layered(numpy_case, by, problem, contraction, layer)
    f = counted(f)
    sol = numpy_case.solve(
        f, z0, args, by=by, solver=solver, record=True, test="residual", **stop
    )
    assert f.calls == sol.work.f
    first, norm = (
        residual(numpy_case, f.function, z, args, by) for z in (z0, sol.value)
    )
    scale = (
        first if by is fp.root else outside(numpy_case, f.function, sol.value, args)[1]
    )
    slack = 1e-14 * max(scale, np.linalg.norm(sol.value))
    tolerance = min(
        stop["atol"] + stop["rtol"] * scale, max(FALL * first, stop["atol"])
    )
    np.testing.assert_allclose(float(sol.residual_norm), norm, rtol=1e-12, atol=slack)
    if bool(sol.converged):
        assert norm <= stop["atol"] + stop["rtol"] * scale + slack
    else:
        assert int(sol.status) in FAILURES
        assert norm > tolerance - slack
        assert float(sol.residual_norm) == np.nanmin(sol.trace.residual_norm)


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_truth_on_every_library(xp_case, contraction, layer, solver, by):
    problem = {"n": 4, "norm": 0.95, "seed": 7}
    f, z0, args = layered(xp_case, by, problem, contraction, layer)
    sol = xp_case.solve(
        f, z0, args, by=by, solver=solver, rtol=1e-7, atol=0.0, max_steps=80
    )
    norm = residual(xp_case, f, sol.value, args, by)
    scale = residual(xp_case, f, xp_case.asarray(z0), args, by)
    if by is fp.fixed_point:
        scale = outside(xp_case, f, sol.value, args)[1]
    assert bool(sol.converged)
    assert norm <= 1e-7 * scale * (1 + 1e-6)
    np.testing.assert_allclose(float(sol.residual_norm), norm, rtol=1e-6, atol=1e-15)


@pytest.mark.parametrize("max_steps", [1, 2, 5])
def test_the_best_iterate_is_returned(
    eager_case, contraction, layer, solver, max_steps
):
    f, z0, args = layered(
        eager_case, fp.fixed_point, {"n": 3, "norm": 1.6, "seed": 3}, contraction, layer
    )
    settings = {"solver": solver, "rtol": 0.0, "atol": 0.0, "max_steps": max_steps}
    sol = eager_case.solve(f, z0, args, record=True, **settings)
    norms = eager_case.to_numpy(sol.trace.residual_norm)
    reached = residual(eager_case, f, sol.value, args, fp.fixed_point)
    np.testing.assert_allclose(reached, np.nanmin(norms), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("norm", ["euclidean", "max"])
def test_residual_norm_is_over_all_leaves(jit_case, norm):
    z0 = {"a": np.array([1.0, -2.0]), "b": np.array([[3.0]])}
    f = lambda z: {"a": 0.5 * z["a"], "b": -0.25 * z["b"]}
    sol = jit_case.solve(f, z0, norm=norm, max_steps=2, solver=PICARD)
    last = np.array([0.25, -0.5, 3.0 / 16])
    residual = np.array([-0.125, 0.25, -3.75 / 16])
    order = 2 if norm == "euclidean" else np.inf
    np.testing.assert_allclose(
        np.ravel(jit_case.to_numpy(sol.value["a"])), last[:2], rtol=1e-15
    )
    np.testing.assert_allclose(
        float(sol.residual_norm), np.linalg.norm(residual, order), rtol=1e-14
    )


@pytest.mark.parametrize("damping", [0.05, 0.1, 0.5, 1.0, 1.3])
def test_damping_does_not_loosen_the_stop(compiled_case, damping):
    slope, atol = 0.5, 1e-6
    factor = 1 - damping * (1 - slope)
    # Of errors from 1/(1 − slope).
    expected = np.ceil(np.log(atol * (1 - slope)) / np.log(factor))
    sol = compiled_case.solve(
        lambda z: slope * z + 1.0,
        np.asarray(0.0),
        solver=fp.Picard(damping=damping),
        rtol=0.0,
        atol=atol,
        max_steps=5000,
    )
    assert int(sol.steps) == expected
    np.testing.assert_allclose(
        float(sol.error), factor**expected / (1 - slope), rtol=1e-6
    )
    np.testing.assert_allclose(float(sol.residual_norm), factor**expected, rtol=1e-8)


# Of the strict library, whose steps are NumPy's and slower, the few that tell as much.
@pytest.mark.parametrize(
    ("eager_case", "start", "max_steps"),
    [
        *((library, 0.0, 150) for library in ("numpy", "torch")),
        *((library, 90.0, 40) for library in ("numpy", "strict", "torch")),
    ],
    indirect=["eager_case"],
)
def test_a_runaway_never_converges(eager_case, solver, start, max_steps):
    """A step is a hundredth of the state after a hundred of them."""
    settings = {"solver": solver, "rtol": 1e-2, "max_steps": max_steps}
    sol = eager_case.solve(lambda z: z + 1.0, np.full(2, start), **settings)
    assert int(sol.status) in FAILURES
    np.testing.assert_allclose(float(sol.residual_norm), np.sqrt(2), rtol=1e-12)


@pytest.mark.parametrize(
    ("eager_case", "max_steps"),
    [("numpy", 100), ("strict", 25), ("torch", 100)],
    indirect=["eager_case"],
)
def test_a_residual_without_a_root_never_converges(eager_case, solver, max_steps):
    sol = eager_case.solve(
        lambda x: x**2 + 1.0,
        np.array([1.0, -3.0]),
        by=fp.root,
        solver=solver,
        max_steps=max_steps,
    )
    assert int(sol.status) in FAILURES
    value = eager_case.to_numpy(sol.value)
    np.testing.assert_allclose(
        float(sol.residual_norm), np.linalg.norm(value**2 + 1.0), rtol=1e-12
    )


@pytest.mark.parametrize("damping", [0.2, 1.0])
def test_a_diverging_iteration_never_converges(compiled_case, damping):
    sol = compiled_case.solve(
        lambda z: 2.0 * z + 1.0,
        np.zeros(2),
        solver=fp.Picard(damping=damping),
        max_steps=3000,
    )
    assert not bool(sol.converged)
    assert np.all(np.isfinite(compiled_case.to_numpy(sol.value)))


def test_a_start_at_the_fixed_point_takes_no_step(eager_case, counted, solver):
    f = counted(lambda z: 0.5 * z + 1.0)
    sol = eager_case.solve(f, np.full(3, 2.0), solver=solver)
    assert int(sol.status) == fp.Status.CONVERGED
    assert (int(sol.steps), sol.work.f, f.calls) == (0, 1, 1)
    np.testing.assert_array_equal(eager_case.to_numpy(sol.value), np.full(3, 2.0))


def test_a_start_at_the_root_takes_no_step(eager_case, counted, solver):
    F = counted(lambda x: 0.5 * x - 1.0)
    sol = eager_case.solve(F, np.full(3, 2.0), by=fp.root, solver=solver)
    assert (int(sol.status), int(sol.steps)) == (fp.Status.CONVERGED, 0)
    # One may be the product that scales the first step.
    assert F.calls <= sum(sol.work) <= 2


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_a_batch_costs_the_evaluations_of_its_slowest_sample(xp_case, counted, solver):
    f = counted(lambda z, a: a * z + 1.0)
    a = np.array([[0.0], [0.5], [0.8]])
    z0 = np.full((3, 2), 1.0) * np.array([1.0, 3.0])
    sol = xp_case.solve(f, z0, (a,), solver=solver, batch_ndim=1)
    steps = xp_case.to_numpy(sol.steps)
    # One more where a sample is solved by a long step.
    assert steps.max() + 1 <= f.calls == sol.work.f <= steps.max() + 2


@pytest.mark.parametrize("damping", [0.1, 0.7, 1.0])
def test_a_damped_operator_is_tested_undamped(compiled_case, damping):
    f = lambda z: 0.5 * z + 1.0
    operator = fp.operators.Map(f).damped(damping)
    sol = compiled_case.solve(
        operator, np.zeros(2), solver=PICARD, rtol=0.0, atol=1e-5, max_steps=999
    )
    reference = compiled_case.solve(
        f,
        np.zeros(2),
        solver=fp.Picard(damping=damping),
        rtol=0.0,
        atol=1e-5,
        max_steps=999,
    )
    value = compiled_case.to_numpy(sol.value)
    np.testing.assert_allclose(
        float(sol.residual_norm), np.linalg.norm(0.5 * value + 1 - value), rtol=1e-9
    )
    assert int(sol.steps) == int(reference.steps)


@pytest.mark.parametrize("damping", [0.05, 1.0])
def test_a_damped_block_is_tested_undamped(compiled_case, damping):
    Map = fp.operators.Map
    joint = fp.operators.Joint(
        lambda state: state,
        {
            "u": Map(lambda _, s: s["v"] / 2 + 1).damped(damping),
            "v": Map(lambda _, s: s["u"] / 4).damped(damping),
        },
    )
    z0 = {"u": np.zeros(1), "v": np.zeros(1)}
    sol = compiled_case.solve(
        joint, z0, solver=PICARD, rtol=0.0, atol=1e-4, max_steps=900
    )
    u, v = (float(sol.value[name][0]) for name in "uv")
    residuals = np.array([v / 2 + 1 - u, u / 4 - v])
    assert bool(sol.converged)
    assert np.all(np.abs(residuals) <= 1e-4 * (1 + 1e-9))
    np.testing.assert_allclose(
        float(sol.residual_norm), np.linalg.norm(residuals), rtol=1e-9
    )


def test_the_residual_of_an_input_step_is_free_of_the_step(xp_case):
    def residual(step_size):
        block = fp.operators.InputStep(
            step_size, lambda v, alpha: xp_case.xp.clip(v, -1.0, 1.0)
        )
        gradient = xp_case.asarray(np.array([0.3, -5.0, 2.0]))
        linear = fp.operators.LocalGradients(None, None, None, gradient)
        state = xp_case.asarray(np.array([0.5, 0.5, -1.0]))
        return xp_case.to_numpy(block.evaluate(state, linear).residual)

    np.testing.assert_allclose(residual(1e-3), [-0.3, 0.5, 0.0], rtol=1e-15, atol=1e-16)
    np.testing.assert_array_equal(residual(1e-3), residual(7.0))


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
@pytest.mark.parametrize(
    "solver", [None, fp.NewtonKrylov(), fp.NewtonKrylov(linear=fp.BiCGStab())]
)
def test_what_a_linear_solve_leaves_of_small_equations_is_met_before_a_claim(
    solver, rtol
):
    """Unknowns and equations of two kinds, 10⁴ apart: a residual may be small in its
    norm since it has nothing of the large ones. Few of such claims are left.
    """
    rng, shape = np.random.default_rng(0), (2, 110)
    units, wrong, draws = np.array([[1.0], [1e4]]), 0, 0
    while draws < 60:
        matrix, mean = rng.uniform(-2.0, 2.0, (2, 2)), rng.uniform(0.1, 2.0, (2, 1))
        if np.linalg.cond(matrix) > 10.0:
            continue
        draws += 1
        known = units * mean * (1.0 + 0.1 * np.sin(np.arange(shape[1]) / 9.0))
        sol = fp.root(
            lambda x, A, known: units * (A @ ((x - known) / units)),
            units * np.ones(shape),
            (matrix, known),
            solver=solver,
            rtol=rtol,
            on_failure="return",
        )
        error = np.linalg.norm(sol.value - known)
        wrong += bool(sol.converged) and error > 10 * rtol * np.linalg.norm(known)
    assert wrong <= 2


@pytest.mark.parametrize(
    ("size", "solver", "norm"),
    [(240, None, None), (80, None, "euclidean"), (6, "newton_krylov", "max")],
)
def test_equations_in_small_units_are_met_before_a_claim(size, solver, norm):
    """A norm of all equations says nothing of those, nor do the corrections of a method
    that follows it.
    """
    for seed in range(9):
        rng = np.random.default_rng(seed)
        kind = rng.integers(0, 3, size)
        units, unit = 10.0 ** rng.uniform([[-4.0], [-2.0]], [[4.0], [2.0]], (2, 3))
        K = rng.standard_normal((size, size))
        K *= rng.uniform(0.2, 0.9) / np.linalg.norm(K, 2)
        known, move = unit[kind] * rng.standard_normal((2, size))
        rtol = 10.0 ** rng.uniform(-9.0, -2.0)

        def F(x, known=known, K=K, units=units[kind], unit=unit[kind]):
            error = (x - known) / unit
            return units * (error + K @ np.tanh(error))

        settings = {"solver": solver, "rtol": rtol, "norm": norm, "max_steps": 30}
        sol = fp.root(F, known + move, on_failure="return", **settings)
        error = np.linalg.norm(sol.value - known)
        assert not sol.converged or error <= 10 * rtol * np.linalg.norm(known)


def contradictions(n, count):
    """Singular systems of n equations whose right sides miss the range by more than a
    millionth, in units of their own: matrices, right sides, units and starts.
    """
    seed, found = 0, []
    while len(found) < count:
        rng, seed = np.random.default_rng(seed), seed + 1
        rank = int(rng.integers(1, n))
        B = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n))
        b = B @ rng.standard_normal(n)
        b += 10.0 ** rng.uniform(-5.5, -3.0) * rng.standard_normal(n)
        left = B @ np.linalg.lstsq(B, b, rcond=1e-12)[0] - b
        equation, unknown = 10.0 ** rng.integers(-6, 7, 2)
        start = 10.0 ** rng.integers(-1, 3) * rng.standard_normal(n)
        if np.linalg.norm(left) >= 1e-6 * np.linalg.norm(b):
            found.append((B, b, equation, unknown, unknown * start))
    return [np.array(part) for part in zip(*found, strict=True)]


@pytest.mark.parametrize("solver", ["broyden", "newton", "newton_krylov"])
def test_contradictions_have_no_root_in_a_trace(solver):
    """As outside of it; where half of what rounding could tell is not asked, one in
    sixty.
    """

    def solve(B, b, equation, unknown, start):
        F = lambda x, B, b: equation * (B @ (x / unknown) - b)
        return fp.root(
            F, start, (B, b), solver=solver, max_steps=300, on_failure="return"
        ).converged

    claims = jax.jit(jax.vmap(solve))(*map(jnp.asarray, contradictions(3, 60)))
    assert int(claims.sum()) <= 1


SINGULAR = [
    None,
    *("broyden", "newton", "levenberg_marquardt", "newton_krylov"),
]


@pytest.mark.parametrize("solver", SINGULAR)
def test_equations_that_contradict_each_other_have_no_root(solver):
    """A singular matrix lets iterates run away along its null space, until rounding
    hides what the equations leave; closer by it is a thousandth of their right sides to
    a tenth of a millionth.
    """
    for n in (2, 4, 7):
        for B, b, e, s, start in zip(*contradictions(n, 5), strict=True):
            F = lambda x, B=B, b=b, e=e, s=s: e * (B @ (x / s) - b)
            sol = fp.root(F, start, solver=solver, max_steps=500, on_failure="return")
            assert not sol.converged, (B, b)


@pytest.mark.parametrize("solver", SINGULAR)
def test_a_step_that_rounding_swallows_is_no_root_where_a_function_is_flat(solver):
    """Of exponentials that underflow nothing can be told, however short a correction
    looks beside a state that is far out.
    """
    for seed in range(8):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 7))
        rank = int(rng.integers(1, n))
        B = rng.standard_normal((n, rank)) @ rng.standard_normal((rank, n))
        b = B @ rng.standard_normal(n) + 0.1 * rng.standard_normal(n)
        F = lambda x, B=B, b=b: B @ np.expm1(np.clip(x, -50.0, 50.0)) - b
        start = 100.0 * rng.standard_normal(n)
        sol = fp.root(F, start, solver=solver, max_steps=500, on_failure="return")
        assert not sol.converged, seed


def of_exponentials(seed):
    """A function that is zero where A(x − x*) is, in units of its own for each equation
    and unknown, the answer, a start far away, and the derivative at the answer but for
    the units of equations.
    """
    rng = np.random.default_rng(seed)
    A, known = rng.standard_normal((3, 3)), rng.standard_normal(3)
    units = 10.0 ** rng.uniform(-6.0, 6.0, 3)
    rows = 10.0 ** rng.uniform(-6.0, 6.0, 3)
    start = known + 10.0 ** rng.uniform(-2.0, 2.0) * rng.standard_normal(3)
    F = lambda x: rows * np.expm1(np.clip(A @ (x / units - known), -50.0, 50.0))
    return F, units * known, units * start, A / units


@pytest.mark.parametrize(
    ("solver", "seeds"),
    [
        ("broyden", [782, *range(30)]),
        ("newton_krylov", [617, *range(30)]),
        ("anderson", range(30)),
    ],
)
def test_an_equation_that_the_last_steps_did_not_change_is_not_solved(solver, seeds):
    """Far out slopes are steep: what is known of them says that next to nothing is left
    to do, and one equation that comes to its end makes the correction short.
    """
    for seed in seeds:
        F, known, start, J = of_exponentials(seed)
        sol = fp.root(F, start, solver=solver, on_failure="return")
        error = np.abs(J @ (sol.value - known)) / (np.abs(J) @ np.abs(known))
        assert not sol.converged or np.all(error <= 1e-5), seed
