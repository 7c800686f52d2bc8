"""What solvers have in common that lower an objective along the way."""

from __future__ import annotations

from dataclasses import dataclass

from fixedpoint.solvers import Solver
from fixedpoint.space import Space


@dataclass(frozen=True, kw_only=True)
class ObjectiveSolver(Solver):
    """A method whose steps are judged by an objective, not by the residual."""

    @property
    def latest(self) -> bool:
        """The last iterate counts: a residual may rise while the objective falls."""
        return True

    @property
    def compares_values(self) -> bool:
        """As above."""
        return True

    def patience(self, space: Space) -> int:
        """As above: steps are judged by the objective."""
        del space
        return 10**6
