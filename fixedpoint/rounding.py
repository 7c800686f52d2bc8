"""What the arithmetic of a map can tell apart."""

from __future__ import annotations

from functools import partial

from fixedpoint.backend import Array, Vec
from fixedpoint.problem import Point, Problem
from fixedpoint.tolerance import every

# A residual of so many times its change under rounding of the state is nothing but noise.
_NOISE = 4.0

# The share of the first that a residual must fall to, or be within so many times the noise there.
_FALLEN, _GROWTH = 1e-3, 1e3

# Units in the last place to move a state by, one after the other, until the residual feels it.
_ULPS = (1.0, 2.0**8, 2.0**16)

# What counts as tiny beside the start, and how far from additive a function may be there.
_TINY, _ADDITIVE = 1e-12, 1e-6


def at_rounding(problem: Problem, point: Point, first: Point) -> tuple[Array, int]:
    """Whether the residual is noise, in every part of every sample, and the evaluations it took.

    It must have fallen from that of the first point, or be noise there too, lest a state grows
    until its rounding covers any residual.
    """
    space, parts = problem.space, partial(problem.tolerance.parts, problem.space)
    noise, evaluations = _noise(problem, point)
    pairs = zip(parts(point.increment), parts(noise), strict=True)
    covered = every(space, [size <= _NOISE * most for size, most in pairs])
    fell = point.residual_norm <= _FALLEN * first.residual_norm
    if space.backend.known_all(fell | ~covered):
        return covered, evaluations
    before, again = _noise(problem, first)
    near = point.residual_norm <= _GROWTH * space.norm(before)
    return covered & (fell | near), evaluations + again


def _noise(problem: Problem, point: Point) -> tuple[Vec, int]:
    """The rounding errors of g at a point, and the evaluations that they took.

    That of an entry is its change when every entry of the state is moved by a unit in the last
    place, up or down: a residual below that cannot be told from one at the next representable
    state. An entry that feels nothing is moved by more.

    References
    ----------
    Moré and Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33, 2011.
    """
    space, xp = problem.space, problem.space.xp
    noise = problem.least_noise(point)
    evaluations = 0
    traced = space.backend.is_traced(point.value)
    for ulps in _ULPS[:1] if traced else _ULPS:
        for pattern in (1, 2):
            moved = problem.increment_nearby(_nudged(problem, point.value, ulps, pattern))
            evaluations += 1
            change = space.subtract(moved, point.increment)
            pairs = zip(noise, change, strict=True)
            noise = tuple([xp.maximum(old, xp.abs(new)) for old, new in pairs])
        if space.backend.known_all(_felt(problem, point.increment, noise)):
            break
    return noise, evaluations


def _nudged(problem: Problem, value: Vec, ulps: float, pattern: int) -> Vec:
    """The state with each entry moved by some units in its last place, up or down."""
    space, xp = problem.space, problem.space.xp
    moved = []
    for leaf, size in zip(value, space.sizes, strict=True):
        index = xp.arange(size, **space.place)
        up = xp.astype((index // pattern) % 2 == 0, space.dtype)
        factor = 1.0 + (2.0 * up - 1.0) * (ulps * float(xp.finfo(leaf.dtype).eps))
        moved.append(leaf * space.as_leaf(factor, leaf))
    return tuple(moved)


def _felt(problem: Problem, increment: Vec, noise: Vec) -> Array:
    """Whether every entry of g that is not zero has changed."""
    pairs = zip(increment, noise, strict=True)
    return every(problem.space, [(leaf == 0) | (change > 0.0) for leaf, change in pairs])


def irregular_at_zero(problem: Problem, start: Vec, highest: Array) -> tuple[Array, int]:
    """Whether g has no derivative at zero, in the samples that do not start there.

    A map that is homogeneous, f(tz) = t f(z), as a scaling whose length is free, has a
    residual that falls with the length of the state, whatever its direction. Zero is no answer
    then: a function with a derivative there is additive on tiny states, and such a map is not.

    Parameters
    ----------
    problem : Problem
        The problem.
    start : Vec
        Where the iteration began: the state to scale down, since g is defined there.
    highest : array
        The largest residual norm, that of a state of the size of the start.
    """
    space = problem.space
    first = space.scale(_TINY, start)
    second = tuple([leaf * _graded(problem, leaf) for leaf in first])
    g = [problem.increment_nearby(v) for v in (first, second, space.add(first, second))]
    wrong = space.norm(space.subtract(space.add(g[0], g[1]), g[2]))
    regular = wrong <= (_ADDITIVE * _TINY) * highest
    return ~regular & (space.norm(start) > 0.0), 3


def _graded(problem: Problem, leaf: Array) -> Array:
    """Factors from 1 to 2 along the entries of a leaf."""
    space, size = problem.space, leaf.shape[-1]
    index = space.xp.astype(space.xp.arange(1, size + 1, **space.place), space.dtype)
    return space.as_leaf(1.0 + index / (size + 1.0), leaf)
