"""Broyden's good method, on one NumPy array of each sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from fixedpoint.backend import Vec
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.broyden import Broyden, BroydenState, emptied
from fixedpoint_native import _kernels
from fixedpoint_native.kernel import TYPES, CompiledSteps, Made, Method, is_simple

_CLASSES = (_kernels.BroydenFloat32, _kernels.BroydenFloat64)
_KERNELS: dict[Any, Any] = dict(zip(TYPES, _CLASSES, strict=True))

# Entries of a sample beyond which a library reads the columns, of which there are
# many, faster: one after the other, from end to end.
_LONGEST = 2**15


def broyden_kernel(solver: Solver, problem: Problem) -> BroydenSteps | None:
    """The kernel for plain steps of Broyden's method, if that is the solver, and the
    problem a simple one.
    """
    if type(solver) is not Broyden or not is_simple(problem):
        return None
    if solver.line_search or solver.update != "good":
        return None
    if solver.memory > _kernels.BROYDEN_MEMORY or problem.space.size > _LONGEST:
        return None
    precision = problem.space.precision
    return BroydenSteps(solver, problem, _KERNELS, solver.memory, precision)


class BroydenSteps(CompiledSteps):
    """Steps of Broyden's method."""

    def trial(self, problem: Problem, point: Point, state: BroydenState) -> Vec:
        """Along the direction."""
        moved = problem.space.add(point.value, state.direction)
        return problem.space.where(problem.active, moved, point.value)

    def method(self, problem: Problem, point: Point, state: BroydenState) -> Method:
        """The columns, emptied first if none is free."""
        state = emptied(problem.space, state, point)
        slot, (left,), (right,) = state.pushed, state.left.leaves, state.right.leaves
        at = (slice(None),) * problem.space.batch_ndim + (slot,)
        ahead = state.direction and map(np.ascontiguousarray, state.direction)
        return Method(
            state=state,
            pushed=slot,
            slot=slot,
            shortened=state.shortened,
            arrays=(left, right, state.scale, *(ahead or (None,))),
            written=(left[at], right[at]),
        )

    def ended(self, method: Method, made: Made, value: Vec) -> Step:
        """The step, what follows being the next direction."""
        state, direction = method.state, (made.following,)
        state.used[..., method.slot] = 1.0
        state = state._replace(
            direction=direction, shortened=None, pushed=method.pushed + 1
        )
        return Step(made.point(value), state, correction=direction)
