"""What is looked at once more before it counts as converged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.convergence import ZERO, Evidence
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.rounding import nudged
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

# A step by more than this share of a part is long. The change of the residual in its
# direction should be no less than this share of what it was.
_LONG, _FLAT = 0.5, 0.25

# What is found of a sample, bit by bit.
NOT_ZERO, IRREGULAR, FLAT = 1, 2, 4


class Claim(NamedTuple):
    """The samples that are about to converge for a reason that may be wrong.

    Attributes
    ----------
    zero : array of bool
        Those in which a part is only as good as zero.
    vanished : array of bool
        Those of which nothing is left.
    far : array of bool
        Those whose last step was a long one.
    tiny : tuple of array of bool
        The parts that count as zero.
    """

    zero: Array
    vanished: Array
    far: Array
    tiny: tuple[Array, ...]

    @property
    def doubtful(self) -> Array:
        """Those to be looked at."""
        return self.zero | self.vanished | self.far

    def evaluations(self, problem: Problem) -> tuple[int, ...]:
        """The numbers of the evaluations that are needed; in a trace all are."""
        backend = problem.space.backend
        traced = backend.is_traced((self.far,))
        zero = self.zero | self.vanished
        wanted = (self.vanished, (0, 1, 2)), (zero, (3, 4)), (self.far, (5,))
        some = [numbers for mask, numbers in wanted if traced or backend.any(mask)]
        return tuple(number for numbers in some for number in numbers)


class _Looks(NamedTuple):
    """What the evaluations found.

    ``found`` is a sum of g at tiny states, or g where the tiny parts are zero, and
    ``terms`` the changes of that as others are moved.
    """

    found: Vec
    terms: Vec
    irregular: Array
    flat: Array
    number: Any


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
    """

    problem: Problem
    start: Point
    old: Point
    new: Point
    evidence: Evidence

    def findings(self, claim: Claim) -> tuple[Array, int]:
        """What is found of each sample, and the evaluations it took."""
        space, numbers = self.problem.space, claim.evaluations(self.problem)
        states = self._states(claim)
        zeros, none = space.zeros(self.new.value), space.full(0.0) > 0.0
        looks = _Looks(zeros, tuple(map(space.xp.abs, zeros)), none, none, 0)
        if space.backend.is_traced((none, claim.far)):
            # In a loop, since every evaluation in a trace takes long to compile.
            more, most = lambda looks: looks.number < len(numbers), len(numbers)
            turn = partial(self._looked, states)
            looks = space.backend.while_loop(more, turn, looks, most)
        else:
            for number in numbers:
                looks = self._looked(states, looks._replace(number=number))
        masks = ~self._is_zero(looks), looks.irregular, looks.flat
        bits = zip((NOT_ZERO, IRREGULAR, FLAT), masks, strict=True)
        found = [bit * space.xp.astype(mask, space.xp.int32) for bit, mask in bits]
        return found[0] + found[1] + found[2], len(numbers)

    def _looked(self, states: list[Callable[[], Vec]], looks: _Looks) -> _Looks:
        """One more evaluation."""
        space, number, found = self.problem.space, looks.number, looks.found
        xp, pick = space.xp, partial(_pick, space.xp)
        g = self.problem.increment_nearby(_state(xp, states, number))
        added = pick(number == 2, space.subtract(found, g), space.add(found, g))
        found = pick(number < 3, added, pick(number == 3, g, found))
        additive = space.norm(found) <= _ADDITIVE * _TINY * self.evidence.highest
        irregular = ~additive & (space.norm(self.start.value) > 0.0)
        change = space.norm(space.subtract(g, self.new.increment))
        flat = ~(change >= _FLAT * self._farther * self._changed)
        terms = tuple(map(xp.abs, space.subtract(g, found)))
        return _Looks(
            found,
            pick(number == 4, terms, looks.terms),
            pick(number == 2, (irregular,), (looks.irregular,))[0],
            pick(number == 5, (flat,), (looks.flat,))[0],
            number + 1,
        )

    def _states(self, claim: Claim) -> list[Callable[[], Vec]]:
        """Where the map is evaluated: at two tiny states and their sum, where the tiny
        parts are zero and near that, and beyond the last step.
        """
        problem, space, value = self.problem, self.problem.space, self.new.value
        first = space.scale(_TINY, self.start.value)
        second = tuple([leaf * _graded(problem, leaf) for leaf in first])
        masks = problem.tolerance.spread(space, claim.tiny, value)
        rows = zip(masks, space.zeros(value), value, strict=True)
        zeroed = tuple([space.xp.where(*row) for row in rows])
        # Each time with other signs, lest terms cancel.
        ulps, look = space.rounding**-0.5, self.evidence.count
        step = space.subtract(value, self.old.value)
        return [
            lambda: first,
            lambda: second,
            lambda: space.add(first, second),
            lambda: zeroed,
            lambda: nudged(problem, zeroed, ulps, look),
            lambda: space.axpy(self._farther, step, value),
        ]

    @property
    def _farther(self) -> Array:
        """How much farther on, in lengths of the step."""
        return self.problem.space.full(self.problem.space.rounding ** (1 / 3))

    @property
    def _changed(self) -> Array:
        """By how much the step changed g."""
        return self.problem.space.norm(
            Difference(self.new.increment, self.old.increment)
        )

    def _is_zero(self, looks: _Looks) -> Array:
        """Whether the equations hold where the tiny parts are zero, or do not feel them
        while others are not solved.
        """
        space, xp = self.problem.space, self.problem.space.xp
        least, move = max(ZERO, _ROUNDINGS * space.rounding), space.rounding**0.5
        masks = []
        rows = zip(self.new.increment, looks.found, looks.terms, strict=True)
        for now, found, moved in rows:
            unfelt, terms = xp.abs(now - found) < 0.5 * xp.abs(now), moved / move
            unfelt = unfelt & (xp.abs(now) <= _OTHERS * terms)
            masks.append(unfelt | (xp.abs(found) <= least * terms))
        return space.every(masks)


def is_far(problem: Problem, old: Point, new: Point) -> Array:
    """Whether an entry, or a leaf, moved far, and something is left of the residual."""
    space, step = problem.space, problem.space.subtract(new.value, old.value)
    if problem.tolerance.norm == "entries":
        sizes = [tuple(map(space.magnitudes, u)) for u in (step, new.value)]
    else:
        sizes = [tuple([space.norm((a,), "max") for a in u]) for u in (step, new.value)]
    near = [moved <= _LONG * size for moved, size in zip(*sizes, strict=True)]
    return ~space.every(near) & (new.residual_norm > 0.0)


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


def _state(xp: Any, states: Sequence[Callable[[], Vec]], number: Any) -> Vec:
    """The state of a number, which is a symbol in a trace."""
    if isinstance(number, int):
        return states[number]()
    state = states[0]()
    for k, other in enumerate(states[1:], 1):
        state = _pick(xp, number == k, other(), state)
    return state


def _pick(xp: Any, flag: Any, u: Vec, v: Vec) -> Vec:
    """The vector u if the flag is true, else v."""
    if isinstance(flag, bool):
        return u if flag else v
    return tuple([xp.where(flag, a, b) for a, b in zip(u, v, strict=True)])


def _graded(problem: Problem, leaf: Array) -> Array:
    """Factors from 1 to 2 along the entries of a leaf."""
    space, size = problem.space, math.prod(leaf.shape[problem.space.batch_ndim :])
    index = space.xp.astype(space.xp.arange(1, size + 1, **space.place), space.dtype)
    return space.as_leaf(1.0 + index / (size + 1.0), leaf)
