"""Containers of arrays: lists, tuples, named tuples and dictionaries, nested at
will.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Structure:
    """The shape of a container: its type, its keys and its children; ``kind=None`` is a
    leaf.

    Two containers match if and only if their structures are equal, in whatever order
    their keys are: `order` is that of the container itself, which is rebuilt in it.
    """

    kind: Any
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()
    order: tuple[Any, ...] = field(default=(), compare=False)

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """Put `leaves`, in the order of :func:`flatten`, back into the container."""
        return self._build(iter(leaves))

    def match(self, tree: Any) -> list[Any] | None:
        """The leaves of `tree` if it has this structure, else None."""
        leaves, structure = flatten(tree)
        return leaves if structure == self else None

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind is None:
            return next(leaves)
        parts = [
            next(leaves) if child.kind is None else child._build(leaves)
            for child in self.children
        ]
        if self.kind is type(None):
            return None
        if issubclass(self.kind, dict):
            by_key = dict(zip(self.keys, parts, strict=True))
            return self.kind([(key, by_key[key]) for key in self.order])
        return self.kind(*parts) if hasattr(self.kind, "_fields") else self.kind(parts)


LEAF = Structure(None)


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """The leaves of `tree`, depth first, and its structure.

    Examples
    --------
    >>> leaves, structure = flatten({"a": 1.0, "b": (2.0, [3.0])})
    >>> leaves
    [1.0, 2.0, 3.0]
    >>> structure.rebuild([4.0, 5.0, 6.0])
    {'a': 4.0, 'b': (5.0, [6.0])}
    """
    leaves: list[Any] = []
    return leaves, _descend(tree, leaves)


def _descend(tree: Any, leaves: list[Any]) -> Structure:
    keys: tuple[Any, ...] = ()
    order: tuple[Any, ...] = ()
    if isinstance(tree, dict):
        order = tuple(tree)
        keys = tuple(sorted(tree, key=str))  # {a, b} and {b, a} are one container
        parts = [tree[key] for key in keys]
    elif isinstance(tree, (list, tuple)):
        parts = list(tree)
    elif tree is None:
        parts = []
    else:
        leaves.append(tree)
        return LEAF
    children = tuple([_descend(part, leaves) for part in parts])
    return Structure(type(tree), keys, children, order)


def paired(function: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """What a function makes of the leaves of two tuples, nested alike.

    Where one is None, the other may be a tuple, and both are leaves.
    """
    if not (isinstance(a, tuple) and isinstance(b, tuple)):
        return function(a, b)
    parts = [paired(function, *pair) for pair in zip(a, b, strict=True)]
    return type(b)(*parts) if hasattr(b, "_fields") else tuple(parts)


def paths(tree: Any, prefix: str) -> list[str]:
    """A name for each leaf of `tree`, for messages, such as ``z0['a'][1]``.

    Examples
    --------
    >>> paths({"a": 1.0, "b": (2.0, 3.0)}, "z0")
    ["z0['a']", "z0['b'][0]", "z0['b'][1]"]
    """
    if isinstance(tree, dict):
        parts = [(f"{prefix}[{key!r}]", tree[key]) for key in sorted(tree, key=str)]
    elif isinstance(tree, (list, tuple)):
        parts = [(f"{prefix}[{index}]", part) for index, part in enumerate(tree)]
    else:
        return [] if tree is None else [prefix]
    return [name for path, part in parts for name in paths(part, path)]
