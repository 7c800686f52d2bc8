"""The shapes and dtypes of states, and of the coefficients that go with them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add, and_
from typing import Any

import numpy as np

from fixedpoint.backend import Array, Backend, Vec, joined


def _constant(value: float) -> cached_property[Array]:
    """A coefficient that a space makes once."""
    return cached_property(
        lambda space: space.backend.constant(value, space.xp, space.dtype, space.place)
    )


# The bits of single and half precision.
_BITS = 24, 11


@dataclass(frozen=True, eq=False)
class Layout:
    """How vectors lie in arrays: the shapes, dtypes and precision of leaves and of
    coefficients.

    A vector is a tuple of leaves, a batch of `batch_shape` independent ones at once. A
    leaf keeps the shape that the user gave it: the axes of the batch, then those of its
    entries. Coefficients, as inner products and norms, have the shape of the batch and
    are real, of single precision or better.

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
    """

    backend: Backend
    xp: Any
    batch_shape: tuple[int, ...]
    dtypes: tuple[Any, ...]
    dtype: Any
    device: Any
    shapes: tuple[tuple[int, ...], ...]

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
        if not self.backend.is_partial:
            return whole
        if all(mask.ndim == self.batch_ndim for mask in masks):
            return whole
        return self.backend.reduced(self.xp.astype(~whole, self.xp.int32), "max") == 0

    def _all_entries(self, leaf: Array, of: Callable[..., Array]) -> Array:
        axes = tuple(range(self.batch_ndim, leaf.ndim))
        return of(leaf, axis=axes[0] if len(axes) == 1 else axes) if axes else leaf

    def mean_over_entries(self, u: Sequence[Array]) -> Array:
        """The mean of each sample's coefficients, every leaf of equal weight."""
        means = [self._all_entries(a, self.xp.mean) for a in u]
        return self._total(means) / len(means)

    def _total(self, terms: Sequence[Array]) -> Array:
        if len(terms) == 1:
            return self.cast(terms[0], self.dtype)
        return reduce(add, [self.cast(term, self.dtype) for term in terms])

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

    def magnitudes(self, leaf: Array) -> Array:
        """The size of each entry of a leaf, as a coefficient."""
        return self.cast(self.xp.abs(leaf), self.dtype)

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

    @cached_property
    def shorter(self) -> int:
        """The bits of the next shorter arithmetic, in which a function may be computed
        though its states have more; 0 if there is none.
        """
        own = 1.0 - math.log2(self.rounding)
        return next((bits for bits in _BITS if bits < own), 0)

    def is_shorter(self, u: Vec) -> Array:
        """Whether all entries of each sample seem to come out of that arithmetic.

        Simple numbers, of far fewer bits, need not.
        """
        bits, entries = self.shorter, self.ravel(u)
        if not bits:
            return self.full(0.0) > 0.0
        simple = self.are_of(entries, (2 * bits) // 3)
        return self.are_of(entries, bits) & ~simple

    def are_of(self, entries: Array, bits: int) -> Array:
        """Whether so many bits are enough for all entries, by Veltkamp's splitting."""
        own = round(1.0 - math.log2(float(self.xp.finfo(entries.dtype).eps)))
        large = (2.0 ** (own - bits) + 1.0) * entries
        return self.xp.all(large - (large - entries) == entries, axis=-1)
