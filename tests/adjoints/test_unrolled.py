"""Derivatives of the steps of a solve, against implicit ones, closed forms and
differences.
"""

import numpy as np
import pytest

import fixedpoint as fp

jax = pytest.importorskip("jax")
torch = pytest.importorskip("torch")
jnp = jax.numpy

DOUBLE = torch.float64
DIRECT = [fp.Newton(), fp.LevenbergMarquardt()]
INEXACT = [fp.NewtonKrylov(), fp.PseudoTransient(), fp.Anderson(), fp.Anderson(type=1)]
SOLVERS = [*DIRECT, fp.LevenbergMarquardt(radius=0.01), *INEXACT, fp.Broyden()]
CHECKPOINTS = [None, 1, 3]
WEIGHTS = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)


def cosines(z, a):
    return a * torch.cos(z)


def repeated(a, solver, checkpoint=None, **settings):
    """The sum of z = a cos z twice, where the Jacobian is a multiple of the
    identity.
    """
    sol = fp.fixed_point(
        cosines,
        torch.ones(2, dtype=a.dtype),
        (a,),
        solver=solver,
        adjoint=fp.Unrolled(checkpoint=checkpoint),
        **{"rtol": 1e-12} | settings,
    )
    return sol.value.sum()


def exact(a=0.5):
    """The first and the second derivative of that sum."""
    z = float(fp.fixed_point(lambda z: a * np.cos(z), np.ones(1), rtol=1e-14).value[0])
    cos, sin = np.cos(z), np.sin(z)
    first = cos / (1 + a * sin)
    second = -(2 * sin * first + a * cos * first**2) / (1 + a * sin)
    return 2 * first, 2 * second


def half(dtype=DOUBLE):
    return torch.tensor(0.5, dtype=dtype, requires_grad=True)


def derivatives(value, a, order=2):
    """Derivatives of a scalar to some order, each summed with weights."""
    found = []
    for _ in range(order):
        (gradient,) = torch.autograd.grad(value, a, create_graph=True)
        found.append(gradient.detach())
        value = (gradient * WEIGHTS[: gradient.numel()].reshape(gradient.shape)).sum()
    return found


def differences(f, a, step):
    units = torch.eye(len(a), dtype=DOUBLE)
    return torch.stack(
        [(f(a + step * u) - f(a - step * u)) / (2 * step) for u in units]
    ).detach()


def close(got, expected, rtol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_repeated_singular_values(solver, checkpoint):
    a = half()
    close(derivatives(repeated(a, solver, checkpoint), a), exact(), 1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_repeated_singular_values_in_single_precision(solver):
    a = half(torch.float32)
    (gradient,) = torch.autograd.grad(repeated(a, solver, rtol=1e-6), a)
    close(gradient, exact()[0], 1e-4)


@pytest.mark.parametrize("solver", DIRECT)
@pytest.mark.parametrize("checkpoint", [None, 3])
def test_transforms(solver, checkpoint):
    value = lambda a: repeated(a, solver, checkpoint)
    a, one = torch.tensor(0.5, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE)
    close(torch.func.grad(value)(a), exact()[0])
    close(torch.func.jvp(value, (a,), (one,))[1], exact()[0])
    batch = torch.tensor([0.5, 0.2], dtype=DOUBLE)
    gradients = torch.func.vmap(torch.func.grad(value))(batch)
    close(gradients, [exact()[0], exact(0.2)[0]])


@pytest.mark.parametrize("solver", [*DIRECT, *INEXACT[:3], fp.Broyden()])
@pytest.mark.parametrize("outer", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("inner", [torch.func.jacrev, torch.func.jacfwd])
def test_second_derivatives_in_any_mode(solver, outer, inner):
    """Of x = a + M(a * x), which is (I - M diag a)⁻¹a."""
    M = torch.tensor([[0.3, 0.8], [-0.6, 0.4]], dtype=DOUBLE)

    def solution(a):
        return fp.fixed_point(
            lambda x, a: a + M @ (a * x),
            torch.zeros_like(a),
            (a,),
            solver=solver,
            adjoint="unrolled",
            rtol=1e-14,
            on_failure="return",
        ).value

    def closed(a):
        return torch.linalg.inv(torch.eye(2, dtype=DOUBLE) - M * a) @ a

    a = torch.tensor([0.7, -0.5], dtype=DOUBLE)
    reverse = torch.func.jacrev
    close(outer(inner(solution))(a), reverse(reverse(closed))(a))


def general(x, a):
    mixed = torch.stack([x[0] - 0.4 * x[1] + x[2], x[1] + 2.0 * x[2], x[0] - x[2]])
    return mixed + 0.3 * torch.sin(x * a) - a


def scaled(x, a):
    return a * x + 0.1 * x**3 - 1.0


def flat(x, a):
    """Of rank one where x₀ = x₁, with a residual outside of its range."""
    sum_ = a[0] * x[0] + a[1] * x[1]
    return torch.stack([sum_ - 3.0, 2.0 * sum_ + (x[0] - x[1]) ** 2 - 1.0])


CURVED = [
    (general, [0.5, 1.0, 2.0], [0.7, 0.2, 1.1]),
    (scaled, [1.0, 1.0, 1.0], [1.5, 1.5, 1.5]),
    (flat, [1.0, 1.0], [1.0, 0.5]),
]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "solver", [*DIRECT, fp.LevenbergMarquardt(radius=0.05), fp.NewtonKrylov()]
)
@pytest.mark.parametrize(("F", "start", "a"), CURVED)
def test_a_few_steps(F, start, a, solver, steps):
    """Both derivatives of what was computed, damped or not, of full rank or not."""
    z0, a = torch.tensor(start, dtype=DOUBLE), torch.tensor(a, dtype=DOUBLE)

    def value(a, checkpoint=None):
        sol = fp.root(
            F,
            z0,
            (a,),
            solver=solver,
            adjoint=fp.Unrolled(checkpoint=checkpoint),
            max_steps=steps,
            rtol=1e-12,
            on_failure="return",
        )
        return (sol.value * WEIGHTS[: len(z0)]).sum() + a.square().sum()

    tracked = a.clone().requires_grad_()
    first, second = derivatives(value(tracked), tracked)
    kept = derivatives(value(tracked, 2), tracked)
    close(kept[0], first, 1e-14)
    close(kept[1], second, 1e-12)
    close(first, differences(value, a, 1e-6), 1e-7)

    def slope(a):
        a = a.clone().requires_grad_()
        return (derivatives(value(a), a, 1)[0] * WEIGHTS[: len(a)]).sum()

    close(second, differences(slope, a, 1e-5), 1e-5)


@pytest.mark.parametrize("checkpoint", [None, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_in_which_a_sample_is_solved(solver, checkpoint):
    """Its residual and corrections are zero, where norms have no derivative."""
    z0 = torch.tensor([[0.0, 0.0], [0.3, 0.2]], dtype=DOUBLE)

    def gradient(adjoint):
        a = torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
        sol = fp.fixed_point(
            lambda z, a: {
                "x": a * torch.sin(z["x"]) + z["y"] * a,
                "y": z["y"] ** 2 + a * z["x"],
            },
            {"x": z0, "y": 0.5 * z0},
            (a,),
            solver=solver,
            adjoint=adjoint,
            batch_ndim=1,
            max_steps=3,
            on_failure="return",
        )
        return torch.autograd.grad(sol.value["x"].sum() + sol.value["y"].sum(), a)[0]

    assert torch.isfinite(gradient(fp.Unrolled(checkpoint=checkpoint)))


@pytest.mark.parametrize("checkpoint", [None, 3])
@pytest.mark.parametrize("solver", DIRECT)
def test_a_batch_in_which_a_sample_is_singular(solver, checkpoint):
    """At zero the derivative of x² vanishes: the others' gradients are what they are
    alone.
    """
    z0 = torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=DOUBLE)
    a = torch.tensor([2.0, 3.0], dtype=DOUBLE, requires_grad=True)
    sol = fp.root(
        lambda x, a: x**2 - a,
        z0,
        (a,),
        solver=solver,
        batch_ndim=1,
        rtol=1e-12,
        max_steps=12,
        adjoint=fp.Unrolled(checkpoint=checkpoint),
        on_failure="return",
    )
    assert torch.isfinite(
        torch.autograd.grad(sol.value.sum(), a, retain_graph=True)[0]
    ).all()
    (alone,) = torch.autograd.grad(sol.value[1].sum(), a)
    close(alone, 0.5 / np.sqrt([2.0, 3.0]))


@pytest.mark.parametrize("checkpoint", [None, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_complex_states(solver, checkpoint):
    a = torch.tensor(0.5 + 0.1j, dtype=torch.complex128, requires_grad=True)
    start = torch.ones(2, dtype=torch.complex128)

    def gradient(adjoint):
        sol = fp.fixed_point(
            cosines, start, (a,), solver=solver, adjoint=adjoint, rtol=1e-12
        )
        return torch.autograd.grad((sol.value * (1 + 2j)).real.sum(), a)[0]

    expected = gradient(fp.ImplicitAdjoint(rtol=1e-12))
    close(gradient(fp.Unrolled(checkpoint=checkpoint)), expected, 1e-8)


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Newton()])
def test_the_callback_hears_of_each_step_once(solver):
    """And what it ends is ended the second time, too."""
    steps, a = [], half()
    kept = {
        "callback": lambda step, *_: steps.append(step) or step == 2,
        "on_failure": "return",
    }
    (got,) = torch.autograd.grad(repeated(a, solver, 1, **kept), a)
    assert steps == [1, 2]
    (expected,) = torch.autograd.grad(repeated(a, solver, None, **kept), a)
    close(got, expected, 1e-14)


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Newton(), fp.Anderson()])
def test_steps_are_made_once_more_in_the_backward_pass(solver):
    """Each but those of the last segment; and once more again for another backward
    pass.
    """
    calls, a = [0], half()

    def f(z, a):
        calls[0] += 1
        return a * torch.cos(z)

    sol = fp.fixed_point(
        f,
        torch.ones(2, dtype=DOUBLE),
        (a,),
        solver=solver,
        adjoint=fp.Unrolled(checkpoint=2),
        rtol=1e-12,
    )
    forward = calls[0]
    passes = [
        torch.autograd.grad(sol.value.sum(), a, retain_graph=True)[0] for _ in range(2)
    ]
    assert forward < calls[0] <= 3 * forward
    close(passes, [exact()[0]] * 2)


def test_a_solve_inside_a_checkpoint_of_the_callers():
    a = half()
    block = lambda a: repeated(a, fp.Newton(), 2)
    value = torch.utils.checkpoint.checkpoint(block, a, use_reentrant=False)
    close(torch.autograd.grad(value, a)[0], exact()[0])


def test_the_second_time_is_without_autocast():
    """The steps are the same ones, wherever the backward pass is made."""
    a, gradients = half(torch.float32), []
    for checkpoint in (None, 2):
        value = repeated(a, fp.Anderson(), checkpoint, rtol=1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gradients += torch.autograd.grad(value, a)
    assert gradients[0] == gradients[1]


def jax_gradient(F, start, a, solver, adjoint):
    def value(a):
        sol = fp.root(
            F,
            jnp.asarray(start),
            (a,),
            solver=solver,
            adjoint=adjoint,
            rtol=1e-10,
            max_steps=8,
            batch_ndim=1,
            on_failure="return",
        )
        return jnp.sum(sol.value * jnp.asarray([1.0, 2.0]))

    return jax.grad(value)(jnp.asarray(a))


def unlike(x, a):
    """Three samples of one function, and one of another."""
    one = [x[..., 0] * a[..., 0] + x[..., 1] ** 2, x[..., 1] ** 2 - a[..., 1]]
    first = jnp.asarray([True, True, True, False])[:, None]
    return jnp.where(first, jnp.stack(one, -1), x - a * jnp.cos(x))


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [(fp.LevenbergMarquardt(), 1e-9), (fp.NewtonKrylov(), 1e-7)],
)
def test_a_batch_in_jax_in_which_samples_are_solved_or_singular(solver, tolerance):
    """The first begins at its root, in the second the derivative vanishes at the start,
    and in the last its singular values are the same.
    """
    start = [[0.0, 0.0], [1.0, 0.0], [0.5, 1.0], [1.0, 1.0]]
    a = [[2.0, 0.0], [2.0, 3.0], [2.0, 3.0], [0.5, 0.5]]
    got = jax_gradient(unlike, start, a, solver, fp.Unrolled())
    assert np.isfinite(got).all()
    root = np.sqrt(3.0)
    close(got[2], [3.0 / 4.0, -1.0 / 2.0 + 1.0 / root], 1e-7)
    close(got[3], np.array([0.5, 1.0]) * exact()[0], tolerance)


def test_repeated_singular_values_in_jax():
    F = lambda x, a: x - a * jnp.cos(x)
    adjoint = fp.Unrolled(checkpoint=3)
    got = jax_gradient(F, np.ones((1, 2)), [[0.5, 0.5]], fp.Newton(), adjoint)
    close(got, np.array([[0.5, 1.0]]) * exact()[0])
