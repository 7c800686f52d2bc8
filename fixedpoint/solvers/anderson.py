"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.linear.least_squares import least_squares
from fixedpoint.problem import FixedPointProblem, Point
from fixedpoint.solvers.base import Solver, check_count, check_positive
from fixedpoint.space import Space


class Secants(NamedTuple):
    """What Anderson's method remembers.

    Attributes
    ----------
    residuals : Vec
        The columns ΔG, differences of residuals.
    images : Vec
        The columns ΔZ + τΔG that belong to them, differences of damped images.
    scales : array of shape (batch, memory)
        The diagonal D⁻¹ = 1/‖Δg‖; 0 for a column that is empty or nothing but rounding.
    gram : array of shape (batch, memory, memory)
        D⁻¹ΔGᵀΔG D⁻¹.
    ridge : array of shape (memory, memory)
        λI.
    pushed : int
        Columns pushed so far.
    """

    residuals: Vec
    images: Vec
    scales: Array
    gram: Array
    ridge: Array
    pushed: Any


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration of type II, with damping.

    With g = f(z) − z and the differences of the last m residuals and states as the columns of
    ΔG and ΔZ,

        γ = argmin ‖g − ΔG γ‖² ,    z ← z + τg − (ΔZ + τΔG) γ .

    On an affine map it is GMRES, step for step, as long as the memory lasts. The columns are
    scaled to unit length, Q = ΔG D⁻¹ with D = diag ‖Δg‖, so that neither the scale of the problem
    nor the fall of the residual matters to the regularisation; a column that is nothing but
    rounding is left out.

    Parameters
    ----------
    memory : int, optional
        The number m of differences kept, clamped to the dimension. The solver holds 2m states.
    damping : float in (0, 2], optional
        The factor τ on the residual that is left after mixing; 1 is no damping.
    regularization : float, optional
        λ in γ = D⁻¹(QᵀQ + λI)⁻¹Qᵀg: relative to a Gram matrix of unit diagonal. By
        default 10 times the unit roundoff of the coefficients.

    References
    ----------
    Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 12, 1965.
    Fang and Saad, "Two classes of multisecant methods for nonlinear acceleration", Numer. Linear
    Algebra Appl. 16, 2009.
    Walker and Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49,
    2011.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> A, b = np.array([[0.9, 0.5], [0.0, 0.8]]), np.array([1.0, 2.0])
    >>> sol = fp.fixed_point(lambda z: A @ z + b, np.zeros(2), solver=fp.Anderson(memory=5))
    >>> np.round(sol.value, 6), int(sol.steps)
    (array([60., 10.]), 3)
    """

    memory: int = 10
    damping: float = 1.0
    regularization: float | None = None

    def __post_init__(self) -> None:
        check_count("memory", self.memory, 1)
        check_positive("damping", self.damping, 2.0)
        if self.regularization is not None:
            check_positive("regularization", self.regularization, 1.0)

    def init(self, space: Space, point: Point) -> Secants:
        """An empty memory."""
        memory = min(self.memory, space.size)
        residuals, images = (space.history(memory, point.value) for _ in range(2))
        scales, gram = space.full(0.0, (memory,)), space.full(0.0, (memory, memory))
        return Secants(residuals, images, scales, gram, self._ridge(space, memory), 0)

    def step(
        self,
        space: Space,
        problem: FixedPointProblem,
        point: Point,
        state: Secants,
        active: Array | None,
    ) -> tuple[Point, Secants]:
        """One step, one evaluation."""
        new = problem.evaluate(space.where(active, self._mix(space, point, state), point.value))
        return new, self._remember(space, state, point, new)

    def _mix(self, space: Space, point: Point, state: Secants) -> Vec:
        """z + τg − (ΔZ + τΔG)γ."""
        products = state.scales * space.gram(state.residuals, point.increment)
        gamma = state.scales * least_squares(space, state.gram + state.ridge, products)
        image = space.add(point.value, space.scale(self.damping, point.increment))
        return space.minus_combination(image, gamma, state.images)

    def _remember(self, space: Space, state: Secants, old: Point, new: Point) -> Secants:
        """Push the newest differences over the oldest, and renew their row of the Gram matrix.

        A sample that has stopped no longer moves; what it remembers is never used again.
        """
        slot, write = state.pushed % state.scales.shape[-1], space.backend.write
        residuals = space.push_difference(state.residuals, slot, new.increment, old.increment)
        newest = space.row(residuals, slot)
        images = space.push_difference(state.images, slot, new.value, old.value)
        images = space.add_to_row(images, slot, space.scale(self.damping, newest))
        inverse = _inverse_length(space, newest, new.scale)
        scales = write(state.scales, (..., slot), inverse)
        row = inverse[..., None] * scales * space.gram(residuals, newest)
        gram = write(state.gram, (..., slot, slice(None)), row)
        gram = write(gram, (..., slice(None), slot), row)
        return Secants(residuals, images, scales, gram, state.ridge, state.pushed + 1)

    def _ridge(self, space: Space, memory: int) -> Array:
        default = 10 * float(space.xp.finfo(space.dtype).eps)
        return space.diagonal(
            memory, default if self.regularization is None else self.regularization
        )


def _inverse_length(space: Space, residual: Vec, scale: Array) -> Array:
    """1/‖Δg‖, or 0 where that is mere rounding of f(z), of norm `scale`."""
    xp, length = space.xp, space.norm(residual)
    informative = length > 4 * space.rounding * scale
    if space.backend.known_all(informative):
        return 1.0 / length
    ones = xp.ones_like(length)
    return xp.where(informative, ones / xp.where(informative, length, ones), 0 * ones)
