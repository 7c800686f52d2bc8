"""Small linear systems in a trace."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fixedpoint.backend import Array


class _Elimination(NamedTuple):
    """The matrices with the right-hand sides beside them, and for each row the column
    whose pivot is in it, −1 before.

    Rows stay in their places. The axes of the batch are the last, which is what
    vectorizes.
    """

    table: Array
    column: Array


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
    none = jnp.full_like(table[:, 0], -1, dtype=jnp.int32)
    end = jax.lax.fori_loop(0, rhs.shape[-1], _cleared, _Elimination(table, none))
    # Each unknown stands in the row of its pivot.
    unknowns = jax.lax.broadcasted_iota(jnp.int32, end.table[:, :-1].shape, 1)
    placed = jnp.where(end.column[:, None] == unknowns, end.table[:, -1:], 0.0)
    return jnp.moveaxis(jnp.sum(placed, axis=0), 0, -1)


def _cleared(index: Array, state: _Elimination) -> _Elimination:
    """Clear one column but for its pivot, which becomes 1."""
    table, columns = state
    column = jax.lax.dynamic_index_in_dim(table, index, 1, keepdims=False)
    size = jnp.where(columns < 0, jnp.abs(column), -1.0)
    pivot = jnp.argmax(size, axis=0).astype(jnp.int32)
    chosen = jax.lax.broadcasted_iota(jnp.int32, column.shape, 0) == pivot[None]
    row = jnp.sum(jnp.where(chosen[:, None], table, 0.0), axis=0)
    row = row / jax.lax.dynamic_index_in_dim(row, index, 0)
    table = jnp.where(chosen[:, None], row[None], table - column[:, None] * row[None])
    return _Elimination(table, jnp.where(chosen, index, columns))
