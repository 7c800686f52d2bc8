"""What happens when a solve fails, and what a logger of the standard library is told.

The one called "fixedpoint" hears at the level INFO of solves that fail and of methods
that leave samples to the next one, at DEBUG of every solve. Steps are not logged, and
where nobody listens, or inside a trace, nothing is worked out.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from itertools import pairwise
from types import TracebackType
from typing import Any, Literal, get_args

from fixedpoint.adapters import announced
from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.solution import ConvergenceError, ConvergenceWarning, Solution
from fixedpoint.space import Space
from fixedpoint.status import Status

Policy = Literal["raise", "warn", "return", "nan"]
_LOGGER = logging.getLogger("fixedpoint")

POLICIES: tuple[Policy, ...] = get_args(Policy)


def check_policy(name: str, policy: str) -> None:
    """Raise ValueError unless `policy` is one of the four."""
    if policy not in POLICIES:
        raise ValueError(f"{name} must be one of {', '.join(POLICIES)}, got {policy!r}")


def apply_policy(
    policy: Policy, what: str, space: Space, value: Vec, solution: Solution[Any]
) -> Vec:
    """Raise or warn if a sample of `solution` failed, the outcome of `what`; return the
    leaves, poisoned if so asked.

    Where the values are symbols of a trace nothing can be raised, and "raise" fills the
    samples that failed with NaN. A warning points to the caller's code.
    """
    log_solution(what, space.backend, solution)
    if policy == "return":
        return value
    converged, backend = solution.converged, space.backend
    if policy == "nan" or backend.is_traced((converged,)):
        return _poison(space, converged, value)
    if backend.any(~converged):
        message = _sentence(what, backend, solution)
        if policy == "raise":
            raise ConvergenceError(message, solution)
        warnings.warn(message, ConvergenceWarning, stacklevel=_level())
    return value


def _level() -> int:
    """How many frames above the one that asks the code is that is neither of this
    library nor of one of arrays, whose modules call layers.
    """
    frame, level, inside = inspect.currentframe(), 0, {"fixedpoint", *announced()}
    while frame is not None:
        top = frame.f_globals.get("__name__", "").partition(".")[0]
        if top.partition("_")[0] not in inside:
            break
        frame, level = frame.f_back, level + 1
    return level


def _sentence(what: str, backend: Backend, solution: Solution[Any]) -> str:
    """What to say of a failure, which may be that of another process alone."""
    elsewhere = backend.numpy(solution.converged).all()
    where = " in another process; here it" if elsewhere else ""
    return f"{what} failed{where}: {solution.message}"


def shorten(error: BaseException) -> None:
    """Leave out of the traceback of an error that f raised what lies between the call
    of this library and that of f: there is nothing to be learned there.

    Errors of this library keep all of it.
    """
    frames = list(_frames(error.__traceback__))
    names = [frame.tb_frame.f_globals.get("__name__", "") for frame in frames]
    inside = [i for i, name in enumerate(names) if name.startswith("fixedpoint")]
    of_f = any(names[i].endswith(".evaluator") for i in inside)
    if not of_f or inside[-1] == len(frames) - 1:
        return
    left_out = set(inside[1:-1])
    kept = [frame for i, frame in enumerate(frames) if i not in left_out]
    for above, below in pairwise(kept):
        above.tb_next = below


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _poison(space: Space, converged: Array, value: Vec) -> Vec:
    """The samples that failed times NaN: so are their derivatives."""
    return space.scale(space.xp.where(converged, space.one, space.unknown), value)


def log_solution(what: str, backend: Backend, solution: Solution[Any]) -> None:
    """Tell how a solve ended: at INFO if a sample failed."""
    if not _LOGGER.isEnabledFor(logging.INFO):
        return
    status = solution.status
    if backend.is_traced((status, solution.residual_norm, solution.error)):
        return
    failed = bool((backend.numpy(status) != int(Status.CONVERGED)).any())
    level = logging.INFO if failed else logging.DEBUG
    told = what, ", ".join(solution.methods), solution.message, solution.work
    _LOGGER.log(level, "%s by %s: %s; %s", *told)


def log_next(before: str, after: str, backend: Backend, status: Array) -> None:
    """Tell at INFO what a method leaves to the next one, by how its samples ended."""
    if not _LOGGER.isEnabledFor(logging.INFO) or backend.is_traced((status,)):
        return
    found = backend.numpy(status).reshape(-1).tolist()
    failed = [Status(code).name for code in found if code != int(Status.CONVERGED)]
    told = before, len(failed), len(found), ", ".join(sorted(set(failed))), after
    _LOGGER.info("%s left %d of %d samples unsolved (%s): trying %s", *told)
