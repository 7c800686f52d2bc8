"""Many small leaves as one: what solvers compute with, and what f takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from fixedpoint.backend import Array, Backend, Vec

# Neighbors of one kind are joined if there are so many, with so few numbers each.
_MANY, _SMALL = 8, 4096


@dataclass(frozen=True, eq=False)
class Joined:
    """Which neighboring small leaves of a container lie in one array.

    An operation on a leaf of a few numbers costs as much as one on thousands of them,
    and a step has dozens. So a state of many small leaves is copied into few arrays
    where it comes in, and f is given views of these: nothing large is copied. The order
    of the entries stays.
    """

    backend: Backend
    batch_ndim: int
    shapes: tuple[tuple[int, ...], ...]  # of each leaf of one sample
    runs: tuple[slice, ...]  # the leaves that make up each array

    @classmethod
    def of(cls, backend: Backend, leaves: Vec, batch_ndim: int) -> Joined | None:
        """What is worth it joined; None if nothing is."""
        if len(leaves) < _MANY:
            return None
        runs = tuple(_runs(backend, leaves))
        if len(runs) == len(leaves):
            return None
        shapes = tuple(tuple(leaf.shape[batch_ndim:]) for leaf in leaves)
        return cls(backend, batch_ndim, shapes, runs)

    def are_alike(self, leaves: Sequence[Any], vector: Vec) -> bool:
        """Whether leaves have the types, shapes and dtypes of those of a vector."""
        lead = tuple(vector[0].shape[: self.batch_ndim])
        for array, run in zip(vector, self.runs, strict=True):
            kind, dtype = type(array), array.dtype
            for leaf, shape in zip(leaves[run], self.shapes[run], strict=True):
                if type(leaf) is not kind or leaf.dtype != dtype:
                    return False
                if leaf.shape != (lead + shape if lead else shape):
                    return False
        return True

    @cached_property
    def _groups(self) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]:
        """How many neighbors of which shape there are in each array."""
        return tuple(
            tuple((len(list(same)), shape) for shape, same in groupby(self.shapes[run]))
            for run in self.runs
        )

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The entries of the leaves in each array."""
        return tuple(tuple(map(math.prod, self.shapes[run])) for run in self.runs)

    def vector(self, leaves: Sequence[Array]) -> Vec:
        """The leaves of a container as a vector."""
        runs, join = [leaves[run] for run in self.runs], self.backend.concatenated
        ndim = self.batch_ndim
        return tuple([run[0] if len(run) == 1 else join(run, ndim) for run in runs])

    def leaves(self, vector: Vec) -> list[Array]:
        """The leaves of a container that a vector stands for, as views of it."""
        found: list[Array] = []
        for array, sizes, groups in zip(vector, self.sizes, self._groups, strict=True):
            if len(sizes) == 1:
                found.append(array)
            else:
                found += self._split(array, groups)
        return found

    def _split(
        self, array: Array, groups: Sequence[tuple[int, tuple[int, ...]]]
    ) -> list[Array]:
        """Views of an array, those of one shape at once."""
        lead, start = tuple(array.shape[:-1]), 0  # transforms have axes in front
        reshape = self.backend.namespace(array).reshape
        leaves: list[Array] = []
        for count, shape in groups:
            stop = start + count * math.prod(shape)
            part = reshape(array[..., start:stop], (*lead, count, *shape))
            leaves += self.backend.unbound(part, len(lead))
            start = stop
        return leaves


def _runs(backend: Backend, leaves: Vec) -> Iterator[slice]:
    """Which neighbors to join."""
    start = 0
    for kind, group in groupby(leaves, lambda leaf: _kind(backend, leaf)):
        stop = start + len(list(group))
        if kind is None or stop - start < _MANY:
            yield from (slice(k, k + 1) for k in range(start, stop))
        else:
            yield slice(start, stop)
        start = stop


def _kind(backend: Backend, leaf: Array) -> Any:
    """What leaves must have in common to be joined; None for one that is not to be."""
    xp = backend.namespace(leaf)
    if math.prod(leaf.shape) > _SMALL or not xp.isdtype(leaf.dtype, "real floating"):
        return None
    return (leaf.dtype, backend.device(leaf)) if backend.is_whole(leaf) else None
