"""Several solvers, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fixedpoint.functions import Bridge
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.named import as_solver


@dataclass(frozen=True, init=False)
class Fallback(Solver):
    """Try solvers in turn, on the samples that have not converged, each from the start.

    Each may take half of the steps that are left, and the last one all of them; a
    solver that reports a failure before leaves its share to those after it. If none
    succeeds the iterate of the smallest residual is returned. ``sol.method`` says which
    solver found the value.

    Parameters
    ----------
    solvers : sequence of Solver or str
        What to try: solvers, or their names.

    Examples
    --------
    >>> import math, fixedpoint as fp
    >>> sol = fp.fixed_point(lambda z: 4.0 * math.cos(z), 1.0,
    ...                      solver=fp.Fallback([fp.Picard(), fp.Newton()]))
    >>> round(float(sol.value), 6), sol.methods[int(sol.method)]
    (1.252353, 'Newton')
    """

    solvers: tuple[Solver, ...]

    def __init__(self, solvers: Sequence[Solver | str]) -> None:
        if isinstance(solvers, str):
            raise TypeError(f"solvers must be a sequence, got {solvers!r}")
        found = [as_solver(given, "each of solvers") for given in solvers]
        flat = tuple(rung for solver in found for rung in solver.sequence)
        if not flat:
            raise ValueError("solvers must hold at least one solver, got none")
        object.__setattr__(self, "solvers", flat)

    @property
    def sequence(self) -> tuple[Solver, ...]:
        """The methods to try, one after the other."""
        return self.solvers

    def across(self, bridge: Bridge) -> Fallback:
        """The same methods, on states of another array library."""
        found = tuple([solver.across(bridge) for solver in self.solvers])
        return self if found == self.solvers else Fallback(found)

    def init(self, problem: Problem, point: Point) -> Any:
        """What the first solver remembers."""
        return self.solvers[0].init(problem, point)

    def step(self, problem: Problem, point: Point, state: Any) -> Step:
        """A step of the first solver: the loop runs the others."""
        return self.solvers[0].step(problem, point, state)
