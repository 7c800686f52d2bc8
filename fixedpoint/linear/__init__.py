"""Linear algebra on spaces: Krylov methods."""

from fixedpoint.linear.base import LinearSolution, LinearSolver, LinearSystem
from fixedpoint.linear.bicgstab import BiCGStab
from fixedpoint.linear.conjugate_gradient import ConjugateGradient
from fixedpoint.linear.gmres import GMRES

__all__ = [
    "GMRES",
    "BiCGStab",
    "ConjugateGradient",
    "LinearSolution",
    "LinearSolver",
    "LinearSystem",
]
