"""Anderson acceleration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count, check_positive
from fixedpoint.columns import Columns, products, push_secant
from fixedpoint.keywords import by_name
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Solver, Step, unless_zero
from fixedpoint.space import Difference, Space

# After a rejected step plain ones follow, each half as long as the one before, this
# often.
_SHORTENINGS = 20

ONE = Work(f=1)


class AndersonState(NamedTuple):
    """What Anderson's method remembers."""

    residuals: Columns  # ΔG, zero where a difference is nothing but rounding
    images: Columns  # ΔF = ΔZ + ΔG that belong to them
    gram: Array  # ΔGᵀΔG, or ΔZᵀΔG for type I; 1 on the diagonal where a column is zero
    ridge: Array  # what `gram` is multiplied by: 1 + λ on the diagonal, else 1
    envelope: Array  # what accelerated residuals must stay below, times (1 + steps)⁻¹
    rejected: Array | None  # rejections in a row; None if there are known to be none
    pushed: Any  # columns pushed so far
    proposal: Vec  # the next iterate


@by_name
@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """Anderson acceleration, with damping and a safeguard.

    With g = f(z) − z and the differences of m residuals and states as the columns of ΔG
    and ΔZ,

        γ = (ΔGᵀΔG + λD²)⁻¹ ΔGᵀg ,    z ← z + τg − (ΔZ + τΔG) γ ,    D = diag ‖Δg‖ ,

    which minimizes ‖g − ΔGγ‖ up to a ridge relative to each column's length, so that
    neither the scale of the problem nor the fall of the residual matters to it. A
    column that is nothing but rounding is left out. On an affine map it is GMRES, step
    for step, as long as the memory lasts. Type I solves ΔZᵀ(g − ΔGγ) = 0 instead, as
    Broyden's good update would.

    Once the memory is full every slot is overwritten three times before the next: each
    third new difference replaces the oldest, and the others the newest. So m slots span
    the last 3m steps; on the maps of :mod:`fixedpoint.testing.problems` this needs down
    to two fifths of the evaluations of a window of the last m, and hardly ever more.

    A step to where f is not finite, or the residual above both the last one and an
    envelope, c‖g₀‖/(k + 1) after k steps, is not taken: plain steps z + τg follow
    instead, halved as long as f is not finite there. The rejected difference stays in
    the memory, for it holds true.

    Parameters
    ----------
    memory : int, optional
        The number m of differences kept, clamped to the dimension. The solver holds 2m
        states.
    damping : float in (0, 2] or callable, optional
        The factor τ on the residual that is left after mixing; 1 is no damping. A
        callable takes the number of the step, from 0.
    type : {2, 1}, optional
        The least-squares problem (2), or the secant equations tested with ΔZ (1).
    regularization : float, optional
        λ, by default and at least 10 times the unit roundoff of the coefficients.
    delay : int, optional
        Plain steps before the first accelerated one; they are remembered.
    safeguard : float, optional
        The constant c of the envelope.
    weights : tuple of float, optional
        A weight for each leaf in the inner product, where the leaves differ in scale.

    References
    ----------
    Anderson, "Iterative procedures for nonlinear integral equations", J. ACM 12, 1965.
    Fang and Saad, "Two classes of multisecant methods for nonlinear acceleration",
    Numer. Linear Algebra Appl. 16, 2009. Walker and Ni, "Anderson acceleration for
    fixed-point iterations", SIAM J. Numer. Anal. 49, 2011. Zhang, O'Donoghue and Boyd,
    "Globally convergent type-I Anderson acceleration for nonsmooth fixed-point
    iterations", SIAM J. Optim. 30, 2020.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> A, b = np.array([[0.9, 0.5], [0.0, 0.8]]), np.array([1.0, 2.0])
    >>> sol = fp.fixed_point(lambda z: A @ z + b, np.zeros(2),
    ...                      solver=fp.Anderson(memory=5))
    >>> np.round(sol.value, 6), int(sol.steps)
    (array([60., 10.]), 3)
    """

    memory: int = 10
    damping: float | Callable[[Any], Any] = 1.0
    type: int = 2
    regularization: float | None = None
    delay: int = 0
    safeguard: float = 1e4
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_count("memory", self.memory, 1)
        check_count("delay", self.delay, 0)
        check_positive("safeguard", self.safeguard, math.inf)
        if not callable(self.damping):
            check_positive("damping", self.damping, 2.0)
        if self.type not in (1, 2):
            raise ValueError(f"type must be 1 or 2, got {self.type!r}")
        if self.regularization is not None:
            check_positive("regularization", self.regularization, 1.0)
        for weight in self.weights or ():
            check_positive("weights", weight)

    def ridge(self, space: Space) -> float:
        """The λ that is taken in a space: less than its least may be singular."""
        return max(self.regularization or 0.0, 10 * space.precision)

    def init(self, problem: Problem, point: Point) -> AndersonState:
        """An empty memory."""
        space = problem.space
        memory = min(self.memory, space.dimension)
        unit = space.identity(memory)
        # Traced, if that is.
        none = space.xp.astype(point.residual_norm < 0.0, space.xp.int32)
        damping = self.damping(0) if callable(self.damping) else self.damping
        return AndersonState(
            Columns.empty(space, memory),
            Columns.empty(space, memory),
            unit,
            1.0 + self.ridge(space) * unit,
            self.safeguard * point.residual_norm,
            unless_zero(space, none),
            0,
            space.add(point.value, space.scale(damping, point.increment)),
        )

    def resume(
        self, space: Space, state: AndersonState, point: Point, fresh: AndersonState
    ) -> AndersonState:
        """The columns of an earlier call, with the envelope of this one."""
        kept = state._replace(
            residuals=state.residuals.copy(),
            images=state.images.copy(),
            gram=1.0 * state.gram,
            envelope=fresh.envelope,
            rejected=fresh.rejected,
        )
        return self._proposed(space.weighted(self.weights), point, kept, None)[0]

    def step(self, problem: Problem, point: Point, state: AndersonState) -> Step:
        """One step, one evaluation."""
        # No name of this frame keeps a point alive that is rejected.
        return self.stepped(problem, point, state, problem.trial(state.proposal, point))

    def stepped(
        self, problem: Problem, point: Point, state: AndersonState, new: Point
    ) -> Step:
        """The step to the point `new`, which is the proposal, evaluated."""
        space, active = problem.space, problem.active
        space = space.weighted(self.weights)
        state, tested = self._remembered(space, state, (point, new), active)
        fell = new.residual_norm < point.residual_norm
        all_fell = state.rejected is None and space.backend.known_here(fell)
        if not all_fell:
            accepted = fell | (
                new.residual_norm <= state.envelope * (1.0 / state.pushed)
            )
            accepted = problem.renewed(accepted)
            new, state = self._rejected(space, point, state, new, accepted)
            tested = None
        state, correction = self._proposed(space, new, state, tested)
        return Step(new, state, ONE, correction=correction)

    def _rejected(
        self,
        space: Space,
        old: Point,
        state: AndersonState,
        new: Point,
        accepted: Array,
    ) -> tuple[Point, AndersonState]:
        """The old point where the new one is not accepted."""
        xp = space.xp
        zero = xp.zeros_like(accepted, dtype=xp.int32)
        before = zero if state.rejected is None else state.rejected
        # A plain step need only be finite; and in the end the point is given up as it
        # is.
        accepted = accepted | ((before > 0) & (new.residual_norm < xp.inf))
        accepted = accepted | (before > _SHORTENINGS)
        rejected = unless_zero(space, xp.where(accepted, zero, before + 1))
        if not space.backend.known_here(accepted):
            new = choose(space, accepted, new, old)
        return new, state._replace(rejected=rejected)

    def _proposed(
        self, space: Space, point: Point, state: AndersonState, tested: Array | None
    ) -> tuple[AndersonState, Difference]:
        """The state with the next iterate, z + τg − (ΔZ + τΔG)γ, and its undamped step
        from z, by the products Qᵀg if they are known.
        """
        image = space.add(point.value, point.increment)
        gamma = self._gamma(space, point, state, tested)
        images = state.images.first(space, state.pushed)
        mixed = undamped = images.subtracted_from(space, image, gamma, ours=True)
        damping = self.damping(state.pushed) if callable(self.damping) else self.damping
        if not (isinstance(damping, (int, float)) and damping == 1.0):
            residuals = state.residuals.first(space, state.pushed)
            left = residuals.subtracted_from(space, point.increment, gamma)
            mixed = space.axpy((damping - 1.0) * space.one, left, mixed)
        if state.rejected is not None:
            shorter = damping * 0.5 ** space.xp.astype(state.rejected - 1, space.dtype)
            plain = space.add(point.value, space.scale(shorter, point.increment))
            mixed = space.where(state.rejected > 0, plain, mixed)
        return state._replace(proposal=mixed), Difference(undamped, point.value)

    def _gamma(
        self, space: Space, point: Point, state: AndersonState, tested: Array | None
    ) -> Array:
        """The coefficients γ = (QᵀΔG + λD²)⁻¹ Qᵀg, with Q = ΔG, or ΔZ for type I, and
        the diagonal D² of QᵀΔG, 1 for a column that is zero.

        The normal equations square the condition number of Q. The iteration corrects
        itself: an error in γ costs a step some of its speed, never the truth of its
        residual.
        """
        if tested is None:
            tested = self._tested(space, state, point.increment)[0]
        size, backend = tested.shape[-1], space.backend
        if size == 0:  # not every library solves a system of nothing
            return tested
        gram = state.gram[..., :size, :size] * state.ridge[..., :size, :size]
        solve = backend.solve_definite if self.type == 2 else backend.solve
        gamma = solve(gram, tested)
        return gamma * (1.0 * (state.pushed >= self.delay)) if self.delay else gamma

    def _tested(self, space: Space, state: AndersonState, *vectors: Vec) -> list[Array]:
        """The products Qᵀv."""
        residuals = state.residuals.first(space, state.pushed)
        tested = products(space, *[(residuals, v) for v in vectors])
        if self.type == 2:
            return tested
        images = state.images.first(space, state.pushed)
        others = products(space, *[(images, v) for v in vectors])
        return [a - b for a, b in zip(others, tested, strict=True)]

    def _remembered(
        self,
        space: Space,
        state: AndersonState,
        ends: tuple[Point, Point],
        active: Array | None,
    ) -> tuple[AndersonState, Array | None]:
        """Push the differences between two points, and renew their row and column of
        the Gram matrix; and the products with the new residual, where they are known.
        """
        slot = slot_of(state.pushed, state.gram.shape[-1])
        state, secant, informative = _pushed(space, state, slot, ends, active)
        column, tested = self._tested(space, state, secant[0], ends[1].increment)
        row, square = self._row(space, state, slot, column, secant)
        if informative is None:
            informative = _informative(space, square, ends[1])
            if space.backend.known_here(informative):
                gram = _bordered(space, state.gram, slot, row, column)
                return state._replace(gram=gram), tested
            change, image = (space.mask(informative, u) for u in secant)
            state = state._replace(
                residuals=state.residuals.push(space, slot, change),
                images=state.images.push(space, slot, image),
            )
            tested = None
        row, column = (_isolated(space, u, slot, informative) for u in (row, column))
        gram = _bordered(space, state.gram, slot, row, column)
        return state._replace(gram=gram), tested

    def _row(
        self,
        space: Space,
        state: AndersonState,
        slot: Any,
        column: Array,
        secant: tuple[Vec, Vec],
    ) -> tuple[Array, Array]:
        """The new row of the Gram matrix, symmetric but for type I, and ‖Δg‖²."""
        if self.type == 2:
            return column, space.backend.read(column, (..., slot))
        change, image = secant
        residuals = state.residuals.first(space, state.pushed)
        row = residuals.transposed_times(space, space.subtract(image, change))
        return row, space.dot(change, change)


def _pushed(
    space: Space,
    state: AndersonState,
    slot: Any,
    ends: tuple[Point, Point],
    active: Array | None,
) -> tuple[AndersonState, tuple[Vec, Vec], Array | None]:
    """The state with the differences Δg and Δz + Δg between two points, and these; and
    in which samples they stay, if that is known yet.

    Columns that are not written in place are made once, when it is known.
    """
    (old, new), writes, informative = ends, space.backend.writes, None
    residuals, images = state.residuals, state.images
    if writes and active is None:
        residuals, images, *secant = push_secant(space, residuals, images, slot, ends)
    else:
        change = space.subtract(new.increment, old.increment)
        image = space.add(space.subtract(new.value, old.value), change)
        if active is not None:  # others keep what they have
            change = space.where(active, change, residuals.column(space, slot))
            image = space.where(active, image, images.column(space, slot))
        secant = [change, image]
        if not writes:
            informative = _informative(space, space.dot(change, change), new)
            secant = [space.mask(informative, u) for u in secant]
        residuals = residuals.push(space, slot, secant[0])
        images = images.push(space, slot, secant[1])
    state = state._replace(residuals=residuals, images=images, pushed=state.pushed + 1)
    return state, (secant[0], secant[1]), informative


def slot_of(pushed: Any, memory: int) -> Any:
    """Where the next difference goes: in turn; once all are full, three times each."""
    beyond = pushed - memory
    beyond = max(beyond, 0) if isinstance(beyond, int) else beyond.clip(0)
    return (pushed - beyond + (beyond + 1) // 3) % memory


def _informative(space: Space, square: Array, new: Point) -> Array:
    """Whether a difference of residuals, of this squared length, exceeds rounding."""
    rounding = (4 * space.rounding) * new.magnitude
    return square > rounding * rounding


def _bordered(space: Space, gram: Array, slot: Any, row: Array, column: Array) -> Array:
    """The Gram matrix with a new row and column."""
    write, filled = space.backend.write, slice(row.shape[-1])
    gram = write(gram, (..., slot, filled), row)
    return write(gram, (..., filled, slot), column)


def _isolated(space: Space, row: Array, slot: Any, informative: Array) -> Array:
    """`row`, or that of the unit matrix in the samples whose new column is left out."""
    index = space.xp.arange(row.shape[-1], **space.place)
    unit = space.as_coefficient(index == slot)
    return space.xp.where(informative[..., None], row, unit)
