"""Small linear systems in a trace."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fixedpoint.backend import Array


class _Elimination(NamedTuple):
    """The matrices with the right-hand sides beside them, the rows not yet used, and
    the pivots'.

    Rows stay in their places: that of each pivot is marked instead of exchanged. The
    axes of the batch are the last, which is what vectorizes.
    """

    table: Array
    free: Array
    pivots: Array


def gauss_jordan_in_loop(matrices: Array, rhs: Array) -> Array:
    """The solutions of the systems, as by :func:`fixedpoint.elimination.gauss_jordan`.

    The columns are cleared in a loop, so that a program does not grow with their
    number.

    Parameters
    ----------
    matrices : array of shape (..., m, m)
        The matrices.
    rhs : array of shape (..., m)
        The right-hand sides.

    Returns
    -------
    array of shape (..., m)
        The solutions, not finite where a matrix is singular.
    """
    table = jnp.concatenate([matrices, rhs[..., None]], axis=-1)
    table = jnp.moveaxis(table, (-2, -1), (0, 1))
    free = jnp.ones_like(table[:, 0], dtype=bool)
    first = _Elimination(table, free, jnp.zeros_like(table[:, 0], dtype=jnp.int32))
    end = jax.lax.fori_loop(0, rhs.shape[-1], _column, first)
    # Each unknown stands in the row of its pivot.
    return jnp.moveaxis(jnp.take_along_axis(end.table[:, -1], end.pivots, 0), 0, -1)


def _column(index: Array, state: _Elimination) -> _Elimination:
    """Clear one column but for its pivot, which becomes 1."""
    table, free, pivots = state
    column = jax.lax.dynamic_index_in_dim(table, index, 1, keepdims=False)
    pivot = jnp.argmax(jnp.where(free, jnp.abs(column), -1.0), axis=0).astype(jnp.int32)
    rows = jax.lax.broadcasted_iota(jnp.int32, column.shape, 0)
    chosen = rows == pivot[None]
    row = jnp.sum(jnp.where(chosen[:, None], table, 0.0), axis=0)
    row = row / jax.lax.dynamic_index_in_dim(row, index, 0)
    table = jnp.where(chosen[:, None], row[None], table - column[:, None] * row[None])
    pivots = jax.lax.dynamic_update_index_in_dim(pivots, pivot, index, 0)
    return _Elimination(table, free & ~chosen, pivots)
