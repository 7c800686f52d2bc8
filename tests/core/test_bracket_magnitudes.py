"""Brackets as wide, and roots as small, as numbers can be."""

import numpy as np
import pytest

import fixedpoint as fp

MOST = {np.float64: 1.7e308, np.float32: 3.3e38}
# Exponents of roots: JAX takes numbers below the smallest normal one for zero, as the
# distances of neighbors farther down are.
SMALLEST = {np.float64: -290, np.float32: -30}

FUNCTIONS = {
    "line": lambda x, r: x - r,
    "cube": lambda x, r: (x / r) ** 3 - 1.0,
    "bent": lambda x, r: x / r - 1.0 + 0.5 * (x / r - 1.0) ** 3,
}


def roots(dtype, least, most, number=60):
    """Random magnitudes, half of them negative."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], number)
    return (signs * 10.0 ** rng.uniform(least, most, number)).astype(dtype)


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_ends_whose_distance_overflows(jit_case, name, dtype):
    most = MOST[dtype]
    r = np.tile(roots(dtype, SMALLEST[dtype], np.log10(most) - 1), (3, 1))
    shares = np.array([[1.0], [0.6], [0.25]])  # the last distance is finite
    upper = np.asarray(shares * most * np.ones_like(r), dtype)
    sol = jit_case.bracketed(FUNCTIONS[name], -upper, upper, (r,))
    assert set(jit_case.statuses(sol)) == {"CONVERGED"}
    np.testing.assert_allclose(
        jit_case.to_numpy(sol.value), r, rtol=8 * float(np.finfo(dtype).eps)
    )
    assert jit_case.to_numpy(sol.steps).max() <= 60


@pytest.mark.parametrize("root", [3.0, 3e-100, 3e-300, -2e-200])
@pytest.mark.parametrize("end", [8.5e307, 1e308, 1.7e308])
def test_a_line_takes_a_dozen_steps_from_any_ends(root, end):
    with np.errstate(over="ignore"):
        sol = fp.bracketed_root(lambda x: x - root, -end, end)
    np.testing.assert_allclose(sol.value, root, rtol=1e-15)
    assert int(sol.steps) <= 12


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-1e308, 1e308), (-1e-290, 1e-295)])
def test_roots_down_to_the_smallest_numbers(xp_case, name, ends):
    if xp_case.name == "jax":
        pytest.skip("JAX takes such numbers for zero")
    r = roots(np.float64, -318.0, -299.0)
    lower, upper = (np.full_like(r, end) for end in ends)
    sol = xp_case.bracketed(FUNCTIONS[name], lower, upper, (r,))
    assert set(xp_case.statuses(sol)) == {"CONVERGED"}
    np.testing.assert_allclose(
        xp_case.to_numpy(sol.value), r, rtol=2e-15, atol=np.finfo(float).tiny * 5e-16
    )
    assert (xp_case.to_numpy(sol.error) <= 2e-15 * abs(r) + 2e-323).all()


def test_a_jump_is_no_root_at_any_magnitude(jit_case):
    small = abs(roots(np.float64, -288.0, -282.0))
    r = np.stack([*[abs(roots(np.float64, -280.0, -1.0))] * 2, small])
    ends = np.array([(-1e308, 1e308), (-1.0, 3.0), (-1e-290, 1e-280)])
    lower, upper = (np.tile(end[:, None], r.shape[1]) for end in ends.T)
    r, xp = np.minimum(r, 0.5 * upper), jit_case.xp
    jump = jit_case.bracketed(
        lambda x, r: xp.where(x < r, 0 * x - 1, 0 * x + 1), lower, upper, (r,)
    )
    assert set(jit_case.statuses(jump)) == {"STALLED"}
    assert jit_case.to_numpy(jump.steps).max() <= 80


def test_a_pole_is_none_at_any_magnitude(jit_case):
    r = np.tile(abs(roots(np.float64, -280.0, -1.0)), (2, 1))
    ends = np.array([(-1.0, 3.0), (-1e-290, 1e-280)])
    lower, upper = (np.tile(end[:, None], r.shape[1]) for end in ends.T)
    r = np.minimum(r, 0.3 * upper)
    pole = jit_case.bracketed(lambda x, r: 1.0 / (x / r - 1.0), lower, upper, (r,))
    assert not set(jit_case.statuses(pole)) & {"CONVERGED", "MAX_STEPS"}


def test_a_jump_at_zero_is_narrowed_to_the_limit():
    for low, high in ((-1.0, 3.0), (-1e308, 1e308)):
        sol = fp.bracketed_root(
            lambda x: np.where(x < 0.0, -1.0, 1.0), low, high, on_failure="return"
        )
        assert fp.Status(int(sol.status)).name == "STALLED"
        assert sol.bracket[1] - sol.bracket[0] <= 5e-324
        assert int(sol.steps) <= 80


def test_an_infinite_end_beyond_a_large_one(jit_case):
    r = np.array([1.7e308, 1.3e308])
    lower, upper = np.full(2, 1.2e308), np.full(2, np.inf)
    sol = jit_case.bracketed(lambda x, r: x / r - 1.0, lower, upper, (r,))
    assert set(jit_case.statuses(sol)) == {"CONVERGED"}
    np.testing.assert_allclose(jit_case.to_numpy(sol.value), r, rtol=1e-15)


def test_neighbors_tell_nothing_of_how_f_grows(jit_case):
    low = np.nextafter(np.sqrt(2.0), 0.0)
    high = np.nextafter(low, 3.0)
    sol = jit_case.bracketed(lambda x: x * x - 2.0, low, high)
    assert set(jit_case.statuses(sol)) == {"STALLED"}
