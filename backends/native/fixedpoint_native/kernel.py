"""What the compiled steps of all methods have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from fixedpoint.backend import Array, Vec
from fixedpoint.convergence import FALL, ZERO, Evidence, Verdict, judge
from fixedpoint.kernels import Kernel
from fixedpoint.point import Point
from fixedpoint.problem import ROUNDINGS, FixedPointProblem, Problem
from fixedpoint.solvers.base import Step
from fixedpoint_native import _kernels

TYPES = (np.dtype(np.float32), np.dtype(np.float64))

# The remarks on a sample whose step is the solver's.
_OTHERS = 0xFF & ~_kernels.RISEN


def is_simple(problem: Problem) -> bool:
    """Whether a fixed point is sought, and a sample is one real array of NumPy's, all
    of it here, tested as a whole or by its entries.
    """
    space, given, asked = problem.space, problem.functions, problem.tolerance
    if not isinstance(problem, FixedPointProblem) or space.xp is not np:
        return False
    if space.backend.communicator is not None:
        return False
    if len(space.dtypes) > 1 or space.dtypes[0] not in TYPES:
        return False
    if given.project is not None or given.has_residual:
        return False
    if not all(isinstance(tol, (int, float)) for tol in (asked.rtol, asked.atol)):
        return False
    tested = asked.norm == "entries" or asked.is_whole(space)
    arrays = bool(space.batch_shape or space.shapes[0]) and 0 not in space.batch_shape
    return tested and arrays


class Method(NamedTuple):
    """What a step is told of its method.

    Attributes
    ----------
    state : object
        What the method remembers when the kernel begins.
    pushed, slot : int
        Columns that there are, and where the new one goes.
    shortened : array or None
        How often the step of each sample was shortened, if any was.
    arrays : tuple
        What the kernel reads, and writes to.
    written : tuple of array
        Views of what it writes, and the solver's step too, from other roundings.
    """

    state: Any
    pushed: int
    slot: int
    shortened: Array | None
    arrays: tuple[Any, ...]
    written: tuple[Array, ...]


class CompiledSteps(Kernel):
    """Steps of a solver on a problem.

    The step of a sample that is not the plain one is left to the solver, from the same
    evaluation: it writes what it remembers to the same places.

    Parameters
    ----------
    solver : Solver
        The solver.
    problem : Problem
        The problem, which is simple.
    kernels : dict
        The compiled class for each dtype.
    memory : int
        Columns that the method keeps.
    least : float
        What the kernel calls so.
    """

    def __init__(
        self,
        solver: Any,
        problem: Problem,
        kernels: dict[Any, Any],
        memory: int,
        least: float,
    ) -> None:
        space, tolerance = problem.space, problem.tolerance
        self.solver, self.entries = solver, tolerance.norm == "entries"
        self.counts = int(tolerance.test == "error")
        self.step = kernels[space.dtypes[0]](
            samples=math.prod(space.batch_shape),
            size=space.size,
            memory=memory,
            entries=self.entries,
            peaks=tolerance.norm == "max",
            on_error=tolerance.test == "error",
            rtol=float(tolerance.rtol),
            atol=float(tolerance.atol),
            least=least,
            rounding=float(space.rounding),
            smallest=float(space.small),
            fall=FALL,
            zero=ZERO,
            roundings=ROUNDINGS,
        ).advance

    @abstractmethod
    def trial(self, problem: Problem, point: Point, state: Any) -> Vec:
        """Where the step leads."""

    @abstractmethod
    def method(self, problem: Problem, point: Point, state: Any) -> Method:
        """What the kernel is told of what the solver remembers."""

    @abstractmethod
    def ended(self, method: Method, point: Point, following: Array) -> Step:
        """The plain step to a point; the kernel wrote what is `following`."""

    def advance(
        self, problem: Problem, point: Point, state: Any, evidence: Evidence
    ) -> tuple[Step, Verdict]:
        """A step, one evaluation, and the test."""
        value = self.trial(problem, point, state)
        try:
            (image,), _ = problem.mapped(value)
        except ArithmeticError:
            # Points are made in place: no name keeps one alive that is rejected.
            step = self.solver.stepped(problem, point, state, problem.undefined(value))
            return step, judge(problem, evidence, point, step)
        method = self.method(problem, point, state)
        plain: Any
        *plain, others = self._plain(problem, point, method, evidence, value, image)
        if others is None:
            return plain[0], plain[1]
        if others.all():
            plain = None
        written = (*method.written, _newest(evidence))
        copies = [part.copy() for part in written]
        del method
        new = [problem.point(value, (image,), None)]
        del value, image
        step = self.solver.stepped(problem, point, state, new.pop())
        other = step, judge(problem, evidence, point, step)
        if plain is None:
            return other
        for part, copied in zip(written, copies, strict=True):
            part[others == 0] = copied[others == 0]
        merged: tuple[Step, Verdict] = _merged(others != 0, other, tuple(plain))
        return merged

    def _plain(
        self,
        problem: Problem,
        old: Point,
        method: Method,
        evidence: Evidence,
        value: Vec,
        image: Array,
    ) -> tuple[Step, Verdict, Array | None]:
        """The step, as it is where it is plain; and the samples of which it is not, if
        there are any.
        """
        z, shape, packed = value[0], problem.space.batch_shape, np.ascontiguousarray
        kind, empty = z.dtype, np.empty
        increment, following = empty(z.shape, kind), empty(z.shape, kind)
        norm, magnitude = empty(shape, kind), empty(shape, kind)
        error, highest = empty(shape, kind), empty(shape, kind)
        largest = empty(z.shape if self.entries else shape, kind)
        satisfied, hidden = empty(shape, bool), empty(shape, bool)
        vanished, remarks = empty(shape, bool), empty(shape, np.uint8)
        sizes = empty((*shape, 2), kind)
        shortened = method.shortened
        some = self.step(
            pushed=method.pushed,
            slot=method.slot,
            count=evidence.count,
            value=packed(z),
            image=packed(image),
            old=(
                packed(old.value[0]),
                packed(old.increment[0]),
                packed(old.residual_norm),
                packed(old.magnitude),
            ),
            known=(*map(packed, _known(evidence)), evidence.amplification),
            active=problem.active,
            shortened=None if shortened is None else packed(shortened > 0),
            point=(increment, norm, magnitude, following),
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
            memory=method.arrays,
            threads=problem.space.backend.threads,
        )
        point = Point(value, (increment,), None, norm[()], magnitude[()])
        step = self.ended(method, point, following)._replace(fell=not some)
        evidence = Evidence(
            first=evidence.first,
            highest=highest[()],
            scale=evidence.scale,
            largest=(largest[()],),
            sizes=sizes,
            amplification=evidence.amplification,
            count=evidence.count + self.counts,
        )
        verdict = Verdict(satisfied[()], error[()], evidence, hidden[()], vanished[()])
        others = remarks & _OTHERS if some & _OTHERS else None
        return step, verdict, others


def _known(evidence: Evidence) -> tuple[Any, ...]:
    """What is read of the evidence."""
    return evidence.first, evidence.highest, evidence.largest[0], evidence.sizes


def _newest(evidence: Evidence) -> Array:
    """Where the amplification of this step is noted."""
    window = evidence.amplification.shape[-1]
    return evidence.amplification[..., evidence.count % window]


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
