"""Memory is set by the solver's settings, not by how long it runs."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
import torch

import fixedpoint as fp

N = 200_000
STATE = 8 * N
SMALL = 0.1  # for all that is not a state


def peak_states(solver, max_steps):
    """Peak memory of a solve, in states, of a map that allocates none."""
    buffer, z0 = np.empty(N), np.linspace(0.0, 3.0, N)

    def f(z):
        np.cos(z, out=buffer)
        np.multiply(buffer, 0.9, out=buffer)
        return buffer

    fp.fixed_point(np.cos, np.ones(2), solver=solver)  # imports and caches
    gc.collect()
    tracemalloc.start()
    try:
        fp.fixed_point(
            f, z0, solver=solver, rtol=0.0, atol=0.0, max_steps=max_steps, on_failure="return"
        )
        return tracemalloc.get_traced_memory()[1] / STATE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("memory", [1, 4, 10])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_anderson_holds_two_histories(memory, damping):
    solver = fp.Anderson(memory=memory, damping=damping)
    peak = peak_states(solver, 2 * memory + 5)
    assert 2 * memory <= peak <= 2 * memory + (8 if damping == 1.0 else 9) + SMALL


def test_picard_holds_a_few_states():
    assert peak_states(fp.Picard(damping=0.5), 10) <= 8


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson(memory=3)])
def test_memory_does_not_grow_with_the_steps(solver):
    few, many = peak_states(solver, 10), peak_states(solver, 60)
    assert many <= few + SMALL


class Saved:
    """Bytes that autograd saves while it is active."""

    def __init__(self):
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor):
        self.bytes += tensor.nbytes
        return tensor


def solved(max_steps):
    """A recorded solve, and the bytes saved for its backward pass."""
    torch.manual_seed(0)
    W = (0.05 * torch.randn(50, 50, dtype=torch.float64)).requires_grad_()
    saved = Saved()
    with saved.hooks:
        sol = fp.fixed_point(
            lambda z, W: torch.tanh(z @ W + 1.0), torch.zeros(8, 50, dtype=torch.float64), (W,),
            batch_ndim=1, rtol=0.0, atol=0.0, max_steps=max_steps, on_failure="return",
        )  # fmt: skip
    return sol, saved.bytes


def test_torch_saves_the_solution_and_the_arguments_alone():
    _, few = solved(5)
    _, many = solved(50)
    assert few == many == 8 * (8 * 50 + 50 * 50)


def graph_size(tensor):
    """Nodes of the graph behind a tensor."""
    seen, pending = set(), [tensor.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(parent for parent, _ in node.next_functions)
    return len(seen)


def test_the_graph_does_not_grow_with_the_steps():
    assert graph_size(solved(5)[0].value) == graph_size(solved(50)[0].value)


@pytest.mark.parametrize("backward", [False, True])
def test_tensors_are_freed_with_the_solution(backward):
    def finished():
        W = torch.full((3, 3), 0.1, requires_grad=True)
        sol = fp.fixed_point(lambda z, W: torch.tanh(W @ z + 1), torch.zeros(3), (W,))
        if backward:
            sol.value.sum().backward()
        return [weakref.ref(tensor) for tensor in (W, sol.value)]

    references = finished()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
