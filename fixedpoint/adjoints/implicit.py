"""Implicit differentiation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fixedpoint.backend import Vec
from fixedpoint.checks import check_count
from fixedpoint.failure import check_policy
from fixedpoint.iterate import Course, Iteration, iterate
from fixedpoint.linear import GMRES
from fixedpoint.problem import FixedPointProblem, Problem, RootProblem
from fixedpoint.solvers import Anderson, NewtonKrylov, Solver
from fixedpoint.space import Space

_ANDERSON = Anderson(memory=20)
_GMRES = NewtonKrylov(linear=GMRES(restart=50, max_steps=500), forcing=1e-3, line_search=False)


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Differentiate z* = f(z*, θ) by the implicit function theorem.

    With J = ∂f/∂z at z*, the cotangent v of z* gives that of θ as (∂f/∂θ)ᵀu, where

        (I − Jᵀ) u = v .

    The system is solved as the fixed point of u ↦ Jᵀu + v, matrix-free, by the engine that solves
    for z*, each sample for itself. For a root F(x*, θ) = 0 the system is F′ᵀu = v, and the
    cotangent of θ is −(∂F/∂θ)ᵀu. One linearisation of f serves all its products, and memory
    does not grow with the steps of either solve. The derivative is that of the exact solution:
    its error is that of z* and of u, times the condition number of I − J.

    Parameters
    ----------
    solver : Solver, optional
        How to solve the adjoint system, by default ``Anderson(memory=20)``, and for roots
        :class:`NewtonKrylov`, one step of which is GMRES.
    rtol, atol : float, optional
        It ends at ‖Jᵀu + v − u‖ ≤ atol + rtol·‖Jᵀu + v‖. By default rtol is that of
        the forward solve, if it is a positive float, or max(1e-6, 10·eps).
    max_steps : int, optional
        Steps of the adjoint solve at most.
    on_failure : {"raise", "warn", "return", "nan"}, optional
        What to do when the adjoint solve fails: raise :class:`ConvergenceError` out of the
        backward pass, warn, go on with what was reached, or fill the gradients of the samples
        that failed with NaN.
    """

    solver: Solver | None = None
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 500
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps, 0)
        check_policy("on_failure", self.on_failure)

    def method(self, is_root: bool) -> Solver:
        """The solver of the adjoint system."""
        return self.solver or (_GMRES if is_root else _ANDERSON)

    def solve(
        self, space: Space, jacobian: Callable[[Vec], Vec], right: Vec, rtol: float, is_root: bool
    ) -> Iteration:
        """Solve u = jacobian(u) + right from u = right; or jacobian(u) + right = 0 from 0.

        Parameters
        ----------
        space : Space
            Where u lies.
        jacobian : callable
            The product u ↦ Jᵀu, or u ↦ Ju for tangents.
        right : Vec
            The right-hand side.
        rtol : float
            The tolerance to use where the settings name none.
        is_root : bool
            Whether the second system is to be solved, where J is that of −F.
        """
        tolerance: Any = rtol if self.rtol is None else self.rtol
        constant = space.rows(right)

        def product(u: Vec) -> Vec:
            return space.rows(jacobian(space.shaped(u)))

        common = (tolerance, self.atol)
        if is_root:
            problem: Problem = RootProblem(
                space,
                lambda u: (space.negative(space.add(product(u), constant)), None),
                *common,
                jvp=lambda _, v: space.negative(product(v)),
            )
        else:
            problem = FixedPointProblem(
                space, lambda u: (space.add(product(u), constant), None), *common
            )
        start = space.zeros(constant) if is_root else constant
        end = iterate(self.method(is_root), problem, start, Course(self.max_steps))
        return end._replace(value=space.shaped(end.value))
