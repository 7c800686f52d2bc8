"""What is looked at once more before it counts as converged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.convergence import ZERO
from fixedpoint.evidence import Evidence
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.rounding import moved_within, nudged
from fixedpoint.space import Difference, Space

# What counts as tiny beside the start, and how far from additive a function may be
# there.
_TINY, _ADDITIVE = 1e-12, 1e-6

# A part whose zero was refused is asked about again when it has become this share of
# what it was.
_AGAIN = 0.25

# What an equation may leave at zero, in units of rounding of its terms, at least.
_ROUNDINGS = 8.0

# The share of its terms that an equation may leave by the errors of other parts.
_OTHERS = 1e-2

# A step by more than this share of a part is long, and more than so many tolerances.
_LONG, _BOUNDS = 0.5, 10.0

# A little farther on the residual should change by no less than this share of what the
# step makes one expect.
_FLAT = 0.25

# The number of the last evaluation, a little farther on.
_FARTHER = 5

# What is found of a sample, bit by bit, beside what rounding tells.
NOT_ZERO, IRREGULAR, FLAT = 4, 8, 16


class Claim(NamedTuple):
    """The samples that are about to converge for a reason that may be wrong.

    Attributes
    ----------
    zero : array of bool
        Those in which a part is only as good as zero.
    vanished : array of bool
        Those of which nothing is left.
    far : array of bool or None
        Those whose last step may have been a long one; None where that is not asked.
    tiny : tuple of array of bool
        The parts that count as zero.
    """

    zero: Array
    vanished: Array
    far: Array | None
    tiny: tuple[Array, ...]

    @property
    def doubtful(self) -> Array:
        """Those to be looked at."""
        doubtful = self.zero | self.vanished
        return doubtful if self.far is None else doubtful | self.far

    def evaluations(self, backend: Backend) -> list[int]:
        """The numbers of the evaluations that are needed."""
        zero = self.zero | self.vanished
        wanted = (self.vanished, (0, 1, 2)), (zero, (3, 4)), (self.far, (_FARTHER,))
        pairs = [(mask, numbers) for mask, numbers in wanted if mask is not None]
        some = [numbers for mask, numbers in pairs if backend.any(mask)]
        return [number for numbers in some for number in numbers]

    def ends(self, space: Space) -> tuple[Any, int]:
        """The numbers of the first evaluation in a trace, and of the last one."""
        where, any_ = space.xp.where, space.backend.any
        last = _FARTHER - (self.far is None)
        late = last + 1
        if self.far is not None:
            late = where(any_(self.far), _FARTHER, late)
        return where(any_(self.zero | self.vanished), 0, late), last


class Looks(NamedTuple):
    """What the evaluations found."""

    not_zero: Array
    irregular: Array
    flat: Array


@dataclass(frozen=True, eq=False)
class Review:
    """What is found of a :class:`Claim`.

    *Zero.* No error is small relative to zero, so that a part that has all but vanished
    counts as zero. Is that an answer, or was the part only large once? With such parts
    set to zero, the equations that feel it must hold as well as the sizes of their
    terms let one see.

    *Irregular.* A map that is homogeneous, f(tz) = t f(z), as a scaling whose length is
    free, has a residual that falls with the length of the state, whatever its
    direction. Zero is no answer then: a function with a derivative there is additive on
    tiny states, and such a map is not.

    *Flat.* After a long step a residual may be small where the function is flat, and no
    solution near. A little farther on in the same direction it must change as it did
    over the step.

    Parameters
    ----------
    problem : Problem
        The problem.
    start, old, new : Point
        Where the iteration began, and the ends of its last step.
    evidence : Evidence
        What is known.
    claim : Claim
        What is asked.
    """

    problem: Problem
    start: Point
    old: Point
    new: Point
    evidence: Evidence
    claim: Claim

    def findings(self) -> tuple[Array, Any]:
        """What is found of each sample, and the evaluations it took."""
        problem, kept, looks = self.problem, self.new.value, self.unlooked
        numbers = self.claim.evaluations(problem.space.backend)
        for number in numbers:
            # By the count of steps, each time with other signs, lest terms cancel.
            ulps, count = self.ulps(number), self.evidence.count
            state = nudged(problem, self.state(number), ulps, count)
            g = problem.nearby(problem.increment, state)
            kept = self.kept(kept, g, number)
            looks = self.looked(looks, kept, g, number)
        return self.answer(looks), len(numbers)

    @property
    def narrowed(self) -> Review:
        """The same, without the samples that are not far after all."""
        claim = self.claim
        if claim.far is None:
            return self
        far = claim.far & is_far(self.problem, self.old, self.new, claim.tiny)
        return replace(self, claim=claim._replace(far=far))

    @property
    def unlooked(self) -> Looks:
        """Nothing is known yet."""
        none = self.problem.space.full(0.0) > 0.0
        return Looks(none, none, none)

    def kept(self, kept: Vec, g: Vec, number: Any) -> Vec:
        """What later evaluations are compared with: sums of g at tiny states, then g
        where the tiny parts are zero.
        """
        space, pick = self.problem.space, partial(selected, self.problem.space.xp)
        added = pick(number == 2, space.subtract(kept, g), space.add(kept, g))
        return pick((number == 0) | (number == 3), g, pick(number < 3, added, kept))

    def looked(self, looks: Looks, kept: Vec, g: Vec, number: Any) -> Looks:
        """What one more evaluation tells."""
        pick = partial(selected, self.problem.space.xp)
        not_zero, irregular = ~self._is_zero(kept, g), self._is_irregular(kept)
        return Looks(
            pick(number == 4, (not_zero,), (looks.not_zero,))[0],
            pick(number == 2, (irregular,), (looks.irregular,))[0],
            looks.flat if self.claim.far is None else self._is_flat(g),  # of the last
        )

    def answer(self, looks: Looks) -> Array:
        """What is found, bit by bit."""
        xp, far = self.problem.space.xp, self.claim.far
        flat = looks.flat if far is None else far & looks.flat
        masks = looks.not_zero, looks.irregular, flat
        bits = zip((NOT_ZERO, IRREGULAR, FLAT), masks, strict=True)
        found = [bit * xp.astype(mask, xp.int32) for bit, mask in bits]
        return found[0] + found[1] + found[2]

    def ulps(self, number: Any) -> Any:
        """By how much a state is nudged."""
        return self.problem.space.rounding**-0.5 * (number == 4)

    def state(self, number: Any) -> Vec:
        """Where the map is evaluated: at two tiny states and their sum; where the tiny
        parts are zero, and near that; and beyond the last step.

        As one expression, of which a trace keeps no parts.
        """
        space, value, claim = self.problem.space, self.new.value, self.claim
        with_u, with_v = 1.0 * (number != 1), 1.0 * (number != 0)
        small = []
        for leaf, size in zip(self.start.value, space.sizes, strict=True):
            graded = space.as_leaf(_TINY * _graded(space, size), leaf)
            small.append((with_u * _TINY + with_v * graded) * leaf)
        masks = self.problem.tolerance.spread(space, claim.tiny, value)
        rows = zip(masks, space.zeros(value), value, strict=True)
        near = tuple([space.xp.where(mask & (number > 2), *of) for mask, *of in rows])
        if claim.far is not None:
            step = space.subtract(value, self.old.value)
            beyond = space.axpy(space.full(_farther(space)), step, value)
            near = selected(space.xp, number == _FARTHER, beyond, near)
        return selected(space.xp, number < 3, tuple(small), near)

    def _is_flat(self, beyond: Vec) -> Array:
        """Whether g changes less beyond the last step than over it."""
        space, new, over = self.problem.space, self.new, self.old.increment
        changes = Difference(beyond, new.increment), Difference(new.increment, over)
        further, expected = space.norms(*changes)
        return ~(further >= _FLAT * _farther(space) * expected)

    def _is_zero(self, found: Vec, nearby: Vec) -> Array:
        """Whether the equations hold where the tiny parts are zero, or do not feel them
        while others are not solved; g was `found` there, and nearby.
        """
        space, xp = self.problem.space, self.problem.space.xp
        least, move = max(ZERO, _ROUNDINGS * space.rounding), space.rounding**0.5
        masks = []
        for now, left, other in zip(self.new.increment, found, nearby, strict=True):
            terms, unfelt = xp.abs(other - left) / move, xp.abs(now - left)
            is_small = xp.abs(now) <= _OTHERS * terms
            is_unfelt = (unfelt < 0.5 * xp.abs(now)) & is_small
            masks.append(is_unfelt | (xp.abs(left) <= least * terms))
        return space.every(masks)

    def _is_irregular(self, defect: Vec) -> Array:
        """Whether g(u) + g(v) − g(u + v) at tiny states is not zero."""
        space = self.problem.space
        additive = space.norm(defect) <= _ADDITIVE * _TINY * self.evidence.highest
        return ~additive & (space.norm(self.start.value) > 0.0)


def in_view_of_its_terms(problem: Problem, point: Point) -> Array:
    """Whether each part of a residual is within the tolerance that goes with its terms
    at the point itself, whatever they were at first.
    """
    parts = problem.parts(point)
    pairs = zip(parts.sizes, problem.tolerance.bounds(parts.scales), strict=True)
    return problem.space.every([size <= bound for size, bound in pairs])


def in_view_of_the_state(
    problem: Problem, point: Point, asked: Array
) -> tuple[Array, Any]:
    """Whether no part of a residual is more than what errors of the state within the
    relative tolerance bring about, in the samples that are `asked`; and the evaluations
    it took.

    The state is moved by as much, and then by what that makes of its image: a part may
    feel another by way of a third, as an input feels the state by a multiplier that
    vanishes at the solution.
    """
    space, parts = problem.space, partial(problem.tolerance.parts, problem.space)
    maximum, loop = space.xp.maximum, space.backend.while_loop

    def moved(looks: tuple[Vec, tuple[Array, ...], Any]) -> tuple[Any, ...]:
        value, most, number = looks
        at = problem.trial(value)
        felt = parts(space.subtract(at.tested, point.tested))
        change = space.subtract(at.increment, point.increment)
        pairs = zip(most, felt, strict=True)
        most = tuple([maximum(*pair) for pair in pairs])
        return space.add(at.value, change), most, number + 1

    sizes = problem.parts(point).sizes
    first = (
        moved_within(problem, point.value),
        tuple(map(space.xp.zeros_like, sizes)),
        0,
    )
    _, most, count = loop(lambda looks: looks[2] < 2, moved, first, 2)
    within = [size <= felt for size, felt in zip(sizes, most, strict=True)]
    return asked & space.every(within), count


def is_far(problem: Problem, old: Point, new: Point, tiny: Sequence[Array]) -> Array:
    """Whether a part of the state, but for `tiny` ones, moved far in the last step, and
    something is left of the residual.
    """
    space, step = problem.space, problem.space.subtract(new.value, old.value)
    length, state = space.norms(step, new.value)
    masks = problem.tolerance.spread(space, tiny, new.value)
    near, bound = [], problem.tolerance.bound
    for moved, leaf, mask in zip(step, new.value, masks, strict=True):
        if problem.tolerance.norm == "entries":
            move, size, out = space.magnitudes(moved), space.magnitudes(leaf), mask
        else:
            move, size = (space.norm((a,), "max") for a in (moved, leaf))
            out = space.every([mask])
        short = space.xp.maximum(_LONG * size, _BOUNDS * bound(size))
        near.append(out | (move <= short))
    # Farther on, the state must change by more than its rounding.
    felt = _farther(space) * length > _ROUNDINGS * space.rounding * state
    far = ~space.every(near) & felt
    return far & (new.residual_norm > 0.0)


def _farther(space: Space) -> float:
    """How much farther on a function is looked at, in lengths of a step."""
    return float(space.rounding ** (1 / 3))


def tiny_parts(sizes: Sequence[Array], evidence: Evidence) -> tuple[Array, ...]:
    """The parts, of these sizes, that may count as zero."""
    pairs = zip(sizes, evidence.largest, strict=True)
    return tuple([(size <= ZERO * most) & (most > 0.0) for size, most in pairs])


def refused(
    space: Space, sizes: Sequence[Array], evidence: Evidence, tiny: Sequence[Array]
) -> Evidence:
    """The evidence after `tiny` parts that are not zero after all: they have to become
    smaller still, to count as that.
    """
    lowered = [
        space.xp.where(part, (_AGAIN / ZERO) * size, most)
        for part, size, most in zip(tiny, sizes, evidence.largest, strict=True)
    ]
    return evidence._replace(largest=tuple(lowered))


def selected(xp: Any, flag: Any, u: Vec, v: Vec) -> Vec:
    """The vector u if the flag is true, else v."""
    if isinstance(flag, bool):
        return u if flag else v
    return tuple([xp.where(flag, a, b) for a, b in zip(u, v, strict=True)])


def _graded(space: Space, size: int) -> Array:
    """Factors from 1 to 2 along so many entries."""
    index = space.xp.astype(space.xp.arange(1, size + 1, **space.place), space.dtype)
    return 1.0 + index / (size + 1.0)
