"""How derivatives of a solution are formed."""

from typing import Any

from fixedpoint.adjoints.base import Adjoint, LinearAdjoint
from fixedpoint.adjoints.implicit import ImplicitAdjoint
from fixedpoint.adjoints.series import JacobianFree, NeumannSeries, PhantomGradient
from fixedpoint.adjoints.shared_inverse import SharedInverse
from fixedpoint.adjoints.system import AdjointSystem
from fixedpoint.adjoints.unrolled import Unrolled
from fixedpoint.checks import chosen

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

_NAMES: dict[str, type[Adjoint]] = {
    "implicit": ImplicitAdjoint,
    "jacobian_free": JacobianFree,
    "neumann_series": NeumannSeries,
    "phantom_gradient": PhantomGradient,
    "shared_inverse": SharedInverse,
    "unrolled": Unrolled,
}


def as_adjoint(given: Any) -> Adjoint:
    """An adjoint as it is given, or the one of that name with its default settings.

    Examples
    --------
    >>> as_adjoint("JacobianFree")
    JacobianFree()
    """
    example = "an adjoint such as ImplicitAdjoint()"
    return chosen("adjoint", given, Adjoint, _NAMES, example)
