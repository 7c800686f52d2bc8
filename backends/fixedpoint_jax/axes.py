"""States that are spread over the axes of a mesh, inside ``jax.shard_map``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fixedpoint.communicator import Communicator, Reduction

_REDUCTIONS: dict[str, Any] = {"sum": jax.lax.psum, "max": jax.lax.pmax}


@dataclass(frozen=True)
class MeshAxes(Communicator):
    """Joins the devices of a mesh inside ``jax.shard_map``.

    Outside of it, under ``jit`` with sharded arrays, nothing is needed: the compiler
    communicates. Before JAX 0.7 ``shard_map`` needs ``check_vma=False``, and that of
    ``jax.experimental`` ``check_rep=False``.

    Parameters
    ----------
    entries : str or tuple of str, optional
        The axes of the mesh that the entries of each sample are spread over.
    samples : str or tuple of str, optional
        The axes that the samples are spread over. To differentiate the solve the
        ``shard_map`` then needs ``check_vma=False``: of a status, or any integer that
        differs between devices, JAX has no tangent.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fixedpoint as fp
    >>> from jax.sharding import PartitionSpec as P
    >>> from fixedpoint_jax import MeshAxes
    >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("d",))
    >>> def solve(z0):
    ...     f = lambda z: jnp.cos(jax.lax.pmean(z, "d"))
    ...     return fp.fixed_point(f, z0, communicator=MeshAxes("d")).value
    >>> spread = jax.shard_map(solve, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    >>> bool(jnp.allclose(jax.jit(spread)(jnp.ones(4)), 0.739085))
    True
    """

    entries: str | tuple[str, ...] = ()
    samples: str | tuple[str, ...] = ()

    @property
    def whole_samples(self) -> bool:  # type: ignore[override]
        """Whether no sample is spread."""
        return not self.entries

    def reduce(self, array: Any, reduction: Reduction) -> Any:
        """The sum or the largest over the axes of the entries."""
        return _REDUCTIONS[reduction](array, _names(self.entries))

    def agree(self, flag: Any) -> Any:
        """Whether the flag is true on any device."""
        names = (*_names(self.entries), *_names(self.samples))
        return _REDUCTIONS["max"](jnp.asarray(flag, jnp.int32), names) > 0


def settled(body: Callable[[Any], Any], carry: Any) -> Any:
    """The carry of a loop, of the types that its body returns.

    Inside a ``shard_map`` the type of an array says over which axes of the mesh it
    varies. A history of zeros varies over none, until a vector is written to it.
    """
    while any(map(varying, jax.tree.leaves(carry))):
        leaves, structure = jax.tree.flatten(carry)
        wider = widened(leaves, jax.tree.leaves(jax.eval_shape(body, carry)))
        if wider is leaves:
            break
        carry = jax.tree.unflatten(structure, wider)
    return carry


def widened(leaves: Sequence[Any], like: Sequence[Any]) -> Sequence[Any]:
    """The leaves, of types that vary over the axes of those in `like` too; the very
    same sequence if they do.
    """
    pairs = zip(leaves, like, strict=True)
    missing = [tuple(varying(new) - varying(old)) for old, new in pairs]
    if not any(missing):
        return leaves
    cast = zip(leaves, missing, strict=True)
    return tuple([_varied(leaf, axes) if axes else leaf for leaf, axes in cast])


def _varied(array: Any, axes: tuple[str, ...]) -> Any:
    """The array, of a type that varies over the axes."""
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return jax.lax.pvary(array, axes)  # type: ignore[attr-defined]  # before JAX 0.8


def varying(leaf: Any) -> frozenset[str]:
    """The axes over which an array, or what stands for one, varies."""
    aval = getattr(leaf, "aval", leaf)
    # Of older releases the array says so itself, or nothing does.
    manual = getattr(aval, "manual_axis_type", None)
    names = getattr(aval, "vma", None) if manual is None else manual.varying
    return frozenset(names or ())


def _names(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)
