"""A `jacobian` is used whatever form it has, or the message says what is wrong with
it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.sparse import BCOO

import fixedpoint as fp

sparse = pytest.importorskip("scipy.sparse")
linalg = pytest.importorskip("scipy.sparse.linalg")

A, B = np.array([[3.0, 1.0], [-1.0, 2.0]]), np.array([1.0, 2.0])
C = (1.0 + 2.0j) * A
PARTS = np.block([[C.real, -C.imag], [C.imag, C.real]])
FORMATS = ("csr", "csc", "coo", "lil", "dok", "dia", "bsr")
SOLVERS = (fp.Newton(), fp.NewtonKrylov(), fp.LevenbergMarquardt())

# What F′ = A may be given as: by NumPy, in every library.
FORMS = {
    "array": np.asarray,
    "integers": lambda J: J.astype(int),
    "single": lambda J: J.astype(np.float32),
    "lists": lambda J: J.tolist(),
    "tuples": lambda J: tuple(map(tuple, J.tolist())),
    "torch": torch.as_tensor,
    "jax": jnp.asarray,
    "operator": linalg.aslinearoperator,
    "sparse-integers": lambda J: sparse.csr_array(J.astype(int)),
    "sparse-single": lambda J: sparse.csr_array(J.astype(np.float32)),
    **{
        f"{name}-{kind}": getattr(sparse, f"{name}_{kind}")
        for name in FORMATS
        for kind in ("array", "matrix")
    },
}


def root(case, J, matrix=A, right=B, **settings):
    """The root of Ax − b."""
    settings = {"rtol": 1e-12, "solver": fp.Newton()} | settings
    F = lambda x, A, b: A @ x - b
    sol = case.solve(
        F, np.zeros_like(right), (matrix, right), by=fp.root, jacobian=J, **settings
    )
    np.testing.assert_allclose(
        case.to_numpy(sol.value), np.linalg.solve(matrix, right), atol=1e-12
    )
    return sol


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_that_matrix(xp_case, form):
    given = FORMS[form](A)
    for J in (given, lambda *_: given):
        assert int(root(xp_case, J).steps) == 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", ["array", "csc-array", "operator"])
def test_every_solver_takes_it(eager_case, solver, form):
    root(eager_case, FORMS[form](A), solver=solver)
    root(eager_case, FORMS[form](C), C, B + 0j, solver=solver)


def test_a_constant_in_a_trace():
    solution = lambda b: (
        fp.root(
            lambda x, b: A @ x - b,
            jnp.zeros(2),
            (b,),
            jacobian=A.tolist(),
            solver=fp.Newton(),
        ).value
    )
    np.testing.assert_allclose(
        jax.jit(solution)(jnp.asarray(B)), np.linalg.solve(A, B), atol=1e-12
    )


def test_a_constant_that_is_traced_is_not_differentiated():
    solution = lambda A: fp.root(
        lambda x, A: A @ x - B, jnp.zeros(2), (A,), jacobian=A, solver=fp.Newton()
    ).value.sum()
    expected = jax.grad(lambda A: jnp.linalg.solve(A, B).sum())(jnp.asarray(A))
    np.testing.assert_allclose(jax.grad(solution)(jnp.asarray(A)), expected, atol=1e-12)


@pytest.mark.parametrize(
    "given", [FORMS["csr-array"](A), FORMS["operator"](A), BCOO.fromdense(A)]
)
def test_only_arrays_enter_a_trace(given):
    solution = lambda x: fp.root(lambda x: A @ x - B, x, jacobian=given).value
    np.testing.assert_allclose(
        solution(jnp.zeros(2)), np.linalg.solve(A, B), atol=1e-12
    )
    with pytest.raises(TypeError, match=r"^jacobian must be an array in a trace.*got "):
        jax.jit(solution)(jnp.zeros(2))


def test_sparse_tensors():
    x = torch.zeros(2, dtype=torch.float64)
    for grad in (False, True):
        J = torch.tensor(A, requires_grad=grad).to_sparse()
        sol = fp.root(lambda x: torch.tensor(A) @ x - torch.tensor(B), x, jacobian=J)
        np.testing.assert_allclose(sol.value.numpy(), np.linalg.solve(A, B), atol=1e-12)


@pytest.mark.parametrize(
    "given",
    [
        C,
        PARTS,
        C.tolist(),
        *map(sparse.csr_array, (C, PARTS)),
        linalg.aslinearoperator(C),
    ],
)
def test_a_complex_state_has_a_complex_matrix_or_that_of_its_parts(eager_case, given):
    root(eager_case, lambda *_: given, C, B + 0j)


@pytest.mark.parametrize("given", [A, sparse.csr_array(A), linalg.aslinearoperator(A)])
def test_a_complex_state_has_a_real_matrix(eager_case, given):
    root(eager_case, given, A + 0j, B + 1j)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("form", [(), (1,), (1, 1)])
def test_one_unknown(eager_case, shape, form):
    sol = eager_case.solve(
        lambda x: x**2 - 2.0,
        np.full(shape, 3.0),
        by=fp.root,
        jacobian=lambda x: eager_case.xp.reshape(2.0 * x, form),
    )
    np.testing.assert_allclose(
        eager_case.to_numpy(sol.value), np.full(shape, 2.0**0.5), rtol=1e-6
    )
    for number in (4, 4.0, np.float32(4.0), lambda _: 4.0):
        sol = eager_case.solve(
            lambda x: 4.0 * x - 1.0, np.full(shape, 3.0), by=fp.root, jacobian=number
        )
        np.testing.assert_allclose(
            eager_case.to_numpy(sol.value), np.full(shape, 0.25), rtol=1e-15
        )


@pytest.mark.parametrize("form", ["array", "csr-array", "operator"])
def test_leaves_stand_one_after_the_other(xp_case, form):
    F = lambda x: {"a": 3.0 * x["a"] + x["b"] - 1.0, "b": -x["a"] + 2.0 * x["b"] - 2.0}
    x0 = {"b": np.zeros(1), "a": np.zeros(1)}
    sol = xp_case.solve(F, x0, by=fp.root, jacobian=FORMS[form](A), solver=fp.Newton())
    assert int(sol.steps) == 1
    value = np.concatenate([xp_case.to_numpy(sol.value[name]) for name in "ab"])
    np.testing.assert_allclose(value, np.linalg.solve(A, B), atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_a_batch_has_one_for_all_or_one_for_each(eager_case, shared):
    scale = np.ones((3, 1, 1)) if shared else np.arange(1.0, 4.0)[:, None, None]
    J = A if shared else A * scale
    for given in (J, lambda *_: J):
        sol = eager_case.solve(
            lambda x, J: eager_case.xp.sum(J * x[..., None, :], axis=-1) - 1.0,
            np.zeros((3, 2)),
            (A * scale,),
            by=fp.root,
            jacobian=given,
            batch_ndim=1,
            solver=fp.Newton(),
        )
        expected = np.linalg.solve(A * scale, np.ones((3, 2, 1)))[..., 0]
        np.testing.assert_allclose(eager_case.to_numpy(sol.value), expected, rtol=1e-12)


def test_a_constant_for_each_sample_does_not_leave_the_batch():
    with pytest.raises(
        ValueError, match=r"^jacobian must be a function where batched_args"
    ):
        fp.root(
            lambda x, a: x - a,
            np.zeros((3, 2)),
            (np.ones((3, 2)),),
            batch_ndim=1,
            batched_args=(True,),
            jacobian=np.stack([np.eye(2)] * 3),
        )


@pytest.mark.parametrize("form", ["array", "csr-array", "operator"])
@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_that_of_a_map_is_not_that_of_its_residual(eager_case, form, solver):
    sol = eager_case.solve(
        lambda z, A, b: 0.2 * (A @ z) + b,
        np.zeros(2),
        (A, B),
        jacobian=FORMS[form](0.2 * A),
        solver=solver,
        rtol=1e-10,
    )
    expected = np.linalg.solve(np.eye(2) - 0.2 * A, B)
    np.testing.assert_allclose(eager_case.to_numpy(sol.value), expected, rtol=1e-9)


WRONG = {
    "vector": (np.ones(2), ValueError, r"shape \(2, 2\).*got the shape \(2,\)"),
    "number": (2.0, ValueError, r"shape \(2, 2\).*got the shape \(\)"),
    "oblong": (np.ones((2, 3)), ValueError, r"shape \(2, 2\).*got the shape \(2, 3\)"),
    "sparse": (
        sparse.csr_array((3, 3)),
        ValueError,
        r"\(2, 2\).*csr_array of the shape \(3, 3\)",
    ),
    "operator": (
        linalg.aslinearoperator(np.ones((2, 3))),
        ValueError,
        r"of the shape \(2, 3\)",
    ),
    "complex": (A + 0j, TypeError, "real for a real state, got a complex"),
    "complex-sparse": (
        sparse.csr_array(A + 0j),
        TypeError,
        "real for a real state, got a complex",
    ),
    "text": ("text", TypeError, r"shape \(2, 2\).*got builtins.str"),
    "dict": ({"a": A}, TypeError, r"shape \(2, 2\).*got builtins.dict"),
    "ragged": ([[1.0, 2.0], [3.0]], TypeError, r"shape \(2, 2\).*got builtins.list"),
    "objects": (
        np.array([[1.0, None], [2.0, 3.0]]),
        TypeError,
        r"shape \(2, 2\).*ndarray",
    ),
    "nothing": (None, TypeError, r"shape \(2, 2\).*got builtins.NoneType"),
}


@pytest.mark.parametrize("solver", [fp.Newton(), fp.NewtonKrylov()])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_jacobian_is_named(jit_case, solver, wrong):
    given, error, message = WRONG[wrong]
    for J in [lambda *_: given] + [given] * (given is not None):
        with pytest.raises(error, match=f"^jacobian must .*{message}"):
            root(jit_case, J, solver=solver)


@pytest.mark.parametrize(
    "given", [np.ones((2, 2, 3)), np.ones((2, 3, 2)), sparse.csr_array(A)]
)
def test_a_batch_comes_first(jit_case, given):
    with pytest.raises(
        ValueError, match=r"^jacobian must have the shape \(3, 2, 2\) or \(2, 2\)"
    ):
        jit_case.solve(
            lambda x: x - 1.0,
            np.zeros((3, 2)),
            by=fp.root,
            jacobian=given,
            batch_ndim=1,
        )


def test_parts_of_several_leaves_are_not_guessed(eager_case):
    x0 = (np.zeros(1), np.zeros(1, complex))
    for given in (np.eye(2), sparse.eye_array(2)):
        with pytest.raises(ValueError, match="real matrix of order 3, got the order 2"):
            eager_case.solve(
                lambda x: (x[0] - 1.0, x[1]), x0, by=fp.root, jacobian=given
            )


# Large sparse systems, by the default solver.


def chain(n, *diagonals):
    """A tridiagonal matrix."""
    return sparse.diags_array(diagonals, offsets=[-1, 0, 1], shape=(n, n), format="csr")


def plane(m, along):
    """The matrix of the same operator along both axes of a grid."""
    unit = sparse.eye_array(m)
    return (sparse.kron(along, unit) + sparse.kron(unit, along)).tocsr()


def reaction(L, source, slope):
    """The functions u ↦ Lu + s(u), and the derivative of that."""
    return (lambda u: L @ u + source(u)), (lambda u: L + sparse.diags_array(slope(u)))


def ladder(n=2500):
    """Resistors in series to 5 V, and a diode from each node to ground, in amperes."""
    L = chain(n, -1.0, 2.0, -1.0) - sparse.coo_array(
        ([1.0], ([n - 1], [n - 1])), shape=(n, n)
    )
    fed = 5.0 * (np.arange(n) == 0)
    diode = lambda v: 1e-12 * np.expm1(v / 0.025)
    return reaction(L, lambda v: diode(v) - fed, lambda v: (diode(v) + 1e-12) / 0.025)


def bratu(m=60):
    """−Δu = 6eᵘ on the unit square."""
    L = plane(m, (m + 1) ** 2 * chain(m, -1.0, 2.0, -1.0))
    return reaction(L, lambda u: -6.0 * np.exp(u), lambda u: -6.0 * np.exp(u))


def advection(m, along):
    """−Δu/100 + ∂u + 10u³ − 5u = 3, upwind, along a line of m² points or on a square of
    m × m.
    """
    n = m if along is plane else m * m
    L = 0.01 * (n + 1) ** 2 * chain(n, -1.0, 2.0, -1.0) + (n + 1) * chain(
        n, -1.0, 1.0, 0.0
    )
    L = plane(m, L) if along is plane else L
    return reaction(
        L, lambda u: 10.0 * u**3 - 5.0 * u - 3.0, lambda u: 30.0 * u**2 - 5.0
    )


def grid(n=1800):
    """Power flow in a mesh with chords, a fifth of whose buses hold their voltage; and
    its state.

    Unknown are the angles of all buses but the first, and the other voltages.
    """
    rng, k, row = np.random.default_rng(0), np.arange(n), int(n**0.5)
    far = rng.integers(0, n, n // 4)
    ends = [
        (k, (k + 1) % n),
        (k[:-row], k[row:]),
        (far, (far + row * rng.integers(1, 3)) % n),
    ]
    start, end = (np.concatenate(side) for side in zip(*ends, strict=True))
    y = 1.0 / ((0.2 + 1.0j) * rng.uniform(0.02, 0.1, len(start)))
    links = sparse.coo_array((y, (start, end)), shape=(n, n))
    links = (links + links.T).tocsr()
    Y = sparse.diags_array(links.sum(axis=1)) - links
    load, angle = k[k % 5 > 0], 0.3 * np.sin(2.0 * np.pi * k / n)
    angle, size = angle + 0.01 * rng.normal(size=n), 1.0 + 0.005 * rng.normal(size=n)
    x = np.concatenate([angle[1:] - angle[0], size[load]])

    def phases(x):
        sizes = size.copy()
        sizes[load] = x[n - 1 :]
        return sizes, np.exp(1j * np.concatenate([[0.0], x[: n - 1]]))

    def power(x):
        sizes, unit = phases(x)
        flow = sizes * unit * np.conj(Y @ (sizes * unit))
        return np.concatenate([flow.real[1:], flow.imag[load]])

    def jacobian(x):
        sizes, unit = phases(x)
        current, voltage = np.conj(Y @ (sizes * unit)), sparse.diags_array(sizes * unit)
        back = voltage @ (Y @ sparse.diags_array(unit)).conj()
        angles = 1j * (
            voltage @ sparse.diags_array(current) - back @ sparse.diags_array(sizes)
        )
        both = sparse.hstack(
            [angles, back + sparse.diags_array(unit * current)], format="csr"
        )
        both = both[:, np.concatenate([k[1:], n + load])]
        return sparse.vstack([both.real[1:], both.imag[load]], format="csr")

    known = power(x)
    return (
        (lambda v: power(v) - known),
        jacobian,
        x,
        np.concatenate([0.0 * k[1:], 1.0 + 0.0 * load]),
    )


LARGE = {
    "bratu": (bratu, 3600, 0.0, 5),
    "advection-line": (lambda: advection(60, None), 3600, 0.0, 13),
    "advection-line-far": (lambda: advection(60, None), 3600, 5.0, 14),
    "advection-square": (lambda: advection(70, plane), 4900, 0.0, 13),
    "advection-square-far": (lambda: advection(70, plane), 4900, 5.0, 12),
    "ladder": (ladder, 2500, 0.0, 25),
    "ladder-far": (ladder, 2500, 0.9, 35),
}


def error(F, J, x):
    """The correction that Newton's method would make at x, relative to it."""
    return np.linalg.norm(linalg.spsolve(J(x).tocsc(), F(x))) / np.linalg.norm(x)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_sparse_matrix_is_factored(counted, name):
    build, n, start, most = LARGE[name]
    F, J = map(counted, build())
    sol = fp.root(F, np.full(n, start), jacobian=J)
    assert sol.methods[int(sol.method)] == "Newton"
    assert int(sol.steps) == J.calls <= most
    assert F.calls == sol.work.f <= 2 * most + 1
    assert error(F, J, sol.value) <= 1e-6


def test_a_power_flow_is_found_from_a_flat_start(counted):
    F, J, x, flat = grid()
    F, J = counted(F), counted(J)
    sol = fp.root(F, flat, jacobian=J)
    np.testing.assert_allclose(sol.value, x, atol=1e-6)
    assert int(sol.steps) == J.calls <= 6
    assert F.calls == sol.work.f <= 9


def test_other_libraries_factor_it_too():
    F, J = bratu(50)
    x = fp.root(F, np.zeros(2500), jacobian=J, rtol=1e-10).value
    L = torch.tensor((J(np.zeros(2500)) + 6.0 * sparse.eye_array(2500)).toarray())
    sol = fp.root(
        lambda u: L @ u - 6.0 * torch.exp(u),
        torch.zeros(2500, dtype=torch.float64),
        rtol=1e-10,
        jacobian=lambda u: J(u.numpy()),
    )
    np.testing.assert_allclose(sol.value.numpy(), x, rtol=1e-9)
    L = jnp.asarray(L.numpy())
    sol = fp.root(
        lambda u: L @ u - 6.0 * jnp.exp(u),
        jnp.zeros(2500),
        rtol=1e-10,
        jacobian=lambda u: J(np.asarray(u)),
    )
    np.testing.assert_allclose(np.asarray(sol.value), x, rtol=1e-9)


def test_a_constant_sparse_matrix_is_factored_once(counted, monkeypatch):
    F, J = bratu(50)
    monkeypatch.setattr(linalg, "factorized", counted(linalg.factorized))
    sol = fp.root(F, np.zeros(2500), jacobian=J(np.zeros(2500)))
    assert linalg.factorized.calls == 1
    assert int(sol.steps) > 5
    assert error(F, J, sol.value) <= 1e-6


def test_a_large_operator_is_left_to_krylov_methods():
    F, J = bratu(50)
    sol = fp.root(F, np.zeros(2500), jacobian=lambda u: linalg.aslinearoperator(J(u)))
    assert sol.methods[int(sol.method)] == "NewtonKrylov"
    assert error(F, J, sol.value) <= 1e-5


def test_a_map_with_a_large_sparse_jacobian():
    F, J = bratu(50)
    sol = fp.fixed_point(
        lambda u: u - 1e-4 * F(u),
        np.zeros(2500),
        rtol=1e-10,
        jacobian=lambda u: sparse.eye_array(2500) - 1e-4 * J(u),
    )
    assert int(sol.steps) <= 6
    assert error(F, J, sol.value) <= 1e-9
