"""Solvers by name."""

from __future__ import annotations

from functools import cache
from typing import Any

from fixedpoint.checks import by_name
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.base import Solver
from fixedpoint.solvers.broyden import Broyden
from fixedpoint.solvers.levenberg_marquardt import LevenbergMarquardt
from fixedpoint.solvers.newton import Newton
from fixedpoint.solvers.newton_krylov import NewtonKrylov
from fixedpoint.solvers.picard import Picard
from fixedpoint.solvers.pseudo_transient import PseudoTransient
from fixedpoint.solvers.squarem import SQUAREM

SOLVERS: dict[str, type[Solver]] = {
    "anderson": Anderson,
    "broyden": Broyden,
    "levenberg_marquardt": LevenbergMarquardt,
    "newton": Newton,
    "newton_krylov": NewtonKrylov,
    "picard": Picard,
    "pseudo_transient": PseudoTransient,
    "squarem": SQUAREM,
}


def as_solver(given: Any, argument: str = "solver") -> Solver:
    """A solver as it is given, or the one of that name with its default settings.

    Examples
    --------
    >>> as_solver("Newton-Krylov").name
    'NewtonKrylov'
    >>> as_solver("bisection")  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ValueError: solver must be one of anderson, broyden, levenberg_marquardt, newton,
    newton_krylov, picard, pseudo_transient, squarem, got 'bisection'
    """
    if isinstance(given, str):
        return _named(argument, given)
    if not isinstance(given, Solver):
        raise TypeError(
            f"{argument} must be a solver object such as Anderson(), or the name of "
            f"one, got {given!r}"
        )
    return given


@cache
def _named(argument: str, name: str) -> Solver:
    return by_name(argument, name, SOLVERS)()
