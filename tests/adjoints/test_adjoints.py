"""Every adjoint against closed forms, in Torch, in JAX, and in NumPy from given
products.
"""

import numpy as np
import pytest
import scipy.sparse.linalg

import fixedpoint as fp

jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")
jnp = jax.numpy

RHO = 0.8
rng = np.random.default_rng(5)
_SQUARE = rng.standard_normal((6, 6))
W = RHO * _SQUARE / np.abs(np.linalg.eigvals(_SQUARE)).max()
B = rng.standard_normal((3, 6))
V = rng.standard_normal((3, 6))
# U of (I − Wᵀ)u = v in each row, which is the gradient with respect to b: in so few
# binary digits that no processor rounds what it leaves of v.
W = np.round(1024.0 * W) / 1024.0
INVERSE = np.linalg.inv(np.eye(6) - W)
EXACT = np.round(1024.0 * V @ INVERSE) / 1024.0
V = EXACT - EXACT @ W
SERIES = [sum(V @ np.linalg.matrix_power(W, k) for k in range(n)) for n in range(1, 9)]
TIGHT = {"rtol": 1e-12, "atol": 1e-14, "batch_ndim": 1}


def affine(z, b, w):
    return z @ w.T + b


def torch_gradient(adjoint, **settings):
    """The gradient of ⟨V, z*⟩ with respect to b, and the solution."""
    b = torch.tensor(B, requires_grad=True)
    sol = fp.fixed_point(
        affine,
        torch.zeros(3, 6, dtype=torch.float64),
        (b, torch.tensor(W)),
        adjoint=adjoint,
        **TIGHT | settings,
    )
    np.testing.assert_allclose(sol.value.detach(), B @ INVERSE.T, rtol=1e-9)
    (sol.value * torch.tensor(V)).sum().backward()
    return b.grad.numpy(), sol


def jax_gradient(adjoint, **settings):
    """The same in JAX."""

    def loss(b):
        sol = fp.fixed_point(
            affine,
            jnp.zeros((3, 6)),
            (b, jnp.asarray(W)),
            adjoint=adjoint,
            **TIGHT | settings,
        )
        return jnp.sum(sol.value * V)

    return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(B))), None


@pytest.fixture(params=["torch", "jax"])
def gradient(request):
    return torch_gradient if request.param == "torch" else jax_gradient


def close(a, b, rtol=1e-9):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def test_implicit_is_exact(gradient):
    close(gradient(fp.ImplicitAdjoint(rtol=1e-12))[0], EXACT)


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Broyden(), fp.NewtonKrylov()])
def test_implicit_by_any_solver(solver):
    close(torch_gradient(fp.ImplicitAdjoint(solver=solver, rtol=1e-12))[0], EXACT)


def test_jacobian_free_is_the_cotangent_itself(gradient):
    close(gradient(fp.JacobianFree())[0], V)


def test_neumann_sums_its_terms(gradient):
    close(gradient(fp.NeumannSeries(steps=8))[0], SERIES[7])


@pytest.mark.parametrize("steps", [1, 2])
def test_the_first_terms(steps):
    close(torch_gradient(fp.NeumannSeries(steps=steps))[0], SERIES[steps - 1])


@pytest.mark.parametrize("adjoint", [fp.NeumannSeries, fp.PhantomGradient])
def test_damped_series(adjoint):
    tau, step = 0.6, 0.6 * W + 0.4 * np.eye(6)
    expected = tau * sum(V @ np.linalg.matrix_power(step, k) for k in range(4))
    close(torch_gradient(adjoint(steps=4, damping=tau))[0], expected)


def test_phantom_keeps_the_value_and_differentiates_steps(gradient):
    close(gradient(fp.PhantomGradient(steps=3, damping=1.0))[0], SERIES[2])


@pytest.mark.parametrize("checkpoint", [None, 7])
def test_unrolled_steps_of_picard(gradient, checkpoint):
    """From zero, n steps of Picard's method give the first n terms; here they have
    converged.
    """
    settings = {"solver": fp.Picard(), "max_steps": 150}
    close(gradient(fp.Unrolled(checkpoint=checkpoint), **settings)[0], EXACT, 1e-8)


@pytest.mark.parametrize("solver", [fp.Anderson(memory=4), fp.Broyden(), fp.Newton()])
def test_unrolled_accelerated_solvers(solver):
    got = torch_gradient(fp.Unrolled(), solver=solver, max_steps=40)[0]
    close(got, EXACT, 1e-6)


def test_unrolled_anderson_in_jax():
    got = jax_gradient(fp.Unrolled(), solver=fp.Anderson(memory=4), max_steps=40)[0]
    close(got, EXACT, 1e-6)


def test_unrolled_differentiates_the_start_too():
    z0 = torch.ones(1, 6, dtype=torch.float64, requires_grad=True)
    sol = fp.fixed_point(
        affine,
        z0,
        (torch.tensor(B[:1]), torch.tensor(W)),
        adjoint=fp.Unrolled(),
        max_steps=2,
        solver=fp.Picard(),
        on_failure="return",
        batch_ndim=1,
    )
    sol.value.sum().backward()
    close(z0.grad.numpy()[0], np.ones(6) @ W @ W)


def test_unrolled_second_derivative():
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    f = lambda z, a: torch.tanh(a * z) + 0.3 * a
    z0 = torch.tensor(0.4, dtype=torch.float64)
    settings = {"rtol": 0.0, "atol": 0.0, "max_steps": 100, "on_failure": "return"}
    sol = fp.fixed_point(
        f, z0, (a,), solver=fp.Picard(), adjoint=fp.Unrolled(), **settings
    )
    (first,) = torch.autograd.grad(sol.value, a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    assert float(second) == pytest.approx(3.99655109331, rel=1e-8)


def test_shared_inverse_is_exact_where_broyden_has_seen_every_direction(gradient):
    """A scalar problem has one direction only."""
    b = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    f = lambda z, b: torch.cos(z) * b
    sol = fp.fixed_point(
        f,
        torch.zeros(1, dtype=torch.float64),
        (b,),
        rtol=1e-9,
        adjoint=fp.SharedInverse(),
    )
    sol.value.sum().backward()
    z = float(sol.value.detach())
    assert float(b.grad) == pytest.approx(np.cos(z) / (1 + np.sin(z)), rel=1e-6)


def test_shared_inverse_is_the_product_with_what_broyden_left(gradient):
    start = np.zeros((3, 6))
    end = fp.fixed_point(
        affine, start, (B, W), solver=fp.Broyden(), **TIGHT
    ).state.contents
    written = (slice(None), slice(end.pushed))  # the others hold anything
    left, right = (rows.leaves[0][written] for rows in (end.left, end.right))
    estimate = end.scale[:, None, None] * np.eye(6) + np.einsum(
        "bki,bkj->bij", end.used[..., None][written] * left, right
    )
    expected = np.einsum("bij,bi->bj", estimate, V)
    close(gradient(fp.SharedInverse())[0], expected, 1e-6)


def test_shared_inverse_falls_back():
    close(torch_gradient(fp.SharedInverse(fallback=1e-3))[0], V)


@pytest.mark.parametrize("settings", [{"refine": 20}, {"outer_aware": 30}])
def test_shared_inverse_improved_is_exact(gradient, settings):
    close(gradient(fp.SharedInverse(**settings))[0], EXACT, 1e-8)


def test_shared_inverse_refined_from_a_bad_start():
    """Where the estimate leaves more than zero does, the refinement starts at zero."""
    solver = fp.Broyden(memory=1)
    close(torch_gradient(fp.SharedInverse(refine=40), solver=solver)[0], EXACT, 1e-8)


def test_shared_inverse_of_a_root():
    a = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    sol = fp.root(
        lambda x, a: x**2 - a,
        torch.ones(2, 1, dtype=torch.float64),
        (a[:, None],),
        batch_ndim=1,
        atol=1e-12,
        adjoint=fp.SharedInverse(refine=2),
    )
    sol.value.sum().backward()
    close(a.grad.numpy(), 0.5 / np.sqrt([2.0, 3.0]), 1e-6)


def test_shared_inverse_needs_broyden():
    with pytest.raises(TypeError, match="needs the inverse of Broyden"):
        torch_gradient(fp.SharedInverse(), solver=fp.Anderson())


@pytest.mark.parametrize(
    "adjoint", [fp.JacobianFree(), fp.NeumannSeries(), fp.PhantomGradient()]
)
def test_roots_have_no_series(adjoint):
    with pytest.raises(TypeError, match="use ImplicitAdjoint"):
        fp.root(lambda x: x, torch.ones(1), adjoint=adjoint)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: fp.NeumannSeries(steps=0), "steps"),
        (lambda: fp.NeumannSeries(damping=0.0), "damping"),
        (lambda: fp.PhantomGradient(steps=1.5), "steps"),
        (lambda: fp.Unrolled(checkpoint=0), "checkpoint"),
        (lambda: fp.SharedInverse(fallback=-1.0), "fallback"),
        (lambda: fp.SharedInverse(refine=-1), "refine"),
        (lambda: fp.SharedInverse(outer_aware=True), "outer_aware"),
    ],
)
def test_settings_are_checked(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_the_report_of_the_backward_solve():
    _, sol = torch_gradient(fp.ImplicitAdjoint(rtol=1e-10))
    report = sol.backward
    assert report.status.tolist() == [1, 1, 1]
    close(report.value.numpy(), EXACT, 1e-8)
    left = V + report.value.numpy() @ W - report.value.numpy()
    norms = np.linalg.norm(left, axis=1)
    np.testing.assert_allclose(
        report.residual_norm.numpy(), norms, rtol=1e-3, atol=1e-14
    )
    assert report.products == int(report.steps.max()) + 1


def test_a_small_adjoint_takes_a_product_for_each_unknown():
    matrix = torch.tensor(W)
    for most, products in [(500, 6), (5, 6)]:  # five steps from v are six products
        b = torch.tensor(B[0], requires_grad=True)
        adjoint = fp.ImplicitAdjoint(max_steps=most, on_failure="return")
        sol = fp.fixed_point(affine, torch.zeros_like(b), (b, matrix), adjoint=adjoint)
        (sol.value * torch.tensor(V[0])).sum().backward()
        assert sol.backward.products == products
        exact = np.allclose(b.grad, EXACT[0], rtol=1e-13)
        assert exact == (most >= 6)


def test_samples_that_a_batch_couples_are_differentiated_together():
    """As by batch normalization: no sample has a matrix of its own."""
    b = torch.tensor(B, requires_grad=True)
    coupled = lambda z, b: 0.5 * torch.tanh(z) + 0.1 * z.mean(0) + b
    sol = fp.fixed_point(coupled, torch.zeros_like(b), (b,), **TIGHT)
    (found,) = torch.autograd.grad((sol.value * torch.tensor(V)).sum(), b)
    z = torch.zeros_like(b)
    for _ in range(300):
        z = coupled(z, b)
    (expected,) = torch.autograd.grad((z * torch.tensor(V)).sum(), b)
    close(found.numpy(), expected.numpy(), 1e-8)


def test_the_report_by_a_callback(gradient):
    reports = []
    kind = torch.Tensor if gradient is torch_gradient else jax.Array
    note = lambda *arrays: reports.append(arrays)
    gradient(fp.ImplicitAdjoint(rtol=1e-10, report=note))
    jax.effects_barrier()
    ((status, norm, steps),) = reports
    assert isinstance(status, kind)
    assert status.tolist() == [1, 1, 1]
    assert norm.shape == steps.shape == (3,)


def test_what_is_not_measured_is_not_a_number():
    report = torch_gradient(fp.NeumannSeries(steps=3))[1].backward
    assert torch.isnan(report.residual_norm).all()
    assert report.products == 2
    assert report.status.tolist() == [fp.Status.MAX_STEPS] * 3


def test_a_warm_start_at_the_solution_takes_no_step():
    start = torch.tensor(EXACT)
    got, sol = torch_gradient(fp.ImplicitAdjoint(warm_start=start, rtol=1e-8))
    close(got, EXACT, 1e-7)
    assert sol.backward.steps.tolist() == [0, 0, 0]


def test_a_warm_start_in_a_trace():
    adjoint = fp.ImplicitAdjoint(warm_start=jnp.asarray(EXACT), rtol=1e-9, max_steps=0)
    close(jax_gradient(adjoint)[0], EXACT, 1e-8)


def test_a_warm_start_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="warm_start must keep the shape of z0"):
        torch_gradient(
            fp.ImplicitAdjoint(warm_start=torch.zeros(3, 5, dtype=torch.float64))
        )


def test_the_exact_preconditioner_takes_one_product(gradient):
    xp = torch if gradient is torch_gradient else jnp
    inverse = xp.asarray(INVERSE)
    adjoint = fp.ImplicitAdjoint(
        preconditioner=lambda z, b, w: lambda v: v @ inverse, rtol=1e-9
    )
    got, sol = gradient(adjoint)
    close(got, EXACT, 1e-8)
    if sol is not None:
        assert sol.backward.steps.tolist() == [1, 1, 1]


def test_several_cotangents_share_one_linearization():
    calls = []

    def f(z, b, w):
        calls.append(z.shape)
        return affine(z, b, w)

    zero, w = torch.zeros(1, 6, dtype=torch.float64), torch.tensor(W)
    solution = lambda b: fp.fixed_point(f, zero, (b, w), **TIGHT).value
    _, pullback = torch.func.vjp(solution, torch.tensor(B[:1]))
    calls.clear()
    (jacobian,) = torch.func.vmap(pullback)(torch.eye(6, dtype=torch.float64)[:, None])
    close(jacobian[:, 0].numpy(), INVERSE, 1e-8)
    assert len(calls) == 2  # one for the products of all, one for what follows
    assert all(len(shape) == 2 for shape in calls)


def test_batched_cotangents_of_a_batched_map():
    """The lanes of one transform, the batch of another."""
    w = torch.tensor(W)

    def solution(b):
        zero = torch.zeros(6, dtype=torch.float64)
        return fp.fixed_point(
            lambda z, b: torch.tanh(w @ z + b), zero, (b,), rtol=1e-12
        ).value

    b = torch.tensor(B)
    got = torch.func.vmap(torch.func.jacrev(solution))(b)
    z = torch.func.vmap(solution)(b).numpy()
    for row in range(3):
        slope = np.diag(1 - z[row] ** 2)
        close(got[row].numpy(), np.linalg.solve(np.eye(6) - slope @ W, slope), 1e-8)


def test_hessians_by_lanes():
    """Forward over reverse, with more than one lane of cotangents."""
    a = torch.tensor([0.5, 0.3], dtype=torch.float64)
    f = lambda z, a: torch.tanh(a * z) + 0.3 * a
    zero = torch.full((2,), 0.4, dtype=torch.float64)
    solve = lambda a: fp.fixed_point(f, zero, (a,), rtol=1e-13).value
    third = torch.func.jacrev(torch.func.jacrev(solve))(a)
    assert float(third[0, 0, 0]) == pytest.approx(3.99655109331, rel=1e-7)
    assert torch.count_nonzero(third) == 2


REVERSE, FORWARD = torch.func.jacrev, torch.func.jacfwd
LANES = {
    "reverse": REVERSE,
    "forward": FORWARD,
    "reverse over reverse": lambda f: REVERSE(REVERSE(f)),
    "reverse over forward": lambda f: REVERSE(FORWARD(f)),
    "lanes of a derivative": lambda f: torch.func.vmap(REVERSE(f)),
    "lanes of a second one": lambda f: torch.func.vmap(REVERSE(FORWARD(f))),
    "a derivative of lanes": lambda f: REVERSE(torch.func.vmap(REVERSE(f))),
}


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("settings", [{"refine": 20}, {"outer_aware": 20}])
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_a_shared_inverse_in_lanes(lanes, settings, batch_ndim):
    w, start = torch.tensor(W[:2, :2]), torch.zeros(*batch_ndim * [3], 2)

    def solution(b, adjoint):
        b = torch.stack([b, b**2, 1.0 - b]) if batch_ndim else b
        return fp.fixed_point(
            lambda z, b: torch.tanh(z @ w.T + b),
            start.to(b),
            (b,),
            rtol=1e-13,
            batch_ndim=batch_ndim,
            adjoint=adjoint,
        ).value

    b = torch.tensor(B[:2, :2] if "lanes" in lanes else B[0, :2])
    shared, exact = (
        LANES[lanes](lambda b, adjoint=adjoint: solution(b, adjoint))(b)
        for adjoint in (fp.SharedInverse(**settings), fp.ImplicitAdjoint())
    )
    close(shared.numpy(), exact.numpy(), 1e-8)


def test_a_shared_inverse_is_the_same_in_each_lane():
    def solution(b):
        zero, w = torch.zeros(6, dtype=torch.float64), torch.tensor(W)
        f = lambda z, b: torch.tanh(w @ z + b)
        return fp.fixed_point(f, zero, (b,), adjoint=fp.SharedInverse()).value

    b = torch.tensor(B[0])
    rows = torch.autograd.functional.jacobian(solution, b)
    for found in (
        REVERSE(solution)(b),
        torch.autograd.functional.jacobian(solution, b, vectorize=True),
    ):
        close(found.numpy(), rows.numpy())


PRODUCTS = {
    "vjp": lambda z, b, w: lambda u: (u @ w, u, u.T @ z),
    "jvp": lambda z, b, w: lambda dz, db, dw: dz @ w.T + db + z @ dw.T,
}


def test_numpy_cotangents_from_given_products():
    z = fp.fixed_point(affine, np.zeros((3, 6)), (B, W), **TIGHT).value
    adjoint = fp.ImplicitAdjoint(rtol=1e-12)
    db, dw = fp.implicit_vjp(
        PRODUCTS["vjp"], z, V, (B, W), batch_ndim=1, adjoint=adjoint
    )
    close(db, EXACT)
    close(dw, EXACT.T @ z)


def test_numpy_tangents_from_given_products():
    z = fp.fixed_point(affine, np.zeros((3, 6)), (B, W), **TIGHT).value
    db, dw = rng.standard_normal(B.shape), rng.standard_normal(W.shape)
    adjoint = fp.ImplicitAdjoint(rtol=1e-12)
    got = fp.implicit_jvp(
        PRODUCTS["jvp"], z, (db, dw), (B, W), batch_ndim=1, adjoint=adjoint
    )
    close(got, (db + z @ dw.T) @ INVERSE.T)


def test_numpy_derivatives_of_a_root():
    a = np.array([2.0, 3.0])
    x = fp.root(lambda x, a: x**2 - a, np.ones(2), (a,), atol=1e-13).value
    (gradient,) = fp.implicit_vjp(
        lambda x, a: lambda u: (2 * x * u, -u),
        x,
        np.array([1.0, 2.0]),
        (a,),
        is_root=True,
    )
    close(gradient, np.array([1.0, 2.0]) / (2 * x), 1e-6)
    tangent = fp.implicit_jvp(
        lambda x, a: lambda dx, da: 2 * x * dx - da,
        x,
        (np.ones(2),),
        (a,),
        is_root=True,
    )
    close(tangent, 1 / (2 * x), 1e-6)


def test_numpy_products_with_a_sparse_jacobian():
    n = 50
    matrix = scipy.sparse.diags([0.4, 0.4], [-1, 1], shape=(n, n), format="csr")
    v = rng.standard_normal(n)
    (u,) = fp.implicit_vjp(
        lambda z, b: lambda w: (matrix.T @ w, w),
        np.zeros(n),
        v,
        (np.zeros(n),),
        adjoint=fp.ImplicitAdjoint(rtol=1e-12),
    )
    close(
        u, scipy.sparse.linalg.spsolve(scipy.sparse.eye(n, format="csc") - matrix.T, v)
    )


def test_numpy_failure_is_loud():
    with pytest.raises(fp.ConvergenceError, match="adjoint solve failed"):
        fp.implicit_vjp(lambda z: lambda w: (w,), np.zeros(2), np.ones(2))


def test_numpy_products_of_another_shape():
    with pytest.raises(ValueError, match="vjp must keep the shape of value"):
        fp.implicit_vjp(lambda z: lambda w: (w[:1],), np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="cotangent must keep the shape of value"):
        fp.implicit_vjp(lambda z: lambda w: (w,), np.zeros(2), np.ones(3))


@pytest.mark.parametrize(
    ("value", "args", "control", "message"),
    [
        (np.zeros(0), (1.0,), {}, "value is empty: its shape is"),
        (np.zeros(2), (1.0,), {"batch_ndim": 2}, "value has 1 axes, fewer than"),
        (np.zeros(2), (1.0,), {"batch_ndim": -1}, "batch_ndim must be an integer"),
        (np.zeros(2), 1.0, {}, "args must be a tuple"),
        (np.zeros(2), (1.0, 2.0), {}, "each of (the 2 )?args, got"),
    ],
)
def test_numpy_arguments_that_do_not_fit_are_named(value, args, control, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fp.implicit_vjp(
            lambda *_: lambda w: (0.5 * w, w.sum()), value, value, args, **control
        )
    with pytest.raises((TypeError, ValueError), match=message):
        fp.implicit_jvp(
            lambda *_: lambda dz, *_: 0.5 * dz, value, (1.0,), args, **control
        )


@pytest.mark.parametrize(
    ("vjp", "message"),
    [
        (lambda z, a: (np.diag(a), np.eye(2)), "the pullback, must be callable, got a"),
        (lambda z, a: lambda w: 0.5 * w, "return a tuple, of .*, got ndarray"),
        (lambda z, a: lambda w: None, "return a tuple, of .*, got NoneType"),
        (lambda z, a: lambda w: (0.5 * w, w[0]), r"of args\[0\]: expected \(2,\), got"),
    ],
)
def test_numpy_pullbacks_of_another_kind(vjp, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fp.implicit_vjp(vjp, np.ones(2), np.ones(2), (np.ones(2),))


def test_numpy_cotangents_that_are_not_summed():
    """A gradient that broadcasts is wrong wherever it is used, and looks right."""
    vjp = lambda z, a: lambda w: (0.5 * w, {"shift": w})
    with pytest.raises(ValueError, match=r"args\[0\]\['shift'\].*\(\), got \(3,\)"):
        fp.implicit_vjp(vjp, np.ones(3), np.ones(3), ({"shift": 1.0},))


def test_numpy_derivatives_of_another_kind():
    with pytest.raises(TypeError, match="the derivative, must be callable, got ndarr"):
        fp.implicit_jvp(lambda z, a: z, np.ones(2), (np.ones(2),), (np.ones(2),))


def test_numpy_tangents_are_a_tuple():
    with pytest.raises(TypeError, match="tangents must be a tuple, got ndarray"):
        fp.implicit_jvp(PRODUCTS["jvp"], B, B, (B, W))
