"""What is asked of a solution, and of which parts of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, Literal

import numpy as np

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_bound, check_bounds
from fixedpoint.space import Difference, Kind, Measured, Space

Norm = Literal["entries", "leaves", "euclidean", "max"]
Test = Literal["error", "residual"]
NORMS: tuple[Norm, ...] = ("entries", "leaves", "euclidean", "max")
TESTS: tuple[Test, ...] = ("error", "residual")

# The part of its largest that each part of a residual must fall to, where rtol is zero.
_SHARE = 1e-5

# Real unknowns of a sample up to which each entry has to be right by itself.
ENTRIES = 200


@dataclass(frozen=True, eq=False)
class Tolerance:
    """What an error, or a residual, must not exceed.

    Parameters
    ----------
    rtol, atol : float or array of the batch's shape
        The relative and the absolute tolerance. None is what the arithmetic allows.
    norm : {"entries", "leaves", "euclidean", "max"} or None
        The parts of a state that are tested, each by itself: its entries; its leaves,
        in the Euclidean norm; or all of it, in the Euclidean or the largest norm. None
        is chosen by the size of the state.
    test : {"error", "residual"}
        Whether the error z − z* is bounded, or the residual.
    blocks : tuple of slice
        The leaves that a norm of all is taken of, where it is taken of several groups
        apart.
    segments : tuple of tuple of int
        The sizes of the leaves that lie in each array of a state, where some are
        joined.
    """

    rtol: Any
    atol: Any
    norm: Norm | None
    test: Test = "error"
    blocks: tuple[slice, ...] = (slice(None),)
    segments: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not hasattr(value, "shape"):
                check_bound(name, value)
        if self.norm is not None and self.norm not in NORMS:
            raise ValueError(
                f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}"
            )
        if self.test not in TESTS:
            raise ValueError(
                f"test must be one of {', '.join(TESTS)}, got {self.test!r}"
            )

    def settled(
        self,
        space: Space,
        rounding: float,
        blocks: tuple[slice, ...],
        segments: tuple[tuple[int, ...], ...],
    ) -> Tolerance:
        """The tolerance for states of a space, by a map of a unit roundoff of its own.

        Small vectors may have entries in different units: each then counts by itself.
        """
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            shape = tuple(getattr(value, "shape", ()))
            if shape not in ((), space.batch_shape):
                raise ValueError(
                    f"{name} must be a number, or an array of the shape of the batch, "
                    f"{space.batch_shape}, got the shape {shape}"
                )
            if hasattr(value, "shape"):
                check_bounds(name, value, space.backend)
        rtol, norm = self.rtol, self.norm
        if rtol is None:
            rtol = max(space.default_rtol, 10 * rounding)
        if norm is None and self.test == "residual":
            norm = "euclidean"
        if norm is None:
            norm = "entries" if space.dimension <= ENTRIES else "leaves"
        return Tolerance(rtol, self.atol, norm, self.test, blocks, segments)

    @property
    def is_zero(self) -> bool:
        """Whether only an exact solution would do: steps are then fixed in number."""
        return _is_zero(self.rtol) and _is_zero(self.atol)

    def is_whole(self, space: Space) -> bool:
        """Whether all of a state is its only part."""
        if self.norm == "leaves":
            return len(space.dtypes) == 1 and not self.segments
        return self.norm in ("euclidean", "max") and self.blocks == (slice(None),)

    def relative_share(self, size: Array) -> Any:
        """What part of its largest the residual should be for an error of this size."""
        return _SHARE if _is_zero(self.rtol) else 10.0 * _beside(self.rtol, size)

    def converted(self, convert: Callable[[Any], Any]) -> Tolerance:
        """The same, where tolerances are arrays with these converted."""
        given = self.rtol, self.atol
        if not any(hasattr(tolerance, "shape") for tolerance in given):
            return self
        rtol, atol = map(convert, given)
        return replace(self, rtol=rtol, atol=atol)

    def take(self, xp: Any, rows: Array) -> Tolerance:
        """The tolerances of the samples `rows`."""

        def part(tolerance: Any) -> Any:
            batched = getattr(tolerance, "ndim", 0) > 0
            return xp.take(tolerance, rows, axis=0) if batched else tolerance

        return self.converted(part)

    @property
    def kind(self) -> str:
        """The norm of a part, and that in which residuals are reported."""
        return "max" if self.norm == "max" else "euclidean"

    def measured(self, u: Vec | Difference) -> list[Measured]:
        """The parts of u, where they are no single entries, and their norms."""
        if isinstance(u, Difference):
            pairs = zip(*map(self._groups, u), strict=True)
            groups: list[Any] = [Difference(*pair) for pair in pairs]
        else:
            groups = self._groups(u)
        return list(zip(groups, self._kinds(len(groups)), strict=True))

    def have_terms(self, terms: Sequence[Any]) -> list[bool]:
        """The parts whose leaves have such, and not None."""
        return [group[0] is not None for group in self._groups(tuple(terms))]

    def _groups(self, u: Vec) -> list[Vec]:
        if self.norm in ("leaves", "entries"):
            return [(leaf,) for leaf in u]
        return [u[block] for block in self.blocks]

    def _kinds(self, count: int) -> list[Kind]:
        """The norm of each part: that of segments where leaves are joined."""
        if self.norm != "leaves" or not self.segments:
            return [self.kind] * count
        return [sizes if len(sizes) > 1 else self.kind for sizes in self.segments]

    def parts(self, space: Space, u: Vec) -> tuple[Array, ...]:
        """The sizes of the parts of u: (batch), or if these are entries (batch, …)."""
        if self.norm == "entries":
            return tuple([space.magnitudes(leaf) for leaf in u])
        return space.sound_norms(self.measured(u))

    def spread(self, space: Space, masks: Sequence[Array], u: Vec) -> Vec:
        """The masks of parts, as such of entries of u, or to broadcast with these."""
        if self.norm == "entries":
            return tuple(masks)
        of_leaf: list[Any] = [None] * len(u)
        if self.norm == "leaves":
            of_leaf[:] = masks
        else:
            for block, mask in zip(self.blocks, masks, strict=True):
                of_leaf[block] = [mask] * len(of_leaf[block])
        rows = zip(of_leaf, self._kinds(len(u)), u, strict=True)
        return tuple([_over_entries(space, *row) for row in rows])

    def bounds(self, sizes: Sequence[Array]) -> list[Array]:
        """What goes with parts of these sizes: atol + rtol·size."""
        return list(map(self.bound, sizes))

    def bound(self, size: Array) -> Array:
        """The bound atol + rtol·size."""
        relative = _beside(self.rtol, size) * size
        return relative if _is_zero(self.atol) else _beside(self.atol, size) + relative

    def covers(self, space: Space, u: Vec, value: Vec) -> Array:
        """Whether every part of u is within the tolerance that goes with `value`."""
        bounds = self.bounds(self.parts(space, value))
        return space.every(
            [u <= b for u, b in zip(self.parts(space, u), bounds, strict=True)]
        )


def length_of(space: Space, parts: Sequence[Array]) -> Array:
    """The length of a vector of which the sizes of all parts are given."""
    if any(part.ndim > space.batch_ndim for part in parts):
        return space.norm(tuple(parts))
    return space.xp.sqrt(reduce(add, [size * size for size in parts]))


def _over_entries(space: Space, mask: Array | None, kind: Any, leaf: Array) -> Array:
    """The mask of a leaf, or of its segments, over its entries; None is false."""
    xp = space.xp
    if mask is None:
        return xp.zeros_like(leaf, dtype=xp.bool)
    if isinstance(kind, tuple):
        owner = xp.asarray(np.repeat(np.arange(len(kind)), kind), **space.place)
        mask = xp.take(mask, owner, axis=-1)
    return space.spread(mask, leaf)


def _is_zero(tolerance: Any) -> bool:
    return isinstance(tolerance, float | int) and tolerance == 0


def _beside(tolerance: Any, size: Array) -> Any:
    """A tolerance per sample, to broadcast with the sizes of the parts of each."""
    ndim = getattr(tolerance, "ndim", 0)
    return tolerance[(..., *(None,) * (size.ndim - ndim))] if ndim else tolerance
