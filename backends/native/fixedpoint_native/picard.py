"""Plain iteration, on one NumPy array of each sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from fixedpoint.backend import Vec
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.picard import EXPLAINED, PARALLEL, Picard
from fixedpoint_native import _kernels
from fixedpoint_native.kernel import TYPES, CompiledSteps, Made, Method, is_simple

_CLASSES = (_kernels.PicardFloat32, _kernels.PicardFloat64)
_KERNELS: dict[Any, Any] = dict(zip(TYPES, _CLASSES, strict=True))


def picard_kernel(solver: Solver, problem: Problem) -> PicardSteps | None:
    """The kernel for the steps of plain iteration, if that is the solver, and the
    problem a simple one.
    """
    if type(solver) is not Picard or not is_simple(problem):
        return None
    return PicardSteps(solver, problem, _KERNELS, memory=1, least=0.0)


class PicardSteps(CompiledSteps):
    """Steps of plain iteration."""

    def trial(self, problem: Problem, point: Point, state: Vec) -> Vec:
        """Along the residual."""
        del state
        space = problem.space
        moved = space.add(
            point.value, space.scale(self.solver.damping, point.increment)
        )
        return space.where(problem.active, moved, point.value)

    def method(self, problem: Problem, point: Point, state: Vec) -> Method:
        """The residual before the old one, which is what will be remembered."""
        del problem
        earlier = np.ascontiguousarray(state[0])
        return Method(
            state=point.increment,
            pushed=0,
            slot=0,
            shortened=None,
            arrays=(earlier, self.solver.damping, PARALLEL, EXPLAINED),
            written=(),
        )

    def ended(self, method: Method, made: Made, value: Vec) -> Step:
        """The step, what follows being the correction."""
        point, correction = made.point(value), (made.following,)
        return Step(point, method.state, correction=correction)
