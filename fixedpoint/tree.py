"""Containers of arrays: lists, tuples, named tuples and dictionaries, nested at
will.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Structure:
    """The shape of a container: its type, its keys and its children; ``kind=None`` is a
    leaf.

    Two containers match if and only if their structures are equal.
    """

    kind: Any
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """Put `leaves`, in the order of :func:`flatten`, back into the container."""
        return self._build(iter(leaves))

    def match(self, tree: Any) -> list[Any] | None:
        """The leaves of `tree` if it has this structure, else None.

        Of many leaves this is faster than to compare structures.
        """
        leaves: list[Any] = []
        return leaves if self._match(tree, leaves) else None

    def _match(self, tree: Any, leaves: list[Any]) -> bool:
        if self.kind is None:
            leaves.append(tree)
            return not (tree is None or isinstance(tree, _CONTAINERS))
        if type(tree) is not self.kind:
            return False
        if tree is None:
            return True
        if len(tree) != len(self.children):
            return False
        if isinstance(tree, dict):
            parts = [tree.get(key) for key in self.keys]
        else:
            parts = list(tree)
        if all(child.kind is None for child in self.children):
            leaves += parts
            return not any(
                part is None or isinstance(part, _CONTAINERS) for part in parts
            )
        pairs = zip(self.children, parts, strict=True)
        return all(child._match(part, leaves) for child, part in pairs)

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
            return self.kind(zip(self.keys, parts, strict=True))
        return self.kind(*parts) if hasattr(self.kind, "_fields") else self.kind(parts)


LEAF = Structure(None)

_CONTAINERS = (dict, list, tuple)


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
    kind = type(tree)
    if isinstance(tree, dict):
        keys = tuple(sorted(tree, key=str))  # {a, b} and {b, a} are one container
        return Structure(kind, keys, tuple(_descend(tree[key], leaves) for key in keys))
    if isinstance(tree, (list, tuple)):
        return Structure(kind, (), tuple(_descend(part, leaves) for part in tree))
    if tree is None:
        return Structure(kind)
    leaves.append(tree)
    return LEAF


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
