"""The vector space of states: the only code that touches leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial, reduce
from operator import add, mul, neg, or_, sub
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fixedpoint.backend import Array, Vec
from fixedpoint.communicator import Reduction
from fixedpoint.layout import Layout


class Difference(NamedTuple):
    """The vector `new` − `old`, of which inner products and norms are wanted alone."""

    new: Vec
    old: Vec


# The Euclidean or the largest norm; or the Euclidean ones of segments of these sizes.
Kind = str | tuple[int, ...]

# A vector, and which norm of it.
Measured = tuple["Vec | Difference", Kind]


@dataclass(frozen=True, eq=False)
class Space(Layout):
    """Vectors of one layout, their sums, inner products and norms.

    Inner products and norms run over all leaves of a sample. A complex leaf counts as
    its real and imaginary parts: the inner product is Re⟨u, v⟩.

    Parameters
    ----------
    weights : tuple of float or None
        What the inner product multiplies each leaf's part by; None stands for ones.
    """

    weights: tuple[float, ...] | None = None

    # Whether this is one sample of one real array of NumPy's.
    is_bare: ClassVar[bool] = False

    def weighted(self, weights: tuple[float, ...] | None) -> Space:
        """This space with other weights in its inner product, one per leaf."""
        if weights is None:
            return self
        if len(weights) != len(self.dtypes):
            raise ValueError(
                f"weights must have one entry per leaf, {len(self.dtypes)}, got "
                f"{len(weights)}"
            )
        return self._with(weights=weights)

    def widened(self, size: int) -> Space:
        """The space with one more axis of the batch in front."""
        return self._with(batch_shape=(size, *self.batch_shape))

    def of_rows(self, rows: int) -> Space:
        """The space of a batch whose first axis has another length."""
        return self._with(batch_shape=(rows, *self.batch_shape[1:]))

    def _with(self, **changed: Any) -> Space:
        """This space, some of its attributes changed."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return Space(**(own | changed))

    # Vectors.

    def add(self, u: Vec, v: Vec) -> Vec:
        """The sum u + v."""
        return tuple(map(add, u, v))

    def subtract(self, u: Vec, v: Vec) -> Vec:
        """The difference u − v."""
        return tuple(map(sub, u, v))

    def negative(self, u: Vec) -> Vec:
        """The vector −u."""
        return tuple(map(neg, u))

    def zeros(self, like: Vec) -> Vec:
        """The vector 0."""
        return tuple(map(self.xp.zeros_like, like))

    def scale(self, coefficient: Array | float, u: Vec) -> Vec:
        """The product of a number, or of one number per sample, with u."""
        # NumPy's double is one too, but promotes like an array.
        if type(coefficient) is float:
            return u if coefficient == 1.0 else tuple([coefficient * a for a in u])
        return tuple([self.factor(coefficient, leaf) * leaf for leaf in u])

    def axpy(self, coefficient: Array, u: Vec, v: Vec) -> Vec:
        """The vector v + c u, with one coefficient c per sample."""
        return tuple(map(lambda a, b: b + self.factor(coefficient, a) * a, u, v))

    def accumulate(self, onto: Vec, coefficient: Array, u: Vec) -> Vec:
        """The vector `onto` + c u; `onto` is ours, and may be written to."""
        return tuple(map(lambda b, a: self._accumulated(b, coefficient, a), onto, u))

    def _accumulated(self, onto: Array, coefficient: Array, leaf: Array) -> Array:
        if not self._is_large(leaf):
            return self.backend.accumulate(onto, self.factor(coefficient, leaf), leaf)
        add = lambda b, a: b + self.factor(coefficient, a) * a
        return self.backend.filled(onto, add, (onto, leaf), self.entry_axes(leaf))

    def _is_large(self, leaf: Array) -> bool:
        """Whether operations on the leaf are better done piece by piece."""
        piece = self.backend.piece(leaf)
        return piece is not None and math.prod(leaf.shape[self.batch_ndim :]) > piece

    def copy(self, u: Vec) -> Vec:
        """A copy of u, which is ours."""
        return tuple([1.0 * leaf for leaf in u])

    def clipped(self, u: Vec, bound: Array) -> Vec:
        """The vector u, each entry shortened to the length `bound` of its sample."""
        xp = self.xp

        def of_leaf(leaf: Array) -> Array:
            size = xp.abs(leaf)
            most = self.cast(self.spread(bound, leaf), size.dtype)
            excess = size > most
            factor = most / xp.where(excess, size, xp.ones_like(size))
            return xp.where(excess, leaf * self.cast(factor, leaf.dtype), leaf)

        return tuple(map(of_leaf, u))

    def entrywise(self, function: Callable[..., Array], *vectors: Vec) -> Vec:
        """The vector ``function(*vectors)``, entry by entry.

        `function` takes leaves, or large ones piece by piece, with their entries in one
        axis.
        """
        return tuple(map(partial(self._entrywise, function), *vectors))

    def _entrywise(self, function: Callable[..., Array], *leaves: Array) -> Array:
        first = leaves[0]
        if not self._is_large(first):
            return function(*leaves)
        onto, axes = self.xp.empty_like(first), self.entry_axes(first)
        return self.backend.filled(onto, function, leaves, axes)

    def formed(self, u: Vec | Difference) -> Vec:
        """The vector u, its entries computed if they are not yet."""
        return self.subtract(*u) if isinstance(u, Difference) else u

    def where(self, mask: Array | None, u: Vec, v: Vec) -> Vec:
        """Per sample, u where `mask` holds and v elsewhere; without a mask, u."""
        if mask is None:
            return u
        where, spread = self.xp.where, self.spread
        return tuple(map(lambda a, b: where(spread(mask, a), a, b), u, v))

    def either(self, mask: Array, u: Vec, v: Vec) -> Vec:
        """As :meth:`where`; u or v itself where all samples are known to take it."""
        if self.backend.known_here(mask):
            return u
        return v if self.backend.known_here(~mask) else self.where(mask, u, v)

    def mask(self, mask: Array, u: Vec) -> Vec:
        """The vector u, zero in the samples where `mask` does not hold."""
        make = partial(self.xp.zeros, (), **self.place)
        return self.where(mask, u, tuple([make(dtype=leaf.dtype) for leaf in u]))

    # Inner products.

    def dot(self, u: Vec, v: Vec | Difference) -> Array:
        """The inner product Re⟨u, v⟩ of each sample."""
        return self.dots((u, v))[0]

    def dots(self, *pairs: tuple[Vec | Difference, Vec | Difference]) -> list[Array]:
        """The inner products Re⟨u, v⟩ of several pairs, in one message."""
        return self.reduced([self.local_dot(u, v) for u, v in pairs])

    def local_dot(self, u: Vec | Difference, v: Vec | Difference) -> Array:
        """The inner product of what is here."""
        if isinstance(u, Difference):
            assert u is v
            norm = self._local_norm(u, "euclidean")
            return norm * norm
        if isinstance(v, Difference):
            return self.contracted(self._by_difference, u, *v)
        return self.contracted(self._vecdot, u, v)

    def contracted(self, by: Callable[..., Array], *vectors: Vec) -> Array:
        """The weighted sum of what is made `by` a function of each leaf."""
        terms = list(map(by, *vectors))
        if self.weights is not None:
            terms = list(map(mul, self.weights, terms))
        return self._total(terms)

    def _by_difference(self, a: Array, new: Array, old: Array) -> Array:
        pieces = self.backend.pieces((a, new, old), self.entry_axes(a))
        return reduce(add, [self._vecdot(u, v - w) for u, v, w in pieces])

    def _vecdot(self, a: Array, b: Array) -> Array:
        wide, axes = self.wide, self.entry_axes(a)
        return self.real(self.backend.inner(wide(a), wide(b), axes))

    def reduced(self, arrays: list[Array], reduction: Reduction = "sum") -> list[Array]:
        """The sums, or largest, over all parts of arrays (batch) or (batch, m)."""
        if not self.backend.is_partial or not arrays:
            return arrays
        axis, whole, start = self.batch_ndim, [], 0
        columns = [a if a.ndim > axis else a[..., None] for a in arrays]
        joint = self.backend.reduced(self.xp.concat(columns, axis=-1), reduction)
        for array, rows in zip(arrays, columns, strict=True):
            part = joint[..., start : start + rows.shape[-1]]
            start += rows.shape[-1]
            whole.append(part if array.ndim > axis else part[..., 0])
        return whole

    # Norms.

    def norm(self, u: Vec | Difference, kind: Kind = "euclidean") -> Array:
        """The norm of each sample over all leaves, ``"euclidean"`` or ``"max"``."""
        return self._norms([(u, kind)])[0]

    def norms(self, *vectors: Vec | Difference) -> tuple[Array, ...]:
        """The Euclidean norms of several vectors, in one message."""
        return self._norms([(u, "euclidean") for u in vectors])

    def _norms(
        self, pairs: Sequence[Measured], unit: Array | None = None
    ) -> tuple[Array, ...]:
        """The norms of whole vectors, each of its kind, calculated in a `unit`."""
        norms = tuple([self._local_norm(u, kind, unit) for u, kind in pairs])
        if not self.backend.is_partial:
            return norms
        flags = [kind == "max" for _, kind in pairs]
        largest = [n for n, is_max in zip(norms, flags, strict=True) if is_max]
        squares = [n * n for n, is_max in zip(norms, flags, strict=True) if not is_max]
        most, sums = iter(self.reduced(largest, "max")), iter(self.reduced(squares))
        return tuple([next(most) if f else next(sums) ** 0.5 for f in flags])

    def _local_norm(
        self, u: Vec | Difference, kind: Kind, unit: Array | None = None
    ) -> Array:
        if isinstance(kind, tuple):
            return self._segment_norms(self.formed(u)[0], kind, unit)
        if isinstance(u, Difference):
            leaves = zip(*u, strict=True)
            norms = [self._norm_in_pieces(pair, kind, unit) for pair in leaves]
        elif unit is None and kind == "euclidean":
            norms = [self._leaf_norm(leaf, kind) for leaf in u]
        else:
            norms = [self._norm_in_pieces((leaf,), kind, unit) for leaf in u]
        return self._joined(norms, kind)

    def _leaf_norm(self, leaf: Array, kind: str, unit: Array | None = None) -> Array:
        wide = self.wide(leaf)
        if unit is not None:
            wide = wide / self.factor(unit, wide)
        norm = self.backend.norm(wide, kind, self.entry_axes(leaf))
        return self.cast(norm, self.dtype)

    def _segment_norms(
        self, row: Array, sizes: tuple[int, ...], unit: Array | None
    ) -> Array:
        """The norm of each segment, calculated in a `unit` of its own."""
        xp, wide = self.xp, self.cast(row, self.dtype)
        if unit is not None:
            index = np.repeat(np.arange(len(sizes)), sizes)
            wide = wide / xp.take(unit, xp.asarray(index, **self.place), axis=-1)
        return xp.sqrt(self.backend.segment_sums(wide * wide, sizes))

    def _norm_in_pieces(self, leaves: Vec, kind: str, unit: Array | None) -> Array:
        """The norm of a leaf, or of the difference of two."""
        pieces = self.backend.pieces(leaves, self.entry_axes(leaves[0]))
        norms = [self._leaf_norm(reduce(sub, piece), kind, unit) for piece in pieces]
        return self._joined(norms, kind)

    def _joined(self, norms: Sequence[Array], kind: str) -> Array:
        """The norm of a vector whose parts have these `norms`."""
        if len(norms) == 1:
            return norms[0]
        if kind == "max":
            return reduce(self.xp.maximum, norms)
        return self.xp.sqrt(self._total([norm * norm for norm in norms]))

    def safe_norm(self, u: Vec) -> Array:
        """The norm of each sample, where squares may under- or overflow."""
        return self._norm_anew(u, "euclidean", self.norm(u))

    def _norm_anew(self, u: Vec | Difference, kind: Kind, norm: Array) -> Array:
        """The norm, in powers of two where squares were lost from `norm`."""
        whole = not (self.backend.is_partial or isinstance(u, Difference))
        whole = whole and self.backend.is_readable(norm)
        if whole and all(self.backend.known_here(leaf == 0.0) for leaf in u):
            return norm
        where, (large, least) = self.xp.where, self._units
        unit = where(norm < self.small, least, self.one)
        unit = where(norm == self.xp.inf, large, unit)
        return unit * self._norms([(u, kind)], unit)[0]

    @cached_property
    def _units(self) -> tuple[Array, Array]:
        """What a norm whose squares overflowed is calculated in, and a small one."""
        exponent = math.frexp(float(self._coarsest.max))[1]
        powers = 3 * exponent // 4, math.frexp(self.small)[1] - (exponent - 8) // 2
        kind, make = (self.xp, self.dtype, self.place), self.backend.constant
        large, least = [make(2.0**power, *kind) for power in powers]
        return large, least

    @cached_property
    def _double(self) -> Space | None:
        """The space of the same vectors in double precision, where no square of a
        single one under- or overflows; None where it costs less to look for such as do.
        """
        defers = self.backend.defers(self.place.get("device"))
        if self.dtype != self.xp.float32 or not defers:
            return None
        wide = {False: self.xp.float64, True: self.xp.complex128}
        dtypes = tuple([wide[is_complex] for is_complex in self.complex_leaves])
        return self._with(dtypes=dtypes, dtype=self.xp.float64)

    def _norms_in(self, space: Space, pairs: Sequence[Measured]) -> tuple[Array, ...]:
        """The norms, as they are calculated in the precision of another space."""
        as_there = partial(map, self.xp.astype)
        known = [
            (tuple(as_there(self.formed(u), space.dtypes)), kind) for u, kind in pairs
        ]
        return tuple(map(self.as_coefficient, space._norms(known)))

    def sound_norms(self, pairs: Sequence[Measured]) -> tuple[Array, ...]:
        """The norms of vectors, each of its kind, safe from under- and overflow."""
        if self._double is not None:
            return self._norms_in(self._double, pairs)
        norms = self._norms(pairs)
        # Squares that under- or overflow must not pass for a size of zero, or none.
        euclidean = [k for k, (_, kind) in enumerate(pairs) if kind != "max"]
        if not euclidean:
            return norms
        lost = [(norms[k] < self.small) | (norms[k] == self.xp.inf) for k in euclidean]

        def anew() -> tuple[Array, ...]:
            safe = list(norms)
            for k, mask in zip(euclidean, lost, strict=True):
                if not self.backend.known_here(~mask):
                    safe[k] = self._norm_anew(*pairs[k], norms[k])
            return tuple(safe)

        some = reduce(or_, [self._all_entries(mask, self.xp.any) for mask in lost])
        return self.backend.replaced_where(norms, some, anew)
