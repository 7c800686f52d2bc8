"""Fixed points and roots of differentiable maps, and their derivatives, on any array
library.
"""

from fixedpoint import operators
from fixedpoint.adjoints import (
    Adjoint,
    ImplicitAdjoint,
    JacobianFree,
    NeumannSeries,
    PhantomGradient,
    SharedInverse,
    Unrolled,
)
from fixedpoint.api import fixed_point, root, steps
from fixedpoint.bracket import bracketed_root
from fixedpoint.communicator import Communicator
from fixedpoint.control import Budget, Control
from fixedpoint.implicit import implicit_jvp, implicit_vjp
from fixedpoint.linear import GMRES, BiCGStab, ConjugateGradient
from fixedpoint.operators.base import Map
from fixedpoint.progress import Progress
from fixedpoint.solution import (
    BackwardReport,
    ConvergenceError,
    ConvergenceWarning,
    DomainError,
    Solution,
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
from fixedpoint.spectrum import spectral_norm, spectral_radius
from fixedpoint.status import Status

__version__ = "1.0.0rc1"

__all__ = [
    "GMRES",
    "SQUAREM",
    "Adjoint",
    "Anderson",
    "BackwardReport",
    "BiCGStab",
    "Broyden",
    "Budget",
    "Communicator",
    "ConjugateGradient",
    "Control",
    "ConvergenceError",
    "ConvergenceWarning",
    "DomainError",
    "Fallback",
    "ImplicitAdjoint",
    "JacobianFree",
    "LevenbergMarquardt",
    "Map",
    "NeumannSeries",
    "Newton",
    "NewtonKrylov",
    "PhantomGradient",
    "Picard",
    "Progress",
    "PseudoTransient",
    "SharedInverse",
    "Solution",
    "Status",
    "Trace",
    "Unrolled",
    "Work",
    "bracketed_root",
    "default_solver",
    "fixed_point",
    "implicit_jvp",
    "implicit_vjp",
    "operators",
    "root",
    "spectral_norm",
    "spectral_radius",
    "steps",
]


def __dir__() -> list[str]:
    """What is public."""
    return [*__all__, "__version__"]
