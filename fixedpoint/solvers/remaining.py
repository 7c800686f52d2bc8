"""What is left after a step of Newton's method, as its corrections tell."""

from __future__ import annotations

import math
from typing import NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.differences import UNITS
from fixedpoint.linear.direct import System
from fixedpoint.point import Point
from fixedpoint.space import Space

# A correction with the same Jacobian that is this much shorter means quadratic
# convergence; where nothing is known of the convergence, the error is this many
# corrections.
_QUADRATIC, _MOST = 0.125, 1e3

# A first step that changes an entry by more than this share of its new size may lead to
# where the derivative is another one.
_LONG = 0.5

# How much longer than expected a step may be, and how many times the error may be what
# equations of a residual amount to that no step has met.
_EXPECTED, _UNMET = 2.0, 2.0**UNITS


class Remaining(NamedTuple):
    """What a step tells of the next one."""

    length: Array  # of the step's own correction, infinite where not taken in full
    correction: Vec  # the next correction
    error_factor: Array  # the error as a multiple of the length of that


def after_elimination(
    space: Space,
    system: System,
    new: Point,
    known: Array,
    full: Array,
    before: Array,
    simplified: Array | None = None,
) -> Remaining:
    """What is left after the correction d that solves a system, or a part of it.

    The next correction is the `simplified` one, d̄, with the same matrix. It is `known`
    where the step was not damped, and tells of the error where the step was `full`, so
    that no bound shortened it, and where d̄ accounts for the residual: a minimizer of
    that, which is no root, leaves a least-squares solution of zero. An entry that
    shrank in the step counts as many times. Lengths are of entries relative to the
    state's; `before` is that of the correction before.
    """
    xp, d = space.xp, system.entries
    weights = relative_weights(space, space.ravel(new.value), d)
    size = xp.linalg.vector_norm(weights * d, axis=-1)
    length = xp.where(full, size, space.infinity)
    if space.backend.known_none(known):
        return Remaining(length, space.unravel(d), space.full(math.inf))
    rhs = -space.ravel(new.increment)
    if simplified is None:
        simplified = system.solved(rhs)
    known = known & system.accounts_for(simplified, rhs)
    theta = space.ratio(xp.linalg.vector_norm(weights * simplified, axis=-1), size)
    factor = _factor(space, theta, size / before)
    # The matrix may be as far off as the entries have moved, in their new size.
    stretch = space.ratio(xp.abs(d), xp.abs(space.ravel(new.value)))
    doubtful = (theta > _QUADRATIC) | xp.any(stretch > _LONG, axis=-1)
    vague = (before == xp.inf) & doubtful | ~(factor < _MOST) | ~full
    factor = xp.where(vague, _MOST * space.one, factor)
    simplified = simplified * xp.maximum(stretch, space.one)
    correction = space.unravel(xp.where(known[..., None], simplified, d))
    return Remaining(length, correction, xp.where(known, factor, space.infinity))


def _factor(space: Space, theta: Array, q: Array) -> Array:
    """How many times ‖d̄‖ the error is, of Θ = ‖d̄‖/‖d‖ and the ratio q of d to the
    correction before.

    The error is ‖d̄‖/(1 − Θ) where Θ is small, and else max(‖d̄‖, q‖d‖)/(1 − max(Θ,
    q)): so it is for roots of any multiplicity.
    """
    xp, rate = space.xp, space.xp.maximum(theta, q)
    slow = rate / xp.where(rate < 1.0, 1.0 - rate, space.zero)
    slow = slow / xp.where(theta > 0.0, theta, space.one)
    fast = 1.0 / (1.0 - xp.minimum(theta, 0.5 * space.one))
    return xp.where(theta <= _QUADRATIC, fast, slow)


def relative_weights(space: Space, value: Array, entries: Array) -> Array:
    """What makes the entries of a correction relative to those of the state."""
    xp = space.xp
    return space.ratio(space.one, xp.maximum(xp.abs(value), xp.abs(entries)))


def after_inexact_solve(
    space: Space,
    d: Vec,
    residuals: tuple[Array, Array],
    amplification: tuple[Array, Array],
    whole: Array,
    before: Array,
) -> Remaining:
    """What is left after a correction d by a Krylov method, which was taken in full
    where `whole` holds.

    That is the residual after the step, the second of `residuals`, amplified as before.
    It lies where Newton's next step would: as long as that is not known, along d.

    A linear solve to a tolerance may leave equations in small units as they are. What
    they amount to is taken to be known where a step is no longer than those before it
    let expect, by the first `amplification`; the second is with that of the step.
    """
    xp, size, (old, new) = space.xp, space.norm(d), residuals
    expected, largest = amplification
    correction = space.scale(space.ratio(largest * new, size), d)
    known = size <= _EXPECTED * expected * old
    fell, shrank = space.ratio(new, old), size / before
    rate = xp.maximum(fell, shrank)
    factor = 1.0 / xp.where(rate < 1.0, 1.0 - rate, space.zero)
    unknown = (before == xp.inf) & (fell > _QUADRATIC) | ~(factor < _MOST)
    factor = xp.where(unknown, _MOST * space.one, factor)
    factor = xp.where(known, factor, _UNMET * factor)
    length = xp.where(whole, size, space.infinity)
    return Remaining(length, correction, xp.where(whole, factor, space.infinity))
