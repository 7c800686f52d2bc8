"""Samples that leave the batch, and come back to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fixedpoint import tree
from fixedpoint.backend import Array
from fixedpoint.carry import Carry, widened
from fixedpoint.space import Space


def taken_rows(space: Space, carry: Any, rows: Array) -> Any:
    """The `rows` of all arrays of `carry`, whose first axis is that of the batch."""
    leaves, structure = tree.flatten(carry)
    take = space.xp.take
    return structure.rebuild(
        [
            take(leaf, rows, axis=0) if _is_batched(space, leaf) else leaf
            for leaf in leaves
        ]
    )


def put_rows(space: Space, carry: Carry, rows: Array, few: Carry) -> Carry:
    """`few` in the `rows` of `carry`."""
    if carry.trace is not None and few.trace is not None:
        columns = few.trace.residual_norm.shape[-1]
        carry = carry._replace(trace=widened(space, carry.trace, columns))
    xp, length = space.xp, carry.status.shape[0]
    places = np.arange(length)
    places[space.backend.numpy(rows)] = length + np.arange(rows.shape[0])
    source = xp.asarray(places, **space.place)

    def merged(full: Any, part: Any) -> Any:
        if isinstance(part, tuple):
            parts = [merged(a, b) for a, b in zip(full, part, strict=True)]
            return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
        if part is None:  # known to be nothing of interest in the rows, or in all
            return full
        if not _is_batched(space, part):
            return part
        if full is None:
            full = xp.zeros((length, *part.shape[1:]), dtype=part.dtype)
        return xp.take(xp.concat([full, part]), source, axis=0)

    whole: Carry = merged(carry._replace(active=None), few._replace(active=None))
    return whole


def _is_batched(space: Space, leaf: Any) -> bool:
    return space.backend.is_array(leaf) and leaf.ndim > 0
