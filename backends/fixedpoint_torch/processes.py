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
        whole = array.clone()
        operation = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[reduction]
        dist.all_reduce(whole, operation, group=self.group)
        return whole

    def agree(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        whole = torch.tensor(int(flag), device=device)
        dist.all_reduce(whole, dist.ReduceOp.MAX, group=self.group)
        return bool(whole)
