"""The space that a state belongs to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import cached_property, lru_cache, reduce
from operator import and_
from typing import Any

import numpy as np

from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.space import Difference, Kind, Measured, Space


def space_of(backend: Backend, like: Vec, batch_ndim: int) -> Space:
    """The space of states shaped as `like`, whose first axes index samples."""
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
