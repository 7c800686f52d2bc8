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
    products : array of shape (batch, memory)
        D⁻¹ΔGᵀg.
    ridge : array of shape (memory, memory)
        λI.
    image : Vec
        The damped image z + τg of the current point.
    pushed : int
        Columns pushed so far.
    """

    residuals: Vec
    images: Vec
    scales: Array
    gram: Array
    products: Array
    ridge: Array
    image: Vec
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
        scales, products = (space.full(0.0, (memory,)) for _ in range(2))
        gram = space.full(0.0, (memory, memory))
        ridge, image = space.diagonal(memory, self._ridge(space)), self._image(space, point)
        return Secants(residuals, images, scales, gram, products, ridge, image, 0)

    def step(
        self,
        space: Space,
        problem: FixedPointProblem,
        point: Point,
        state: Secants,
        active: Array | None,
    ) -> tuple[Point, Secants]:
        """One step, one evaluation."""
        gamma = state.scales * least_squares(space, state.gram + state.ridge, state.products)
        mixed = space.combine(gamma, state.images, point.value)
        moved = space.subtract(state.image, mixed)
        new = problem.evaluate(space.where(active, moved, point.value))
        return new, self._remember(space, state, point, new, active)

    def _remember(
        self, space: Space, state: Secants, old: Point, new: Point, active: Array | None
    ) -> Secants:
        """Push the newest differences over the oldest, and renew their row of the Gram matrix."""
        slot = state.pushed % state.scales.shape[-1]
        residual = space.subtract(new.increment, old.increment)
        image = self._image(space, new)
        change = space.subtract(image, state.image)
        residuals = space.push(state.residuals, slot, residual, active)
        images = space.push(state.images, slot, change, active)
        inverse = _inverse_length(space, residual, new.scale)
        scales = _put(space, state.scales, (..., slot), inverse, active)
        both = scales[..., None, :] * space.gram(residuals, residual, new.increment)
        row = inverse[..., None] * both[..., 0, :]
        gram = _put(space, state.gram, (..., slot, slice(None)), row, active)
        gram = _put(space, gram, (..., slice(None), slot), row, active)
        products = both[..., 1, :]
        return Secants(
            residuals, images, scales, gram, products, state.ridge, image, state.pushed + 1
        )

    def _image(self, space: Space, point: Point) -> Vec:
        return space.add(point.value, space.scale(self.damping, point.increment))

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


def _put(space: Space, array: Array, index: Any, value: Array, mask: Array | None) -> Array:
    """`array` with ``array[index] = value``, in the samples where `mask` holds."""
    if mask is not None:
        extra = (None,) * (value.ndim - mask.ndim)
        value = space.xp.where(mask[(..., *extra)], value, array[index])
    return space.backend.write(array, index, value)
