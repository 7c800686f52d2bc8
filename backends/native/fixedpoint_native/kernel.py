"""What the compiled steps of all methods have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np

from fixedpoint.backend import Array, Vec
from fixedpoint.convergence import FALL, ZERO, judge
from fixedpoint.evidence import Evidence, Verdict
from fixedpoint.kernels import Advanced, Kernel
from fixedpoint.point import Point
from fixedpoint.problem import ROUNDINGS, Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Step
from fixedpoint_native import _kernels

TYPES = (np.dtype(np.float32), np.dtype(np.float64))

# Entries of a state of which two more may be kept, to save a turn of the loop.
_SHORT = 2**16

# The remarks on a sample whose step is the solver's.
_OTHERS = 0xFF & ~(_kernels.RISEN | _kernels.ENDED)


def is_simple(problem: Problem) -> bool:
    """Whether a fixed point is sought, and a sample is one real array of NumPy's, all
    of it here, tested as a whole or by its entries.
    """
    space, given, asked = problem.space, problem.functions, problem.tolerance
    if problem.is_root or space.xp is not np:
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


class Made(NamedTuple):
    """What the kernel writes of the point that a step leads to.

    Attributes
    ----------
    increment, following : array
        The increment there, and what the method does next.
    numbers : array of shape (6, batch)
        The norm of the residual, the magnitude, the error and the largest norm so far;
        and the sizes of the last two corrections, those of a sample side by side.
    flags : array of bool of shape (4, batch)
        Whether the test is met, or tells nothing, and whether nothing is left; and the
        remarks.
    largest : array
        The largest that the parts of the state have been.
    """

    increment: Array
    following: Array
    numbers: Array
    flags: Array
    largest: Array

    @classmethod
    def blank(cls, z: Array, shape: tuple[int, ...], entries: bool) -> Made:
        """Room for it, at a state z of a batch of this shape."""
        empty, kind = np.empty, z.dtype
        largest = empty(z.shape if entries else shape, kind)
        numbers, flags = empty((6, *shape), kind), empty((4, *shape), bool)
        return cls(empty(z.shape, kind), empty(z.shape, kind), numbers, flags, largest)

    @classmethod
    def of(cls, point: Point, evidence: Evidence) -> Made:
        """What the kernel reads of the point where it begins; nothing follows yet."""
        increment = np.ascontiguousarray(point.increment[0])
        numbers = np.empty((6, *np.shape(point.residual_norm)), increment.dtype)
        numbers[0], numbers[1] = point.residual_norm, point.magnitude
        numbers[3] = evidence.highest
        numbers[4:].reshape(evidence.sizes.shape)[...] = evidence.sizes
        largest = np.ascontiguousarray(evidence.largest[0])
        return cls(increment, increment, numbers, numbers, largest)

    @property
    def remarks(self) -> Array:
        """What keeps the step of each sample from being the plain one."""
        return self.flags.view(np.uint8)[3]

    def point(self, value: Vec) -> Point:
        """The point."""
        numbers = self.numbers
        return Point(value, (self.increment,), None, numbers[0], numbers[1])

    def evidence(self, before: Evidence, count: int) -> Evidence:
        """What is known then, `count` steps after what was known `before`."""
        return before._replace(
            highest=self.numbers[3],
            largest=(self.largest[()],),
            sizes=self.numbers[4:].reshape(before.sizes.shape),
            count=before.count + count,
        )

    def verdict(self, before: Evidence, count: int) -> Verdict:
        """Whether it meets the tolerance."""
        satisfied, hidden, vanished, _ = self.flags
        known = self.evidence(before, count)
        return Verdict(satisfied, self.numbers[2], known, hidden, vanished)


class _Stage(NamedTuple):
    """Where a number of `steps` led that leave nothing to decide."""

    step: Step
    made: Made
    steps: int = 0


class _Trial(NamedTuple):
    """A point that was evaluated, and where the kernel finds and puts what."""

    value: Vec
    image: Array
    method: Method
    made: Made


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
        samples = math.prod(space.batch_shape)
        self.is_short = samples * space.size <= _SHORT
        self.step = kernels[space.dtypes[0]](
            samples=samples,
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
    def ended(self, method: Method, made: Made, value: Vec) -> Step:
        """The plain step to a value; the kernel has made the rest."""

    def advance(
        self,
        problem: Problem,
        point: Point,
        state: Any,
        evidence: Evidence,
        at_most: int,
    ) -> tuple[Advanced | None, Step, Verdict]:
        """A step, one evaluation, and the test; and the same before, until a sample is
        not the better for it, or ends.
        """
        at_most = at_most if self.is_short else 1
        stage = _Stage(Step(point, state), Made.of(point, evidence))
        while True:
            tried: list[Any] = [self.trial(problem, *stage.step[:2])]
            try:
                (image,), _ = problem.mapped(tried[0])
                tried.append(image)
                del image
            except ArithmeticError:
                tried.append(None)
            step, found, goes_on = self._led(problem, stage, evidence, tried)
            steps = stage.steps + 1
            if not goes_on or steps == at_most:
                break
            stage = _Stage(step, found, steps)
        verdict = self._verdict(found, evidence, steps)
        if not stage.steps:
            return None, step, verdict
        before = stage.step._replace(work=Work(f=stage.steps))
        known = self._verdict(stage.made, evidence, stage.steps)
        return Advanced(before, known, stage.steps), step, verdict

    def _verdict(self, found: Made | Verdict, begun: Evidence, steps: int) -> Verdict:
        """That of the solver, or of what the kernel made in so many steps."""
        if isinstance(found, Verdict):
            return found
        return found.verdict(begun, steps * self.counts)

    def _led(
        self, problem: Problem, stage: _Stage, begun: Evidence, tried: list[Any]
    ) -> tuple[Step, Any, bool]:
        """The step to a value, of which the image is None where f has none; what the
        kernel made of it, or the solver's verdict; and whether each sample is known to
        go on, the better for it.

        Points are made in place: no name keeps one alive that is rejected.
        """
        image, value = tried.pop(), tried.pop()
        if image is None:
            new = [problem.undefined(value)]
            return *self._by_solver(problem, stage, begun, new), False
        method = self.method(problem, *stage.step[:2])
        made = Made.blank(value[0], problem.space.batch_shape, self.entries)
        trials = [_Trial(value, image, method, made)]
        some = self._ran(problem, stage, begun, trials[0])
        if some & _OTHERS:
            del value, image, method, made
            return *self._mixed(problem, stage, begun, trials), False
        return self.ended(method, made, value), made, not some

    def _ran(
        self, problem: Problem, stage: _Stage, begun: Evidence, trial: _Trial
    ) -> int:
        """Let the kernel make the step; all remarks on it."""
        (point, _, *_), old = stage.step, stage.made
        (z,), image, method, made = trial
        packed, shortened = np.ascontiguousarray, method.shortened
        some: int = self.step(
            pushed=method.pushed,
            slot=method.slot,
            count=begun.count + stage.steps * self.counts,
            value=packed(z),
            image=packed(image),
            old=(packed(point.value[0]), old.increment, old.numbers, old.largest),
            known=(packed(begun.first), begun.amplification),
            active=problem.active,
            shortened=None if shortened is None else packed(shortened > 0),
            made=made,
            memory=method.arrays,
            threads=problem.space.backend.threads,
        )
        return some

    def _by_solver(
        self, problem: Problem, stage: _Stage, begun: Evidence, new: list[Point]
    ) -> tuple[Step, Verdict]:
        """The solver's step to a new point, of which no name is kept, and the test."""
        old, state = stage.step[:2]
        evidence = stage.made.evidence(begun, stage.steps * self.counts)
        step = self.solver.stepped(problem, old, state, new.pop())
        return step, judge(problem, evidence, old, step)

    def _mixed(
        self, problem: Problem, stage: _Stage, begun: Evidence, trials: list[_Trial]
    ) -> tuple[Step, Verdict]:
        """The solver's step in the samples whose step is not the plain one."""
        value, image, method, made = trials.pop()
        others, plain = made.remarks & _OTHERS, []
        if not others.all():
            step = self.ended(method, made, value)
            plain.append((step, self._verdict(made, begun, stage.steps + 1)))
            del step
        written = (*method.written, _newest(begun, stage.steps * self.counts))
        copies = [part.copy() for part in written]
        new = [problem.point(value, (image,), None)]
        del value, image, method, made
        found = self._by_solver(problem, stage, begun, new)
        if not plain:
            return found
        for part, copied in zip(written, copies, strict=True):
            part[others == 0] = copied[others == 0]
        merged: tuple[Step, Verdict] = _merged(others != 0, found, plain.pop())
        return merged


def _newest(begun: Evidence, count: int) -> Array:
    """Where the amplification of the step after `count` further ones is noted."""
    window = begun.amplification.shape[-1]
    return begun.amplification[..., (begun.count + count) % window]


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
