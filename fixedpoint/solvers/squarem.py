"""Squared extrapolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.keywords import by_name
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.picard import remaining
from fixedpoint.space import Difference, Space

# What is left by plain steps is known if it is no shorter than this part of what the
# best points tell.
_CONSISTENT = 0.9

# Plain cycles at most that are to tell what is left, before the longest estimate is
# taken for it.
_PLAIN_CYCLES = 4


class SquaremState(NamedTuple):
    """What SQUAREM remembers."""

    bound: Array  # a_max, the longest extrapolation allowed
    best: Point  # that of the smallest residual
    amplification: Array  # ‖Δz‖/‖Δg‖ between the last two such points
    doubts: Array  # cycles in a row after which the error seems small, but is not known


@by_name
@dataclass(frozen=True, kw_only=True)
class SQUAREM(Solver):
    """Squared extrapolation, scheme S3, made for the EM algorithm.

    From z₁ = f(z), with r = z₁ − z and v = (f(z₁) − z₁) − r, the step

        z ← z + 2ar + a²v ,    a = min(max(‖r‖/‖v‖, 1), a_max) ,

    costs two evaluations; a = 1 is two steps of Picard's. The bound a_max starts at 1
    and grows by the factor `growth` whenever it binds. Where the new point is not
    finite or its residual is above `tolerance` times the largest of those at z and z₁,
    z₁ is taken instead, and a_max falls.

    After an extrapolation the residual lies along directions in which f contracts fast,
    too, and does not tell how far the end is along the slow one. So where it seems
    near, the next cycles are of plain steps, until their residuals tell.

    Parameters
    ----------
    growth : float, optional
        The factor by which a_max grows and falls.
    tolerance : float, optional
        How much a residual may rise.

    References
    ----------
    Varadhan and Roland, "Simple and globally convergent methods for accelerating the
    convergence of any EM algorithm", Scand. J. Statist. 35, 2008.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> sol = fp.fixed_point(lambda z: 0.99 * z + 1.0, np.zeros(1), solver=fp.SQUAREM())
    >>> np.round(sol.value, 3), int(sol.work.f)
    (array([100.]), 11)
    """

    growth: float = 4.0
    tolerance: float = 10.0

    def __post_init__(self) -> None:
        for name in ("growth", "tolerance"):
            value = getattr(self, name)
            if not 1.0 < value < math.inf:
                raise ValueError(
                    f"{name} must be finite and greater than 1, got {value!r}"
                )

    @property
    def is_plain(self) -> bool:
        """Every step passes through the map twice."""
        return True

    def init(self, problem: Problem, point: Point) -> SquaremState:
        """No extrapolation beyond Picard's."""
        space, norm = problem.space, point.residual_norm
        none = space.xp.zeros_like(norm, dtype=space.xp.int32)
        return SquaremState(space.full(1.0), point, space.full(0.0), none)

    def resume(
        self, space: Space, state: SquaremState, point: Point, fresh: SquaremState
    ) -> SquaremState:
        """The bound of an earlier call."""
        del space, point
        return fresh._replace(bound=state.bound)

    def step(self, problem: Problem, point: Point, state: SquaremState) -> Step:
        """One evaluation at f(z), and one at the extrapolated point."""
        space, xp = problem.space, problem.space.xp
        middle = problem.trial(space.add(point.value, point.increment), point)
        allowed = xp.where(state.doubts > 0, space.one, state.bound)
        told = state.amplification
        far, length, wanted = _extrapolated(problem, point, middle, allowed, told)
        end = problem.trial(far, point)
        ceiling = self.tolerance * xp.maximum(point.residual_norm, middle.residual_norm)
        accepted = end.residual_norm <= ceiling
        binds = (wanted >= state.bound) & (state.doubts == 0)
        bound = xp.where(binds, self.growth * state.bound, state.bound)
        less = xp.maximum(state.bound / self.growth, space.one)
        new = choose(space, accepted, end, middle)
        state = _noted(problem, state, new, xp.where(accepted, bound, less))
        # The extrapolation from the new point, if it were as long as this or the last
        # long one, or if the best points told of it.
        longest = xp.maximum(xp.maximum(wanted, less), state.amplification)
        state, correction, error_factor = _after_plain_steps(
            problem, state, new, (middle, point), accepted & (length == 1.0), longest
        )
        return Step(
            new, state, Work(f=2), correction=correction, error_factor=error_factor
        )


def _extrapolated(
    problem: Problem, point: Point, middle: Point, bound: Array, told: Array
) -> tuple[Vec, Array, Array]:
    """The point to which z, f(z) and f(f(z)) lead, the length a of that, and the one it
    would have without a bound.

    Where v is nothing but rounding, a is what the best points `told`, and v is −r/a.
    """
    space, xp = problem.space, problem.space.xp
    second = space.subtract(middle.increment, point.increment)
    size, change = space.norms(point.increment, second)
    known = problem.exceeds_rounding(point, change)
    wanted = xp.where(known, space.ratio(size, change), told)
    length = xp.minimum(xp.maximum(wanted, space.one), bound)
    if not space.backend.known_here(known):
        parallel = space.scale(-1.0 / length, point.increment)
        second = space.where(known, second, parallel)
    far = space.axpy(2.0 * length, point.increment, point.value)
    return space.axpy(length * length, second, far), length, wanted


def _after_plain_steps(
    problem: Problem,
    state: SquaremState,
    new: Point,
    before: tuple[Point, Point],
    plain: Array,
    longest: Array,
) -> tuple[SquaremState, Vec, Array]:
    """The state, the correction and its error factor: where two plain steps were taken,
    what follows them is told by their residuals, the two `before` and the new one.
    """
    space, xp = problem.space, problem.space.xp
    known, correction = space.full(math.nan), space.scale(longest, new.increment)
    near = problem.is_negligible(correction, new)
    if not space.backend.known_here(~plain):
        least = _CONSISTENT * state.amplification * new.residual_norm
        increments = new, before[0].increment, before[1].increment
        left, known = remaining(problem, *increments, least)
        known = xp.where(plain, known, space.unknown)
        correction = space.where(known == 1.0, left, correction)
    # What a plain step changes of the residual must be more than its rounding.
    felt = problem.exceeds_rounding(new, new.residual_norm / longest)
    unsure = near & felt & xp.isnan(known) & (state.doubts < _PLAIN_CYCLES)
    doubts = xp.where(unsure, state.doubts + 1, xp.zeros_like(state.doubts))
    error_factor = xp.where(unsure, space.infinity, known)
    return state._replace(doubts=doubts), correction, error_factor


def _noted(
    problem: Problem, state: SquaremState, new: Point, bound: Array
) -> SquaremState:
    """The state with the best point renewed.

    An extrapolation stirs up directions in which the map contracts fast, and they hide
    the others in its residual. The best points have least of that.
    """
    space, best = problem.space, state.best
    moved, changed = space.norms(
        Difference(new.value, best.value), Difference(new.increment, best.increment)
    )
    better = new.residual_norm < best.residual_norm
    tells = better & problem.exceeds_rounding(new, changed)
    ratio = space.xp.maximum(space.ratio(moved, changed), 0.5 * state.amplification)
    amplification = space.xp.where(tells, ratio, state.amplification)
    best = choose(space, better, new, best)
    return state._replace(bound=bound, best=best, amplification=amplification)
