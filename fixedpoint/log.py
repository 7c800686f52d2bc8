"""What a logger of the standard library is told: the one called "fixedpoint".

At the level INFO it hears of solves that fail and of methods that leave samples to the
next one, at DEBUG of every solve. Steps are not logged, and where nobody listens, or
inside a trace, nothing is worked out.
"""

from __future__ import annotations

import logging
from typing import Any

from fixedpoint.backend import Array, Backend
from fixedpoint.solution import Solution, Status

_LOGGER = logging.getLogger("fixedpoint")


def log_solution(what: str, backend: Backend, solution: Solution[Any]) -> None:
    """Tell how a solve ended: at INFO if a sample failed."""
    if not _LOGGER.isEnabledFor(logging.INFO):
        return
    status = solution.status
    if backend.is_traced((status, solution.residual_norm, solution.error)):
        return
    failed = bool((backend.numpy(status) != int(Status.CONVERGED)).any())
    level = logging.INFO if failed else logging.DEBUG
    methods = ", ".join(solution.methods)
    _LOGGER.log(
        level, "%s by %s: %s; %s", what, methods, solution.message, solution.work
    )


def log_next(before: str, after: str, backend: Backend, status: Array) -> None:
    """Tell at INFO what a method leaves to the next one, by how its samples ended."""
    if not _LOGGER.isEnabledFor(logging.INFO) or backend.is_traced((status,)):
        return
    found = backend.numpy(status).reshape(-1).tolist()
    failed = [Status(code).name for code in found if code != int(Status.CONVERGED)]
    _LOGGER.info(
        "%s left %d of %d samples unsolved (%s): trying %s",
        before,
        len(failed),
        len(found),
        ", ".join(sorted(set(failed))),
        after,
    )
