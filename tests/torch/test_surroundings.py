"""What f finds around it in Torch: autocast, random numbers, compilation."""

import copy
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import fixedpoint as fp


class Cell(nn.Module):
    """z ↦ tanh(Az + x), a contraction."""

    def __init__(self, width=6, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.linear.weight *= 0.7 / torch.linalg.matrix_norm(self.linear.weight, 2)

    def forward(self, z, x):
        return torch.tanh(self.linear(self.dropout(z)) + x)


@pytest.fixture
def x():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def solve(cell, x, **settings):
    return fp.fixed_point(cell, torch.zeros_like(x), (x,), batch_ndim=1, **settings)


def test_the_state_keeps_its_dtype_under_autocast(x):
    seen = []

    def f(z, x):
        seen.append(torch.mm(z, z.T).dtype)
        return cell(z, x)

    cell = Cell()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        sol = fp.fixed_point(f, torch.zeros(4, 6), (x,), batch_ndim=1, rtol=1e-2)
    assert sol.value.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    exact = solve(cell.double(), x.double(), rtol=1e-10).value
    np.testing.assert_allclose(sol.value.detach(), exact.detach(), atol=3e-2)


def test_the_algebra_is_exact_under_autocast():
    """A map that rounds nothing is solved to single precision: the solver's products
    are too.
    """
    a, b = torch.linspace(0.1, 0.9, 6), torch.ones(3, 6)
    f = lambda z, a, b: a * z + b
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol = fp.fixed_point(f, torch.zeros(3, 6), (a, b), batch_ndim=1, rtol=1e-6)
    np.testing.assert_allclose(sol.value, (1 / (1 - a)).expand(3, 6), rtol=1e-4)


@pytest.mark.parametrize("inside", [False, True])
def test_gradients_under_autocast_are_those_of_the_same_map(x, inside):
    """The backward pass evaluates f as the forward pass did, wherever it is called."""
    cell = Cell()
    seen = []
    hook = cell.linear.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol = solve(cell, x, rtol=1e-2)
        if inside:
            sol.value.sum().backward()
    if not inside:
        sol.value.sum().backward()
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    reference = copy.deepcopy(cell).double()
    reference.zero_grad()
    solve(reference, x.double(), rtol=1e-10).value.sum().backward()
    got, exact = cell.linear.weight.grad, reference.linear.weight.grad
    assert got.dtype == torch.float32
    assert float((got - exact).norm() / exact.norm()) < 0.05


def test_weights_keep_their_gradients_after_a_solve_under_autocast(x):
    """Casts of weights made while nothing was recorded are not reused by what
    follows.
    """
    cell = Cell()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            solve(cell, x, rtol=1e-2)
        cell(x, x).float().sum().backward()
    assert float(cell.linear.weight.grad.norm()) > 0.0


@pytest.mark.parametrize("solver", [None, fp.Picard(), fp.Broyden()])
def test_a_map_that_draws_random_numbers_draws_the_same_ones(x, solver):
    cell = Cell(dropout=0.5).double()
    torch.manual_seed(3)
    sol = solve(cell, x.double(), rtol=1e-10, solver=solver)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    image = cell(sol.value, x.double())
    np.testing.assert_allclose(image.detach(), sol.value.detach(), rtol=1e-8, atol=1e-9)
    assert torch.equal(after, torch.get_rng_state())  # as if f had been called once


def test_the_backward_pass_repeats_the_random_numbers(x):
    cell = Cell(dropout=0.5).double()
    torch.manual_seed(3)
    sol = solve(cell, x.double(), rtol=1e-12, adjoint=fp.ImplicitAdjoint(rtol=1e-12))
    torch.manual_seed(99)
    sol.value.sum().backward()
    got = cell.linear.weight.grad.clone()
    torch.manual_seed(3)
    mask = cell.dropout(torch.ones(4, 6, dtype=torch.float64))
    w = cell.linear.weight.detach().clone().requires_grad_()
    z = torch.zeros(4, 6, dtype=torch.float64)
    for _ in range(300):
        z = torch.tanh((z * mask) @ w.T + x.double())
    z.sum().backward()
    np.testing.assert_allclose(got, w.grad, rtol=1e-8, atol=1e-10)


def test_two_solves_draw_different_numbers(x):
    cell = Cell(dropout=0.5)
    first, second = solve(cell, x).value, solve(cell, x).value
    assert not torch.allclose(first, second, atol=1e-3)


def test_a_compiled_map(x):
    cell = Cell().double()
    compiled = torch.compile(cell, backend="aot_eager")
    x = x.double().requires_grad_()
    expected = torch.autograd.grad(
        solve(cell, x, rtol=1e-10).value.sum(), (x, cell.linear.weight)
    )
    value = solve(compiled, x, rtol=1e-10).value
    got = torch.autograd.grad(value.sum(), (x, cell.linear.weight))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_inside_a_checkpoint(x, use_reentrant):
    cell = Cell().double()
    x = x.double().requires_grad_()
    run = lambda x: solve(cell, x, rtol=1e-10).value
    (expected,) = torch.autograd.grad(run(x).sum(), x)
    value = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=use_reentrant)
    value.sum().backward()
    np.testing.assert_allclose(x.grad, expected, rtol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(x):
    cell = Cell().double()
    expected = torch.autograd.grad(
        solve(cell, x.double(), rtol=1e-10).value.sum(), cell.linear.weight
    )[0]
    cell, x = cell.cuda(), x.double().cuda()
    got = torch.autograd.grad(
        solve(cell, x, rtol=1e-10).value.sum(), cell.linear.weight
    )[0]
    np.testing.assert_allclose(got.cpu(), expected, rtol=1e-7)


class Turn(nn.Module):
    """Nearly an isometry, whose fixed point plain iteration takes thousands of steps
    to.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6).roll(1, 0))

    def forward(self, z, x):
        return 0.995 * z @ self.weight + x


def test_memory_of_the_backward_pass_does_not_grow_with_the_steps(x):
    """What autograd saves is the solution and the arguments, whatever the steps."""
    turn = Turn()
    kept = []
    for steps in (10, 1000):
        saved = []
        pack = lambda leaf, saved=saved: saved.append(leaf.numel()) or leaf
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda leaf: leaf):
            sol = solve(
                turn,
                x,
                max_steps=steps,
                rtol=0.0,
                atol=0.0,
                on_failure="return",
                solver=fp.Picard(),
            )
        assert int(sol.steps.max()) == steps
        kept.append(sum(saved))
    assert kept[0] == kept[1] <= math.prod(x.shape) * 2 + 36


def test_threads_may_share_a_module():
    """It has other parameters as long as f is evaluated for a derivative."""
    cell, interval = Cell().double(), sys.getswitchinterval()
    parameters = list(cell.parameters())

    def gradients(k):
        x = torch.full((6,), 0.1 * k, dtype=torch.float64, requires_grad=True)
        z = fp.fixed_point(cell, torch.zeros_like(x), (x,), rtol=1e-9).value
        return torch.autograd.grad((z**2).sum(), [x, *parameters])

    known = list(map(gradients, range(40)))
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(gradients, range(40)))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(found, known, strict=True):
        assert all(map(torch.equal, one, other))
    assert all(a is b for a, b in zip(cell.parameters(), parameters, strict=True))
