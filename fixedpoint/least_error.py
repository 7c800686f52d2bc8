"""The least error that rounding leaves, below which no claim may say that it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import and_
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Backend
from fixedpoint.carry import Carry
from fixedpoint.convergence import ZERO, largest_known, parts_of_state
from fixedpoint.evidence import Verdict
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.rounding import nudged
from fixedpoint.solvers.base import Step
from fixedpoint.tolerance import length_of
from fixedpoint.unresolved import answered

# Corrections that fall by no more than to this share do so at a multiple root.
_SLOW = 0.2


def beyond_rounding(
    problem: Problem,
    old: Carry,
    step: Step,
    carry: Carry,
    verdict: Verdict,
    sound: Array,
) -> Carry:
    """The carry, where the errors of claims that are `sound` are no less than rounding
    makes them.

    Where that is more than was asked the arithmetic cannot do better, even if a
    residual is zero. The `old` carry is that before the step.
    """
    backend, tolerance = problem.space.backend, problem.tolerance
    if tolerance.test == "residual" or tolerance.is_zero:
        return carry
    claimed = carry.live(sound)
    find = partial(_Least.at, problem, old, step, carry, verdict)
    if backend.is_traced((claimed,)):
        if problem.is_affine:  # an adjoint, of which no error is told
            return carry
        return _without_a_look(find, backend, carry, claimed)
    if backend.known_none(claimed):
        return carry
    return _with_a_look(find(), old.point, claimed)


def _without_a_look(
    find: Callable[[], _Least], backend: Backend, carry: Carry, claimed: Array
) -> Carry:
    """The carry in a trace, where another evaluation of f takes long to compile: one
    in a shorter arithmetic is not known for what it is.
    """

    def raised() -> tuple[Array, ...]:
        least = find()
        return least.raised(claimed, least.error, least.problem.space.one)

    known = carry.precise, carry.best.error
    return _with(carry, *backend.replaced_where(known, claimed, raised))


def _with_a_look(least: _Least, old: Point, claimed: Array) -> Carry:
    """The carry, where an f in a shorter arithmetic is known by an evaluation."""
    problem, carry = least.problem, least.carry
    space, xp = problem.space, problem.space.xp
    coarser = 2.0 ** (1 - space.shorter) / space.rounding * space.one
    doubtful = claimed & (carry.precise | ~least.within(coarser))
    if space.backend.known_none(doubtful):
        return carry
    suspect = doubtful & _is_coarse(problem, carry, old)
    question = partial(_felt, problem, carry.point)
    carry, noise = answered(problem, carry, suspect, question, space.dtype)
    factor = xp.where(noise > 0.0, coarser, space.one)
    error = xp.maximum(factor * least.error, 0.5 * least.amplification * noise)
    return _with(carry, *least.raised(claimed, error, factor))


def _with(carry: Carry, precise: Array, error: Array) -> Carry:
    return carry._replace(precise=precise, best=carry.best._replace(error=error))


class _Least(NamedTuple):
    """The least error that rounding leaves at a point, by units of the state's dtype.

    A value of a map is rounded, and an error of it is amplified by κ; so is a residual
    that is nothing but rounding. Where a step knows its matrix, that tells.
    """

    problem: Problem
    carry: Carry
    sizes: Sequence[Array]  # of the parts of the state
    error: Array
    amplification: Array
    lost: Array  # the error where rounding has swallowed a residual
    parts: tuple[Array, ...] | None  # those of the error, if they are known

    @classmethod
    def at(
        cls, problem: Problem, old: Carry, step: Step, carry: Carry, verdict: Verdict
    ) -> _Least:
        """That after a step from the `old` carry."""
        sizes = parts_of_state(problem, verdict, carry.point)
        space, known = problem.space, (problem, carry, sizes)
        lost = _lost(problem, old, carry)
        if step.rounding is not None:
            errors = step.rounding()
            parts = problem.tolerance.parts(space, errors)
            return cls(*known, space.norm(errors), space.zero, lost, parts)
        amplification = largest_known(space, carry.evidence)
        left = problem.rounding(carry.point)
        left = space.xp.where(carry.precise, carry.best.residual_norm, left)
        state = space.rounding * length_of(space, sizes)
        error = 0.5 * space.xp.maximum(amplification * left, state)
        return cls(*known, error, amplification, lost, None)

    def raised(
        self, claimed: Array, error: Array, factor: Array
    ) -> tuple[Array, Array]:
        """Which samples are precise, and the errors of the best iterates, which are no
        less than this `error` in claims where so many times the least is too much.
        """
        xp, precise, best = self.problem.space.xp, self.carry.precise, self.carry.best
        error = xp.maximum(error, self.lost)
        larger = claimed & (precise | ~self.within(factor))
        error = xp.where(larger & (error > best.error), error, best.error)
        return precise | larger, error

    def within(self, factor: Array) -> Array:
        """Whether so many times the error is within tolerance, and what is lost."""
        space, tolerance = self.problem.space, self.problem.tolerance
        sizes, bounds = self.sizes, tolerance.bounds(self.sizes)
        whole = self.lost
        if self.parts is None:
            whole = space.xp.maximum(factor * self.error, whole)
        # What is not a number tells nothing.
        masks = [~(whole > length_of(space, bounds))]
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
