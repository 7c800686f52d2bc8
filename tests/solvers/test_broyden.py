"""Broyden's method against its dense form, the secant equation and finite
termination.
"""

import numpy as np
import pytest

import fixedpoint as fp
from fixedpoint.adapters import backend_of
from fixedpoint.columns import Columns
from fixedpoint.solvers.broyden import BroydenState
from fixedpoint.spaces import space_of

UPDATES = ["good", "bad"]


def affine(contraction, n, norm=0.9, seed=0):
    A = contraction(n, norm, seed)
    return A, np.random.default_rng(seed + 100).standard_normal(n)


def curved(contraction, n=6):
    """A nonlinear map, and the start."""
    W, b = affine(contraction, n, 1.2, 3)
    return (lambda z: np.tanh(W @ z + b)), np.zeros(n)


def run(f, z0, steps, solve=fp.fixed_point, **settings):
    """The iterates, the start included, and the solution after so many steps."""
    iterates = [z0]
    sol = solve(
        f,
        z0,
        solver=fp.Broyden(**settings),
        rtol=0.0,
        atol=0.0,
        max_steps=steps,
        on_failure="return",
        callback=lambda _, z, __: iterates.append(z.copy()),
    )
    return iterates, sol


def matrix(estimate):
    """H as an array: σI + Σ uⱼvⱼᵀ."""
    (left,), (right,) = estimate.left.leaves, estimate.right.leaves
    terms = zip(estimate.used, left, right, strict=True)  # rows not used hold anything
    return estimate.scale * np.eye(left.shape[-1]) + sum(
        c * np.outer(u, v) for c, u, v in terms if c
    )


def dense(g, z, H, steps, update="good", memory=1000):
    """Broyden's method with a matrix, which starts anew before each update that memory
    lacks.
    """
    first, iterates = H, [z]
    for k in range(steps):
        new = z + H @ g(z)
        dz, dg = new - z, g(new) - g(z)
        if k and k % memory == 0:
            H = first
        v = H.T @ dz if update == "good" else dg
        H = H - np.outer(dz + H @ dg, v) / (v @ dg)
        z = new
        iterates.append(z)
    return iterates, H


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("memory", [3, 20])
def test_iterates_and_estimate_are_those_of_the_dense_method(
    contraction, update, memory
):
    f, z0 = curved(contraction)
    expected, H = dense(lambda z: f(z) - z, z0, np.eye(6), 9, update, memory)
    iterates, sol = run(f, z0, 9, update=update, memory=memory)
    np.testing.assert_allclose(iterates, expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(matrix(sol.state.contents), H, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("memory", [1, 2, 5, 20])
@pytest.mark.parametrize("steps", range(1, 8))
def test_the_newest_secant_equation_holds(contraction, update, memory, steps):
    f, z0 = curved(contraction)
    iterates, sol = run(f, z0, steps, update=update, memory=memory)
    old, new = iterates[-2:]
    dz, dg = new - old, (f(new) - new) - (f(old) - old)
    found = matrix(sol.state.contents) @ dg
    assert np.linalg.norm(found + dz) <= 1e-12 * np.linalg.norm(dz)


@pytest.mark.parametrize("steps", range(1, 6))
def test_the_direction_is_the_next_step(contraction, steps):
    f, z0 = curved(contraction)
    iterates, sol = run(f, z0, steps)
    (direction,) = sol.state.contents.direction
    z = iterates[-1]
    np.testing.assert_allclose(
        direction, matrix(sol.state.contents) @ (f(z) - z), rtol=1e-9
    )
    np.testing.assert_allclose(
        run(f, z0, steps + 1)[0][-1] - z, direction, rtol=1e-6, atol=1e-15
    )


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("norm", [0.9, 3.0])
def test_an_affine_map_takes_twice_its_dimension(contraction, update, n, norm):
    """Gay's theorem, with a memory that is enough: 2n updates."""
    A, b = affine(contraction, n, norm)
    sol = fp.fixed_point(
        lambda z: A @ z + b,
        np.zeros(n),
        solver=fp.Broyden(update=update, memory=100),
        rtol=1e-7,
        test="residual",
        max_steps=2 * n + 1,
    )
    assert int(sol.steps) <= 2 * n
    np.testing.assert_allclose(sol.value, np.linalg.solve(np.eye(n) - A, b), rtol=1e-5)


@pytest.mark.parametrize("memory", [1, 3, 4])
def test_a_full_memory_is_emptied(contraction, memory):
    f, z0 = curved(contraction)
    for steps in range(1, 3 * memory + 1):
        used = run(f, z0, steps, memory=memory)[1].state.contents.used
        assert used.shape == (memory,)
        assert used.sum() == (steps - 1) % memory + 1


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("n", [3, 6, 10])
def test_it_converges_superlinearly(contraction, update, n):
    """The last digits take a fraction of the steps that the first took for as many."""
    f, z0 = curved(contraction, n)
    norms = np.array(
        [np.linalg.norm(f(z) - z) for z in run(f, z0, 30, update=update)[0]]
    )
    steps = [np.argmax(norms <= bound * norms[0]) for bound in (1e-3, 1e-12)]
    assert 0 < steps[1] < 3 * steps[0]


@pytest.mark.parametrize("update", UPDATES)
def test_in_one_dimension_it_is_the_secant_method(update):
    z = [0.5, np.cos(0.5)]
    g = lambda t: np.cos(t) - t
    for _ in range(4):
        z.append(z[-1] - g(z[-1]) * (z[-1] - z[-2]) / (g(z[-1]) - g(z[-2])))
    iterates = run(np.cos, np.array([0.5]), 5, update=update)[0]
    np.testing.assert_allclose(np.ravel(iterates), z, rtol=1e-10)


# Roots.


def test_the_first_step_to_a_root_is_as_long_as_the_residual_is_sensitive(contraction):
    """It is −σF with |σ| = ‖F‖/‖F′F‖, which takes one product, and goes downhill."""
    A = np.eye(5) + contraction(5, 0.5)
    b = np.arange(1.0, 6.0)
    x0, step = np.ones(5), []
    sol = fp.root(
        lambda x: A @ x - b,
        x0,
        solver=fp.Broyden(),
        rtol=0.0,
        atol=0.0,
        max_steps=1,
        on_failure="return",
        callback=lambda _, x, __: step.append(x - x0),
    )
    residual = A @ x0 - b
    image = A @ residual
    sigma = np.sign(image @ residual) * np.linalg.norm(residual) / np.linalg.norm(image)
    np.testing.assert_allclose(step[0], -sigma * residual, rtol=1e-6)
    np.testing.assert_allclose(sol.state.contents.scale, sigma, rtol=1e-6)
    assert sol.work.f == 3


@pytest.mark.parametrize("scale", [1e-30, -1e-6, 1.0, -1e6, 1e30])
def test_roots_are_found_at_any_scale_of_the_function(contraction, scale):
    A, b = np.eye(4) + contraction(4, 0.5), np.arange(1.0, 5.0)
    sol = fp.root(
        lambda x: scale * (A @ x - b),
        np.zeros(4),
        solver=fp.Broyden(),
        rtol=1e-10,
        atol=0.0,
    )
    assert int(sol.steps) <= 9
    np.testing.assert_allclose(sol.value, np.linalg.solve(A, b), rtol=1e-8)


@pytest.mark.parametrize(
    ("dtype", "exponents"), [("f4", (-50, 50)), ("f8", (-400, 400))]
)
def test_steps_to_a_root_do_not_depend_on_far_units_of_the_function(dtype, exponents):
    b, start = np.arange(1.0, 5.0, dtype=dtype), np.ones(4, dtype)
    one = fp.root(lambda z: z**3 + z - b, start, solver=fp.Broyden())
    for exponent in exponents:
        unit = np.dtype(dtype).type(2.0**exponent)
        F = lambda z, unit=unit: unit * (z**3 + z - b)
        sol = fp.root(F, start, solver=fp.Broyden())
        np.testing.assert_array_equal(sol.value, one.value)
        assert sol.work.f == one.work.f


@pytest.mark.parametrize("start", [1e-100, 2e-159, 1e-170, 1e-300])
def test_squares_that_underflow_do_not_divide(start):
    sol = fp.fixed_point(lambda z: 0.5 * z, np.array([start]), solver=fp.Broyden())
    assert abs(sol.value[0]) <= 1e-5 * start


def test_a_residual_that_its_image_is_orthogonal_to_is_stepped_along():
    """Where F′F ⟂ F the best multiple is none, and the step is F itself."""
    A = np.array([[0.0, 1.0], [-1.0, 0.0]])
    iterates, _ = run(lambda x: A @ x, np.array([1.0, 0.0]), 1, fp.root)
    np.testing.assert_allclose(iterates[1], [1.0, 1.0], atol=1e-7)


# Batches, updates that are left out, and the products.


def test_each_sample_has_its_own_estimate(contraction):
    """In a batch, and while its neighbors have long stopped."""
    A = np.stack(
        [contraction(4, norm, seed) for seed, norm in enumerate((0.01, 0.5, 0.95))]
    )
    b = np.random.default_rng(4).standard_normal((3, 4))
    f = lambda z, A, b: np.tanh(np.sum(A * z[:, None, :], axis=-1) + b)
    settings = {"solver": fp.Broyden(), "batch_ndim": 1, "rtol": 1e-9, "atol": 0.0}
    sol = fp.fixed_point(f, 0.0 * b, (A, b), **settings)
    for i in range(3):
        one = slice(i, i + 1)
        alone = fp.fixed_point(f, 0.0 * b[one], (A[one], b[one]), **settings)
        np.testing.assert_allclose(sol.value[i], alone.value[0], rtol=1e-13)
        assert sol.steps[i] == alone.steps[0]


def test_an_update_without_a_denominator_is_left_out():
    """A residual that does not change says nothing."""
    iterates, sol = run(lambda z: z + 1.0, np.zeros(3), 4)
    assert np.all(matrix(sol.state.contents) == np.eye(3))
    np.testing.assert_array_equal(iterates[-1], 4.0)


def test_the_products_are_those_of_a_matrix_and_its_transpose():
    rng = np.random.default_rng(5)
    u, v = rng.standard_normal((2, 7))
    space = space_of(backend_of([u], ["u"]), (u,), 0)
    used = np.array([1.0, 0.0, 1.0])
    left, right = rng.standard_normal((2, 3, 7))
    estimate = BroydenState(
        left=Columns((left,)),
        right=Columns((right,)),
        used=used,
        scale=np.asarray(0.7),
        direction=(u,),
        shortened=None,
        pushed=3,
        spent=0,
    )
    H = matrix(estimate)
    np.testing.assert_allclose(estimate.times(space, (u,))[0], H @ u, rtol=1e-12)
    np.testing.assert_allclose(
        estimate.transposed().times(space, (u,))[0], H.T @ u, rtol=1e-12
    )
    forth, back = (
        estimate.times(space, (u,))[0],
        estimate.transposed().times(space, (v,))[0],
    )
    np.testing.assert_allclose(v @ forth, back @ u, rtol=1e-12)


def test_a_line_search_that_fails_is_a_status():
    """From a minimizer of ‖F‖ that is no root there is no descent."""
    F = lambda x: np.stack([x[0] ** 2 + 1.0, 0.0 * x[1] + x[0]])
    sol = fp.root(
        F,
        np.array([1.0, 1.0]),
        solver=fp.Broyden(line_search=True),
        on_failure="return",
    )
    assert int(sol.status) == fp.Status.LINE_SEARCH_FAILED
    np.testing.assert_allclose(
        sol.residual_norm, np.linalg.norm(F(sol.value)), rtol=1e-12
    )


def test_with_a_line_search_residuals_fall(contraction):
    f, z0 = curved(contraction)
    sol = fp.fixed_point(
        f, z0 + 3.0, solver=fp.Broyden(line_search=True), rtol=1e-10, record=True
    )
    norms = sol.trace.residual_norm[: int(sol.steps) + 1]
    assert np.all(np.diff(norms) < 0.0)
