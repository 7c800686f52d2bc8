"""The one loop that drives every solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fixedpoint import tree
from fixedpoint.assessment import Assessment
from fixedpoint.backend import Array
from fixedpoint.carry import (
    RUNNING,
    Best,
    Carry,
    marked,
    put_rows,
    recorded,
    sifted,
    taken_rows,
)
from fixedpoint.control import Control, Memory
from fixedpoint.convergence import judge
from fixedpoint.coupling import reopened
from fixedpoint.evidence import Verdict
from fixedpoint.kernels import Kernel, kernel_of, measured
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.status import Status


@dataclass(frozen=True, eq=False)
class Loop:
    """One solver's turns.

    ``index`` is its place in the sequence, ``first`` where it starts, ``stop`` the step
    that it must not pass, and ``most`` the one that none must. In a batch each sample
    has a number of steps of its own, ``share``, from the step ``begin`` on, and those
    that it ``waited`` for others until then do not count as its own.
    """

    solver: Solver
    index: int
    problem: Problem
    control: Control
    first: Point
    most: int
    deadline: float | None
    stop: Any
    begin: Any
    waited: Any = 0
    share: Array | None = None

    def begun(self, carries: list[Carry], memory: Memory | None) -> Carry:
        """The loop before this solver's first turn, with what it may remember.

        The carry is taken out of a list: no name of a caller keeps its states alive.
        """
        carry = carries.pop()
        point = carry.point
        state = self.solver.init(self.problem, point)
        work = carry.work.plus(self.solver.initial_work(state))
        if memory is not None:
            check_same(memory.contents, state)
            state = self.solver.resume(
                self.problem.space, memory.contents, point, state
            )
        return carry._replace(state=state, work=work)

    def ended(self, carry: Carry) -> Carry:
        """The loop after its last turn: no sample runs."""
        late = carry.status == RUNNING
        xp, reason = self.problem.space.xp, Status.MAX_STEPS
        return self.settle(carry, marked(xp, carry.status, late, reason))

    def unfinished(self, carry: Carry) -> Any:
        """Whether there is another turn."""
        return carry.running & (carry.step < self.stop)

    def turn(self, carry: Carry, at_most: int | None = None) -> Carry:
        """One step, and what became of each sample by it.

        Before it there may be compiled ones that leave nothing to decide, so that there
        are `at_most` so many; by default up to where the loop must stop.
        """
        space, old = self.problem.space, carry
        problem = self.problem.among(carry.active)
        at = problem, carry.point, carry.state
        if self.kernel is None:
            step = self.solver.step(*at)
            verdict = judge(problem, carry.evidence, carry.point, step)
            verdict = space.backend.decisive(verdict)
        else:
            most = at_most or (self.stop - carry.step if self.runs_on(carry) else 1)
            before, step, verdict = self.kernel.advance(*at, carry.evidence, most)
            step = measured(problem, step)
            carry = carry if before is None else self.improved(carry, *before)
        if self.all_improved(carry, step, verdict):
            carry = self.improved(carry, step, verdict)
        else:
            carry, status = self.assessment.of(carry, step, verdict)
            carry = carry if status is None else self.settle(carry, status)
        if old.active is not None:
            carry = reopened(problem, old, carry, verdict)
        if self.share is not None:
            spent = self.share <= carry.step - self.begin
            carry = self._ended(carry, spent, Status.MAX_STEPS)
        if self.control.is_plain and not self.problem.batched:
            return carry
        return self.observed(recorded(space, carry))

    def runs_on(self, carry: Carry) -> bool:
        """Whether every sample runs, stands at its best, and nobody watches."""
        at_best = carry.active is None and carry.all_improved == carry.step
        alike = self.share is None and not self.problem.batched
        return at_best and alike and self.control.is_plain

    @cached_property
    def kernel(self) -> Kernel | None:
        """What takes the place of a step and the test, if there is a compiled one."""
        return kernel_of(self.solver, self.problem)

    @cached_property
    def assessment(self) -> Assessment:
        """What tells samples that end from those that go on."""
        return Assessment(self.solver, self.index, self.problem, self.first, self.begin)

    def all_improved(self, carry: Carry, step: Step, verdict: Verdict) -> bool:
        """Whether all samples are known to have a new best iterate, and to go on."""
        backend, new = self.problem.space.backend, step.point
        if backend.is_traced((new.residual_norm,)) or self.assessment.compares_parts:
            return False
        open_ = ~(verdict.satisfied | verdict.hidden)
        open_ = open_ & (new.residual_norm < carry.point.residual_norm)
        # Else what is best so far is not where the step came from.
        at_best = carry.active is None and carry.all_improved == carry.step
        if not at_best or step.failure is not None:
            if backend.communicator is None:
                return False
            open_ = open_ & ~open_  # all who take part are asked, in every step
        return backend.known_all(open_)

    def improved(
        self, carry: Carry, step: Step, verdict: Verdict, number: int = 1
    ) -> Carry:
        """Every sample has a new best iterate, by so many steps."""
        point, now, method = step.point, carry.step + number, carry.best.method
        if self.index > 0:
            method = method * 0 + self.index
        return carry._replace(
            point=point,
            state=step.state,
            best=Best(point.value, point.residual_norm, verdict.error, method),
            lowest=point.residual_norm,
            evidence=verdict.evidence,
            step=now,
            all_improved=now,
            work=carry.work.plus(step.work),
        )

    def taken(self, carry: Carry) -> Array:
        """The steps that each sample would have taken if it ended now."""
        none = self.problem.space.xp.zeros_like(carry.steps)
        return none + (carry.step - self.waited)

    def settle(self, carry: Carry, status: Array) -> Carry:
        """Take note of the samples that have stopped."""
        xp = self.problem.space.xp
        stopped = (carry.status == RUNNING) & (status != RUNNING)
        steps = xp.where(stopped, self.taken(carry), carry.steps)
        return sifted(self.problem.space, carry._replace(status=status, steps=steps))

    def observed(self, carry: Carry) -> Carry:
        """Heed the callback and the budget; let finished samples leave the batch."""
        control, point = self.control, carry.point
        evaluations = sum(carry.work)
        for over, reason in control.ends(
            self.deadline, carry.step, point.value, point.residual_norm, evaluations
        ):
            # A callback or a clock speaks for all who take part.
            over = self.problem.space.backend.agreed(over)  # noqa: PLW2901
            if over is not False:
                carry = self._ended(carry, over, reason)
        leaving = self.problem.batched and carry.active is not None
        if self.problem.space.backend.is_traced((carry.status,)):
            return carry
        return self._compacted(carry) if leaving and carry.running else carry

    def _ended(self, carry: Carry, over: Any, status: Status) -> Carry:
        xp, running = self.problem.space.xp, carry.status == RUNNING
        return self.settle(carry, marked(xp, carry.status, running & over, status))

    def _compacted(self, carry: Carry) -> Carry:
        """Run the samples left by themselves, once half of the batch has stopped."""
        space, xp = self.problem.space, self.problem.space.xp
        remaining = xp.reshape(carry.status == RUNNING, (carry.status.shape[0], -1))
        rows = xp.nonzero(xp.any(remaining, axis=-1))[0]
        if 2 * rows.shape[0] > remaining.shape[0]:
            return carry
        few = replace(
            self,
            problem=self.problem.take(rows),
            first=taken_rows(space, self.first, rows),
            waited=taken_rows(space, self.waited, rows),
            share=taken_rows(space, self.share, rows),
        )
        taken = taken_rows(space, carry, rows)
        running, loop = sifted(few.problem.space, taken), space.backend.while_loop
        end = few.ended(loop(few.unfinished, few.turn, running, few.most))
        return sifted(space, put_rows(space, carry, rows, end))


def check_same(kept: Any, fresh: Any) -> None:
    """Raise unless an earlier call's memory has the shapes that a fresh one has.

    What only a call outside of a trace knows to be nothing, None, is not compared.
    """
    found, expected = _shapes(kept, fresh), _shapes(fresh, kept)
    if type(kept) is not type(fresh) or found[: len(expected)] != expected:
        raise ValueError(
            f"state must come from a call with the same shapes: expected {expected}, "
            f"got {found}"
        )


def _shapes(memory: Any, other: Any) -> list[tuple[int, ...]]:
    """The shapes of the arrays of a memory whose fields are not None in the other."""
    if type(memory) is type(other) and isinstance(memory, tuple):
        pairs = zip(memory, other, strict=False)
        memory = [part for part, beside in pairs if beside is not None]
    leaves = tree.flatten(memory)[0]
    return [tuple(leaf.shape) for leaf in leaves if getattr(leaf, "ndim", 0)]
