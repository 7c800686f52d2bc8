"""Steps along a direction: bounds, backtracking, and leaving singular points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.space import Space

# A step is shortened to between a tenth and half of itself.
_LEAST, _MOST = 0.1, 0.5

# Lengths that are tried.
BACKTRACKS = 12

# Points at which the derivative is singular that are left before a method gives up.
ESCAPES = 3


def bounded(space: Space, direction: Vec, point: Point, bound: float | None) -> Vec:
    """`direction`, no entry above `bound` times the largest of a state other than 0."""
    if bound is None:
        return direction
    size = space.norm(point.value, "max")
    reach = space.xp.where(size > 0.0, bound * size, space.infinity)
    return space.clipped(direction, reach)


class Descent(NamedTuple):
    """A direction to search along."""

    direction: Vec  # the step d
    merit: Array  # the level of the residual at the old point
    slope: Array  # the rate at which half its square should fall along d, over it
    # Of a residual, and the simplified correction; by default its norm.
    level: Callable[[Vec], tuple[Array, Array]] | None = None
    sufficient: float = 1e-4  # the share of the expected decrease that is asked for

    def measured(self, space: Space, increment: Vec) -> tuple[Array, Array | None]:
        """The level of a residual, by default its norm; and the simplified correction
        that another level took.
        """
        if self.level is None:
            return space.norm(increment), None
        return self.level(increment)


def escaped(space: Space, value: Vec, escaping: Array, descent: Descent) -> Descent:
    """The descent, but a move away, wherever it leads, in samples `escaping`."""
    if space.backend.known_none(escaping):
        return descent
    where = space.xp.where
    return descent._replace(
        direction=space.where(escaping, _away(space, value), descent.direction),
        merit=where(escaping, space.infinity, descent.merit),
        slope=where(escaping, space.zero, descent.slope),
    )


def _away(space: Space, value: Vec) -> Vec:
    """A move by about a sixteenth of each entry, or of 1 where that is zero."""
    moves, xp = [], space.xp
    for leaf, count in zip(value, space.sizes, strict=True):
        index = xp.astype(xp.arange(count, **space.place), space.dtype)
        graded = space.as_leaf((1.0 + index / (2.0 * count)) / 16.0, leaf)
        moves.append(graded * xp.where(leaf == 0, xp.ones_like(leaf), leaf))
    return tuple(moves)


class Search(NamedTuple):
    """Where a search ended."""

    point: Point  # the accepted one of each sample; the old one where none was
    length: Array  # of the last step tried
    pending: Array  # the samples whose search failed
    trials: Any  # evaluations
    simplified: Array | None  # Newton's next correction, as the level took it


def backtrack(
    problem: Problem, old: Point, descent: Descent, pending: Array, monotone: bool
) -> Search:
    """Armijo's rule along a direction, from the full step on.

    Accepts z + λd if ‖g(z + λd)‖² ≤ ‖g‖² − 2cλs, with s the expected decrease of ½‖g‖²
    and c the sufficient share of it, else shortens λ to the minimizer of the parabola
    through what is known. All norms, or the levels in their place, are taken relative
    to ‖g‖, whose square may be beyond the range of floats.
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
    space, loop = problem.space, problem.space.backend.while_loop
    # Else it is solved, and a division by zero has no derivative.
    asks = descent.merit != 0.0
    merit = space.xp.where(asks, descent.merit, space.one)
    slope = space.ratio(descent.slope, descent.merit)
    rule = _Rule(problem, old, descent, monotone, slope, asks, merit)
    unknown = None if descent.level is None else space.ravel(descent.direction)
    first = Search(old, space.full(1.0), pending, 0, unknown)
    end: Search = loop(rule.is_unfinished, rule.trial, first, BACKTRACKS)
    return end


class _Rule(NamedTuple):
    """Armijo's rule."""

    problem: Problem
    old: Point
    descent: Descent
    monotone: bool
    slope: Array  # s/‖g‖²
    asks: Array  # whether the old residual is not zero
    merit: Array  # ‖g‖, or one in its place

    def is_unfinished(self, search: Search) -> Any:
        """Whether there is another trial."""
        some = self.problem.space.backend.any(search.pending)
        return some & (search.trials < BACKTRACKS)

    def trial(self, search: Search) -> Search:
        """Try a length, and choose a shorter one where that is too long."""
        space, length = self.problem.space, search.length
        value = space.axpy(length, self.descent.direction, self.old.value)
        value = space.where(search.pending, value, search.point.value)
        new, trials = self.problem.trial(value), search.trials + 1
        level, simplified = self.descent.measured(space, new.increment)
        ratio = space.xp.where(self.asks, level / self.merit, space.unknown)
        finite = (new.residual_norm < space.xp.inf) & ~space.xp.isnan(ratio)
        accepted = search.pending & finite & self._suffices(ratio, length)
        pending = search.pending & ~accepted
        if space.backend.known_all(accepted):
            return Search(new, length, pending, trials, simplified)
        shorter = self._shorter(ratio, length, finite)
        point = choose(space, self.problem.renewed(accepted), new, search.point)
        length = space.xp.where(pending, shorter, length)
        return Search(point, length, pending, trials, simplified)

    def _suffices(self, ratio: Array, length: Array) -> Any:
        """Whether the residual has fallen enough."""
        if not self.monotone:
            return True
        share = 2 * self.descent.sufficient * length
        enough = ratio * ratio <= 1.0 - share * self.slope
        if self.problem.space.backend.known_here(enough):
            return enough
        return enough | self.problem.is_negligible(self.descent.direction, self.old)

    def _shorter(self, ratio: Array, length: Array, finite: Array) -> Array:
        """The next length: ½‖g(z + λd)‖² ≈ ½‖g‖² − λs + cλ² is least at s/(2c)."""
        space, xp, slope = self.problem.space, self.problem.space.xp, self.slope
        curvature = 0.5 * (ratio * ratio - 1.0) + length * slope
        least = space.ratio(length * length * slope, 2 * curvature)
        least = xp.where(finite, least, _MOST * length)
        return xp.minimum(xp.maximum(least, _LEAST * length), _MOST * length)
