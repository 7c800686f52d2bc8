"""The derivative of a solution in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fixedpoint.adjoints.base import Product
from fixedpoint.backend import Vec
from fixedpoint.solve import Outcome, Solve


def tangent(solve: Solve, outcome: Outcome, args: Vec, moved: Vec) -> Vec:
    """The derivative (I − J)⁻¹ ∂f/∂θ dθ of z* in the direction `moved`, dθ, of `args`, θ.

    JAX transposes the linear system for reverse mode, and differentiates it for higher orders.
    """
    z = outcome.value
    right = jax.jvp(lambda rest: solve.image(z, rest), (args,), (moved,))[1]
    product = jax.linearize(lambda value: solve.image(value, args), z)[1]

    def solver(transposed: bool) -> Callable[..., Vec]:
        def solved(operator: Product, right: Vec) -> Vec:
            given = complement(solve, operator)
            return solve.linear_solve(given, right, transposed, (z, args), outcome.state)[0]

        return solved

    matrix = complement(solve, product)
    return together(
        jax.lax.custom_linear_solve(
            lambda u: together(matrix(together(u))), together(right), solver(False), solver(True)
        )
    )


def together(vec: Vec) -> Vec:
    """The same leaves, none of which has a tangent or cotangent that is left out for being zero.

    JAX cannot transpose a linear solve of which that is known for some leaves alone.
    """
    if len(vec) == 1:
        return vec
    same: Vec = jax.lax.optimization_barrier(vec)  # type: ignore[no-untyped-call]
    return same


def complement(solve: Solve, product: Product) -> Product:
    """The products with I − A, or −A for roots, from those with A; and the other way round."""

    def times(u: Vec) -> Vec:
        image = product(u)
        if solve.is_root:
            return tuple(-leaf for leaf in image)
        return tuple(a - b for a, b in zip(u, image, strict=True))

    return times


def no_tangent(leaf: Any) -> Any:
    """The tangent of an output that is constant to derivatives."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(np.shape(leaf), jax.dtypes.float0)
