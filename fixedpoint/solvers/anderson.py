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
        The columns Q = ΔG D⁻¹: differences of residuals, scaled to unit length.
    steps : Vec
        The columns P = (ΔZ + τΔG) D⁻¹ that belong to them.
    gram : array of shape (batch, memory, memory)
        QᵀQ.
    ridge : array of shape (memory, memory)
        λI.
    pushed : int
        Columns pushed so far.
    """

    residuals: Vec
    steps: Vec
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
    scaled to unit length, D = diag ‖Δg‖, before their Gram matrix is formed, so that neither
    the scale of the problem nor the fall of the residual matters to the regularisation; a column
    that is nothing but rounding is left out.

    Parameters
    ----------
    memory : int, optional
        The number m of differences kept, clamped to the dimension. The solver holds 2m states.
    damping : float in (0, 2], optional
        The factor τ on the residual that is left after mixing; 1 is no damping.
    regularization : float, optional
        λ in γ = (QᵀQ + λI)⁻¹Qᵀg, Q = ΔG D⁻¹: relative to a Gram matrix of unit diagonal. By
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
        residuals, steps = (space.history(memory, point.value) for _ in range(2))
        ridge = space.diagonal(memory, self._ridge(space))
        return Secants(residuals, steps, space.full(0.0, (memory, memory)), ridge, 0)

    def step(
        self,
        space: Space,
        problem: FixedPointProblem,
        point: Point,
        state: Secants,
        active: Array | None,
    ) -> tuple[Point, Secants]:
        """One step, one evaluation."""
        moved = space.add(point.value, space.scale(self.damping, point.increment))
        products = space.gram(state.residuals, point.increment)
        gamma = least_squares(space, state.gram + state.ridge, products)
        moved = space.subtract(moved, space.combine(gamma, state.steps, point.value))
        new = problem.evaluate(space.where(active, moved, point.value))
        return new, self._remember(space, state, point, new, active)

    def _remember(
        self, space: Space, state: Secants, old: Point, new: Point, active: Array | None
    ) -> Secants:
        """Push the newest difference over the oldest, and renew its row of the Gram matrix."""
        residual = space.subtract(new.increment, old.increment)
        step = space.subtract(new.value, old.value)
        step = space.add(step, space.scale(self.damping, residual))
        inverse = _inverse_length(space, residual, new.scale)
        slot = state.pushed % state.gram.shape[-1]
        residual = space.scale(inverse, residual)
        residuals = space.push(state.residuals, slot, residual, active)
        steps = space.push(state.steps, slot, space.scale(inverse, step), active)
        gram = _renew(space, state.gram, slot, space.gram(residuals, residual), active)
        return Secants(residuals, steps, gram, state.ridge, state.pushed + 1)

    def _ridge(self, space: Space) -> float:
        if self.regularization is not None:
            return self.regularization
        return 10 * float(space.xp.finfo(space.dtype).eps)


def _inverse_length(space: Space, residual: Vec, scale: Array) -> Array:
    """1/‖Δg‖, or 0 where that is mere rounding of f(z), of norm `scale`."""
    xp, length = space.xp, space.norm(residual)
    informative = length > 4 * space.rounding * scale
    if space.backend.known_all(informative):
        return 1.0 / length
    ones = xp.ones_like(length)
    return xp.where(informative, ones / xp.where(informative, length, ones), 0 * ones)


def _renew(space: Space, gram: Array, slot: Any, row: Array, mask: Array | None) -> Array:
    """`gram` with a new row and column, in the samples where `mask` holds."""
    write = space.backend.write
    if mask is not None:
        row = space.xp.where(mask[..., None], row, gram[..., slot, :])
    gram = write(gram, (..., slot, slice(None)), row)
    return write(gram, (..., slice(None), slot), row)
