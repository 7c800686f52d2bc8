"""The vector space of states: the only code that touches leaves."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, partial, reduce
from operator import add, and_, mul, neg, or_, sub
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fixedpoint.backend import Array, Backend, Vec, joined
from fixedpoint.communicator import Reduction


class Difference(NamedTuple):
    """The vector `new` − `old`, of which inner products and norms are wanted alone."""

    new: Vec
    old: Vec


# The Euclidean or the largest norm; or the Euclidean ones of segments of these sizes.
Kind = str | tuple[int, ...]

# A vector, and which norm of it.
Measured = tuple["Vec | Difference", Kind]


def _constant(value: float) -> cached_property[Array]:
    """A coefficient that a space makes once."""
    return cached_property(
        lambda space: space.backend.constant(value, space.xp, space.dtype, space.place)
    )


@dataclass(frozen=True, eq=False)
class Space:
    """Vectors that are tuples of leaves, a batch of `batch_shape` independent ones at
    once.

    A leaf keeps the shape that the user gave it: the axes of the batch, then those of
    its entries. Inner products and norms run over all leaves of a sample; they, and all
    coefficients, have the shape of the batch and are real, of single precision or
    better. A complex leaf counts as its real and imaginary parts: the inner product is
    Re⟨u, v⟩.

    Parameters
    ----------
    backend : Backend
        The array library's adapter.
    xp : module
        The array-API namespace of the leaves.
    batch_shape : tuple of int
        The axes that all leaves have in common.
    dtypes : tuple
        The dtype of each leaf.
    dtype : dtype
        The real dtype of coefficients and norms.
    device : device
        Where the coefficients live.
    shapes : tuple of tuple of int
        The shape of each leaf of one sample.
    weights : tuple of float or None
        What the inner product multiplies each leaf's part by; None stands for ones.
    """

    backend: Backend
    xp: Any
    batch_shape: tuple[int, ...]
    dtypes: tuple[Any, ...]
    dtype: Any
    device: Any
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...] | None = None

    # Whether this is one sample of one real array of NumPy's.
    is_bare: ClassVar[bool] = False

    @classmethod
    def of(cls, backend: Backend, like: Vec, batch_ndim: int) -> Space:
        """The space of states shaped as `like`."""
        alone = backend.communicator is None and not backend.is_traced(like)
        known = (_known_space if alone else _space)(
            backend,
            backend.namespace(like[0]),
            tuple(like[0].shape[:batch_ndim]),
            tuple([leaf.dtype for leaf in like]),
            backend.device(like[0]),
            tuple([tuple(leaf.shape[batch_ndim:]) for leaf in like]),
        )
        return copy(known)  # each call has work space of its own

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

    # Axes.

    @cached_property
    def batch_ndim(self) -> int:
        """How many axes index samples."""
        return len(self.batch_shape)

    def entry_axes(self, leaf: Array) -> int:
        """How many axes index the entries of a sample."""
        axes: int = leaf.ndim - self.batch_ndim
        return axes

    def every(self, masks: Sequence[Array]) -> Array:
        """Whether all masks hold in every entry of each sample."""
        whole = reduce(and_, [self._all_entries(mask, self.xp.all) for mask in masks])
        if not self.backend.is_partial or masks[0].ndim == self.batch_ndim:
            return whole
        return self.backend.reduced(self.xp.astype(~whole, self.xp.int32), "max") == 0

    def _all_entries(self, leaf: Array, of: Callable[..., Array]) -> Array:
        axes = tuple(range(self.batch_ndim, leaf.ndim))
        return of(leaf, axis=axes[0] if len(axes) == 1 else axes) if axes else leaf

    def mean_over_entries(self, u: Sequence[Array]) -> Array:
        """The mean of each sample's coefficients, every leaf of equal weight."""
        means = [self._all_entries(a, self.xp.mean) for a in u]
        return self._total(means) / len(means)

    def spread(self, array: Array, leaf: Array) -> Array:
        """An array of the batch's shape, to broadcast with a leaf."""
        missing = leaf.ndim - array.ndim
        return array[(..., *(None,) * missing)] if missing and array.ndim else array

    def rows(self, u: Vec) -> Vec:
        """The entries of each leaf in one axis."""
        return tuple([joined(leaf, self.entry_axes(leaf)) for leaf in u])

    def shaped(self, rows: Vec) -> Vec:
        """The inverse of :meth:`rows`."""
        shaped = lambda a, shape: self.xp.reshape(a, (*self.batch_shape, *shape))
        return tuple(map(shaped, rows, self.shapes))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The entries of each leaf of one sample."""
        return tuple(map(math.prod, self.shapes))

    @property
    def size(self) -> int:
        """Real and complex entries of one sample, over all leaves."""
        return sum(self.sizes)

    @cached_property
    def real_size(self) -> int:
        """Real entries of one sample: a complex entry counts twice."""
        pairs = zip(self.sizes, self.complex_leaves, strict=True)
        return sum(2 * size if is_complex else size for size, is_complex in pairs)

    @cached_property
    def dimension(self) -> int:
        """Unknowns of a sample; where only a part of them is here, ``sys.maxsize``."""
        return sys.maxsize if self.backend.is_partial else self.real_size

    # Dtypes.

    def wide(self, leaf: Array) -> Array:
        """`leaf` in at least single precision."""
        if not self._narrow or self.xp.finfo(leaf.dtype).bits >= 32:
            return leaf
        return self.xp.astype(leaf, self.dtype)

    @cached_property
    def _narrow(self) -> bool:
        return any(self.xp.finfo(dtype).bits < 32 for dtype in self.dtypes)

    @cached_property
    def complex_leaves(self) -> tuple[bool, ...]:
        """Which leaves are complex."""
        isdtype = self.xp.isdtype
        return tuple(isdtype(dtype, "complex floating") for dtype in self.dtypes)

    @cached_property
    def _complex(self) -> bool:
        return any(self.complex_leaves)

    @cached_property
    def _uniform(self) -> bool:
        return all(dtype == self.dtype for dtype in self.dtypes)

    def real(self, array: Array) -> Array:
        """The real part."""
        if self._complex and self.xp.isdtype(array.dtype, "complex floating"):
            return self.xp.real(array)
        return array

    def cast(self, value: Array, dtype: Any) -> Array:
        """An array in a dtype."""
        return value if value.dtype == dtype else self.xp.astype(value, dtype)

    def as_coefficient(self, array: Array) -> Array:
        """An array in the dtype of coefficients."""
        return self.cast(array, self.dtype)

    def as_leaf(self, row: Array, leaf: Array) -> Array:
        """Coefficients, one for each entry of a leaf, shaped as one of its samples."""
        row = self.cast(row, leaf.dtype)
        return self.xp.reshape(row, leaf.shape[self.batch_ndim :])

    def factor(self, coefficient: Array, leaf: Array) -> Array:
        """A coefficient per sample, to multiply the entries of `leaf`."""
        if self.batch_shape:
            coefficient = self.spread(coefficient, leaf)
        return coefficient if self._uniform else self.cast(coefficient, leaf.dtype)

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
        return self.where(mask, u, self.zeros(u))

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
        return xp.sqrt(self.backend.segmented(wide * wide, sizes, "sum"))

    def _norm_in_pieces(self, leaves: Vec, kind: str, unit: Array | None) -> Array:
        """The norm of a leaf, or of the difference of two."""
        pieces = self.backend.pieces(leaves, self.entry_axes(leaves[0]))
        norms = [self._leaf_norm(reduce(sub, piece), kind, unit) for piece in pieces]
        return self._joined(norms, kind)

    def magnitudes(self, leaf: Array) -> Array:
        """The size of each entry of a leaf, as a coefficient."""
        return self.cast(self.xp.abs(leaf), self.dtype)

    def safe_norm(self, u: Vec) -> Array:
        """The norm of each sample, where squares may under- or overflow."""
        return self._norm_anew(u, "euclidean", self.norm(u))

    def _norm_anew(self, u: Vec | Difference, kind: Kind, norm: Array) -> Array:
        """The norm, in powers of two where squares were lost from `norm`."""
        whole = not (self.backend.is_partial or isinstance(u, Difference))
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

    def sound_norms(self, pairs: Sequence[Measured]) -> tuple[Array, ...]:
        """The norms of vectors, each of its kind, safe from under- and overflow."""
        norms = self._norms(pairs)
        # Squares that under- or overflow must not pass for a size of zero, or none.
        euclidean = [k for k, (_, kind) in enumerate(pairs) if kind != "max"]
        if not euclidean:
            return norms
        lost = [(norms[k] < self.small) | (norms[k] == self.xp.inf) for k in euclidean]
        some = reduce(or_, [self._all_entries(mask, self.xp.any) for mask in lost])

        def anew() -> tuple[Array, ...]:
            safe = list(norms)
            for k, mask in zip(euclidean, lost, strict=True):
                if not self.backend.known_here(~mask):
                    safe[k] = self._norm_anew(*pairs[k], norms[k])
            return tuple(safe)

        return self.backend.replaced_where(norms, some, anew)

    def _joined(self, norms: Sequence[Array], kind: str) -> Array:
        """The norm of a vector whose parts have these `norms`."""
        if len(norms) == 1:
            return norms[0]
        if kind == "max":
            return reduce(self.xp.maximum, norms)
        return self.xp.sqrt(self._total([norm * norm for norm in norms]))

    def _total(self, terms: Sequence[Array]) -> Array:
        if len(terms) == 1:
            return self.cast(terms[0], self.dtype)
        return reduce(add, [self.cast(term, self.dtype) for term in terms])

    # Coefficients.

    def full(self, value: float, shape: tuple[int, ...] = ()) -> Array:
        """An array of coefficients, of the shape of the batch followed by `shape`."""
        return self.xp.full(
            (*self.batch_shape, *shape), value, dtype=self.dtype, **self.place
        )

    # Without axes: 0, 1, ∞, and what is not a number.
    zero, one = _constant(0.0), _constant(1.0)
    infinity, unknown = _constant(math.inf), _constant(math.nan)

    def identity(self, size: int) -> Array:
        """A unit matrix of coefficients for each sample."""
        eye = self.xp.eye(size, dtype=self.dtype, **self.place)
        lead = (1,) * len(self.batch_shape)
        return self.full(0.0, (size, size)) + self.xp.reshape(eye, (*lead, size, size))

    def ratio(self, a: Array, b: Array) -> Array:
        """The quotients a/b, zero where b is."""
        if isinstance(b, np.generic):
            return a / b if b else self.zero
        where, divides = self.xp.where, b != 0
        return where(divides, a / where(divides, b, self.one), self.zero)

    def select(self, mask: Array, a: Array, b: Array) -> Array:
        """The coefficients a where `mask` holds, and b elsewhere."""
        if isinstance(mask, (bool, np.bool_)):
            return a if mask else b
        return self.xp.where(mask, a, b)

    @cached_property
    def place(self) -> dict[str, Any]:
        """Where the coefficients live, as a keyword of what makes arrays."""
        return {} if self.device is None else {"device": self.device}

    @cached_property
    def workspaces(self) -> dict[str, Any]:
        """What a method writes to again and again."""
        return {}

    # Dense algebra, for small systems alone: all real entries of a sample in one axis.

    def ravel(self, u: Vec) -> Array:
        """The real entries of u in one axis, as coefficients: (batch, n)."""
        xp, parts = self.xp, []
        for row, is_complex in zip(self.rows(u), self.complex_leaves, strict=True):
            parts += [xp.real(row), xp.imag(row)] if is_complex else [row]
        parts = [self.cast(part, self.dtype) for part in parts]
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)

    def unravel(self, entries: Array) -> Vec:
        """The inverse of :meth:`ravel`."""
        leaves, start = [], 0
        kinds = zip(self.sizes, self.dtypes, self.complex_leaves, strict=True)
        for size, dtype, is_complex in kinds:
            leaf = self.cast(entries[..., start : start + size], dtype)
            start += size
            if is_complex:
                imaginary = self.cast(entries[..., start : start + size], dtype)
                leaf = leaf + self.xp.asarray(1j, dtype=dtype) * imaginary
                start += size
            leaves.append(leaf)
        return self.shaped(tuple(leaves))

    # Precision.

    @property
    def default_rtol(self) -> float:
        """The relative tolerance where none is named."""
        return max(1e-6, 10 * self.rounding)

    @cached_property
    def precision(self) -> float:
        """The unit roundoff of the coefficients."""
        return float(self.xp.finfo(self.dtype).eps)

    @cached_property
    def small(self) -> float:
        """A norm below which the squares that make it up may have been lost."""
        info = self._coarsest
        return math.sqrt(float(info.smallest_normal) * self.size) / float(info.eps)

    @cached_property
    def smallest(self) -> float:
        """A norm whose square keeps no digits that can be relied on."""
        return 16.0 * math.sqrt(float(self._coarsest.smallest_normal))

    @cached_property
    def _coarsest(self) -> Any:
        """What is known of the coarsest dtype that inner products are taken in."""
        infos = [self.xp.finfo(dtype) for dtype in (*self.dtypes, self.dtype)]
        return max((i for i in infos if i.bits >= 32), key=lambda i: float(i.eps))

    @cached_property
    def rounding(self) -> float:
        """The unit roundoff of the coarsest leaf."""
        return max(float(self.xp.finfo(dtype).eps) for dtype in self.dtypes)


class BareSpace(Space):
    """The space of one sample of one real array of NumPy's, all of it here.

    A few plain operations do here what takes many otherwise.
    """

    is_bare = True

    def spread(self, array: Array, leaf: Array) -> Array:
        """The array: there is one sample."""
        del leaf
        return array

    def factor(self, coefficient: Array, leaf: Array) -> Array:
        """The coefficient."""
        del leaf
        return coefficient

    def every(self, masks: Sequence[Array]) -> Array:
        """Whether all masks hold in every entry."""
        return reduce(and_, [mask.all() for mask in masks])

    def axpy(self, coefficient: Array, u: Vec, v: Vec) -> Vec:
        """The vector v + c u."""
        total = coefficient * u[0]
        total += v[0]
        return (total,)

    def scale(self, coefficient: Array | float, u: Vec) -> Vec:
        """The product of a number with u."""
        if type(coefficient) is float:
            return super().scale(coefficient, u)
        return (coefficient * u[0],)

    def local_dot(self, u: Vec | Difference, v: Vec | Difference) -> Array:
        """The inner product."""
        if isinstance(u, Difference) or isinstance(v, Difference):
            return super().local_dot(u, v)
        return np.vdot(u[0], v[0])

    def norm(self, u: Vec | Difference, kind: Kind = "euclidean") -> Array:
        """The norm of u."""
        return self._local_norm(u, kind)

    def sound_norms(self, pairs: Sequence[Measured]) -> tuple[Array, ...]:
        """The norms of vectors, each of its kind, safe from under- and overflow."""
        return tuple([self._sound_norm(u, kind) for u, kind in pairs])

    def _sound_norm(self, u: Vec | Difference, kind: Kind) -> Array:
        if kind != "euclidean":
            return super().sound_norms([(u, kind)])[0]
        norm = self._local_norm(u, kind)
        lost = norm < self.small or norm == math.inf
        return self._norm_anew(u, kind, norm) if lost else norm

    def _local_norm(
        self, u: Vec | Difference, kind: Kind, unit: Array | None = None
    ) -> Array:
        if unit is not None or kind != "euclidean" or not self._is_short:
            return super()._local_norm(u, kind, unit)
        (leaf,) = self.formed(u)
        return np.sqrt(np.vdot(leaf, leaf))

    @cached_property
    def _is_short(self) -> bool:
        """Whether an array is no longer than what a cache holds."""
        piece = self.backend.piece(np.empty(0))
        return piece is not None and self.size <= piece

    def magnitudes(self, leaf: Array) -> Array:
        """The size of each entry."""
        return np.abs(leaf)

    def full(self, value: float, shape: tuple[int, ...] = ()) -> Array:
        """An array of coefficients of a shape."""
        return np.full(shape, value, dtype=self.dtype)

    def identity(self, size: int) -> Array:
        """A unit matrix of coefficients."""
        return np.eye(size, dtype=self.dtype)

    def ravel(self, u: Vec) -> Array:
        """The entries of u in one axis."""
        (leaf,) = u
        return leaf if leaf.ndim == 1 else leaf.reshape(-1)

    def unravel(self, entries: Array) -> Vec:
        """The inverse of :meth:`ravel`."""
        return (entries.reshape(self.shapes[0]),)


def _space(
    backend: Backend,
    xp: Any,
    batch_shape: tuple[int, ...],
    dtypes: tuple[Any, ...],
    device: Any,
    shapes: tuple[tuple[int, ...], ...],
) -> Space:
    """The space of states of these dtypes and shapes."""
    dtype = _coefficient_dtype(xp, dtypes)
    alone = not batch_shape and len(shapes) == 1 and backend.communicator is None
    plain = xp is np and dtypes == (dtype,) and dtype != np.longdouble
    kind = BareSpace if alone and plain else Space
    return kind(backend, xp, batch_shape, dtypes, dtype, device, shapes)


@lru_cache(maxsize=64)
def _known_space(*attributes: Any) -> Space:
    """The same, made once, with what every solve asks of it: calls are often alike."""
    space = _space(*attributes)
    _ = space.dimension, space.small, space.rounding, space.precision
    return space


def _coefficient_dtype(xp: Any, dtypes: tuple[Any, ...]) -> Any:
    """The widest real one of the dtypes, single precision at least."""
    if xp is np and any(dtype in (np.longdouble, np.clongdouble) for dtype in dtypes):
        return np.longdouble
    # A namespace may lack one, and its dtypes compare with nothing but dtypes.
    double = [getattr(xp, n) for n in ("float64", "complex128") if hasattr(xp, n)]
    wide = any(dtype in double for dtype in dtypes)
    return xp.float64 if wide else xp.float32
