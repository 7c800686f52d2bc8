"""Solvers in turn, each driven by the one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.carry import (
    COLUMNS,
    Best,
    Carry,
    blank,
    marked,
    recorded,
    shortened,
    sifted,
)
from fixedpoint.control import Control, Memory
from fixedpoint.convergence import judge_start, opened
from fixedpoint.coupling import in_view_of_neighbors, together
from fixedpoint.failure import log_next
from fixedpoint.loop import Loop
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.solution import BackwardReport, Trace, Work
from fixedpoint.solvers.base import Solver
from fixedpoint.space import Space
from fixedpoint.status import Status

# What is the same in every array library, or knows how to be converted.
_UNCONVERTED = ("work", "backward", "state")

# No other solver is tried after these.
_ENDS = (Status.STOPPED, Status.OUT_OF_BUDGET)


class Iteration(NamedTuple):
    """Where an iteration ended: the attributes of a solution, in leaves."""

    value: Vec
    residual_norm: Array
    error: Array
    method: Array
    status: Array
    precise: Array
    steps: Array
    work: Work
    trace: Trace | None = None
    state: Memory | None = None
    backward: BackwardReport | None = None
    bracket: tuple[Array, Array] | None = None

    def converted(self, convert: Callable[[Any], Any]) -> Iteration:
        """The same, its arrays converted."""
        known = {k: part for k, part in self._asdict().items() if part is not None}
        arrays = [name for name in known if name not in _UNCONVERTED]
        there = {name: convert(known[name]) for name in arrays}
        state = self.state and self.state.converted(convert)
        return self._replace(state=state, **there)


@dataclass(frozen=True, eq=False, kw_only=True)
class Solve:
    """A problem, and the methods that are tried on it.

    Parameters
    ----------
    problem : Problem
        What is solved.
    control : Control
        How far to go, and who watches.
    solver : Solver
        The method, or several.
    memory : Memory or None
        What a solver remembers of an earlier call.
    """

    problem: Problem
    control: Control
    solver: Solver
    memory: Memory | None = None

    def iterate(self, value: Vec) -> Iteration:
        """Iterate from `value` until every sample has a status, recording no
        derivatives.

        A sample stops as soon as it meets the tolerance; it then keeps its iterate,
        whatever its neighbors do. What is returned is the iterate that satisfied the
        test, or else the one of the smallest residual, unless the solver wants the
        last. The solvers of a fallback run one after the other on the samples that have
        not converged, each from the start, and each for half of the steps that are
        left.
        """
        # The one carry is in a list: no name but this keeps its states alive.
        carries, backend = list[Carry](), self.problem.space.backend
        with backend.quiet():
            for loop, kept in self._loops(value, carries):
                going, turn, most = loop.unfinished, loop.turn, loop.most
                carries.append(
                    backend.while_loop(going, turn, loop.begun(carries, kept), most)
                )
                carries.append(loop.ended(carries.pop()))
        return _iteration(loop, carries.pop(), value)

    def turns(self, value: Vec) -> Iterator[Iteration]:
        """What :meth:`iterate` does, turn by turn: where it stands at the start, and
        after each turn.

        Whoever asks for the next one has it made. The last one is what :meth:`iterate`
        returns.
        """
        problem, carries = self.problem, list[Carry]()
        backend, inputs = problem.space.backend, (*value, *problem.args)
        loops = self._loops(value, carries)
        with backend.quiet(), backend.unrecorded(inputs):
            loop, carry = _onward(loops, carries)
            end = _iteration(loop, carry, value)
        yield end
        while loop.unfinished(carry):
            with backend.quiet(), backend.unrecorded(inputs):
                carry = loop.turn(carry, at_most=1)
                if not loop.unfinished(carry):
                    carries.append(loop.ended(carry))
                    loop, carry = _onward(loops, carries, loop)
                end = _iteration(loop, _counted(loop, carry), value)
            yield end

    def _loops(
        self, start: Vec, carries: list[Carry]
    ) -> Iterator[tuple[Loop, Memory | None]]:
        """The loops of the solvers that are needed, each with what it may remember.

        Each takes the carry that it begins with out of the list, and the one that it
        ends with is expected there.
        """
        problem, sequence = self.problem, _sequence(self.solver, self.memory)
        space, most = problem.space, self.control.steps(len(sequence))
        deadline = self.control.deadline(start, space.backend)
        first = problem.begin(start)
        # Samples of a batch wait for each other, for half of all steps a method.
        waits = (most + 1) // 2 * (len(sequence) - 1) if space.batch_shape else 0
        record = most + waits if self.control.record else None
        carries.append(_open(problem, first, record))
        for index, method in enumerate(sequence):
            is_last = index == len(sequence) - 1
            if index:
                failed = _failed(space, carries[0], first, most)
                if space.backend.known_none(failed):
                    return
                names = sequence[index - 1].name, method.name
                log_next(*names, space.backend, carries[0].status)
                carries.append(_reopened(problem, carries.pop(), first, failed))
            if is_last:
                parts = problem.parts(first) if problem.tests_parts else None
                first = first._replace(increment=(), parts=parts)
            where = index, problem, self.control, first, most, deadline
            limits = _limits(space, carries[0], most, index == 0, is_last)
            yield Loop(method, *where, *limits), self.memory if index == 0 else None


def _limits(
    space: Space, carry: Carry, most: int, is_first: bool, is_last: bool
) -> tuple[Any, ...]:
    """Where a loop must stop and where it begins, and in a batch what each sample
    waited and its own share of the steps, whatever its neighbors took.

    A share is half of what is left, rounded up; of the last loop all of it.
    """
    share: Callable[[Any], Any] = lambda left: left if is_last else left - left // 2
    begin = carry.step
    if is_first or not space.batch_shape:
        return begin + share(most - begin), begin
    return begin + most, begin, begin - carry.steps, share(most - carry.steps)


def _counted(loop: Loop, carry: Carry) -> Carry:
    """The carry with the steps of the samples that still run, too."""
    running, where = carry.status == int(Status.RUNNING), loop.problem.space.xp.where
    return carry._replace(steps=where(running, loop.taken(carry), carry.steps))


def _onward(
    loops: Iterator[tuple[Loop, Memory | None]],
    carries: list[Carry],
    loop: Loop | None = None,
) -> tuple[Loop, Carry]:
    """The next loop that has turns to make, or the one that ended last."""
    for following, kept in loops:
        loop, carry = following, following.begun(carries, kept)
        if loop.unfinished(carry):
            return loop, carry
        carries.append(loop.ended(carry))
    assert loop is not None
    return loop, carries.pop()


def _iteration(loop: Loop, carry: Carry, start: Vec) -> Iteration:
    """Where the iteration stands."""
    carry = together(loop.problem, carry)
    best = carry.best
    status, error = in_view_of_neighbors(loop.problem.space, carry)
    return Iteration(
        value=_owned(best.value, start),
        residual_norm=best.residual_norm,
        error=error,
        method=best.method,
        status=status,
        precise=carry.precise,
        steps=carry.steps,
        work=carry.work,
        trace=shortened(carry.trace, carry.step),
        state=Memory(loop.solver, carry.state),
    )


def _sequence(solver: Solver, memory: Memory | None) -> tuple[Solver, ...]:
    """The methods to try: the one that is remembered first."""
    if memory is None:
        return solver.sequence
    if memory.solver not in solver.sequence:
        raise ValueError(
            f"state was left by {memory.solver}, which is not the solver now: {solver}"
        )
    others = [other for other in solver.sequence if other != memory.solver]
    return (memory.solver, *others)


def _owned(value: Vec, start: Vec) -> Vec:
    """A copy of `value` where it is the array that the caller gave as the start."""
    leaves = zip(value, start, strict=True)
    return tuple(1.0 * leaf if leaf is first else leaf for leaf, first in leaves)


def _open(problem: Problem, first: Point, steps: int | None) -> Carry:
    """The loop before its first turn, with room to record so many `steps`."""
    space, norm = problem.space, first.residual_norm
    evidence = opened(problem, first)
    done = judge_start(problem, first, evidence)
    zero = space.xp.zeros_like(done, dtype=space.xp.int32)
    infinite, traced = space.full(math.inf), space.backend.is_traced((norm,))
    carry = Carry(
        point=first,
        best=Best(first.value, norm, space.xp.where(done, norm, infinite), zero),
        status=_first_status(space, done, norm),
        steps=zero,
        improved=zero,
        lowest=infinite,
        reference=infinite,
        precise=done & (norm > 0.0),
        coupled=done & ~done,
        evidence=evidence,
        work=Work(f=1),
        # Arrays cannot grow in JAX's traces, and are as long as need be.
        trace=None if steps is None else blank(space, steps + 1 if traced else COLUMNS),
    )
    return sifted(space, recorded(space, carry))


def _first_status(space: Space, done: Array, norm: Array) -> Array:
    """How samples stand at the start, where some are `done` and some cannot begin."""
    xp, finite = space.xp, norm < space.xp.inf
    status = xp.zeros_like(done, dtype=xp.int32)
    status = marked(xp, status, done, Status.CONVERGED)
    if space.backend.known_here(finite):
        return status
    return marked(xp, status, ~finite, Status.NON_FINITE)


def _failed(space: Space, carry: Carry, first: Point, most: int) -> Array:
    """The samples that another solver may yet solve, in the steps that are left."""
    able = (first.residual_norm < space.xp.inf) & (carry.steps < most)
    failed = (carry.status != int(Status.CONVERGED)) & able
    for end in _ENDS:
        failed = failed & (carry.status != int(end))
    return failed


def _reopened(problem: Problem, carry: Carry, first: Point, again: Array) -> Carry:
    """Send samples back to the start."""
    space, xp = problem.space, problem.space.xp
    infinite = xp.zeros_like(carry.lowest) + math.inf
    reopened = carry._replace(
        point=choose(space, again, first, carry.point),
        status=xp.where(again, xp.zeros_like(carry.status), carry.status),
        improved=xp.zeros_like(carry.improved) + carry.step,
        lowest=infinite,
        reference=infinite,
        evidence=opened(problem, first),
        # The best iterate is another solver's: no step is known to improve until a
        # better one is found.
        all_improved=-1,
    )
    return sifted(space, reopened)
