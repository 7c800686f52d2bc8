"""Claims of convergence that are held against rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from operator import and_
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.carry import Best, Carry, ends_alone
from fixedpoint.convergence import ZERO, largest_known
from fixedpoint.evidence import Evidence
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.rounding import nudged
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Step
from fixedpoint.space import Difference
from fixedpoint.tolerance import length_of

# The rounding errors of a residual are not looked for above this share of the largest
# one.
FALLEN = 1e-3

# A state that has grown by more than this since the start has run away.
GROWN = 1e8

# A state that has grown by more than this since the best iterate is far from it.
_FAR = 1e4

# An iterate from which the state has moved by more than this share of its new length
# is another one.
_OTHER = 0.5

# Corrections that fall by no more than to this share do so at a multiple root.
_SLOW = 0.2

# A step that changes a root's residual by less than this share has left it what it was.
_MOVED = 1e-3


def is_far(
    problem: Problem, first: Point, best: Best, point: Point, converged: Array
) -> Array:
    """The samples whose best iterate is far smaller than what they converge to, or of
    roots elsewhere, with a residual hardly larger.

    Where equations contradict each other by little, and are singular, iterates run away
    until they can be told from zero no more, while the best one before, far away, has a
    residual below that rounding.
    """
    space, norm = problem.space, point.residual_norm
    if problem.is_root:
        far = converged & ((best.residual_norm <= norm / FALLEN) | (norm == 0.0))
    else:
        far = converged & (point.magnitude > _FAR * first.magnitude)
    if space.backend.known_none(far):
        return far
    moved = Difference(point.value, best.value)
    length, before, now = space.norms(moved, best.value, point.value)
    grown = (before > 0.0) & (now > _FAR * before)
    if not problem.is_root:
        return far & grown
    return far & ((norm > 0.0) & (length > _OTHER * now) | grown)


def is_still(problem: Problem, carry: Carry, old: Point, converged: Array) -> Array:
    """The samples of which the last step has left a root's residual what it was, in the
    equation that has fallen least since the start.

    Where a function is flat, a step may be lost in the rounding of the state, and a
    method that has solved some of the equations may have forgotten the others: then the
    residual is more than what rounding brings about.
    """
    space, point = problem.space, carry.point
    suspect = converged & (point.residual_norm > 0.0)
    is_error = problem.tolerance.test == "error"
    if not (problem.is_root and is_error) or space.backend.known_none(suspect):
        return suspect & ~suspect
    change = space.subtract(point.increment, old.increment)
    of = partial(_relative, problem, carry.evidence)
    now, moved = of(point.increment), of(change)
    most = reduce(space.xp.maximum, [space.norm((r,), "max") for r in now])
    rows = zip(now, moved, strict=True)
    other = [(r < space.spread(most, r)) | (m > _MOVED * r) for r, m in rows]
    return suspect & ~space.every(other)


def has_grown(problem: Problem, first: Point, point: Point) -> Array:
    """Whether all parts of a state have run away that were not zero at first, and some
    were not.
    """
    space = problem.space
    start, now = (problem.tolerance.parts(space, at.value) for at in (first, point))
    nothing = [size == 0.0 for size in start]
    rows = zip(nothing, start, now, strict=True)
    grown = [none | (size > GROWN * least) for none, least, size in rows]
    return space.every(grown) & ~space.every(nothing)


def without_runaways(
    problem: Problem, carry: Carry, better: Array, satisfied: Array
) -> Array:
    """The samples that are `better`, but for those whose state is far larger than that
    of the best iterate, and the residual hardly less, maybe by rounding.
    """
    space, best, point = problem.space, carry.best, carry.point
    alike = point.residual_norm > FALLEN * best.residual_norm
    alike = alike & better & ~satisfied

    def near() -> tuple[Array, ...]:
        before, now = space.norms(best.value, point.value)
        return (better & ~((before > 0.0) & (now > _FAR * before)),)

    return space.backend.replaced_where((better,), alike, near)[0]


def limited(problem: Problem, carry: Carry, precise: Array) -> Carry:
    """The carry, where the arithmetic of the `precise` samples cannot do better."""
    where, best = problem.space.xp.where, carry.best
    last = problem.space.xp.minimum(best.error, carry.evidence.sizes[..., 0])
    best = best._replace(error=where(precise, last, best.error))
    return carry._replace(precise=carry.precise | precise, best=best)


def beyond_rounding(
    problem: Problem, old: Carry, carry: Carry, step: Step, sound: Array
) -> Carry:
    """The carry, where the errors of claims that are `sound` are no less than rounding
    makes them.

    Where that is more than was asked the arithmetic cannot do better, even if a
    residual is zero. The `old` carry is that before the step.
    """
    space, tolerance = problem.space, problem.tolerance
    backend, xp = space.backend, space.xp
    if backend.is_traced((sound,)) or tolerance.test == "residual" or tolerance.is_zero:
        return carry
    claimed = carry.live(sound)
    if not backend.is_readable(claimed) or backend.known_none(claimed):
        return carry
    least = _Least.at(problem, old, carry, step)
    factor = 2.0 ** (1 - space.shorter) / space.rounding * space.one
    doubtful = claimed & (carry.precise | ~least.within(factor))
    if backend.known_none(doubtful):
        return carry
    suspect = doubtful & _is_coarse(problem, carry, old.point)
    question = partial(_felt, problem, carry.point)
    carry, noise = answered(problem, carry, suspect, question, space.dtype)
    factor, best = xp.where(noise > 0.0, factor, space.one), carry.best
    error = xp.maximum(factor * least.error, 0.5 * least.amplification * noise)
    error = xp.maximum(error, least.lost)
    larger = doubtful & (carry.precise | ~least.within(factor))
    error = xp.where(larger & (error > best.error), error, best.error)
    return carry._replace(
        precise=carry.precise | larger, best=best._replace(error=error)
    )


class _Least(NamedTuple):
    """The least error that rounding leaves at a point, by units of the state's dtype.

    A value of a map is rounded, and an error of it is amplified by κ; so is a residual
    that is nothing but rounding. Where a step knows its matrix, that tells.
    """

    problem: Problem
    carry: Carry
    error: Array
    amplification: Array
    lost: Array  # the error where rounding has swallowed a residual
    parts: tuple[Array, ...] | None  # those of the error, if they are known

    @classmethod
    def at(cls, problem: Problem, old: Carry, carry: Carry, step: Step) -> _Least:
        """That after a step from the `old` carry."""
        space, point, lost = problem.space, carry.point, _lost(problem, old, carry)
        if step.rounding is not None:
            errors = step.rounding()
            parts = problem.tolerance.parts(space, errors)
            return cls(problem, carry, space.norm(errors), space.zero, lost, parts)
        amplification = largest_known(space, carry.evidence)
        left = problem.rounding(point)
        left = space.xp.where(carry.precise, carry.best.residual_norm, left)
        state = space.rounding * space.norm(point.value)
        error = 0.5 * space.xp.maximum(amplification * left, state)
        return cls(problem, carry, error, amplification, lost, None)

    def within(self, factor: Array) -> Array:
        """Whether so many times the error is within tolerance, and what is lost."""
        space, tolerance = self.problem.space, self.problem.tolerance
        sizes = tolerance.parts(space, self.carry.point.value)
        bounds = tolerance.bounds(sizes)
        whole = self.lost
        if self.parts is None:
            whole = space.xp.maximum(factor * self.error, whole)
        masks = [
            ~(whole > length_of(space, bounds))
        ]  # what is not a number tells nothing
        known = zip(sizes, bounds, self.carry.evidence.largest, strict=True)
        rows = zip(self.parts, known, strict=True) if self.parts else ()
        for part, (size, bound, most) in rows:
            error = space.spread(factor, part) * part
            masks.append(~(error > bound) | (size + error <= ZERO * most))
        return reduce(and_, [space.every([mask]) for mask in masks])


def _lost(problem: Problem, old: Carry, carry: Carry) -> Array:
    """The error where rounding has swallowed the residual of a root, or zero.

    Corrections that fall slowly, as near a multiple root, do not lead to where nothing
    is left: the last one that was seen tells what may be.
    """
    space, xp = problem.space, problem.space.xp
    if not problem.is_root:
        return space.full(0.0)
    last, before = (old.evidence.sizes[..., k] for k in (0, 1))
    rate = space.ratio(last, before)
    slow = (rate > _SLOW) & (last < xp.inf) & (carry.point.residual_norm == 0.0)
    left = xp.where(rate < 1.0, 1.0 - rate, space.zero)
    return xp.where(slow, last / xp.maximum(left, _SLOW * space.one), space.zero)


def _is_coarse(problem: Problem, carry: Carry, old: Point) -> Array:
    """Whether f seems to be computed in a shorter arithmetic than the state's.

    Of a map its last two values tell. Those of a root are differences, of few digits
    near the solution, and the first one tells.
    """
    space, first = problem.space, carry.evidence.coarse
    if problem.is_root:
        return space.full(0.0) > 0.0 if first is None else first
    values = [problem.computed(at) for at in (carry.point, old)]
    return reduce(and_, map(space.is_shorter, values))


def _felt(problem: Problem, point: Point) -> tuple[Array, Any]:
    """What the rounding of a shorter arithmetic does to a residual, after one
    evaluation; zero where f is not computed in one.

    The state is moved by two units of it, up or down, to one of more bits: where f has
    these too, or feels nothing, as where it is flat, that is not the case.
    """
    space = problem.space
    unit = 2.0 ** (1 - space.shorter)
    value = nudged(problem, point.value, 2.0 * unit / space.rounding, 0)
    g = problem.nearby(problem.increment, value)
    there = point._replace(value=value, increment=g)
    found = problem.computed(there)
    moved = space.subtract(found, problem.computed(point))
    noise = space.norm(moved) / 4.0
    short = space.are_of(space.ravel(found), space.shorter)
    return space.xp.where(short, noise, space.zero), 1


def answered(
    problem: Problem,
    carry: Carry,
    mask: Array,
    question: Callable[[], tuple[Array, Any]],
    dtype: Any = None,
) -> tuple[Carry, Array]:
    """The answer of the samples of `mask`, evaluated only if there are any; false, or
    zero, of the others.
    """
    backend, xp = problem.space.backend, problem.space.xp
    if ends_alone(problem.space, mask):
        mask = mask & carry.running  # an element of a vmap may have ended
    integer = getattr(carry.work.f, "dtype", xp.int32)
    nothing = xp.zeros_like(mask, dtype=dtype), xp.zeros_like(mask, dtype=integer)

    spent: list[Any] = []
    traced = backend.is_traced((mask,))

    def answer() -> tuple[Array, ...]:
        holds, evaluations = question()
        if not traced:  # a symbol must not outlive its trace
            spent.append(evaluations)
        return holds, nothing[1] + evaluations

    found = backend.replaced_where(nothing, mask, answer, evaluates=True)
    if found is nothing:
        return carry, found[0]
    most = spent[0] if spent else 0
    if traced and math.prod(mask.shape):
        most = xp.max(found[1])
    work = Work(f=most)
    return carry._replace(work=carry.work.plus(work)), found[0]


def _relative(problem: Problem, evidence: Evidence, u: Vec) -> tuple[Array, ...]:
    """The parts of a residual, each relative to what it was at first."""
    sizes = problem.tolerance.parts(problem.space, u)
    pairs = zip(sizes, evidence.scale, strict=True)
    return tuple([problem.space.ratio(size, first) for size, first in pairs])
