"""What :func:`jax.vmap` makes of conditions and of loops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fixedpoint.backend import Array, Vec


@jax.custom_batching.custom_vmap
def any_mapped(mask: Array) -> Array:
    """Whether any of `mask` is true, for all elements of a :func:`jax.vmap` alike.

    A condition that differs between them would have both its branches computed,
    always.
    """
    return mask.any()


@any_mapped.def_vmap
def _of_all(axis_size: int, batched: list[bool], mask: Array) -> tuple[Array, bool]:
    del axis_size, batched
    return any_mapped(mask), False


@jax.custom_batching.custom_vmap
def all_mapped(arrays: Vec) -> Vec:
    """The arrays, all of which :func:`jax.vmap` maps if it maps any.

    It would trace the body of a loop again for each time that more of the carry is
    found to be mapped. Under it all of the carry is in the end, as the condition is.
    """
    return arrays


@all_mapped.def_vmap
def _spread(axis_size: int, batched: list[Any], arrays: Vec) -> tuple[Vec, Any]:
    spread = [
        a if mapped else jnp.broadcast_to(a, (axis_size, *jnp.shape(a)))
        for a, mapped in zip(arrays, batched[0], strict=True)
    ]
    return all_mapped(tuple(spread)), (True,) * len(spread)
