"""Anderson's method of type II, undamped, on one NumPy array of each sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.convergence import FALL, ZERO, Evidence, Verdict, judge
from fixedpoint.kernels import Kernel
from fixedpoint.point import Point
from fixedpoint.problem import FixedPointProblem, Problem
from fixedpoint.solvers.anderson import Anderson, AndersonState, slot_of
from fixedpoint.solvers.base import Solver, Step
from fixedpoint_native import _kernels

_KERNELS: dict[Any, type[_kernels.AndersonFloat32 | _kernels.AndersonFloat64]] = {
    np.dtype(np.float32): _kernels.AndersonFloat32,
    np.dtype(np.float64): _kernels.AndersonFloat64,
}

# The remarks on a sample whose step is the solver's.
_OTHERS = 0xFF & ~_kernels.RISEN


def anderson_kernel(solver: Solver, problem: Problem) -> AndersonKernel | None:
    """The kernel for plain steps of Anderson's method, where that is the solver, and
    the problem is one of real NumPy arrays, all of them here.
    """
    if type(solver) is not Anderson or not _is_plain(solver):
        return None
    if not isinstance(problem, FixedPointProblem) or not _is_simple(problem):
        return None
    if min(solver.memory, problem.space.dimension) > _kernels.LARGEST_MEMORY:
        return None
    return AndersonKernel(solver, problem)


def _is_plain(solver: Anderson) -> bool:
    undamped = not callable(solver.damping) and solver.damping == 1
    plain = not solver.delay and solver.weights is None
    return undamped and plain and solver.type == 2


def _is_simple(problem: Problem) -> bool:
    """Whether a sample is one array of NumPy's, tested as a whole or by its entries."""
    space, given, asked = problem.space, problem.functions, problem.tolerance
    if type(space.backend) is not Backend or space.backend.communicator is not None:
        return False
    if space.xp is not np or len(space.dtypes) > 1 or space.dtypes[0] not in _KERNELS:
        return False
    if given.project is not None or given.has_residual:
        return False
    if not all(isinstance(tol, (int, float)) for tol in (asked.rtol, asked.atol)):
        return False
    tested = asked.norm == "entries" or asked.is_whole(space)
    arrays = bool(space.batch_shape or space.shapes[0]) and 0 not in space.batch_shape
    return tested and arrays


class AndersonKernel(Kernel):
    """Steps of a solver on a problem.

    A step that is not the plain one is left to the solver, from the same evaluation: it
    writes what it remembers to the same places.

    Parameters
    ----------
    solver : Anderson
        The solver.
    problem : FixedPointProblem
        The problem.
    """

    def __init__(self, solver: Anderson, problem: FixedPointProblem) -> None:
        space, tolerance = problem.space, problem.tolerance
        self.solver, self.entries = solver, tolerance.norm == "entries"
        self.counts = int(tolerance.test == "error")
        self.step = _KERNELS[space.dtypes[0]](
            samples=math.prod(space.batch_shape),
            size=space.size,
            memory=min(solver.memory, space.dimension),
            entries=self.entries,
            peaks=tolerance.norm == "max",
            on_error=tolerance.test == "error",
            rtol=float(tolerance.rtol),
            atol=float(tolerance.atol),
            diagonal=1.0 + solver.ridge(space),
            rounding=float(space.rounding),
            smallest=float(space.small),
            fall=FALL,
            zero=ZERO,
        ).advance

    def advance(
        self, problem: Problem, point: Point, state: AndersonState, evidence: Evidence
    ) -> tuple[Step, Verdict]:
        """A step, one evaluation, and the test."""
        value = problem.space.where(problem.active, state.proposal, point.value)
        try:
            (image,), _ = problem.mapped(value)
        except ArithmeticError:
            # Points are made in place: no name keeps one alive that is rejected.
            step = self.solver.stepped(problem, point, state, problem.undefined(value))
            return step, judge(problem, evidence, point, step)
        plain: Any
        *plain, others = self._plain(problem, point, state, evidence, value, image)
        if not np.any(others):
            return plain[0], plain[1]
        plain = None if np.all(others) else _kept(*plain)
        new = [problem.point(value, (image,), None)]
        del value, image
        step = self.solver.stepped(problem, point, state, new.pop())
        other = step, judge(problem, evidence, point, step)
        return other if plain is None else _merged(others != 0, other, plain)

    def _plain(
        self,
        problem: Problem,
        old: Point,
        state: AndersonState,
        evidence: Evidence,
        value: Vec,
        image: Array,
    ) -> tuple[Step, Verdict, Array]:
        """The step, as it is where it is plain; and the samples of which it is not."""
        z, shape, packed = value[0], problem.space.batch_shape, np.ascontiguousarray
        increment, proposal = np.empty(z.shape, z.dtype), np.empty(z.shape, z.dtype)
        norm, magnitude, error, highest = (np.empty(shape, z.dtype) for _ in range(4))
        satisfied, hidden, vanished = (np.empty(shape, bool) for _ in range(3))
        largest = np.empty(z.shape if self.entries else shape, z.dtype)
        sizes, remarks = np.empty((*shape, 2), z.dtype), np.empty(shape, np.uint8)
        rejected = state.rejected
        some = self.step(
            pushed=state.pushed,
            slot=slot_of(state.pushed, state.gram.shape[-1]),
            count=evidence.count,
            value=packed(z),
            image=packed(image),
            old=(
                packed(old.value[0]),
                packed(old.increment[0]),
                packed(old.residual_norm),
                packed(old.magnitude),
            ),
            history=(*state.residuals, *state.images, state.gram),
            envelope=packed(state.envelope),
            known=(*map(packed, _known(evidence)), evidence.amplification),
            active=problem.active,
            shortened=None if rejected is None else packed(rejected > 0),
            point=(increment, norm, magnitude, proposal),
            verdict=(
                satisfied,
                error,
                hidden,
                vanished,
                highest,
                largest,
                sizes,
                remarks,
            ),
        )
        point = Point(value, (increment,), None, norm[()], magnitude[()])
        state = state._replace(
            pushed=state.pushed + 1, rejected=None, proposal=(proposal,)
        )
        evidence = evidence._replace(
            highest=highest[()],
            largest=(largest[()],),
            sizes=sizes,
            count=evidence.count + self.counts,
        )
        step = Step(point, state, fell=not some)
        verdict = Verdict(satisfied[()], error[()], evidence, hidden[()], vanished[()])
        return step, verdict, remarks & _OTHERS


def _known(evidence: Evidence) -> tuple[Any, ...]:
    """What is read of the evidence."""
    return evidence.first, evidence.highest, evidence.largest[0], evidence.sizes


def _kept(step: Step, verdict: Verdict) -> tuple[Step, Verdict]:
    """The same, with copies of what the solver will write to."""
    state, evidence = step.state, verdict.evidence
    none = np.zeros(step.point.residual_norm.shape, np.int32)
    state = state._replace(gram=state.gram.copy(), rejected=none)
    evidence = evidence._replace(amplification=evidence.amplification.copy())
    return step._replace(state=state), verdict._replace(evidence=evidence)


def _merged(others: Array, by_solver: Any, plain: Any) -> Any:
    """What the solver found in the samples `others`, and elsewhere the plain step."""
    if plain is by_solver or plain is None:
        return by_solver
    if isinstance(by_solver, np.ndarray):
        missing = by_solver.ndim - others.ndim
        return np.where(others[(..., *(None,) * missing)], by_solver, plain)
    if not isinstance(by_solver, tuple):
        return by_solver
    pairs = zip(by_solver, plain, strict=True)
    parts = [_merged(others, *pair) for pair in pairs]
    return type(by_solver)(*parts) if hasattr(by_solver, "_fields") else tuple(parts)
