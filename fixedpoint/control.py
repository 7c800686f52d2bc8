"""How far an iteration may go, and who watches it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fixedpoint.adapters import type_name
from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.checks import (
    check_callable,
    check_count,
    check_given,
    check_positive,
    check_takes,
)
from fixedpoint.keywords import by_name
from fixedpoint.solvers.base import Solver
from fixedpoint.status import Status

# Steps at most of each method, where nothing else is said.
_STEPS = 1000


@by_name
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
            check_positive("seconds", self.seconds, math.inf)


@by_name
@dataclass(frozen=True, kw_only=True)
class Control:
    """How far an iteration may go, and who watches it: all that is the run's.

    Parameters
    ----------
    max_steps : int, optional
        Steps at most, not counting the evaluation at the start, summed over the solvers
        of a fallback; by default 1000 times their number.
    budget : Budget, optional
        Evaluations or seconds that the solve may spend.
    callback : callable, optional
        ``callback(step, z, residual_norm)`` after each step; a true value ends the
        solve, of all samples. :class:`Progress` is one that draws a bar.
    record : bool, optional
        Keep the course of the residual in ``sol.trace``.
    batched_args : tuple of bool, optional
        For each entry of ``args`` whether its arrays have an entry per sample, along
        their first axis. Outside a trace, samples that have converged then leave the
        batch.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> brief = fp.Control(max_steps=3, record=True)
    >>> sol = fp.fixed_point(np.cos, 1.0, solver=fp.Picard(), control=brief,
    ...                      on_failure="return")
    >>> int(sol.steps), sol.trace.residual_norm.shape
    (3, (4,))
    """

    max_steps: int | None = None
    budget: Budget | None = None
    callback: Callable[[int, Any, Array], Any] | None = None
    record: bool = False
    batched_args: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            check_count("max_steps", self.max_steps, 0)
        check_callback(self.callback)
        if self.batched_args is not None:
            _check_flags(self.batched_args)
            # Values are compared and hashed, which lists and arrays are not.
            object.__setattr__(self, "batched_args", tuple(self.batched_args))
        if self.budget is not None and not isinstance(self.budget, Budget):
            kind = type(self.budget).__name__  # type: ignore[unreachable]
            raise TypeError(
                f"budget must be Budget(evaluations=..., seconds=...), got {kind}"
            )
        if self.batched_args is not None and self.callback is not None:
            raise ValueError(
                "a callback sees whole batches: give it, or batched_args, not both"
            )

    def steps(self, methods: int) -> int:
        """Steps at most, of so many methods together."""
        return _STEPS * methods if self.max_steps is None else self.max_steps

    @cached_property
    def is_plain(self) -> bool:
        """Whether nobody watches between the steps."""
        return not (self.budget or self.callback or self.record or self.batched_args)

    @property
    def is_observed(self) -> bool:
        """Whether there is a callback or a clock, which only what runs now can ask."""
        timed = self.budget is not None and self.budget.seconds is not None
        return timed or self.callback is not None

    def deadline(self, start: Vec, backend: Backend) -> float | None:
        """When time is up, if it ever is."""
        if self.is_observed and backend.is_traced(start):
            raise TypeError(
                "inside a trace there is no clock and no callback: use max_steps"
            )
        seconds = None if self.budget is None else self.budget.seconds
        return None if seconds is None else time.monotonic() + seconds

    def ends(
        self,
        deadline: float | None,
        step: Any,
        value: Vec,
        norm: Array,
        evaluations: Any,
    ) -> Iterator[tuple[Any, Status]]:
        """Whether to end after a step, for each reason that there may be."""
        if self.callback is not None:
            yield _is_true(self.callback(step, value, norm)), Status.STOPPED
        if self.budget is not None and self.budget.evaluations is not None:
            yield evaluations >= self.budget.evaluations, Status.OUT_OF_BUDGET
        if deadline is not None:
            yield time.monotonic() > deadline, Status.OUT_OF_BUDGET


def _is_true(answer: Any) -> bool:
    """What a callback says.

    Raises
    ------
    TypeError
        If it says something for each sample.
    """
    try:
        return bool(answer)
    except (TypeError, ValueError, RuntimeError):
        shape = (
            f" of the shape {tuple(answer.shape)}" if hasattr(answer, "shape") else ""
        )
        raise TypeError(
            "callback must return one truth value, whether to end the whole solve, got "
            f"{type_name(answer)}{shape}: say by .all() or .any() what is meant"
        ) from None


def check_callback(callback: Any) -> None:
    """Raise TypeError unless `callback` can be called with what it is told."""
    check_callable("callback", callback)
    if callback is not None:
        check_given("callback", callback)
        check_takes("callback", callback, ("step", "value", "residual_norm"))


def _check_flags(batched_args: Any) -> None:
    if isinstance(batched_args, str) or not hasattr(batched_args, "__iter__"):
        raise TypeError(
            "batched_args must be a sequence of bools, one for each entry of args, got "
            f"{batched_args!r}"
        )


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

    def __repr__(self) -> str:
        return f"Memory({self.solver!r}, contents=<{type(self.contents).__name__}>)"

    def converted(self, convert: Callable[[Any], Any]) -> Memory:
        """The same, its contents converted."""
        return Memory(self.solver, convert(self.contents))
