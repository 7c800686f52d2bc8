"""Newton's method with a Krylov method for its linear systems."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_positive
from fixedpoint.keywords import by_name
from fixedpoint.linear import GMRES, LinearSolution, LinearSolver, LinearSystem
from fixedpoint.linearization import Linearization
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Solver, Step, statuses
from fixedpoint.solvers.remaining import Remaining, after_inexact_solve
from fixedpoint.solvers.search import ESCAPES, Descent, backtrack, bounded, escaped
from fixedpoint.space import Space
from fixedpoint.status import Status

# A linear solve that leaves more than this of the residual has failed; one that would
# have to restart ends where it leaves less than the second, since the next step goes on
# as well, and with a new linearization.
_USELESS, _ENOUGH = 0.95, 0.8


class NewtonKrylovState(NamedTuple):
    """What Newton-Krylov remembers."""

    eta: Array  # the forcing term of the next linear solve
    linear: Any  # what the linear solver remembers
    amplification: Array  # the largest ‖d‖/‖g‖ so far
    length: Array  # ‖d‖ of the last step, infinite where it was not taken in full
    escapes: Array  # points with a singular derivative that were left


@by_name
@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(Solver):
    """Damped inexact Newton iteration, free of matrices.

    With the increment g(z) = f(z) − z, or −F(z), a Krylov method reduces the residual
    of

        g′(z) d = −g(z)    to    ‖g′(z) d + g(z)‖ ≤ η ‖g(z)‖ ,

    and z ← z + λd, with λ found by backtracking until ½‖g‖² has fallen sufficiently.
    The forcing term follows Eisenstat and Walker's second choice, η = γ(‖g‖/‖g_old‖)²,
    not below γη_old² while that exceeds 0.1, within [10⁻⁴, η_max], and never tighter
    than the tolerance needs.

    The products with g′ are exact in Torch and JAX, or where the call is given ``jvp``
    or ``jacobian``; otherwise they are difference quotients, one evaluation each. A
    non-finite trial point shortens the step. A line search that finds no decrease, or a
    linear solve that reduces nothing, is a status of its own.

    Parameters
    ----------
    linear : LinearSolver, optional
        By default ``GMRES()``. :class:`BiCGStab` has no memory that grows;
        :class:`ConjugateGradient` is for Jacobians that are symmetric and definite.
    line_search : bool, optional
        Whether to damp. Without, every finite step is taken, which may escape a
        local minimizer of ‖g‖ in which damping gets stuck.
    step_bound : float, optional
        No entry of d may exceed this many times the largest entry of z.
    forcing, forcing_max : float in (0, 1), optional
        The first η, and η_max.
    gamma : float in (0, 1], optional
        γ.
    before_matrix : bool, optional
        Whether a method with a matrix takes over where this one fails. Then a linear
        solve has failed, too, that is short of its target when a tenth of its residual
        takes more products than there are unknowns: so many make the matrix.

    References
    ----------
    Eisenstat and Walker, "Choosing the forcing terms in an inexact Newton method", SIAM
    J. Sci. Comput. 17, 1996. Kelley, "Solving Nonlinear Equations with Newton's
    Method", SIAM, 2003.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> sol = fp.root(lambda x: x**3 - np.array([8.0, 27.0]), np.ones(2),
    ...               solver=fp.NewtonKrylov())
    >>> np.round(sol.value, 4)
    array([2., 3.])
    """

    linear: LinearSolver = field(default_factory=GMRES)
    line_search: bool = True
    step_bound: float | None = None
    forcing: float = 0.5
    forcing_max: float = 0.9
    gamma: float = 0.9
    before_matrix: bool = False

    def __post_init__(self) -> None:
        check_positive("forcing", self.forcing, 1.0)
        check_positive("forcing_max", self.forcing_max, 1.0)
        check_positive("gamma", self.gamma, 1.0)
        if self.step_bound is not None:
            check_positive("step_bound", self.step_bound, math.inf)
        LinearSolver.check(self.linear)

    def init(self, problem: Problem, point: Point) -> NewtonKrylovState:
        """The first forcing term."""
        space = problem.space
        count = space.xp.zeros_like(point.residual_norm, dtype=space.xp.int32)
        eta, none = space.full(self.forcing), space.full(0.0)
        linear, infinite = self.linear.init(space), space.full(math.inf)
        return NewtonKrylovState(eta, linear, none, infinite, count)

    def resume(
        self,
        space: Space,
        state: NewtonKrylovState,
        point: Point,
        fresh: NewtonKrylovState,
    ) -> NewtonKrylovState:
        """Begin anew: a forcing term belongs to the residual before."""
        del space, state, point
        return fresh

    def step(self, problem: Problem, point: Point, state: NewtonKrylovState) -> Step:
        """One linear solve and one line search."""
        space, merit = problem.space, problem.space.norm(point.increment)
        linearization = problem.linearize(point)
        system = self._system(problem, point, state, merit, linearization)
        solution, memory = self.linear.solve(system, state.linear)
        useful = self._useful(system, solution, merit)
        solved = solution, merit, useful
        descent, whole, escaping = self._descent(space, point, state, *solved)
        going = useful | escaping
        pending = problem.live(going)
        search = backtrack(problem, point, descent, pending, self.line_search)
        whole = whole & (search.length == 1.0) & ~search.pending
        took = solution.value, merit, whole
        left, state = self._learnt(problem, search.point, state, *took)
        escapes = state.escapes + space.xp.astype(escaping, space.xp.int32)
        failed = search.pending, Status.LINE_SEARCH_FAILED
        return Step(
            search.point,
            state._replace(linear=memory, escapes=escapes),
            linearization.work(solution.products).plus(Work(f=search.trials)),
            statuses(space, (~going, Status.LINEAR_SOLVE_FAILED), failed),
            correction=left.correction,
            error_factor=left.error_factor,
        )

    def _learnt(
        self,
        problem: Problem,
        new: Point,
        state: NewtonKrylovState,
        d: Vec,
        merit: Array,
        whole: Array,
    ) -> tuple[Remaining, NewtonKrylovState]:
        """What is left after a step along d, taken in full where `whole` holds, and the
        forcing term of the next one.
        """
        space = problem.space
        amplification = self._amplification(space, state, d, merit, whole)
        # What is linear is solved to its tolerance at once.
        expected = amplification if problem.is_affine else state.amplification
        # A residual whose squares are lost is not zero yet.
        (end,) = space.sound_norms([(new.increment, "euclidean")])
        rates, before = (expected, amplification), state.length
        left = after_inexact_solve(space, d, (merit, end), rates, whole, before)
        return left, state._replace(
            eta=self._next(space, state.eta, merit, end),
            amplification=amplification,
            length=left.length,
        )

    def _system(
        self,
        problem: Problem,
        point: Point,
        state: NewtonKrylovState,
        merit: Array,
        linearization: Linearization,
    ) -> LinearSystem:
        """The system g′(z) d = −g(z), and how far to solve it."""
        space = problem.space
        return LinearSystem(
            space,
            linearization.product,
            space.negative(point.increment),
            self._eta(problem, point, state, merit) * merit,
            problem.precondition(point),
            problem.active,
            _ENOUGH * merit,
            linearization.quotient,
        )

    def _useful(
        self, system: LinearSystem, solution: LinearSolution, merit: Array
    ) -> Array:
        """Whether a linear solve has reduced the residual, of norm `merit`, enough."""
        space, left = system.space, solution.residual_norm
        # Inner products with a residual whose square is lost tell nothing.
        useful = (left <= _USELESS * merit) & (merit >= space.smallest)
        if not self.before_matrix:
            return useful
        digits = -space.xp.log10(space.ratio(left, merit))
        fast = solution.products <= space.dimension * digits
        return useful & (fast | (left <= system.target))

    def _eta(
        self, problem: Problem, point: Point, state: NewtonKrylovState, merit: Array
    ) -> Array:
        """The forcing term, no smaller than what the tolerance needs.

        Where it needs nothing more, and yet is not met, small entries are not seen by
        the norm.
        """
        space, xp = problem.space, problem.space.xp
        needed = 0.25 * problem.share_within(point, state.amplification, merit)
        eta = xp.maximum(state.eta, xp.where(needed < 1.0, needed, space.zero))
        return xp.minimum(eta, space.full(self.forcing_max))

    def _descent(
        self,
        space: Space,
        point: Point,
        state: NewtonKrylovState,
        solution: LinearSolution,
        merit: Array,
        useful: Array,
    ) -> tuple[Descent, Array, Array]:
        """What to search along, whether it is all of d, and which points to leave."""
        along = bounded(space, solution.value, point, self.step_bound)
        whole = useful
        if self.step_bound is not None:
            whole = useful & (space.norm(space.subtract(along, solution.value)) == 0.0)
        # ½‖g‖² falls at the rate gᵀ(−g′d) = ‖g‖² − gᵀr ≥ ‖g‖(‖g‖ − ‖r‖), r the linear
        # residual.
        slope = merit - solution.residual_norm
        flat = ~useful & (space.norm(solution.value) == 0.0)
        escaping = flat & (merit < space.xp.inf) & (state.escapes < ESCAPES)
        descent = escaped(space, point.value, escaping, Descent(along, merit, slope))
        return descent, whole, escaping

    def _amplification(
        self, space: Space, state: NewtonKrylovState, d: Vec, merit: Array, whole: Array
    ) -> Array:
        """The largest ‖d‖/‖g‖: it grows as residuals come to lie where g′ is small."""
        now, before = space.ratio(space.norm(d), merit), state.amplification
        return space.xp.where(whole, space.xp.maximum(before, now), before)

    def _next(self, space: Space, eta: Array, old: Array, new: Array) -> Array:
        """Eisenstat and Walker's second choice."""
        xp = space.xp
        chosen = self.gamma * space.ratio(new, old) ** 2
        before = self.gamma * eta * eta
        chosen = xp.where(before > 0.1, xp.maximum(chosen, before), chosen)
        bounds = space.full(1e-4), space.full(self.forcing_max)
        return xp.minimum(xp.maximum(chosen, bounds[0]), bounds[1])
