"""With no solver named the published problems are solved, and no method claims what is
not so.
"""

import numpy as np
import pytest

import fixedpoint as fp
from fixedpoint.testing import problems

# The generalized Rosenbrock system is a chain, of which Newton's method solves one
# equation a step: in 1000 unknowns that is more steps than any of the solvers that are
# tried has for itself.
OUT_OF_REACH = {("rosenbrock", 1000)}
LARGEST = [
    p
    for p in problems.large_systems(1000)
    if (p.name, p.start.size) not in OUT_OF_REACH
]

# Evaluations that Anderson acceleration of type II takes in the implementation of
# cvxgrp (package anderson-acceleration 0.0.3), with a memory of 10 and without its
# safeguard.
REFERENCE = {
    "chandrasekhar_map_0.9": 17,
    "chandrasekhar_map_0.999": 27,
    "chandrasekhar_map_0.999999": 38,
    "bratu_jacobi_map": 42,
    "bratu_poisson_map": 19,
    "affine_map_0.9": 57,
    "affine_map_0.99": 88,
    "affine_map_0.999": 137,
    "poisson_mixture_map": 18,
    "bellman_map_0.95": 25,
    "bellman_map_0.99": 28,
    "sinkhorn_map": 29,
    "pagerank_map_0.85": 32,
    "pagerank_map_0.99": 75,
    "tanh_map_0.9": 19,
    "tanh_map_1.5": 31,
}


def by_name(group):
    return pytest.mark.parametrize(
        "problem", group, ids=lambda p: f"{p.name}-{p.start.size}"
    )


def solve(problem, **settings):
    """As a user would, to a residual of 1e-9 in every component."""
    call = fp.root if problem.kind == "root" else fp.fixed_point
    return call(
        problem.function,
        problem.start,
        rtol=0.0,
        atol=1e-9,
        norm="max",
        test="residual",
        on_failure="return",
        budget=fp.Budget(evaluations=10_000),
        **settings,
    )


def largest(x):
    return float(np.max(np.abs(x)))


def assert_solved(problem, sol):
    """By the residual, whatever is claimed."""
    assert largest(problem.residual(sol.value)) <= 1e-8 * max(
        1.0, largest(sol.value)
    ), sol


def assert_true(problem, sol):
    """What is reported is so, of a success and of a failure."""
    residual = largest(problem.residual(sol.value))
    np.testing.assert_allclose(sol.residual_norm, residual, rtol=1e-9, atol=1e-14)
    if bool(sol.converged):
        assert residual <= 1e-9
    assert int(sol.status) != fp.Status.RUNNING


@by_name(problems.systems())
def test_systems_are_solved_with_no_solver_named(problem):
    sol = solve(problem)
    assert_solved(problem, sol)
    assert_true(problem, sol)


@by_name([*problems.large_systems(30), *problems.large_systems(100)])
def test_large_systems_are_solved_with_no_solver_named(problem):
    sol = solve(problem)
    assert_solved(problem, sol)
    assert_true(problem, sol)


@pytest.mark.slow
@by_name(LARGEST)
def test_systems_of_a_thousand_are_solved_with_no_solver_named(problem):
    assert_solved(problem, solve(problem))


@by_name(problems.maps())
def test_maps_converge_with_no_solver_named(problem):
    sol = solve(problem)
    assert_solved(problem, sol)
    assert_true(problem, sol)


@pytest.mark.parametrize(
    "solver",
    [
        fp.Newton(),
        fp.Newton(line_search=False, step_bound=0.5),
        fp.LevenbergMarquardt(),
        fp.NewtonKrylov(),
        fp.NewtonKrylov(linear=fp.BiCGStab()),
        fp.PseudoTransient(),
        fp.Broyden(),
        fp.Broyden(line_search=True, update="bad"),
        fp.Anderson(),
        fp.SQUAREM(),
        fp.Picard(damping=0.5),
    ],
    ids=lambda solver: solver.name,
)
def test_no_solver_claims_what_is_not_so(solver):
    for problem in problems.systems():
        assert_true(problem, solve(problem, solver=solver, max_steps=60))


@pytest.mark.parametrize("rtol", [1e-3, 1e-7])
def test_known_roots_are_reached(rtol):
    """Where the published solution is unique and simple."""
    for name in ("rosenbrock", "variably_dimensioned", "helical_valley"):
        problem = getattr(problems, name)()
        sol = fp.root(problem.function, problem.start, rtol=rtol * 1e-3, atol=0.0)
        np.testing.assert_allclose(sol.value, problem.roots[0], atol=rtol)


def test_anderson_needs_no_more_evaluations_than_cvxgrps():
    counts = {}
    for problem in problems.maps():
        sol = solve(problem, solver=fp.Anderson(memory=10))
        assert_solved(problem, sol)
        counts[problem.name] = sol.work.f
    assert counts.keys() == REFERENCE.keys()
    ratios = np.array([counts[name] / REFERENCE[name] for name in REFERENCE])
    assert np.sum(ratios <= 1.0) >= 14, counts
    assert np.max(ratios) <= 1.3, counts


@by_name([p for p in problems.maps() if p.roots])
def test_maps_converge_to_their_known_fixed_points(problem):
    sol = solve(problem)
    assert largest(sol.value - problem.roots[0]) <= 1e-5 * max(
        1.0, largest(problem.roots[0])
    )
