"""A cycle of GMRES on the one array of one sample.

At a few thousand unknowns the operations on leaves and batches take several times as
long as the arithmetic. Here a direction takes two matrix products with what is known, a
few passes over its vectors, in place, and numbers of Python.
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

Matrix = np.ndarray[Any, Any]


@dataclass(kw_only=True)
class BareCycle:
    """A P = Q R with orthonormal rows Q, and the residual r, all filled in place."""

    product: Callable[[Matrix], Matrix]  # v ↦ Av, of unit vectors
    basis: Matrix  # (most, n), whose rows will be those of Q
    triangle: Matrix  # the unit matrix, which becomes Rᵀ
    coefficients: Matrix  # zero, which becomes Qr
    kinds: Matrix  # zero; 1/‖r‖ for a direction along r then, −1 for Q's newest row
    known: Matrix  # (k, n), the unit vectors that lead the directions
    r: Matrix  # the residual
    norm: float  # that of r
    target: float  # the one to be reached
    below: float  # the one below which images are orthogonalized twice
    least: float  # the share of an image beyond the basis that is more than rounding
    taken: int = 0  # products with directions that were not known

    def __post_init__(self) -> None:
        self.scratch = np.empty_like(self.r)

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
        self.r -= np.multiply(q, amount, out=self.scratch)
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
        q, r = self.basis[slot], self.r
        whole, toward = float(image @ image), float(image @ r)
        column = self.deduct(image, slot, q)
        square = whole - float(column @ column)
        if square < KEPT**2 * whole or self.norm < self.below:
            toward = float(q @ r)
            column += self.deduct(q, slot, q)
            square = float(q @ q)
        return math.sqrt(max(square, 0.0)), toward, math.sqrt(whole), column

    def deduct(self, v: Matrix, slot: int, onto: Matrix) -> Matrix:
        """Make `onto` v less its part in rows before `slot`; its products with them."""
        known = self.basis[:slot]
        products: Matrix = known @ v
        np.subtract(v, np.matmul(products, known, out=self.scratch), out=onto)
        return products
