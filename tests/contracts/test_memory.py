"""Memory is set by the solver's settings, not by how long it runs."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
import torch

import fixedpoint as fp

pytestmark = pytest.mark.usefixtures("young_heap")

N = 200_000
STATE = 8 * N
SMALL = 0.1  # for all that is not a state
PIECE = 2**16 / N + SMALL  # and for what is computed piece by piece
DENSE = ["newton", "newton-bounded", "levenberg", "fallback"]
SPARSE = [
    "picard",
    "anderson",
    "anderson-1",
    "broyden",
    "broyden-bad",
    "squarem",
    "krylov",
    "krylov-bicgstab",
    "krylov-cg",
    "pseudo",
]


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
            f,
            z0,
            solver=solver,
            rtol=0.0,
            atol=0.0,
            max_steps=max_steps,
            on_failure="return",
        )
        return tracemalloc.get_traced_memory()[1] / STATE
    finally:
        tracemalloc.stop()


def peak_bytes(solver, n, max_steps):
    """Peak memory of the search for a root, in bytes."""
    cube(np.ones(1))
    gc.collect()
    tracemalloc.start()
    try:
        fp.root(
            cube,
            np.linspace(0.5, 1.0, n),
            solver=solver,
            rtol=0.0,
            atol=0.0,
            max_steps=max_steps,
            on_failure="return",
        )
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("memory", [1, 4, 10])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_anderson_holds_two_histories(memory, damping):
    solver = fp.Anderson(memory=memory, damping=damping)
    peak = peak_states(solver, 2 * memory + 5)
    assert 2 * memory <= peak <= 2 * memory + (6 if damping == 1.0 else 8) + 2 * PIECE


def test_picard_holds_a_few_states():
    assert peak_states(fp.Picard(damping=0.5), 10) <= 8 + SMALL


def cube(x):
    """Its root is never met, and every solver comes nearer with every step."""
    return x**3


@pytest.mark.parametrize("solver", DENSE, indirect=True)
def test_memory_of_a_dense_solver_does_not_grow_with_the_steps(solver):
    few, many = (peak_bytes(solver, 100, steps) for steps in (10, 40))
    assert many <= 1.1 * few


@pytest.mark.parametrize("solver", SPARSE, indirect=True)
def test_memory_of_a_matrix_free_solver_does_not_grow_with_the_steps(solver):
    few, many = (peak_bytes(solver, 10_000, steps) for steps in (20, 60))
    assert many <= few + 4 * 8 * 10_000  # a rare kind of step may need some states more


@pytest.mark.parametrize("memory", [2, 8])
def test_broyden_holds_two_histories(memory):
    peak = peak_states(fp.Broyden(memory=memory), 2 * memory + 5)
    assert 2 * memory <= peak <= 2 * memory + 7 + 3 * PIECE


@pytest.mark.parametrize("restart", [2, 8])
def test_newton_krylov_holds_its_basis(restart):
    """And not the directions that it is made of."""
    linear = fp.GMRES(restart=restart, max_steps=2 * restart, augment=0)
    held = peak_bytes(fp.NewtonKrylov(linear=linear), N, 5) / STATE
    assert restart <= held <= restart + 12


def test_solutions_are_held_once():
    linear = fp.GMRES(restart=8, max_steps=16, augment=4)
    held = peak_bytes(fp.NewtonKrylov(linear=linear), N, 5) / STATE
    assert held <= 8 + 4 + 1 + 12


@pytest.mark.parametrize("linear", [fp.BiCGStab(), fp.ConjugateGradient()])
def test_short_recurrences_hold_a_few_states(linear):
    assert peak_bytes(fp.NewtonKrylov(linear=linear), N, 5) / STATE <= 18


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson(memory=3)])
def test_memory_does_not_grow_with_the_steps(solver):
    # At rounding level the best iterate is no longer the last: that is one state more.
    few, many = peak_states(solver, 30), peak_states(solver, 60)
    assert many <= few + SMALL


@pytest.mark.parametrize("steps", [10, 80])
def test_what_is_recorded_grows_with_the_steps(steps):
    """And not with those that were allowed."""
    settings = {"solver": fp.Picard(), "record": True, "rtol": 0.0, "atol": 0.0}
    stop = {"callback": lambda step, *_: step == steps, "on_failure": "return"}
    fp.fixed_point(np.cos, 1.0, max_steps=1, on_failure="return", **settings)
    tracemalloc.start()
    try:
        sol = fp.fixed_point(np.cos, 1.0, max_steps=10**8, **settings, **stop)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sol.trace.residual_norm.shape == (steps + 1,)
    assert peak < 200_000


class Saved:
    """Tensors that autograd saves while it is active."""

    def __init__(self):
        self.references = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            self.pack, lambda tensor: tensor
        )

    def pack(self, tensor):
        kept = tensor.detach()  # an output that is kept as it is would keep its graph
        self.references.append(weakref.ref(kept))
        return kept

    @property
    def bytes(self):
        """Bytes of those that are still kept."""
        tensors = [reference() for reference in self.references]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def solved(max_steps, solver=None):
    """A recorded solve, and the bytes saved for its backward pass."""
    torch.manual_seed(0)
    W = (0.05 * torch.randn(50, 50, dtype=torch.float64)).requires_grad_()
    saved = Saved()
    with saved.hooks:
        sol = fp.fixed_point(
            lambda z, W: torch.tanh(z @ W + 1.0),
            torch.zeros(8, 50, dtype=torch.float64),
            (W,),
            batch_ndim=1,
            rtol=0.0,
            atol=0.0,
            max_steps=max_steps,
            on_failure="return",
            solver=solver,
        )
    return sol, saved.bytes


@pytest.mark.parametrize(
    "solver", [None, fp.Anderson(), fp.NewtonKrylov(), fp.Newton()]
)
def test_torch_saves_the_solution_and_the_arguments_alone(solver):
    kept = [solved(max_steps, solver) for max_steps in (2, 20)]
    assert [saved for _, saved in kept] == [8 * (8 * 50 + 50 * 50)] * 2


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
