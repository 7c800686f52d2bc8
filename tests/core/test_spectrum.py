"""Spectral radii and norms, against LAPACK and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
from fixedpoint.spectrum import spectral_norm, spectral_radius

RANDOM = np.random.default_rng(0)


def run(case, matrix, v, **settings):
    """The radius of a matrix, or of a stack of them, on the library of `case`."""

    def call(matrix, v):
        product = lambda v: (matrix @ v[..., None])[..., 0]
        return spectral_radius(product, v, **{"batch_ndim": v.ndim - 1} | settings)

    call = jax.jit(call) if case.name == "jax-jit" else call
    return case.to_numpy(call(case.asarray(matrix), case.asarray(v)))


def generic(*shape):
    return np.random.default_rng(1).standard_normal(shape)


def exact(matrix):
    return np.abs(np.linalg.eigvals(matrix)).max(-1)


def rotation(n, factor):
    """A rotation of the plane that the first coordinates span, in other coordinates."""
    block = np.zeros((n, n))
    block[:2, :2] = [[0.0, -factor], [factor, 0.0]]
    basis = np.linalg.qr(RANDOM.standard_normal((n, n)))[0]
    return basis @ block @ basis.T


def similar(eigenvalues):
    """A symmetric matrix of these eigenvalues."""
    n = len(eigenvalues)
    basis = np.linalg.qr(RANDOM.standard_normal((n, n)))[0]
    return basis @ np.diag(eigenvalues) @ basis.T


def padded(block):
    matrix = np.zeros((8, 8))
    matrix[: len(block), : len(block)] = block
    return matrix


MATRICES = {
    "rotation": (padded(rotation(2, 0.9)), 0.9),
    "rotation in other coordinates": (rotation(8, 0.9), 0.9),
    "two of one modulus": (padded(similar([0.95, -0.95, 0.3, 0.1])), 0.95),
    "the unit matrix": (np.eye(8), 1.0),
    "zero": (np.zeros((8, 8)), 0.0),
    "one entry": (padded([[-3.0]]), 3.0),
    "of rank one": (np.outer(generic(8), np.ones(8)), abs(generic(8).sum())),
    "random": (generic(8, 8), exact(generic(8, 8))),
    "not normal": (
        padded(np.diag([0.5, 0.4, 0.3]) + np.triu(np.full((3, 3), 5.0), 1)),
        0.5,
    ),
    "nilpotent": (np.eye(8, k=1), 0.0),  # from the last unit vector, without rounding
    "tiny": (1e-200 * rotation(8, 0.9), 0.9e-200),
    "huge": (1e200 * rotation(8, 0.9), 0.9e200),
}
STACK = np.stack([matrix for matrix, _ in MATRICES.values()])
RADII = np.array([radius for _, radius in MATRICES.values()])
STARTS = np.stack(
    [np.eye(8)[-1] if name == "nilpotent" else generic(8) for name in MATRICES]
)


def test_radii_of_a_batch(jit_case):
    np.testing.assert_allclose(run(jit_case, STACK, STARTS), RADII, rtol=1e-10)


@pytest.mark.parametrize("sample", range(len(MATRICES)), ids=list(MATRICES))
def test_samples_do_not_depend_on_their_neighbors(eager_case, sample):
    alone = run(eager_case, STACK[sample], STARTS[sample])
    np.testing.assert_allclose(
        alone, run(eager_case, STACK, STARTS)[sample], rtol=1e-13
    )


@pytest.mark.parametrize("p", [2, 3, 6])
def test_defective(p):
    block = np.eye(p, k=1)
    bound = 4.0 * np.finfo(float).eps ** (1.0 / p)
    assert spectral_radius(lambda v: block @ v, generic(p)) <= bound
    assert (
        abs(spectral_radius(lambda v: block @ v + 0.7 * v, generic(p)) - 0.7) <= bound
    )


def test_two_axes_of_samples(eager_case):
    stack = generic(2, 3, 4, 4)
    got = run(eager_case, stack, generic(2, 3, 4))
    np.testing.assert_allclose(got, exact(stack), rtol=1e-10)


def test_what_is_not_finite_is_said_of_its_sample_alone(eager_case):
    stack = np.stack([rotation(3, 0.9)] * 4)
    stack[1, 0, 0], stack[2, 1, 1] = np.nan, np.inf
    start = np.stack([generic(3), generic(3), generic(3), np.zeros(3)])
    got = run(eager_case, stack, start)
    np.testing.assert_allclose(got, [0.9, np.nan, np.nan, np.nan], rtol=1e-12)


def test_leaves(eager_case):
    matrix = generic(5, 5)

    def product(v):
        whole = np.concatenate(
            [eager_case.to_numpy(v["a"]), eager_case.to_numpy(v["b"])[0]]
        )
        image = matrix @ whole
        return {
            "a": eager_case.asarray(image[:2]),
            "b": eager_case.asarray(image[None, 2:]),
        }

    start = generic(5)
    whole = spectral_radius(lambda v: matrix @ v, start, steps=4)
    parts = {
        "a": eager_case.asarray(start[:2]),
        "b": eager_case.asarray(start[None, 2:]),
    }
    assert float(spectral_radius(product, parts, steps=4)) == pytest.approx(
        float(whole), rel=1e-12
    )
    assert float(spectral_radius(product, parts)) == pytest.approx(
        exact(matrix), rel=1e-12
    )


def test_complex_entries_are_pairs_of_real_ones():
    a, start = 0.3 + 0.4j, generic(3) + 1j * generic(3)[::-1]
    assert spectral_radius(lambda v: a * v, start) == pytest.approx(0.5, rel=1e-12)
    assert spectral_radius(lambda v: a * v.conj(), start) == pytest.approx(
        0.5, rel=1e-12
    )
    mixed = lambda v: a * v.conj() + 0.2 * v
    assert spectral_radius(mixed, start) == pytest.approx(0.7, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precisions(dtype):
    matrix = torch.as_tensor(rotation(16, 0.9)).to(dtype)
    got = spectral_radius(lambda v: matrix @ v, torch.as_tensor(generic(16)).to(dtype))
    assert float(got) == pytest.approx(0.9, rel=20 * torch.finfo(dtype).eps)


def test_few_steps_estimate_a_normal_map_from_below():
    matrix, start = similar(np.linspace(-1.0, 1.0, 200) ** 3), generic(200)
    radii = [
        spectral_radius(lambda v: matrix @ v, start, steps=steps)
        for steps in (3, 10, 40)
    ]
    assert radii == sorted(radii)
    assert 0.9999 < radii[-1] <= 1.0 + 1e-12
    assert radii[1] > 0.97


def test_products_are_counted(counted):
    product = counted(lambda v: 0.5 * v)
    spectral_radius(product, generic(100), steps=7)
    assert product.calls == 7
    product = counted(lambda v: 0.5 * v)
    spectral_radius(product, generic(3))
    assert product.calls == 3


def test_the_caller_keeps_its_arrays(eager_case):
    start = eager_case.asarray(generic(4))
    spectral_radius(lambda v: v, start)
    np.testing.assert_array_equal(eager_case.to_numpy(start), generic(4))


@pytest.mark.parametrize("size", [3, 50])
def test_at_a_solution(eager_case, size):
    matrix = 0.5 * generic(size, size) / np.sqrt(size)

    def f(z, A):
        return eager_case.xp.tanh((A @ z[..., None])[..., 0] + 1.0)

    args = (eager_case.asarray(matrix),)
    known = {}
    if eager_case.name in ("numpy", "strict"):
        known["jvp"] = lambda z, v, A: (1.0 - f(z, A) ** 2) * (A @ v[..., None])[..., 0]
    start = eager_case.asarray(generic(2, size))
    sol = fp.fixed_point(f, start, args, batch_ndim=1, rtol=1e-13, **known)
    z = eager_case.to_numpy(sol.value)
    expected = exact((1.0 - z**2)[..., None] * matrix)
    got = spectral_radius(sol.linearize(), start, batch_ndim=1, steps=size)
    np.testing.assert_allclose(eager_case.to_numpy(got), expected, rtol=1e-8)


def test_under_transforms_of_jax():
    stack = jnp.asarray(generic(3, 4, 4))
    radius = lambda matrix, v: spectral_radius(lambda v: matrix @ v, v)
    got = jax.vmap(radius)(stack, jnp.asarray(generic(3, 4)))
    np.testing.assert_allclose(got, exact(generic(3, 4, 4)), rtol=1e-10)


def test_a_start_that_is_known_inside_a_trace():
    radius = lambda matrix: spectral_radius(
        lambda v: matrix @ v, jnp.asarray(generic(4))
    )
    got = jax.jit(radius)(jnp.asarray(generic(4, 4)))
    np.testing.assert_allclose(got, exact(generic(4, 4)), rtol=1e-10)


@pytest.mark.parametrize("shape", [(5, 5), (3, 6, 6)])
def test_norm(eager_case, shape):
    matrix, flipped = generic(*shape), np.swapaxes(generic(*shape), -1, -2)
    times = lambda a: lambda v: (eager_case.asarray(a) @ v[..., None])[..., 0]
    start = eager_case.asarray(generic(*shape[:-1]))
    got = spectral_norm(times(matrix), times(flipped), start, batch_ndim=len(shape) - 2)
    expected = np.linalg.norm(matrix, 2, axis=(-2, -1))
    np.testing.assert_allclose(eager_case.to_numpy(got), expected, rtol=1e-12)


def test_norm_of_a_map_between_spaces():
    matrix = generic(7, 4)
    got = spectral_norm(lambda v: matrix @ v, lambda u: matrix.T @ u, generic(4))
    assert got == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_ndim": -1}, "batch_ndim"),
        ({"steps": 2.0}, "steps"),
    ],
)
def test_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        spectral_radius(lambda v: v, np.ones(2), **settings)


def test_a_product_of_another_structure():
    with pytest.raises(ValueError, match="container like start"):
        spectral_radius(lambda v: [v], np.ones(2))
