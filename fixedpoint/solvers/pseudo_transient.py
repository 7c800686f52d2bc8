"""Pseudo-transient continuation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_positive
from fixedpoint.functions import Product
from fixedpoint.keywords import by_name
from fixedpoint.linear import GMRES, LinearSolver, LinearSystem
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Solver, Step, statuses
from fixedpoint.solvers.remaining import Remaining, after_inexact_solve
from fixedpoint.space import Space
from fixedpoint.status import Status

# A time step changes by this factor at most, and may fall to this part of the first.
_CHANGE, _LEAST = 10.0, 1e-12


class PseudoTransientState(NamedTuple):
    """What pseudo-transient continuation remembers."""

    size: Array  # the next time step
    first: Array  # the first one
    amplification: Array  # the largest ‖d‖/‖g‖ of a Newton correction d, as steps tell
    length: Array  # of the last step, infinite where it was not taken
    linear: Any  # what the linear solver remembers


@by_name
@dataclass(frozen=True, kw_only=True)
class PseudoTransient(Solver):
    """Pseudo-transient continuation: Newton's method as the end of a flow.

    Follows dz/dt = g(z), with the increment g(z) = f(z) − z or −F(z), to its steady
    state by linearly implicit Euler steps,

        (I/δ − g′(z)) d = g(z) ,    z ← z + d ,    δ ← δ ‖g_old‖/‖g_new‖ ,

    which are short and stable at first, and become Newton's as the residual falls. For
    problems whose steady state is stable under the flow, from starts where a damped
    Newton method is caught in a local minimizer of ‖g‖. A step to where g is not finite
    is repeated with a quarter of δ.

    Parameters
    ----------
    time_step : float, optional
        The first δ, as a multiple of ‖z₀‖/‖g₀‖, or itself where z₀ = 0.
    linear : LinearSolver, optional
        By default ``GMRES()``.
    rtol : float in (0, 1], optional
        How far each linear solve goes.

    References
    ----------
    Kelley and Keyes, "Convergence analysis of pseudo-transient continuation", SIAM J.
    Numer. Anal. 35, 1998.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> sol = fp.root(lambda x: np.arctan(x), np.array([20.0]),
    ...               solver=fp.PseudoTransient())
    >>> bool(np.abs(sol.value[0]) < 1e-5)
    True
    """

    time_step: float = 1.0
    linear: LinearSolver = field(default_factory=GMRES)
    rtol: float = 1e-3

    def __post_init__(self) -> None:
        check_positive("time_step", self.time_step, math.inf)
        check_positive("rtol", self.rtol, 1.0)
        LinearSolver.check(self.linear)

    def init(self, problem: Problem, point: Point) -> PseudoTransientState:
        """The first time step."""
        space = problem.space
        natural = space.ratio(space.norm(point.value), space.norm(point.increment))
        first = self.time_step * space.xp.where(natural > 0.0, natural, space.one)
        none, infinite = space.full(0.0), space.full(math.inf)
        linear = self.linear.init(space)
        return PseudoTransientState(first, first, none, infinite, linear)

    def resume(
        self,
        space: Space,
        state: PseudoTransientState,
        point: Point,
        fresh: PseudoTransientState,
    ) -> PseudoTransientState:
        """Begin anew: a time step belongs to the residual before."""
        del space, state, point
        return fresh

    def step(self, problem: Problem, point: Point, state: PseudoTransientState) -> Step:
        """One linear solve, one trial."""
        space, merit = problem.space, problem.space.norm(point.increment)
        linearization, inverse = problem.linearize(point), 1.0 / state.size
        system = self._system(problem, point, linearization.product, inverse, merit)
        solution, memory = self.linear.solve(system, state.linear)
        new = problem.trial(space.add(point.value, solution.value), point)
        finite = new.residual_norm < space.xp.inf
        (end,) = space.sound_norms([(new.increment, "euclidean")])
        left, largest = _learnt(space, state, solution.value, (merit, end), finite)
        size = _next(space, state, space.ratio(merit, end), finite)
        hopeless = (state.size < _LEAST * state.first) & ~finite
        return Step(
            choose(space, problem.renewed(finite), new, point),
            PseudoTransientState(size, state.first, largest, left.length, memory),
            linearization.work(solution.products).plus(Work(f=1)),
            statuses(space, (hopeless, Status.NON_FINITE)),
            correction=left.correction,
            error_factor=left.error_factor,
        )

    def _system(
        self,
        problem: Problem,
        point: Point,
        product: Product,
        inverse: Array,
        merit: Array,
    ) -> LinearSystem:
        """The system (I/δ − g′) d = g of a point, given 1/δ and ‖g‖."""
        space = problem.space
        return LinearSystem(
            space,
            lambda v: space.axpy(inverse, v, space.negative(product(v))),
            point.increment,
            self.rtol * merit,
            active=problem.active,
        )


def _learnt(
    space: Space,
    state: PseudoTransientState,
    d: Vec,
    residuals: tuple[Array, Array],
    finite: Array,
) -> tuple[Remaining, Array]:
    """What is left after a step d, if it is `finite`, and the largest amplification."""
    merit, length = residuals[0], space.norm(d)
    # Newton's correction is (I + (−g′)⁻¹/δ) d.
    newton = length * (1.0 + space.ratio(length * (1.0 / state.size), merit))
    largest = space.xp.maximum(state.amplification, space.ratio(newton, merit))
    # A first step says nothing of what is slower than it is long.
    amplification = state.amplification, largest
    left = after_inexact_solve(space, d, residuals, amplification, finite, state.length)
    return left, largest


def _next(
    space: Space, state: PseudoTransientState, fall: Array, finite: Array
) -> Array:
    """The next time step, which grows as the residual falls."""
    xp = space.xp
    least, most = (xp.full_like(fall, part) for part in (1.0 / _CHANGE, _CHANGE))
    change = xp.minimum(xp.maximum(fall, least), most)
    return state.size * xp.where(finite, change, xp.full_like(change, 0.25))
