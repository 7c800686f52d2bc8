"""How derivatives of a solution are formed."""

from fixedpoint.adjoints.base import Adjoint, AdjointSystem, LinearAdjoint
from fixedpoint.adjoints.implicit import ImplicitAdjoint
from fixedpoint.adjoints.named import as_adjoint
from fixedpoint.adjoints.series import JacobianFree, NeumannSeries, PhantomGradient
from fixedpoint.adjoints.shared_inverse import SharedInverse
from fixedpoint.adjoints.unrolled import Unrolled

__all__ = [
    "Adjoint",
    "AdjointSystem",
    "ImplicitAdjoint",
    "JacobianFree",
    "LinearAdjoint",
    "NeumannSeries",
    "PhantomGradient",
    "SharedInverse",
    "Unrolled",
    "as_adjoint",
]
