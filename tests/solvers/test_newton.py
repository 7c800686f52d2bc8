"""Methods of Newton's type: order, damping, domains, derivatives given, and what they
cost.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, permutations

import numpy as np
import pytest
from scipy import optimize

import fixedpoint as fp
from fixedpoint.linear import LinearSolution, LinearSolver
from fixedpoint.testing import problems

DENSE = [fp.Newton(), fp.Newton(line_search=False), fp.LevenbergMarquardt()]
FREE = [fp.NewtonKrylov(), fp.NewtonKrylov(linear=fp.BiCGStab()), fp.PseudoTransient()]
SOLVERS = [*DENSE, *FREE]
DAMPED = [fp.Newton(), fp.NewtonKrylov(), fp.LevenbergMarquardt()]
Status = fp.Status


def returned(F, x0, solver, **settings):
    return fp.root(
        F, np.asarray(x0, float), solver=solver, on_failure="return", **settings
    )


def circle(x):
    """A circle of radius 2 meets a parabola."""
    return np.stack([x[0] ** 2 + x[1] ** 2 - 4.0, x[1] - x[0] ** 2])


def circle_jacobian(x):
    return np.array([[2.0 * x[0], 2.0 * x[1]], [-2.0 * x[0], 1.0]])


def circle_jvp(x, v):
    return circle_jacobian(x) @ v


CIRCLE_START = np.array([3.0, 1.0])
CIRCLE_ROOT = np.sqrt([(np.sqrt(17.0) - 1.0) / 2.0, ((np.sqrt(17.0) - 1.0) / 2.0) ** 2])


@pytest.mark.parametrize("solver", SOLVERS)
def test_roots(xp_case, solver):
    F = lambda x: xp_case.xp.stack([x[0] ** 2 + x[1] ** 2 - 4.0, x[1] - x[0] ** 2])
    sol = fp.root(F, xp_case.asarray(CIRCLE_START), solver=solver, rtol=1e-11, atol=0.0)
    np.testing.assert_allclose(xp_case.to_numpy(sol.value), CIRCLE_ROOT, rtol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fixed_points_of_a_map_that_expands(contraction, solver):
    A, b = contraction(5, 3.0), np.arange(1.0, 6.0)
    sol = fp.fixed_point(
        lambda z: A @ z + b, np.zeros(5), solver=solver, rtol=1e-9, atol=0.0
    )
    np.testing.assert_allclose(sol.value, np.linalg.solve(np.eye(5) - A, b), rtol=1e-6)


@pytest.mark.parametrize("solver", [*DENSE[:2], fp.LevenbergMarquardt()])
def test_convergence_is_quadratic(solver):
    sol = fp.root(
        circle,
        CIRCLE_START,
        solver=solver,
        jacobian=circle_jacobian,
        rtol=0.0,
        atol=1e-12,
        record=True,
    )
    logarithms = np.log(sol.trace.residual_norm[: int(sol.steps) + 1])
    logarithms = logarithms[logarithms > np.log(1e-14)]
    orders = np.diff(logarithms)[1:] / np.diff(logarithms)[:-1]
    assert orders[-1] > 1.8


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_newton_takes_the_textbook_steps(steps):
    x = CIRCLE_START
    for _ in range(steps):
        x = x - np.linalg.solve(circle_jacobian(x), circle(x))
    for solver in (fp.Newton(), fp.LevenbergMarquardt()):
        sol = returned(
            circle,
            CIRCLE_START,
            solver,
            jacobian=circle_jacobian,
            max_steps=steps,
            rtol=0.0,
        )
        np.testing.assert_allclose(sol.value, x, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS[:5])
def test_an_affine_system_takes_one_step(contraction, solver):
    A, b = np.eye(6) + contraction(6, 0.8), np.arange(1.0, 7.0)
    exact = (
        solver
        if solver in DENSE
        else fp.NewtonKrylov(linear=solver.linear, forcing=1e-10)
    )
    sol = fp.root(
        lambda x: A @ x - b,
        np.zeros(6),
        solver=exact,
        jacobian=lambda _: A,
        rtol=1e-3,
        atol=0.0,
    )
    assert int(sol.steps) == 1


# Local minimizers of ‖F‖ that are no roots.

FREUDENSTEIN = problems.freudenstein_roth()
MINIMISER, MINIMUM = [11.4127790, -0.8968053], 48.9842537**0.5


@pytest.mark.parametrize("solver", DAMPED)
def test_descent_ends_near_a_minimizer_and_says_so(solver):
    """In a valley where the Jacobian is singular; of the three, a trust region goes on
    along it.
    """
    sol = returned(FREUDENSTEIN.function, FREUDENSTEIN.start, solver, max_steps=300)
    assert int(sol.status) in (
        Status.LINE_SEARCH_FAILED,
        Status.STALLED,
        Status.MAX_STEPS,
    )
    assert MINIMUM * (1 - 1e-6) <= sol.residual_norm <= 1.1 * MINIMUM
    np.testing.assert_allclose(sol.value[1], MINIMISER[1], atol=1e-3)
    if isinstance(solver, fp.LevenbergMarquardt):
        np.testing.assert_allclose(sol.value, MINIMISER, atol=1e-3)


@pytest.mark.parametrize(
    "solver",
    [
        fp.Newton(line_search=False),
        fp.Newton(line_search=False, step_bound=0.5),
        fp.NewtonKrylov(line_search=False, forcing=1e-3, forcing_max=1e-3),
        fp.PseudoTransient(),
        None,
    ],
)
def test_without_descent_the_root_is_reached(solver):
    sol = fp.root(FREUDENSTEIN.function, FREUDENSTEIN.start, solver=solver)
    np.testing.assert_allclose(sol.value, [5.0, 4.0], rtol=1e-5)


@pytest.mark.parametrize("solver", [fp.NewtonKrylov(), fp.LevenbergMarquardt()])
def test_damped_residuals_fall(solver):
    problem = problems.helical_valley()
    sol = fp.root(problem.function, problem.start, solver=solver, record=True)
    norms = sol.trace.residual_norm[: int(sol.steps) + 1]
    assert np.all(np.diff(norms) < 0.0)
    np.testing.assert_allclose(sol.value, [1.0, 0.0, 0.0], atol=1e-4)


def test_steps_are_bounded_entry_by_entry():
    """Newton's step from (1, 8) is (9, −4.5): its first entry is cut at half of 8."""
    F = lambda x: np.stack([x[0] - 10.0, x[1] - 3.5])
    solver = fp.Newton(line_search=False, step_bound=0.5)
    sol = returned(
        F, [1.0, 8.0], solver, jacobian=lambda _: np.eye(2), max_steps=1, rtol=0.0
    )
    np.testing.assert_allclose(sol.value, [5.0, 4.0])


# Where F is not defined.


def raising(error):
    def logarithm(x):
        if np.any(x <= 0.0):
            raise error
        return np.log(x)

    return logarithm


def silent(x):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(x)


UNDEFINED = [
    silent,
    raising(fp.DomainError("log of what is not positive")),
    raising(ZeroDivisionError()),
    raising(OverflowError()),
]


@pytest.mark.parametrize("F", UNDEFINED)
@pytest.mark.parametrize("solver", [*SOLVERS, fp.Broyden()])
def test_outside_the_domain_steps_are_shortened(F, solver):
    """From 10, Newton's step for log x leads to 10 − 10 log 10 < 0."""
    sol = fp.root(F, np.array([10.0, 5.0]), solver=solver, rtol=1e-9)
    np.testing.assert_allclose(sol.value, 1.0, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_square_root_at_the_edge_of_its_domain(solver):
    """x ↦ √x − 1/4 in [0, ∞): from 1, Newton's step leads to −1/2."""

    def edge(x):
        if np.any(x < 0.0):
            raise fp.DomainError("x must not be negative")
        return np.sqrt(x) - 0.25

    sol = fp.root(edge, np.array([1.0]), solver=solver, rtol=1e-9, atol=0.0)
    np.testing.assert_allclose(sol.value, 1.0 / 16.0, rtol=1e-6)


@pytest.mark.parametrize(
    "solver", [*SOLVERS, fp.Broyden(), fp.Anderson(), fp.SQUAREM()]
)
@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError])
def test_other_exceptions_pass_through(solver, error):
    """Raised at the first trial point, and not where differences are taken."""

    def guarded(x):
        if abs(x[0] - 10.0) > 1e-3:
            raise error("here")
        return np.log(x)

    with pytest.raises(error, match="here"):
        fp.root(guarded, np.array([10.0]), solver=solver)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("error", [fp.DomainError, ZeroDivisionError])
def test_an_undefined_start_raises(solver, error):
    with pytest.raises(error, match="here"):
        fp.root(raising(error("here")), np.array([-1.0]), solver=solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_that_is_not_finite_is_a_status(solver):
    sol = returned(silent, [-1.0, 2.0], solver)
    assert int(sol.status) == Status.NON_FINITE
    assert (int(sol.steps), sol.work.f) == (0, 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_neighbor_outside_its_domain_changes_nothing(solver):
    F = lambda x, a: silent(x) - a
    x0, a = np.array([[10.0], [2.0], [-1.0]]), np.array([[0.0], [0.3], [0.0]])
    settings = {"solver": solver, "batch_ndim": 1, "on_failure": "return", "rtol": 1e-9}
    sol = fp.root(F, x0, (a,), **settings)
    alone = fp.root(F, x0[1:2], (a[1:2],), **settings)
    np.testing.assert_array_equal(sol.status, [1, 1, Status.NON_FINITE])
    np.testing.assert_allclose(sol.value[1], alone.value[0], rtol=1e-14)
    assert sol.steps[1] == alone.steps[0]


# Derivatives and preconditioners that are given.


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "given",
    [{}, {"jvp": circle_jvp}, {"jacobian": circle_jacobian}],
    ids=["none", "jvp", "matrix"],
)
def test_derivatives_given_are_used_and_counted(counted, solver, given):
    F = counted(circle)
    given = {name: counted(function) for name, function in given.items()}
    sol = fp.root(F, CIRCLE_START, solver=solver, rtol=1e-10, **given)
    np.testing.assert_allclose(sol.value, CIRCLE_ROOT, rtol=1e-8)
    assert F.calls == sol.work.f
    assert sol.work.vjp == 0
    if "jvp" in given:
        assert given["jvp"].calls == sol.work.jvp
    elif "jacobian" in given:
        assert given["jacobian"].calls == int(sol.steps)
    else:
        assert sol.work.jvp == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_derivative_given_for_a_map_is_that_of_the_map(contraction, solver):
    W, b = contraction(4, 0.9), np.arange(4.0)
    f = lambda z: np.tanh(W @ z + b)
    jacobian = lambda z: (1.0 - f(z) ** 2)[:, None] * W
    settings = {"solver": solver, "rtol": 1e-11, "atol": 0.0}
    for given in ({"jacobian": jacobian}, {"jvp": lambda z, v: jacobian(z) @ v}):
        sol = fp.fixed_point(f, np.zeros(4), **settings, **given)
        np.testing.assert_allclose(f(sol.value), sol.value, rtol=1e-9, atol=1e-10)
        assert int(sol.steps) <= 12


@pytest.mark.parametrize("solver", DENSE)
def test_a_matrix_costs_a_column_each(contraction, counted, solver):
    n, steps = 4, 3
    A = np.eye(n) + contraction(n, 0.5)
    F = counted(lambda x: A @ np.exp(x) - np.arange(1.0, 5.0))
    sol = returned(F, np.ones(n), solver, rtol=0.0, atol=0.0, max_steps=steps)
    assert F.calls == sol.work.f == 1 + steps * (n + 1)
    jvp = counted(lambda x, v: A @ (np.exp(x) * v))
    sol = returned(F, np.ones(n), solver, rtol=0.0, atol=0.0, max_steps=steps, jvp=jvp)
    assert jvp.calls == sol.work.jvp == steps * n
    assert sol.work.f == 1 + steps


@pytest.mark.parametrize("solver", DENSE)
def test_a_sparse_matrix_costs_its_groups_of_columns(counted, solver):
    """Three of a tridiagonal one, and an evaluation that confirms them, after the first
    step.
    """
    problem, n, steps = problems.broyden_tridiagonal(30), 30, 3
    F = counted(problem.function)
    sol = returned(F, problem.start, solver, rtol=0.0, atol=0.0, max_steps=steps)
    assert F.calls == sol.work.f == 1 + steps + n + (steps - 1) * 4


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("solver", DENSE)
def test_entries_that_were_zero_at_the_start_are_found(solver, scale):
    """As the derivative of xy by x where y = 0, whatever the scale of its equation
    is.
    """

    def product(x):
        return np.concatenate(
            [[scale * (x[0] * x[1] - 6.0), x[1] - x[0] + 1.0], x[2:] - 7.0]
        )

    def jacobian(x):
        J = np.eye(6)
        J[:2, :2] = [[scale * x[1], scale * x[0]], [-1.0, 1.0]]
        return J

    x0 = np.array([1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    sol = fp.root(product, x0, solver=solver, rtol=1e-13, atol=1e-9 * scale)
    exact = fp.root(
        product, x0, solver=solver, rtol=1e-13, atol=1e-9 * scale, jacobian=jacobian
    )
    np.testing.assert_allclose(sol.value, exact.value, rtol=1e-5)
    assert int(sol.steps) <= int(exact.steps) + 2


@pytest.mark.parametrize("pair", list(permutations(range(3), 2)))
@pytest.mark.parametrize("solver", DENSE)
def test_an_entry_that_appears_between_columns_differenced_together_is_found(
    solver, pair
):
    """One evaluation makes all columns of a diagonal matrix, and hides what is added
    to it elsewhere unless the columns are moved by different amounts.
    """
    row, column = pair

    def F(x):
        bend = 10.0 * np.maximum(x[column] - 1.0, 0.0) ** 2
        return x**3 - 8.0 + bend * np.eye(3)[row]

    def jacobian(x):
        J = np.diag(3.0 * x**2)
        J[row, column] = 20.0 * np.maximum(x[column] - 1.0, 0.0)
        return J

    sol = fp.root(F, np.full(3, 0.9), solver=solver, rtol=1e-10)
    exact = fp.root(F, np.full(3, 0.9), solver=solver, rtol=1e-10, jacobian=jacobian)
    np.testing.assert_allclose(sol.value, exact.value, rtol=1e-9)
    assert int(sol.steps) <= int(exact.steps) + 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_where_the_library_differentiates_products_are_counted_apart(
    library, counted, solver
):
    xp = pytest.importorskip({"torch": "torch", "jax": "jax.numpy"}[library])
    F = lambda x: xp.stack([x[0] ** 2 + x[1] ** 2 - 4.0, x[1] - x[0] ** 2])
    start = xp.asarray(CIRCLE_START)
    sol = fp.root(F, start, solver=solver, rtol=1e-10)
    reference = fp.root(circle, CIRCLE_START, solver=solver, rtol=1e-10, jvp=circle_jvp)
    assert int(sol.steps) == int(reference.steps)
    assert (int(sol.work.f), int(sol.work.jvp)) == (
        reference.work.f,
        reference.work.jvp,
    )


def test_a_batch_has_a_jacobian_for_each_sample():
    a = np.array([[2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    jacobian = lambda x, _: 3.0 * x[..., None] ** 2 * np.eye(2)
    for solver in SOLVERS:
        sol = fp.root(
            lambda x, a: x**3 - a,
            np.ones((3, 2)),
            (a,),
            solver=solver,
            jacobian=jacobian,
            batch_ndim=1,
            rtol=1e-10,
        )
        np.testing.assert_allclose(sol.value, np.cbrt(a), rtol=1e-8)


def diffusion(n=40):
    """−u″ + u³ = 1 on a grid, its Jacobian, and the matrix of differences."""
    L = (n + 1.0) ** 2 * (2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1))
    return (lambda u: L @ u + u**3 - 1.0), (lambda u: L + np.diag(3.0 * u**2)), L


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["csr", "csc", "operator"])
def test_a_jacobian_may_be_sparse_or_an_operator(solver, kind):
    sparse = pytest.importorskip("scipy.sparse")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    kinds = {
        "csr": sparse.csr_matrix,
        "csc": sparse.csc_array,
        "operator": linalg.aslinearoperator,
    }
    F, jacobian, _ = diffusion(20)
    sol = fp.root(
        F,
        np.zeros(20),
        solver=solver,
        jacobian=lambda u: kinds[kind](jacobian(u)),
        rtol=1e-9,
    )
    dense = fp.root(F, np.zeros(20), solver=solver, jacobian=jacobian, rtol=1e-9)
    np.testing.assert_allclose(sol.value, dense.value, rtol=1e-7)
    assert int(sol.steps) == int(dense.steps)
    assert np.linalg.norm(F(sol.value)) <= 1e-9 * np.linalg.norm(F(np.zeros(20)))


@pytest.mark.parametrize("linear", [fp.GMRES(), fp.BiCGStab(), fp.ConjugateGradient()])
@pytest.mark.parametrize("kind", ["function", "splu", "spilu", "operator"])
def test_a_preconditioner_reduces_the_work(linear, kind):
    sparse = pytest.importorskip("scipy.sparse")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    F, jacobian, L = diffusion()
    inverse = np.linalg.inv(L)
    preconditioner = {
        "function": lambda _: lambda v: inverse @ v,
        "splu": lambda u: linalg.splu(sparse.csc_array(jacobian(u))),
        "spilu": lambda _: linalg.spilu(sparse.csc_array(L)),
        "operator": lambda _: linalg.aslinearoperator(inverse),
    }[kind]
    settings = {"solver": fp.NewtonKrylov(linear=linear), "rtol": 1e-8, "atol": 0.0}
    settings["jvp"] = lambda u, v: jacobian(u) @ v
    plain = fp.root(F, np.zeros(40), **settings)
    helped = fp.root(F, np.zeros(40), preconditioner=preconditioner, **settings)
    assert helped.work.jvp * 3 < plain.work.jvp
    np.testing.assert_allclose(helped.value, plain.value, rtol=1e-5)


def test_a_preconditioner_of_a_map_is_that_of_its_residual():
    """It approximates (f′ − I)⁻¹."""
    a = np.linspace(0.0, 0.999, 30)
    settings = {"solver": fp.NewtonKrylov(), "rtol": 1e-9, "jvp": lambda _, v: a * v}
    sol = fp.fixed_point(
        lambda z: a * z + 1.0,
        np.zeros(30),
        preconditioner=lambda _: lambda v: v / (a - 1.0),
        **settings,
    )
    assert sol.work.jvp == int(sol.steps)
    np.testing.assert_allclose(sol.value, 1.0 / (1.0 - a), rtol=1e-5)


def test_a_preconditioner_takes_containers():
    F = lambda x, a: {"u": a * x["u"] - 1.0, "v": 1e4 * x["v"] - 1.0}
    inverse = lambda _, a: lambda v: {"u": v["u"] / a, "v": v["v"] / 1e4}
    x0 = {"u": np.zeros(3), "v": np.zeros((2, 2))}
    a = np.array([1.0, 10.0, 100.0])
    sol = fp.root(
        F, x0, (a,), solver=fp.NewtonKrylov(), preconditioner=inverse, rtol=1e-6
    )
    np.testing.assert_allclose(sol.value["u"], 1.0 / a, rtol=1e-4)
    np.testing.assert_allclose(sol.value["v"], 1e-4, rtol=1e-4)


# Singular Jacobians, and linear solves that fail.


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_double_root_is_reached_slowly(solver):
    sol = fp.root(
        lambda x: (x - 1.0) ** 2, np.array([3.0]), solver=solver, rtol=1e-8, atol=0.0
    )
    assert abs(sol.value[0] - 1.0) <= 2.1e-4


@pytest.mark.parametrize("solver", [fp.Newton(), fp.LevenbergMarquardt()])
def test_a_singular_jacobian_is_solved_in_the_least_squares_sense(solver):
    """x + y = 2 twice: the nearest point of the line of roots."""
    F = lambda x: np.stack([x[0] + x[1] - 2.0, x[0] + x[1] - 2.0])
    sol = fp.root(
        F,
        np.array([3.0, 1.0]),
        solver=solver,
        jacobian=lambda _: np.ones((2, 2)),
        rtol=1e-9,
    )
    np.testing.assert_allclose(sol.value, [2.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_where_the_jacobian_is_zero_no_step_is_claimed(solver):
    """x² + 1 at its minimum."""
    sol = returned(
        lambda x: x**2 + 1.0, [0.0, 0.0], solver, jacobian=lambda x: 2.0 * np.diag(x)
    )
    assert not bool(sol.converged)
    np.testing.assert_allclose(
        sol.residual_norm, np.linalg.norm(sol.value**2 + 1.0), rtol=1e-14
    )


@pytest.mark.parametrize("linear", [fp.GMRES(), fp.BiCGStab(), fp.ConjugateGradient()])
def test_a_linear_solve_that_reduces_nothing_is_a_status(linear):
    solver = fp.NewtonKrylov(linear=linear)
    sol = returned(lambda x: 0.0 * x + 1.0, [0.0, 0.0], solver)
    assert int(sol.status) == Status.LINEAR_SOLVE_FAILED
    assert int(sol.steps) <= 4
    np.testing.assert_array_equal(sol.value, 0.0)


@pytest.mark.parametrize("batch_ndim", [0, 1])
@pytest.mark.parametrize(
    ("before_matrix", "forcing", "status"),
    [
        (True, 0.1, Status.LINEAR_SOLVE_FAILED),
        (False, 0.1, Status.MAX_STEPS),
        (True, 0.8, Status.MAX_STEPS),
    ],
)
def test_a_slow_linear_solve_is_left_to_a_matrix(
    batch_ndim, before_matrix, forcing, status
):
    """A second difference takes about as many products as there are points; but one
    that meets its target is never too slow.
    """
    problem = problems.discrete_boundary_value(300)
    solver = fp.NewtonKrylov(
        linear=fp.GMRES(restart=40, max_steps=80),
        before_matrix=before_matrix,
        forcing=forcing,
    )
    F, x0 = problem.function, problem.start
    if batch_ndim:
        F, x0 = (lambda x: np.stack(list(map(problem.function, x)))), np.stack([x0] * 2)
    sol = returned(F, x0, solver, max_steps=1, batch_ndim=batch_ndim)
    assert np.all(sol.status == int(status))


@pytest.mark.parametrize("n", [300, 1000])
def test_a_root_of_second_differences_takes_little_more_than_its_matrix(n):
    problem = problems.discrete_boundary_value(n)
    sol = fp.root(problem.function, problem.start, rtol=1e-9)
    np.testing.assert_allclose(problem.residual(sol.value), 0.0, atol=1e-10)
    assert sol.work.f <= 1.3 * n


@pytest.mark.parametrize("solver", DENSE)
def test_a_jacobian_that_is_not_finite_is_a_linear_solve_that_failed(solver):
    jacobian = lambda _: np.full((2, 2), np.nan)
    sol = returned(circle, CIRCLE_START, solver, jacobian=jacobian)
    assert int(sol.status) == Status.LINEAR_SOLVE_FAILED
    np.testing.assert_array_equal(sol.value, CIRCLE_START)


@pytest.mark.parametrize("solver", [fp.Newton(), fp.NewtonKrylov()])
def test_a_direction_without_descent_is_a_line_search_that_failed(solver):
    sol = returned(circle, CIRCLE_START, solver, jacobian=lambda x: -circle_jacobian(x))
    assert int(sol.status) == Status.LINE_SEARCH_FAILED
    np.testing.assert_array_equal(sol.value, CIRCLE_START)


# Forcing terms.


@dataclass(frozen=True, kw_only=True)
class Inexact(LinearSolver):
    """Solves a diagonal system to a given part of what is asked, and keeps what was
    asked.
    """

    asked: list = field(default_factory=list, compare=False)

    def solve(self, system, memory):
        (right,) = system.rhs
        (diagonal,) = system.product((np.ones_like(right),))
        part = min(1.0, float(system.target / np.linalg.norm(right)))
        self.asked.append(float(system.target))
        solution = (1.0 - part) * right / diagonal
        return LinearSolution((solution,), part * np.linalg.norm(right), 1), memory


def forced(rtol=0.0, **settings):
    """The relative residuals asked for, and the residual norms before each step."""
    solver = fp.NewtonKrylov(linear=Inexact(), **settings)
    F = lambda x: np.exp(x) - np.array([1.0, 2.0, 5.0])
    sol = fp.root(
        F,
        np.full(3, 2.0),
        solver=solver,
        jvp=lambda x, v: np.exp(x) * v,
        rtol=rtol,
        max_steps=10,
        record=True,
        on_failure="return",
    )
    norms = sol.trace.residual_norm[: int(sol.steps) + 1]
    return np.array(solver.linear.asked) / norms[:-1], norms


@pytest.mark.parametrize(
    "settings", [{}, {"forcing": 0.9, "gamma": 0.5}, {"forcing_max": 0.3}]
)
def test_forcing_terms_are_eisenstat_and_walkers(settings):
    eta, norms = forced(**settings)
    gamma, largest = settings.get("gamma", 0.9), settings.get("forcing_max", 0.9)
    expected = [settings.get("forcing", 0.5)]
    for old, new in pairwise(norms[:-1]):
        floor = gamma * expected[-1] ** 2
        choice = gamma * (new / old) ** 2
        expected.append(max(choice, floor if floor > 0.1 else 0.0, 1e-4))
    np.testing.assert_allclose(eta, np.minimum(expected, largest), rtol=1e-9)


def test_linear_systems_are_not_solved_beyond_what_the_tolerance_needs():
    """What is left of the error by the last one is a quarter of the tolerance."""
    eta, norms = forced(rtol=1e-3)
    error = eta[-1] * norms[-2] / np.array([1.0, 2.0, 5.0]).max()
    assert error >= 0.25 * 1e-3 * 0.1
    assert eta[-1] > 1e-4


def test_inexact_steps_save_products():
    problem = problems.bratu(12)
    settings = {"jvp": problem.jvp, "rtol": 1e-8, "atol": 0.0}
    work = [
        fp.root(
            problem.function,
            problem.start,
            solver=fp.NewtonKrylov(forcing=forcing, forcing_max=forcing),
            **settings,
        ).work.jvp
        for forcing in (0.5, 1e-10)
    ]
    assert work[0] < work[1]


# The trust region, and the flow.


def test_a_trust_region_bounds_the_first_step():
    """‖Dd‖ ≤ Δ, with D the norms of the columns and Δ a multiple of ‖Dx₀‖."""
    x0, radius = CIRCLE_START, 0.01
    sol = returned(
        circle,
        x0,
        fp.LevenbergMarquardt(radius=radius),
        jacobian=circle_jacobian,
        max_steps=1,
        rtol=0.0,
    )
    D = np.linalg.norm(circle_jacobian(x0), axis=0)
    length = np.linalg.norm(D * (sol.value - x0))
    bound = radius * np.linalg.norm(D * x0)
    assert 0.9 * bound <= length <= bound * (1 + 1e-9)


def test_a_step_within_the_region_is_that_of_the_damped_normal_equations():
    x0 = CIRCLE_START
    J, F = circle_jacobian(x0), circle(x0)
    sol = returned(
        circle,
        x0,
        fp.LevenbergMarquardt(radius=0.01),
        jacobian=circle_jacobian,
        max_steps=1,
        rtol=0.0,
    )
    d, squares = sol.value - x0, np.sum(J * J, axis=0)
    multipliers = -(J.T @ (J @ d + F)) / (squares * d)
    assert multipliers[0] > 0.0
    np.testing.assert_allclose(multipliers[1], multipliers[0], rtol=1e-8)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_trust_region_does_not_depend_on_the_scale_of_an_unknown(scale):
    """Scaled unknowns take scaled steps (Moré)."""
    units = np.array([1.0, scale])
    plain = returned(
        circle, CIRCLE_START, fp.LevenbergMarquardt(), max_steps=3, rtol=0.0
    )
    scaled = returned(
        lambda y: circle(y / units),
        CIRCLE_START * units,
        fp.LevenbergMarquardt(),
        max_steps=3,
        rtol=0.0,
    )
    np.testing.assert_allclose(scaled.value / units, plain.value, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_pseudo_transient_steps_are_those_of_linearly_implicit_euler(steps):
    """(I/δ + F′) d = −F, and δ goes with the inverse of ‖F‖."""
    A = np.array([[2.0, 1.0], [0.0, 3.0]])
    F, jacobian = (
        (lambda x: A @ x + 0.1 * x**3 - 1.0),
        (lambda x: A + np.diag(0.3 * x**2)),
    )
    x = np.array([1.0, 2.0])
    delta = 0.5 * np.linalg.norm(x) / np.linalg.norm(F(x))
    solver = fp.PseudoTransient(time_step=0.5, rtol=1e-12)
    sol = returned(F, x, solver, jacobian=jacobian, max_steps=steps, rtol=0.0, atol=0.0)
    for _ in range(steps):
        old = np.linalg.norm(F(x))
        x = x - np.linalg.solve(np.eye(2) / delta + jacobian(x), F(x))
        delta *= np.clip(old / np.linalg.norm(F(x)), 0.1, 10.0)
    np.testing.assert_allclose(sol.value, x, rtol=1e-9)


def test_pseudo_transient_continuation_stays_in_the_basin_of_its_flow():
    """arctan from 20, where Newton's full steps run away."""
    for solver in (fp.PseudoTransient(), fp.PseudoTransient(linear=fp.BiCGStab())):
        sol = fp.root(np.arctan, np.array([20.0]), solver=solver, rtol=1e-9)
        np.testing.assert_allclose(sol.value, 0.0, atol=1e-8)
    newton = returned(np.arctan, [20.0], fp.Newton(line_search=False), max_steps=30)
    assert not bool(newton.converged)


# Kinds of unknowns.


@pytest.mark.parametrize("solver", SOLVERS)
def test_complex_roots(solver):
    """In the complex numbers as a plane, z² = c."""
    c = np.array([3.0 + 4.0j, -2.0 + 0.5j])
    sol = fp.root(
        lambda z: z**2 - c,
        np.array([1.0 + 0.5j, 0.5 + 1.0j]),
        solver=solver,
        rtol=1e-10,
    )
    np.testing.assert_allclose(sol.value, np.sqrt(c), rtol=1e-8)


@pytest.mark.parametrize(
    "solver", [*SOLVERS, fp.NewtonKrylov(linear=fp.ConjugateGradient())]
)
def test_containers_of_mixed_precision(solver):
    """The function sees each leaf in its own precision."""

    def cubes(x):
        assert (x["a"].dtype, x["b"][0].dtype) == (np.float32, np.float64)
        return {"a": x["a"] ** 2 - np.float32(2.0), "b": [x["b"][0] ** 3 - 27.0]}

    x0 = {"a": np.ones(2, np.float32), "b": [np.full((1, 2), 2.0)]}
    sol = fp.root(cubes, x0, solver=solver, rtol=1e-5)
    assert sol.value["a"].dtype == np.float32
    np.testing.assert_allclose(sol.value["a"], np.sqrt(2.0), rtol=1e-4)
    np.testing.assert_allclose(sol.value["b"][0], 3.0, rtol=1e-4)


@pytest.mark.parametrize("rtol", [1e-2, 1e-3])
@pytest.mark.parametrize("decades", [4, 6])
def test_one_step_in_time_says_nothing_of_slower_rates(decades, rtol):
    k, known = np.logspace(decades, -decades, 300), np.linspace(1.0, 2.0, 300)
    settings = {"solver": fp.PseudoTransient(), "rtol": rtol, "max_steps": 50}
    F = lambda x: k * (x - known)
    sol = fp.root(F, np.zeros(300), on_failure="return", **settings)
    error = np.linalg.norm(sol.value - known) / np.linalg.norm(known)
    assert error <= 10 * rtol or not sol.converged


@pytest.mark.parametrize("h", [1e-3, 1e-2, 1e-1, 1.0])
def test_kinetics_that_begin_without_a_product(counted, h):
    """Robertson's kinetics, an implicit step: what a satisfied equation feels of an
    unknown that begins with zero is no measure of it.
    """

    @counted
    def F(x):
        a, b, c = x
        one, two = 0.04 * a - 1e4 * b * c, 3e7 * b * b
        return np.stack([a - 1.0 + h * one, b - h * (one - two), c - h * two])

    sol = fp.root(F, np.array([1.0, 0.0, 0.0]))
    assert F.calls <= 60
    np.testing.assert_allclose(F(sol.value), 0.0, atol=1e-6)


def test_a_line_search_that_creeps_gives_way_if_asked():
    """Up the exponential curve of a transistor, a thermal voltage a step."""
    F, supply = amplifier(np.random.default_rng(0))
    start = np.array([0.0, supply, 0.0])
    assert bool(fp.root(F, start, solver=fp.Newton()).converged)
    brief = fp.Newton(short_steps=20)
    sol = fp.root(F, start, solver=brief, on_failure="return")
    assert sol.status == fp.Status.LINE_SEARCH_FAILED
    both = fp.Fallback([brief, fp.LevenbergMarquardt()])
    assert bool(fp.root(F, start, solver=both).converged)


@pytest.mark.parametrize("start", [[1.0, 0.0, 0.0], [0.5, 1e-4, 0.5]])
@pytest.mark.parametrize("flow", 10.0 ** np.arange(-6.0, 3.0))
@pytest.mark.parametrize("solver", [None, fp.Newton()])
def test_curved_valleys_are_not_followed(solver, flow, start):
    """As those of concentrations that differ by a million, here Robertson's in a
    stirred tank, of which the smallest is soon in balance with the others.
    """

    def F(y):
        a, b, c = y
        first, second, third = 0.04 * a, 1e4 * b * c, 3e7 * b * b
        return np.stack(
            [
                second - first + flow * (1.0 - a),
                first - second - third - flow * b,
                third - flow * c,
            ]
        )

    def balance(b):
        c = 3e7 * b * b / flow
        return F(np.array([1.0 - b - c, b, c]))[1]

    b = optimize.brentq(balance, 0.0, 1.0, xtol=1e-300, rtol=1e-14)
    c = 3e7 * b * b / flow
    sol = fp.root(F, np.array(start), solver=solver)
    np.testing.assert_allclose(sol.value, [1.0 - b - c, b, c], rtol=1e-5)
    assert sol.work.f <= 75


def test_rosenbrocks_valley_is_left_at_once():
    problem = problems.rosenbrock()
    sol = fp.root(problem.function, problem.start, solver=fp.Newton())
    assert int(sol.steps) <= 25


def amplifier(rng):
    """A transistor with a resistor at each terminal, by the equations of Ebers and
    Moll; and its supply. The unknowns are the voltages at its base, its collector and
    its emitter.
    """
    saturation, thermal = 1e-15 * 10.0 ** rng.uniform(-1.0, 2.0), 0.02585
    forward, backward = rng.uniform(50.0, 300.0), rng.uniform(0.5, 5.0)
    upper, lower = 10.0 ** rng.uniform(3.5, 5.0), 10.0 ** rng.uniform(3.0, 4.5)
    collector, emitter = 10.0 ** rng.uniform(2.5, 4.0), 10.0 ** rng.uniform(1.5, 3.5)
    supply = rng.choice([5.0, 12.0])

    @np.errstate(over="ignore", invalid="ignore")
    def F(x):
        b, c, e = x
        to_emitter = saturation * np.expm1((b - e) / thermal)
        to_collector = saturation * np.expm1((b - c) / thermal)
        through = to_emitter - to_collector * (1.0 + 1.0 / backward)
        base = to_emitter / forward + to_collector / backward
        return np.stack(
            [
                (supply - b) / upper - b / lower - base,
                (supply - c) / collector - through,
                through + base - e / emitter,
            ]
        )

    return F, supply


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("solver", [None, fp.Newton(), fp.LevenbergMarquardt()])
def test_an_unknown_that_is_small_at_first_lends_no_equation_its_size(solver, on):
    evaluations = 0
    for seed in range(12):
        F, supply = amplifier(np.random.default_rng(seed))
        near = np.array([1.0, 0.5 * supply, 0.3])
        known = optimize.root(F, near, method="lm", tol=1e-13)
        assert known.success
        sol = fp.root(F, np.array([0.0, supply * on, 0.0]), solver=solver)
        np.testing.assert_allclose(sol.value, known.x, rtol=1e-6)
        evaluations += sol.work.f
    assert evaluations <= 12 * 400


def burgers(n, viscosity):
    """Burgers' equation at Chebyshev's points, and these."""
    x = np.cos(np.pi * np.arange(n + 1) / n)
    weights = np.r_[2.0, np.ones(n - 1), 2.0] * (-1.0) ** np.arange(n + 1)
    distances = x[:, None] - x[None] + np.eye(n + 1)
    D = weights[:, None] / weights[None] / distances
    D -= np.diag(D.sum(axis=1))

    def F(u):
        inside = viscosity * (D @ (D @ u)) - u * (D @ u)
        return np.concatenate([u[:1] - 1.0, inside[1:-1], u[-1:] + 1.0])

    return F, x


@pytest.mark.parametrize("n", [8, 14, 20])
@pytest.mark.parametrize("viscosity", [1.0, 0.1])
def test_an_unknown_that_starts_as_a_rounding_error_is_felt(n, viscosity):
    """As that of cosines where it is 6e-17: a step that goes with it drowns in the
    other terms of each equation.
    """
    F, x = burgers(n, viscosity)
    known = optimize.root(F, x, method="hybr", tol=1e-12).x
    sol = fp.root(F, x)
    np.testing.assert_allclose(sol.value, known, atol=1e-6)
    assert sol.work.f <= 12 * (n + 2)


@pytest.mark.parametrize("n", [8, 14, 20])
def test_linear_solves_go_on_while_only_a_small_entry_is_wrong(n):
    """The middle one, which is zero at the root: the norm of all is within tolerance
    long before.
    """
    F, x = burgers(n, 1.0)
    x[n // 2] = 0.01
    sol = fp.root(F, x, solver=fp.NewtonKrylov())
    np.testing.assert_allclose(sol.value, -sol.value[::-1], atol=1e-12)
    assert sol.work.f <= 8 * n


@pytest.mark.parametrize("solver", [None, fp.Newton()])
def test_an_equation_that_is_nearly_satisfied_is_no_measure_of_an_unknown(solver):
    """Scores of logistic regressions from zero, with features in units far apart. One
    score begins with all but nothing.
    """
    evaluations = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        X, units = rng.standard_normal((100, 5)), 10.0 ** rng.uniform(-4.0, 4.0, 5)
        y = rng.random(100) < 1.0 / (1.0 + np.exp(-X @ rng.standard_normal(5)))
        score = lambda b, X, y=y: X.T @ (1.0 / (1.0 + np.exp(-(X @ b))) - y)
        start = 0.5 - y
        X[:, 1] -= (1.0 - 1e-9) * start * (X[:, 1] @ start) / (start @ start)
        known = optimize.root(score, np.zeros(5), (X,), method="hybr", tol=1e-12).x
        np.testing.assert_allclose(score(known, X), 0.0, atol=1e-8)
        sol = fp.root(score, np.zeros(5), (X * units,), solver=solver)
        np.testing.assert_allclose(sol.value * units, known, rtol=1e-5, atol=1e-9)
        evaluations += sol.work.f
    assert evaluations <= 20 * 50


@pytest.mark.parametrize("solver", [None, fp.Newton(), fp.LevenbergMarquardt()])
@pytest.mark.parametrize("unit", [1.0, 2.0**-40])
def test_an_unknown_that_is_a_rounding_error_counts_as_zero(
    compiled_case, solver, unit
):
    """If it is one in the equations too, and is not the size of an unknown of its own
    unit. What difference quotients make of it depends on the processor: some steps more
    of the method that trusts them least.
    """
    xp, x0 = compiled_case.xp, np.array([1.0, 0.5, 6e-17, -0.5, -1.0])
    D = 2.0 * np.eye(5) - np.eye(5, k=1) - np.eye(5, k=-1)
    b, trace = np.array([0.1, 0.2, 0.0, -0.2, -0.1]), 3.0 * unit
    D, b = map(compiled_case.asarray, (D, b))

    def F(x):
        odd = x[:5]
        return xp.concat([D @ odd + 20.0 * odd**3 - b, x[5:] - trace * x[:1] ** 2])

    settings = {"solver": solver} if solver else {}
    sol = compiled_case.solve(F, np.r_[x0, unit], by=fp.root, **settings)
    value = compiled_case.to_numpy(sol.value)
    assert sol.converged
    assert sol.steps <= (24 if isinstance(solver, fp.LevenbergMarquardt) else 12)
    assert abs(value[2]) <= 1e-15
    np.testing.assert_allclose(value[:2], -value[4:2:-1], rtol=1e-6)
    np.testing.assert_allclose(value[5], trace * value[0] ** 2, rtol=1e-6)


@pytest.mark.parametrize("solver", [fp.Newton(), fp.LevenbergMarquardt()])
@pytest.mark.parametrize("unit", [2.0**-40, 1.0, 2.0**40, 2.0**100])
def test_steps_from_zero_go_with_the_residual_of_a_map(contraction, solver, unit):
    A, b = contraction(4, 0.5), np.arange(1.0, 5.0)
    sol = fp.fixed_point(lambda z: A @ z + unit * b, np.zeros(4), solver=solver)
    one = fp.fixed_point(lambda z: A @ z + b, np.zeros(4), solver=solver)
    assert sol.work.f == one.work.f
    np.testing.assert_array_equal(sol.value, unit * one.value)


@pytest.mark.parametrize("rtol", [1e-2, 1e-3])
def test_one_long_step_says_nothing_of_the_derivative_where_it_leads(rtol):
    """A stirred reactor, ignited at a tenth of its feed: by the derivative of the hot
    start, the cold state that the first step leads to is nearer than it is.
    """
    for seed in range(24):
        rng = np.random.default_rng(seed)
        feed, flow = rng.uniform(500.0, 5000.0), 10.0 ** rng.uniform(-4.0, -2.0)

        def F(u, feed=feed, flow=flow):
            burnt = 1.2e9 * np.exp(-8750.0 / u[1]) * u[0]
            heat = 4.18e6 * flow * (300.0 - u[1]) - 1e3 * (u[1] - 300.0)
            return np.stack([flow * (feed - u[0]) - burnt, heat + 5e4 * burnt])

        sol = fp.root(F, np.array([0.1 * feed, 400.0]), rtol=rtol)
        known = fp.root(F, sol.value, rtol=1e-12).value
        np.testing.assert_allclose(sol.value, known, rtol=10 * rtol)


def test_a_first_correction_that_is_small_by_chance_has_no_weight():
    """From zero, entries have no other unit: one in 200 is tiny, and full steps are
    right.
    """
    rng, n = np.random.default_rng(0), 200
    A = rng.standard_normal((n, n)) / np.sqrt(n) + 2 * np.eye(n)
    b = rng.standard_normal(n)
    sol = fp.root(
        lambda x: A @ x + np.tanh(x) ** 3 - b,
        np.zeros(n),
        jacobian=lambda x: A + np.diag(3 * np.tanh(x) ** 2 / np.cosh(x) ** 2),
        solver=fp.Newton(),
    )
    assert int(sol.steps) == 4
    assert sol.work.f == 5


def test_beyond_a_kink_the_residual_tells_as_well():
    """x − A|x| = c with ‖A‖ < 1: full steps lead from piece to piece, and the matrix of
    one says nothing of another. By the natural level alone one of these takes 619
    evaluations.
    """
    for seed in range(100, 200):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 9))
        A = rng.standard_normal((n, n))
        A *= 0.95 / np.linalg.norm(A, 2)
        x = rng.standard_normal(n)
        c, start = x - A @ abs(x), 10.0 ** rng.uniform(-1, 2) * rng.standard_normal(n)
        sol = fp.root(lambda u, A=A, c=c: u - A @ abs(u) - c, start, solver=fp.Newton())
        np.testing.assert_allclose(sol.value, x, rtol=1e-4, atol=1e-5)
        assert sol.work.f < 250


def test_a_search_is_that_of_each_sample_alone(compiled_case, numpy_case):
    """On every library: samples of a batch, in units far apart, that accept different
    lengths, some of them beyond kinks.
    """
    rng, rows, n = np.random.default_rng(5), 12, 4
    A = rng.standard_normal((rows, n, n))
    A *= 0.95 / np.linalg.norm(A, 2, axis=(1, 2), keepdims=True)
    solution, start = rng.standard_normal((2, rows, n))
    unit = 10.0 ** rng.integers(-6, 7, (rows, 1))
    cubic = np.arange(rows)[:, None] % 2 * 10.0

    def function(xp):
        def F(u, A, c, cubic, unit):
            v = u / unit
            return v + cubic * v**3 - xp.sum(A * xp.abs(v)[..., None, :], axis=-1) - c

        return F

    c = function(np)(solution, A, 0.0, cubic, 1.0)
    solve = partial(numpy_case.solve, function(np), by=fp.root, solver=fp.Newton())
    rest, alone = (A, c, cubic, unit), []
    for i in range(rows):
        own = tuple([a[i] for a in rest])
        alone.append(solve(unit[i] * 30.0 * start[i], own))
    steps = np.array([int(sol.steps) for sol in alone])
    assert len(set(steps)) > 3
    settings = {"by": fp.root, "solver": fp.Newton(), "batch_ndim": 1}
    F = function(compiled_case.xp)
    sol = compiled_case.solve(F, unit * 30.0 * start, rest, **settings)
    value, taken = map(compiled_case.to_numpy, (sol.value, sol.steps))
    np.testing.assert_allclose(value / unit, solution, rtol=1e-4, atol=1e-6)
    assert (abs(taken - steps) <= 1).all()
