"""Entries and axes of arrays in a trace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fixedpoint.backend import Array


def written(array: Array, index: Any, value: Array) -> Array:
    """The array with `value` at `index`, ``(..., numbers or slices)``."""
    update = jnp.expand_dims(value, _single(array, index)).astype(array.dtype)
    return jax.lax.dynamic_update_slice(array, update, _starts(array, index))


def entries(array: Array, index: Any) -> Array:
    """The entries at `index`."""
    single = _single(array, index)
    sizes = [1 if axis in single else size for axis, size in enumerate(array.shape)]
    part = jax.lax.dynamic_slice(array, _starts(array, index), sizes)
    return jnp.squeeze(part, single)


def contracted(a: Array, b: Array, batch: int, free: int) -> Array:
    """The sums over all axes of b but the batch's; `free` axes of a are left over."""
    lead, rest = tuple(range(batch)), tuple(range(batch, b.ndim))
    axes = (tuple(axis + free for axis in rest), rest)
    return jax.lax.dot_general(a, b, (axes, (lead, lead)))


def _single(array: Array, index: Any) -> tuple[int, ...]:
    """The axes of which `index`, ``(..., numbers or slices)``, takes one entry."""
    first = array.ndim - len(index)
    return tuple(
        first + k for k, part in enumerate(index) if k and not isinstance(part, slice)
    )


def _starts(array: Array, index: Any) -> list[Any]:
    """Where the slice begins in each axis."""
    parts = [0 if isinstance(part, slice) else part for part in index[1:]]
    return [0] * (array.ndim - len(parts)) + parts
