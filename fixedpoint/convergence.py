"""When an iteration has converged: an estimate of the error, and the test of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

from fixedpoint.backend import Array
from fixedpoint.evidence import Evidence, Verdict
from fixedpoint.point import Parts, Point
from fixedpoint.problem import Problem, Sizes
from fixedpoint.solvers.base import Step
from fixedpoint.space import Space

# A part that has fallen to this share of the largest that it has been counts as zero.
ZERO = 1e-12

# Success means that the residual has fallen to this share of the largest it has been.
FALL = 0.9

# A residual in units of its own is compared with this share of the first of its terms
# at least: at a solution all of them may vanish. The largest of them would be that of a
# step that went too far.
_FIRST = 0.03

# A residual of more than so many times what the first was compared with tells nothing
# of those that follow.
_TOO_FAR = 1e3

# Where equations are not tested one by one, each must fall to this share of the largest
# that it has been, but for a share of them: what rounding leaves of an equation that is
# met from the start does not fall.
_MET, _LEFT = 0.1, 0.1

# Steps over which the largest amplification counts.
_WINDOW = 20


def opened(problem: Problem, first: Point) -> Evidence:
    """What is known before the first step."""
    space, tolerance = problem.space, problem.tolerance
    # A residual that is smaller than that at the start is no measure of those that
    # follow.
    largest = space.xp.maximum(first.residual_norm, 2.0 * problem.rounding(first))
    whole = tolerance.is_whole(space)
    evidence = Evidence(
        largest,
        largest,
        (first.residual_norm,) if whole else tolerance.parts(space, first.tested),
        _largest(problem, first, tolerance.parts(space, first.value)),
        space.full(math.inf, (2,)),
        space.full(0.0, (_WINDOW,)),
        0,
        equations=problem.equations(first),
        coarse=problem.coarse(first),
    )
    if not problem.tests_parts:
        return evidence
    return evidence._replace(initial=problem.parts(first).scales)


def _compared(xp: Any, evidence: Evidence, parts: Parts) -> tuple[Array, ...]:
    """What the parts of a residual are compared with, in view of the first."""
    least = [_FIRST * size for size in evidence.initial or ()]
    rows, larger = zip(parts.scales, parts.terms, least, strict=True), xp.maximum
    return tuple([a if own is None else larger(a, b) for a, own, b in rows])


def judge(problem: Problem, evidence: Evidence, old: Point, step: Step) -> Verdict:
    """Whether the point that a step led to meets the tolerance.

    With the correction d that a method proposes there, undamped and not safeguarded,
    and m = max(‖d‖, ‖g‖) for maps, m = ‖d‖ for roots, the error is taken to be

        ε = max( m / (1 − q), ½ κ ‖g‖ ),    κ = max ‖Δz‖/‖Δg‖ over the last steps.

    q is the rate at which m fell in the last two steps, so that the first term is
    Aitken's: a correction is followed by others. κ is a lower bound of ‖(I − J)⁻¹‖, by
    which a residual amounts to an error. A sample passes when every part of its state
    does, with a share of max(ε, √(m m_old)) that goes with its part of d and g: a
    correction that is short by chance must not pass. A method that knows its error
    better says how many times ‖d‖ it is.

    References
    ----------
    Deuflhard, "Newton Methods for Nonlinear Problems", Springer 2004: corrections as
    errors. Hairer and Wanner, "Solving Ordinary Differential Equations II", Springer
    1996, section IV.8: the factor 1/(1 − q).
    """
    space, point = problem.space, step.point
    if problem.tests_parts:
        return _blockwise_test(problem, evidence, step)
    hidden = problem.rounding(point) > FALL * evidence.highest
    exact = (point.residual_norm == 0.0) & ~hidden
    if problem.tolerance.test == "residual":
        passes = _residual_passes(problem, evidence, point) & ~hidden
        return Verdict(passes, _plain(problem, step), evidence, hidden)
    if step.correction is None:
        error = space.xp.where(exact, space.zero, space.full(math.inf))
        return Verdict(exact, error, evidence, hidden)
    sizes = problem.sizes(old, point, step.correction)
    evidence = _noted(problem, evidence, point, sizes)
    error, guarded = _error(problem, evidence, step, sizes.length)
    passes, by_zero = _passes(problem, evidence, step, sizes, guarded)
    equations = problem.equations(point)
    if equations is not None:
        most = _larger(space.xp, equations, evidence.equations or equations)
        evidence = evidence._replace(equations=most)
        if not step.is_direct:
            passes = passes & _are_met(space, equations, most)
    satisfied = (passes & ~hidden) | exact
    error = space.xp.where(exact, space.zero, error)
    error = space.xp.where(space.xp.isnan(error), space.infinity, error)
    last = space.xp.stack([sizes.length, evidence.sizes[..., 0]], axis=-1)
    evidence = evidence._replace(sizes=last)
    by_zero = tuple([part & ~space.spread(exact, part) for part in by_zero])
    return Verdict(
        satisfied, error, evidence, hidden, state=sizes.state, by_zero=by_zero
    )


def judge_start(problem: Problem, first: Point, evidence: Evidence) -> Array:
    """Whether the start needs no step: it is exact, or nothing but rounding is left.

    By the test of residuals, whether the residual is within tolerance.
    """
    tolerance, space, norm = problem.tolerance, problem.space, first.residual_norm
    done, residual = norm == 0.0, evidence.scale
    if tolerance.test == "residual":
        sizes = evidence.initial or problem.residual_scale(first, residual)
        bounds = tolerance.bounds(sizes)
        pairs = zip(residual, bounds, strict=True)
        return done | space.every([size <= bound for size, bound in pairs])
    if tolerance.is_zero:
        return done
    return done | problem.is_rounding(residual, evidence.largest, norm)


def parts_of_state(problem: Problem, verdict: Verdict, point: Point) -> Sequence[Array]:
    """The sizes of the parts of a state, which a verdict on it may know."""
    return verdict.state or problem.tolerance.parts(problem.space, point.value)


def vanished_states(problem: Problem, verdict: Verdict, point: Point) -> Array:
    """Whether no part of the state is left, in samples of which there was something."""
    if verdict.vanished is not None:
        return verdict.vanished
    space, largest = problem.space, verdict.evidence.largest
    state = parts_of_state(problem, verdict, point)
    pairs = list(zip(state, largest, strict=True))
    some = ~space.every([most <= 0.0 for _, most in pairs])
    return some & space.every([size <= ZERO * most for size, most in pairs])


def _plain(problem: Problem, step: Step) -> Array:
    """The correction, as the error; of a map no less than the residual."""
    if step.correction is None:
        return problem.space.full(math.inf)
    measured = step.correction, problem.tolerance.kind
    (length,) = problem.space.sound_norms([measured])
    if not problem.is_root:
        length = problem.space.xp.maximum(length, step.point.residual_norm)
    if step.error_factor is None:
        return length
    known = ~problem.space.xp.isnan(step.error_factor)
    return problem.space.xp.where(known, step.error_factor * length, length)


def _noted(
    problem: Problem, evidence: Evidence, point: Point, sizes: Sizes
) -> Evidence:
    """The evidence with what the step itself tells."""
    space, where = problem.space, problem.space.xp.where
    amplification = space.backend.write(
        evidence.amplification,
        (..., evidence.count % _WINDOW),
        _amplification(problem, evidence, point, sizes),
    )
    norm, scale = point.residual_norm, evidence.scale
    largest, new = evidence.largest, sizes.state
    if problem.is_root:
        scale = _first(space.xp, scale, sizes.residual)
        largest = _first(space.xp, largest, _largest(problem, point, new))
    return evidence._replace(
        highest=where(norm > evidence.highest, norm, evidence.highest),
        scale=scale,
        largest=_larger(space.xp, new, largest),
        amplification=amplification,
        count=evidence.count + 1,
    )


def _largest(
    problem: Problem, point: Point, parts: tuple[Array, ...]
) -> tuple[Array, ...]:
    """What parts of a state were the largest of: themselves, or of roots all entries.

    An unknown that has never been more than a rounding error of the others may count as
    zero, if the equations say so. A map may have left a zero that repels.
    """
    if not problem.is_root:
        return parts
    space, largest = problem.space, problem.space.norm(point.value, "max")
    like = space.xp.zeros_like
    return tuple([like(size) + space.spread(largest, size) for size in parts])


def _first(xp: Any, old: Sequence[Array], new: Sequence[Array]) -> tuple[Array, ...]:
    """Old sizes, or new ones where those are zero."""
    return tuple([xp.where(a > 0.0, a, b) for a, b in zip(old, new, strict=True)])


def _amplification(
    problem: Problem, evidence: Evidence, point: Point, sizes: Sizes
) -> Array:
    """The ratio ‖Δz‖/‖Δg‖ of a step.

    One over which g changed by its rounding errors alone does not make light of those
    before it.
    """
    space, xp = problem.space, problem.space.xp
    moved, changed = sizes.moved, sizes.changed
    none = xp.where(moved > 0.0, space.infinity, space.zero)
    ratio = xp.where(changed > 0.0, space.ratio(moved, changed), none)
    ratio = xp.where(xp.isnan(ratio), space.zero, ratio)
    tells = problem.exceeds_rounding(point, changed)
    if space.backend.known_here(tells):
        return ratio
    return xp.where(tells, ratio, xp.maximum(ratio, largest_known(space, evidence)))


def largest_known(space: Space, evidence: Evidence) -> Array:
    """The largest amplification that is finite."""
    xp, past = space.xp, evidence.amplification
    return xp.max(xp.where(past < xp.inf, past, space.zero), axis=-1)


def _larger(xp: Any, new: Sequence[Array], old: Sequence[Array]) -> tuple[Array, ...]:
    """The larger one of each part; what is not a number counts for nothing."""
    return tuple([xp.where(a > b, a, b) for a, b in zip(new, old, strict=True)])


def _error(
    problem: Problem, evidence: Evidence, step: Step, m: Array
) -> tuple[Array, Array]:
    """The estimate of the error, and the one that has to be within tolerance."""
    xp, space = problem.space.xp, problem.space
    amplified = 0.5 * xp.max(evidence.amplification, axis=-1) * step.point.residual_norm
    # A correction of nothing has underflowed, or is lost beside the state.
    some = m > 0.0
    if step.is_direct:
        error = xp.maximum(step.error_factor * m, xp.where(some, space.zero, amplified))
        return error, error
    before, earlier = evidence.sizes[..., 0], evidence.sizes[..., 1]
    rate = xp.maximum(m / before, xp.sqrt(m / earlier))
    following = m / xp.where(rate < 1.0, 1.0 - rate, space.zero)
    error = xp.maximum(following, amplified)
    guarded = xp.maximum(error, xp.sqrt(m) * xp.sqrt(xp.maximum(m, before)))
    if step.error_factor is None:
        return error, guarded
    vague = step.error_factor == xp.inf  # whatever the correction is, if it is none too
    known = (some | vague) & ~xp.isnan(step.error_factor)
    given = xp.where(vague, space.one, step.error_factor) * m
    given = xp.where(vague, space.infinity, given)
    return xp.where(known, given, error), xp.where(known, given, guarded)


def _passes(
    problem: Problem, evidence: Evidence, step: Step, sizes: Sizes, error: Array
) -> tuple[Array, tuple[Array, ...]]:
    """Whether every part of the state is within tolerance, or has become zero; and the
    parts of which only the latter holds.
    """
    space, tolerance, m = problem.space, problem.tolerance, sizes.length
    where, some = space.xp.where, m > 0.0
    fell = step.point.residual_norm <= FALL * evidence.highest
    if not step.is_direct:
        fell = fell & problem.fell(sizes, evidence.scale)
    factor = error / where(some, m, space.one)
    passes, by_zero = [], []
    parts = zip(sizes.shares, sizes.state, evidence.largest, strict=True)
    for share, size, most in parts:
        left = where(space.spread(some, share), share, space.one)
        left = space.spread(factor, share) * left
        within, zero = left <= tolerance.bound(size), size + left <= ZERO * most
        passes.append(within | zero)
        by_zero.append(zero & ~within)
    return fell & space.every(passes), tuple(by_zero)


def _are_met(space: Space, sizes: Sequence[Array], largest: Sequence[Array]) -> Array:
    """Whether most equations are far below the `largest` that each has been."""
    pairs = zip(sizes, largest, strict=True)
    left = [space.as_coefficient(size > _MET * most) for size, most in pairs]
    share, parts = space.reduced([space.mean_over_entries(left), space.full(1.0)])
    return share <= _LEFT * parts


def _residual_passes(problem: Problem, evidence: Evidence, point: Point) -> Array:
    """Whether the residual is within tolerance, and fell or is within the absolute."""
    space, tolerance, norm = problem.space, problem.tolerance, point.residual_norm
    bounds = tolerance.bounds(problem.residual_scale(point, evidence.scale))
    sizes = tolerance.parts(space, point.tested)
    fell = (norm <= FALL * evidence.first) | (norm <= tolerance.atol)
    return fell & space.every(
        [size <= b for size, b in zip(sizes, bounds, strict=True)]
    )


def _blockwise_test(problem: Problem, evidence: Evidence, step: Step) -> Verdict:
    """Whether each part of a residual is within tolerance, and fell or is within what
    goes with the start.

    The parts have units of their own: no sum of them is looked at.
    """
    space, tolerance, xp = problem.space, problem.tolerance, problem.space.xp
    parts = problem.parts(step.point)
    sizes, now = parts.sizes, parts.scales
    initial = _first(xp, evidence.initial or now, now)
    scale = _larger(xp, sizes, evidence.scale)
    evidence = evidence._replace(scale=scale, initial=initial)
    scales = _compared(xp, evidence, parts)
    fall = [FALL * most for most in evidence.scale]
    limits = list(map(xp.maximum, fall, tolerance.bounds(initial)))
    most = list(map(xp.minimum, limits, tolerance.bounds(scales)))
    passes = space.every([size <= b for size, b in zip(sizes, most, strict=True)])
    pairs = zip(scales, limits, strict=True)
    hidden = ~space.every([space.rounding * size <= most for size, most in pairs])
    ratios = [space.ratio(*pair) for pair in zip(sizes, scales, strict=True)]
    return Verdict(
        passes & ~hidden,
        _plain(problem, step),
        evidence,
        hidden,
        relative=reduce(xp.maximum, ratios),
    )


def parts_are_near(
    problem: Problem, evidence: Evidence, point: Point, share: float
) -> Array:
    """Whether each part of a residual is a small share of its largest, or of what it is
    compared with.

    One that is many times what the first was compared with is that of a step that went
    too far, beside which all is small.
    """
    xp, parts = problem.space.xp, problem.parts(point)
    limits = [_TOO_FAR * size for size in evidence.initial or ()]
    largest = map(xp.minimum, evidence.scale, limits)
    large = map(xp.maximum, largest, _compared(xp, evidence, parts))
    pairs = zip(parts.sizes, large, strict=True)
    return problem.space.every([size <= share * most for size, most in pairs])
