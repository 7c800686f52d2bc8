"""Small linear systems in a trace."""

from __future__ import annotations

import jax.numpy as jnp
from jax.lax import broadcasted_iota, dynamic_index_in_dim, fori_loop

from fixedpoint.backend import Array


def gauss_jordan_in_loop(
    matrices: Array, rhs: Array, is_definite: bool = False
) -> Array:
    """The solutions of the systems, as by :func:`fixedpoint.elimination.gauss_jordan`.

    The columns are cleared in a loop, so that a program does not grow with their
    number. Rows stay in their places. The axes of the batch are the last, which is what
    vectorizes.

    Parameters
    ----------
    matrices : array of shape (..., m, m)
        The matrices.
    rhs : array of shape (..., m)
        The right-hand sides.
    is_definite : bool, optional
        Whether the matrices are symmetric and positive definite: then their diagonal
        holds the pivots.

    Returns
    -------
    array of shape (..., m)
        The solutions, not finite where a matrix is singular.

    References
    ----------
    Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM 2002,
    sections 10.1 and 14.4: elimination of definite matrices needs no pivoting.
    """
    table = jnp.concatenate([matrices, rhs[..., None]], axis=-1)
    table, size = jnp.moveaxis(table, (-2, -1), (0, 1)), rhs.shape[-1]
    if is_definite:
        cleared = fori_loop(0, size, _cleared_by_diagonal, table)
        return jnp.moveaxis(cleared[:, -1], 0, -1)
    none = jnp.full_like(table[:, 0], -1, dtype=jnp.int32)
    cleared, columns = fori_loop(0, size, _cleared_by_largest, (table, none))
    # Each unknown stands in the row of its pivot.
    unknowns = broadcasted_iota(jnp.int32, cleared[:, :-1].shape, 1)
    placed = jnp.where(columns[:, None] == unknowns, cleared[:, -1:], 0.0)
    return jnp.moveaxis(jnp.sum(placed, axis=0), 0, -1)


def _cleared_by_diagonal(index: Array, table: Array) -> Array:
    """The table with one column cleared but for its pivot, which becomes 1."""
    row, column = (dynamic_index_in_dim(table, index, axis) for axis in (0, 1))
    row = row / dynamic_index_in_dim(row, index, 1)
    chosen = broadcasted_iota(jnp.int32, table.shape, 0) == index
    return jnp.where(chosen, row, table - column * row)


def _cleared_by_largest(
    index: Array, state: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The same by the largest pivot; and the column of each row's pivot, or −1."""
    table, columns = state
    column = dynamic_index_in_dim(table, index, 1, keepdims=False)
    size = jnp.where(columns < 0, jnp.abs(column), -1.0)
    pivot = jnp.argmax(size, axis=0).astype(jnp.int32)
    chosen = broadcasted_iota(jnp.int32, column.shape, 0) == pivot[None]
    row = jnp.sum(jnp.where(chosen[:, None], table, 0.0), axis=0)
    row = row / dynamic_index_in_dim(row, index, 0)
    table = jnp.where(chosen[:, None], row[None], table - column[:, None] * row[None])
    return table, jnp.where(chosen, index, columns)
