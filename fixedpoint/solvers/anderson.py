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
        The columns ΔG, differences of residuals; zero where they are nothing but rounding.
    images : Vec
        The columns ΔZ + τΔG that belong to them, differences of damped images.
    gram : array of shape (batch, memory, memory)
        ΔGᵀΔG + λD², and 1 on the diagonal where a column is zero.
    image : Vec
        The damped image z + τg of the current point.
    pushed : int
        Columns pushed so far.
    """

    residuals: Vec
    images: Vec
    gram: Array
    image: Vec
    pushed: Any


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration of type II, with damping.

    With g = f(z) − z and the differences of the last m residuals and states as the columns of
    ΔG and ΔZ,

        γ = (ΔGᵀΔG + λD²)⁻¹ ΔGᵀg ,    z ← z + τg − (ΔZ + τΔG) γ ,    D = diag ‖Δg‖ ,

    which minimises ‖g − ΔGγ‖ up to a ridge relative to each column's length, so that neither the
    scale of the problem nor the fall of the residual matters to it. A column that is nothing but
    rounding is left out. On an affine map it is GMRES, step for step, as long as the memory
    lasts.

    Parameters
    ----------
    memory : int, optional
        The number m of differences kept, clamped to the dimension. The solver holds 2m states.
    damping : float in (0, 2], optional
        The factor τ on the residual that is left after mixing; 1 is no damping.
    regularization : float, optional
        λ, by default 10 times the unit roundoff of the coefficients.

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
        return Secants(residuals, images, space.identity(memory), self._image(space, point), 0)

    def step(
        self,
        space: Space,
        problem: FixedPointProblem,
        point: Point,
        state: Secants,
        active: Array | None,
    ) -> tuple[Point, Secants]:
        """One step, one evaluation."""
        new = problem.evaluate(space.where(active, _mixed(space, point, state), point.value))
        return new, self._remember(space, state, point, new)

    def _image(self, space: Space, point: Point) -> Vec:
        return space.add(point.value, space.scale(self.damping, point.increment))

    def _remember(self, space: Space, state: Secants, old: Point, new: Point) -> Secants:
        """Push the newest differences over the oldest, and renew their row of the Gram matrix.

        A sample that has stopped no longer moves; what it remembers is never used again.
        """
        slot, image = state.pushed % state.gram.shape[-1], self._image(space, new)
        residuals = space.push_difference(state.residuals, slot, new.increment, old.increment)
        images = space.push_difference(state.images, slot, image, state.image)
        row = space.gram(residuals, space.row(residuals, slot))
        square = row[..., slot]  # ‖Δg‖²
        diagonal = (1.0 + self._ridge(space)) * square
        rounding = (4 * space.rounding) * new.scale
        informative = square > rounding * rounding
        if not space.backend.known_all(informative):
            residuals = space.mask_row(residuals, slot, informative)
            row = space.xp.astype(informative, space.dtype)[..., None] * row
            diagonal = space.xp.where(informative, diagonal, space.xp.ones_like(diagonal))
        gram = _renewed(space, state, slot, row, diagonal)
        return Secants(residuals, images, gram, image, state.pushed + 1)

    def _ridge(self, space: Space) -> float:
        return 10 * space.precision if self.regularization is None else self.regularization


def _mixed(space: Space, point: Point, state: Secants) -> Vec:
    """The next iterate, z + τg − (ΔZ + τΔG)γ."""
    gamma = least_squares(space, state.gram, space.gram(state.residuals, point.increment))
    return space.minus_combination(state.image, gamma, state.images)


def _renewed(space: Space, state: Secants, slot: Any, row: Array, diagonal: Array) -> Array:
    write = space.backend.write
    gram = write(state.gram, (..., slot, slice(None)), row)
    gram = write(gram, (..., slice(None), slot), row)
    return write(gram, (..., slot, slot), diagonal)
