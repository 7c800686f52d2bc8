"""What the arithmetic of a map can tell apart."""

from __future__ import annotations

from functools import partial, reduce
from operator import or_
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.space import Space

# A residual of so many times its change under rounding of the state is nothing but
# noise.
_NOISE = 4.0

# The share of the first that a residual must fall to, or be within so many times the
# noise there.
_FALLEN, _GROWTH = 1e-3, 1e3

# Units in the last place to move a state by, one after the other, until the residual
# feels it.
_ULPS = (1.0, 2.0**8, 2.0**16)

# Evaluations by which the noise is estimated: at least, and at most.
LOOKS = 2, 8

_GOLDEN = 0.5 * 5**0.5 - 0.5


class Noise(NamedTuple):
    """What rounding does to each entry of g, as far as it has been looked at."""

    size: Vec
    is_open: Array  # the samples in which another look may tell something
    looks: Any


# What is found of a sample, bit by bit.
PRECISE, DOUBTFUL = 1, 2


class Suspicion(NamedTuple):
    """The samples of which is asked what rounding makes of a residual.

    Attributes
    ----------
    stuck : array of bool
        Those that do not come nearer: maybe the residual is noise.
    far : array of bool or None
        Those that converge far from an earlier iterate: maybe noise hides its residual.
    still : array of bool or None
        Those whose last step left the residual what it was: maybe it is more than
        noise.
    """

    stuck: Array
    far: Array | None = None
    still: Array | None = None

    @property
    def asked(self) -> Array:
        """All of them."""
        return reduce(or_, [mask for mask in self if mask is not None])


def findings(
    problem: Problem, first: Point, point: Point, before: Array, suspicion: Suspicion
) -> tuple[Array, Any]:
    """What is found at a point, and the evaluations it took.

    `before` is the norm of the residual at the earlier iterate.
    """
    space = problem.space
    if space.backend.known_none(suspicion.asked):
        return space.xp.zeros_like(suspicion.stuck, dtype=space.xp.int32), 0
    noise, evaluations = _noise(problem, point, suspicion.asked)
    covered = is_covered(problem, point.increment, noise)
    precise, further = _fell(problem, point, first, suspicion.stuck & covered)
    hidden = None if suspicion.far is None else hides(problem, before, noise)
    found = answer(space.xp, suspicion, precise, covered, hidden)
    return found, evaluations + further


def answer(
    xp: Any, suspicion: Suspicion, precise: Array, covered: Array, hidden: Array | None
) -> Array:
    """What is found, bit by bit, where noise covers the residual of some samples, and
    hides that of the earlier iterate of others.
    """
    _, far, still = suspicion
    doubts = [] if still is None else [still & ~covered]
    if far is not None:
        doubts.append(far & hidden)
    found = xp.astype(precise, xp.int32)
    for doubt in doubts:
        found = found | xp.astype(doubt, xp.int32) * DOUBTFUL
    return found


def hides(problem: Problem, before: Array, noise: Vec) -> Array:
    """Whether so much noise hides a residual of the norm `before`."""
    return before <= _NOISE * problem.space.norm(noise)


def _fell(
    problem: Problem, point: Point, first: Point, covered: Array
) -> tuple[Array, Any]:
    """Whether a residual that is noise has fallen from that of the first point, or was
    noise there too, lest a state grows until its rounding covers any residual.

    The increment of the first point is evaluated again where it was not kept.
    """
    space, evaluations = problem.space, 0
    fell = fallen(problem, point, first)
    if space.backend.known_all(space.every(fell) | ~covered):
        return covered, evaluations
    if not first.increment:
        first, evaluations = problem.evaluate(first.value), 1
    before, further = _noise(problem, first, covered & ~space.every(fell))
    return covered & was_noise(problem, point, fell, before), evaluations + further


def fallen(problem: Problem, point: Point, first: Point) -> list[Array]:
    """Which parts of a residual have fallen by much from those of the first."""
    pairs = zip(_lengths(problem, point), _lengths(problem, first), strict=True)
    return [size <= _FALLEN * most for size, most in pairs]


def was_noise(problem: Problem, point: Point, fell: list[Array], before: Vec) -> Array:
    """Whether all parts that have not fallen were noise at first, of which there was so
    much `before`.
    """
    parts = problem.tolerance.parts if problem.tests_parts else _whole
    rows = zip(
        fell, _lengths(problem, point), parts(problem.space, before), strict=True
    )
    near = [done | (size <= _GROWTH * noise) for done, size, noise in rows]
    return problem.space.every(near)


def _lengths(problem: Problem, point: Point) -> tuple[Array, ...]:
    """The norm of a residual, or those of its parts where each is tested."""
    if problem.tests_parts:
        return problem.parts(point).sizes
    return (point.residual_norm,)


def _whole(space: Space, u: Vec) -> tuple[Array, ...]:
    return (space.norm(u),)


def is_covered(problem: Problem, increment: Vec, noise: Vec) -> Array:
    """Whether all parts of a residual are no larger than rounding may make them."""
    return problem.space.every(_covered(problem, increment, noise))


def _covered(problem: Problem, increment: Vec, noise: Vec) -> list[Array]:
    parts = partial(problem.tolerance.parts, problem.space)
    pairs = zip(parts(increment), parts(noise), strict=True)
    return [size <= _NOISE * most for size, most in pairs]


def _noise(problem: Problem, point: Point, asked: Array) -> tuple[Vec, Any]:
    """The rounding errors of g at a point, and the evaluations it took to tell.

    That of an entry is its change when every entry of the state is moved by a unit in
    the last place, up or down: a residual below that cannot be told from one at the
    next representable state. Of many entries one or the other changes little by chance:
    while most of a sample are covered, and not all, it is looked at again. Where an
    entry feels nothing, all are moved by more.

    References
    ----------
    Moré and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33, 2011.
    """
    backend = problem.space.backend
    noise, evaluations = problem.least_noise(point.value), 0
    for ulps in _ULPS:
        end = backend.while_loop(
            lambda noise: backend.any(noise.is_open) & (noise.looks < LOOKS[1]),
            partial(_looked, problem, point, ulps),
            Noise(noise, asked, 0),
            LOOKS[1],
        )
        noise, evaluations = end.size, evaluations + end.looks
        asked = asked & ~_felt(problem, point.increment, noise)
        if backend.known_none(asked):
            break
    return noise, evaluations


def _looked(problem: Problem, point: Point, ulps: float, noise: Noise) -> Noise:
    """The noise as one more evaluation tells it."""
    state = nudged(problem, point.value, ulps, noise.looks)
    moved = problem.nearby(problem.increment, state)
    change = problem.space.subtract(moved, point.increment)
    return noise_of(problem, point.increment, noise, change)


def noise_of(problem: Problem, increment: Vec, noise: Noise, change: Vec) -> Noise:
    """The noise, where an increment changed by so much as the state was nudged."""
    space, xp = problem.space, problem.space.xp
    pairs = zip(noise.size, change, strict=True)
    larger = tuple([xp.maximum(old, xp.abs(new)) for old, new in pairs])
    size, looks = space.where(noise.is_open, larger, noise.size), noise.looks + 1
    masks = [space.as_coefficient(mask) for mask in _covered(problem, increment, size)]
    share = space.mean_over_entries(masks)
    uncertain = (share >= 0.5) & (share < 1.0)
    return Noise(size, noise.is_open & ((looks < LOOKS[0]) | uncertain), looks)


def nudged(problem: Problem, value: Vec, ulps: float, look: Any) -> Vec:
    """The state with each entry moved by some units in its last place, up or down.

    Which way is told by multiples of the golden ratio, less their whole parts.
    """
    space, xp, moved = problem.space, problem.space.xp, []
    for leaf, size in zip(value, space.sizes, strict=True):
        unit = ulps * float(xp.finfo(leaf.dtype).eps)
        moved.append(leaf * space.as_leaf(1.0 + unit * _signs(space, size, look), leaf))
    return tuple(moved)


def moved_within(problem: Problem, value: Vec) -> Vec:
    """The state with each entry moved by its relative tolerance, up or down."""
    space = problem.space
    rows = zip(value, space.sizes, strict=True)
    entries = [leaf * space.as_leaf(_signs(space, n, 0), leaf) for leaf, n in rows]
    return space.axpy(space.full(1.0) * problem.tolerance.rtol, tuple(entries), value)


def _signs(space: Space, size: int, look: Any) -> Array:
    """So many signs, of coefficients."""
    index = space.xp.arange(1, size + 1, **space.place)
    whole = space.xp.floor(2.0 * _GOLDEN * (look + 1) * space.as_coefficient(index))
    return 2.0 * (whole % 2.0) - 1.0


def _felt(problem: Problem, increment: Vec, noise: Vec) -> Array:
    """Whether every entry of g that is not zero has changed."""
    pairs = zip(increment, noise, strict=True)
    return problem.space.every([(leaf == 0) | (change > 0.0) for leaf, change in pairs])
