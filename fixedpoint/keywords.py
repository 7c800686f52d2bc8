"""Keywords, and what other libraries call them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type[Any])

# What other libraries call some of the keywords.
_HERE = {
    "M": ("memory=",),
    "beta": ("damping=",),
    "f_max_iter": ("max_steps=",),
    "f_solver": ("solver=",),
    "f_tol": ("rtol=", "atol="),
    "fprime": ("jacobian=",),
    "history_size": ("memory=",),
    "jac": ("jacobian=",),
    "m": ("memory=", "restart="),
    "max_iter": ("max_steps=",),
    "maxiter": ("max_steps=",),
    "method": ("solver=",),
    "ridge": ("regularization=",),
    "tau": ("damping=",),
    "throw": ('on_failure="return"',),
    "tol": ("rtol=", "atol="),
    "xtol": ("rtol=",),
}

# What a call or a layer takes, and the settings of a method do not.
OF_CALLS = frozenset({"atol", "jacobian", "max_steps", "on_failure", "rtol", "solver"})


def unexpected(name: str, known: Collection[str]) -> str:
    """What to say of a keyword that is none of those `known`.

    Examples
    --------
    >>> unexpected("tol", ["max_steps", "rtol"])
    "unexpected keyword argument 'tol': here it is rtol="
    >>> unexpected("tol", ["memory"])
    "unexpected keyword argument 'tol': here it is rtol= or atol= of the call or layer"
    >>> unexpected("speed", ["memory", "damping"])
    "unexpected keyword argument 'speed'"
    """
    said, here = f"unexpected keyword argument {name!r}", _HERE.get(name, ())
    own = [text for text in here if text.partition("=")[0] in known]
    others = [text for text in here if text.partition("=")[0] in OF_CALLS]
    if own:
        return f"{said}: here it is {' or '.join(own)}"
    if others:
        return f"{said}: here it is {' or '.join(others)} of the call or layer"
    return said


def by_name(kind: Kind) -> Kind:
    """A class of settings whose errors for what it does not take say what it takes.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @by_name
    ... @dataclass(frozen=True, kw_only=True)
    ... class Method:
    ...     memory: int = 5
    >>> Method(m=3)
    Traceback (most recent call last):
    ...
    TypeError: Method got an unexpected keyword argument 'm': here it is memory=
    """
    init: Callable[..., None] = kind.__init__
    own = list(signature(init).parameters.values())[1:]
    settings = [entry.name for entry in own if entry.kind is entry.KEYWORD_ONLY]
    places = [entry.name for entry in own if entry.name not in settings]

    @wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        name = type(self).__name__
        if len(args) > len(places):
            raise TypeError(_misplaced(name, args, places, settings))
        for key in given.keys() - {*places, *settings}:
            said = unexpected(key, settings)
            takes = "" if ":" in said else f": it takes {', '.join(settings)}"
            raise TypeError(f"{name} got an {said}{takes}")
        init(self, *args, **given)

    kind.__init__ = checked
    return kind


def _misplaced(
    name: str, args: tuple[Any, ...], places: list[str], settings: list[str]
) -> str:
    """What to say where too much is given by position."""
    but = f" all but {' and '.join(places)}" if places else " its settings"
    return (
        f"{name} takes{but} by name, got {args[len(places)]!r} by position: it takes "
        f"{', '.join(settings)}"
    )
