"""Broyden's method with limited memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count
from fixedpoint.columns import Columns, products
from fixedpoint.keywords import by_name
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Solver, Step, statuses, unless_zero
from fixedpoint.solvers.search import Descent, backtrack
from fixedpoint.space import Difference, Space
from fixedpoint.status import Status

# A step to where f is not finite is halved this often, then the point is given up as it
# is.
_SHORTENINGS = 20

# A change of the residual counts where it is so many times its rounding errors.
_NOISE = 4.0


class BroydenState(NamedTuple):
    """What Broyden's method remembers: H = σI + Σ uⱼvⱼᵀ ≈ −g′⁻¹."""

    left: Columns  # U, of the uⱼ
    right: Columns  # V, of the vⱼ
    used: Array  # (batch, memory), 1 for each column in use, 0 for the others
    scale: Array  # σ
    direction: Vec  # the next step, Hg at the point, halved where f was not finite
    shortened: Array | None  # how often; None if it is known to be never
    pushed: Any  # columns in use
    spent: int  # evaluations that σ took

    def times(self, space: Space, v: Vec) -> Vec:
        """The product Hv = σv + UVᵀv."""
        along = self.right.first(space, self.pushed).transposed_times(space, v)
        return self.combined(space, space.scale(self.scale, v), self.left, along)

    def combined(self, space: Space, u: Vec, columns: Columns, c: Array) -> Vec:
        """The vector u + Qc, Q the columns in use; u is ours, and may be written to."""
        c = self.used[..., : c.shape[-1]] * c
        return columns.first(space, self.pushed).added_to(space, u, c, ours=True)

    def transposed(self) -> BroydenState:
        """The estimate Hᵀ."""
        return self._replace(left=self.right, right=self.left)

    def widened(self, space: Space, columns: int) -> BroydenState:
        """The same estimate, with room for more columns."""
        memory, count = self.used.shape[-1], self.pushed
        return self._replace(
            left=self.left.widened(space, columns),
            right=self.right.widened(space, columns),
            used=space.xp.concat([self.used, space.full(0.0, (columns,))], axis=-1),
            # It may be a view, which repeats an entry.
            scale=space.full(1.0) * self.scale,
            pushed=count if isinstance(count, int) else (count - 1) % memory + 1,
        )


@by_name
@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """Broyden's method in its inverse form, with limited memory and restarts.

    With the increment g(z) = f(z) − z, or −F(z), and the estimate H ≈ −g′⁻¹,

        z ← z + λHg ,    H ← H − (Δz + HΔg) vᵀ / (vᵀΔg) ,    v = HᵀΔz (good), Δg (bad) ,

    so that HΔg = −Δz: the secant equation of the newest step always holds. For fixed
    points H starts as the identity, and the first step is Picard's; for roots as the
    multiple σ of it that minimizes ‖g + σg′g‖, at the cost of one product. Once the
    memory is full it is emptied before the next update. An update whose denominator is
    rounding is left out.

    Parameters
    ----------
    memory : int, optional
        Updates between two restarts. The solver holds twice as many states.
    update : {"good", "bad"}, optional
        Which of Broyden's two updates.
    line_search : bool, optional
        Whether to backtrack until ‖g‖ falls; a search that fails is a status. Without,
        only a point that is not finite shortens the step.

    References
    ----------
    Broyden, "A class of methods for solving nonlinear simultaneous equations", Math.
    Comp. 19, 1965. Kelley, "Iterative Methods for Linear and Nonlinear Equations",
    SIAM, 1995, chapter 7.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> sol = fp.fixed_point(np.cos, np.array([1.0, 0.5]), solver=fp.Broyden())
    >>> np.round(sol.value, 6)
    array([0.739085, 0.739085])
    """

    memory: int = 20
    update: str = "good"
    line_search: bool = False

    def __post_init__(self) -> None:
        check_count("memory", self.memory, 1)
        if self.update not in ("good", "bad"):
            raise ValueError(f"update must be 'good' or 'bad', got {self.update!r}")

    def init(self, problem: Problem, point: Point) -> BroydenState:
        """No columns."""
        space = problem.space
        scale, spent = problem.initial_scale(point)
        memory = self.memory
        # Traced, if that is.
        count = space.xp.astype(point.residual_norm < 0.0, space.xp.int32)
        return BroydenState(
            Columns.empty(space, memory),
            Columns.empty(space, memory),
            space.full(0.0, (memory,)),
            scale,
            space.scale(scale, point.increment),
            unless_zero(space, count),
            0,
            spent,
        )

    def patience(self, space: Space) -> int:
        """Longer in small systems: a linear one takes a multiple of its unknowns."""
        return super().patience(space) + min(5 * space.dimension, 200)

    def initial_work(self, state: BroydenState) -> Work:
        """What σ took."""
        return Work(f=state.spent)

    def resume(
        self, space: Space, state: BroydenState, point: Point, fresh: BroydenState
    ) -> BroydenState:
        """The estimate of an earlier call, and its direction here."""
        return state._replace(
            left=state.left.copy(),
            right=state.right.copy(),
            used=1.0 * state.used,
            direction=state.times(space, point.increment),
            shortened=fresh.shortened,
        )

    def step(self, problem: Problem, point: Point, state: BroydenState) -> Step:
        """One step, one update."""
        if self.line_search:
            return self._searched(problem, point, state)
        moved = problem.space.add(point.value, state.direction)
        return self.stepped(problem, point, state, problem.trial(moved, point))

    def stepped(
        self, problem: Problem, point: Point, state: BroydenState, new: Point
    ) -> Step:
        """The step to the point `new`, whose value the direction led to."""
        space = problem.space
        finite = problem.renewed(new.residual_norm < space.xp.inf)
        if state.shortened is None and space.backend.known_here(finite):
            state = self._updated(space, state, point, new)
            return Step(new, state, correction=state.direction)
        return self._shortened(space, state, point, new, finite)

    def _searched(self, problem: Problem, point: Point, state: BroydenState) -> Step:
        """A step whose length is searched for."""
        space, merit = problem.space, problem.space.norm(point.increment)
        descent = Descent(state.direction, merit, merit)
        pending = problem.live(space.xp.zeros_like(merit) == 0.0)
        search = backtrack(problem, point, descent, pending, monotone=True)
        state = self._updated(space, state, point, search.point)
        failure = statuses(space, (search.pending, Status.LINE_SEARCH_FAILED))
        work = Work(f=search.trials)
        return Step(search.point, state, work, failure, correction=state.direction)

    def _shortened(
        self, space: Space, state: BroydenState, old: Point, new: Point, finite: Array
    ) -> Step:
        """Where f is not finite keep the point, and try half of the step next."""
        xp = space.xp
        zero = xp.zeros_like(finite, dtype=xp.int32)
        before = zero if state.shortened is None else state.shortened
        given_up = ~finite & (before >= _SHORTENINGS)
        point = choose(space, finite | given_up, new, old)
        half = space.scale(0.5, state.direction)
        state = self._updated(space, state, old, choose(space, finite, new, old))
        correction, count = state.direction, xp.where(finite, zero, before + 1)
        state = state._replace(
            direction=space.where(finite, correction, half),
            shortened=unless_zero(space, count),
        )
        return Step(point, state, correction=correction)

    def _updated(
        self, space: Space, state: BroydenState, old: Point, new: Point
    ) -> BroydenState:
        """The estimate with one more column, in the samples that moved."""
        state = emptied(space, state, old)
        slot = state.pushed
        v, along = self._tested(space, state, old, new)
        right, writes = state.right, space.backend.writes
        if writes:
            right, v = right.placed(space, slot, v)
        sound, factor, amount = _weighed(space, v, old, new)
        scaled = space.scale(state.scale, new.increment)
        image = state.combined(space, scaled, state.left, along)
        left, u = _wrong(space, state, image, factor, old, new)
        if not writes:
            # Told after all products with the columns, and before these are replaced:
            # else a compiler keeps copies of them.
            sound = sound & ~space.xp.any(space.xp.isnan(along), axis=-1)
        if not writes or not space.backend.known_here(sound):
            kept = lambda leaf: space.mask(sound, (leaf,))[0]
            left, u = left.placed(space, slot, u, by=kept)
            right, v = right.placed(space, slot, v, by=kept)
        return state._replace(
            left=left,
            right=right,
            used=space.backend.write(state.used, (..., slot), space.full(1.0)),
            direction=space.accumulate(image, amount, u),
            pushed=slot + 1,
        )

    def _tested(
        self, space: Space, state: BroydenState, old: Point, new: Point
    ) -> tuple[Vec, Array]:
        """The vector v that the update tests Δg with, and the products Vᵀg_new."""
        right = state.right.first(space, state.pushed)
        if self.update == "bad":
            change = space.subtract(new.increment, old.increment)
            return change, right.transposed_times(space, new.increment)
        left = state.left.first(space, state.pushed)
        move = space.subtract(new.value, old.value)
        across, along = products(space, (left, move), (right, new.increment))
        move = space.scale(state.scale, move)
        return state.combined(space, move, state.right, across), along


def _wrong(
    space: Space, state: BroydenState, image: Vec, factor: Array, old: Point, new: Point
) -> tuple[Columns, Vec]:
    """The columns with u, the multiple of Δz + HΔg, where that is written in place;
    and u.

    HΔg is Hg_new − Hg_old, and Hg_old the direction of the step, or σg_old if H has
    just been emptied.
    """
    direction = state.direction or old.increment

    def wrong(image: Array, before: Array, new: Array, old: Array) -> Array:
        if not state.direction:
            before = space.factor(state.scale, before) * before
        return space.factor(factor, new) * ((new - old) + (image - before))

    vectors = image, direction, new.value, old.value
    if not space.backend.writes:
        return state.left, space.entrywise(wrong, *vectors)
    return state.left.placed(space, state.pushed, *vectors, by=wrong)


def _weighed(
    space: Space, v: Vec, old: Point, new: Point
) -> tuple[Array, Array, Array]:
    """Whether Δg tells something; and −1/(vᵀΔg) and vᵀg_new, or zero if not."""
    change = Difference(new.increment, old.increment)
    denominator, amount, length, size = space.dots(
        (v, change), (v, new.increment), (v, v), (change, change)
    )
    length, size = space.xp.sqrt(length), space.xp.sqrt(size)
    # Nothing is learnt from a change that is mostly rounding, or whose square is lost.
    sound = space.xp.abs(denominator) > space.precision * length * size
    sound = sound & (space.xp.abs(denominator) > space.smallest**2)
    sound = sound & (size > _NOISE * space.rounding * new.magnitude)
    factor = space.ratio(-space.as_coefficient(sound), denominator)
    return sound, factor, space.xp.where(sound, amount, space.zero)


def emptied(space: Space, state: BroydenState, point: Point) -> BroydenState:
    """The estimate without columns, if none is free; its direction is σg then."""
    full = (state.pushed > 0) & (state.pushed % state.used.shape[-1] == 0)
    if isinstance(full, bool) and not full:
        return state
    if isinstance(full, bool):
        return state._replace(used=0.0 * state.used, direction=(), pushed=0)
    bare = space.scale(state.scale, point.increment)
    mask = (state.scale == state.scale) & full
    return state._replace(
        used=state.used * (1.0 - space.xp.astype(mask, space.dtype))[..., None],
        direction=space.where(mask, bare, state.direction),
        pushed=state.pushed % state.used.shape[-1],
    )
