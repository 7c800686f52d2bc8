"""A cycle of GMRES on the one array of one sample.

At a few thousand unknowns the operations on leaves and batches take several times as
long as the arithmetic. Here a direction takes two matrix products with what is known, a
few passes over its vectors, in place, and numbers of Python.

Where A is symmetric, most of what is known is orthogonal to a new image by itself, as
in the methods of Lanczos and of conjugate residuals. So it is left out while every look
at all of it finds it so. The residual stays that of the solution in any case: A P = Q R
holds whatever is left out, and only the least residual is lost where too much is.

References
----------
Eisenstat, Elman and Schultz, "Variational iterative methods for nonsymmetric systems of
linear equations", SIAM J. Numer. Anal. 20, 1983: methods that are truncated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# A direction that is the residual itself is safe as long as the residual falls; where
# it does not, the next direction is the newest basis vector, as in Arnoldi's process.
FALL = 0.9

# One pass of Gram and Schmidt is enough where it leaves this share of the vector, as
# long as the residual is above the second share of the first one, and is not to fall to
# the third: orthogonality is lost with the square of what it falls by.
KEPT, FALLEN, TIGHT = 0.1, 1e-3, 1e-5

# A residual that falls to less than this share at once is measured anew: the difference
# of squares would not tell its norm.
DEEP = 1e-2

# The image of a symmetric matrix has a part in the two newest vectors, and in leads. It
# counts as symmetric while the part in others is less than this share of what is new;
# they are looked at in the first directions, and then twice in each of so many.
_SYMMETRIC, _FIRST, _LOOK = 1e-3, 5, 12

Matrix = np.ndarray[Any, Any]


@dataclass(kw_only=True)
class BareCycle:
    """A P = Q R with orthonormal rows Q, and the residual r, all filled in place.

    Parameters
    ----------
    product : callable
        v ↦ Av, of unit vectors.
    basis : array of shape (most, n)
        Room for the rows of Q.
    triangle, coefficients : array
        The unit matrix, and zero; they become Rᵀ and Qr.
    kinds : array of shape (most,)
        Zero; it becomes 1/‖r‖ for a direction along the residual then, and −1 for the
        newest row of Q.
    known : array of shape (k, n)
        The unit vectors that lead the directions.
    r : array of shape (n,)
        The residual.
    norm, target : float
        Its norm, and that to be reached.
    below : float
        The norm of the residual below which images are orthogonalized twice.
    least : float
        The share of an image beyond the basis that is more than rounding errors.
    """

    product: Callable[[Matrix], Matrix]
    basis: Matrix
    triangle: Matrix
    coefficients: Matrix
    kinds: Matrix
    known: Matrix
    r: Matrix
    norm: float
    target: float
    below: float
    least: float
    taken: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        self.room = np.empty_like(self.r)

    def run(self, most: int) -> int:
        """Take up to `most` directions; how many it took."""
        slot, busy, fell = 0, True, True
        while busy and slot < most:
            led, before = slot < len(self.known), self.norm
            holds = self.extend(slot, self.product(self.direction(slot, fell)))
            self.taken += not led
            slot, fell = slot + 1, led or self.norm <= FALL * before
            busy = (holds or led) and self.norm > self.target
        return slot

    def direction(self, slot: int, fell: bool) -> Matrix:
        """The direction `slot`: one that is known, or along the residual if that
        `fell`, else the newest row of the basis.

        It may lie where the next row of the basis will.
        """
        p: Matrix = self.basis[slot]
        if slot < len(self.known):
            p = self.known[slot]
        elif fell:
            self.kinds[slot] = unit = 1.0 / self.norm if self.norm else 0.0
            np.multiply(self.r, unit, out=p)
        else:
            self.kinds[slot] = -1.0
            p = self.basis[slot - 1]
        return p

    def extend(self, slot: int, image: Matrix) -> bool:
        """Take in the image of a direction; whether it is more than rounding errors."""
        length, toward, size, column = self.orthogonalize(slot, image)
        if not self.least * size < length < math.inf:
            self.basis[slot] = 0.0
            return False
        q = self.basis[slot]
        q *= 1.0 / length
        self.triangle[:slot, slot], self.triangle[slot, slot] = column, length
        self.coefficients[slot] = amount = toward / length
        self.r -= np.multiply(q, amount, out=self.room)
        square = (self.norm - amount) * (self.norm + amount)
        near = DEEP * self.norm  # its square may overflow, which ** would raise
        deep = square < near * near
        self.norm = math.sqrt(self.r @ self.r if deep else square)
        return True

    def orthogonalize(
        self, slot: int, image: Matrix
    ) -> tuple[float, float, float, Matrix]:
        """What is left of an image beside the basis, as its new row: its length, its
        product with r, the size of the image, and its products with the basis.
        """
        q, r, parts = self.basis[slot], self.r, self.parts(slot)
        whole, toward = float(image @ image), float(image @ r)
        column = self.deduct(image, parts, q)
        square = whole - float(column @ column)
        if square < KEPT**2 * whole or self.norm < self.below:
            toward = float(q @ r)
            column += self.deduct(q, parts, q)
            square = float(q @ q)
        far = column[len(self.known) : max(slot - 2, 0)]
        if far.size:
            self.symmetric &= float(far @ far) <= _SYMMETRIC**2 * square
        return math.sqrt(max(square, 0.0)), toward, math.sqrt(whole), column

    def parts(self, slot: int) -> tuple[slice, ...]:
        """The rows of the basis that the image of the direction `slot` has a part
        in.
        """
        led = len(self.known)
        looks = slot < led + _FIRST or (slot - led) % _LOOK < 2
        if looks or not self.symmetric or self.norm < self.below:
            return (slice(slot),)
        near = slice(slot - 2, slot)
        return (slice(led), near) if led else (near,)

    def deduct(self, v: Matrix, parts: tuple[slice, ...], onto: Matrix) -> Matrix:
        """Make `onto` v less its part in some rows of the basis; its products with all
        of them.
        """
        column, room = np.zeros(parts[-1].stop), self.room
        for part in parts:
            known = self.basis[part]
            column[part] = products = known @ v
            v = np.subtract(v, np.matmul(products, known, out=room), out=onto)
        return column
