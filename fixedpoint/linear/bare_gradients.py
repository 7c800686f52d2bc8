"""Conjugate gradients on the one array of one sample, in place and by numbers of
Python.

At a few thousand unknowns the operations on leaves and batches take several times as
long as the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, Any]


@dataclass(kw_only=True)
class BareGradients:
    """The solution of Ax = b and its residual, in place; A is symmetric and definite.

    The preconditioner is I + Σ fᵢwᵢwᵢᵀ. The window is space for what the first steps
    find: their normalized residuals, their lengths, and the ratios of ⟨r, z⟩ after and
    before them.
    """

    product: Callable[[Matrix, float], Matrix]  # v, ‖v‖ ↦ Av
    r: Matrix  # b, which becomes the residual
    target: float  # the norm of the residual to reach
    spectrum: tuple[Matrix, Matrix] | None = None  # the wᵢ, as rows, and fᵢ
    window: tuple[Matrix, Matrix, Matrix] | None = None

    def __post_init__(self) -> None:
        self.x, self.scratch = np.zeros_like(self.r), np.empty_like(self.r)
        self.z = self.r if self.spectrum is None else np.empty_like(self.r)
        self.square, self.rz = self.measured()
        self.p = self.z.copy()
        self.length = math.sqrt(self.p @ self.p)

    @property
    def norm(self) -> float:
        """That of the residual."""
        return math.sqrt(self.square)

    def run(self, most: int) -> int:
        """Take up to `most` steps; how many it took."""
        steps, moved = 0, True
        while steps < most and moved and self.target < self.norm < math.inf:
            moved = self.step(steps)
            steps += 1
        return steps

    def step(self, k: int) -> bool:
        """Minimize along p, and make the next p conjugate; whether that is possible."""
        p, r, scratch, before = self.p, self.r, self.scratch, self.rz
        q = self.product(p, self.length)
        curvature = float(p @ q)
        alpha = before / curvature if curvature else 0.0
        if not alpha:
            return False
        if self.window is not None and k < len(self.window[0]):
            np.multiply(r, 1.0 / self.norm, out=self.window[0][k])
        self.x += np.multiply(p, alpha, out=scratch)
        r -= np.multiply(q, alpha, out=scratch)
        self.square, self.rz = self.measured()
        beta = self.rz / before
        p *= beta
        p += self.z
        self.length = self.length_after(beta)
        if self.window is not None and k < len(self.window[0]):
            self.window[1][k], self.window[2][k] = alpha, beta
        return True

    def measured(self) -> tuple[float, float]:
        """‖r‖² and ⟨r, z⟩, where z is the preconditioned residual."""
        r, square = self.r, float(self.r @ self.r)
        if self.spectrum is None:
            return square, square
        vectors, factors = self.spectrum
        np.matmul(factors * (vectors @ r), vectors, out=self.z)
        self.z += r
        return square, float(r @ self.z)

    def length_after(self, beta: float) -> float:
        """‖p‖, p = z + β p: if z = r, it is orthogonal to what p was."""
        if self.spectrum is None:
            return math.sqrt(self.square + (beta * self.length) * (beta * self.length))
        return math.sqrt(self.p @ self.p)
