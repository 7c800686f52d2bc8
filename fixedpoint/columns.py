"""Tall matrices whose columns are vectors: what methods with a memory keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.space import Difference, Space


class Columns(NamedTuple):
    """A matrix Q for each sample, with few columns, each of which is a vector.

    A method that gives columns may write to those that it is called on.

    Attributes
    ----------
    leaves : Vec
        For each leaf of a vector an array of the axes of the batch, of the columns and
        of the entries.
    """

    leaves: Vec

    @classmethod
    def zeros(cls, space: Space, width: int) -> Columns:
        """So many columns of zeros."""
        return cls._made(space, width, space.xp.zeros)

    @classmethod
    def empty(cls, space: Space, width: int) -> Columns:
        """Room for so many columns, uninitialized where that cannot be read."""
        return cls._made(space, width, space.backend.empty(space.xp))

    @classmethod
    def _made(cls, space: Space, width: int, make: Callable[..., Array]) -> Columns:
        lead, kinds = (*space.batch_shape, width), (space.shapes, space.dtypes)
        leaf = lambda shape, dtype: make((*lead, *shape), dtype=dtype, **space.place)
        return cls(tuple(map(leaf, *kinds)))

    def copy(self) -> Columns:
        """A copy, which is ours."""
        return Columns(tuple([1.0 * leaf for leaf in self.leaves]))

    def width(self, space: Space) -> int:
        """How many columns there are."""
        count: int = self.leaves[0].shape[space.batch_ndim]
        return count

    def widened(self, space: Space, more: int) -> Columns:
        """These columns, and room for `more`, zero at first."""
        pairs = zip(self.leaves, Columns.zeros(space, more).leaves, strict=True)
        join = space.xp.concat
        return Columns(tuple([join(pair, axis=space.batch_ndim) for pair in pairs]))

    def first(self, space: Space, count: Any) -> Columns:
        """The first `count` columns; all of them if the count is a symbol, or the
        library compiles for each shape.
        """
        known = isinstance(count, int) and not space.backend.compiles
        if not known or count >= self.leaves[0].shape[space.batch_ndim]:
            return self
        index = *(slice(None),) * space.batch_ndim, slice(count), ...
        return Columns(tuple([leaf[index] for leaf in self.leaves]))

    def column(self, space: Space, slot: Any) -> Vec:
        """The column `slot`."""
        read = space.backend.read
        return tuple([read(leaf, _place(space, leaf, slot)) for leaf in self.leaves])

    def matrix(self) -> Array:
        """The columns of the one array of one sample, as rows."""
        (leaf,) = self.leaves
        return leaf.reshape(leaf.shape[0], -1)

    # Writing.

    def push(self, space: Space, slot: Any, u: Vec) -> Columns:
        """The columns with u in place of the column `slot`."""
        write = lambda leaf, a: space.backend.write(leaf, _place(space, leaf, slot), a)
        return Columns(tuple(map(write, self.leaves, u)))

    def push_scaled(
        self, space: Space, slot: Any, coefficient: Array, u: Vec
    ) -> tuple[Columns, Vec]:
        """The columns with c u in place of the column `slot`, and that."""
        write = lambda leaf, a: space.backend.write_scaled(
            leaf, _place(space, leaf, slot), space.factor(coefficient, a), a
        )
        leaves, column = zip(*map(write, self.leaves, u), strict=True)
        return Columns(leaves), column

    def placed(
        self,
        space: Space,
        slot: Any,
        *vectors: Vec,
        by: Callable[..., Array] = lambda leaf: leaf,
    ) -> tuple[Columns, Vec]:
        """The columns with what :meth:`~fixedpoint.space.Space.entrywise` gives `by` a
        function in place of the column `slot`, and that; a view, where there are views.
        """
        if space.backend.piece(self.leaves[0]) is None:
            u = space.entrywise(by, *vectors)
            return self.push(space, slot, u), u
        column, filled = self.column(space, slot), space.backend.filled
        for onto, leaves in zip(column, zip(*vectors, strict=True), strict=True):
            filled(onto, by, leaves, space.entry_axes(onto))
        return self, column

    # Algebra.

    def transposed_times(self, space: Space, v: Vec) -> Array:
        """The products Qᵀv with each column: (batch, width)."""
        here = space.contracted(partial(_products, space), self.leaves, v)
        return space.reduced([here])[0]

    def added_to(
        self, space: Space, u: Vec, coefficients: Array, *, ours: bool = False
    ) -> Vec:
        """The vector u + Qc; if u is `ours`, it may be written to."""
        return self.subtracted_from(space, u, -coefficients, ours=ours)

    def subtracted_from(
        self, space: Space, u: Vec, coefficients: Array, *, ours: bool = False
    ) -> Vec:
        """The vector u − Qc; if u is `ours`, it may be written to."""
        backend, wide, cast = space.backend, space.wide, space.cast
        less = backend.deducted if ours else backend.minus_combination

        def of_leaf(leaf: Array, columns: Array) -> Array:
            columns, axes = wide(columns), space.entry_axes(leaf)
            weights = cast(coefficients, columns.dtype)
            return cast(less(wide(leaf), weights, columns, axes), leaf.dtype)

        return tuple(map(of_leaf, u, self.leaves))


def products(
    space: Space, *pairs: tuple[Columns | Vec | Difference, Vec]
) -> list[Array]:
    """The products Qᵀv of columns, and ⟨u, v⟩ of vectors, in one message."""
    by, dot = partial(_products, space), space.local_dot
    return space.reduced(
        [
            space.contracted(by, u.leaves, v) if isinstance(u, Columns) else dot(u, v)
            for u, v in pairs
        ]
    )


def push_secant(
    space: Space, residuals: Columns, images: Columns, slot: Any, ends: tuple[Any, Any]
) -> tuple[Columns, Columns, Vec, Vec]:
    """The columns ΔG and ΔZ + ΔG with the differences between two points in place of
    the column `slot`, and these.
    """
    write, (old, new) = space.backend.write_secant, ends
    vectors = old.value, old.increment, new.value, new.increment
    leaves = zip(residuals.leaves, images.leaves, *vectors, strict=True)
    written = [write(g, f, _place(space, g, slot), *of) for g, f, *of in leaves]
    past, following, change, image = zip(*written, strict=True)
    return Columns(past), Columns(following), change, image


def _products(space: Space, columns: Array, leaf: Array) -> Array:
    """The part of a leaf in the products with columns."""
    by, axes = space.backend.products, space.entry_axes(leaf)
    return space.real(by(space.wide(columns), space.wide(leaf), axes))


def _place(space: Space, leaf: Array, slot: Any) -> tuple[Any, ...]:
    """The index of a column in a leaf."""
    return (..., slot, *(slice(None),) * (leaf.ndim - space.batch_ndim - 1))
