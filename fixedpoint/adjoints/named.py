"""Adjoints by name."""

from __future__ import annotations

from functools import cache
from typing import Any

from fixedpoint.adjoints.base import Adjoint
from fixedpoint.adjoints.implicit import ImplicitAdjoint
from fixedpoint.adjoints.series import JacobianFree, NeumannSeries, PhantomGradient
from fixedpoint.adjoints.shared_inverse import SharedInverse
from fixedpoint.adjoints.unrolled import Unrolled
from fixedpoint.checks import by_name

ADJOINTS: dict[str, type[Adjoint]] = {
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
    if isinstance(given, str):
        return _named(given)
    if not isinstance(given, Adjoint):
        raise TypeError(
            "adjoint must be an adjoint such as ImplicitAdjoint(), or the name of one, "
            f"got {given!r}"
        )
    return given


@cache
def _named(name: str) -> Adjoint:
    return by_name("adjoint", name, ADJOINTS)()
