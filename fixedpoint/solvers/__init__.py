"""Solvers, one file an algorithm."""

from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.base import Solver
from fixedpoint.solvers.broyden import Broyden
from fixedpoint.solvers.choosing import Fallback, as_solver, default_solver
from fixedpoint.solvers.levenberg_marquardt import LevenbergMarquardt
from fixedpoint.solvers.newton import Newton
from fixedpoint.solvers.newton_krylov import NewtonKrylov
from fixedpoint.solvers.picard import Picard
from fixedpoint.solvers.pseudo_transient import PseudoTransient
from fixedpoint.solvers.squarem import SQUAREM

__all__ = [
    "SQUAREM",
    "Anderson",
    "Broyden",
    "Fallback",
    "LevenbergMarquardt",
    "Newton",
    "NewtonKrylov",
    "Picard",
    "PseudoTransient",
    "Solver",
    "as_solver",
    "default_solver",
]
