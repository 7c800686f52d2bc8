"""Regularization of equilibrium layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fixedpoint import regularization
from fixedpoint.checks import check_count
from fixedpoint.regularization import correction_loss

__all__ = ["correction_loss", "jacobian_penalty"]


def jacobian_penalty(
    f: Callable[..., Any],
    z: Any,
    args: tuple[Any, ...] = (),
    *,
    key: jax.Array,
    probes: int = 1,
    batch_ndim: int = 1,
) -> jax.Array:
    """The penalty :func:`fixedpoint.regularization.jacobian_penalty` for normal probes.

    To leave the equilibrium out of its derivative, give ``jax.lax.stop_gradient(z)``.

    Parameters
    ----------
    f, z, args, batch_ndim
        As there.
    key : array
        The random key of the vectors.
    probes : int, optional
        How many are drawn.

    Returns
    -------
    array of the batch's shape
        The mean over the probes.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fixedpoint_jax
    >>> z = jnp.ones((2, 3))
    >>> penalty = fixedpoint_jax.jacobian_penalty(lambda z: 0.0 * z, z,
    ...                                           key=jax.random.key(0))
    >>> penalty.tolist()
    [0.0, 0.0]
    """
    check_count("probes", probes, 1)
    z = jax.tree.map(jnp.asarray, z)
    drawn = [_normal(key, z) for key in jax.random.split(key, probes)]
    penalty: jax.Array = regularization.jacobian_penalty(f, z, args, drawn, batch_ndim)
    return penalty


def _normal(key: jax.Array, z: Any) -> Any:
    """Independent normal entries, like z."""
    leaves, structure = jax.tree.flatten(z)
    pairs = zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    drawn = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in pairs]
    return jax.tree.unflatten(structure, drawn)
