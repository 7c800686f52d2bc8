"""Newton's method with the Jacobian as a matrix, for small systems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count, check_positive
from fixedpoint.keywords import by_name
from fixedpoint.linear.direct import System
from fixedpoint.matrix import Sparsity
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.linear_model import LinearModel, matching
from fixedpoint.solvers.remaining import Remaining, after_elimination
from fixedpoint.solvers.search import (
    ESCAPES,
    Descent,
    Search,
    backtrack,
    bounded,
    escaped,
)
from fixedpoint.space import Space

# The share of the expected decrease that a step has to bring; and what a fall of the
# residual counts as, of the correction: one to about a third is enough by itself.
_SUFFICIENT, _FALL = 0.25, 2.0

# A step that the line search made shorter than this share of Newton's is short.
_SHORT = 1 / 16


class NewtonState(NamedTuple):
    """What Newton's method remembers."""

    sparsity: Sparsity | None  # the Jacobian's zeros, as difference quotients found
    length: Array  # of the last correction, relative to the state; ∞ if not in full
    escapes: Array  # points with a singular derivative that were left
    sizes: Array  # (batch, n), the largest that each entry of the state has been
    residuals: Array  # (batch, n), the same of those of the residual
    short: Array  # steps in a row that the line search made short


@by_name
@dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    """Newton's method with the Jacobian as a matrix.

    Solves g′(z) d = −g(z) by elimination, or where g′ is singular in the least-squares
    sense by a singular value decomposition, and backtracks along d until ‖g′(z)⁻¹g‖ has
    fallen sufficiently, with entries relative to the largest that each has been. Unlike
    ‖g‖ this natural level goes straight along d at first, whatever the units of the
    equations and their condition, so that no curved valley has to be followed; but it
    is no measure beyond a kink, and a fall of ‖g‖ to about a third is enough, too. The
    Jacobian is the caller's ``jacobian``, or is made column by column from products or
    difference quotients; of these, columns that share no row share an evaluation once
    the zeros are known. For systems of up to a few hundred unknowns, or where
    ``jacobian`` gives a sparse matrix.

    Where the derivative is singular, so that no d explains the residual, the state is
    moved by a sixteenth of itself, three times at most.

    The error at a new point is that of one more correction with the old Jacobian, d̄ =
    −g′(z)⁻¹g(z + d), as long as Θ = ‖d̄‖/‖d‖ tells that the iteration contracts
    quadratically; else that of the geometric series that the ratio of two corrections
    begins.

    Parameters
    ----------
    line_search : bool, optional
        Whether to damp. Without, every finite step is taken, which may escape a
        place where the derivative is singular, at which damping gets stuck.
    step_bound : float, optional
        No entry of d may exceed this many times the largest entry of z: the others keep
        their full length, so that in a chain of equations each is solved as soon as
        those before it are.
    short_steps : int, optional
        After so many steps in a row that the line search made shorter than a sixteenth
        it has failed, so that another method may try; by default it may creep on.

    References
    ----------
    Dennis and Schnabel, "Numerical Methods for Unconstrained Optimization and Nonlinear
    Equations", SIAM, 1996. Deuflhard, "Newton Methods for Nonlinear Problems", Springer
    2004, chapter 2: the simplified correction as an estimate of the error; chapter 3:
    the restricted natural monotonicity test of damped steps.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> F = lambda x: np.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])
    >>> sol = fp.root(F, np.array([-1.2, 1.0]), solver=fp.Newton())
    >>> np.round(sol.value, 6)
    array([1., 1.])
    """

    line_search: bool = True
    step_bound: float | None = None
    short_steps: int | None = None

    def __post_init__(self) -> None:
        if self.short_steps is not None:
            check_count("short_steps", self.short_steps, 1)
        if self.step_bound is not None:
            check_positive("step_bound", self.step_bound, math.inf)

    def resume(
        self, space: Space, state: NewtonState, point: Point, fresh: NewtonState
    ) -> NewtonState:
        """The zeros that an earlier call found."""
        del point
        return fresh._replace(sparsity=matching(space, state.sparsity))

    def patience(self, space: Space) -> int:
        """With bounded steps, a step for each equation of a chain."""
        chain = 0 if self.step_bound is None else space.real_size
        return super().patience(space) + chain

    def init(self, problem: Problem, point: Point) -> NewtonState:
        """Nothing is known of the Jacobian."""
        space = problem.space
        count = space.xp.zeros_like(point.residual_norm, dtype=space.xp.int32)
        sizes, residuals = (
            space.xp.abs(space.ravel(u)) for u in (point.value, point.increment)
        )
        length = space.full(math.inf)
        return NewtonState(None, length, count, sizes, residuals, count)

    def step(self, problem: Problem, point: Point, state: NewtonState) -> Step:
        """One Jacobian and one line search."""
        space, model = problem.space, LinearModel.at(problem, point, state)
        system, escaping = model.system, self._escaping(model, state.escapes)
        residuals = space.xp.maximum(state.residuals, space.xp.abs(system.rhs))
        level = _Level.at(system, model.sizes, residuals)
        descent, whole = self._descent(space, level, point, escaping)
        pending = problem.live(system.finite)
        search = backtrack(problem, point, descent, pending, self.line_search)
        left = _left(space, model, search, whole, state.length)
        useless = search.pending | _is_idle(problem, point, system, descent, escaping)
        escapes = state.escapes + space.xp.astype(escaping, space.xp.int32)
        short = state.short
        if self.short_steps is not None:
            short = space.xp.where(search.length < _SHORT, short + 1, 0 * short)
            useless = useless | (short >= self.short_steps)
        known = model.matrix.sparsity, left.length, escapes, model.sizes
        return Step(
            search.point,
            NewtonState(*known, residuals, short),
            model.matrix.work.plus(Work(f=search.trials)),
            model.failure(space, useless),
            correction=left.correction,
            error_factor=left.error_factor,
            is_direct=True,
            rounding=partial(model.rounding, problem, search.point),
        )

    def _escaping(self, model: LinearModel, escapes: Array) -> Array:
        """Whether a point is to be left: no direction explains the residual, or the
        function is flat there.
        """
        system = model.system
        flat = system.finite & ~(model.matrix.reliable & system.finite)
        return ~system.explained & (escapes < ESCAPES) | flat & (escapes < 1)

    def _descent(
        self, space: Space, level: _Level, point: Point, escaping: Array
    ) -> tuple[Descent, Array]:
        """What to search along, and whether it is all of Newton's direction."""
        xp, entries = space.xp, level.system.entries
        along = bounded(space, space.unravel(entries), point, self.step_bound)
        slope = level.slope(space.ravel(along))
        # A step that is a rounding error of the state cannot be too long.
        merit = xp.where(level.merit <= space.rounding, space.infinity, level.merit)
        descent = Descent(along, merit, slope, level.of, _SUFFICIENT)
        descent = escaped(space, point.value, escaping, descent)
        same = space.ravel(descent.direction) == entries
        return descent, xp.all(same, axis=-1)


def _left(
    space: Space, model: LinearModel, search: Search, whole: Array, before: Array
) -> Remaining:
    """What is left after a search along all of Newton's direction, or a part of it."""
    known = model.is_derivative & (search.length == 1.0) & ~search.pending
    lengths = known & whole, before, search.simplified
    return after_elimination(space, model.system, search.point, known, *lengths)


def _is_idle(
    problem: Problem, point: Point, system: System, descent: Descent, escaping: Array
) -> Array:
    """Whether no direction explains the residual, and the step is negligible."""
    idle = ~system.explained & ~escaping
    if problem.space.backend.known_here(~idle):
        return idle
    return idle & problem.is_negligible(descent.direction, point)


class _Level(NamedTuple):
    """The length of a residual's simplified correction, in entries of their own units.

    That of the matrix before is no measure beyond a kink, and blows up where it is
    nearly singular: a residual that falls by far counts as well.
    """

    system: System
    sizes: Array  # the largest that each entry of the state has been
    residuals: Array  # and of the residual
    merit: Array  # the length of Newton's correction

    @classmethod
    def at(cls, system: System, sizes: Array, residuals: Array) -> _Level:
        """That at a point."""
        merit = _length(system.space, sizes, system.entries, system.entries)
        return cls(system, sizes, residuals, merit)

    def of(self, increment: Vec) -> tuple[Array, Array]:
        """That of the residual of an increment, and the simplified correction."""
        space, system = self.system.space, self.system
        rhs = -space.ravel(increment)
        weights = _weights(space, self.residuals, system.rhs, rhs)
        new, old = (
            space.xp.linalg.vector_norm(weights * u, axis=-1) for u in (rhs, system.rhs)
        )
        fallen = _FALL * self.merit * space.ratio(new, old)
        simplified = system.solved(rhs)
        length = _length(space, self.sizes, system.entries, simplified)
        return space.xp.minimum(length, fallen), simplified

    def slope(self, entries: Array) -> Array:
        """The rate at which half its square falls along a direction, over it."""
        space, d = self.system.space, self.system.entries
        weights = _weights(space, self.sizes, d, d)
        unit = weights * d * space.ratio(space.one, self.merit)[..., None]
        return space.xp.sum(unit * weights * entries, axis=-1)


def _length(space: Space, sizes: Array, first: Array, entries: Array) -> Array:
    """That of a correction, in entries of their own units."""
    weights = _weights(space, sizes, first, entries)
    return space.xp.linalg.vector_norm(weights * entries, axis=-1)


def _weights(space: Space, sizes: Array, first: Array, entries: Array) -> Array:
    """What makes entries relative to the largest that each has been.

    One that has been zero until now has no unit but what it is first: small by chance,
    that makes no more of what follows.
    """
    xp = space.xp
    largest = xp.maximum(xp.abs(first), xp.abs(entries))
    return space.ratio(space.one, xp.where(sizes > 0.0, sizes, largest))
