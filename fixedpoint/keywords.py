"""Keywords, and what other libraries call them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type[Any])
Function = TypeVar("Function", bound=Callable[..., Any])

# What other libraries call some of the keywords.
_HERE = {
    "M": ("memory=",),
    "a": ("lower=",),
    "b": ("upper=",),
    "b_max_iter": ("adjoint=ImplicitAdjoint(max_steps=)",),
    "b_solver": ("adjoint=ImplicitAdjoint(solver=)",),
    "b_tol": ("adjoint=ImplicitAdjoint(rtol=)",),
    "beta": ("damping=",),
    "bounds": ("project=",),
    "bracket": ("lower=, upper=",),
    "disp": ("on_failure=",),
    "f_max_iter": ("max_steps=",),
    "f_rtol": ("rtol=",),
    "f_solver": ("solver=",),
    "f_stop_mode": ("test=",),
    "f_tol": ("rtol=", "atol="),
    "fprime": ("jacobian=",),
    "grad": ("adjoint=PhantomGradient(steps=)",),
    "history_size": ("memory=",),
    "ift": ("adjoint=",),
    "implicit_diff": ("adjoint=",),
    "implicit_diff_solve": ("adjoint=ImplicitAdjoint(solver=)",),
    "inner_M": ("preconditioner=",),
    "iter": ("max_steps=",),
    "jac": ("jacobian=",),
    "linear_solver": ("linear=", "solver="),
    "m": ("memory=", "restart="),
    "max_iter": ("max_steps=",),
    "maxfev": ("budget=Budget(evaluations=)",),
    "maxiter": ("max_steps=",),
    "method": ("solver=",),
    "ridge": ("regularization=",),
    "stop_mode": ("test=",),
    "tau": ("damping=",),
    "throw": ('on_failure="return"',),
    "tol": ("rtol=", "atol="),
    "tol_norm": ("norm=",),
    "unroll": ("adjoint=Unrolled()",),
    "verbose": ("callback=Progress()",),
    "x_rtol": ("rtol=",),
    "x_tol": ("atol=",),
    "xtol": ("rtol=",),
}

# What a call or a layer takes, and the settings of a method do not.
OF_CALLS = frozenset(
    {
        "adjoint",
        "atol",
        "jacobian",
        "max_steps",
        "norm",
        "on_failure",
        "preconditioner",
        "rtol",
        "solver",
        "test",
    }
)


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
    >>> unexpected("rtol", ["memory", "damping"])
    "unexpected keyword argument 'rtol': it is one of the call or layer"
    """
    said, here = f"unexpected keyword argument {name!r}", _HERE.get(name, ())
    own = [text for text in here if text.partition("=")[0] in known]
    others = [text for text in here if text.partition("=")[0] in OF_CALLS]
    if own:
        return f"{said}: here it is {' or '.join(own)}"
    if not OF_CALLS.isdisjoint(known):
        return said
    if name in OF_CALLS:
        return f"{said}: it is one of the call or layer"
    if others:
        return f"{said}: here it is {' or '.join(others)} of the call or layer"
    return said


def known_by_name(function: Function) -> Function:
    """A function whose error for a keyword that it does not take may say what it is
    called here.

    Examples
    --------
    >>> @known_by_name
    ... def find(F, *, rtol=1e-6):
    ...     pass
    >>> find(abs, tol=1e-3)
    Traceback (most recent call last):
    ...
    TypeError: find() got an unexpected keyword argument 'tol': here it is rtol=
    """
    known = signature(function).parameters.keys()

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        for key in given.keys() - known:
            raise TypeError(f"{function.__name__}() got an {unexpected(key, known)}")
        return function(*args, **given)

    return checked  # type: ignore[return-value]


def by_position(method: Function) -> Function:
    """A method of a layer whose error for an input that is given by name says how to
    give it.
    """
    names = [key for key in signature(method).parameters if key != "self"]
    known = {key for key in names if key != "inputs"}

    @wraps(method)
    def checked(*args: Any, **given: Any) -> Any:
        for key in given.keys() - known:
            raise TypeError(
                "a layer takes the inputs of its cell by position, and by name "
                f"{', '.join(sorted(known))}: got {key}="
            )
        return method(*args, **given)

    return checked  # type: ignore[return-value]


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
