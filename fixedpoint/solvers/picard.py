"""Picard iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_positive
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import Solver, Step

# The part of a squared residual that older ones must account for, to tell how they go
# on.
EXPLAINED = 0.9

# The part that one of them leaves, below which a second one tells nothing.
PARALLEL = 1e-3


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
        """The method is the map, or half of it."""
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
    """What is left to go from a point by a plain iteration, and 1 where that is known,
    and of the `least` length that may be given, else not a number.

    Where g ≈ a g₁ + b g₂, with the two residuals before it, the residuals to come
    follow the same recurrence, and sum up to (g + b g₁)/(1 − a − b): minimal polynomial
    extrapolation for an eigenvalue, two of opposite signs, or a complex pair. Where the
    recurrence does not hold, g stands for it.

    References
    ----------
    Cabay and Jackson, "A polynomial extrapolation method for finding limits and
    antilimits of vector sequences", SIAM J. Numer. Anal. 13, 1976.
    """
    space, xp, g = problem.space, problem.space.xp, new.increment
    pairs = (before, before), (g, before), (g, g), (earlier, earlier)
    square, one, size, older = space.dots(*pairs)
    first = space.ratio(one, square)
    second, explained = space.zero * first, first * one
    if not space.backend.known_here(size - explained <= PARALLEL * size):
        mixed, two = space.dots((before, earlier), (g, earlier))
        # What the second residual adds once its part along the first one is taken out.
        rest = older - space.ratio(mixed * mixed, square)
        b = space.ratio(two - space.ratio(mixed * one, square), rest)
        adds = (rest > PARALLEL * older) & (size - explained > PARALLEL * size)
        second = xp.where(adds, b, second)
        first = first - space.ratio(second * mixed, square)
        explained = first * one + second * two
    left = 1.0 - first - second
    # A recurrence of two residuals only has not been seen to hold, and one that they
    # follow no better than their rounding allows tells nothing.
    tells = problem.exceeds_rounding(new, left * new.residual_norm)
    known = (explained > EXPLAINED * size) & (left > 0.0) & (older > 0.0) & tells
    factor = xp.where(known, space.ratio(space.one, left), space.one)
    if least is not None:
        length = size + second * (2.0 * one + second * square)
        known = known & (factor * factor * length >= least * least)
    second = xp.where(known, second, xp.zeros_like(second))
    total = space.scale(factor, space.axpy(second, before, g))
    return total, xp.where(known, space.one, xp.zeros_like(left) + math.nan)
