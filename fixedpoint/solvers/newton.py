"""Newton's method with the Jacobian as a matrix, for small systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array
from fixedpoint.checks import check_positive
from fixedpoint.differences import Sparsity
from fixedpoint.problem import Point, Problem, choose
from fixedpoint.solution import Status, Work
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.search import backtrack, bounded
from fixedpoint.space import Space

_TRIALS = 40

# What elimination may leave of the right-hand side, for its solution to be used.
_TRUST = 1e-6

# λ is sought between its upper bound ‖(g′D⁻¹)ᵀg‖/Δ and so many decades below, to 2⁻ᵏ of them.
_DECADES, _BISECTIONS = 40.0, 12


class Factors(NamedTuple):
    """The singular values and vectors of the scaled Jacobian, J D⁻¹ = U Σ Vᵀ, and D.

    Where the Jacobian is not finite, ``finite`` is false, and the factors are those of zero.
    """

    left: Array
    values: Array
    right: Array
    scales: Array
    finite: Array


def factorised(space: Space, matrix: Array, scales: Array) -> Factors:
    """The factors of `matrix` with its columns divided by `scales`."""
    xp = space.xp
    finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))
    matrix = xp.where(finite[..., None, None], matrix / scales[..., None, :], xp.zeros_like(matrix))
    left, values, right = xp.linalg.svd(matrix, full_matrices=False)
    return Factors(left, values, right, scales, finite)


def column_norms(space: Space, matrix: Array) -> Array:
    """The norm of each column, 1 where it is zero or not finite."""
    xp = space.xp
    norms = xp.sqrt(xp.sum(matrix * matrix, axis=-2))
    return xp.where((norms > 0.0) & (norms < xp.inf), norms, xp.ones_like(norms))


def solved(space: Space, factors: Factors, right: Array) -> Array:
    """The least-squares solution J⁺b: singular values that are rounding count as zero."""
    xp = space.xp
    turned = xp.matmul(xp.matrix_transpose(factors.left), right[..., None])[..., 0]
    least = right.shape[-1] * space.precision * factors.values[..., :1]
    kept = factors.values > least
    inverse = xp.where(kept, 1.0 / xp.where(kept, factors.values, xp.ones_like(least)), 0.0 * least)
    return turned_back(space, factors, inverse * turned)


def direct(space: Space, matrix: Array, right: Array) -> tuple[Array, Array]:
    """The solution by elimination, and whether it can be trusted."""
    xp = space.xp
    entries = space.backend.solve(matrix, right)
    left = xp.max(xp.abs(xp.matmul(matrix, entries[..., None])[..., 0] - right), axis=-1)
    return entries, left <= _TRUST * xp.max(xp.abs(right), axis=-1)


def turned_back(space: Space, factors: Factors, entries: Array) -> Array:
    """The product D⁻¹V with `entries`."""
    xp = space.xp
    rotated = xp.matmul(xp.matrix_transpose(factors.right), entries[..., None])[..., 0]
    return rotated / factors.scales


def matching(space: Space, sparsity: Sparsity | None) -> Sparsity | None:
    """`sparsity`, if it is that of a Jacobian of this size; else raise ValueError."""
    if sparsity is not None and len(sparsity.pattern) != space.real_size:
        raise ValueError(
            f"state must come from a call with the same shapes: expected {space.real_size} "
            f"unknowns, got {len(sparsity.pattern)}"
        )
    return sparsity


class Structure(NamedTuple):
    """What Newton's method remembers: what difference quotients found of the Jacobian's zeros."""

    sparsity: Sparsity | None


@dataclass(frozen=True, kw_only=True)
class Newton(Solver):
    """Newton's method with the Jacobian as a matrix.

    Solves g′(z) d = −g(z) by elimination, or where g′ is singular in the least-squares sense by a
    singular value decomposition, and backtracks along d until ½‖g‖² has fallen sufficiently. The
    Jacobian is the caller's ``jacobian``, or is made column by column from products or difference
    quotients; of these, columns that share no row share an evaluation once the zeros are known. For
    systems of up to a few hundred unknowns.

    Parameters
    ----------
    line_search : bool, optional
        Whether to damp. Without, every finite step is taken, which may leave a local minimiser of
        ‖g‖ that damping is caught in.
    step_bound : float, optional
        No entry of d may exceed this many times the largest entry of z: the others keep their full
        length, so that in a chain of equations each is solved as soon as those before it are.

    References
    ----------
    Dennis and Schnabel, "Numerical Methods for Unconstrained Optimization and Nonlinear
    Equations", SIAM, 1996.

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

    def resume(self, space: Space, state: Structure, point: Point, fresh: Structure) -> Structure:
        """The zeros that an earlier call found."""
        del point, fresh
        return Structure(matching(space, state.sparsity))

    def patience(self, space: Space) -> int:
        """With bounded steps, a step for each equation of a chain."""
        chain = 0 if self.step_bound is None else space.real_size
        return super().patience(space) + chain

    def init(self, space: Space, problem: Problem, point: Point) -> Structure:
        """Nothing is known of the Jacobian."""
        del space, problem, point
        return Structure(None)

    def step(
        self, space: Space, problem: Problem, point: Point, state: Structure, active: Array | None
    ) -> Step:
        """One Jacobian and one line search."""
        matrix, work, sparsity = problem.matrix(point, state.sparsity)
        finite = space.xp.all(space.xp.isfinite(matrix), axis=(-2, -1))
        right = -space.ravel(point.increment)
        entries = self._direction(space, matrix, right, finite)
        direction = bounded(space, space.unravel(entries), point, self.step_bound)
        merit = space.norm(point.increment)
        slope = slope_along(space, matrix, space.ravel(direction), right)
        pending = finite if active is None else finite & active
        search = backtrack(problem, point, direction, merit, slope, pending, self.line_search)
        work = work.plus(Work(f=search.trials))
        failure = failures(space, ~finite, search.pending)
        return Step(search.point, Structure(sparsity), work, failure)

    def _direction(self, space: Space, matrix: Array, right: Array, finite: Array) -> Array:
        """Newton's direction: elimination knows chains of equations to the last, however graded."""
        xp, unit = space.xp, space.identity(right.shape[-1])
        matrix = xp.where(finite[..., None, None], matrix, unit)
        scales = column_norms(space, matrix)
        entries, trusted = direct(space, matrix / scales[..., None, :], right)
        entries = entries / scales
        if space.backend.known_all(trusted):
            return entries
        least = solved(space, factorised(space, matrix, scales), right)
        return xp.where(trusted[..., None], entries, least)


def slope_along(space: Space, matrix: Array, entries: Array, right: Array) -> Array:
    """The rate −gᵀg′d at which ½‖g‖² falls along d."""
    xp = space.xp
    image = xp.matmul(matrix, entries[..., None])[..., 0]
    slope = xp.sum(right * image, axis=-1)
    return xp.where(xp.isfinite(slope), slope, xp.zeros_like(slope))


def failures(space: Space, unsolved: Array, pending: Array) -> Array | None:
    """The statuses of samples whose linear solve, or whose search, failed; None if none did."""
    xp = space.xp
    if space.backend.known_none(unsolved | pending):
        return None
    status = xp.astype(unsolved, xp.int32) * int(Status.LINEAR_SOLVE_FAILED)
    return xp.where(pending, xp.full_like(status, int(Status.LINE_SEARCH_FAILED)), status)


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
    """

    radius: Array
    scales: Array
    sparsity: Sparsity | None


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(Solver):
    """The Levenberg-Marquardt method as a trust region, for small systems.

    Minimises ‖g + g′d‖ over ‖Dd‖ ≤ Δ, where D holds the largest norm that each column of g′ has
    had: d = −(g′ᵀg′ + λD²)⁻¹ g′ᵀg with the λ ≥ 0 that the radius Δ calls for, found by bisection
    in the singular vectors of g′D⁻¹. A step is taken if it brings a
    10⁻⁴ of the decrease that the model promised; the radius follows how good the promise was.

    Parameters
    ----------
    radius : float, optional
        The first radius, as a multiple of ‖Dz₀‖, or itself where z₀ = 0.

    References
    ----------
    Moré, "The Levenberg-Marquardt algorithm: implementation and theory", Lecture Notes in
    Mathematics 630, 1978.

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

    def init(self, space: Space, problem: Problem, point: Point) -> Region:
        """No radius, and no scales."""
        del problem, point
        return Region(space.full(0.0), space.full(0.0, (space.real_size,)), None)

    def resume(self, space: Space, state: Region, point: Point, fresh: Region) -> Region:
        """The radius, scales and zeros of an earlier call."""
        del point, fresh
        return state._replace(sparsity=matching(space, state.sparsity))

    def step(
        self, space: Space, problem: Problem, point: Point, state: Region, active: Array | None
    ) -> Step:
        """One Jacobian, and trials at shrinking radii until one is accepted."""
        xp = space.xp
        matrix, work, sparsity = problem.matrix(point, state.sparsity)
        scales = xp.maximum(state.scales, column_norms(space, matrix))
        factors = factorised(space, matrix, scales)
        size = xp.linalg.vector_norm(scales * space.ravel(point.value), axis=-1)
        first = self.radius * xp.where(size > 0.0, size, xp.ones_like(size))
        radius = xp.where(state.radius > 0.0, state.radius, first)
        pending = factors.finite if active is None else factors.finite & active
        trial = _Trials(problem, point, factors)
        end = trial.run(radius, pending)
        work = work.plus(Work(f=end.trials))
        failure = failures(space, ~factors.finite, end.pending)
        return Step(end.point, Region(end.radius, scales, sparsity), work, failure)


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
        """Try the step that the radius allows, and judge it by the ratio of decreases."""
        space, xp = self.problem.space, self.problem.space.xp
        entries, length, promised = self.restricted(carry.radius)
        value = space.add(self.old.value, space.unravel(entries))
        new = self.problem.trial(space.where(carry.pending, value, carry.point.value))
        merit, norm = space.norm(self.old.increment), space.norm(new.increment)
        # Of (‖g‖² − ‖g⁺‖²)/‖g‖², free of overflow.
        relative = space.ratio(norm, merit)
        gain = space.ratio(1.0 - relative * relative, promised)
        good = (norm < xp.inf) & (new.residual_norm < xp.inf)
        accepted = carry.pending & good & ((gain > 1e-4) | new.satisfied)
        shrunk = 0.25 * xp.minimum(carry.radius, length)
        shrunk = xp.where(good & (gain > 1e-4), 0.5 * xp.minimum(carry.radius, length), shrunk)
        grown = xp.maximum(carry.radius, 2.0 * length)
        radius = xp.where(gain >= 0.75, grown, xp.where(gain >= 0.25, carry.radius, shrunk))
        radius = xp.where(good, radius, shrunk)
        radius = xp.where(carry.pending, radius, carry.radius)
        return _Trial(
            choose(space, accepted, new, carry.point), radius, carry.pending & ~accepted,
            carry.trials + 1,
        )  # fmt: skip

    def restricted(self, radius: Array) -> tuple[Array, Array, Array]:
        """The step, its length ‖Dd‖, and the relative decrease of ‖g‖² that it promises."""
        space, xp, values = self.problem.space, self.problem.space.xp, self.factors.values
        right = -space.ravel(self.old.increment)
        turned = xp.matmul(xp.matrix_transpose(self.factors.left), right[..., None])[..., 0]
        # Singular values that are rounding are dropped, so that λ = 0 is Newton's step.
        least = right.shape[-1] * space.precision * values[..., :1]
        values = xp.where(values > least, values, xp.zeros_like(values))
        squares, products = values * values, values * turned
        lam = self.multiplier(squares, products, radius)
        shifted = squares + lam
        entries = xp.where(
            shifted > 0.0,
            products / xp.where(shifted > 0.0, shifted, 1.0 + 0.0 * shifted),
            0.0 * products,
        )
        length = xp.linalg.vector_norm(entries, axis=-1)
        left = turned - values * entries
        total = xp.linalg.vector_norm(right, axis=-1)
        inside, after = space.ratio(turned, total[..., None]), space.ratio(left, total[..., None])
        promised = xp.sum(inside * inside - after * after, axis=-1)
        return turned_back(space, self.factors, entries), length, promised

    def multiplier(self, squares: Array, products: Array, radius: Array) -> Array:
        """The λ ≥ 0 at which the scaled step q(λ) has the length of the radius, by bisection."""
        space, xp = self.problem.space, self.problem.space.xp

        def length(lam: Array) -> Array:
            return xp.linalg.vector_norm(
                space.ratio(products, squares + lam), axis=-1, keepdims=True
            )

        bound = radius[..., None]
        highest = space.ratio(xp.linalg.vector_norm(products, axis=-1, keepdims=True), bound)
        low, high = -_DECADES + 0.0 * highest, 0.0 * highest
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            above = length(highest * 10.0**middle) > bound
            low, high = xp.where(above, middle, low), xp.where(above, high, middle)
        inside = length(0.0 * highest) <= bound
        return xp.where(inside, 0.0 * highest, highest * 10.0**high)
