"""What messages tell a caller to do about containers and arrays."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from fixedpoint import tree
from fixedpoint.adapters import is_convertible, of_one_backend, type_name
from fixedpoint.backend import Array, Vec

# What makes an array of a library, for messages.
CONVERSIONS = {
    "torch": "torch.as_tensor",
    "jax": "jnp.asarray",
    "jaxlib": "jnp.asarray",
}


def stacked(parts: Any, like: Array, what: str) -> str:
    """What to do where an array was expected, and a list or a tuple came."""
    if type(parts) not in (list, tuple):
        return ""
    convert = CONVERSIONS.get(type(like).__module__.partition(".")[0], "np.asarray")
    remedy = f". Make it one array, by {convert.partition('.')[0]}.stack"
    is_pair = type(parts) is tuple and len(parts) == 2 and what in ("f", "F")
    has_aux = ", or for a pair (z, aux) give fixed_point or root has_aux=True"
    return remedy + has_aux * is_pair


def not_square(what: str, new: Array, old: Array, name: str) -> str:
    """What to do where a root has another number of equations than of unknowns."""
    if not old.shape and what in ("f", "F"):
        return f". Is the unknown an array? Then give {name} its shape"
    if what != "F" or name != "x0" or math.prod(new.shape) == math.prod(old.shape):
        return ""
    return (
        ". root() solves square systems, of as many equations as unknowns, not least "
        "squares: for these find a root of Jᵀ F, the gradient of ‖F‖²/2, or use "
        "scipy.optimize.least_squares"
    )


def remedy_of(like: Any, what: str) -> str:
    """What to do, so that all is of the library of `like`, if it is one of these."""
    convert = CONVERSIONS.get(type(like).__module__.partition(".")[0])
    return "" if convert is None else f". {what} as {convert}(...)"


def returned_as(old: Array, new: Any) -> str:
    """What to do where f returned `new` for an array like the old one."""
    what = "Return it"
    table = type(old) is np.ndarray and is_convertible(new)
    return f". {what} as np.asarray(...)" if table else remedy_of(old, what)


def note_mixture(
    error: Exception, value: Vec, args: Any, name: str, of: str = "args"
) -> None:
    """Note on an error of f that the state and an argument are of two libraries."""
    leaves, paths = tree.flatten(args)[0], tree.paths(args, of)
    for leaf, path in zip(leaves, paths, strict=True):
        remedy = remedy_of(leaf, f"Give {name}") or remedy_of(value[0], f"Give {path}")
        if remedy and hasattr(leaf, "dtype") and not of_one_backend(leaf, value[0]):
            kinds = f"{name} is a {type_name(value[0])}, {path} a {type_name(leaf)}"
            error.add_note(kinds if remedy in str(error) else kinds + remedy)
            return


def note_number(error: Exception, state: Any, name: str) -> None:
    """Note on an error of f that its state is a number, or a tuple of numbers."""
    text = str(error)
    if getattr(state, "shape", None) == ():
        if re.search(r"dimension|0-d|iterat|len\(", text):
            error.add_note(
                f"{name} is a number, without axes. For a vector of one entry give an "
                "array of one, or a list"
            )
    elif type(state) is tuple and re.search("tuple|sequence", text):
        error.add_note(
            f"{name} is a tuple, so f is called with a tuple. For a vector give an "
            "array, or a list of numbers"
        )
