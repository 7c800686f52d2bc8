"""What happens when a solve fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import pairwise
from types import TracebackType
from typing import Any, Literal, get_args

from fixedpoint.backend import Array, Vec
from fixedpoint.log import log_solution
from fixedpoint.solution import ConvergenceError, ConvergenceWarning, Solution
from fixedpoint.space import Space

Policy = Literal["raise", "warn", "return", "nan"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


def check_policy(name: str, policy: str) -> None:
    """Raise ValueError unless `policy` is one of the four."""
    if policy not in POLICIES:
        raise ValueError(f"{name} must be one of {', '.join(POLICIES)}, got {policy!r}")


def apply_policy(
    policy: Policy,
    what: str,
    space: Space,
    value: Vec,
    solution: Solution[Any],
) -> Vec:
    """Raise or warn if a sample of `solution` failed, the outcome of `what`; return the
    leaves, poisoned if so asked.

    Where the values are symbols of a trace nothing can be raised, and "raise" fills the
    samples that failed with NaN. A warning points to the call three frames farther out.
    """
    log_solution(what, space.backend, solution)
    if policy == "return":
        return value
    converged, backend = solution.converged, space.backend
    traced = backend.is_traced((converged,))
    if policy == "nan" or traced:
        return _poison(space, converged, value)
    if backend.any(~converged):
        failed = f"{what} failed"
        if backend.numpy(converged).all():
            failed = f"{failed} in another process; here it"
        message = f"{failed}: {solution.message}"
        if policy == "raise":
            raise ConvergenceError(message, solution)
        warnings.warn(message, ConvergenceWarning, stacklevel=4)
    return value


def shorten(error: BaseException) -> None:
    """Leave out of the traceback of an error that f raised what lies between the call
    of this library and that of f: there is nothing to be learned there.

    Errors of this library keep all of it.
    """
    frames = list(_frames(error.__traceback__))
    names = [frame.tb_frame.f_globals.get("__name__", "") for frame in frames]
    inside = [
        place for place, name in enumerate(names) if name.startswith("fixedpoint")
    ]
    of_f = any(names[place].endswith(".evaluator") for place in inside)
    if not of_f or inside[-1] == len(frames) - 1:
        return
    left_out = set(inside[1:-1])
    kept = [frame for place, frame in enumerate(frames) if place not in left_out]
    for above, below in pairwise(kept):
        above.tb_next = below


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _poison(space: Space, converged: Array, value: Vec) -> Vec:
    """The samples that failed times NaN: so are their derivatives."""
    one = space.full(1.0)
    factor = space.xp.where(converged, one, space.xp.full_like(one, space.xp.nan))
    return space.scale(factor, value)
