"""What holds on the CPU holds on a GPU: values, statuses, derivatives; and few waits
for it.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
import fixedpoint_torch as ft

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def problem(contraction, device, n=6, batch=3, dtype=torch.float64):
    """The matrix, the batch of right-hand sides, and the start of `layer`."""
    A = torch.as_tensor(contraction(n, 0.8), dtype=dtype, device=device)
    b = torch.as_tensor(
        np.random.default_rng(1).standard_normal((batch, n)), dtype=dtype
    )
    return (
        A.expand(batch, n, n),
        b.to(device),
        torch.zeros(batch, n, dtype=dtype, device=device),
    )


@pytest.mark.parametrize("is_root", [False, True], ids=["fixed_point", "root"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_solver_does_as_on_the_cpu(solver, layer, contraction, is_root, dtype):
    find, ends = fp.root if is_root else fp.fixed_point, []
    rtol = 1e-9 if dtype is torch.float64 else 1e-5
    for device in ("cpu", "cuda"):
        A, b, z0 = problem(contraction, device, dtype=dtype)
        settings = {
            "solver": solver,
            "batch_ndim": 1,
            "rtol": rtol,
            "on_failure": "return",
        }
        ends.append(find(layer(torch, is_root), z0, (A, b), **settings))
    cpu, gpu = ends
    assert gpu.value.device.type == "cuda"
    assert gpu.status.tolist() == cpu.status.tolist()
    tolerance = 1e-7 if dtype is torch.float64 else 1e-3
    np.testing.assert_allclose(
        gpu.value.cpu(), cpu.value, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("is_root", [False, True], ids=["fixed_point", "root"])
def test_first_and_second_derivatives_are_those_of_the_cpu(layer, contraction, is_root):
    find, found = fp.root if is_root else fp.fixed_point, []
    for device in ("cpu", "cuda"):
        A, b, z0 = problem(contraction, device)
        b.requires_grad_()
        value = find(layer(torch, is_root), z0, (A, b), batch_ndim=1, rtol=1e-11).value
        first = torch.autograd.grad(value.square().sum(), b, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), b)[0]
        found.append([first.detach().cpu(), second.cpu()])
    for cpu, gpu in zip(*found, strict=True):
        np.testing.assert_allclose(gpu, cpu, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "adjoint", [fp.JacobianFree(), fp.PhantomGradient(steps=3), fp.Unrolled()]
)
def test_other_adjoints(layer, contraction, adjoint):
    found = []
    for device in ("cpu", "cuda"):
        A, b, z0 = problem(contraction, device)
        b.requires_grad_()
        sol = fp.fixed_point(
            layer(torch), z0, (A, b), batch_ndim=1, rtol=1e-11, adjoint=adjoint
        )
        sol.value.sum().backward()
        found.append(b.grad.cpu())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-9)


def test_a_neighbor_that_is_not_finite_changes_nothing(layer, contraction):
    A, b, z0 = problem(contraction, "cuda")
    settings = {"batch_ndim": 1, "on_failure": "return", "solver": fp.Anderson()}
    good = fp.fixed_point(layer(torch), z0, (A, b), **settings)
    b = b.clone()
    b[1] = float("nan")
    bad = fp.fixed_point(layer(torch), z0, (A, b), **settings)
    assert bad.status.tolist() == [1, int(fp.Status.NON_FINITE), 1]
    assert torch.equal(bad.value[[0, 2]], good.value[[0, 2]])


def test_a_bracket():
    a = torch.tensor([1.0, 8.0, 27.0], device="cuda", requires_grad=True)
    sol = fp.bracketed_root(
        lambda x, a: x**3 - a, torch.zeros(3, device="cuda"), 10.0, (a,)
    )
    sol.value.sum().backward()
    np.testing.assert_allclose(sol.value.detach().cpu(), [1.0, 2.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(a.grad.cpu(), [1 / 3, 1 / 12, 1 / 27], rtol=1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_a_layer_in_each_arithmetic(dtype, autocast):
    torch.manual_seed(0)
    inner = torch.nn.Linear(8, 8)
    torch.nn.init.orthogonal_(inner.weight, 0.5)
    inner = inner.cuda().to(torch.float32 if autocast else dtype)
    x = torch.randn(4, 8, device="cuda", dtype=inner.weight.dtype)
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        layer = ft.DEQ(_Cell(inner), on_failure="return")
        z = layer(x)
    z.float().square().sum().backward()
    assert layer.statistics.status.tolist() == [1] * 4
    assert z.dtype == x.dtype
    assert bool(inner.weight.grad.isfinite().all())


class _Cell(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z, x):
        return torch.tanh(self.inner(z) + x)


def test_the_host_waits_at_most_twice_a_step(layer, contraction):
    A, b, z0 = problem(contraction, "cuda")
    settings = {"batch_ndim": 1, "solver": fp.Anderson()}
    fp.fixed_point(layer(torch), z0, (A, b), **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        sol = fp.fixed_point(layer(torch), z0, (A, b), **settings)
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(w.message) for w in caught)
    assert waits <= 2 * int(sol.steps.max()) + 30


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs JAX with a GPU")
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_jax(layer, contraction, jit):
    A = jnp.asarray(np.broadcast_to(contraction(6, 0.8), (3, 6, 6)))
    b = jnp.asarray(np.random.default_rng(1).standard_normal((3, 6)))

    def loss(b):
        sol = fp.fixed_point(
            layer(jnp), jnp.zeros_like(b), (A, b), batch_ndim=1, rtol=1e-10
        )
        return (sol.value**2).sum()

    gradient = jax.jit(jax.grad(loss)) if jit else jax.grad(loss)
    A64, b64, z0 = problem(contraction, "cpu")
    b64.requires_grad_()
    sol = fp.fixed_point(layer(torch), z0, (A64, b64), batch_ndim=1, rtol=1e-11)
    sol.value.square().sum().backward()
    np.testing.assert_allclose(np.asarray(gradient(b)), b64.grad, rtol=1e-6, atol=1e-8)


def test_cupy(layer, contraction):
    cupy = pytest.importorskip("cupy")
    A = cupy.asarray(np.broadcast_to(contraction(6, 0.8), (3, 6, 6)))
    b = cupy.asarray(np.random.default_rng(1).standard_normal((3, 6)))
    sol = fp.fixed_point(layer(cupy), cupy.zeros_like(b), (A, b), batch_ndim=1)
    left = layer(cupy)(sol.value, A, b) - sol.value
    assert float(cupy.abs(left).max()) < 1e-5
