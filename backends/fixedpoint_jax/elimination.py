"""Small linear systems in a trace."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fixedpoint.backend import Array


class _Elimination(NamedTuple):
    """The matrices with the right-hand sides beside them, the rows not yet used, and the answers.

    Rows stay in their places: that of each pivot is marked instead of exchanged.
    """

    table: Array
    free: Array
    solution: Array


def eliminated(matrices: Array, rights: Array) -> Array:
    """The solutions of the systems, by Gauss and Jordan's elimination with partial pivoting.

    Parameters
    ----------
    matrices : array of shape (..., m, m)
        The matrices.
    rights : array of shape (..., m)
        The right-hand sides.

    Returns
    -------
    array of shape (..., m)
        The solutions, not finite where a matrix is singular.
    """
    size = rights.shape[-1]
    table = jnp.concatenate([matrices, rights[..., None]], axis=-1)
    first = _Elimination(table, jnp.ones_like(rights), jnp.zeros_like(matrices))
    end = jax.lax.fori_loop(0, size, _column, first)
    # Each unknown stands in the row of its pivot.
    return jnp.sum(end.solution * end.table[..., -1][..., None], axis=-2)


def _column(index: Array, state: _Elimination) -> _Elimination:
    """Clear one column but for its pivot, which becomes 1."""
    table, free, solution = state
    column = jax.lax.dynamic_index_in_dim(table, index, -1, keepdims=False)
    sizes = jnp.where(free > 0, jnp.abs(column), -1.0)
    place = jax.nn.one_hot(jnp.argmax(sizes, axis=-1), column.shape[-1], dtype=table.dtype)
    chosen = place[..., None]
    row = jnp.sum(jnp.where(chosen > 0, table, 0.0), axis=-2, keepdims=True)
    row = row / jax.lax.dynamic_slice_in_dim(row, index, 1, -1)
    table = jnp.where(chosen > 0, row, table - column[..., None] * row)
    solution = jax.lax.dynamic_update_index_in_dim(solution, place, index, solution.ndim - 1)
    return _Elimination(table, free * (1.0 - place), solution)
