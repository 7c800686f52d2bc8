"""The one loop that drives every solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fixedpoint import tree
from fixedpoint.backend import Array, Vec
from fixedpoint.control import Control, Memory
from fixedpoint.convergence import (
    Evidence,
    Verdict,
    judge,
    judge_start,
    opened,
    vanished_states,
)
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.rounding import at_rounding, irregular_at_zero
from fixedpoint.solution import BackwardReport, Status, Trace, Work
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.space import Space

# A residual this many times the first one, and tolerance, has diverged.
_DIVERGENCE = 1e10

_RUNNING = int(Status.RUNNING)  # array-API namespaces compare with plain integers alone
_ENDS = (Status.STOPPED, Status.OUT_OF_BUDGET)  # no other solver is tried after these

# A method that follows the map may be so many times as long without a smallest
# residual.
_PATIENCE = 5

# After so many steps without a smaller residual it is asked whether that is but noise.
_SUSPICIOUS = (3, 12, 48)

# Steps that a trace has room for at first.
_COLUMNS = 32

# The rounding errors of a residual are not looked for above this share of the largest
# one.
_FALLEN = 1e-3


class Best(NamedTuple):
    """What would be returned now, and which solver found it.

    Attributes
    ----------
    value : Vec
        The iterate that satisfied the test, or the one of the smallest residual, or the
        last.
    residual_norm, error : array
        Its residual norm, and the estimate of its error.
    method : array of int
        The solver that found it.
    """

    value: Vec
    residual_norm: Array
    error: Array
    method: Array


class Carry(NamedTuple):
    """What one turn of the loop hands to the next.

    Attributes
    ----------
    point, state
        Where the iteration stands, and what the solver remembers.
    best : Best
        What would be returned now.
    status, steps, improved : array of int of the batch's shape
        How each sample stands, when it stopped, and when its residual last fell.
    lowest, reference : array of the batch's shape
        The smallest residual norms of the steps that are watched now, and of those
        before.
    precise : array of bool of the batch's shape
        Whether the sample ended because its arithmetic cannot do better.
    evidence : Evidence
        What the steps told of the error.
    active : array of bool or None
        The samples that still run; None if all are known to.
    running : bool
        Whether any does.
    step, smooth : int
        Turns so far, and the last one after which every sample stood at its best
        iterate.
    work : Work
        Evaluations so far.
    trace : Trace or None
        What is recorded.
    """

    point: Point
    state: Any
    best: Best
    status: Array
    steps: Array
    improved: Array
    lowest: Array
    reference: Array
    precise: Array
    evidence: Evidence
    active: Array | None
    running: Any
    step: Any
    all_improved: Any
    work: Work
    trace: Trace | None


class Iteration(NamedTuple):
    """Where an iteration ended, in leaves: the attributes of a
    :class:`fixedpoint.Solution`.
    """

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


def iterate(
    solver: Solver,
    problem: Problem,
    start: Vec,
    control: Control,
    memory: Memory | None = None,
) -> Iteration:
    """Run `solver` from `start` until every sample has a status.

    A sample stops as soon as it meets the tolerance; it then keeps its iterate,
    whatever its neighbors do. What is returned is the iterate that satisfied the test,
    or else the one of the smallest residual, unless the solver wants the last. The
    solvers of a fallback run one after the other on the samples that have not
    converged, each from the start, and each for half of the steps that are left.
    """
    space, sequence = problem.space, _sequence(solver, memory)
    deadline, most = (
        control.deadline(start, space.backend),
        control.steps(len(sequence)),
    )
    with space.backend.quiet():
        first = problem.evaluate(start)
        # The one carry is in a list: no name but this keeps its states alive.
        carries = [_open(problem, first, most if control.record else None)]
        for index, method in enumerate(sequence):
            if index and _final(space, carries[0], first):
                break
            is_last = index == len(sequence) - 1
            # Half of what is left, rounded up.
            stop = most if is_last else most - (most - carries[0].step) // 2
            if index:
                carries.append(_reopened(problem, carries.pop(), first))
            if is_last and not space.backend.is_traced(first.increment):
                first = first._replace(increment=())
            loop = _Loop(
                solver=method,
                index=index,
                problem=problem,
                control=control,
                first=first,
                stop=stop,
                most=most,
                deadline=deadline,
            )
            carries.append(loop.run(carries, memory if index == 0 else None))
    carry = carries.pop()
    best = carry.best
    return Iteration(
        value=_owned(best.value, start),
        residual_norm=best.residual_norm,
        error=best.error,
        method=best.method,
        status=carry.status,
        precise=carry.precise,
        steps=carry.steps,
        work=carry.work,
        trace=shortened(carry.trace, carry.step),
        state=Memory(loop.solver, carry.state),
    )


def shortened(trace: Trace | None, steps: Any) -> Trace | None:
    """A trace that ends with the last step, where that is known."""
    if trace is None or not isinstance(steps, int):
        return trace
    return Trace(*(column[..., : steps + 1] for column in trace))


def _sequence(solver: Solver, memory: Memory | None) -> tuple[Solver, ...]:
    """The methods to try: the one that is remembered first."""
    if memory is None:
        return solver.sequence
    if memory.solver not in solver.sequence:
        raise ValueError(
            f"state was left by {memory.solver}, which is not the solver now: {solver}"
        )
    return (
        memory.solver,
        *(other for other in solver.sequence if other != memory.solver),
    )


def _owned(value: Vec, start: Vec) -> Vec:
    """A copy of `value` where it is the caller's own array: the iteration ended where
    it began.
    """
    leaves = zip(value, start, strict=True)
    return tuple(1.0 * leaf if leaf is first else leaf for leaf, first in leaves)


def _open(problem: Problem, first: Point, recorded: int | None) -> Carry:
    """The loop before its first turn: samples that need none, or cannot begin, have a
    status. So many steps are `recorded`.
    """
    space, xp = problem.space, problem.space.xp
    done = judge_start(problem, first)
    zero = xp.zeros_like(done, dtype=xp.int32)
    status = _mark(xp, zero, done, Status.CONVERGED)
    finite = first.residual_norm < xp.inf
    if not space.backend.known_here(finite):
        status = _mark(xp, status, ~finite, Status.NON_FINITE)
    error = xp.where(done, first.residual_norm, space.infinity)
    best = Best(first.value, first.residual_norm, error, zero)
    infinite = space.full(float("inf"))
    carry = Carry(
        point=first,
        state=(),
        best=best,
        status=status,
        steps=zero,
        improved=zero,
        lowest=infinite,
        reference=infinite,
        precise=done & (first.residual_norm > 0.0),
        evidence=opened(problem, first),
        active=None,
        running=True,
        step=0,
        all_improved=0,
        work=Work(f=1),
        trace=None,
    )
    if recorded is not None:
        # The arrays of a trace cannot grow.
        traced = space.backend.is_traced((first.residual_norm,))
        blank = _blank(space, recorded + 1 if traced else _COLUMNS)
        carry = _recorded(space, carry._replace(trace=blank))
    return _sifted(space, carry)


def _failed(space: Space, carry: Carry, first: Point) -> Array:
    """The samples that another solver may yet solve."""
    failed = (carry.status != int(Status.CONVERGED)) & (
        first.residual_norm < space.xp.inf
    )
    for end in _ENDS:
        failed = failed & (carry.status != int(end))
    return failed


def _final(space: Space, carry: Carry, first: Point) -> bool:
    """Whether no other solver is needed, where that is known."""
    return space.backend.known_none(_failed(space, carry, first))


def _reopened(problem: Problem, carry: Carry, first: Point) -> Carry:
    """Send the samples that failed back to the start."""
    space, xp, again = (
        problem.space,
        problem.space.xp,
        _failed(problem.space, carry, first),
    )
    status = xp.where(again, xp.zeros_like(carry.status), carry.status)
    now = xp.zeros_like(carry.improved) + carry.step
    infinite = xp.zeros_like(carry.lowest) + float("inf")
    # The best iterate is another solver's: no turn is smooth until a better one is
    # found.
    return _sifted(
        space,
        carry._replace(
            point=choose(space, again, first, carry.point),
            status=status,
            improved=now,
            lowest=infinite,
            reference=infinite,
            evidence=opened(problem, first),
            all_improved=-1,
        ),
    )


@dataclass(frozen=True, eq=False)
class _Loop:
    """One solver's turns.

    ``index`` is its place in the sequence, ``first`` where it starts, ``stop`` the step
    that it must not pass, and ``most`` the one that none must.
    """

    solver: Solver
    index: int
    problem: Problem
    control: Control
    first: Point
    stop: Any
    most: int
    deadline: float | None

    def begun(self, carry: Carry, memory: Memory | None) -> Carry:
        """The loop before this solver's first turn, with what it may remember."""
        space, point = self.problem.space, carry.point
        state = self.solver.init(space, self.problem, point)
        work = carry.work.plus(self.solver.initial_work(state))
        if memory is not None:
            _check_same(memory.contents, state)
            state = self.solver.resume(space, memory.contents, point, state)
        return carry._replace(state=state, work=work)

    def run(self, carries: list[Carry], memory: Memory | None) -> Carry:
        """All of this solver's turns, from the carry in a list of one.

        No name stands for it, or for what is begun with it: its states would not be
        freed before the last turn.
        """
        return self.turns(lambda: self.begun(carries.pop(), memory))

    def turns(self, begun: Callable[[], Carry]) -> Carry:
        """Turn until no sample runs, or the steps are used up."""
        xp = self.problem.space.xp
        end = self.problem.space.backend.while_loop(
            self.unfinished, self.turn, begun(), self.most
        )
        late = end.status == _RUNNING
        return self.settle(end, _mark(xp, end.status, late, Status.MAX_STEPS))

    def unfinished(self, carry: Carry) -> Any:
        return carry.running & (carry.step < self.stop)

    def turn(self, carry: Carry) -> Carry:
        """One step, and what became of each sample by it."""
        space = self.problem.space
        step = self.solver.step(
            space, self.problem, carry.point, carry.state, carry.active
        )
        verdict = judge(self.problem, carry.evidence, carry.point, step)
        carry = carry._replace(evidence=verdict.evidence)
        if self.all_improved(carry, step, verdict):
            carry = self.improved(carry, step, verdict.error)
        else:
            carry = self.assessed(carry, step, verdict)
        if self.control.is_plain and not self.problem.batched:
            return carry
        return self.observed(_recorded(space, carry))

    def all_improved(self, carry: Carry, step: Step, verdict: Verdict) -> bool:
        """Whether it is known that every sample has a new best iterate, and none is
        done.
        """
        backend, new = self.problem.space.backend, step.point
        open_ = ~(verdict.satisfied | verdict.hidden)
        if not step.fell:
            open_ = open_ & (new.residual_norm < carry.point.residual_norm)
        # Else what is best so far is not where the step came from.
        at_best = carry.active is None and carry.all_improved == carry.step
        if not at_best or step.failure is not None:
            open_ = open_ & ~open_  # all who take part are asked, in every step
        return backend.known_all(open_)

    def improved(self, carry: Carry, step: Step, error: Array) -> Carry:
        """Every sample has a new best iterate."""
        point, now = step.point, carry.step + 1
        method = (
            carry.best.method if self.index == 0 else carry.best.method * 0 + self.index
        )
        return carry._replace(
            point=point,
            state=step.state,
            best=Best(point.value, point.residual_norm, error, method),
            lowest=point.residual_norm,
            step=now,
            all_improved=now,
            work=carry.work.plus(step.work),
        )

    def assessed(self, carry: Carry, step: Step, verdict: Verdict) -> Carry:
        """Renew each active sample's best iterate and status."""
        space, old, point = self.problem.space, carry.point, step.point
        carry = carry._replace(
            point=point,
            state=step.state,
            step=carry.step + 1,
            work=carry.work.plus(step.work),
        )
        xp, active, norm = space.xp, carry.active, point.residual_norm
        converged = verdict.satisfied
        wanted = norm < (xp.inf if self.solver.latest else carry.best.residual_norm)
        better = _live(converged | (wanted & ~verdict.hidden), active)
        carry = self._improved_in(carry, better, verdict.error)
        carry, stalled = self._checked_for_stalls(carry)
        lost, diverged = ~(norm < xp.inf), norm > _DIVERGENCE * carry.evidence.first
        carry, precise = self._precise(carry, verdict, stalled, step.failure)
        ending = _live(converged | precise | lost | diverged | stalled, active)
        if step.failure is None and space.backend.known_none(ending):
            return carry
        status = xp.zeros_like(carry.status) if step.failure is None else step.failure
        status = _mark(xp, status, diverged, Status.DIVERGED)
        status = _mark(xp, status, stalled, Status.STALLED)
        status = _mark(xp, status, lost, Status.NON_FINITE)
        carry, collapsed = self._collapsed(carry, _live(converged, active))
        status = _mark(xp, status, converged | precise, Status.CONVERGED)
        status = _mark(xp, status, collapsed, Status.COLLAPSED)
        precise = _live(precise & ~converged, active)
        last = xp.minimum(carry.best.error, carry.evidence.sizes[..., 0])
        best = carry.best._replace(error=xp.where(precise, last, carry.best.error))
        carry = carry._replace(precise=carry.precise | precise, best=best)
        if active is not None:
            status = xp.where(active, status, carry.status)
        if not space.backend.known_here(~lost):
            carry = carry._replace(point=choose(space, lost, old, point))
        return self.settle(carry, status)

    def _improved_in(self, carry: Carry, better: Array, error: Array) -> Carry:
        """The carry with new best iterates in the samples that are `better`."""
        xp, point = self.problem.space.xp, carry.point
        best = self._renewed(carry.best, better, point, error)
        since = xp.maximum(
            carry.improved, xp.zeros_like(carry.improved) + carry.all_improved
        )
        renewed, fell = best is not carry.best and best.value is point.value, better
        if self.solver.latest:  # the last iterate is none the better for being the last
            least = xp.minimum(carry.lowest, carry.reference)
            fell = better & (point.residual_norm < least)
            renewed = renewed and self.problem.space.backend.known_here(fell)
        improved = xp.where(fell, xp.zeros_like(since) + carry.step, since)
        all_improved = carry.step if renewed else carry.all_improved
        return carry._replace(best=best, improved=improved, all_improved=all_improved)

    def _checked_for_stalls(self, carry: Carry) -> tuple[Carry, Array]:
        """The samples whose residual has long stopped falling.

        That of a contraction may rise at first, in another norm than its own. So a
        method that follows the map has stalled only when no residual is below the last
        of the window before.
        """
        xp, patience = self.problem.space.xp, self.solver.patience(self.problem.space)
        age = carry.step - carry.improved
        if not self.solver.is_plain:
            return carry, age >= patience
        norm = carry.point.residual_norm
        lowest = xp.where(norm < carry.lowest, norm, carry.lowest)
        over = (xp.zeros_like(age) + carry.step) % patience == 0
        stalled = (lowest >= carry.reference) & over | (age >= _PATIENCE * patience)
        if self.solver.latest:  # the residual may rise for as long as it likes
            stalled = xp.zeros_like(stalled)
        reference = xp.where(over, norm, carry.reference)
        lowest = xp.where(over, xp.zeros_like(lowest) + xp.inf, lowest)
        return carry._replace(lowest=lowest, reference=reference), stalled

    def _precise(
        self, carry: Carry, verdict: Verdict, stalled: Array, failure: Array | None
    ) -> tuple[Carry, Array]:
        """The samples whose residual is nothing but rounding, among those that do not
        improve.
        """
        space, evidence = self.problem.space, carry.evidence
        if self.problem.tolerance.is_zero:
            return carry, space.xp.zeros_like(verdict.satisfied)
        stuck = stalled if failure is None else stalled | (failure != _RUNNING)
        for count in _SUSPICIOUS:
            stuck = stuck | (carry.step - carry.improved == count)
        fallen = carry.point.residual_norm <= _FALLEN * evidence.highest
        small = self.problem.is_small(carry.point, evidence.sizes[..., 0], _FALLEN)
        open_ = ~(verdict.satisfied | verdict.hidden)
        stuck = _live(stuck & open_ & (fallen | small), carry.active)
        return self._asked(
            carry,
            stuck,
            lambda: at_rounding(self.problem, carry.point, self.first, stuck),
        )

    def _collapsed(self, carry: Carry, converged: Array) -> tuple[Carry, Array]:
        """The samples that became zero where that is no answer; see
        :func:`irregular_at_zero`.
        """
        if self.solver.is_plain:
            return carry, self.problem.space.xp.zeros_like(converged)
        vanished = converged & vanished_states(
            self.problem, carry.evidence, carry.point
        )
        highest, start = carry.evidence.highest, self.first.value
        return self._asked(
            carry, vanished, lambda: irregular_at_zero(self.problem, start, highest)
        )

    def _asked(
        self, carry: Carry, mask: Array, question: Callable[[], tuple[Array, Any]]
    ) -> tuple[Carry, Array]:
        """The samples of `mask` of which the answer holds, evaluated only if there are
        any.
        """
        backend, xp = self.problem.space.backend, self.problem.space.xp
        integer = getattr(carry.work.f, "dtype", xp.int32)
        nothing = xp.zeros_like(mask), xp.zeros_like(mask, dtype=integer)

        def answer() -> tuple[Array, ...]:
            holds, evaluations = question()
            return holds, nothing[1] + evaluations

        found = backend.replaced_where(nothing, mask, answer, evaluates=True)
        if found is nothing:
            return carry, found[0]
        most = xp.max(found[1]) if math.prod(mask.shape) else 0
        work = Work(f=most if backend.is_traced((mask,)) else int(most))
        return carry._replace(work=carry.work.plus(work)), found[0]

    def _renewed(self, best: Best, better: Array, point: Point, error: Array) -> Best:
        """The best iterates, copied only where some samples are better and others are
        not.
        """
        space = self.problem.space
        where, mark = space.xp.where, best.method * 0 + self.index
        if space.backend.known_here(~better):
            return best
        if space.backend.known_here(better):
            return Best(point.value, point.residual_norm, error, mark)
        value = space.where(better, point.value, best.value)
        norm = where(better, point.residual_norm, best.residual_norm)
        error = where(better, error, best.error)
        return Best(value, norm, error, where(better, mark, best.method))

    def settle(self, carry: Carry, status: Array) -> Carry:
        """Take note of the samples that have stopped."""
        xp = self.problem.space.xp
        stopped = (carry.status == _RUNNING) & (status != _RUNNING)
        steps = xp.where(stopped, xp.zeros_like(carry.steps) + carry.step, carry.steps)
        return _sifted(self.problem.space, carry._replace(status=status, steps=steps))

    def observed(self, carry: Carry) -> Carry:
        """Heed the callback and the budget, and let finished samples leave the
        batch.
        """
        control, point = self.control, carry.point
        evaluations = sum(carry.work)
        for over, reason in control.ends(
            self.deadline, carry.step, point.value, point.residual_norm, evaluations
        ):
            # A callback or a clock speaks for all who take part.
            over = self.problem.space.backend.agreed(over)  # noqa: PLW2901
            if over is not False:
                carry = self._ended(carry, over, reason)
        traced = self.problem.space.backend.is_traced((carry.status,))
        if (
            self.problem.batched
            and not traced
            and carry.active is not None
            and carry.running
        ):
            return self._compacted(carry)
        return carry

    def _ended(self, carry: Carry, over: Any, status: Status) -> Carry:
        xp, running = self.problem.space.xp, carry.status == _RUNNING
        return self.settle(carry, _mark(xp, carry.status, running & over, status))

    def _compacted(self, carry: Carry) -> Carry:
        """Run the samples that are left by themselves, once half of the batch has
        stopped.
        """
        space, xp = self.problem.space, self.problem.space.xp
        remaining = xp.reshape(carry.status == _RUNNING, (carry.status.shape[0], -1))
        rows = xp.nonzero(xp.any(remaining, axis=-1))[0]
        if 2 * rows.shape[0] > remaining.shape[0]:
            return carry
        few = replace(
            self, problem=self.problem.take(rows), first=_taken(space, self.first, rows)
        )
        taken = _taken(space, carry, rows)
        end = few.turns(lambda: _sifted(few.problem.space, taken))
        return _sifted(space, _put(space, carry, rows, end))


def _check_same(kept: Any, fresh: Any) -> None:
    """Raise unless an earlier call's memory has the shapes that this one's would
    have.
    """
    shapes = [
        [
            tuple(leaf.shape)
            for leaf in tree.flatten(memory)[0]
            if getattr(leaf, "ndim", 0)
        ]
        for memory in (kept, fresh)
    ]
    if type(kept) is not type(fresh) or shapes[0][: len(shapes[1])] != shapes[1]:
        raise ValueError(
            f"state must come from a call with the same shapes: expected {shapes[1]}, "
            f"got {shapes[0]}"
        )


def _mark(xp: Any, status: Array, mask: Array, as_: Status) -> Array:
    return xp.where(mask, xp.full_like(status, int(as_)), status)


def _live(mask: Array, active: Array | None) -> Array:
    return mask if active is None else mask & active


def _recorded(space: Space, carry: Carry) -> Carry:
    """Write down where the iteration stands."""
    trace = carry.trace
    if trace is None:
        return carry
    columns = trace.residual_norm.shape[-1]
    if isinstance(carry.step, int) and carry.step >= columns:
        trace = _widened(space, trace, 2 * columns)
    write, index = space.backend.write, (..., carry.step)
    norms = write(trace.residual_norm, index, carry.point.residual_norm)
    work = space.full(0.0) + sum(carry.work)
    return carry._replace(trace=Trace(norms, write(trace.evaluations, index, work)))


def _blank(space: Space, columns: int) -> Trace:
    """Nothing recorded yet."""
    return Trace(*(space.full(float("nan"), (columns,)) for _ in range(2)))


def _widened(space: Space, trace: Trace, columns: int) -> Trace:
    """`trace` with room for more steps."""
    more = columns - trace.residual_norm.shape[-1]
    pairs = zip(trace, _blank(space, more), strict=True)
    return Trace(*(space.xp.concat(pair, axis=-1) for pair in pairs))


def _sifted(space: Space, carry: Carry) -> Carry:
    """Find the samples that still run."""
    active = carry.status == _RUNNING
    every = space.backend.known_all(active)
    running = every or space.backend.any(active)
    return carry._replace(active=None if every else active, running=running)


def _taken(space: Space, carry: Any, rows: Array) -> Any:
    """The `rows` of all arrays of `carry`, whose first axis is that of the batch."""
    leaves, structure = tree.flatten(carry)
    take = space.xp.take
    return structure.rebuild(
        [
            take(leaf, rows, axis=0) if _is_batched(space, leaf) else leaf
            for leaf in leaves
        ]
    )


def _put(space: Space, carry: Carry, rows: Array, few: Carry) -> Carry:
    """`few` in the `rows` of `carry`."""
    if carry.trace is not None and few.trace is not None:
        columns = few.trace.residual_norm.shape[-1]
        carry = carry._replace(trace=_widened(space, carry.trace, columns))
    xp, length = space.xp, carry.status.shape[0]
    places = np.arange(length)
    places[space.backend.numpy(rows)] = length + np.arange(rows.shape[0])
    source = xp.asarray(places, **space.place)

    def merged(full: Any, part: Any) -> Any:
        if isinstance(part, tuple):
            parts = [merged(a, b) for a, b in zip(full, part, strict=True)]
            return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
        if part is None:  # known to be nothing of interest in the rows, or in all
            return full
        if not _is_batched(space, part):
            return part
        if full is None:
            full = xp.zeros((length, *part.shape[1:]), dtype=part.dtype)
        return xp.take(xp.concat([full, part]), source, axis=0)

    whole: Carry = merged(carry._replace(active=None), few._replace(active=None))
    return whole


def _is_batched(space: Space, leaf: Any) -> bool:
    return space.backend.is_array(leaf) and leaf.ndim > 0
