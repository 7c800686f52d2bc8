"""The derivative of a solution in JAX."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from operator import neg
from typing import Any

import jax
import jax.numpy as jnp

from fixedpoint.adjoints.base import LinearAdjoint
from fixedpoint.backend import Vec
from fixedpoint.functions import Product, of_chosen
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint_jax import axes


def tangent(adjoint: LinearAdjoint, run: Run, end: Iteration, moved: Vec) -> Vec:
    """The derivative (I − J)⁻¹ ∂f/∂θ dθ of z* in the direction `moved`, dθ, of the
    arguments, θ.

    JAX transposes the linear system for reverse mode, and differentiates it for higher
    orders. A loop of a number of turns that is not known has forward mode alone.
    """
    problem, z = run.problem, end.value
    rhs = pushed(lambda rest: problem.image(z, rest), problem.args, moved)
    product, has_loops = _linearized(
        lambda value: problem.image(value, problem.args), z
    )

    def solver(transposed: bool) -> Callable[..., Vec]:
        def solved(operator: Product, rhs: Vec) -> Vec:
            wide = lambda u: operator(tuple(axes.widened(u, rhs)))
            given = complement(problem.is_root, wide)
            system = adjoint.system(
                run, given, rhs, transposed=transposed, value=z, memory=end.state
            )
            return adjoint.solved(system)[0]

        return solved

    matrix = complement(problem.is_root, product)
    forward_alone = has_loops and not _is_transposable(product, z)
    solvers = [solver(False)] if forward_alone else [solver(False), solver(True)]
    u = jax.lax.custom_linear_solve(
        lambda u: together(matrix(together(u))), together(rhs), *solvers
    )
    if forward_alone:  # where reverse mode is tried, JAX names the loop by this one
        u = jax.lax.while_loop(lambda _: False, lambda u: tuple(map(neg, u)), u)
    return together(u)


def linearized(f: Callable[[Vec], Vec], value: Vec) -> Product:
    """The products v ↦ f′(value)v."""
    return _linearized(f, value)[0]


def _linearized(f: Callable[[Vec], Vec], value: Vec) -> tuple[Product, bool]:
    """The products v ↦ f′(value)v, and whether their program holds loops.

    A function with a reverse-mode rule of its own has no forward mode. Its pullback is
    linear, and the transpose of that is the product.
    """
    product: Product = jax.linearize(f, value)[1]
    names = _primitives(jax.make_jaxpr(product)(value).jaxpr)
    if "custom_lin" not in names:
        # A unit vector, for one, is the same on all devices of a mesh.
        return lambda v: product(tuple(axes.widened(v, value))), "while" in names
    image, pullback = jax.vjp(f, value)
    transposed = jax.linear_transpose(lambda w: pullback(w)[0], image)
    return lambda v: transposed(v)[0], False


def _is_transposable(product: Product, value: Vec) -> bool:
    """Whether JAX has a transpose of a product whose program holds loops: of one that
    only makes a factor anew, as under ``jax.checkpoint``, it has.
    """
    try:
        jax.eval_shape(jax.linear_transpose(product, value), value)
    except ValueError:  # what JAX raises for a loop that would have to run backwards
        return False
    return True


def _primitives(jaxpr: Any) -> set[str]:
    """The names of what a program is made of; linear solves know their transposes."""
    names = set()
    for equation in jaxpr.eqns:
        names.add(equation.primitive.name)
        if equation.primitive.name != "custom_linear_solve":
            inner = jax.tree.leaves(list(equation.params.values()))
            parts = [getattr(part, "jaxpr", part) for part in inner]
            names.update(*(_primitives(p) for p in parts if hasattr(p, "eqns")))
    return names


def pushed(f: Callable[[Vec], Vec], args: Vec, moved: Vec) -> Vec:
    """The derivative of f at `args` in the direction `moved`; integers do not move."""
    moving = [jnp.issubdtype(jnp.result_type(a), jnp.inexact) for a in args]
    chosen, direction = tuple(compress(args, moving)), tuple(compress(moved, moving))
    return linearized(of_chosen(f, args, moving), chosen)(direction)


def together(vec: Vec) -> Vec:
    """The same leaves, none of which has a tangent or cotangent that is left out for
    being zero.

    JAX cannot transpose a linear solve of which that is known for some leaves alone.
    """
    if len(vec) == 1:
        return vec
    same: Vec = jax.lax.optimization_barrier(vec)  # type: ignore[no-untyped-call]
    return same


def complement(is_root: bool, product: Product) -> Product:
    """The products with I − A, or −A for roots, from those with A; or vice versa."""

    def times(u: Vec) -> Vec:
        image = product(u)
        if is_root:
            return tuple(-leaf for leaf in image)
        return tuple(a - b for a, b in zip(u, image, strict=True))

    return times
