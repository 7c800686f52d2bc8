"""What a few evaluations beside the iteration tell of samples before they end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.claims import Looks, Review, selected
from fixedpoint.rounding import (
    LOOKS,
    Noise,
    Suspicion,
    answer,
    fallen,
    findings,
    hides,
    is_covered,
    noise_of,
    nudged,
    was_noise,
)

# The numbers of evaluations in a trace: before the first of these the noise of the
# residual is looked at; this one is at the first state, whose noise follows; and from
# the second on a claim is reviewed.
_FIRST = LOOKS[1]
_CLAIM = 2 * LOOKS[1] + 1


class _Turn(NamedTuple):
    """What the evaluations of a trace have told until now.

    Attributes
    ----------
    number : array
        That of the next evaluation.
    count : array
        Evaluations until now.
    noise : Noise
        That at the point, and then at the first state.
    kept : Vec
        An increment that those which follow are compared with.
    covered, hidden : array of bool
        Whether the noise at the point covers its residual, and that of the earlier
        iterate.
    looks : Looks
        What is found of claims.
    """

    number: Any
    count: Any
    noise: Noise
    kept: Vec
    covered: Array
    hidden: Array
    looks: Looks


@dataclass(frozen=True, eq=False)
class Inquiry:
    """What rounding makes of a residual, and what is found of a claim.

    Parameters
    ----------
    review : Review
        The claims that are about to be made.
    suspicion : Suspicion
        The samples of which rounding is asked.
    before : array
        The norm of the residual at an earlier iterate.
    """

    review: Review
    suspicion: Suspicion
    before: Array

    def findings(self) -> tuple[Array, Any]:
        """What is found of each sample, bit by bit, and the evaluations it took."""
        review, suspicion = self.review.narrowed, self.suspicion
        problem, at = review.problem, (review.start, review.new)
        if problem.space.backend.is_traced((suspicion.stuck,)):
            return replace(self, review=review)._in_one_loop()
        found, count = findings(problem, *at, self.before, suspicion)
        claims, further = review.findings()
        return found + claims, count + further

    def _in_one_loop(self) -> tuple[Array, Any]:
        """The same in a trace: every evaluation there takes long to compile, so that
        one, of which all is asked in turn, stands for all.
        """
        review, suspicion, problem = self.review, self.suspicion, self.review.problem
        xp, backend = problem.space.xp, problem.space.backend
        begin, last = (_CLAIM + n for n in review.claim.ends(problem.space))
        noise = Noise(problem.space.zeros(review.new.value), suspicion.asked, 0)
        none = suspicion.stuck & ~suspicion.stuck
        start = xp.where(backend.any(suspicion.asked), 0, begin)
        fell = fallen(problem, review.new, review.start)
        left = suspicion.stuck & ~problem.space.every(fell)
        kept = review.new.increment
        end = backend.while_loop(
            lambda turn: turn.number <= last,
            partial(self._turned, begin, left),
            _Turn(start, 0, noise, kept, none, none, review.unlooked),
            last + 1,
        )
        near = was_noise(problem, review.new, fell, end.noise.size)
        precise = suspicion.stuck & end.covered & near
        found = answer(xp, suspicion, precise, end.covered, end.hidden)
        return found + review.answer(end.looks), end.count

    def _turned(self, begin: Any, left: Array, turn: _Turn) -> _Turn:
        """One evaluation, and what it tells; claims begin at a number, and the residual
        of the samples that are `left` has not fallen.
        """
        review, problem, number = self.review, self.review.problem, turn.number
        value, ulps, look = self._state(number)
        g = problem.nearby(problem.increment, nudged(problem, value, ulps, look))
        kept, starts = self._kept(turn.kept, g, number), number == _FIRST
        noise = self._noise(turn, value, kept, g)
        covered, hidden = self._masks(turn, kept, noise)
        there = left & covered
        following = self._following(number, noise, there, begin)
        where = problem.space.xp.where
        noise = noise._replace(
            is_open=where(starts, there, noise.is_open),
            looks=where(starts, 0, noise.looks),
        )
        looks = review.looked(turn.looks, kept, g, number - _CLAIM)
        return _Turn(following, turn.count + 1, noise, kept, covered, hidden, looks)

    def _state(self, number: Any) -> tuple[Vec, Any, Any]:
        """Near which state an evaluation is made, and how that is nudged."""
        review, xp = self.review, self.review.problem.space.xp
        at_first, further = number >= _FIRST, number - _CLAIM
        value = selected(xp, at_first, review.start.value, review.new.value)
        value = selected(xp, further >= 0, review.state(further), value)
        look = xp.where(at_first, number - _FIRST - 1, number)
        look = xp.where(further >= 0, review.evidence.count, look)
        ulps = xp.where(further >= 0, review.ulps(further), 1.0 * (number != _FIRST))
        return value, ulps, look

    def _kept(self, kept: Vec, g: Vec, number: Any) -> Vec:
        """What increments are compared with from this evaluation on."""
        pick, further = partial(selected, self.review.problem.space.xp), number - _CLAIM
        kept = pick(further >= 0, self.review.kept(kept, g, further), kept)
        return pick(number == _FIRST, g, kept)

    def _noise(self, turn: _Turn, value: Vec, kept: Vec, g: Vec) -> Noise:
        """The noise at the point, or begun anew at the first state; none of it is left
        to be looked at in claims.
        """
        problem, xp = self.review.problem, self.review.problem.space.xp
        pairs = zip(
            problem.space.subtract(g, kept), problem.least_noise(value), strict=True
        )
        change = tuple([xp.maximum(xp.abs(a), least) for a, least in pairs])
        size = selected(xp, turn.number == _FIRST, change, turn.noise.size)
        is_open = turn.noise.is_open & (turn.number < _CLAIM)
        noise = Noise(size, is_open, turn.noise.looks)
        return noise_of(problem, kept, noise, change)

    def _masks(self, turn: _Turn, kept: Vec, noise: Noise) -> tuple[Array, Array]:
        """Which residuals the noise at the point covers, and which it hides."""
        problem, where = self.review.problem, self.review.problem.space.xp.where
        here, hidden = turn.number < _FIRST, turn.hidden
        covered = where(here, is_covered(problem, kept, noise.size), turn.covered)
        if self.suspicion.far is not None:
            hidden = where(here, hides(problem, self.before, noise.size), hidden)
        return covered, hidden

    def _following(self, number: Any, noise: Noise, there: Array, begin: Any) -> Any:
        """The number of the next evaluation, where the noise at the first state is
        asked of the samples `there`.
        """
        space = self.review.problem.space
        where, any_ = space.xp.where, space.backend.any
        on = any_(noise.is_open) & (noise.looks < LOOKS[1])
        on = on | (number == _FIRST) | (number >= _CLAIM)
        other = where((number < _FIRST) & any_(there), _FIRST, begin)
        return where(on, number + 1, other)
