"""Claims of convergence that are held against rounding."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

from fixedpoint.backend import Array, Vec
from fixedpoint.carry import Best, Carry, ends_alone
from fixedpoint.evidence import Evidence
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.space import Difference

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
