"""Backtracking along a path, each sample for itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.problem import Point, Problem, choose
from fixedpoint.space import Space

# A step is shortened to between a tenth and half of itself.
_LEAST, _MOST = 0.1, 0.5
_SUFFICIENT = 1e-4


BACKTRACKS = 12


def bounded(space: Space, direction: Vec, point: Point, bound: float | None) -> Vec:
    """`direction`, no entry of which exceeds `bound` times the largest of a state that is not 0."""
    if bound is None:
        return direction
    size = space.norm(point.value, "max")
    reach = space.xp.where(size > 0.0, bound * size, space.xp.full_like(size, float("inf")))
    return space.clipped(direction, reach)


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
    problem: Problem, old: Point, direction: Vec, merit: Array, slope: Array,
    pending: Array, monotone: bool,
) -> Search:  # fmt: skip
    """Armijo's rule along a direction, from the full step on.

    Accepts z + λd if ‖g(z + λd)‖² ≤ ‖g‖² − 2 10⁻⁴ λ s, s the expected decrease of ½‖g‖², else
    shortens λ to the minimiser of the parabola through what is known. Where g is not finite at a
    trial point λ is halved; without `monotone` that is all that is asked.

    Parameters
    ----------
    merit, slope : array
        ‖g‖ at the old point, and s.
    pending : array of bool
        The samples to search for.
    monotone : bool
        Whether a decrease is asked for.
    """
    space, xp = problem.space, problem.space.xp

    def trial(search: Search) -> Search:
        length = search.length
        value = space.axpy(length, direction, old.value)
        new = problem.trial(space.where(search.pending, value, search.point.value))
        norm = space.norm(new.increment)
        finite = norm < xp.inf
        enough = norm * norm <= merit * merit - 2 * _SUFFICIENT * length * slope
        accepted = search.pending & finite & (new.residual_norm < xp.inf)
        if monotone:
            accepted = accepted & (enough | new.satisfied)
        pending = search.pending & ~accepted
        if space.backend.known_none(pending) and space.backend.known_all(accepted):
            return Search(new, length, pending, search.trials + 1)
        # ½‖g(z + λd)‖² is near ½‖g‖² − λs + cλ²: least at λ = s/(2c).
        curvature = 0.5 * (norm * norm - merit * merit) + length * slope
        least = space.ratio(length * length * slope, 2 * curvature)
        least = xp.where(finite, least, _MOST * length)
        shorter = xp.minimum(xp.maximum(least, _LEAST * length), _MOST * length)
        point = choose(space, accepted, new, search.point)
        return Search(point, xp.where(pending, shorter, length), pending, search.trials + 1)

    def unfinished(search: Search) -> Any:
        return space.backend.any(search.pending) & (search.trials < BACKTRACKS)

    first = Search(old, space.full(1.0), pending, 0)
    end: Search = space.backend.while_loop(unfinished, trial, first, BACKTRACKS)
    return end
