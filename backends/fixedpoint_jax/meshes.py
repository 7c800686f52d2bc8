"""Solves on meshes whose axes are explicit, as those of ``jax.make_mesh``.

There a type says how an array is laid out, and every operation must say how its result
is. A solver leaves that to the compiler: it runs on the same mesh with automatic axes,
and its results go back to where the start lies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fixedpoint.backend import Vec
from fixedpoint.iterate import Iteration

_SPEC: Any = PartitionSpec


def is_explicit(leaves: Vec) -> bool:
    """Whether some of the leaves lie on a mesh with explicit axes."""
    return any(map(_has_explicit_axes, leaves))


def solved(
    batch_ndim: int, value: Vec, args: Vec, attach: Callable[[Vec, Vec], Iteration]
) -> Iteration:
    """What `attach` gives, with automatic axes inside."""
    leaves = *value, *args
    (mesh, *_) = [_mesh(leaf) for leaf in leaves if _has_explicit_axes(leaf)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        types = dict.fromkeys(mesh.explicit_axes, jax.sharding.AxisType.Auto)
        mesh, inside = mesh.abstract_mesh, mesh.abstract_mesh.update_axis_types(types)
        context: Any = jax.sharding.use_abstract_mesh(inside)
        # What the compiler chooses is not said in a type.
        move, there = _typed, lambda leaf: _typed(leaf, inside, _SPEC())
    else:
        inside = Mesh(mesh.devices, mesh.axis_names)
        context = jax.set_mesh(inside)
        move, there = _put, lambda leaf: _put(leaf, inside, _spec(leaf))
    with context:
        end = attach(tuple(map(there, value)), tuple(map(there, args)))
    return _back(end, value, batch_ndim, partial(move, mesh=mesh))


def _back(
    end: Iteration, start: Vec, batch_ndim: int, move: Callable[..., Any]
) -> Iteration:
    """The solution and histories spread as the start, and what there is of each sample
    as these.
    """
    like, n = start[0], batch_ndim
    spec = (*_spec(like), *(None,) * like.ndim)[: like.ndim]

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if (*leaf.shape[:n], *leaf.shape[n + 1 :]) == like.shape:
            return move(leaf, spec=_SPEC(*spec[:n], None, *spec[n:]))
        is_batched = leaf.shape[:n] == like.shape[:n]
        return move(leaf, spec=_SPEC(*(spec[:n] if is_batched else ())))

    pairs = zip(end.value, start, strict=True)
    value = tuple([move(leaf, spec=_spec(first)) for leaf, first in pairs])
    rest: Iteration = jax.tree.map(moved, end._replace(value=()))
    return rest._replace(value=value)


def _typed(leaf: Any, mesh: Any, spec: Any) -> Any:
    reshard: Any = jax.sharding.reshard
    return reshard(leaf, NamedSharding(mesh, spec))


def _put(leaf: Any, mesh: Any, spec: Any) -> Any:
    return jax.device_put(leaf, NamedSharding(mesh, spec))


def _mesh(leaf: Any) -> Any:
    """The mesh on which a leaf lies, if that is known."""
    return getattr(_sharding(leaf), "mesh", None)


def _has_explicit_axes(leaf: Any) -> bool:
    return bool(getattr(_mesh(leaf), "explicit_axes", ()))


def _spec(leaf: Any) -> Any:
    """How a leaf is spread; not at all if that is not known."""
    found = getattr(_sharding(leaf), "spec", None)
    return _SPEC() if found is None else found


def _sharding(leaf: Any) -> Any:
    """That of an array, or of a tracer what its type says."""
    holder = jax.typeof(leaf) if isinstance(leaf, jax.core.Tracer) else leaf
    return getattr(holder, "sharding", None)
