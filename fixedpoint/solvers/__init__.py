"""Solvers, one file an algorithm."""

from fixedpoint.linear import GMRES
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.base import Solver
from fixedpoint.solvers.broyden import Broyden
from fixedpoint.solvers.fallback import Fallback
from fixedpoint.solvers.newton import LevenbergMarquardt, Newton
from fixedpoint.solvers.newton_krylov import NewtonKrylov
from fixedpoint.solvers.picard import Picard
from fixedpoint.solvers.pseudo_transient import PseudoTransient
from fixedpoint.solvers.squarem import SQUAREM


def default_solver(size: int, is_root: bool) -> Solver:
    if not is_root:
        return Anderson()
    if size <= 150:
        return Fallback([Newton(), Newton(line_search=False, step_bound=0.5), LevenbergMarquardt()])
    return Fallback([NewtonKrylov(line_search=False,step_bound=1.,linear=GMRES(max_steps=60)), Newton(line_search=False, step_bound=0.5), Newton()])

__all__ = ["SQUAREM", "Anderson", "Broyden", "Fallback", "LevenbergMarquardt", "Newton", "NewtonKrylov", "Picard", "PseudoTransient", "Solver", "default_solver"]
