"""The Levenberg-Marquardt method, for small systems."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array
from fixedpoint.checks import check_positive
from fixedpoint.keywords import by_name
from fixedpoint.linear.direct import (
    Factors,
    column_norms,
    damped,
    factorized,
    rotated,
    rotated_back,
)
from fixedpoint.matrix import Sparsity, times
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.linear_model import LinearModel, matching, units
from fixedpoint.solvers.remaining import after_elimination, relative_weights
from fixedpoint.space import Space

_TRIALS = 40

# How far a step may be from Newton's, relative to it, to count as that.
_SAME = 1e-6

# λ is sought between its upper bound ‖(g′D⁻¹)ᵀg‖/Δ and so many decades below, to 2⁻ᵏ of
# them.
_DECADES, _BISECTIONS = 40.0, 12

# The part of the promised decrease that a step has to bring; with more than the last
# one the radius grows.
_SUFFICIENT, _FAIR, _GOOD = 1e-4, 0.25, 0.75


class LevenbergMarquardtState(NamedTuple):
    """What the Levenberg-Marquardt method remembers."""

    radius: Array  # the trust radius in the norm ‖Dd‖, zero before the first step
    scales: Array  # (batch, n), D, the largest norm each column of the Jacobian has had
    sparsity: Sparsity | None  # this and those that follow as for Newton's method
    length: Array
    sizes: Array
    weights: Array  # (batch, n), those of the equations, zero before the first step


@by_name
@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(Solver):
    """The Levenberg-Marquardt method as a trust region, for small systems.

    Minimizes ‖g + g′d‖ over ‖Dd‖ ≤ Δ, where D holds the largest norm that each column
    of g′ has had: d = −(g′ᵀg′ + λD²)⁻¹ g′ᵀg with the λ ≥ 0 that the radius Δ calls for,
    found by bisection in the singular vectors of g′D⁻¹. A step is taken if it brings a
    10⁻⁴ of the decrease that the model promised; the radius follows how good the
    promise was.

    Parameters
    ----------
    radius : float, optional
        The first radius, as a multiple of ‖Dz₀‖, or itself where z₀ = 0.

    References
    ----------
    Moré, "The Levenberg-Marquardt algorithm: implementation and theory", Lecture Notes
    in Mathematics 630, 1978.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> F = lambda x: np.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])
    >>> sol = fp.root(F, np.array([-1.2, 1.0]), solver=fp.LevenbergMarquardt())
    >>> np.round(sol.value, 6)
    array([1., 1.])
    """

    radius: float = 100.0

    def __post_init__(self) -> None:
        check_positive("radius", self.radius, math.inf)

    def init(self, problem: Problem, point: Point) -> LevenbergMarquardtState:
        """No radius, and no scales."""
        space = problem.space
        none = space.full(0.0, (space.real_size,))
        sizes = space.xp.abs(space.ravel(point.value))
        return LevenbergMarquardtState(
            space.full(0.0), none, None, space.full(math.inf), sizes, none
        )

    def resume(
        self,
        space: Space,
        state: LevenbergMarquardtState,
        point: Point,
        fresh: LevenbergMarquardtState,
    ) -> LevenbergMarquardtState:
        """The radius, scales and zeros of an earlier call."""
        del point
        return state._replace(
            sparsity=matching(space, state.sparsity), length=fresh.length
        )

    def step(
        self, problem: Problem, point: Point, state: LevenbergMarquardtState
    ) -> Step:
        """One Jacobian, and trials at shrinking radii until one is accepted."""
        space, model = problem.space, LinearModel.at(problem, point, state)
        system, matrix = model.system, model.matrix
        value = space.ravel(point.value)
        weights = units(space, system, value, state.weights)
        scaled = weights[..., :, None] * system.dense()
        scales = space.xp.maximum(state.scales, column_norms(space, scaled))
        trials = _Trials(problem, point, weights, factorized(space, scaled, scales))
        radius = self._radius(space, state.radius, scales * value)
        end = trials.run(radius, problem.live(system.finite))
        moved = space.ravel(end.point.value) - value
        full = model.is_derivative & _same(space, moved, system.entries, value)
        left = after_elimination(space, system, end.point, full, full, state.length)
        return Step(
            end.point,
            LevenbergMarquardtState(
                end.radius, scales, matrix.sparsity, left.length, model.sizes, weights
            ),
            matrix.work.plus(Work(f=end.trials)),
            model.failure(space, end.pending),
            correction=left.correction,
            error_factor=left.error_factor,
            is_direct=True,
            rounding=partial(model.rounding, problem, end.point),
        )

    def _radius(self, space: Space, radius: Array, scaled: Array) -> Array:
        """The radius, the first one relative to the scaled state Dz."""
        xp, size = space.xp, space.xp.linalg.vector_norm(scaled, axis=-1)
        first = self.radius * xp.where(size > 0.0, size, space.one)
        return xp.where(radius > 0.0, radius, first)


def _same(space: Space, moved: Array, entries: Array, value: Array) -> Array:
    """Whether a move is all of a direction, up to the rounding of the state."""
    xp = space.xp
    weights = relative_weights(space, value, entries)
    far, size = (
        xp.linalg.vector_norm(weights * u, axis=-1) for u in (moved - entries, moved)
    )
    return far <= _SAME * size + space.rounding * math.sqrt(space.real_size)


class _Trial(NamedTuple):
    point: Point
    radius: Array
    pending: Array
    trials: Any


@dataclass(frozen=True, eq=False)
class _Trials:
    """The trials of one step."""

    problem: Problem
    old: Point
    weights: Array
    factors: Factors

    def run(self, radius: Array, pending: Array) -> _Trial:
        backend = self.problem.space.backend
        end: _Trial = backend.while_loop(
            lambda c: backend.any(c.pending) & (c.trials < _TRIALS),
            self.turn,
            _Trial(self.old, radius, pending, 0),
            _TRIALS,
        )
        return end

    def turn(self, carry: _Trial) -> _Trial:
        """Try the step that the radius allows, and judge it by its decrease."""
        space, xp = self.problem.space, self.problem.space.xp
        entries, length, promised = self.restricted(carry.radius)
        step = space.unravel(entries)
        value = space.add(self.old.value, step)
        new = self.problem.trial(space.where(carry.pending, value, carry.point.value))
        decrease = self._decrease(new)
        gain = space.ratio(decrease, promised)
        good = (new.residual_norm < xp.inf) & (decrease > -xp.inf)
        short = self.problem.is_negligible(step, self.old)
        accepted = carry.pending & good & ((gain > _SUFFICIENT) | short)
        radius = self._next_radius(carry.radius, length, gain, good)
        return _Trial(
            choose(space, self.problem.renewed(accepted), new, carry.point),
            xp.where(carry.pending, radius, carry.radius),
            carry.pending & ~accepted,
            carry.trials + 1,
        )

    def _decrease(self, new: Point) -> Array:
        """The relative decrease of ‖g‖², free of overflow; −∞ where g is not finite."""
        space, xp = self.problem.space, self.problem.space.xp
        merit, norm = (
            xp.linalg.vector_norm(self.weights * space.ravel(at.increment), axis=-1)
            for at in (self.old, new)
        )
        relative = space.ratio(norm, merit)
        return 1.0 - relative * relative

    def _next_radius(
        self, radius: Array, length: Array, gain: Array, good: Array
    ) -> Array:
        """A larger radius where the model kept its promise, else a smaller one."""
        xp = self.problem.space.xp
        least, grown = xp.minimum(radius, length), xp.maximum(radius, 2.0 * length)
        following = xp.where(gain > _SUFFICIENT, 0.5 * least, 0.25 * least)
        following = xp.where(gain >= _FAIR, radius, following)
        following = xp.where(gain >= _GOOD, grown, following)
        return xp.where(good, following, 0.25 * least)

    def restricted(self, radius: Array) -> tuple[Array, Array, Array]:
        """The step, its length ‖Dd‖, and the promised relative decrease of ‖g‖²."""
        space, xp, factors = self.problem.space, self.problem.space.xp, self.factors
        rhs = -self.weights * space.ravel(self.old.increment)
        coordinates = rotated(space, factors, rhs)
        lam = self.multiplier(rhs, factors.values * coordinates, radius)
        entries = damped(space, factors, coordinates, lam)
        length = xp.linalg.vector_norm(entries, axis=-1)
        left = coordinates - factors.values * entries
        total = xp.linalg.vector_norm(rhs, axis=-1)
        inside = space.ratio(coordinates, total[..., None])
        after = space.ratio(left, total[..., None])
        promised = xp.sum(inside * inside - after * after, axis=-1)
        return rotated_back(space, factors, entries), length, promised

    def multiplier(self, rhs: Array, products: Array, radius: Array) -> Array:
        """The λ ≥ 0 at which q(λ) is as long as the radius, by bisection."""
        space, xp = self.problem.space, self.problem.space.xp
        squares = self.factors.values * self.factors.values
        norm = partial(xp.linalg.vector_norm, axis=-1, keepdims=True)
        length: Callable[[Array], Array] = lambda lam: norm(
            space.ratio(products, squares + lam)
        )
        bound = radius[..., None]
        slope = times(space, xp.matrix_transpose(self.factors.matrix), rhs)
        highest = space.ratio(norm(slope), bound)
        low, high = -_DECADES + 0.0 * highest, 0.0 * highest
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            above = length(highest * 10.0**middle) > bound
            low, high = xp.where(above, middle, low), xp.where(above, high, middle)
        inside = length(0.0 * highest) <= bound
        return xp.where(inside, 0.0 * highest, highest * 10.0**high)
