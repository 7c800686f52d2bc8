"""The user's map in JAX: what it captured is made explicit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from fixedpoint.backend import Vec
from fixedpoint.problem import Map
from fixedpoint.solve import Solve

MapAt = Callable[[Vec], Map]


class CapturedTracerError(Exception):
    """The map returned a tracer for arguments that are none: it holds tracers
    itself.
    """


def without_tracers(map_at: MapAt) -> MapAt:
    """`map_at`, which raises :class:`CapturedTracerError` when values are turned into
    tracers.
    """

    def watched(mapped: Map, value: Vec) -> tuple[Vec, Vec | None]:
        outputs = mapped(value)
        if any(map(_is_tracer, jax.tree.leaves(outputs))) and not any(
            map(_is_tracer, value)
        ):
            raise CapturedTracerError
        return outputs

    return lambda args: partial(watched, map_at(args))


def _is_tracer(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def hoisted(solve: Solve, value: Vec, args: Vec) -> tuple[Solve, Vec]:
    """`solve` with what its map captured in front of the arguments, and these
    arguments.

    The map is traced here, and never again.
    """
    whole = lambda value, args: solve.map(args)(value)  # noqa: E731
    closed, shape = jax.make_jaxpr(whole, return_shape=True)(value, args)
    structure, count = jax.tree.structure(shape), len(closed.consts)

    def map_(value: Vec, rest: Vec) -> tuple[Vec, Vec | None]:
        function = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, rest[:count]))
        outputs: tuple[Vec, Vec | None] = jax.tree.unflatten(
            structure, function(*value, *rest[count:])
        )
        return outputs

    def image(value: Vec, rest: Vec) -> Vec:
        leaves = map_(value, rest)[0]
        return tuple(-leaf for leaf in leaves) if solve.is_root else leaves

    inverse = solve.inverse
    explicit = dataclasses.replace(
        solve,
        map=lambda rest: lambda value: map_(value, rest),
        image=image,
        bind=lambda rest: solve.bind(rest[count:]),
        batched=(*(False,) * count, *solve.batched) if solve.batched else (),
        inverse=inverse and (lambda value, rest: inverse(value, rest[count:])),
    )
    return explicit, (*closed.consts, *args)
