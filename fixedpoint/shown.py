"""Representations that stay short, whatever arrays they are of."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from fixedpoint.adapters import backend_of_state, type_name

# So many entries of an array are shown.
_SHORT = 6


def brief(value: Any) -> str:
    """A representation in one line, in which long arrays are what they are like.

    Examples
    --------
    >>> import numpy as np
    >>> brief({"z": np.zeros((40, 3)), "steps": (1, np.ones(2))})
    "{'z': <numpy.ndarray of shape (40, 3), float64>, 'steps': (1, array([1., 1.]))}"
    """
    if type(value) is dict:
        return f"{{{', '.join(f'{k!r}: {brief(v)}' for k, v in value.items())}}}"
    if type(value) is list:
        return f"[{', '.join(map(brief, value))}]"
    if type(value) is tuple:
        return f"({', '.join(map(brief, value))}{',' * (len(value) == 1)})"
    shape, dtype = (getattr(value, name, None) for name in ("shape", "dtype"))
    if isinstance(shape, tuple) and dtype is not None and math.prod(shape) > _SHORT:
        return f"<{type_name(value)} of shape {tuple(shape)}, {dtype}>"
    return " ".join(repr(value).split())


def glimpse(value: Any) -> str:
    """An array in a line, its head if it is long; what another container holds."""
    backend = backend_of_state(value, "value")  # which may know the container alone
    leaves, _ = backend.flatten(value)
    if len(leaves) != 1 or leaves[0] is not value:
        arrays = "an array" if len(leaves) == 1 else f"{len(leaves)} arrays"
        return f"{type(value).__name__} of {arrays}"
    shape = f"{type_name(value)} of shape {tuple(value.shape)}, {value.dtype}"
    if backend.is_traced((value,)):
        return shape
    entries = backend.numpy(value).reshape(-1)
    head = ", ".join(f"{entry:.6g}" for entry in entries[:_SHORT].tolist())
    return f"{head}{', ...' if len(entries) > _SHORT else ''} ({shape})"


def represented(settings: Any) -> str:
    """That of a dataclass, as its ``__repr__``."""
    shown = [f.name for f in fields(settings) if f.repr]
    parts = [f"{name}={brief(getattr(settings, name))}" for name in shown]
    return f"{type(settings).__qualname__}({', '.join(parts)})"


def changed_settings(made_by: Callable[..., Any], now: Mapping[str, Any]) -> list[str]:
    """The keyword settings that differ from the defaults of what takes them, as they
    are written in a call.

    Examples
    --------
    >>> def solve(f, *, memory=5, damping=1.0): ...
    >>> changed_settings(solve, {"f": None, "memory": 3, "damping": 1.0})
    ['memory=3']
    """
    found = inspect.signature(made_by).parameters.values()
    settings = [entry for entry in found if entry.kind is entry.KEYWORD_ONLY]
    return [
        f"{entry.name}={brief(now[entry.name])}"
        for entry in settings
        if repr(now[entry.name]) != repr(entry.default)
    ]
