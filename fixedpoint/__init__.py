"""Fixed points of differentiable maps, and their derivatives, on any array library."""

from fixedpoint import operators
from fixedpoint.adjoints.implicit import Implicit
from fixedpoint.api import fixed_point
from fixedpoint.solution import (
    ConvergenceError,
    ConvergenceWarning,
    Solution,
    Status,
    Work,
)
from fixedpoint.solvers import Anderson, Picard

__version__ = "0.1.0"

__all__ = [
    "Anderson",
    "ConvergenceError",
    "ConvergenceWarning",
    "Implicit",
    "Picard",
    "Solution",
    "Status",
    "Work",
    "fixed_point",
    "operators",
]
