"""What a solve returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from fixedpoint.backend import Array, backend_of


class Status(IntEnum):
    """How the iteration of a sample ended."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NON_FINITE = 3


_MEANING = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "converged",
    Status.MAX_STEPS: "not converged within max_steps",
    Status.NON_FINITE: "f was not finite at the next iterate, or at the start; the value is the "
    "last iterate before it",
}


class Work(NamedTuple):
    """Evaluations that a solve cost.

    Attributes
    ----------
    f : int
        Evaluations of the map, for the whole batch.
    vjp, jvp : int
        Vector-Jacobian and Jacobian-vector products.
    """

    f: Any = 0
    vjp: Any = 0
    jvp: Any = 0


@dataclass
class Solution:
    """The result of :func:`fixedpoint.fixed_point`.

    Attributes
    ----------
    value : array or container of arrays
        The last iterate, in the structure of ``z0``.
    status : array of int, of the batch's shape
        A :class:`Status` per sample.
    residual_norm : array of the batch's shape
        ‖f(z) − z‖ at `value`.
    steps : array of int, of the batch's shape
        Steps that each sample took.
    work : Work
        Evaluations, counted over the whole batch.
    backward : object or None
        Where derivatives are recorded, the report of the adjoint solve, filled in by it.
    """

    value: Any
    status: Array
    residual_norm: Array
    steps: Array
    work: Work
    backward: Any = None

    @property
    def converged(self) -> Array:
        """Per sample, whether the iteration converged."""
        return self.status == int(Status.CONVERGED)

    @property
    def message(self) -> str:
        """What became of the samples, in words.

        Examples
        --------
        >>> import fixedpoint as fp
        >>> fp.fixed_point(lambda z: 0.5 * z + 1.0, 0.0, solver=fp.Picard()).message
        'converged; largest residual norm 1.9e-06 after 19 steps'
        """
        if backend_of([self.status], ["status"]).is_traced((self.status,)):
            return "a symbol of a trace, whose outcome is not known yet"
        outcomes = list(self._outcomes())
        if not outcomes:
            return "no samples"
        one = len(outcomes) == 1
        counts = [word if one else f"{word} ({number} samples)" for word, number in outcomes]
        norm, steps = _numpy(self.residual_norm).max(), _numpy(self.steps).max()
        return f"{'; '.join(counts)}; largest residual norm {norm:.2g} after {steps} steps"

    def _outcomes(self) -> Iterator[tuple[str, int]]:
        statuses = _numpy(self.status)
        for status, meaning in _MEANING.items():
            number = int((statuses == status).sum())
            if number:
                yield meaning, number

    def __repr__(self) -> str:
        """A line that says what happened."""
        return f"Solution({self.message}; {self.work.f} evaluations)"


class ConvergenceError(ArithmeticError):
    """A solve failed. The attribute ``solution`` holds what it reached."""

    def __init__(self, message: str, solution: Any) -> None:
        super().__init__(message)
        self.solution = solution


class ConvergenceWarning(UserWarning):
    """A solve failed, and ``on_failure="warn"`` was asked for."""


def _numpy(array: Array) -> Any:
    return backend_of([array], ["array"]).numpy(array)
