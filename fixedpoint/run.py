"""One solve, in terms of leaves: what a backend runs and attaches derivatives to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fixedpoint.backend import Backend, Vec
from fixedpoint.border import Border
from fixedpoint.control import Control
from fixedpoint.failure import Policy, apply_policy
from fixedpoint.functions import Bridge, Product
from fixedpoint.iterate import Iteration, Solve
from fixedpoint.operators.base import Map
from fixedpoint.problem import Problem
from fixedpoint.solution import Solution, Work


@dataclass(frozen=True, eq=False, kw_only=True)
class Run(ABC):
    """A problem, and how its solution is found.

    Parameters
    ----------
    problem : Problem
        What is solved.
    control : Control
        How far to go, and who watches.
    border : Border
        The user's containers.
    """

    problem: Problem
    control: Control
    border: Border

    @property
    def backend(self) -> Backend:
        """The adapter of the array library."""
        return self.problem.space.backend

    @property
    @abstractmethod
    def methods(self) -> tuple[str, ...]:
        """The names of the methods, in the order they are tried."""

    @abstractmethod
    def iterate(self, value: Vec) -> Iteration:
        """The solution from `value`, recording no derivatives."""

    def at(self, args: Vec) -> Run:
        """The same for other arguments."""
        return replace(self, problem=self.problem.at(args))

    def with_functions(self, **changes: Any) -> Run:
        """The same with some of the functions changed."""
        return replace(self, problem=self.problem.changed(**changes))

    def solution(self, end: Iteration) -> Solution[Any]:
        """Where an iteration ended, in the user's containers."""
        known = end._asdict()
        value = self.border.returned(known.pop("value"))
        return Solution(
            value=value, methods=self.methods, linearization=self.linearized, **known
        )

    def packed(
        self,
        end: Iteration,
        what: str,
        on_failure: Policy,
        map_: Map,
        args: tuple[Any, ...],
    ) -> Solution[Any]:
        """The solution that `what` returns, with what its map returns beside the image;
        or what `on_failure` says.
        """
        solution, space = self.solution(end), self.problem.space
        value = apply_policy(on_failure, what, space, end.value, solution)
        solution.value = self.border.returned(value)
        if map_.has_aux:
            solution.aux = map_.f(solution.value, *args)[1]
            solution.work = solution.work.plus(Work(f=1))
        return solution

    def linearized(self, container: Any) -> Callable[[Any], Any]:
        """From the solution, in its container, to the products with f′ or F′ there."""
        border = self.border
        product = self.products(border.vector(border.leaves(container)))
        return lambda v: border.returned(product(border.vector(border.leaves(v))))

    def products(self, value: Vec) -> Product:
        """The products with the derivative of the user's map at `value`."""
        space, problem = self.problem.space, self.problem
        product = problem.linearize(problem.evaluate(value)).product
        if problem.is_root:
            return lambda v: space.negative(product(v))
        return lambda v: space.add(product(v), v)


@dataclass(frozen=True, eq=False, kw_only=True)
class SolverRun(Solve, Run):
    """A run of the loop.

    Parameters
    ----------
    problem, control, border, solver, memory
        As for these.
    """

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the solvers of a fallback."""
        return tuple([method.name for method in self.solver.sequence])

    def steps(self, value: Vec) -> Iterator[Solution[Any]]:
        """Where the iteration stands at the start and after each step."""
        for end in self.turns(value):
            yield self.solution(end)

    def on(self, bridge: Bridge, value: Vec) -> SolverRun:
        """The same by another library's arithmetic, from states like `value`."""
        control, memory = self.control, self.memory
        call, back = control.callback, bridge.back
        if call is not None:
            control = replace(
                control,
                callback=lambda step, value, norm: call(
                    step, bridge.all_back(value), back(norm)
                ),
            )
        return replace(
            self,
            problem=self.problem.on(bridge, value),
            solver=self.solver.across(bridge),
            control=control,
            memory=memory and memory.converted(bridge.there_in),
        )
