"""Compiled steps, which an installed package may offer for plain problems.

An entry point of the group ``fixedpoint.kernels`` takes a solver and a problem to a
:class:`Kernel`, or to None where it has none for them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from fixedpoint.evidence import Evidence, Verdict
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import Solver, Step


class Kernel(ABC):
    """A solver's step and the test of where it led, in one."""

    @abstractmethod
    def advance(
        self,
        problem: Problem,
        point: Point,
        state: Any,
        evidence: Evidence,
        at_most: int,
    ) -> tuple[Advanced | None, Step, Verdict]:
        """What ``solver.step`` and :func:`fixedpoint.convergence.judge` give.

        Before that step there may be others, so that there are `at_most` so many, by
        each of which the residual of every sample fell, and none ended.
        """


class Advanced(NamedTuple):
    """What the last of some steps gave, with their work, and how many they were."""

    step: Step
    verdict: Verdict
    number: int


_allowed = ContextVar("_allowed", default=True)


@contextmanager
def disabled() -> Iterator[None]:
    """Let no compiled step be taken inside the block, to compare or to find a fault.

    Examples
    --------
    >>> import math, fixedpoint as fp
    >>> from fixedpoint import kernels
    >>> with kernels.disabled():
    ...     sol = fp.fixed_point(math.cos, 1.0)
    >>> round(float(sol.value), 5)
    0.73909
    """
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def kernel_of(solver: Solver, problem: Problem) -> Kernel | None:
    """The kernel for a solver's steps on a problem, if one is installed."""
    for offered in _installed() if _allowed.get() else ():
        kernel = offered(solver, problem)
        if kernel is not None:
            return kernel
    return None


@cache
def _installed() -> tuple[Callable[[Solver, Problem], Kernel | None], ...]:
    """What the installed packages offer."""
    return tuple(entry.load() for entry in entry_points(group="fixedpoint.kernels"))


def measured(problem: Problem, step: Step) -> Step:
    """The step, with the residuals that f gives now in samples that have ended."""
    if problem.active is None:
        return step
    point, space = step.point, problem.space
    (now,) = space.sound_norms([(point.increment, problem.tolerance.kind)])
    norm = space.xp.where(problem.active, point.residual_norm, now)
    return step._replace(point=point._replace(residual_norm=norm))
