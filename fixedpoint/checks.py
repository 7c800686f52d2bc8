"""Checks of settings."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Mapping
from itertools import pairwise
from numbers import Real
from operator import index
from types import ModuleType
from typing import Any, TypeVar

Choice = TypeVar("Choice")

# Those that are usual come first: to ask an abstract class takes longer.
_NUMBERS = (float, int, Real)

# What `upper` is called where it is no bound of its own.
_POSITIVE = {math.inf: "positive", sys.float_info.max: "positive and finite"}


def check_positive(name: str, value: float, upper: float = sys.float_info.max) -> None:
    """Raise ValueError unless 0 < value ≤ upper, which is math.inf for what may be
    without limit.
    """
    check_number(name, value)
    if not 0.0 < value <= upper:
        bound = _POSITIVE.get(upper, f"in (0, {upper:g}]")
        raise ValueError(f"{name} must be {bound}, got {value!r}")


def check_number(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a real number."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_bound(name: str, value: Any) -> None:
    """Raise unless `value`, which is no array, is a finite number, not negative."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise TypeError(f"{name} must be a number or an array, got {value!r}")
    if not 0 <= float(value) < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")


def check_bounds(name: str, values: Any, backend: Any) -> None:
    """Raise if an entry of an array, unless of a trace, is not such a number."""
    sound = (values >= 0) & (values < float("inf"))
    if backend.is_array(sound):
        is_sound = backend.is_traced((sound,)) or backend.known_all(sound)
    else:
        is_sound = bool(sound.all())
    if not is_sound:
        raise ValueError(f"{name} must be finite and not negative, got {values!r}")


def check_function(name: str, f: Any, args: Any) -> None:
    """Raise TypeError unless `f` can be called, and `args` is a tuple."""
    check_given(name, f)
    if not isinstance(args, tuple):
        kind = type(args).__name__
        raise TypeError(f"args must be a tuple, got {kind}: write args=(x,)")


def check_given(name: str, f: Any) -> None:
    """Raise TypeError unless `f` can be called, and is no class in place of one of its
    callable objects.
    """
    if not callable(f):
        raise TypeError(f"{name} must be callable, got {_named(f)}")
    if isinstance(f, type) and any("__call__" in vars(base) for base in f.__mro__):
        raise TypeError(
            f"{name} must be a function or a callable object, got the class "
            f"{f.__name__}: give {f.__name__}(...)"
        )


def _named(f: Any) -> str:
    """What something is that cannot be called, with what may tell it was not meant."""
    if isinstance(f, ModuleType):
        return f"the module {f.__name__}: give a function of it"
    if isinstance(f, (tuple, list)):
        kinds = ", ".join(type(entry).__name__ for entry in f)
        return f"a {type(f).__name__} of {kinds or 'nothing'}"
    return type(f).__name__


def check_callable(name: str, value: Any) -> None:
    """Raise TypeError unless `value` can be called, or is None."""
    if value is not None and not callable(value):
        got = type(value).__name__ if hasattr(value, "shape") else repr(value)
        raise TypeError(f"{name} must be callable, got {got}")


def check_preconditioner(given: Any) -> None:
    """Raise TypeError unless `given` can be called for a preconditioner, or is None."""
    is_operator = hasattr(given, "matvec") and hasattr(given, "shape")
    is_matrix = hasattr(given, "shape") or hasattr(given, "solve")
    if is_operator or (is_matrix and not callable(given)):
        raise TypeError(
            "preconditioner must be a function of z and args that returns v ↦ Pv, got "
            f"{type(given).__name__}: for the same P everywhere write lambda *_: P, or "
            "for a matrix lambda *_: lambda v: P @ v"
        )
    check_callable("preconditioner", given)


def check_takes(name: str, function: Any, given: tuple[str, ...]) -> None:
    """Raise TypeError if it is known that `function` cannot be called with `given`."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(*given)
    except TypeError:
        called = f"{name}({', '.join(given)})"
        raise TypeError(
            f"{name} is called as {called}, but takes {signature}"
        ) from None


def check_count(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is an integer, `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer, {least} or more, got {value!r}")


def checked_steps(steps: Any) -> tuple[int, ...]:
    """The `steps` at which states are asked for.

    Raises
    ------
    TypeError
        If they are no integers.
    ValueError
        If one is negative, or less than the one before it.
    """
    expected = "steps must be integers, 0 or more, in ascending order"
    wrong = TypeError(f"{expected}, got {steps!r}")
    try:
        given = tuple(steps)
        found = tuple(map(index, given))
    except TypeError:
        raise wrong from None
    if any(isinstance(step, bool) for step in given):
        raise wrong
    if any(later < step for step, later in pairwise((0, *found))):
        raise ValueError(f"{expected}, got {steps!r}")
    return found


def check_cell(cell: Any) -> None:
    """Raise TypeError unless the cell of a layer can be called, and if it is a class,
    of which none was made yet.
    """
    if isinstance(cell, type):
        name = cell.__name__
        raise TypeError(
            f"cell must be a function or a module, got the class {name}: give {name}()"
        )
    if not callable(cell):
        raise TypeError(f"cell must be a function or a module, got {_named(cell)}")


def chosen(
    argument: str,
    given: Any,
    base: type[Any],
    known: Mapping[str, type[Choice]],
    example: str,
) -> Choice:
    """What is `given`, or if that is a name what `known` has under it, by its defaults.

    Case, hyphens and underscores do not matter, and the name of a class is one, too.

    Raises
    ------
    ValueError
        If there is no such name.
    TypeError
        If it is neither a name nor a `base`, of which `example` says what it may be.
    """
    if isinstance(given, str):
        named = {_letters(kind.__name__): kind for kind in known.values()}
        named |= {_letters(key): kind for key, kind in known.items()}
        if _letters(given) not in named:
            names = ", ".join(known)
            raise ValueError(f"{argument} must be one of {names}, got {given!r}")
        return named[_letters(given)]()
    if not isinstance(given, base):
        raise TypeError(
            f"{argument} must be {example}, or the name of one, got {given!r}"
        )
    found: Choice = given
    return found


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
