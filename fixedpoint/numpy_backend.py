"""What the core asks of NumPy: in place, and without a search for the namespace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fixedpoint.backend import Array, Backend, joined

# Entries that lie in a cache together.
_CACHED = 2**16


class NumpyBackend(Backend):
    """NumPy's arrays, and numbers, which become such."""

    def namespace(self, array: Array) -> Any:
        """NumPy, for its own arrays."""
        if isinstance(array, (np.ndarray, np.generic)):
            return np
        return super().namespace(array)

    def is_array(self, leaf: Any) -> bool:
        """Whether `leaf` is an array without a mask, which would be lost."""
        return super().is_array(leaf) and not isinstance(leaf, np.ma.MaskedArray)

    def leaf(self, value: Any) -> Array:
        """`value` as an array, if it is a number; integers become floats, too."""
        if isinstance(value, bool):
            return value
        if isinstance(value, (int, float, complex, np.generic)):
            value = np.asarray(value)
        if isinstance(value, np.ndarray) and not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))  # as f returns it
        return value.astype(float) if _is_whole(value) else value

    def known_here(self, mask: Array) -> bool:
        """Whether all of `mask` is true."""
        return bool(mask.all())

    def any(self, mask: Array) -> Any:
        """Whether any of `mask` is true."""
        return self.agreed(bool(mask.any()))

    def write_scaled(
        self, array: Array, index: Any, coefficient: Array, value: Array
    ) -> tuple[Array, Array]:
        """`array` with c·`value` at `index`, and that product, which is a view."""
        return array, np.multiply(value, coefficient, out=array[index])

    def solve(self, matrices: Array, rights: Array) -> Array:
        """The solutions of small systems; those of extended precision in double."""
        if not _is_long(matrices):
            return super().solve(matrices, rights)
        found = super().solve(matrices.astype(float), rights.astype(float))
        return found.astype(rights.dtype)

    def singular(self, matrices: Array) -> tuple[Array, Array, Array]:
        """The thin singular value decompositions, of extended precision in double."""
        if not _is_long(matrices):
            return super().singular(matrices)
        left, values, right = super().singular(matrices.astype(float))
        kind = matrices.dtype
        return left.astype(kind), values.astype(kind), right.astype(kind)

    def concatenated(self, leaves: Sequence[Array], batch_ndim: int) -> Array:
        """The entries of the leaves in one axis."""
        if batch_ndim == 0:
            return np.concatenate(leaves, axis=None)
        return super().concatenated(leaves, batch_ndim)

    def unbound(self, array: Array, axis: int) -> Sequence[Array]:
        """Views of an array, one for each index of an axis."""
        if axis == 0 and array.ndim > 1:
            return list(array)
        return super().unbound(array, axis)

    def segment_sums(self, array: Array, sizes: Sequence[int]) -> Array:
        """The sum of each segment of the last axis."""
        return np.add.reduceat(array, np.cumsum((0, *sizes[:-1])), axis=-1)

    def inner(self, a: Array, b: Array, axes: int) -> Array:
        """The inner product ⟨a, b⟩ over the last `axes` axes."""
        return np.vdot(a, b) if a.ndim == axes else super().inner(a, b, axes)

    def norm(self, array: Array, kind: str, axes: int = 1) -> Array:
        """The ``"euclidean"`` or ``"max"`` norm over the last `axes` axes."""
        if kind == "max":
            return super().norm(array, kind, axes)
        return np.sqrt(self.inner(array, array, axes).real)

    def products(self, rows: Array, vector: Array, axes: int) -> Array:
        """The inner products ⟨v, hⱼ⟩ with each of the rows of a history."""
        if vector.ndim != axes:
            return super().products(rows, vector, axes)
        return np.matmul(joined(rows, axes), vector.conj().reshape(-1))

    def minus_combination(
        self, onto: Array, weights: Array, rows: Array, axes: int
    ) -> Array:
        """The array `onto` − Σⱼ cⱼhⱼ of the rows of a history."""
        if onto.ndim != axes:
            return super().minus_combination(onto, weights, rows, axes)
        total = np.matmul(weights, joined(rows, axes)).reshape(onto.shape)
        return np.subtract(onto, total, out=total)

    def piece(self, array: Array) -> int | None:
        """What lies in a cache together."""
        del array
        return _CACHED

    def write_secant(
        self,
        residuals: Array,
        images: Array,
        index: Any,
        z0: Array,
        g0: Array,
        z1: Array,
        g1: Array,
    ) -> tuple[Array, Array, Array, Array]:
        """Both differences in place, with no array in between."""
        change, image = residuals[index], images[index]
        np.subtract(g1, g0, out=change)
        np.subtract(z1, z0, out=image)
        np.add(image, change, out=image)
        return residuals, images, change, image

    def conform(self, leaf: Array, like: Array) -> Array:
        """`leaf`, an output of f; integers in the dtype that the state has."""
        return leaf.astype(like.dtype) if _is_whole(leaf) else leaf


def _is_long(array: Array) -> bool:
    """Whether this is of extended precision, in which LAPACK does not calculate."""
    return bool(array.dtype == np.longdouble != np.float64)


def _is_whole(value: Any) -> bool:
    """Whether this is an array of integers."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu"
