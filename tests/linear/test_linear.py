"""Krylov methods against dense solves and least squares over the Krylov space."""

import jax
import numpy as np
import pytest
from scipy.sparse.linalg import gmres, lgmres

import fixedpoint as fp
from fixedpoint.adapters import backend_of
from fixedpoint.linear import LinearSystem
from fixedpoint.spaces import space_of

METHODS = [fp.GMRES(), fp.BiCGStab(), fp.ConjugateGradient()]
GENERAL = METHODS[:2]


class Matrix:
    """The product with a matrix for each sample, which counts its calls."""

    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0

    def __call__(self, v):
        self.calls += 1
        return (np.einsum("...ij,...j->...i", self.matrix, v[0]),)


def system(A, b, target, **more):
    """A x = b on NumPy; all axes of b but the last index samples."""
    space = space_of(backend_of([b], ["b"]), (b,), b.ndim - 1)
    return LinearSystem(
        space, Matrix(A), (b,), np.broadcast_to(target, b.shape[:-1]), **more
    )


def solve(method, A, b, target=1e-10, **more):
    """The solution, and what is reported of it."""
    given = system(A, b, target, **more)
    with np.errstate(all="ignore"):
        end, _ = method.solve(given, method.init(given.space))
    assert end.products == given.product.calls
    return end.value[0], end.residual_norm, end.products


def left(A, b, x):
    """The norm of b − Ax, sample by sample."""
    return np.linalg.norm(b - np.einsum("...ij,...j->...i", A, x), axis=-1)


def matrices(method, batch, n, seed=0):
    """Well-conditioned matrices of the kind that `method` is for."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((*batch, n, n)) / np.sqrt(n)
    if isinstance(method, fp.ConjugateGradient):
        return A @ np.swapaxes(A, -1, -2) + 0.5 * np.eye(n)
    return A + 2.0 * np.eye(n)


def least(A, b, k):
    """The least residual over the Krylov space of k dimensions, its basis kept
    orthonormal.
    """
    directions = [b]
    for _ in range(k - 1):
        directions.append(A @ np.linalg.qr(np.stack(directions, 1))[0][:, -1])
    Q = np.linalg.qr(np.stack(directions, 1))[0]
    return np.linalg.norm(b - A @ (Q @ np.linalg.lstsq(A @ Q, b, rcond=None)[0]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 7, 20, 60])
@pytest.mark.parametrize("seed", range(3))
def test_solutions_are_those_of_a_dense_solver(method, n, seed):
    A, b = (
        matrices(method, (), n, seed),
        np.random.default_rng(seed + 50).standard_normal(n),
    )
    x, norm, _ = solve(method, A, b)
    assert norm <= 1e-10
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-3, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_definite_systems_may_be_negative(method):
    A, b = -matrices(fp.ConjugateGradient(), (), 12), np.arange(1.0, 13.0)
    x, norm, _ = solve(method, A, b)
    assert norm <= 1e-10
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_every_sample_meets_its_own_target_and_no_more(method):
    A = matrices(method, (4,), 15)
    b = np.random.default_rng(1).standard_normal((4, 15))
    targets = np.array([1e-1, 1e-4, 1e-11, 1e2])
    x, norm, products = solve(method, A, b, targets)
    assert np.all(norm <= targets)
    np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-3, atol=1e-13)
    np.testing.assert_array_equal(x[3], 0.0)
    alone = [solve(method, A[i : i + 1], b[i : i + 1], targets[i]) for i in range(4)]
    assert products == max(count for *_, count in alone)
    for i, (value, *_) in enumerate(alone):
        np.testing.assert_allclose(x[i], value[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_two_batch_axes(method):
    A, b = (
        matrices(method, (2, 3), 6),
        np.random.default_rng(2).standard_normal((2, 3, 6)),
    )
    x, norm, _ = solve(method, A, b)
    assert norm.shape == (2, 3)
    np.testing.assert_allclose(
        x, np.linalg.solve(A, b[..., None])[..., 0], rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_right_hand_side_of_zero_takes_no_product(method):
    x, norm, products = solve(method, np.eye(3), np.zeros(3), 0.0)
    np.testing.assert_array_equal(x, 0.0)
    assert (norm, products) == (0.0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_right_hand_side_of_zero_stays_zero_next_to_others(method):
    A, b = matrices(method, (2,), 5), np.zeros((2, 5))
    b[1] = np.arange(1.0, 6.0)
    x, norm, _ = solve(method, A, b)
    np.testing.assert_array_equal(x[0], 0.0)
    assert norm[0] == 0.0
    assert norm[1] <= 1e-10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("entry", [1.0, np.nan, np.inf])
def test_inactive_samples_are_left_alone(method, entry):
    """Whatever the products with their matrices are."""
    A, b = matrices(method, (3,), 8), np.random.default_rng(3).standard_normal((3, 8))
    A[1] = entry
    active = np.array([True, False, True])
    x, norm, _ = solve(method, A, b, active=active)
    np.testing.assert_array_equal(x[1], 0.0)
    np.testing.assert_allclose(norm[1], np.linalg.norm(b[1]), rtol=1e-15)
    expected = np.linalg.solve(A[active], b[active][..., None])[..., 0]
    np.testing.assert_allclose(x[active], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_with_no_active_sample_nothing_is_done(method):
    b = np.ones((2, 3))
    x, norm, products = solve(method, np.eye(3), b, active=np.zeros(2, bool))
    np.testing.assert_array_equal(x, 0.0)
    np.testing.assert_allclose(norm, np.sqrt(3.0))
    assert products == 0


# Preconditioning.


@pytest.mark.parametrize("method", METHODS)
def test_an_exact_preconditioner_leaves_one_step(method):
    A, b = matrices(method, (), 20), np.random.default_rng(4).standard_normal(20)
    inverse = np.linalg.inv(A)
    x, _, products = solve(method, A, b, 1e-9, precondition=Matrix(inverse))
    assert products <= (2 if isinstance(method, fp.BiCGStab) else 1)
    np.testing.assert_allclose(x, inverse @ b, rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_a_preconditioner_saves_products_and_keeps_the_residual(method):
    """It is applied from the right, or symmetrically: what is tested is b − Ax all the
    same.
    """
    n = 60
    A = matrices(method, (), n)
    scales = np.geomspace(1.0, 1e3, n)
    A = scales[:, None] * A * scales if method is METHODS[2] else A * scales
    P = np.diag(1.0 / np.diag(A))
    b = np.random.default_rng(5).standard_normal(n)
    x, norm, products = solve(method, A, b, 1e-6, precondition=Matrix(P))
    assert norm <= 1e-6
    np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-2, atol=1e-9)
    assert products < solve(method, A, b, 1e-6)[2]


@pytest.mark.parametrize("k", range(1, 7))
def test_gmres_minimizes_over_the_preconditioned_krylov_space(k):
    rng = np.random.default_rng(6)
    A, P = rng.standard_normal((2, 10, 10)) + 3.0 * np.eye(10)
    b = rng.standard_normal(10)
    method = fp.GMRES(max_steps=k)
    x, norm, products = solve(method, A, b, 0.0, precondition=Matrix(P))
    assert products == k
    np.testing.assert_allclose(norm, least(A @ P, b, k), rtol=1e-9)
    np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-9)


def test_gmres_allows_a_preconditioner_that_changes():
    A, b = matrices(GENERAL[0], (), 15), np.ones(15)
    calls = []

    def precondition(v):
        calls.append(None)
        return ((1.0 + len(calls) % 3) * v[0] / np.diag(A),)

    x, norm, _ = solve(fp.GMRES(), A, b, precondition=precondition)
    assert norm <= 1e-10
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-8)


# What GMRES minimizes, and where it is robust.


@pytest.mark.parametrize(
    "kind", ["general", "skew", "indefinite", "nilpotent", "tiny", "huge"]
)
@pytest.mark.parametrize("k", range(1, 9))
def test_gmres_residuals_are_least_over_the_krylov_space(kind, k):
    A, b = special(kind)
    x, norm, products = solve(fp.GMRES(max_steps=k), A, b, 0.0)
    assert products == k
    scale = np.linalg.norm(b)
    np.testing.assert_allclose(norm, least(A, b, k), rtol=1e-8, atol=1e-12 * scale)
    np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-8, atol=1e-12 * scale)


def special(kind, n=10):
    rng = np.random.default_rng(7)
    A, b = rng.standard_normal((n, n)), rng.standard_normal(n)
    if kind == "skew":
        return A - A.T, b
    if kind == "indefinite":
        return A + A.T, b
    if kind == "nilpotent":  # a cyclic shift: nothing falls before the last step
        return np.roll(np.eye(n), 1, axis=0), np.eye(n)[0]
    return {"tiny": 1e-120, "huge": 1e120, "general": 1.0}[kind] * A, b


@pytest.mark.parametrize("kind", ["skew", "indefinite", "nilpotent"])
def test_gmres_does_not_break_down(kind):
    A, b = special(kind)
    x, norm, products = solve(fp.GMRES(), A, b)
    assert norm <= 1e-10
    assert products <= 10
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("restart", [1, 2, 5, 100])
def test_restarts_go_on_from_what_is_left(restart):
    A, b = matrices(GENERAL[0], (), 30), np.random.default_rng(8).standard_normal(30)
    x, norm, _ = solve(fp.GMRES(restart=restart), A, b)
    assert norm <= 1e-10
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_a_cycle_minimizes_over_the_space_of_its_own_residual(cycles):
    A, b = matrices(GENERAL[0], (), 20), np.random.default_rng(9).standard_normal(20)
    x = np.zeros(20)
    for _ in range(cycles):
        r = b - A @ x
        Q = np.linalg.qr(np.stack([r, A @ r, A @ A @ r], 1))[0]
        x = x + Q @ np.linalg.lstsq(A @ Q, r, rcond=None)[0]
    method = fp.GMRES(restart=3, max_steps=3 * cycles, augment=0)
    found, norm, products = solve(method, A, b, 0.0)
    assert products == 3 * cycles
    np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(norm, np.linalg.norm(b - A @ x), rtol=1e-9)


def test_a_cycle_that_reduces_nothing_is_the_last():
    """One direction is of no use where A is skew-symmetric."""
    A, b = special("skew")
    x, norm, products = solve(fp.GMRES(restart=1), A, b)
    np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-12)
    assert products == 1


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_steps_are_bounded_within_a_cycle_and_over_all(steps):
    A, b = matrices(GENERAL[0], (), 30), np.ones(30)
    for restart in (2, 30):
        x, norm, products = solve(fp.GMRES(restart=restart, max_steps=steps), A, b, 0.0)
        assert products == steps
        np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-9)
    assert solve(fp.BiCGStab(max_steps=steps), A, b, 0.0)[2] == 2 * steps
    assert solve(fp.ConjugateGradient(max_steps=steps), A, b, 0.0)[2] == steps


def test_conjugate_gradients_minimize_the_energy_over_the_krylov_space():
    method = fp.ConjugateGradient()
    A, b = matrices(method, (), 12), np.random.default_rng(10).standard_normal(12)
    for k in range(1, 6):
        x = solve(fp.ConjugateGradient(max_steps=k), A, b, 0.0)[0]
        K = np.linalg.qr(
            np.stack([np.linalg.matrix_power(A, j) @ b for j in range(k)], 1)
        )[0]
        expected = K @ np.linalg.solve(K.T @ A @ K, K.T @ b)
        np.testing.assert_allclose(x, expected, rtol=1e-8, atol=1e-10)


# What GMRES remembers of the systems before.


def laplacian(n, advection=0.0):
    """The second difference, which restarted methods are slow on, and a first one."""
    upper = np.diag(np.ones(n - 1), 1)
    return 2.0 * np.eye(n) - upper - upper.T + advection * (upper - upper.T)


def drifting(n, count, advection=0.3):
    """Systems whose matrices and right-hand sides change little by little."""
    bumps = np.linspace(0.0, 0.02, count)
    at = np.linspace(0.0, 1.0, n)
    rights = [np.sin(3.0 * at) + 2.0 * bump * np.cos(5.0 * at) for bump in bumps]
    return [
        (laplacian(n, advection) + bump * np.eye(n), b)
        for bump, b in zip(bumps, rights, strict=True)
    ]


def in_sequence(method, systems, target, **more):
    """The solutions of systems, each with what is remembered of those before."""
    memory, ends = None, []
    for A, b in systems:
        given = system(A, b, target, **more)
        memory = method.init(given.space) if memory is None else memory
        with np.errstate(all="ignore"):
            end, memory = method.solve(given, memory)
        assert end.products == given.product.calls
        ends.append(end)
    return ends


@pytest.mark.parametrize("batch", [(), (1,), (2, 2)])
def test_solutions_lead_the_space_of_the_systems_after(batch):
    systems = [
        (np.broadcast_to(A, (*batch, 60, 60)), np.broadcast_to(b, (*batch, 60)))
        for A, b in drifting(60, 6)
    ]
    plain = in_sequence(fp.GMRES(max_steps=2000, augment=0), systems, 1e-6)
    led = in_sequence(fp.GMRES(max_steps=2000), systems, 1e-6)
    for (A, b), end in zip(systems, led, strict=True):
        assert np.all(end.residual_norm <= 1e-6)
        np.testing.assert_allclose(
            end.residual_norm, left(A, b, end.value[0]), rtol=1e-4, atol=1e-12
        )
        expected = np.linalg.solve(A, b[..., None])[..., 0]
        np.testing.assert_allclose(end.value[0], expected, atol=1e-3)
    assert 2 * sum(e.products for e in led[1:]) < sum(e.products for e in plain[1:])


@pytest.mark.parametrize("advection", [0.0, 0.3])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_solutions_lead_preconditioned_systems(advection, batch):
    """As they are: to precondition them, too, would take them out of the space."""
    systems = [
        (np.broadcast_to(A, (*batch, 200, 200)), np.broadcast_to(b, (*batch, 200)))
        for A, b in drifting(200, 5, advection)
    ]
    blocks = laplacian(200, advection) * np.kron(np.eye(20), np.ones((10, 10)))
    precondition = Matrix(np.linalg.inv(blocks))
    plain, led = (
        in_sequence(
            fp.GMRES(max_steps=2000, augment=augment),
            systems,
            1e-6,
            precondition=precondition,
        )
        for augment in (0, 10)
    )
    for (A, b), end in zip(systems, led, strict=True):
        assert np.all(end.residual_norm <= 1e-6)
        np.testing.assert_allclose(
            end.residual_norm, left(A, b, end.value[0]), rtol=1e-4, atol=1e-12
        )
    assert sum(e.products for e in led[1:]) < 0.9 * sum(e.products for e in plain[1:])


def test_easy_systems_are_not_led():
    """What takes few products would take more."""
    rng = np.random.default_rng(17)
    A = matrices(GENERAL[0], (), 40)
    systems = [(A, b) for b in rng.standard_normal((4, 40))]
    plain = in_sequence(fp.GMRES(augment=0), systems, 1e-2)
    led = in_sequence(fp.GMRES(), systems, 1e-2)
    assert [e.products for e in led] == [e.products for e in plain]


@pytest.mark.parametrize("restart", [6, 10, 20])
@pytest.mark.parametrize("advection", [0.0, 0.5])
def test_corrections_of_cycles_lead_those_that_follow(restart, advection):
    """The solution is that of SciPy's method of the same idea."""
    A, b = laplacian(100, advection), np.ones(100)
    target = 1e-6 * np.linalg.norm(b)
    x, info = lgmres(A, b, rtol=1e-6, maxiter=500, inner_m=restart - 1, outer_k=1)
    assert info == 0
    method = fp.GMRES(restart=restart, max_steps=5000)
    y, norm, products = solve(method, A, b, target)
    assert norm <= target
    np.testing.assert_allclose(norm, left(A, b, y), rtol=1e-4)
    np.testing.assert_allclose(y, x, atol=2e-3 * np.abs(x).max())
    plain = fp.GMRES(restart=restart, max_steps=5000, augment=0)
    most = 0.35 if advection == 0.0 else 1.3
    assert products <= most * solve(plain, A, b, target)[2]


@pytest.mark.parametrize("target", [1e-3, 1e-11])
@pytest.mark.parametrize("restart", [4, 12, 30])
def test_one_array_goes_the_way_of_batches(target, restart):
    """The short way of one sample against that of all others."""
    systems = drifting(40, 4)
    method = fp.GMRES(restart=restart, max_steps=400)
    alone = in_sequence(method, systems, target)
    batch = in_sequence(method, [(A[None], b[None]) for A, b in systems], target)
    for one, many in zip(alone, batch, strict=True):
        assert abs(one.products - many.products) <= 0.05 * many.products
        np.testing.assert_allclose(one.value[0], many.value[0][0], atol=3e3 * target)


def test_samples_are_led_each_by_itself():
    """One is easy, one hard, and one has nothing to do: each goes its own way."""
    easy = matrices(GENERAL[0], (), 30)
    rng, ends = np.random.default_rng(18), []
    triples = [
        (np.stack([easy, A, A]), np.stack([rng.standard_normal(30), b, 0.0 * b]))
        for A, b in drifting(30, 4)
    ]
    together = in_sequence(fp.GMRES(restart=12, max_steps=500), triples, 1e-8)
    for sample in range(3):
        parts = [(A[sample : sample + 1], b[sample : sample + 1]) for A, b in triples]
        ends.append(in_sequence(fp.GMRES(restart=12, max_steps=500), parts, 1e-8))
    for step, end in enumerate(together):
        alone = [ends[sample][step] for sample in range(3)]
        assert end.products == max(one.products for one in alone)
        for sample, one in enumerate(alone):
            np.testing.assert_allclose(
                end.value[0][sample], one.value[0][0], rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("kind", ["general", "skew", "indefinite", "graded"])
def test_tight_targets_are_met_in_truth(kind):
    """Where one pass of orthogonalization would lose the basis."""
    A, b = (graded(), np.ones(40)) if kind == "graded" else special(kind, 40)
    for shape in ((), (1,)):
        matrix, right = np.reshape(A, (*shape, 40, 40)), np.reshape(b, (*shape, 40))
        target = 1e-12 * np.linalg.norm(b)
        x, norm, products = solve(fp.GMRES(restart=50), matrix, right, target)
        assert np.all(norm <= target)
        assert np.all(left(matrix, right, x) <= 1e-10 * np.linalg.norm(b))
        assert products <= 41


def stretched(n, condition, seed=0):
    """A symmetric indefinite matrix with a spectrum over many scales."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    values = np.geomspace(1.0 / condition, 1.0, n) * np.where(np.arange(n) % 2, 1, -1)
    return Q * values @ Q.T


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12])
@pytest.mark.parametrize("k", [10, 25, 60])
def test_symmetric_matrices_lose_nothing_of_the_least_residual(condition, k):
    A, b = stretched(120, condition), np.random.default_rng(19).standard_normal(120)
    x, norm, products = solve(fp.GMRES(restart=k, max_steps=k), A, b, 0.0)
    assert products == k
    np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-6)
    assert norm <= 1.001 * least(A, b, k)


@pytest.mark.parametrize("row", [5, 30, 60])
def test_what_is_not_symmetric_later_on_is_found(row):
    """From the first unit vector, a difference spreads by an entry a product: only
    after that does the space feel an entry far from the diagonal.
    """
    A, b = laplacian(90), np.eye(90)[0]
    A[0, row] = 1.0
    x, norm, products = solve(fp.GMRES(restart=90, max_steps=90), A, b, 1e-8)
    assert norm <= 1e-8
    assert left(A, b, x) <= 2e-8
    np.testing.assert_allclose(x, np.linalg.solve(A, b), atol=1e-5)
    again, _, whole = solve(fp.GMRES(restart=90, max_steps=90), A[None], b[None], 1e-8)
    assert products <= whole + 5
    np.testing.assert_allclose(x, again[0], atol=1e-5)


@pytest.mark.parametrize("skew", [0.0, 1e-3, 1e-2, 0.05, 0.2])
@pytest.mark.parametrize("size", [200, 400])
def test_sequences_of_nearly_symmetric_systems_are_solved(skew, size):
    """A part that is not symmetric, however small, turns the space in the end."""
    A = np.diag(np.linspace(51.0, 0.1, size)) - skew * np.roll(np.eye(size), 1, axis=0)
    for seed in range(3):
        b = np.random.default_rng(seed).standard_normal(size)
        sol = fp.root(
            lambda x, b=b: A @ x - b,
            np.zeros(size),
            jvp=lambda x, v: A @ v,
            rtol=1e-8,
            solver=fp.NewtonKrylov(),
        )
        known = np.linalg.solve(A, b)
        assert np.max(np.abs(sol.value - known)) <= 1e-7 * np.max(np.abs(known))


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("condition", [1e4, 1e8, 1e12])
def test_ill_conditioned_systems_are_reduced_as_by_scipy(shape, symmetric, condition):
    """Whose GMRES orthogonalizes by the modified process, with a sum for each vector
    and one more for the length.
    """
    n, k = 80, 50
    A = stretched(n, condition)
    if not symmetric:
        A = A @ np.linalg.qr(np.random.default_rng(20).standard_normal((n, n)))[0]
    b = A @ np.ones(n)
    matrix, right = np.reshape(A, (*shape, n, n)), np.reshape(b, (*shape, n))
    x, norm, _ = solve(fp.GMRES(restart=k, max_steps=k), matrix, right, 0.0)
    y, _ = gmres(A, b, rtol=1e-16, restart=k, maxiter=1)
    floor = 1e-14 * np.linalg.norm(b)
    np.testing.assert_allclose(norm, left(matrix, right, x), rtol=1e-3, atol=floor)
    assert np.all(norm <= 1.01 * np.linalg.norm(b - A @ y) + floor)


# What conjugate gradients remember of a first solve.


def graded(seed=0, n=40):
    """A definite matrix with five small eigenvalues far from the others."""
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return Q * np.r_[1e-4 * np.arange(1, 6), np.linspace(1.0, 2.0, n - 5)] @ Q.T


def solve_in_turn(method, A, rights, target=1e-8):
    """The solutions of systems with one matrix, each with what is remembered of those
    before.
    """
    memory, ends = method.init(system(A, rights[0], target).space), []
    for b in rights:
        end, memory = method.solve(system(A, b, target), memory)
        ends.append(end)
    return ends


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_recycled_spectrum_saves_products_and_keeps_the_residual(batch, sign):
    A = sign * np.stack([graded(seed) for seed in range(3)])[: max(1, sum(batch))]
    A = A if batch else A[0]
    rights = np.random.default_rng(14).standard_normal((3, *batch, 40))
    plain = solve_in_turn(fp.ConjugateGradient(), A, rights)
    kept = solve_in_turn(fp.ConjugateGradient(recycle=5), A, rights)
    assert kept[0].products == plain[0].products
    for b, end, other in zip(rights[1:], kept[1:], plain[1:], strict=True):
        assert 3 * end.products < 2 * other.products
        assert np.all(end.residual_norm <= 1e-8)
        np.testing.assert_allclose(
            left(A, b, end.value[0]), end.residual_norm, atol=1e-10
        )


@pytest.mark.parametrize("recycle", [1, 8, 100])
@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_whatever_is_remembered_systems_are_solved(recycle, n):
    """More vectors than there are, right-hand sides of zero, and solves that end
    early.
    """
    A = matrices(fp.ConjugateGradient(), (), n)
    rights = np.random.default_rng(15).standard_normal((4, n))
    rights[1] = 0.0
    rights[2] = np.linalg.eigh(A)[1][:, 0]
    ends = solve_in_turn(fp.ConjugateGradient(recycle=recycle), A, rights)
    for b, end in zip(rights, ends, strict=True):
        np.testing.assert_allclose(
            end.value[0], np.linalg.solve(A, b), rtol=1e-6, atol=1e-7
        )


def test_of_a_solve_without_a_step_nothing_is_remembered():
    rights = np.zeros((2, 6))
    rights[1] = 1.0
    A = matrices(fp.ConjugateGradient(), (), 6)
    ends = solve_in_turn(fp.ConjugateGradient(recycle=2), A, rights)
    assert ends[0].products == 0
    np.testing.assert_allclose(
        ends[1].value[0], np.linalg.solve(A, rights[1]), rtol=1e-6
    )


def test_what_is_remembered_of_another_matrix_does_no_harm_to_the_truth():
    """Products may be lost by it, but what is reported is b − Ax."""
    method, rng = fp.ConjugateGradient(recycle=5), np.random.default_rng(16)
    first, other = graded(0), graded(1)
    b = rng.standard_normal((2, 40))
    _, memory = method.solve(
        system(first, b[0], 1e-8), method.init(system(first, b[0], 0.0).space)
    )
    end, _ = method.solve(system(other, b[1], 1e-8), memory)
    np.testing.assert_allclose(
        left(other, b[1], end.value[0]), end.residual_norm, atol=1e-9
    )
    assert end.residual_norm <= 1e-8


def test_a_spectrum_is_recycled_for_leaves_of_one_number_per_sample():
    method = fp.NewtonKrylov(linear=fp.ConjugateGradient(recycle=2))
    b = {"u": np.linspace(1.0, 2.0, 12).reshape(4, 3), "v": np.linspace(3.0, 4.0, 4)}
    cubic = lambda x: {name: x[name] ** 3 + x[name] - b[name] for name in b}
    zero = {name: np.zeros_like(leaf) for name, leaf in b.items()}
    sol = fp.root(cubic, zero, solver=method, batch_ndim=1)
    for name, leaf in cubic(sol.value).items():
        np.testing.assert_allclose(leaf, 0.0, atol=1e-5, err_msg=name)


# Singular systems: whatever is reached, what is reported is true.


def singular(method, n=8, rank=6, seed=0):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.zeros(n)
    values[:rank] = np.linspace(1.0, 3.0, rank)
    if isinstance(method, fp.ConjugateGradient):
        return Q * values @ Q.T
    return Q * values @ np.linalg.qr(rng.standard_normal((n, n)))[0].T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("consistent", [True, False])
def test_singular_systems_are_reported_as_they_are(method, seed, consistent):
    A = singular(method, seed=seed)
    rng = np.random.default_rng(seed + 20)
    b = A @ rng.standard_normal(8) if consistent else rng.standard_normal(8)
    x, norm, _ = solve(method, A, b)
    best = np.linalg.norm(b - A @ np.linalg.lstsq(A, b, rcond=None)[0])
    if np.all(np.isfinite(x)):
        size = np.linalg.norm(b) + np.linalg.norm(A, 2) * np.linalg.norm(x)
        np.testing.assert_allclose(norm, left(A, b, x), rtol=1e-6, atol=1e-12 * size)
        assert norm >= best - 1e-12 * size
    if not consistent:
        assert not norm <= 1e-10


def test_gmres_reports_no_residual_below_the_least_one():
    """A direction that is rounding, and leads far away for nothing, is not taken."""
    for seed in range(100):
        A, b = (
            singular(GENERAL[0], seed=seed),
            np.random.default_rng(seed + 20).standard_normal(8),
        )
        x, norm, _ = solve(fp.GMRES(), A, b)
        best = np.linalg.norm(b - A @ np.linalg.lstsq(A, b, rcond=None)[0])
        np.testing.assert_allclose(norm, left(A, b, x), rtol=0.01)
        assert norm >= 0.99 * best


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(5))
def test_consistent_systems_with_a_symmetric_matrix_are_solved(method, seed):
    A = singular(fp.ConjugateGradient(), seed=seed)
    b = A @ np.random.default_rng(seed).standard_normal(8)
    x, norm, _ = solve(method, A, b, 1e-9)
    assert norm <= 1e-9
    np.testing.assert_allclose(A @ x, b, atol=2e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_of_zero_leaves_the_right_hand_side(method):
    x, norm, products = solve(method, np.zeros((4, 4)), np.ones(4))
    np.testing.assert_array_equal(x, 0.0)
    assert norm == 2.0
    assert products <= 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("entry", [np.nan, np.inf])
def test_products_that_are_not_finite_are_no_success(method, entry):
    A = np.eye(4)
    A[1, 2] = entry
    _, norm, products = solve(method, A, np.ones(4))
    assert not norm <= 1e-10
    assert products <= 8


@pytest.mark.parametrize("seed", range(5))
def test_methods_for_other_matrices_make_no_false_claims(seed):
    rng = np.random.default_rng(seed)
    A, b = rng.standard_normal((6, 6)), rng.standard_normal(6)
    for method in (fp.BiCGStab(max_steps=30), fp.ConjugateGradient(max_steps=30)):
        for matrix in (A, A - A.T, A + A.T):
            x, norm, _ = solve(method, matrix, b, 1e-8)
            if norm <= 1e-8:
                assert left(matrix, b, x) <= 1e-6 * (1 + np.linalg.norm(x))


# Other spaces.


@pytest.mark.parametrize("method", METHODS)
def test_complex_systems(method):
    rng = np.random.default_rng(11)
    A = rng.standard_normal((9, 9)) + 1j * rng.standard_normal((9, 9))
    A = (
        A @ A.conj().T / 9 + np.eye(9)
        if method is METHODS[2]
        else A / 3 + 3.0 * np.eye(9)
    )
    b = rng.standard_normal(9) + 1j * rng.standard_normal(9)
    x, norm, _ = solve(method, A, b)
    assert x.dtype == b.dtype
    assert norm <= 1e-10
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-8)


@pytest.mark.parametrize("k", range(1, 5))
def test_complex_entries_count_as_two_real_ones(k):
    """And take two real directions for each that is asked for."""
    rng = np.random.default_rng(12)
    parts, sides = rng.standard_normal((2, 4, 4)), rng.standard_normal((2, 4))
    real = np.block([[parts[0], -parts[1]], [parts[1], parts[0]]])
    _, norm, _ = solve(
        fp.GMRES(max_steps=k), parts[0] + 1j * parts[1], sides[0] + 1j * sides[1], 0
    )
    expected = least(real, sides.reshape(-1), 2 * k)
    np.testing.assert_allclose(norm, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_leaves_may_differ_in_shape_and_dtype(method):
    """A block system in single and double precision, against one dense solve."""
    A = matrices(method, (), 7)
    b = np.arange(1.0, 8.0)
    leaves = b[:3].astype(np.float32), b[3:].reshape(2, 2)
    space = space_of(backend_of(leaves, ["a", "b"]), leaves, 0)

    def product(v):
        image = A @ np.concatenate([v[0], v[1].reshape(4)])
        return image[:3].astype(np.float32), image[3:].reshape(2, 2)

    system = LinearSystem(space, product, leaves, np.asarray(1e-5))
    end, _ = method.solve(system, method.init(space))
    assert [leaf.dtype for leaf in end.value] == [np.float32, np.float64]
    assert [leaf.shape for leaf in end.value] == [(3,), (2, 2)]
    found = np.concatenate([leaf.reshape(-1) for leaf in end.value])
    assert end.residual_norm <= 1e-5
    np.testing.assert_allclose(found, np.linalg.solve(A, b), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [*METHODS, fp.ConjugateGradient(recycle=2)])
def test_every_library_takes_the_same_products(xp_case, method):
    """In JAX in a trace."""
    A, b = (
        matrices(fp.ConjugateGradient(), (2,), 6),
        np.random.default_rng(13).random((2, 6)),
    )

    def solved(matrix, right):
        space = space_of(backend_of([right], ["b"]), (right,), 1)
        product = lambda v: (space.xp.matmul(matrix, v[0][..., None])[..., 0],)
        system = LinearSystem(space, product, (right,), space.full(1e-9))
        first, memory = method.solve(system, method.init(space))
        again, _ = method.solve(system, memory)
        return (first.value[0], first.products), (again.value[0], again.products)

    run = jax.jit(solved) if xp_case.name == "jax" else solved
    expected = np.linalg.solve(A, b[..., None])[..., 0]
    for (x, products), (_, reference) in zip(
        run(xp_case.asarray(A), xp_case.asarray(b)), solved(A, b), strict=True
    ):
        assert int(products) == reference
        np.testing.assert_allclose(xp_case.to_numpy(x), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", [fp.GMRES, fp.BiCGStab, fp.ConjugateGradient])
@pytest.mark.parametrize("steps", [0, -1, 2.5, "many"])
def test_steps_must_be_a_positive_number(method, steps):
    with pytest.raises((TypeError, ValueError), match="max_steps"):
        method(max_steps=steps)


@pytest.mark.parametrize(
    "linear",
    [fp.GMRES(restart=4), fp.BiCGStab(), fp.ConjugateGradient(recycle=3)],
)
def test_the_shape_of_a_leaf_changes_nothing(linear):
    """Bratu's problem, the state a grid or a row."""
    n, solver = 8, fp.NewtonKrylov(linear=linear)

    def residual(u):
        inner = np.pad(u, 1)
        around = inner[2:, 1:-1] + inner[:-2, 1:-1] + inner[1:-1, 2:] + inner[1:-1, :-2]
        return 4.0 * u - around - 0.05 * np.exp(u)

    grid = fp.root(residual, np.zeros((n, n)), solver=solver)
    row = fp.root(
        lambda u: residual(u.reshape(n, n)).reshape(-1), np.zeros(n * n), solver=solver
    )
    np.testing.assert_array_equal(grid.value.reshape(-1), row.value)
    assert grid.work == row.work
    assert int(grid.steps) == int(row.steps) > 1


def test_a_residual_that_drifts_is_renewed_in_leaves_of_several_axes():
    """The same as with one axis, in a batch: more is asked than rounding allows."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3, 6, 6)) + 6.0 * np.eye(6)
    b, target, method = rng.standard_normal((3, 6)), 1e-30, fp.BiCGStab(max_steps=20)
    flat, grid = solve(method, A, b, target), b.reshape(3, 2, 1, 3)

    def product(v):
        image = np.einsum("sij,sj->si", A, v[0].reshape(3, 6))
        return (image.reshape(3, 2, 1, 3),)

    space = space_of(backend_of([grid], ["b"]), (grid,), 1)
    with np.errstate(all="ignore"):
        given = LinearSystem(space, product, (grid,), np.full(3, target))
        end, _ = method.solve(given, None)
    assert flat[2] % 2 or flat[2] < 40  # products for residuals that were renewed
    np.testing.assert_allclose(end.value[0].reshape(3, 6), flat[0], rtol=1e-12)
