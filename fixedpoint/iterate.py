"""The one loop that drives every solver."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.problem import FixedPointProblem, Point
from fixedpoint.solution import Status
from fixedpoint.solvers.base import Solver
from fixedpoint.space import Space


class Carry(NamedTuple):
    """What one turn of the loop hands to the next."""

    point: Point
    state: Any
    status: Array
    active: Array
    steps: Array
    step: Any


class Iteration(NamedTuple):
    """Where the loop ended."""

    point: Point
    status: Array
    steps: Array
    evaluations: Any


# The relative part of the tolerance grows with ‖f(z)‖, and so must not be all that a runaway such
# as z ↦ z + 1 has to meet: a sample that ran counts as converged only if its residual also fell.
_FALL = 0.9

RUNNING = int(Status.RUNNING)  # array-API namespaces compare with plain integers alone


def iterate(solver: Solver, problem: FixedPointProblem, start: Vec, max_steps: int) -> Iteration:
    """Run `solver` from `start` until every sample has a status, for `max_steps` steps at most.

    A sample stops as soon as its residual is within tolerance, or f is not finite at its next
    iterate; it then keeps its last iterate, whatever its neighbours do. The map is evaluated
    once at the start and, by solvers that search no line, once a step.
    """
    space, xp, backend = problem.space, problem.space.xp, problem.space.backend
    first = problem.evaluate(start)
    ceiling = xp.where(
        first.residual_norm * _FALL > problem.atol, first.residual_norm * _FALL, problem.atol
    )

    def unfinished(carry: Carry) -> Any:
        if backend.is_traced((carry.status,)):
            return (carry.step < max_steps) & xp.any(carry.active)
        return carry.step < max_steps and backend.any(carry.active)

    def turn(carry: Carry) -> Carry:
        active = None if backend.known_all(carry.active) else carry.active
        new, state = solver.step(space, problem, carry.point, carry.state, active)
        lost = _lost(space, new, active)
        fell = new.satisfied & (new.residual_norm <= ceiling)
        point = new if lost is None else _revert(space, lost, new, carry.point)
        status = _judge(space, carry.status, active, lost, fell)
        steps = carry.steps + (1 if active is None else xp.astype(active, xp.int32))
        return Carry(point, state, status, status == RUNNING, steps, carry.step + 1)

    untested = xp.zeros_like(first.satisfied, dtype=xp.int32)
    status = _judge(space, untested, None, _lost(space, first, None), first.satisfied)
    state = solver.init(space, first)
    carry = Carry(first, state, status, status == RUNNING, untested, 0)
    end = backend.while_loop(unfinished, turn, carry)
    exhausted = xp.full_like(end.status, int(Status.MAX_STEPS))
    status = xp.where(end.status == RUNNING, exhausted, end.status)
    return Iteration(end.point, status, end.steps, end.step + 1)


def _lost(space: Space, new: Point, active: Array | None) -> Array | None:
    """The active samples in which f is not finite; None if there are none."""
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
