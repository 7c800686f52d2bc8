"""Where a training runs: its device, and its processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


class DeviceError(ValueError):
    """The device cannot be used; the message says why."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and which of them this is.

    Parameters
    ----------
    rank, ranks : int
        The number of this one, and how many there are.
    """

    rank: int = 0
    ranks: int = 1

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self.ranks == 1:
            return tensor
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
        return tensor

    def everywhere(self, value: Any) -> list[Any]:
        """The value of each process."""
        values = [value] * self.ranks
        if self.ranks > 1:
            distributed.all_gather_object(values, value)
        return values


@contextmanager
def processes(device: str) -> Iterator[tuple[Processes, torch.device]]:
    """This process among those that torchrun started, and its device.

    Parameters
    ----------
    device : str
        "cpu", "cuda", or "cuda:0" and the like; with torchrun "cuda" is each process's
        own.

    Raises
    ------
    DeviceError
        If there is no such device.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    place = checked_device(
        device, int(os.environ.get("LOCAL_RANK", "0")) if ranks > 1 else None
    )
    if ranks == 1:
        yield Processes(), place
        return
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size()), place
    finally:
        distributed.destroy_process_group()


def checked_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of a name.

    Parameters
    ----------
    name : str
        As for :func:`processes`.
    local_rank : int, optional
        The number of the process on this computer, where there are several.

    Raises
    ------
    DeviceError
        If there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(
            f"--device: expected cpu, cuda or cuda:0, got {name!r}"
        ) from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device: expected cpu, cuda or cuda:0, got {name!r}")
    if device.type == "cuda":
        index = (local_rank or 0) if ":" not in name else int(name.partition(":")[2])
        if index >= torch.cuda.device_count():
            raise DeviceError(
                f"--device {name}: there are {torch.cuda.device_count()} CUDA devices"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


def mixed_dtype(device: torch.device) -> torch.dtype:
    """The type of mixed precision: bfloat16, or float16 on CUDA devices that lack
    it.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16
