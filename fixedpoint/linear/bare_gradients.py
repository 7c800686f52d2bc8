"""Conjugate gradients on the one array of one sample, in place and by numbers of
Python.

At a few thousand unknowns the operations on leaves and batches take several times as
long as the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, Any]


def conjugate_gradients(
    product: Callable[[Matrix], Matrix], rhs: Matrix, target: float, most: int
) -> tuple[Matrix, float, int]:
    """The solution of Ax = b, the norm of its residual, and the products it took.

    Parameters
    ----------
    product : callable
        v ↦ Av, A symmetric and definite.
    rhs : array
        b.
    target : float
        The norm of the residual to reach.
    most : int
        Products at most.
    """
    x, r, p, room = np.zeros_like(rhs), rhs.copy(), rhs.copy(), np.empty_like(rhs)
    square, steps = float(np.vdot(r, r)), 0
    while steps < most and target < math.sqrt(square) < math.inf:
        q = product(p)
        curvature, steps = float(np.vdot(p, q)), steps + 1
        length = square / curvature if curvature else 0.0
        if not length:
            break
        x += np.multiply(p, length, out=room)
        r -= np.multiply(q, length, out=room)
        before, square = square, float(np.vdot(r, r))
        p *= square / before
        p += r
    return x, math.sqrt(square), steps
