"""Claims that later steps of the other samples undo, where f couples them."""

from __future__ import annotations

from fixedpoint.backend import Array
from fixedpoint.carry import RUNNING, Carry, marked, sifted
from fixedpoint.evidence import Verdict
from fixedpoint.point import Point
from fixedpoint.problem import ROUNDINGS, Problem
from fixedpoint.solution import Work
from fixedpoint.space import Space
from fixedpoint.status import Status

# An error, or a residual, that has grown by more than this since the claim.
_GROWN = 2.0


def reopened(problem: Problem, old: Carry, carry: Carry, verdict: Verdict) -> Carry:
    """The carry after a turn, where samples run again that had ended before it, at the
    `old` carry, with claims that no longer hold.

    Samples that have ended stay where they are, and f is evaluated there all the same.
    What it gives is what it gave, unless it couples them with others, as by statistics
    of the batch: then it may be no fixed point any more.
    """
    space, where = problem.space, problem.space.xp.where
    moved = _has_moved(problem, old, carry.point)
    if space.backend.known_none(moved):
        return carry
    claimed = old.status == int(Status.CONVERGED)
    undone = moved & claimed & ~_still_holds(problem, old, carry.point, verdict)
    best, norm = carry.best, carry.point.residual_norm
    now = where(moved & claimed & ~old.precise, norm, best.residual_norm)
    found = best._replace(residual_norm=now)
    again = found.renewed(space, undone, carry.point, verdict.error, 0)
    carry = carry._replace(
        best=again._replace(method=best.method),
        status=marked(space.xp, carry.status, undone, Status.RUNNING),
        improved=where(undone, carry.improved * 0 + carry.step, carry.improved),
        precise=carry.precise & ~undone,
        coupled=carry.coupled | moved,
    )
    return sifted(space, carry)


def together(problem: Problem, carry: Carry) -> Carry:
    """The carry of samples that have ended, with the residuals at what is returned.

    Of one that failed that is the best iterate, not the last, beside which the claims
    of others were made. That is looked at where f may couple them.
    """
    space, backend, best = problem.space, problem.space.backend, carry.best
    status = carry.status
    if not space.batch_shape or backend.is_traced((status,)):
        return carry
    claimed = status == int(Status.CONVERGED)
    if not backend.known_all(status != RUNNING):
        return carry
    left = [a != b for a, b in zip(best.value, carry.point.value, strict=True)]
    elsewhere = ~claimed & ~space.every([~mask for mask in left])
    if backend.known_none(claimed) or backend.known_none(elsewhere):
        return carry
    now = problem.among(None).trial(best.value)
    moved = _has_changed(problem, now, best.residual_norm)
    norm = space.xp.where(moved, now.residual_norm, best.residual_norm)
    return carry._replace(
        best=best._replace(residual_norm=norm),
        coupled=carry.coupled | moved,
        work=carry.work.plus(Work(f=1)),
    )


def in_view_of_neighbors(space: Space, carry: Carry) -> tuple[Array, Array]:
    """The statuses and errors: of samples that f couples none has converged while one
    failed, and nothing is known of the errors of the others.
    """
    status, error, xp = carry.status, carry.best.error, space.xp
    if not space.batch_shape or space.backend.known_here(~carry.coupled):
        return status, error
    claimed, runs = (status == int(s) for s in (Status.CONVERGED, Status.RUNNING))
    unfounded = claimed & xp.any(carry.coupled) & xp.any(~(claimed | runs))
    error = xp.where(unfounded, space.infinity, error)
    return marked(xp, status, unfounded, Status.STALLED), error


def _has_moved(problem: Problem, old: Carry, new: Point) -> Array:
    """The samples that had ended, and whose residual is another one now."""
    return _has_changed(problem, new, _known(problem, old)) & (old.status != RUNNING)


def _has_changed(problem: Problem, new: Point, norm: Array) -> Array:
    """The samples whose residual had another norm before."""
    space, change = problem.space, problem.space.xp.abs(new.residual_norm - norm)
    rounding = ROUNDINGS * problem.rounding(new)
    moved = change > space.xp.maximum(rounding, space.rounding**0.5 * norm)
    return moved & (new.residual_norm < space.xp.inf)


def _known(problem: Problem, old: Carry) -> Array:
    """The residual of a claim; else, or where that was of an iterate before, the last
    one.
    """
    is_of_claim = (old.status == int(Status.CONVERGED)) & ~old.precise
    norms = old.best.residual_norm, old.point.residual_norm
    return problem.space.xp.where(is_of_claim, *norms)


def _still_holds(problem: Problem, old: Carry, new: Point, verdict: Verdict) -> Array:
    """Whether the claim does, about, with another residual.

    Of one that was held to be rounding, the steps of others may have been taken for
    that.
    """
    if problem.tolerance.test == "residual":
        return verdict.satisfied
    xp, norm = problem.space.xp, new.residual_norm
    alike = norm <= _GROWN * _known(problem, old)
    most = xp.maximum(old.evidence.highest, problem.length_of_state(new))
    is_noise = alike & (norm <= problem.space.rounding**0.5 * most)
    near = alike if problem.is_root else _is_near(problem, old, new)
    return xp.where(old.precise, is_noise, near)


def _is_near(problem: Problem, old: Carry, new: Point) -> Array:
    """Whether the error, taken to be as many times the residual as it was at the claim,
    is about within tolerance in every part.

    Of a root this cannot be said, whose residual has units of its own.
    """
    space, tolerance, best = problem.space, problem.tolerance, old.best
    factor = space.xp.maximum(space.ratio(best.error, best.residual_norm), space.one)
    bounds = tolerance.bounds(tolerance.parts(space, new.value))
    pairs = zip(tolerance.parts(space, new.tested), bounds, strict=True)
    masks = [space.spread(factor, part) * part <= _GROWN * b for part, b in pairs]
    return space.every(masks)
