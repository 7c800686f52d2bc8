"""Backtracking along a path, each sample for itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.space import Space

# A step is shortened to between a tenth and half of itself.
_LEAST, _MOST = 0.1, 0.5
_SUFFICIENT = 1e-4


BACKTRACKS = 12


def bounded(space: Space, direction: Vec, point: Point, bound: float | None) -> Vec:
    """`direction`, no entry of which exceeds `bound` times the largest of a state that
    is not 0.
    """
    if bound is None:
        return direction
    size = space.norm(point.value, "max")
    reach = space.xp.where(
        size > 0.0, bound * size, space.xp.full_like(size, float("inf"))
    )
    return space.clipped(direction, reach)


class Descent(NamedTuple):
    """A direction to search along.

    Attributes
    ----------
    direction : Vec
        The step d.
    merit : array
        The norm of the residual at the old point.
    slope : array
        The rate at which ½‖g‖² is expected to fall along d, divided by ‖g‖.
    rows : array of shape (batch, n), or None
        What the equations are multiplied by before their norm is taken.
    """

    direction: Vec
    merit: Array
    slope: Array
    rows: Array | None = None

    def measured(self, space: Space, increment: Vec) -> Array:
        """The norm of a residual."""
        if self.rows is None:
            return space.norm(increment)
        return space.xp.linalg.vector_norm(space.ravel(increment) * self.rows, axis=-1)


class Search(NamedTuple):
    """Where a search ended.

    Attributes
    ----------
    point : Point
        The accepted point of each sample; the old one where none was.
    length : array
        The length of the last step tried.
    pending : array of bool
        The samples whose search failed.
    trials : int
        Evaluations.
    """

    point: Point
    length: Array
    pending: Array
    trials: Any


def backtrack(
    problem: Problem, old: Point, descent: Descent, pending: Array, monotone: bool
) -> Search:
    """Armijo's rule along a direction, from the full step on.

    Accepts z + λd if ‖g(z + λd)‖² ≤ ‖g‖² − 2 10⁻⁴ λ s, s the expected decrease of
    ½‖g‖², else shortens λ to the minimizer of the parabola through what is known. All
    norms are taken relative to ‖g‖, whose square may be beyond the range of floats.
    Where g is not finite at a trial point λ is halved; without `monotone` that is all
    that is asked, and so it is of a step that is itself within tolerance: rounding
    errors may hide its decrease.

    Parameters
    ----------
    pending : array of bool
        The samples to search for.
    monotone : bool
        Whether a decrease is asked for.
    """
    space, xp = problem.space, problem.space.xp
    slope = space.ratio(descent.slope, descent.merit)
    short = problem.is_negligible(descent.direction, old)
    # Else it is solved, and a division by zero has no derivative.
    asks = descent.merit != 0.0
    merit = xp.where(asks, descent.merit, space.one)

    def trial(search: Search) -> Search:
        length = search.length
        value = space.axpy(length, descent.direction, old.value)
        new = problem.trial(space.where(search.pending, value, search.point.value))
        ratio = xp.where(
            asks, descent.measured(space, new.increment) / merit, space.unknown
        )
        finite = (new.residual_norm < xp.inf) & ~xp.isnan(ratio)
        enough = ratio * ratio <= 1.0 - 2 * _SUFFICIENT * length * slope
        accepted = search.pending & finite
        if monotone:
            accepted = accepted & (enough | short)
        pending = search.pending & ~accepted
        if space.backend.known_none(pending) and space.backend.known_all(accepted):
            return Search(new, length, pending, search.trials + 1)
        # ½‖g(z + λd)‖² is near ½‖g‖² − λs + cλ²: least at λ = s/(2c).
        curvature = 0.5 * (ratio * ratio - 1.0) + length * slope
        least = space.ratio(length * length * slope, 2 * curvature)
        least = xp.where(finite, least, _MOST * length)
        shorter = xp.minimum(xp.maximum(least, _LEAST * length), _MOST * length)
        point = choose(space, accepted, new, search.point)
        return Search(
            point, xp.where(pending, shorter, length), pending, search.trials + 1
        )

    def unfinished(search: Search) -> Any:
        return space.backend.any(search.pending) & (search.trials < BACKTRACKS)

    first = Search(old, space.full(1.0), pending, 0)
    end: Search = space.backend.while_loop(unfinished, trial, first, BACKTRACKS)
    return end
