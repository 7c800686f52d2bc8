"""Anderson's method against GMRES, the secant formula and other implementations."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg

import fixedpoint as fp


def affine(contraction, n, norm, seed=0):
    A = contraction(n, norm, seed)
    return A, np.random.default_rng(seed + 100).standard_normal(n)


def iterate(f, z0, steps, **settings):
    """The iterate after `steps` steps."""
    return fp.fixed_point(
        f,
        z0,
        solver=fp.Anderson(**settings),
        rtol=0.0,
        atol=0.0,
        max_steps=steps,
        on_failure="return",
    ).value


def krylov_minimizer(M, b, z0, k):
    """The point of z0 + K_k(M, r) where the residual b − Mz is least."""
    residual = b - M @ z0
    basis = [residual]
    for _ in range(k - 1):
        basis.append(M @ np.linalg.qr(np.stack(basis, 1))[0][:, -1])
    Q = np.linalg.qr(np.stack(basis, 1))[0]
    return z0 + Q @ np.linalg.lstsq(M @ Q, residual, rcond=None)[0]


@pytest.mark.parametrize("k", range(1, 9))
def test_with_full_memory_it_is_gmres(contraction, k):
    """The iterate k + 1 is f at the k-th iterate of GMRES (Walker and Ni, theorem
    2.2).
    """
    A, b = affine(contraction, 12, 0.9)
    z0 = np.ones(12)
    expected = A @ krylov_minimizer(np.eye(12) - A, b, z0, k) + b
    found = iterate(lambda z: A @ z + b, z0, k + 1, memory=12)
    assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)


@pytest.mark.parametrize("damping", [0.3, 0.8])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_with_damping_it_is_gmres_and_a_damped_step(contraction, k, damping):
    A, b = affine(contraction, 12, 0.9)
    z = krylov_minimizer(np.eye(12) - A, b, np.zeros(12), k)
    expected = z + damping * (A @ z + b - z)
    found = iterate(
        lambda z: A @ z + b, np.zeros(12), k + 1, memory=12, damping=damping
    )
    assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)


def test_residuals_are_those_of_scipy_gmres(contraction):
    A, b = affine(contraction, 10, 0.8, 3)
    M, norms = np.eye(10) - A, []
    scipy.sparse.linalg.gmres(
        M,
        b,
        rtol=1e-14,
        restart=10,
        maxiter=1,
        callback=norms.append,
        callback_type="pr_norm",
    )
    for k in range(1, 7):
        found = iterate(lambda z: A @ z + b, np.zeros(10), k + 1, memory=10)
        mixed = np.linalg.solve(A, found - b)
        residual = np.linalg.norm(b - M @ mixed) / np.linalg.norm(b)
        assert residual == pytest.approx(norms[k - 1], rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_an_affine_map_takes_one_step_more_than_its_dimension(contraction, n):
    A, b = affine(contraction, n, 0.95)
    solver = fp.Anderson(memory=n)
    sol = fp.fixed_point(
        lambda z: A @ z + b, np.zeros(n), solver=solver, rtol=1e-9, test="residual"
    )
    assert int(sol.steps) <= n + 1
    np.testing.assert_allclose(sol.value, np.linalg.solve(np.eye(n) - A, b), rtol=1e-6)


def test_it_solves_an_affine_map_that_expands(contraction):
    A, b = affine(contraction, 6, 3.0)
    solver = fp.Anderson(memory=6)
    sol = fp.fixed_point(lambda z: A @ z + b, np.zeros(6), solver=solver, rtol=1e-9)
    np.testing.assert_allclose(sol.value, np.linalg.solve(np.eye(6) - A, b), rtol=1e-6)


@pytest.mark.parametrize("steps", range(1, 8))
def test_memory_is_clamped_to_the_dimension(contraction, steps):
    A = contraction(3, 0.9)
    f = lambda z: np.tanh(A @ z + 1.0)
    np.testing.assert_array_equal(
        iterate(f, np.zeros(3), steps, memory=3),
        iterate(f, np.zeros(3), steps, memory=50),
    )


def secant(f, z, steps, damping):
    """Anderson's method with a memory of one, by hand."""
    g = f(z) - z
    new = z + damping * g
    for _ in range(steps - 1):
        old, z, old_g = z, new, g
        g = f(z) - z
        dz, dg = z - old, g - old_g
        gamma = dg @ g / (dg @ dg)
        new = z + damping * g - gamma * (dz + damping * dg)
    return new


@pytest.mark.parametrize("damping", [1.0, 0.4])
@pytest.mark.parametrize("steps", range(1, 8))
def test_memory_of_one_is_the_secant_formula(contraction, steps, damping):
    W, b = affine(contraction, 4, 0.9)
    f = lambda z: np.tanh(W @ z + b)
    found = iterate(f, np.zeros(4), steps, memory=1, damping=damping)
    np.testing.assert_allclose(
        found, secant(f, np.zeros(4), steps, damping), rtol=1e-11
    )


def test_in_one_dimension_it_is_the_secant_method():
    """z ← z − g Δz/Δg for the root of g(z) = cos z − z."""
    previous, z = 0.5, np.cos(0.5)
    for steps in range(2, 6):
        g, previous_g = np.cos(z) - z, np.cos(previous) - previous
        previous, z = z, z - g * (z - previous) / (g - previous_g)
        found = iterate(np.cos, np.array([0.5]), steps, memory=5)
        np.testing.assert_allclose(found, z, rtol=1e-10)


@pytest.mark.parametrize("memory", [1, 5, 20])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_long_after_convergence_iterates_stay_at_the_solution(
    xp_case, contraction, memory, damping
):
    W, b = affine(contraction, 8, 0.9)
    sol = xp_case.solve(
        lambda z, W, b: xp_case.xp.tanh(W @ z + b),
        np.zeros(8),
        (W, b),
        solver=fp.Anderson(memory=memory, damping=damping),
        rtol=0.0,
        atol=0.0,
        max_steps=150,
    )
    assert float(sol.residual_norm) <= 1e-10
    ends = fp.Status.MAX_STEPS, fp.Status.CONVERGED, fp.Status.STALLED
    assert int(sol.status) in ends


@pytest.mark.parametrize("scale", [1e-100, 1e-12, 1.0, 1e12, 1e100])
def test_convergence_to_ten_digits_at_any_scale(scale):
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((50, 50)))[0]
    A = Q @ np.diag(np.linspace(-0.99, 0.99, 50)) @ Q.T
    b = scale * rng.standard_normal(50)
    sol = fp.fixed_point(
        lambda z: A @ z + b,
        np.zeros(50),
        solver=fp.Anderson(memory=20),
        rtol=1e-10,
        atol=0.0,
        max_steps=100,
    )
    exact, condition = np.linalg.solve(np.eye(50) - A, b), 100
    assert np.linalg.norm(sol.value - exact) <= 2 * condition * 1e-10 * np.linalg.norm(
        exact
    )


@pytest.mark.parametrize("regularization", [1e-6, 0.1, 1.0])
def test_regularization_is_relative_to_the_difference(regularization):
    """The coefficient of one difference is divided by 1 + λ, whatever its length."""
    a = np.array([0.9, -0.4, 0.2])
    f = lambda z: a * z + 1.0
    g, z = f(np.zeros(3)), f(np.zeros(3))
    new = f(z) - z
    gamma = (new - g) @ new / ((new - g) @ (new - g)) / (1 + regularization)
    expected = z + new - gamma * (z + new - g)
    found = iterate(f, np.zeros(3), 2, memory=1, regularization=regularization)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_it_is_no_slower_than_scipy(contraction, counted):
    W, b = affine(contraction, 30, 0.97)
    ours, theirs = (counted(lambda z: np.tanh(W @ z + b)) for _ in range(2))
    fp.fixed_point(
        ours,
        np.zeros(30),
        solver=fp.Anderson(memory=5),
        rtol=0.0,
        atol=1e-8,
        norm="max",
    )
    scipy.optimize.anderson(
        lambda z: theirs(z) - z, np.zeros(30), M=5, f_tol=1e-8, alpha=1.0
    )
    assert ours.calls <= 1.3 * theirs.calls


def test_it_needs_far_fewer_evaluations_than_picard(contraction):
    A, b = affine(contraction, 40, 0.99)
    A = (A + A.T) / 2
    A *= 0.99 / np.linalg.norm(A, 2)
    settings = {"rtol": 1e-8, "atol": 0.0, "max_steps": 5000}
    steps = [
        int(
            fp.fixed_point(
                lambda z: A @ z + b, np.zeros(40), solver=solver, **settings
            ).steps
        )
        for solver in (fp.Anderson(memory=10), fp.Picard())
    ]
    assert steps[0] * 5 < steps[1]
