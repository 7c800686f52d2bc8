"""Fixed points and roots of differentiable maps, and their derivatives, on any array library."""

from fixedpoint import operators
from fixedpoint.adjoints.implicit import Implicit
from fixedpoint.api import fixed_point, root
from fixedpoint.bracket import bracketed_root
from fixedpoint.iterate import Budget
from fixedpoint.linear import GMRES, BiCGStab, ConjugateGradient
from fixedpoint.solution import (
    ConvergenceError,
    ConvergenceWarning,
    DomainError,
    Solution,
    Status,
    Trace,
    Work,
)
from fixedpoint.solvers import (
    SQUAREM,
    Anderson,
    Broyden,
    Fallback,
    LevenbergMarquardt,
    Newton,
    NewtonKrylov,
    Picard,
    PseudoTransient,
    default_solver,
)

__version__ = "0.1.0"

__all__ = [
    "GMRES",
    "SQUAREM",
    "Anderson",
    "BiCGStab",
    "Broyden",
    "Budget",
    "ConjugateGradient",
    "ConvergenceError",
    "ConvergenceWarning",
    "DomainError",
    "Fallback",
    "Implicit",
    "LevenbergMarquardt",
    "Newton",
    "NewtonKrylov",
    "Picard",
    "PseudoTransient",
    "Solution",
    "Status",
    "Trace",
    "Work",
    "bracketed_root",
    "default_solver",
    "fixed_point",
    "operators",
    "root",
]
