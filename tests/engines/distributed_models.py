"""Models with equilibrium layers in two processes, for ``on_two_processes.py``."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from fixedpoint_torch import DEQ


class Cell(torch.nn.Module):
    """A contraction; samples with large inputs are hard."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 6)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """tanh(Wz + b + x)."""
        return torch.tanh(self.inner(z) + x)


def model(seed: int = 0) -> torch.nn.Sequential:
    """A layer, an equilibrium and a layer."""
    torch.manual_seed(seed)
    layers = torch.nn.Linear(4, 6), DEQ(Cell(), rtol=1e-12), torch.nn.Linear(6, 2)
    return torch.nn.Sequential(*layers).double()


def batch() -> torch.Tensor:
    """Samples of both processes: those of the second are the harder ones."""
    torch.manual_seed(1)
    return torch.randn(8, 4, dtype=torch.float64) * torch.linspace(3, 0.1, 8)[:, None]


def share() -> torch.Tensor:
    """Those of this process."""
    return batch().chunk(2)[dist.get_rank()]


def gradients(net: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Of the mean of a loss."""
    net(x).square().sum(-1).mean().backward()
    found = [p.grad for p in net.parameters()]
    return [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def compared(net: torch.nn.Module) -> dict[str, Any]:
    """Gradients of two halves in two processes against those of all in one."""
    known, found = gradients(model(), batch()), gradients(net, share())
    pairs = zip(found, known, strict=True)
    return {"error": max(float((a - b).abs().max()) for a, b in pairs)}


def sharded(seed: int = 0) -> torch.nn.Module:
    """A model under FSDP2, applied to the DEQ and to what holds it."""
    net, mesh = model(seed), init_device_mesh("cpu", (2,))
    fully_shard(net[1], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def inside() -> torch.nn.Module:
    """The same, wrongly applied to a part of the cell."""
    net = model()
    fully_shard(net[1].cell.inner, mesh=init_device_mesh("cpu", (2,)))
    return net


def inside_replicated() -> torch.nn.Module:
    """A cell under DDP."""
    net = model()
    net[1].cell = DistributedDataParallel(net[1].cell)
    return net


def restored() -> dict[str, Any]:
    """A checkpoint written by sharded models, read by these and by whole ones."""
    names: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(names)
    written, x = sharded(), batch()
    state = {"model": get_model_state_dict(written)}
    dcp.save(state, checkpoint_id=names[0])
    known, errors = written(x), []
    for fresh in (sharded(seed=5), model(seed=5)):
        state = {"model": get_model_state_dict(fresh)}
        dcp.load(state, checkpoint_id=names[0])
        set_model_state_dict(fresh, state["model"])
        errors.append(float((fresh(x) - known).detach().abs().max()))
    return {"error": max(errors)}


def message(net: Callable[..., Any]) -> dict[str, Any]:
    """What a call of a model is refused with."""
    try:
        net(share())
    except TypeError as error:
        return {"message": f"TypeError: {error}"}
    return {"message": "no error"}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """All of them."""
    yield "model-ddp", compared(DistributedDataParallel(model()))
    yield "model-fsdp", compared(sharded())
    yield "model-checkpoint", restored()
    yield "model-refused-fsdp", message(inside())
    yield "model-refused-ddp", message(inside_replicated())
