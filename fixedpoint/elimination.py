"""Small linear systems, by operations that every array-API namespace has."""

from __future__ import annotations

from typing import Any

Array = Any


def gauss_jordan(xp: Any, matrices: Array, rhs: Array) -> Array:
    """The solutions of small systems, by Gauss and Jordan's elimination with partial
    pivoting.

    The linear algebra of the standard is an extension, which a namespace may lack.

    Parameters
    ----------
    xp : module
        The namespace.
    matrices : array of shape (..., m, m)
        The matrices.
    rhs : array of shape (..., m)
        The right-hand sides.

    Returns
    -------
    array of shape (..., m)
        The solutions, not finite where a matrix is singular.
    """
    table = xp.concat([matrices, rhs[..., None]], axis=-1)
    zero, pivots = xp.zeros_like(table[..., :1, :1]), []
    free = xp.zeros_like(rhs) == 0.0
    for k in range(rhs.shape[-1]):
        column = table[..., k]
        sizes = xp.where(free, xp.abs(column), -1.0 + zero[..., 0])
        pivot = xp.argmax(sizes, axis=-1, keepdims=True)
        # Rows stay in their places: that of each pivot is marked instead of exchanged.
        chosen = xp.arange(rhs.shape[-1]) == pivot
        row = xp.sum(xp.where(chosen[..., None], table, zero), axis=-2, keepdims=True)
        row = row / row[..., k : k + 1]
        table = xp.where(chosen[..., None], row, table - column[..., None] * row)
        free = free & ~chosen
        pivots.append(chosen)
    last, nothing = table[..., -1], zero[..., 0]
    found = [xp.sum(xp.where(chosen, last, nothing), axis=-1) for chosen in pivots]
    return xp.stack(found, axis=-1)
