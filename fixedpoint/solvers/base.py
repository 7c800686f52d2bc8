"""What the loop asks of a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fixedpoint.backend import Array
from fixedpoint.problem import FixedPointProblem, Point
from fixedpoint.space import Space


@dataclass(frozen=True, kw_only=True)
class Solver:
    """Settings of a method: immutable, hashable, and free of arrays."""

    def init(self, space: Space, point: Point) -> Any:
        """What the method remembers before its first step from `point`."""
        raise TypeError(f"{type(self).__name__} is no solver: it has no init")

    def step(
        self, space: Space, problem: FixedPointProblem, point: Point, state: Any, active: Array | None
    ) -> tuple[Point, Any]:
        """The next point, and what the method remembers then.

        Samples that are not `active` keep their point: the map is evaluated there again, and
        nothing of it is remembered. None stands for all samples.
        """
        raise TypeError(f"{type(self).__name__} is no solver: it has no step")


def check_positive(name: str, value: float, upper: float = float("inf")) -> None:
    """Raise ValueError unless 0 < value ≤ upper."""
    if not 0.0 < value <= upper:
        bound = "positive" if upper == float("inf") else f"in (0, {upper:g}]"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
