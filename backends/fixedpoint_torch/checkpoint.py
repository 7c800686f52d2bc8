"""Recording in segments, of each of which only the start is kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from fixedpoint.backend import Carry


class Checkpoint:
    """What autograd keeps of one segment: dropped when the next one runs, then made
    anew.

    ``torch.utils.checkpoint`` would run the segment once more for each derivative that
    is taken inside of it, as Newton's methods do for each column of a Jacobian.

    Parameters
    ----------
    segment : callable
        Takes a carry to another, and does the same each time.
    carry : Carry
        Where it starts.
    latest : list
        The one segment whose tensors are held now, which all segments of a solve share.
    """

    def __init__(
        self, segment: Callable[[Carry], Carry], carry: Carry, latest: list[Any]
    ) -> None:
        self.segment, self.carry, self.latest = segment, carry, latest
        self.tensors: list[torch.Tensor] = []

    def run(self) -> Carry:
        """The end of the segment, recorded."""
        for reference in self.latest:
            other = reference()
            if other is not None:
                other.tensors = []
        self.latest[:] = [weakref.ref(self)]
        with torch.enable_grad(), saved_tensors_hooks(self._keep, self._find):
            return self.segment(self.carry)

    def _keep(self, tensor: torch.Tensor) -> int:
        self.tensors.append(tensor.detach())
        return len(self.tensors) - 1

    def _find(self, index: int) -> torch.Tensor:
        if not self.tensors:
            self.run()
        return self.tensors[index]
