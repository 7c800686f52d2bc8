"""What the loop asks of a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from fixedpoint.backend import Array
from fixedpoint.problem import FixedPointProblem, Point
from fixedpoint.space import Space


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Settings of a method: immutable, hashable, and free of arrays."""

    @abstractmethod
    def init(self, space: Space, point: Point) -> Any:
        """What the method remembers before its first step from `point`."""

    @abstractmethod
    def step(
        self,
        space: Space,
        problem: FixedPointProblem,
        point: Point,
        state: Any,
        active: Array | None,
    ) -> tuple[Point, Any]:
        """The next point, and what the method remembers then.

        Samples that are not `active` keep their point: the map is evaluated there again, and
        nothing of it is remembered. None stands for all samples.
        """


def check_positive(name: str, value: float, upper: float = float("inf")) -> None:
    """Raise ValueError unless 0 < value ≤ upper."""
    if not 0.0 < value <= upper:
        bound = "positive" if upper == float("inf") else f"in (0, {upper:g}]"
        raise ValueError(f"{name} must be {bound}, got {value!r}")


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is an integer, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer, {least} or more, got {value!r}")
