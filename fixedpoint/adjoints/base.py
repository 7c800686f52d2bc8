"""What the adapters ask of an adjoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from fixedpoint.adjoints.system import AdjointSystem, units_of_unknowns
from fixedpoint.backend import Vec
from fixedpoint.control import Memory
from fixedpoint.failure import Policy, apply_policy
from fixedpoint.functions import Product
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint.solution import Solution, Work
from fixedpoint.solvers import Solver
from fixedpoint.space import Space
from fixedpoint.spaces import space_of


class Adjoint(ABC):
    """How derivatives of a solution are formed: immutable, hashable settings."""

    warm_start: Any = None
    preconditioner: Callable[..., Any] | None = None
    report: Callable[..., Any] | None = None
    shares_memory: ClassVar[bool] = False
    # The forward solver where none is named, if only one will do.
    forward_solver: ClassVar[Solver | None] = None

    @abstractmethod
    def attach(self, run: Run, value: Vec) -> Iteration:
        """The solution of `run`, differentiable with respect to its arguments."""

    def check(self, solver: Solver, is_root: bool) -> None:
        """Raise if this cannot differentiate solutions of `solver`, or roots."""
        del solver, is_root


class LinearAdjoint(Adjoint):
    """An adjoint that solves (I − A)u = v, or approximates its solution.

    The rules of the adapters differentiate u as the exact solution, whatever
    :meth:`solve` does: second derivatives are formed of first ones of the same quality.
    """

    #: What to do where :meth:`solve` fails.
    on_failure: Policy = "return"

    def attach(self, run: Run, value: Vec) -> Iteration:
        """The solution; the adapter's rules call :meth:`solve` for every derivative."""
        if self.warm_start is not None:
            run.border.pack(self.warm_start, value, "warm_start")
        return autodiff_of(run).implicit(self, run, value)

    def system(
        self,
        run: Run,
        product: Product,
        rhs: Vec,
        *,
        transposed: bool,
        value: Vec,
        memory: Memory | None = None,
        rhs_axes: int = 0,
    ) -> AdjointSystem:
        """The linear system of a derivative at the solution `value` of `run`.

        ``product`` belongs to the derivative of the problem's image there, ``memory``
        is the forward solver's, and ``rhs`` has ``rhs_axes`` axes in front that `value`
        lacks.
        """
        space, problem, start = run.problem.space, run.problem, self.warm_start
        inverse = problem.functions.adjoint_preconditioner
        if rhs_axes or not transposed:
            start = inverse = None
        if start is not None:
            start = run.border.pack(start, value, "warm_start")
        return AdjointSystem(
            space=space_of(run.backend, rhs, space.batch_ndim + rhs_axes),
            product=product,
            rhs=rhs,
            rtol=_relative(problem.tolerance.rtol, space),
            is_root=problem.is_root,
            transposed=transposed,
            start=start,
            precondition=None if inverse is None else inverse(value, problem.args),
            memory=memory,
            units=units_of_unknowns(space, value, problem.is_root, transposed),
        )

    @abstractmethod
    def solve(self, system: AdjointSystem) -> Iteration:
        """The solution u, or an approximation of it."""

    def solved(self, system: AdjointSystem) -> tuple[Vec, Iteration]:
        """The solution, or what :attr:`on_failure` says, and what became of it."""
        end, space = self.solve(system), system.space
        if self.report is not None:
            space.backend.report(self.report, end.status, end.residual_norm, end.steps)
        what = "the adjoint solve" if system.transposed else "the tangent solve"
        solution = Solution(
            value=end.value,
            status=end.status,
            residual_norm=end.residual_norm,
            steps=end.steps,
            work=Work(vjp=sum(end.work)),
            error=end.error,
            precise=end.precise,
            method=0 * end.method,
            methods=() if end.state is None else (end.state.solver.name,),
        )
        return apply_policy(self.on_failure, what, space, solution.value, solution), end


def _relative(rtol: Any, space: Space) -> float:
    """The relative tolerance of the forward solve, if it is one number."""
    known = isinstance(rtol, (int, float)) and rtol > 0
    return float(rtol) if known else space.default_rtol


class Autodiff(ABC):
    """How a framework that differentiates attaches derivatives to a solution."""

    @abstractmethod
    def attach(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, by the rules of its adjoint where derivatives are recorded."""

    @abstractmethod
    def implicit(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, differentiated by the linear systems of its adjoint."""


def solving(adjoint: Adjoint, run: Run) -> Callable[[Vec], Iteration]:
    """What takes a start to the solution, recorded where a framework does so."""
    if run.backend.autodiff is None:
        return run.iterate
    return partial(autodiff_of(run).attach, adjoint, run)


def autodiff_of(run: Run) -> Autodiff:
    """What differentiates the solution of `run`."""
    autodiff = run.backend.autodiff
    assert isinstance(autodiff, Autodiff)
    return autodiff
