"""The user's map in JAX: what it captured is made explicit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

from fixedpoint.backend import Vec
from fixedpoint.evaluator import Evaluated
from fixedpoint.functions import Bridge, Mapped
from fixedpoint.run import Run
from fixedpoint_jax import axes

MapAt = Callable[..., Mapped]


class CapturedTracerError(Exception):
    """The map returned a tracer for arguments that are none: it captures some."""


def without_tracers(map_at: MapAt) -> MapAt:
    """`map_at`, raising :class:`CapturedTracerError` where values become tracers."""

    def checked(mapped: Mapped, value: Vec) -> Evaluated:
        outputs = mapped(value)
        if any(map(_is_tracer, jax.tree.leaves(outputs))) and not any(
            map(_is_tracer, value)
        ):
            raise CapturedTracerError
        return outputs

    def at(args: Vec, bridge: Bridge | None = None) -> Mapped:
        here: Mapped = partial(checked, map_at(args))
        return here if bridge is None else bridge.mapped(here)

    return at


def _is_tracer(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def is_staged(leaf: Any) -> bool:
    """Whether a leaf is a symbol of a program that is being written, as that of jit.

    One of a transform outside of such a program has a value beneath.
    """
    while _is_tracer(leaf):
        inner = getattr(leaf, "primal", getattr(leaf, "val", None))
        if inner is None or isinstance(inner, Var):
            return True
        leaf = inner
    return False


def hoisted(run: Run, value: Vec) -> tuple[Run, Vec]:
    """`run` with what its map captured in front of the arguments, and the value, which
    varies over the axes of a mesh that its image varies over.

    The map is traced here, and never again.
    """
    problem, functions = run.problem, run.problem.functions
    whole = lambda value, args: functions.at(args)(value)
    closed, shape, value = _traced(whole, value, problem.args)
    structure, count = jax.tree.structure(shape), len(closed.consts)
    jaxpr = closed.jaxpr  # what is kept must not hold what was captured

    def mapped(rest: Vec, value: Vec) -> Evaluated:
        function = jaxpr_as_fun(ClosedJaxpr(jaxpr, rest[:count]))
        outputs: Evaluated = jax.tree.unflatten(
            structure, function(*value, *rest[count:])
        )
        return outputs

    explicit = dataclasses.replace(
        functions.of_part(slice(count, None)),
        at=lambda rest: partial(mapped, rest),
        image=lambda value, rest: mapped(rest, value)[0],
        program=(jaxpr, structure),
    )
    problem = dataclasses.replace(
        problem,
        functions=explicit,
        args=(*closed.consts, *problem.args),
        batched=(*(False,) * count, *problem.batched) if problem.batched else (),
    )
    return dataclasses.replace(run, problem=problem), value


def _traced(
    whole: Callable[[Vec, Vec], Evaluated], value: Vec, args: Vec
) -> tuple[ClosedJaxpr, Evaluated, Vec]:
    """The program of a map, what it returns, and the value that it is the program for.

    Inside a ``shard_map`` a start may be the same on all devices where its image is
    not. Then its type becomes that of the image, and the map is traced once more.
    """
    while True:
        closed, shape = jax.make_jaxpr(whole, return_shape=True)(value, args)
        wider = tuple(axes.widened(value, shape[0]))
        if wider is value:
            return closed, shape, value
        value = wider
