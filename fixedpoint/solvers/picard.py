"""Picard iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_positive
from fixedpoint.keywords import by_name
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.space import Space

# The part of a squared residual that older ones must account for, to tell how they go
# on.
EXPLAINED = 0.9

# The part that one of them leaves, below which a second one tells nothing.
PARALLEL = 1e-3


@by_name
@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """Damped Picard iteration, z ← z + τ(f(z) − z).

    Converges if the eigenvalues of I − τ(I − J) lie in the unit disc, J = ∂f/∂z at the
    fixed point. One evaluation and no memory: right for maps that contract fast.

    Parameters
    ----------
    damping : float in (0, 2], optional
        The factor τ; 1 is no damping, more than 1 over-relaxes.

    Examples
    --------
    >>> import math, fixedpoint as fp
    >>> sol = fp.fixed_point(lambda z: math.cos(z), 1.0, solver=fp.Picard())
    >>> round(float(sol.value), 5)
    0.73909
    """

    damping: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Every step is one of the map, maybe damped."""
        return True

    def __post_init__(self) -> None:
        check_positive("damping", self.damping, 2.0)

    def init(self, problem: Problem, point: Point) -> Vec:
        """The residual before this one: none yet."""
        space = problem.space
        return space.zeros(point.increment)

    def step(self, problem: Problem, point: Point, state: Vec) -> Step:
        """One step, one evaluation."""
        space = problem.space
        moved = space.add(point.value, space.scale(self.damping, point.increment))
        return self.stepped(problem, point, state, problem.trial(moved, point))

    def stepped(self, problem: Problem, point: Point, state: Vec, new: Point) -> Step:
        """The step to the point `new`."""
        space = problem.space
        left, known = remaining(problem, new, point.increment, state)
        return Step(
            new,
            point.increment,
            correction=space.scale(self.damping, left),
            error_factor=known,
        )


def remaining(
    problem: Problem, new: Point, before: Vec, earlier: Vec, least: Array | None = None
) -> tuple[Vec, Array]:
    """What is left to go from a point by a plain iteration, and 1 in the samples whose
    residuals tell it, not a number in others.

    Where g ≈ a g₁ + b g₂, with the two residuals before it, the residuals to come
    follow the same recurrence, and sum up to (g + b g₁)/(1 − a − b): minimal polynomial
    extrapolation for an eigenvalue, two of opposite signs, or a complex pair. Where the
    recurrence does not hold, g stands for it. A sum that is shorter than `least`, if
    that is given, does not count as known.

    References
    ----------
    Cabay and Jackson, "A polynomial extrapolation method for finding limits and
    antilimits of vector sequences", SIAM J. Numer. Anal. 13, 1976.
    """
    space, xp = problem.space, problem.space.xp
    found = _recurrence(space, new.increment, before, earlier)
    b, left = found.b, 1.0 - found.a - found.b
    known = found.holds & (left > 0.0)
    # One that residuals follow no better than their rounding allows tells nothing.
    known = known & problem.exceeds_rounding(new, left * new.residual_norm)
    factor = xp.where(known, space.ratio(space.one, left), space.one)
    if least is not None:
        square = found.size + b * (2.0 * found.along + b * found.square)
        known = known & (factor * factor * square >= least * least)
    b = xp.where(known, b, xp.zeros_like(b))
    total = space.scale(factor, space.axpy(b, before, new.increment))
    return total, xp.where(known, space.one, xp.zeros_like(left) + math.nan)


class _Recurrence(NamedTuple):
    """The recurrence g ≈ a g₁ + b g₂ of three residuals."""

    a: Array
    b: Array
    holds: Array  # whether it accounts for most of g
    size: Array  # ‖g‖²
    along: Array  # ⟨g, g₁⟩
    square: Array  # ‖g₁‖²


def _recurrence(space: Space, g: Vec, before: Vec, earlier: Vec) -> _Recurrence:
    """The recurrence of g and the two residuals before it, by least squares."""
    xp, pairs = space.xp, ((before, before), (g, before), (g, g), (earlier, earlier))
    square, one, size, older = space.dots(*pairs)
    a = space.ratio(one, square)
    b, explained = space.zero * a, a * one
    if not space.backend.known_here(size - explained <= PARALLEL * size):
        mixed, two = space.dots((before, earlier), (g, earlier))
        # What the second residual adds once its part along the first one is taken out.
        rest = older - space.ratio(mixed * mixed, square)
        adds = (rest > PARALLEL * older) & (size - explained > PARALLEL * size)
        b = xp.where(adds, space.ratio(two - space.ratio(mixed * one, square), rest), b)
        a = a - space.ratio(b * mixed, square)
        explained = a * one + b * two
    # That of two residuals only has not been seen to hold.
    holds = (explained > EXPLAINED * size) & (older > 0.0)
    return _Recurrence(a, b, holds, size, one, square)
