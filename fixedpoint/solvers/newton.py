"""Newton's method with the Jacobian as a matrix, for small systems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_positive
from fixedpoint.differences import units_of
from fixedpoint.linear.direct import (
    Factors,
    System,
    column_norms,
    damped,
    factorized,
    rotated,
    rotated_back,
)
from fixedpoint.matrix import Sparsity
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.solution import Status, Work
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.search import Descent, backtrack, bounded
from fixedpoint.space import Space

_TRIALS = 40

# Points with a singular derivative that are left before the method gives up.
ESCAPES = 3

# A correction with the same Jacobian that is this much shorter means quadratic
# convergence; where nothing is known of the convergence, the error is this many
# corrections.
QUADRATIC, MOST = 0.125, 1e3

# How far a step may be from Newton's, relative to it, to count as that.
_SAME = 1e-6

# λ is sought between its upper bound ‖(g′D⁻¹)ᵀg‖/Δ and so many decades below, to 2⁻ᵏ of
# them.
_DECADES, _BISECTIONS = 40.0, 12


def matching(space: Space, sparsity: Sparsity | None) -> Sparsity | None:
    """`sparsity`, if it is that of a Jacobian of this size; else raise ValueError."""
    if sparsity is not None and len(sparsity.pattern) != space.real_size:
        raise ValueError(
            "state must come from a call with the same shapes: expected "
            f"{space.real_size} "
            f"unknowns, got {len(sparsity.pattern)}"
        )
    return sparsity


class Approach(NamedTuple):
    """What Newton's method remembers.

    Attributes
    ----------
    sparsity : Sparsity or None
        What difference quotients found of the Jacobian's zeros.
    length : array
        The length of the last correction, each entry relative to the state's; infinite
        where the last step was not a full one.
    escapes : array of int
        How often a point with a singular derivative was left.
    rows : array of shape (batch, n)
        What the equations are multiplied by in the line search, zero before the first
        step.
    sizes : array of shape (batch, n)
        The largest that each entry of the state has been.
    """

    sparsity: Sparsity | None
    length: Array
    escapes: Array
    rows: Array
    sizes: Array


@dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    """Newton's method with the Jacobian as a matrix.

    Solves g′(z) d = −g(z) by elimination, or where g′ is singular in the least-squares
    sense by a singular value decomposition, and backtracks along d until ½‖g‖² has
    fallen sufficiently. The Jacobian is the caller's ``jacobian``, or is made column by
    column from products or difference quotients; of these, columns that share no row
    share an evaluation once the zeros are known. For systems of up to a few hundred
    unknowns, or where ``jacobian`` gives a sparse matrix.

    Where the derivative is singular, so that no d explains the residual, the state is
    moved by a sixteenth of itself, three times at most.

    The error at a new point is that of one more correction with the old Jacobian, d̄ =
    −g′(z)⁻¹g(z + d), as long as Θ = ‖d̄‖/‖d‖ tells that the iteration contracts
    quadratically; else that of the geometric series that the ratio of two corrections
    begins.

    Parameters
    ----------
    line_search : bool, optional
        Whether to damp. Without, every finite step is taken, which may escape a
        local minimizer of ‖g‖ in which damping gets stuck.
    step_bound : float, optional
        No entry of d may exceed this many times the largest entry of z: the others keep
        their full length, so that in a chain of equations each is solved as soon as
        those before it are.

    References
    ----------
    Dennis and Schnabel, "Numerical Methods for Unconstrained Optimization and Nonlinear
    Equations", SIAM, 1996. Deuflhard, "Newton Methods for Nonlinear Problems", Springer
    2004, chapter 2: the simplified correction as an estimate of the error.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> F = lambda x: np.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])
    >>> sol = fp.root(F, np.array([-1.2, 1.0]), solver=fp.Newton())
    >>> np.round(sol.value, 6)
    array([1., 1.])
    """

    line_search: bool = True
    step_bound: float | None = None

    def __post_init__(self) -> None:
        if self.step_bound is not None:
            check_positive("step_bound", self.step_bound)

    def resume(
        self, space: Space, state: Approach, point: Point, fresh: Approach
    ) -> Approach:
        """The zeros that an earlier call found."""
        del point
        return fresh._replace(sparsity=matching(space, state.sparsity))

    def patience(self, space: Space) -> int:
        """With bounded steps, a step for each equation of a chain."""
        chain = 0 if self.step_bound is None else space.real_size
        return super().patience(space) + chain

    def init(self, problem: Problem, point: Point) -> Approach:
        """Nothing is known of the Jacobian."""
        space = problem.space
        count = space.xp.zeros_like(point.residual_norm, dtype=space.xp.int32)
        none = space.full(0.0, (space.real_size,))
        sizes = space.xp.abs(space.ravel(point.value))
        return Approach(None, space.full(math.inf), count, none, sizes)

    def step(self, problem: Problem, point: Point, state: Approach) -> Step:
        """One Jacobian and one line search."""
        space, active = problem.space, problem.active
        sizes = space.xp.maximum(state.sizes, space.xp.abs(space.ravel(point.value)))
        matrix = problem.matrix(point, state.sparsity, sizes)
        rhs = -space.ravel(point.increment)
        system = System.of(space, matrix.entries, rhs, problem.factors)
        flat = system.finite & ~(matrix.reliable & system.finite)
        escaping = ~system.explained & (state.escapes < ESCAPES) | flat & (
            state.escapes < 1
        )
        rows = units(space, system, space.ravel(point.value), state.rows)
        descent, whole = self._descent(space, system, point, escaping, rows)
        pending = system.finite if active is None else system.finite & active
        search = backtrack(problem, point, descent, pending, self.line_search)
        work = matrix.work.plus(Work(f=search.trials))
        singular = ~system.explained
        idle = singular & ~escaping & problem.is_negligible(descent.direction, point)
        failure = failures(space, ~system.finite, search.pending | idle, singular)
        known = (
            system.sound & matrix.reliable & (search.length == 1.0) & ~search.pending
        )
        length, correction, inflation = approached(
            space, system, search.point, known, known & whole, state.length
        )
        escapes = state.escapes + space.xp.astype(escaping, space.xp.int32)
        sizes = sizes if matrix.sizes is None else matrix.sizes
        state = Approach(matrix.sparsity, length, escapes, rows, sizes)
        return Step(
            search.point,
            state,
            work,
            failure,
            False,
            correction,
            inflation,
            is_direct=True,
        )

    def _descent(
        self, space: Space, system: System, point: Point, escaping: Array, rows: Array
    ) -> tuple[Descent, Array]:
        """What to search along, and whether it is all of Newton's direction."""
        xp = space.xp
        along = bounded(space, space.unravel(system.entries), point, self.step_bound)
        merit = xp.linalg.vector_norm(rows * system.rhs, axis=-1)
        slope = system.slope(space.ravel(along), merit, rows)
        descent = escaped(
            space, point.value, escaping, Descent(along, merit, slope, rows)
        )
        return descent, xp.all(
            space.ravel(descent.direction) == system.entries, axis=-1
        )


def escaped(space: Space, value: Vec, escaping: Array, descent: Descent) -> Descent:
    """The descent, but a move away in the samples that are `escaping`, whatever it
    leads to.
    """
    if space.backend.known_none(escaping):
        return descent
    where = space.xp.where
    return Descent(
        space.where(escaping, _away(space, value), descent.direction),
        where(escaping, space.infinity, descent.merit),
        where(escaping, space.zero, descent.slope),
        descent.rows,
    )


def _away(space: Space, value: Vec) -> Vec:
    """A move by about a sixteenth of each entry, or of one where it is zero, to leave a
    point.
    """
    moves, xp = [], space.xp
    for leaf, count in zip(value, space.sizes, strict=True):
        index = xp.astype(xp.arange(count, **space.place), space.dtype)
        graded = space.as_leaf((1.0 + index / (2.0 * count)) / 16.0, leaf)
        moves.append(graded * xp.where(leaf == 0, xp.ones_like(leaf), leaf))
    return tuple(moves)


def approached(
    space: Space, system: System, new: Point, known: Array, full: Array, before: Array
) -> tuple[Array, Vec, Array]:
    """The length of this correction, the next one, and what the error is of it.

    The next one is `known` where the step was not damped, and tells of the error where
    the step was `full`, so that no bound shortened it. With Θ = ‖d̄‖/‖d‖ and the ratio
    q of d to the correction before, the error is ‖d̄‖/(1 − Θ) where Θ is small, and
    else max(‖d̄‖, q‖d‖)/(1 − max(Θ, q)): so it is for roots of any multiplicity.
    """
    xp, d = space.xp, system.entries
    value = space.ravel(new.value)
    weights = space.ratio(space.one, xp.maximum(xp.abs(value), xp.abs(d)))
    length = xp.linalg.vector_norm(weights * d, axis=-1)
    if space.backend.known_none(known):
        return (
            xp.where(full, length, space.infinity),
            space.unravel(d),
            space.full(math.inf),
        )
    simplified = system.solved(-space.ravel(new.increment))
    next_length = xp.linalg.vector_norm(weights * simplified, axis=-1)
    theta, q = space.ratio(next_length, length), length / before
    first = before == xp.inf
    rate = xp.maximum(theta, q)
    slow = xp.maximum(theta, q) / xp.where(rate < 1.0, 1.0 - rate, space.zero)
    slow = slow / xp.where(theta > 0.0, theta, space.one)
    factor = xp.where(
        theta <= QUADRATIC, 1.0 / (1.0 - xp.minimum(theta, 0.5 * space.one)), slow
    )
    vague = first & (theta > QUADRATIC) | ~(factor < MOST) | ~full
    factor = xp.where(vague, MOST * space.one, factor)
    inflation = xp.where(known, factor, space.infinity)
    correction = xp.where(known[..., None], simplified, d)
    return xp.where(full, length, space.infinity), space.unravel(correction), inflation


def units(space: Space, system: System, value: Array, rows: Array) -> Array:
    """`rows`, or what brings equations together whose units are more than a million
    apart.

    An equation is as large as its change when the unknowns change by their own size, or
    where they are zero by the first correction.
    """
    xp = space.xp
    size = xp.where(value == 0.0, xp.abs(system.entries), xp.abs(value))
    terms = system.row_maxima(xp.where(xp.isfinite(size), size, space.zero))
    terms = xp.where(terms < xp.inf, terms, space.zero)
    largest = xp.max(terms, axis=-1, keepdims=True)
    largest = xp.where(largest > 0.0, largest, space.one)
    return xp.where(
        rows > 0.0, rows, 2.0 ** -xp.round(xp.log2(largest)) / units_of(space, terms)
    )


def failures(
    space: Space, unsolved: Array, pending: Array, singular: Array | None = None
) -> Array | None:
    """The statuses of samples whose linear solve, or whose search, failed; None if none
    did.
    """
    xp = space.xp
    if space.backend.known_none(unsolved | pending):
        return None
    status = xp.astype(unsolved, xp.int32) * int(Status.LINEAR_SOLVE_FAILED)
    status = xp.where(
        pending, xp.full_like(status, int(Status.LINE_SEARCH_FAILED)), status
    )
    if singular is None:
        return status
    return xp.where(
        pending & singular, xp.full_like(status, int(Status.SINGULAR)), status
    )


class Region(NamedTuple):
    """What the Levenberg-Marquardt method remembers.

    Attributes
    ----------
    radius : array
        The trust radius in the scaled norm ‖Dd‖; zero before the first step.
    scales : array of shape (batch, n)
        D, the largest norm that each column of the Jacobian has had.
    sparsity : Sparsity or None
        What difference quotients found of the Jacobian's zeros.
    length, rows, sizes : array
        As for :class:`Newton`.
    """

    radius: Array
    scales: Array
    sparsity: Sparsity | None
    length: Array
    rows: Array
    sizes: Array


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(Solver):
    """The Levenberg-Marquardt method as a trust region, for small systems.

    Minimizes ‖g + g′d‖ over ‖Dd‖ ≤ Δ, where D holds the largest norm that each column
    of g′ has had: d = −(g′ᵀg′ + λD²)⁻¹ g′ᵀg with the λ ≥ 0 that the radius Δ calls for,
    found by bisection in the singular vectors of g′D⁻¹. A step is taken if it brings a
    10⁻⁴ of the decrease that the model promised; the radius follows how good the
    promise was.

    Parameters
    ----------
    radius : float, optional
        The first radius, as a multiple of ‖Dz₀‖, or itself where z₀ = 0.

    References
    ----------
    Moré, "The Levenberg-Marquardt algorithm: implementation and theory", Lecture Notes
    in Mathematics 630, 1978.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> F = lambda x: np.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])
    >>> sol = fp.root(F, np.array([-1.2, 1.0]), solver=fp.LevenbergMarquardt())
    >>> np.round(sol.value, 6)
    array([1., 1.])
    """

    radius: float = 100.0

    def __post_init__(self) -> None:
        check_positive("radius", self.radius)

    def init(self, problem: Problem, point: Point) -> Region:
        """No radius, and no scales."""
        space = problem.space
        none = space.full(0.0, (space.real_size,))
        sizes = space.xp.abs(space.ravel(point.value))
        return Region(space.full(0.0), none, None, space.full(math.inf), none, sizes)

    def resume(
        self, space: Space, state: Region, point: Point, fresh: Region
    ) -> Region:
        """The radius, scales and zeros of an earlier call."""
        del point
        return state._replace(
            sparsity=matching(space, state.sparsity), length=fresh.length
        )

    def step(self, problem: Problem, point: Point, state: Region) -> Step:
        """One Jacobian, and trials at shrinking radii until one is accepted."""
        space, active = problem.space, problem.active
        xp = space.xp
        value = space.ravel(point.value)
        sizes = xp.maximum(state.sizes, xp.abs(value))
        matrix = problem.matrix(point, state.sparsity, sizes)
        rhs = -space.ravel(point.increment)
        system = System.of(space, matrix.entries, rhs, problem.factors)
        rows = units(space, system, value, state.rows)
        scaled = rows[..., :, None] * system.dense()
        scales = xp.maximum(state.scales, column_norms(space, scaled))
        factors = factorized(space, scaled, scales)
        size = xp.linalg.vector_norm(scales * value, axis=-1)
        first = self.radius * xp.where(size > 0.0, size, space.one)
        radius = xp.where(state.radius > 0.0, state.radius, first)
        pending = system.finite if active is None else system.finite & active
        end = _Trials(problem, point, rows, factors).run(radius, pending)
        work = matrix.work.plus(Work(f=end.trials))
        failure = failures(space, ~system.finite, end.pending, ~system.explained)
        moved = space.ravel(end.point.value) - value
        full = (
            system.sound & matrix.reliable & _same(space, moved, system.entries, value)
        )
        length, correction, inflation = approached(
            space, system, end.point, full, full, state.length
        )
        sizes = sizes if matrix.sizes is None else matrix.sizes
        state = Region(end.radius, scales, matrix.sparsity, length, rows, sizes)
        return Step(
            end.point,
            state,
            work,
            failure,
            False,
            correction,
            inflation,
            is_direct=True,
        )


def _same(space: Space, moved: Array, entries: Array, value: Array) -> Array:
    """Whether a move is all of a direction, up to the rounding of the state."""
    xp = space.xp
    weights = space.ratio(space.one, xp.maximum(xp.abs(value), xp.abs(entries)))
    far, size = (
        xp.linalg.vector_norm(weights * u, axis=-1) for u in (moved - entries, moved)
    )
    return far <= _SAME * size + space.rounding * math.sqrt(space.real_size)


class _Trial(NamedTuple):
    point: Point
    radius: Array
    pending: Array
    trials: Any


@dataclass(frozen=True, eq=False)
class _Trials:
    """The trials of one step."""

    problem: Problem
    old: Point
    rows: Array
    factors: Factors

    def run(self, radius: Array, pending: Array) -> _Trial:
        backend = self.problem.space.backend
        end: _Trial = backend.while_loop(
            lambda c: backend.any(c.pending) & (c.trials < _TRIALS),
            self.turn,
            _Trial(self.old, radius, pending, 0),
            _TRIALS,
        )
        return end

    def turn(self, carry: _Trial) -> _Trial:
        """Try the step that the radius allows, and judge it by the ratio of
        decreases.
        """
        space, xp = self.problem.space, self.problem.space.xp
        entries, length, promised = self.restricted(carry.radius)
        value = space.add(self.old.value, space.unravel(entries))
        new = self.problem.trial(space.where(carry.pending, value, carry.point.value))
        merit, norm = (
            xp.linalg.vector_norm(self.rows * space.ravel(at.increment), axis=-1)
            for at in (self.old, new)
        )
        # Of (‖g‖² − ‖g⁺‖²)/‖g‖², free of overflow.
        relative = space.ratio(norm, merit)
        gain = space.ratio(1.0 - relative * relative, promised)
        good = (norm < xp.inf) & (new.residual_norm < xp.inf)
        short = self.problem.is_negligible(space.unravel(entries), self.old)
        accepted = carry.pending & good & ((gain > 1e-4) | short)
        shrunk = 0.25 * xp.minimum(carry.radius, length)
        shrunk = xp.where(
            good & (gain > 1e-4), 0.5 * xp.minimum(carry.radius, length), shrunk
        )
        grown = xp.maximum(carry.radius, 2.0 * length)
        radius = xp.where(
            gain >= 0.75, grown, xp.where(gain >= 0.25, carry.radius, shrunk)
        )
        radius = xp.where(good, radius, shrunk)
        radius = xp.where(carry.pending, radius, carry.radius)
        return _Trial(
            choose(space, accepted, new, carry.point),
            radius,
            carry.pending & ~accepted,
            carry.trials + 1,
        )

    def restricted(self, radius: Array) -> tuple[Array, Array, Array]:
        """The step, its length ‖Dd‖, and the relative decrease of ‖g‖² that it
        promises.
        """
        space, xp, factors = self.problem.space, self.problem.space.xp, self.factors
        rhs = -self.rows * space.ravel(self.old.increment)
        coordinates = rotated(space, factors, rhs)
        lam = self.multiplier(rhs, factors.values * coordinates, radius)
        entries = damped(space, factors, coordinates, lam)
        length = xp.linalg.vector_norm(entries, axis=-1)
        left = coordinates - factors.values * entries
        total = xp.linalg.vector_norm(rhs, axis=-1)
        inside, after = (
            space.ratio(coordinates, total[..., None]),
            space.ratio(left, total[..., None]),
        )
        promised = xp.sum(inside * inside - after * after, axis=-1)
        return rotated_back(space, factors, entries), length, promised

    def multiplier(self, rhs: Array, products: Array, radius: Array) -> Array:
        """The λ ≥ 0 at which the scaled step q(λ) has the length of the radius, by
        bisection.
        """
        space, xp = self.problem.space, self.problem.space.xp
        squares = self.factors.values * self.factors.values

        def length(lam: Array) -> Array:
            return xp.linalg.vector_norm(
                space.ratio(products, squares + lam), axis=-1, keepdims=True
            )

        bound = radius[..., None]
        slope = xp.matmul(xp.matrix_transpose(self.factors.matrix), rhs[..., None])[
            ..., 0
        ]
        highest = space.ratio(
            xp.linalg.vector_norm(slope, axis=-1, keepdims=True), bound
        )
        low, high = -_DECADES + 0.0 * highest, 0.0 * highest
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            above = length(highest * 10.0**middle) > bound
            low, high = xp.where(above, middle, low), xp.where(above, high, middle)
        inside = length(0.0 * highest) <= bound
        return xp.where(inside, 0.0 * highest, highest * 10.0**high)
