"""What a step makes of each sample: its best iterate, and whether and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import Any

from fixedpoint.backend import Array
from fixedpoint.carry import RUNNING, Best, Carry, ends_alone, marked
from fixedpoint.claims import (
    FLAT,
    IRREGULAR,
    NOT_ZERO,
    Claim,
    Review,
    in_view_of_its_terms,
    in_view_of_the_state,
    refused,
    tiny_parts,
)
from fixedpoint.convergence import (
    largest_known,
    parts_are_near,
    parts_of_state,
    vanished_states,
)
from fixedpoint.evidence import Verdict
from fixedpoint.inquiry import Inquiry
from fixedpoint.least_error import beyond_rounding
from fixedpoint.point import Point, choose
from fixedpoint.problem import Problem
from fixedpoint.rounding import DOUBTFUL, PRECISE, Suspicion
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.status import Status
from fixedpoint.unresolved import (
    FALLEN,
    GROWN,
    answered,
    has_grown,
    is_far,
    is_still,
    limited,
    without_runaways,
)

# A residual this many times the first one, and tolerance, has diverged.
_DIVERGENCE = 1e10

# After so many windows without a smallest residual, a method that follows the map has
# stalled if the residual at the end of a window is not below that of the window before.
_PATIENCE = 5

# After so many steps without a smaller residual, whether it is rounding is looked into.
_SUSPICIOUS = (3, 12, 48)

# A minimum by values is as good as known at this share of the root of their rounding.
_ROOT = 0.1

# An estimated error of more than this share of the state leaves too few digits of it.
_DIGITS = 0.01


@dataclass(frozen=True, eq=False)
class Assessment:
    """Tells samples that end from those that go on.

    ``index`` is the place of the solver in its sequence, ``first`` where it starts, and
    ``begin`` the step from which on it runs.
    """

    solver: Solver
    index: int
    problem: Problem
    first: Point
    begin: Any

    def of(
        self, carry: Carry, step: Step, verdict: Verdict
    ) -> tuple[Carry, Array | None]:
        """The carry after a step, with the best iterates that there are then; and new
        statuses, if a sample may have ended.
        """
        before, carry = carry, self._renewed(carry, step, verdict)
        old, best = before.point, before.best
        carry, stalled = self._checked_for_stalls(carry)
        stuck = self._suspects(carry, stalled, step.failure)
        if step.failure is None and self._goes_on(carry, verdict, stuck):
            return carry, None
        stuck, known = self._stuck(carry, verdict, stuck)
        converged = carry.live(verdict.satisfied)
        claim = self._claim(carry, converged, verdict)
        carry, found = self._inquired(carry, (best, old), claim, stuck, converged)
        has: Callable[[int], Array] = lambda bit: (found & bit) != 0
        precise = known | has(PRECISE)
        ends = self._ends(carry, verdict, stalled, precise)
        ending = carry.live(reduce(or_, ends.values()))
        if step.failure is None and self.problem.space.backend.known_none(ending):
            return carry, None
        carry, wrong, collapsed = self._reviewed(carry, verdict, claim, found)
        sound = verdict.satisfied & ~wrong | precise
        if self._doubts_claims(old):
            doubtful = carry.live(sound & has(DOUBTFUL))
            carry = self._kept(carry, best, doubtful)
            precise, sound = precise & ~doubtful, sound & ~doubtful
            ends[Status.STALLED] = stalled | doubtful
        ends[Status.CONVERGED] = sound
        ends[Status.COLLAPSED] = collapsed
        carry = limited(self.problem, carry, carry.live(precise & ~converged))
        carry = beyond_rounding(self.problem, before, step, carry, verdict, sound)
        return self._decided(carry, old, step.failure, ends)

    def _goes_on(self, carry: Carry, verdict: Verdict, suspect: Array) -> bool:
        """Whether no sample is known to end, or needs to be looked at."""
        norm, first = carry.point.residual_norm, carry.evidence.first
        if self.problem.space.backend.is_traced((norm,)):
            return False
        lost = ~(norm < self.problem.space.xp.inf) | (norm > _DIVERGENCE * first)
        may_end = carry.live(suspect | verdict.satisfied | lost)
        return self.problem.space.backend.known_none(may_end)

    def _renewed(self, carry: Carry, step: Step, verdict: Verdict) -> Carry:
        """The carry after a step, with the best iterates that there are then."""
        carry = carry._replace(
            point=step.point,
            state=step.state,
            evidence=verdict.evidence,
            step=carry.step + 1,
            work=carry.work.plus(step.work),
        )
        return self._improved_in(carry, self._is_better(carry, verdict), verdict)

    def _ends(
        self, carry: Carry, verdict: Verdict, stalled: Array, precise: Array
    ) -> dict[Status, Array]:
        """Which samples end, for each reason, before any is looked at again."""
        norm = carry.point.residual_norm
        return {
            Status.DIVERGED: self._diverged(carry),
            Status.STALLED: stalled,
            Status.NON_FINITE: ~(norm < self.problem.space.xp.inf),
            Status.CONVERGED: verdict.satisfied | precise,
        }

    def _diverged(self, carry: Carry) -> Array:
        """The samples whose residual has grown out of all proportion, and so has one of
        its parts, where these have units of their own.
        """
        norm, evidence = carry.point.residual_norm, carry.evidence
        diverged = norm > _DIVERGENCE * evidence.first
        if evidence.initial is None or self.problem.space.backend.known_none(diverged):
            return diverged
        sizes = self.problem.parts(carry.point).sizes
        pairs = zip(sizes, evidence.initial, strict=True)
        grew = [size > _DIVERGENCE * first for size, first in pairs]
        return diverged & reduce(or_, grew)

    def _is_better(self, carry: Carry, verdict: Verdict) -> Array:
        """The samples whose new iterate is to be returned, if none better comes."""
        limit = carry.best.residual_norm
        if self.solver.latest:
            limit = self.problem.space.xp.inf
        wanted = carry.point.residual_norm < limit
        return carry.live(verdict.satisfied | (wanted & ~verdict.hidden))

    def _decided(
        self,
        carry: Carry,
        old: Point,
        failure: Array | None,
        ends: dict[Status, Array],
    ) -> tuple[Carry, Array]:
        """The carry with new statuses: of several that hold, the last in `ends`."""
        space, xp, lost = self.problem.space, self.problem.space.xp, Status.NON_FINITE
        status = xp.zeros_like(carry.status) if failure is None else failure
        for reason, mask in ends.items():
            status = marked(xp, status, mask, reason)
        if carry.active is not None:
            status = xp.where(carry.active, status, carry.status)
        alone = ends_alone(space, ends[lost])
        if not alone and not space.backend.known_here(~ends[lost]):
            carry = carry._replace(point=choose(space, ends[lost], old, carry.point))
        return carry, status

    def _improved_in(self, carry: Carry, better: Array, verdict: Verdict) -> Carry:
        """The carry with new best iterates in the samples that are `better`."""
        space, xp, point = self.problem.space, self.problem.space.xp, carry.point
        kept = better
        if not self.solver.latest and self._doubts_claims(point):
            kept = without_runaways(self.problem, carry, better, verdict.satisfied)
        best = carry.best.renewed(space, kept, point, verdict.error, self.index)
        every = xp.zeros_like(carry.improved) + carry.all_improved
        since = xp.maximum(carry.improved, every)
        renewed, fell = best is not carry.best and best.value is point.value, better
        if self.solver.latest:  # the last iterate is none the better for being the last
            least, norm = xp.minimum(carry.lowest, carry.reference), point.residual_norm
            if verdict.relative is not None:
                norm = verdict.relative
            fell = better & (norm < least)
            renewed = renewed and space.backend.known_here(fell)
            if verdict.relative is not None:
                carry = carry._replace(lowest=xp.where(fell, norm, carry.lowest))
        improved = xp.where(fell, xp.zeros_like(since) + carry.step, since)
        all_improved = carry.step if renewed else carry.all_improved
        return carry._replace(best=best, improved=improved, all_improved=all_improved)

    def _checked_for_stalls(self, carry: Carry) -> tuple[Carry, Array]:
        """The samples whose residual has long stopped falling.

        In another norm than that in which the map contracts, its residual may rise, at
        first and when a part changes its sign. So a method that follows the map has
        stalled only if the smallest residual is two windows old, and none of the last
        window is below that which ended the one before; or if it is much older, and the
        last one is not.
        """
        xp, patience = self.problem.space.xp, self.solver.patience(self.problem.space)
        age = carry.step - carry.improved
        if not self.solver.is_plain:
            return carry, age >= patience
        norm = carry.point.residual_norm
        lowest = xp.where(norm < carry.lowest, norm, carry.lowest)
        over = (xp.zeros_like(age) + (carry.step - self.begin)) % patience == 0
        still = (lowest >= carry.reference) & (age >= 2 * patience)
        restless = (norm >= carry.reference) & (age >= _PATIENCE * patience)
        stalled = over & (still | restless)
        reference = xp.where(over, norm, carry.reference)
        lowest = xp.where(over, xp.zeros_like(lowest) + xp.inf, lowest)
        return carry._replace(lowest=lowest, reference=reference), stalled

    def _suspects(self, carry: Carry, stalled: Array, failure: Array | None) -> Array:
        """The samples that do not improve, or whose method fails."""
        stuck = stalled if failure is None else stalled | (failure != RUNNING)
        for count in _SUSPICIOUS:
            stuck = stuck | (carry.step - carry.improved == count)
        return stuck

    def _stuck(
        self, carry: Carry, verdict: Verdict, stuck: Array
    ) -> tuple[Array, Array]:
        """The samples that are stuck near a solution; and such of which the residual
        is known to be rounding.
        """
        backend = self.problem.space.backend
        if self.problem.tolerance.is_zero:
            return stuck & ~stuck, stuck & ~stuck
        if backend.communicator is None and backend.known_none(stuck):
            return stuck, stuck
        stuck = carry.live(stuck & self._is_near(carry, verdict))
        if not (self.compares_parts and self.solver.compares_values):
            return stuck, stuck & ~stuck
        known = stuck & self._is_lost_in_values(carry)
        return stuck & ~known, known

    def _inquired(
        self,
        carry: Carry,
        ends: tuple[Best, Point],
        claim: Claim,
        stuck: Array,
        converged: Array,
    ) -> tuple[Carry, Array]:
        """What rounding tells of the samples that are stuck, or that converge maybe
        because it hides the residual, or because a step of next to nothing is all that
        is left of the method; and what is found of the claims.
        """
        asked = stuck
        if self._doubts_claims(carry.point):
            asked = stuck | converged
        question = partial(self._findings, carry, ends, claim, asked, stuck)
        mask, dtype = asked | claim.doubtful, self.problem.space.xp.int32
        return answered(self.problem, carry, mask, question, dtype)

    def _findings(
        self,
        carry: Carry,
        ends: tuple[Best, Point],
        claim: Claim,
        asked: Array,
        stuck: Array,
    ) -> tuple[Array, Any]:
        """What is found, and the evaluations it took."""
        problem, point, (best, old) = self.problem, carry.point, ends
        suspicion = Suspicion(stuck)
        if self._doubts_claims(old):
            far = is_far(problem, self.first, best, point, asked)
            suspicion = Suspicion(stuck, far, is_still(problem, carry, old, asked))
        review = Review(problem, self.first, old, point, carry.evidence, claim)
        return Inquiry(review, suspicion, best.residual_norm).findings()

    def _doubts_claims(self, point: Point) -> bool:
        """Whether claims are held against rounding; in a trace, of roots alone."""
        problem = self.problem
        return problem.is_root or not problem.space.backend.is_traced(point.value)

    def _kept(self, carry: Carry, best: Best, doubtful: Array) -> Carry:
        """The carry, with the best iterate before the last in `doubtful` samples."""
        if self.problem.space.backend.known_here(~doubtful):
            return carry
        kept = choose(self.problem.space, doubtful, best, carry.best)
        return carry._replace(best=kept)

    def _is_lost_in_values(self, carry: Carry) -> Array:
        """The samples whose objective is rounded by more than what is left to gain.

        Near a minimum an objective grows by the square of what a gradient does, so that
        one that is compared by values is known to the root of their rounding. Steps
        that do not improve for long are by chance.
        """
        space, evidence = self.problem.space, carry.evidence
        share = _ROOT * space.rounding**0.5
        small = parts_are_near(self.problem, evidence, carry.point, share)
        return small & (carry.step - carry.improved >= _SUSPICIOUS[1])

    def _is_near(self, carry: Carry, verdict: Verdict) -> Array:
        """The samples so near a solution that their residual may be rounding alone.

        Where the error may be as large as the state, or that has grown by many orders
        of magnitude, the iteration has run away, and only so has rounding come to cover
        the residual.
        """
        problem, evidence, point = self.problem, carry.evidence, carry.point
        space, first = problem.space, self.first
        passed = verdict.satisfied | verdict.hidden
        if problem.tests_parts:
            near = parts_are_near(problem, evidence, point, FALLEN)
            return near & ~(passed | has_grown(problem, first, point))
        size = evidence.sizes[..., 0]
        near = point.residual_norm <= FALLEN * evidence.highest
        near = near | problem.is_small(point, size, FALLEN)
        amplified = 0.5 * largest_known(space, evidence) * point.residual_norm
        error = space.xp.where(size < space.xp.inf, size, space.zero)
        error = space.xp.maximum(error, amplified)
        start, state = space.norms(first.value, point.value)
        lost = error > _DIGITS * space.xp.maximum(start, state)
        # A start beside which its own image is large says little of a map's states.
        least = start if problem.is_root else space.xp.maximum(start, first.magnitude)
        lost = lost | (start > 0.0) & (state > GROWN * least)
        return near & ~(passed | lost)

    def _reviewed(
        self, carry: Carry, verdict: Verdict, claim: Claim, found: Array
    ) -> tuple[Carry, Array, Array]:
        """The samples whose convergence is refused; and those that became zero where
        that is no answer. See :class:`~fixedpoint.claims.Review`.

        A residual that is small beside that of a start far away must be so in view of
        the state too.
        """
        problem, space, new = self.problem, self.problem.space, carry.point
        has: Callable[[int], Array] = lambda bit: (found & bit) != 0
        unfounded = claim.zero & has(NOT_ZERO)
        if claim.tiny and not space.backend.known_here(~unfounded):
            none = [part & space.spread(unfounded, part) for part in claim.tiny]
            sizes = parts_of_state(problem, verdict, new)
            evidence = refused(space, sizes, carry.evidence, none)
            carry = carry._replace(evidence=evidence)
        collapsed = claim.vanished & has(IRREGULAR) & ~has(NOT_ZERO)
        wrong = unfounded | has(FLAT)
        if not problem.tests_parts:
            return carry, wrong, collapsed
        small = in_view_of_its_terms(problem, new)
        asked = carry.live(verdict.satisfied & ~small & ~wrong)
        question = partial(in_view_of_the_state, problem, new, asked)
        carry, small = answered(problem, carry, asked, question)
        return carry, wrong | asked & ~small, collapsed

    def _claim(self, carry: Carry, converged: Array, verdict: Verdict) -> Claim:
        """The samples that converge for a reason that may be wrong."""
        problem, space, new = self.problem, self.problem.space, carry.point
        zero = vanished = converged & ~converged
        backend = space.backend
        if backend.communicator is None and backend.known_none(converged):
            return Claim(zero, vanished, None, ())
        tiny = tiny_parts(parts_of_state(problem, verdict, new), carry.evidence)
        if not self.solver.is_plain:
            vanished = converged & vanished_states(problem, verdict, new)
        if verdict.by_zero is not None:
            zero = converged & ~space.every([~part for part in verdict.by_zero])
            pairs = zip(verdict.by_zero, tiny, strict=True)
            tiny = tuple([a | (b & space.spread(vanished, b)) for a, b in pairs])
        far = converged if self._asks_farther_on(new) else None
        return Claim(zero, vanished, far, tiny)

    def _asks_farther_on(self, point: Point) -> bool:
        """Whether a long last step is looked at.

        In a trace only that of a small state, since two more of them are kept.
        """
        tolerance = self.problem.tolerance
        is_traced = self.problem.space.backend.is_traced(point.value)
        small = tolerance.norm == "entries" or not is_traced
        return tolerance.test == "error" and small and not self.problem.is_affine

    @property
    def compares_parts(self) -> bool:
        """Whether iterates are compared part by part: a norm of all would be in the
        units of one.
        """
        return self.solver.latest and self.problem.tests_parts
