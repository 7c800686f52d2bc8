"""States that are DTensors.

Solvers see the local parts alone, joined by a communicator of the device mesh; the
user's functions see DTensors. So nothing but f decides what is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from fixedpoint import tree
from fixedpoint.communicator import Communicator, Reduction
from fixedpoint_torch.backend import TorchBackend
from fixedpoint_torch.kept import inside_transform
from fixedpoint_torch.processes import agree, reduce


@dataclass(frozen=True)
class MeshProcesses(Communicator):
    """Joins the processes of a device mesh."""

    mesh: Any
    spread: tuple[int, ...]  # the axes of the mesh that split the entries of a sample

    @property
    def whole_samples(self) -> bool:  # type: ignore[override]
        """Whether each process holds whole samples."""
        return not self.spread

    def reduce(self, array: torch.Tensor, reduction: Reduction) -> torch.Tensor:
        """The sum or the largest over all who hold entries of these samples."""
        for axis in self.spread:
            array = reduce(array, reduction, self.mesh.get_group(axis))
        return array

    def agree(self, flag: bool) -> bool:
        """Whether the flag is true in any process of the mesh."""
        for group in self.mesh.get_all_groups():
            flag = agree(flag, group)
        return flag


def refuse_transforms() -> None:
    """Raise inside ``torch.func``, where DTensors cannot be made of their parts."""
    if inside_transform():
        raise TypeError(
            "a solve for a DTensor has first derivatives of reverse mode alone: for "
            "others, and under torch.func, solve for its to_local() with "
            "fixedpoint_torch.Processes as the communicator"
        )


@dataclass(frozen=True)
class Layout:
    """How a DTensor is spread."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, leaf: DTensor) -> Layout:
        """That of `leaf`."""
        return cls(
            leaf.device_mesh, tuple(leaf.placements), tuple(leaf.shape), leaf.stride()
        )

    def whole(self, part: torch.Tensor) -> DTensor:
        """The DTensor of which `part` is here."""
        refuse_transforms()
        return DTensor.from_local(
            part,
            self.mesh,
            self.placements,
            run_check=False,
            shape=torch.Size(self.shape),
            stride=self.stride,
        )

    def part(self, leaf: Any) -> torch.Tensor:
        """What is here of an output of f, spread as this is."""
        if not isinstance(leaf, DTensor) or tuple(leaf.shape) != self.shape:
            raise ValueError(
                "where z0 is a DTensor, f must return one of the same shape: expected "
                f"{self.shape}, got {type(leaf).__name__} of the shape "
                f"{tuple(getattr(leaf, 'shape', ()))}"
            )
        part: torch.Tensor = leaf.redistribute(self.mesh, self.placements).to_local()
        return part


def on_parts(function: Callable[[torch.Tensor], torch.Tensor], leaf: Any) -> DTensor:
    """A DTensor of what a function makes of each part."""
    return Layout.of(leaf).whole(function(leaf.to_local()))


@dataclass(frozen=True)
class Spread:
    """The structure of a container some of whose leaves are DTensors."""

    inner: tree.Structure
    layouts: tuple[Layout | None, ...]

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """The container, its leaves DTensors again.

        A mark in place of a tensor, by which the core looks for a bare array, is never
        found bare: f is no function of the local part.
        """
        pairs = zip(self.layouts, leaves, strict=True)
        return self.inner.rebuild(
            [leaf if layout is None else _whole(layout, leaf) for layout, leaf in pairs]
        )


def _whole(layout: Layout, leaf: Any) -> Any:
    return layout.whole(leaf) if isinstance(leaf, torch.Tensor) else (layout, leaf)


class ShardedBackend(TorchBackend):
    """PyTorch, for states of DTensors.

    Parameters
    ----------
    leaves : sequence of DTensor
        Those of the state.
    batch_ndim : int
        How many of their axes index samples.
    communicator : Communicator or None
        What the caller gave, which must be none.
    """

    # A product with J is a second reverse pass, which Torch's redistribution of a
    # DTensor cuts: difference quotients stand in. One with Jᵀ is a first.
    differentiates = False
    # What writes into a DTensor leaves no mark on its part: f is given copies.
    marks_writes = False

    def __init__(
        self, leaves: Sequence[Any], batch_ndim: int, communicator: Communicator | None
    ) -> None:
        if communicator is not None:
            raise ValueError(
                "z0 is a DTensor, whose mesh joins the processes: give no communicator"
            )
        refuse_transforms()
        mesh, roles = _common(leaves, batch_ndim)
        spread = tuple(axis for axis, role in enumerate(roles) if role == "entries")
        self.communicator = MeshProcesses(mesh, spread)
        self.is_partial = bool(spread)

    def flatten(self, container: Any) -> tuple[list[Any], Any]:
        """The local parts, and how they are spread."""
        leaves, structure = tree.flatten(container)
        layouts = [Layout.of(x) if isinstance(x, DTensor) else None for x in leaves]
        parts = [x.to_local() if isinstance(x, DTensor) else x for x in leaves]
        return parts, Spread(structure, tuple(layouts))

    def outputs(self, container: Any, structure: Spread) -> list[Any] | None:
        """The local parts, spread as the state is."""
        leaves = structure.inner.match(container)
        if leaves is None:
            return None
        pairs = zip(structure.layouts, leaves, strict=True)
        return [layout.part(leaf) for layout, leaf in pairs if layout]


def _common(leaves: Sequence[Any], batch_ndim: int) -> tuple[Any, tuple[Any, ...]]:
    """The mesh of all leaves, and for each of its axes what it spreads."""
    if not all(isinstance(leaf, DTensor) for leaf in leaves):
        raise TypeError(
            "z0 mixes DTensors and other tensors: distribute all of its leaves"
        )
    meshes = [leaf.device_mesh for leaf in leaves]
    roles = [_roles(leaf, batch_ndim) for leaf in leaves]
    for mesh, role in zip(meshes, roles, strict=True):
        if mesh != meshes[0] or role != roles[0]:
            raise ValueError(
                "the leaves of z0 must be spread alike, over samples or over entries "
                "on the same axes of one mesh: redistribute them"
            )
    return meshes[0], roles[0]


def _roles(leaf: DTensor, batch_ndim: int) -> tuple[Any, ...]:
    """For each axis of the mesh: the batch axis that it spreads, "entries", or None."""
    for placement in leaf.placements:
        if type(placement) not in (Shard, Replicate):
            raise ValueError(
                f"z0 has the placement {placement}: redistribute it to Shard or "
                "Replicate"
            )
    sharded = {p.dim for p in leaf.placements if isinstance(p, Shard)}
    for axis in sharded:
        _check_shares(leaf, axis)
    return tuple(
        None if not isinstance(p, Shard) else p.dim if p.dim < batch_ndim else "entries"
        for p in leaf.placements
    )


def _check_shares(leaf: DTensor, axis: int) -> None:
    """Raise in all processes if one of them has no part of an axis."""
    length = leaf.shape[axis]
    for mesh_axis, placement in enumerate(leaf.placements):
        if placement == Shard(axis):
            count = leaf.device_mesh.size(mesh_axis)
            share = math.ceil(length / count)
            if share * (count - 1) >= length:
                raise ValueError(
                    f"axis {axis} of z0, of the length {leaf.shape[axis]}, leaves a "
                    "process without a part: spread it over fewer processes"
                )
            length = length - share * (count - 1)  # the smallest part
