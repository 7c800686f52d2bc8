"""The one loop that drives every solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.problem import FixedPointProblem, Point
from fixedpoint.solution import Status
from fixedpoint.solvers.base import Solver
from fixedpoint.space import Space

# The relative part of the tolerance grows with ‖f(z)‖, and so must not be all that a runaway such
# as z ↦ z + 1 has to meet: a sample that ran counts as converged only if its residual also fell.
_FALL = 0.9

_RUNNING = int(Status.RUNNING)  # array-API namespaces compare with plain integers alone


class Carry(NamedTuple):
    """What one turn of the loop hands to the next.

    Attributes
    ----------
    point, state
        Where the iteration stands, and what the solver remembers.
    status, steps : array of the batch's shape
        How each sample stands, and when it stopped.
    active : array of bool or None
        The samples that still run; None if all are known to.
    running : bool
        Whether any does.
    step : int
        Turns so far.
    """

    point: Point
    state: Any
    status: Array
    steps: Array
    active: Array | None
    running: Any
    step: Any


class Iteration(NamedTuple):
    """Where the loop ended."""

    point: Point
    status: Array
    steps: Array
    evaluations: Any


def iterate(solver: Solver, problem: FixedPointProblem, start: Vec, max_steps: int) -> Iteration:
    """Run `solver` from `start` until every sample has a status, for `max_steps` steps at most.

    A sample stops as soon as its residual is within tolerance, or f is not finite at its next
    iterate; it then keeps its last iterate, whatever its neighbours do. The map is evaluated
    once at the start and, by solvers that search no line, once a step.
    """
    xp, backend = problem.space.xp, problem.space.backend
    first = problem.evaluate(start)
    fallen = _FALL * first.residual_norm
    ceiling = xp.where(fallen > problem.atol, fallen, problem.atol)
    loop = _Loop(solver, problem, ceiling, max_steps)
    end = backend.while_loop(loop.unfinished, loop.turn, loop.begin(first))
    end = loop.settle(end, _exhausted(xp, end.status))
    point = end.point._replace(value=_owned(end.point.value, start))
    return Iteration(point, end.status, end.steps, end.step + 1)


def _owned(value: Vec, start: Vec) -> Vec:
    """A copy of `value` where it is the caller's own array: the iteration ended where it began."""
    leaves = zip(value, start, strict=True)
    return tuple(1.0 * leaf if leaf is first else leaf for leaf, first in leaves)


@dataclass(frozen=True, eq=False)
class _Loop:
    solver: Solver
    problem: FixedPointProblem
    ceiling: Array
    max_steps: int

    def begin(self, first: Point) -> Carry:
        space = self.problem.space
        untested = space.xp.zeros_like(first.satisfied, dtype=space.xp.int32)
        status = _judge(space, untested, None, _lost(space, first, None), first.satisfied)
        state = self.solver.init(space, first)
        return self.sift(Carry(first, state, status, untested, None, True, 0))

    def unfinished(self, carry: Carry) -> Any:
        return carry.running & (carry.step < self.max_steps)

    def turn(self, carry: Carry) -> Carry:
        """One step, and what became of each sample by it."""
        space = self.problem.space
        new, state = self.solver.step(space, self.problem, carry.point, carry.state, carry.active)
        lost = _lost(space, new, carry.active)
        point = new if lost is None else _revert(space, lost, new, carry.point)
        carry = carry._replace(point=point, state=state, step=carry.step + 1)
        if lost is None and space.backend.known_none(new.satisfied):
            return carry
        fell = new.satisfied & (new.residual_norm <= self.ceiling)
        return self.settle(carry, _judge(space, carry.status, carry.active, lost, fell))

    def settle(self, carry: Carry, status: Array) -> Carry:
        """Take note of the samples that have stopped."""
        xp = self.problem.space.xp
        stopped = (carry.status == _RUNNING) & (status != _RUNNING)
        steps = xp.where(stopped, xp.full_like(carry.steps, 1) * carry.step, carry.steps)
        return self.sift(carry._replace(status=status, steps=steps))

    def sift(self, carry: Carry) -> Carry:
        """Find the samples that still run."""
        backend = self.problem.space.backend
        active = carry.status == _RUNNING
        every = backend.known_all(active)
        return carry._replace(
            active=None if every else active, running=every or backend.any(active)
        )


def _exhausted(xp: Any, status: Array) -> Array:
    """The samples that still run have run out of steps."""
    return xp.where(status == _RUNNING, xp.full_like(status, int(Status.MAX_STEPS)), status)


def _lost(space: Space, new: Point, active: Array | None) -> Array | None:
    """The active samples in which f is not finite; None if there are known to be none."""
    finite = new.residual_norm < space.xp.inf
    if space.backend.known_all(finite):
        return None
    return ~finite if active is None else ~finite & active


def _revert(space: Space, lost: Array, new: Point, old: Point) -> Point:
    """The old point in the samples that are `lost`, the new one elsewhere."""
    where = space.xp.where
    return Point(
        space.where(lost, old.value, new.value),
        space.where(lost, old.increment, new.increment),
        where(lost, old.residual_norm, new.residual_norm),
        where(lost, old.scale, new.scale),
        where(lost, old.satisfied, new.satisfied),
    )


def _judge(
    space: Space, status: Array, active: Array | None, lost: Array | None, satisfied: Array
) -> Array:
    """The status of each active sample after an evaluation; of the others, as it was."""
    xp = space.xp
    verdict = xp.astype(satisfied, xp.int32) * int(Status.CONVERGED)
    if lost is not None:
        verdict = xp.where(lost, xp.full_like(verdict, int(Status.NON_FINITE)), verdict)
    return verdict if active is None else xp.where(active, verdict, status)
