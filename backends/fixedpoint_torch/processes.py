"""States that are spread over the processes of ``torch.distributed``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from fixedpoint.communicator import Communicator, Reduction


@dataclass(frozen=True)
class Processes(Communicator):
    """Joins the processes of a group, each of which holds tensors that are a part of
    the state.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        The group, by default all processes.
    whole_samples : bool, optional
        Whether each process holds samples of its own, and not a part of the entries of
        all.

    Examples
    --------
    Of one process, which is the whole group:

    >>> import torch, torch.distributed as dist, fixedpoint as fp
    >>> from fixedpoint_torch import Processes
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> sol = fp.fixed_point(torch.cos, torch.ones(3), communicator=Processes())
    >>> dist.destroy_process_group()
    >>> bool(sol.converged)
    True
    """

    group: Any = None
    whole_samples: bool = False

    def reduce(self, array: torch.Tensor, reduction: Reduction) -> torch.Tensor:
        """The sum or the largest over all processes."""
        return reduce(array, reduction, self.group)

    def agree(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return agree(flag, self.group)


def reduce(array: torch.Tensor, reduction: Reduction, group: Any) -> torch.Tensor:
    """The sum or the largest over the processes of a group, in a new tensor.

    Sums are differentiable, for solves that are unrolled. The largest is a constant: a
    solver scales by it, and compares with it.
    """
    if reduction == "sum" and array.requires_grad:
        total: torch.Tensor = _Total.apply(array, group)  # type: ignore[no-untyped-call]
        return total
    whole = array.detach().clone()
    operation = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[reduction]
    dist.all_reduce(whole, operation, group=group)
    return whole


def agree(flag: bool, group: Any) -> bool:
    """Whether the flag is true in any process of a group."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    whole = torch.tensor(int(flag), device=device)
    dist.all_reduce(whole, dist.ReduceOp.MAX, group=group)
    return bool(whole)


class _Total(torch.autograd.Function):
    """The sum over the processes of a group, which is its own transpose."""

    @staticmethod
    def forward(array: torch.Tensor, group: Any) -> torch.Tensor:
        """Add up."""
        total = array.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the group."""
        del output
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        """Add up what each process asks for."""
        return _Total.apply(cotangent, ctx.group), None  # type: ignore[no-untyped-call]
