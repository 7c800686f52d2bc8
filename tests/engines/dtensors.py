"""States that are DTensors, for ``on_two_processes.py``."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)

import fixedpoint as fp
from fixedpoint_torch import DEQ, Processes

# Of an odd length: the processes hold unequal parts.
FACTORS = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
WEIGHT = torch.sin(torch.arange(49.0, dtype=torch.float64)).reshape(7, 7) / 7
# Meshes of two processes, and how their axes may cut the axes of a tensor.
MESHES = [(2,), (1, 2), (2, 1)]
DRAWN = st.fixed_dictionaries(
    {
        "mesh": st.sampled_from(MESHES),
        "cuts": st.lists(st.sampled_from([0, 1, None]), min_size=2, max_size=2),
        "is_batch": st.booleans(),
        "solver": st.integers(0, 4),
    }
)


def mapped(z: torch.Tensor, a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A map that couples all entries."""
    return a * torch.cos(z) + 0.3 * torch.tanh(weight @ z) + 0.1 * z.mean()


def of_rows(z: torch.Tensor, a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A map of the rows, each by itself."""
    return a * torch.cos(z) + 0.3 * torch.tanh(z @ weight)


def of_leaves(z: Any, a: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """A map of two leaves, the second of which it returns spread in another way."""
    u = 0.5 * torch.sin(z["v"]).sum() * a
    whole = isinstance(u, DTensor)
    v = 0.2 * torch.cos(z["v"]) + 0.1 * z["u"].mean()
    return {
        "u": mapped(z["u"], a, weight) + 0.1 * u,
        "v": v.redistribute(placements=[Replicate()]) if whole else v,
    }


def written(z: torch.Tensor, a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same, which uses its argument up."""
    image = mapped(z, a, weight)
    return z.copy_(image) if not z.requires_grad else image


def root_of(z: torch.Tensor, a: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A function whose root is a fixed point of :func:`mapped`."""
    return z - mapped(z, a, weight)


class Case:
    """A call with DTensors on a mesh, and the same with plain tensors."""

    def __init__(self, mesh: Any, placements: Any, solver: Any = None) -> None:
        self.mesh, self.placements, self.solver = mesh, placements, solver

    def compared(
        self, call: Callable[..., Any], f: Callable[..., Any], z0: Any, **settings: Any
    ) -> dict[str, Any]:
        """Differences in the value and the gradients, and the steps of both."""
        found = self._solved(call, f, z0, self._spread, settings)
        known = self._solved(call, f, z0, lambda t, *_: t, settings)
        value, *slopes = [
            _difference(*pair) for pair in zip(found[0], known[0], strict=True)
        ]
        return {
            "error": value,
            "slope_error": max(slopes),
            "steps": [found[1].tolist(), _here(known[1], found[1]).tolist()],
        }

    def _spread(self, leaf: torch.Tensor, placements: Any = None) -> DTensor:
        return distribute_tensor(leaf, self.mesh, placements or self.placements)

    def _solved(
        self, call: Any, f: Any, z0: Any, spread: Any, settings: Any
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        everywhere = [Replicate()] * self.mesh.ndim
        a = FACTORS.clone() if "batch_ndim" not in settings else FACTORS[:5, None]
        a_places = self.placements if a.ndim == 1 else [Replicate()] * self.mesh.ndim
        a = spread(a.clone(), a_places).detach().requires_grad_()
        weight = spread(WEIGHT, everywhere).detach().requires_grad_()
        start = {k: spread(v) for k, v in z0.items()} if type(z0) is dict else None
        # A small state that is whole would be differentiated by elimination.
        linear = "newton_krylov" if call is fp.root else "anderson"
        usual = {"adjoint": fp.ImplicitAdjoint(solver=linear), "norm": "leaves"}
        usual |= {"solver": self.solver, "rtol": 1e-10}
        sol = call(f, start or spread(z0), (a, weight), **(usual | settings))
        value = sol.value["u"] if start else sol.value
        value.square().sum().backward()
        return [value.detach(), a.grad, weight.grad], sol.steps


def _here(known: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The samples that are here, of all."""
    return known if known.shape == like.shape else known.chunk(2)[dist.get_rank()]


def _difference(found: Any, known: torch.Tensor) -> float:
    whole = found.full_tensor() if isinstance(found, DTensor) else found
    return float((whole - known).abs().max())


def drawn(number: int) -> list[dict[str, Any]]:
    """Meshes, placements and solvers, the same ones in every process."""
    found: list[dict[str, Any]] = []
    same = {"derandomize": True, "database": None, "deadline": None}

    @settings(max_examples=number, phases=[Phase.generate], **same)
    @given(DRAWN)
    def note(case: dict[str, Any]) -> None:
        found.append(case)

    note()
    return found


def solved_as_drawn(
    mesh: tuple[int, ...], cuts: list[int | None], is_batch: bool, solver: int
) -> dict[str, Any]:
    """A vector, or a batch of them, spread over a mesh."""
    from solver_table import SOLVERS  # beside this file

    axes = 2 if is_batch else 1
    places = [
        Replicate() if cut is None or cut >= axes or cut in cuts[:k] else Shard(cut)
        for k, cut in enumerate(cuts[: len(mesh)])
    ]
    case = Case(init_device_mesh("cpu", mesh), places, [*SOLVERS.values()][solver])
    if is_batch:
        rows = torch.zeros(5, 7, dtype=torch.float64)
        return case.compared(fp.fixed_point, of_rows, rows, batch_ndim=1)
    return case.compared(fp.fixed_point, mapped, torch.zeros_like(FACTORS))


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """All of them."""
    from solver_table import SOLVERS  # beside this file

    for number, case in enumerate(drawn(10)):
        yield f"dtensor-drawn-{number}", solved_as_drawn(**case)
    line, plane = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2))
    zeros, rows = torch.zeros_like(FACTORS), torch.zeros(5, 7, dtype=torch.float64)
    leaves = {"u": zeros, "v": torch.zeros(3, 2, dtype=torch.float64)}
    for name, solver in SOLVERS.items():
        case = Case(line, [Shard(0)], solver)
        yield f"dtensor-{name}", case.compared(fp.fixed_point, mapped, zeros)
    for name in ("Anderson", "Broyden", "NewtonKrylov"):
        case = Case(line, [Shard(0)], SOLVERS[name])
        yield f"dtensor-root-{name}", case.compared(fp.root, root_of, zeros)
        yield f"dtensor-leaves-{name}", case.compared(fp.fixed_point, of_leaves, leaves)
    for name in ("Anderson", "NewtonKrylov", "Newton"):
        solver = SOLVERS.get(name, fp.Newton())
        spread = Case(line, [Shard(0)], solver)
        yield (
            f"dtensor-samples-{name}",
            spread.compared(fp.fixed_point, of_rows, rows, batch_ndim=1),
        )
    whole = Replicate()
    for placements in ([Shard(0), Shard(1)], [Shard(1), whole], [whole, whole]):
        case = Case(plane, placements, fp.Anderson(memory=4))
        yield (
            f"dtensor-plane-{placements}",
            case.compared(fp.fixed_point, of_rows, rows, batch_ndim=1),
        )
    case = Case(line, [Shard(0)], fp.Picard())
    yield "dtensor-written", case.compared(fp.fixed_point, written, zeros)
    case = Case(line, [Shard(0)], fp.Anderson(memory=4))
    settings = {"adjoint": fp.Unrolled(), "max_steps": 8, "on_failure": "return"}
    yield (
        "dtensor-unrolled",
        case.compared(fp.fixed_point, mapped, zeros, **settings),
    )
    yield "dtensor-products", products(line)
    yield "dtensor-layer", layer(line)
    yield "dtensor-lost", lost(line)
    yield from refusals(line)


class Cell(torch.nn.Module):
    """A linear cell."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(7, 7, dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.copy_(WEIGHT)
            self.inner.bias.zero_()

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """tanh(Wz + x)."""
        return torch.tanh(self.inner(z) + x)


def products(mesh: Any) -> dict[str, Any]:
    """A row of the Jacobian has entries of both processes."""
    start = distribute_tensor(torch.zeros_like(FACTORS), mesh, [Shard(0)])
    weight = distribute_tensor(WEIGHT, mesh, [Replicate()])
    sol = fp.fixed_point(
        lambda z, weight: 0.1 * z.mean() + torch.tanh(weight @ z),
        start,
        (weight,),
        max_steps=0,
        on_failure="return",
    )
    product = sol.linearize()(torch.ones_like(start))
    return {"error": _difference(product, 0.1 + WEIGHT.sum(1))}


def layer(mesh: Any) -> dict[str, Any]:
    """A layer whose parameters are DTensors too, and its samples spread."""
    x = FACTORS[:5, None] + FACTORS
    slopes = []
    for is_spread in (True, False):
        deq = DEQ(Cell(), rtol=1e-11)
        if is_spread:
            deq = distribute_module(deq, mesh)
        given = distribute_tensor(x, mesh, [Shard(0)]) if is_spread else x
        value = deq(given)
        value.square().sum().backward()
        slopes.append((value.detach(), deq.cell.inner.weight.grad))
    value, slope = [_difference(*pair) for pair in zip(*slopes, strict=True)]
    return {"error": value, "slope_error": slope}


def lost(mesh: Any) -> dict[str, Any]:
    """A layer one sample of which is not finite: it is in one process alone."""
    x = FACTORS[:5, None] + FACTORS
    x[3] = torch.inf
    deq = DEQ(lambda z, x: 0.5 * torch.cos(z) + x - x.abs(), on_failure="return")
    found = deq(distribute_tensor(x, mesh, [Shard(0)])).full_tensor()
    is_right = found.isnan().all(-1).tolist() == [False] * 3 + [True, False]
    return {"error": 0.0 if is_right else 1.0}


def refusals(mesh: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is refused, in both processes and with the same words."""
    zeros = torch.zeros_like(FACTORS)
    spread = distribute_tensor(zeros, mesh, [Shard(0)])
    whole = distribute_tensor(zeros, mesh, [Replicate()])
    thin = distribute_tensor(zeros[:1], mesh, [Shard(0)])
    partial = DTensor.from_local(zeros, mesh, [Partial()])
    cos, settings = torch.cos, {"batch_ndim": 1, "batched_args": ()}
    calls: dict[str, Callable[[], Any]] = {
        "alike": lambda: fp.fixed_point(lambda z: z, (spread, whole)),
        "mixed": lambda: fp.fixed_point(lambda z: z, (spread, zeros)),
        "thin": lambda: fp.fixed_point(cos, thin),
        "partial": lambda: fp.fixed_point(cos, partial),
        "plain": lambda: fp.fixed_point(lambda z: z.to_local(), spread),
        "communicator": lambda: fp.fixed_point(cos, spread, communicator=Processes()),
        "matrix": lambda: fp.fixed_point(cos, spread, solver=fp.Newton()),
        "batched": lambda: fp.fixed_point(cos, spread, **settings),
        "bracket": lambda: fp.bracketed_root(cos, spread, spread + 3.0),
        "twice": lambda: _twice(spread),
        "transform": lambda: torch.func.grad(
            lambda z: fp.fixed_point(cos, z).value.sum()
        )(spread),
    }
    for name, call in calls.items():
        yield f"dtensor-refused-{name}", {"message": _message(call)}


def _twice(z: DTensor) -> None:
    """The second derivative of a solution."""
    a = torch.ones_like(z).requires_grad_()
    value = fp.fixed_point(lambda z, a: 0.5 * a * torch.cos(z), z, (a,)).value
    (slope,) = torch.autograd.grad(value.sum(), a, create_graph=True)
    torch.autograd.grad(slope.sum(), a)


def _message(call: Callable[[], Any]) -> str:
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"
