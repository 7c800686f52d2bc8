"""Newton's method with a Krylov method for its linear systems."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fixedpoint.backend import Array
from fixedpoint.checks import check_positive
from fixedpoint.linear import GMRES, LinearSolution, LinearSolver, LinearSystem
from fixedpoint.problem import Point, Problem
from fixedpoint.solution import Status, Work
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.search import backtrack, bounded
from fixedpoint.space import Space

# A linear solve that leaves more than this of the residual has failed.
_USELESS = 0.95


class Forcing(NamedTuple):
    """What Newton-Krylov remembers.

    Attributes
    ----------
    eta : array
        The forcing term of the next linear solve.
    linear : object
        What the linear solver remembers.
    """

    eta: Array
    linear: Any


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(Solver):
    """Damped inexact Newton iteration, free of matrices.

    With the increment g(z) = f(z) − z, or −F(z), a Krylov method reduces the residual of

        g′(z) d = −g(z)    to    ‖g′(z) d + g(z)‖ ≤ η ‖g(z)‖ ,

    and z ← z + λd, with λ found by backtracking until ½‖g‖² has fallen sufficiently. The forcing
    term follows Eisenstat and Walker's second choice, η = γ(‖g‖/‖g_old‖)², not below γη_old² while
    that exceeds 0.1, within [10⁻⁴, η_max], and never tighter than the tolerance needs.

    The products with g′ are exact in Torch and JAX, or where the call is given ``jvp`` or
    ``jacobian``; otherwise they are difference quotients, one evaluation each. A non-finite trial
    point shortens the step. A line search that finds no decrease, or a linear solve that reduces
    nothing, is a status of its own.

    Parameters
    ----------
    linear : LinearSolver, optional
        By default ``GMRES()``. :class:`BiCGStab` has no memory that grows;
        :class:`ConjugateGradient` is for Jacobians that are symmetric and definite.
    line_search : bool, optional
        Whether to damp. Without, every finite step is taken, which may leave a local minimiser of
        ‖g‖ that damping is caught in.
    step_bound : float, optional
        No entry of d may exceed this many times the largest entry of z.
    forcing, forcing_max : float in (0, 1), optional
        The first η, and η_max.
    gamma : float in (0, 1], optional
        γ.

    References
    ----------
    Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method", SIAM J. Sci.
    Comput. 17, 1996.
    Kelley, "Solving Nonlinear Equations with Newton's Method", SIAM, 2003.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> sol = fp.root(lambda x: x**3 - np.array([8.0, 27.0]), np.ones(2), solver=fp.NewtonKrylov())
    >>> np.round(sol.value, 4)
    array([2., 3.])
    """

    linear: LinearSolver = field(default_factory=GMRES)
    line_search: bool = True
    step_bound: float | None = None
    forcing: float = 0.5
    forcing_max: float = 0.9
    gamma: float = 0.9

    def __post_init__(self) -> None:
        check_positive("forcing", self.forcing, 1.0)
        check_positive("forcing_max", self.forcing_max, 1.0)
        check_positive("gamma", self.gamma, 1.0)
        if self.step_bound is not None:
            check_positive("step_bound", self.step_bound)
        if not isinstance(self.linear, LinearSolver):
            raise TypeError(f"linear must be a linear solver such as GMRES(), got {self.linear!r}")

    def init(self, space: Space, problem: Problem, point: Point) -> Forcing:
        """The first forcing term."""
        del problem, point
        return Forcing(space.full(self.forcing), self.linear.init(space))

    def resume(self, space: Space, state: Forcing, point: Point, fresh: Forcing) -> Forcing:
        """Begin anew: a forcing term belongs to the residual before."""
        del space, state, point
        return fresh

    def step(
        self, space: Space, problem: Problem, point: Point, state: Forcing, active: Array | None
    ) -> Step:
        """One linear solve and one line search."""
        xp = space.xp
        merit = space.norm(point.increment)
        needed = 0.25 * space.ratio(problem.tolerance(point), point.residual_norm)
        eta = xp.minimum(xp.maximum(state.eta, needed), space.full(self.forcing_max))
        linearisation = problem.linearise(point)
        system = LinearSystem(
            space, linearisation.product, space.negative(point.increment), eta * merit,
            problem.precondition(point), active,
        )  # fmt: skip
        solution, memory = self.linear.solve(system, state.linear)
        search = self._search(problem, point, solution, merit, active)
        new = search.point
        eta = self._next(space, state.eta, merit, space.norm(new.increment))
        return Step(
            new, Forcing(eta, memory), _work(linearisation, solution, search.trials),
            _failure(space, solution, merit, search.pending),
        )  # fmt: skip

    def _search(
        self, problem: Problem, point: Point, solution: LinearSolution, merit: Array,
        active: Array | None,
    ) -> Any:  # fmt: skip
        """Backtrack along the direction, where it reduces the linearised residual."""
        useful = solution.residual_norm <= _USELESS * merit
        pending = useful if active is None else useful & active
        # ½‖g‖² falls at the rate gᵀ(−g′d) = ‖g‖² − gᵀr ≥ ‖g‖(‖g‖ − ‖r‖), r the linear residual.
        slope = merit * (merit - solution.residual_norm)
        direction = bounded(problem.space, solution.value, point, self.step_bound)
        return backtrack(problem, point, direction, merit, slope, pending, self.line_search)

    def _next(self, space: Space, eta: Array, old: Array, new: Array) -> Array:
        """Eisenstat and Walker's second choice."""
        xp = space.xp
        chosen = self.gamma * space.ratio(new, old) ** 2
        before = self.gamma * eta * eta
        chosen = xp.where(before > 0.1, xp.maximum(chosen, before), chosen)
        return xp.maximum(chosen, xp.full_like(chosen, 1e-4))


def _work(linearisation: Any, solution: LinearSolution, trials: Any) -> Work:
    products = solution.products
    return Work(
        f=trials + products * linearisation.evaluations, jvp=products * linearisation.products
    )


def _failure(space: Space, solution: LinearSolution, merit: Array, pending: Array) -> Array | None:
    """What became of the samples that could not take a step."""
    xp = space.xp
    useless = ~(solution.residual_norm <= _USELESS * merit)
    if space.backend.known_none(useless | pending):
        return None
    failure = xp.astype(useless, xp.int32) * int(Status.LINEAR_SOLVE_FAILED)
    return xp.where(pending, xp.full_like(failure, int(Status.LINE_SEARCH_FAILED)), failure)
