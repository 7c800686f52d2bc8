"""How far an iteration may go, who watches it, and what is remembered of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.checks import check_count, check_positive
from fixedpoint.solution import Status
from fixedpoint.solvers.base import Solver


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a solve may spend; it is checked between steps.

    Parameters
    ----------
    evaluations : int, optional
        Evaluations of the map and products with its Jacobian.
    seconds : float, optional
        Time on the clock. A trace has no clock: it raises TypeError.
    """

    evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.evaluations is not None:
            check_count("evaluations", self.evaluations, 1)
        if self.seconds is not None:
            check_positive("seconds", self.seconds)


@dataclass(frozen=True, eq=False)
class Control:
    """How far an iteration may go, and who watches it.

    Parameters
    ----------
    max_steps : int
        Steps at most.
    budget : Budget
        What it may spend.
    callback : callable or None
        Called after each step with the step, the value and the residual norms; true
        ends it.
    record : bool
        Whether to keep the trace.
    compact : bool
        Whether finished samples leave the batch.
    state : Memory or None
        What a solver remembers of an earlier call; it goes first.
    told : dict or None
        Where steps may be made twice, what was found after each: the callback hears of
        it once, and the second time ends where the first did.
    """

    max_steps: int
    budget: Budget = field(default_factory=Budget)
    callback: Callable[[int, Vec, Array], Any] | None = None
    record: bool = False
    compact: bool = False
    state: Memory | None = None
    told: dict[Any, list[tuple[Any, Status]]] | None = None

    @cached_property
    def is_plain(self) -> bool:
        """Whether nobody watches between the steps."""
        bounded = self.budget.evaluations is not None or self.budget.seconds is not None
        return not (bounded or self.callback or self.record or self.compact)

    @property
    def is_observed(self) -> bool:
        """Whether there is a callback or a clock, which only what runs now can ask."""
        return self.budget.seconds is not None or self.callback is not None

    def deadline(self, start: Vec, backend: Backend) -> float | None:
        """When time is up, if it ever is."""
        seconds = self.budget.seconds
        if self.is_observed and backend.is_traced(start):
            raise TypeError(
                "inside a trace there is no clock and no callback: use max_steps"
            )
        return None if seconds is None else time.monotonic() + seconds

    def ends(
        self,
        deadline: float | None,
        step: Any,
        value: Vec,
        norm: Array,
        evaluations: Any,
    ) -> Iterator[tuple[Any, Status]]:
        """Whether to end after a step, for each reason to."""
        found = self._ends(deadline, step, value, norm, evaluations)
        if self.told is None:
            return found
        if step not in self.told:
            self.told[step] = list(found)
        return iter(self.told[step])

    def _ends(
        self,
        deadline: float | None,
        step: Any,
        value: Vec,
        norm: Array,
        evaluations: Any,
    ) -> Iterator[tuple[Any, Status]]:
        if self.callback is not None and self.callback(step, value, norm):
            yield True, Status.STOPPED
        if self.budget.evaluations is not None:
            yield evaluations >= self.budget.evaluations, Status.OUT_OF_BUDGET
        if deadline is not None and time.monotonic() > deadline:
            yield True, Status.OUT_OF_BUDGET


@dataclass(frozen=True, eq=False)
class Memory:
    """What a solver remembers at the end of a call, for the next one.

    Parameters
    ----------
    solver : Solver
        The solver.
    contents : object
        What it remembers.
    """

    solver: Solver
    contents: Any
