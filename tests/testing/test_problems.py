"""The problem library: the published systems, maps that converge, the same on every
library.
"""

import jax
import numpy as np
import pytest
import torch

import fixedpoint as fp
from fixedpoint.testing import problems

ROOTS = [*problems.systems(), problems.bratu(8)]
MAPS = problems.maps()
ALL = [*ROOTS, *problems.large_systems(30), *MAPS]


def by_name(group):
    return pytest.mark.parametrize(
        "problem", group, ids=lambda p: f"{p.name}-{p.start.size}"
    )


def jacobian(function, x):
    """By complex steps, exact to rounding."""
    columns = [function(x + 1e-30j * e).imag / 1e-30 for e in np.eye(x.size)]
    return np.stack(columns, axis=1)


def newton(problem, steps=50):
    x = problem.start
    for _ in range(steps):
        x = x - np.linalg.solve(jacobian(problem.function, x), problem.function(x))
    return x


def iterate(problem, tolerance=1e-10, steps=40000):
    z = problem.start
    for _ in range(steps):
        new = problem.function(z)
        if np.linalg.norm(new - z) <= tolerance:
            return z
        z = new
    raise AssertionError(f"{problem.name} has not converged")


# What the collection publishes.


def ramp(n):
    t = np.arange(1, n + 1) / (n + 1)
    return t * (t - 1)


STARTS = {
    1: [-1.2, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    2: [3, -1, 0, 1],
    3: [0, 1],
    4: [-3, -1, -3, -1],
    5: [-1, 0, 0],
    6: np.zeros(6),
    7: [-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75],
    8: np.full(10, 0.5),
    9: ramp(10),
    10: ramp(10),
    11: np.full(10, 0.1),
    12: [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0],
    13: np.full(10, -1),
    14: np.full(10, -1),
    15: [1, 0, 0, 1],
    16: [1, 0, 0, 0, 1, 0, 0, 0, 1],
    17: [1, 5],
    18: [2, 2],
    19: [3, 3],
    20: [1],
    21: [0.5, -2],
    22: [1, 0],
    23: np.ones(10),
}


def test_the_collection_is_in_order():
    assert [problem.number for problem in problems.systems()] == list(range(1, 24))
    assert len({problem.name for problem in problems.systems()}) == 23
    assert len({problem.name for problem in MAPS}) == len(MAPS)


@by_name(problems.systems())
def test_starts_are_as_published(problem):
    assert problem.kind == "root"
    assert problem.start.dtype == np.float64
    np.testing.assert_allclose(problem.start, STARTS[problem.number], atol=1e-15)


# Transcribed index by index, from 1, as in print.


def watson(x):
    """Half the gradient of the sum of squares."""
    n, total = len(x), np.zeros(len(x))
    for i in range(1, 30):
        t = i / 29
        slope = sum((j - 1) * t ** (j - 2) * x[j - 1] for j in range(2, n + 1))
        value = sum(t ** (j - 1) * x[j - 1] for j in range(1, n + 1))
        for k in range(1, n + 1):
            gradient = (k - 1) * t ** (k - 2) - 2 * value * t ** (k - 1)
            total[k - 1] += (slope - value**2 - 1) * gradient
    last = x[1] - x[0] ** 2 - 1
    total[:2] += x[0] - 2 * x[0] * last, last
    return total


def chebyquad(x):
    values = [np.polynomial.Chebyshev.basis(i)(x).mean() for i in range(1, len(x) + 1)]
    return [v + (1 / (i * i - 1) if i % 2 == 0 else 0) for i, v in enumerate(values, 1)]


def boundary_value(x):
    n, h = len(x), 1 / (len(x) + 1)
    u = [0, *x, 0]
    return [
        2 * u[i] - u[i - 1] - u[i + 1] + h**2 * (u[i] + i * h + 1) ** 3 / 2
        for i in range(1, n + 1)
    ]


def integral_equation(x):
    n, h = len(x), 1 / (len(x) + 1)
    t, w = h * np.arange(n + 2), np.zeros(n + 2)
    w[1:-1] = (x + t[1:-1] + 1) ** 3
    result = []
    for i in range(1, n + 1):
        before = sum(t[j] * w[j] for j in range(1, i + 1))
        after = sum((1 - t[j]) * w[j] for j in range(i + 1, n + 1))
        result.append(x[i - 1] + h * ((1 - t[i]) * before + t[i] * after) / 2)
    return result


def banded(x):
    n, result = len(x), []
    for i in range(1, n + 1):
        near = [j for j in range(max(1, i - 5), min(n, i + 1) + 1) if j != i]
        total = sum(x[j - 1] * (1 + x[j - 1]) for j in near)
        result.append(x[i - 1] * (2 + 5 * x[i - 1] ** 2) + 1 - total)
    return result


def h_equation(x):
    n, result = len(x), []
    mu = [(i - 0.5) / n for i in range(1, n + 1)]
    for i in range(n):
        total = sum(mu[i] * x[j] / (mu[i] + mu[j]) for j in range(n))
        result.append(x[i] - 1 / (1 - 0.9 / (2 * n) * total))
    return result


def helix(x):
    turns = np.arctan(x[1] / x[0]) / (2 * np.pi) + (0.5 if x[0] < 0 else 0)
    return [10 * (x[2] - 10 * turns), 10 * (np.hypot(x[0], x[1]) - 1), x[2]]


PRINTED = {
    1: lambda x: [1 - x[0], *(10 * (x[i] - x[i - 1] ** 2) for i in range(1, len(x)))],
    5: helix,
    6: watson,
    7: chebyquad,
    8: lambda x: [*(v + sum(x) - len(x) - 1 for v in x[:-1]), np.prod(x) - 1],
    9: boundary_value,
    10: integral_equation,
    11: lambda x: [
        len(x) - sum(np.cos(x)) + i * (1 - np.cos(v)) - np.sin(v)
        for i, v in enumerate(x, 1)
    ],
    12: lambda x: (
        x - 1 + np.arange(1, 11) * ((s := np.arange(1, 11) @ (x - 1)) + 2 * s**3)
    ),
    13: lambda x: [
        (3 - 2 * u) * u - before - 2 * after + 1
        for before, u, after in zip([0, *x[:-1]], x, [*x[1:], 0], strict=True)
    ],
    14: banded,
    15: lambda x: [
        x[0] * x[0] + x[1] * x[2] - 1e-4,
        x[0] * x[1] + x[1] * x[3] - 1,
        x[2] * x[0] + x[3] * x[2],
        x[2] * x[1] + x[3] * x[3] - 1e-4,
    ],
    18: lambda x: [
        x[1] ** 2 * (1 - np.exp(-(x[0] ** 2))) / x[0],
        x[0] * (1 - np.exp(-(x[1] ** 2))) / x[1],
    ],
    21: lambda x: [
        x[0] - x[1] ** 3 + 5 * x[1] ** 2 - 2 * x[1] - 13,
        x[0] + x[1] ** 3 + x[1] ** 2 - 14 * x[1] - 29,
    ],
    23: h_equation,
}


@by_name([p for p in problems.systems() if p.number in PRINTED])
def test_systems_are_as_printed(problem):
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal(problem.start.size)
        np.testing.assert_allclose(
            problem.function(x), PRINTED[problem.number](x), rtol=1e-11, atol=1e-11
        )


# Solutions.


@by_name(ALL)
def test_known_solutions_solve(problem):
    for root in problem.roots:
        assert root.shape == problem.start.shape
        assert np.abs(problem.residual(root)).max() <= 1e-11 * max(
            1.0, np.abs(root).max()
        )


@by_name([p for p in problems.systems() if p.number in {9, 10, 13, 14, 23}])
def test_newton_solves_the_systems_without_a_closed_form(problem):
    root = newton(problem)
    assert np.abs(problem.function(root)).max() <= 1e-13


@pytest.mark.parametrize(("n", "least"), [(6, 2.28767005355e-3), (9, 1.39976013e-6)])
def test_watson_is_stationary_at_the_known_least_squares(n, least):
    problem = problems.watson(n)
    root = newton(problem)
    slopes, values, offsets = problem.function.keywords["matrices"]
    residual = slopes @ root - (values @ root) ** 2 - offsets
    assert np.abs(problem.function(root)).max() <= 1e-12
    assert residual @ residual == pytest.approx(least, rel=1e-6)
    assert residual.size == 31


@pytest.mark.parametrize("n", range(1, 12))
def test_chebyquad_has_real_nodes_where_it_should(n):
    roots = problems.chebyquad(n).roots
    assert len(roots) == (n in {1, 2, 3, 4, 5, 6, 7, 9})


def test_the_integral_equation_has_the_root_of_the_boundary_value_problem():
    roots = [
        newton(f(20))
        for f in (problems.discrete_boundary_value, problems.discrete_integral_equation)
    ]
    np.testing.assert_allclose(*roots, atol=1e-14)


@pytest.mark.parametrize("albedo", [0.5, 0.9, 0.999])
def test_h_has_the_mean_of_the_continuous_equation(albedo):
    root = newton(problems.chandrasekhar(50, albedo))
    assert root.mean() == pytest.approx(
        2 * (1 - np.sqrt(1 - albedo)) / albedo, rel=1e-12
    )


def test_wood_is_the_gradient_of_its_function():
    def objective(x):
        far = 10.1 * ((x[1] - 1) ** 2 + (x[3] - 1) ** 2) + 19.8 * (x[1] - 1) * (
            x[3] - 1
        )
        first, second = 100 * (x[1] - x[0] ** 2) ** 2, 90 * (x[3] - x[2] ** 2) ** 2
        return np.stack([first + second + (1 - x[0]) ** 2 + (1 - x[2]) ** 2 + far])

    x = np.random.default_rng(0).standard_normal(4)
    gradient = jacobian(objective, x)[0] * [0.5, 1, 0.5, 1]
    np.testing.assert_allclose(problems.wood().function(x), gradient, rtol=1e-12)


def test_brown_has_two_roots():
    first, second = problems.brown_almost_linear(10).roots
    np.testing.assert_array_equal(first, np.ones(10))
    np.testing.assert_allclose(second[[0, -1]], [0.9794303, 1.2056966], atol=1e-6)


def test_the_quotient_of_sample_18_and_its_derivative_are_right_on_the_axes():
    function = problems.sample_18().function
    np.testing.assert_array_equal(function(np.array([0.0, 3.0]))[0], 0.0)
    derivative = jax.jacfwd(function)(np.array([0.0, 3.0]))
    np.testing.assert_allclose(derivative[0], [9.0, 0.0], atol=1e-15)


def test_the_helix_is_smooth_at_its_start():
    problem = problems.helical_valley()
    above, below = (
        problem.function(np.array([-1.0, side, 0.0])) for side in (1e-9, -1e-9)
    )
    np.testing.assert_allclose(above, below, atol=1e-6)


@pytest.mark.parametrize("n", [30, 1000])
def test_large_systems_have_the_size_asked_for(n):
    group = problems.large_systems(n)
    assert {p.number for p in group} == {1, 8, 9, 10, 11, 12, 13, 14, 23}
    for problem in group:
        assert problem.start.shape == problem.function(problem.start).shape == (n,)


# Bratu.


def test_bratu_is_the_five_point_laplacian():
    n, t = 12, np.arange(1, 13) / 13
    mode = np.outer(np.sin(np.pi * t), np.sin(2 * np.pi * t))
    eigenvalue = (
        4 * (n + 1) ** 2 * (np.sin(np.pi / 26) ** 2 + np.sin(2 * np.pi / 26) ** 2)
    )
    np.testing.assert_allclose(
        problems.bratu(n, parameter=0.0).function(mode), eigenvalue * mode, atol=1e-11
    )


def test_bratu_knows_its_derivative(xp_case):
    problem = problems.bratu(12)
    u, v = np.random.default_rng(0).standard_normal((2, 12, 12))
    exact = problem.function(u + 1e-30j * v).imag / 1e-30
    ours = xp_case.to_numpy(problem.jvp(xp_case.asarray(u), xp_case.asarray(v)))
    np.testing.assert_allclose(ours, exact, rtol=1e-12, atol=1e-10)
    np.testing.assert_array_equal(
        problems.bratu_jvp(u, v, parameter=0.0),
        problems.bratu(12, parameter=0.0).function(v),
    )


def test_both_bratu_maps_find_the_root():
    ours = [
        iterate(p) for p in (problems.bratu_jacobi_map(), problems.bratu_poisson_map())
    ]
    np.testing.assert_allclose(*ours, atol=1e-7)
    assert np.abs(problems.bratu(16).function(ours[1])).max() <= 1e-7


# Maps.


@by_name(MAPS)
def test_plain_iteration_finds_a_fixed_point(problem):
    assert problem.kind == "fixed point"
    value = iterate(problem)
    assert np.linalg.norm(problem.residual(value)) <= 1e-9
    for root in problem.roots:
        np.testing.assert_allclose(value, root, atol=1e-6)


@pytest.mark.parametrize("radius", [0.9, 0.99, 0.999])
def test_affine_maps_are_not_normal(radius):
    matrix = problems.affine_map(radius).function.keywords["matrix"]
    assert np.abs(np.linalg.eigvals(matrix)).max() == pytest.approx(radius)
    assert np.linalg.norm(matrix, 2) > 1.5 * radius


def test_em_finds_the_known_maximum_of_the_likelihood():
    value = iterate(problems.poisson_mixture_map())
    np.testing.assert_allclose(value, [0.3599, 1.256, 2.663], atol=5e-4)


def test_sinkhorn_scales_the_kernel_to_its_masses():
    problem = problems.sinkhorn_map()
    kernel, masses = (problem.function.keywords[key] for key in ("kernel", "masses"))
    potential = iterate(problem, 1e-13)
    plan = np.exp(kernel + potential[:, None])
    plan *= np.exp(masses[1]) / plan.sum(axis=0)
    np.testing.assert_allclose(plan.sum(axis=1), np.exp(masses[0]), atol=1e-12)
    assert abs(potential.mean()) <= 1e-14


@pytest.mark.parametrize("damping", [0.85, 0.99])
def test_pagerank_is_a_distribution(damping):
    (ranks,) = problems.pagerank_map(damping).roots
    assert ranks.min() > 0
    assert ranks.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("norm", [0.9, 1.5])
def test_networks_have_the_norm_asked_for(norm):
    matrix = problems.tanh_map(norm).function.keywords["matrix"]
    assert np.linalg.norm(matrix, 2) == pytest.approx(norm)


# Every array library.


def compiled(function, case):
    """In JAX one program, where its eager arrays compile every operation."""
    return jax.jit(function) if case.name == "jax-jit" else function


@by_name(ALL)
def test_every_library_agrees(problem, compiled_case):
    function = compiled(problem.function, compiled_case)
    shift = 0.1 * np.random.default_rng(0).random(problem.start.shape)
    for point in (problem.start, problem.start + shift):
        expected = problem.function(point)
        value = function(compiled_case.asarray(point))
        assert value.dtype == compiled_case.asarray(point).dtype
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            compiled_case.to_numpy(value), expected, rtol=0, atol=1e-12 * scale
        )


@by_name(ALL)
def test_constants_follow_the_state_to_its_device(problem):
    state = torch.empty(problem.start.shape, device="meta", dtype=torch.float64)
    value = problem.function(state)
    assert value.device.type == "meta"
    assert value.shape == state.shape


@by_name(ALL)
def test_single_precision_stays_single(problem, compiled_case):
    residual = compiled(problem.residual, compiled_case)
    value = residual(compiled_case.asarray(problem.start.astype(np.float32)))
    assert compiled_case.to_numpy(value).dtype == np.float32
    assert np.all(np.isfinite(compiled_case.to_numpy(value)))


@pytest.mark.parametrize(
    ("problem", "most"),
    [
        (problems.bratu(32), 120),
        (problems.bratu(64), 187),  # what SciPy's krylov takes
        (problems.trigonometric(300), 120),
        (problems.discrete_boundary_value(300), 500),
        (problems.chandrasekhar(1000, 0.999), 25),
    ],
    ids=lambda case: getattr(case, "name", None),
)
def test_large_systems_take_few_evaluations(problem, most):
    """With no solver named: thousands, before corrections led the Krylov space."""
    sol = fp.root(problem.function, problem.start, rtol=1e-6)
    assert sol.work.f <= most
    first = np.linalg.norm(problem.residual(problem.start))
    assert np.linalg.norm(problem.residual(sol.value)) <= 1e-6 * first
