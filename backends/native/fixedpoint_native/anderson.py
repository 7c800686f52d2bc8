"""Anderson's method of type II, undamped, on one NumPy array of each sample."""

from __future__ import annotations

from typing import Any

from fixedpoint.backend import Vec
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.anderson import Anderson, AndersonState, slot_of
from fixedpoint.solvers.base import Solver, Step
from fixedpoint_native import _kernels
from fixedpoint_native.kernel import TYPES, CompiledSteps, Made, Method, is_simple

_CLASSES = (_kernels.AndersonFloat32, _kernels.AndersonFloat64)
_KERNELS: dict[Any, Any] = dict(zip(TYPES, _CLASSES, strict=True))


def anderson_kernel(solver: Solver, problem: Problem) -> AndersonSteps | None:
    """The kernel for plain steps of Anderson's method, if that is the solver, and the
    problem a simple one.
    """
    if type(solver) is not Anderson or not _is_plain(solver) or not is_simple(problem):
        return None
    memory = min(solver.memory, problem.space.dimension)
    if memory > _kernels.ANDERSON_MEMORY:
        return None
    ridge = solver.ridge(problem.space)
    return AndersonSteps(solver, problem, _KERNELS, memory, 1.0 + ridge)


def _is_plain(solver: Anderson) -> bool:
    undamped = not callable(solver.damping) and solver.damping == 1
    plain = not solver.delay and solver.weights is None
    return undamped and plain and solver.type == 2


class AndersonSteps(CompiledSteps):
    """Steps of Anderson's method."""

    def trial(self, problem: Problem, point: Point, state: AndersonState) -> Vec:
        """What was proposed."""
        return problem.space.where(problem.active, state.proposal, point.value)

    def method(self, problem: Problem, point: Point, state: AndersonState) -> Method:
        """The columns, which the solver writes alike, and the Gram matrix."""
        del problem, point
        columns = *state.residuals.leaves, *state.images.leaves
        gram, slot = state.gram, slot_of(state.pushed, state.gram.shape[-1])
        return Method(
            state=state,
            pushed=state.pushed,
            slot=slot,
            shortened=state.rejected,
            arrays=(*columns, gram, state.envelope),
            written=(gram[..., slot, :], gram[..., :, slot]),
        )

    def ended(self, method: Method, made: Made, value: Vec) -> Step:
        """The step, what follows being the next proposal."""
        state = method.state._replace(
            pushed=method.pushed + 1, rejected=None, proposal=(made.following,)
        )
        return Step(made.point(value), state)
