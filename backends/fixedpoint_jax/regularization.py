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
    """Hutchinson's estimate of ‖J‖²/d per sample, J = ∂f/∂z at (z, \\*args) with d
    rows.

    The norm is Frobenius's, which bounds the spectral radius. The estimate is unbiased,
    and differentiable with respect to z, args and what f holds. Added to a loss, with z
    an equilibrium, it keeps f easy to solve for; with ``jax.lax.stop_gradient(z)`` the
    equilibrium is left out of its derivative, as in the reference.

    Parameters
    ----------
    f : callable
        The map ``f(z, *args)``.
    z : array or pytree of arrays
        Where to take J.
    args : tuple, optional
        What else f takes.
    key : array
        The random key of the vectors.
    probes : int, optional
        Random vectors ε, of each of which the estimate is ‖εᵀJ‖²/d, for one product.
        They share an evaluation of f.
    batch_ndim : int, optional
        The first `batch_ndim` axes of every leaf of z index samples.

    Returns
    -------
    array of the batch's shape
        The mean over the probes.

    References
    ----------
    Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization",
    ICML 2021, arXiv:2106.14342.

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
