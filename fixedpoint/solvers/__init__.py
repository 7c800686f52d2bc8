"""Solvers, one file an algorithm."""

from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.base import Solver
from fixedpoint.solvers.picard import Picard

__all__ = ["Anderson", "Picard", "Solver"]
