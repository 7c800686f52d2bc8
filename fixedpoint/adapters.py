"""How the core finds the adapter for an array library.

A package announces its adapter by an entry point of the group ``fixedpoint.backends``
whose name is the top-level module of the array type (``torch``, ``jax``, ``jaxlib``),
so that the core imports no framework.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from fixedpoint import tree
from fixedpoint.backend import Backend
from fixedpoint.numpy_backend import NumpyBackend


@cache
def announced() -> dict[str, Any]:
    """What announces an adapter, by module: to look for these takes milliseconds."""
    return {entry.name: entry for entry in entry_points(group="fixedpoint.backends")}


@cache
def _adapter(module: str) -> Backend | None:
    entry = announced().get(module)
    return None if entry is None else _only(entry.load())


@cache
def _only(adapter: Any) -> Backend:
    """The one instance of an adapter, which several modules may announce."""
    backend: Backend = adapter()
    return backend


_numpy, _any = NumpyBackend(), Backend()
_NUMBERS = (int, float, complex, np.number)


@cache
def _backend_of_type(kind: Any) -> Backend:
    """The adapter announced for a module that `kind`, or a class it inherits from,
    comes from; NumPy's for numbers, and for what is no array at all.
    """
    for ancestor in kind.__mro__:
        adapter = _adapter(ancestor.__module__.partition(".")[0])
        if adapter is not None:
            return adapter
    foreign = hasattr(kind, "dtype") and not issubclass(kind, (np.ndarray, np.generic))
    return _any if foreign else _numpy


def backend_of(
    leaves: Sequence[Any], names: Sequence[str], whole: str = "z0"
) -> Backend:
    """The one backend of all `leaves`, which have these `names` in the container
    `whole`.

    Raises
    ------
    TypeError
        If a leaf is no array, or two leaves belong to different backends.
    """
    if not leaves:
        raise ValueError(f"{names[0] if names else whole} holds no array")
    kinds: list[Any] = list(map(type, leaves))
    backend = _backend_of_type(kinds[0])
    for leaf, kind, name in zip(leaves, kinds, names, strict=True):
        if _backend_of_type(kind) is not backend:
            raise TypeError(
                f"{name} is a {type_name(leaf)}, but {names[0]} is a "
                f"{type_name(leaves[0])}: all leaves must come from one array library"
            )
        if not backend.is_array(backend.leaf(leaf)):
            remedy = ". Give it as np.asarray(...)" if is_convertible(leaf) else ""
            raise TypeError(
                f"{name} must be a floating-point array, got {type_name(leaf)}{remedy}"
            )
    return backend


def backend_of_state(container: Any, whole: str) -> Backend:
    """The backend of a container's leaves, `name` what it is called.

    A container that only a framework knows, as a registered pytree, belongs to that
    framework.
    """
    leaves = tree.flatten(container)[0]
    for module in () if all(map(_is_known, leaves)) else announced():
        if module not in sys.modules:
            continue
        backend = _adapter(module)
        inside = backend.flatten(container)[0] if backend else []
        if backend and inside and all(map(backend.is_array, inside)):
            return backend
    try:
        return backend_of(leaves, tree.paths(container, whole), whole)
    except TypeError as error:
        if not all(hasattr(x, "dtype") or is_convertible(x) for x in leaves):
            error.add_note(
                f"{whole} holds what is solved for: arrays, in lists, tuples, dicts or "
                "pytrees of JAX. All else belongs in args"
            )
        raise


def is_number(leaf: Any) -> bool:
    """Whether `leaf` is a number of Python or NumPy, and not an array without axes."""
    return isinstance(leaf, _NUMBERS)


def is_convertible(value: Any) -> bool:
    """Whether this is no array of a known library, but NumPy makes one of it, as of a
    table or a matrix. Of masks it would lose some.
    """
    kind: Any = type(value)
    known = _backend_of_type(kind) not in (_numpy, _any)
    masked = isinstance(value, np.ma.MaskedArray)
    return hasattr(value, "__array__") and not known and not masked


def _is_known(leaf: Any) -> bool:
    """Whether a leaf is an array, or a number, itself."""
    return isinstance(leaf, (int, float, complex)) or hasattr(leaf, "dtype")


def numbers(container: Any) -> Any:
    """A list of numbers, or of such lists, as a NumPy array; all else as it is."""
    if not isinstance(container, list):
        return container
    leaves, _ = tree.flatten(container)
    plain = all(isinstance(leaf, (int, float, complex)) for leaf in leaves)
    lists = plain and bool(leaves) and _are_lists(container)
    return np.asarray(container) if lists else container


def row(returned: Any, shape: tuple[int, ...]) -> Any:
    """A list of numbers that f returned for an array, or a tuple of as many as this
    has, as an array; all else as it is.
    """
    if type(returned) is tuple and shape != (len(returned),):
        return returned
    if type(returned) not in (list, tuple) or not returned:
        return returned
    if all(isinstance(entry, _NUMBERS) for entry in returned):
        return np.asarray(returned)
    return numbers(returned)


def _are_lists(container: Any) -> bool:
    """Whether nothing but lists is nested here."""
    if not isinstance(container, list):
        return not isinstance(container, (dict, tuple)) and container is not None
    return all(map(_are_lists, container))


def of_one_backend(a: Any, b: Any) -> bool:
    """Whether `a` and `b` are arrays of the same library."""
    kinds: list[Any] = [type(a), type(b)]
    first, second = map(_backend_of_type, kinds)
    return first is second and hasattr(a, "dtype") and hasattr(b, "dtype")


def type_name(value: Any) -> str:
    """The full name of the type of `value`; of JAX's many types, the public one."""
    kind = type(value)
    if kind.__module__.partition(".")[0] in ("jax", "jaxlib"):
        return "jax.Array"
    return f"{kind.__module__}.{kind.__qualname__}"
