"""Inputs that are searched for: sweeps beside them, and directions in their set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.backend import Array, Vec
from fixedpoint.operators.base import leafwise
from fixedpoint.point import Point
from fixedpoint.solution import Work
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint_models.secants import Curvature
from fixedpoint_models.sweeping import (
    Sweeping,
    Tracked,
    taken,
)

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ


Masks = tuple[Array, ...]

# The cosine between a direction and −G from which on it is of use.
_DOWN = 1e-4

# Sweeps of a step at most.
_MOST_SWEEPS = 30


@dataclass(frozen=True, eq=False)
class Searching(Sweeping):
    """The augmented system of a model near a state."""

    model: AugmentedDEQ

    def inputs(self, space: Space, x: Vec) -> Space:
        """The space of inputs."""
        return space_of(space.backend, x, space.batch_ndim)

    def followed(
        self, space: Space, point: Point, forcing: float
    ) -> tuple[Tracked, Work]:
        """Z and μ at the input of a point, their defects there reduced to a part, and
        what that took.
        """
        mu, _, z = self.parts(space.add(point.value, point.increment))
        at = self.given("x", self.parts(point.value)[1])
        left = self.parts(point.increment)
        sizes = [forcing * space.norm(part) for part in (left[2], left[0])]
        # No tolerance is right for a sample that is not finite.
        bounds = [space.xp.where(a < space.xp.inf, a, space.zero) for a in sizes]
        state = self._swept(self.lagrangian.f, self.given("z", z), at, bounds[0])
        here = self.lagrangian.at(state.value, at, self.params, self.y)
        pull = lambda mu, *_: leafwise(add, here.pullback(mu)[0], here.slope)
        adjoint = self._swept(pull, self.given("mu", mu), at, bounds[1])
        # The evaluation at the point, and that which tells of the last sweep.
        work = Work(f=state.work.f + 2, vjp=adjoint.work.f + 2)
        return self.told(space.xp, here, state.value, adjoint.value), work

    def _swept(
        self, f: Callable[..., Any], start: Any, x: Any, bound: Array
    ) -> fp.Solution[Any]:
        """A fixed point up to a residual, by Anderson's method."""
        like = array_namespace(*tree.flatten(start)[0])
        return fp.fixed_point(
            f,
            start,
            (x, self.params),
            solver=fp.Anderson(),
            rtol=0.0,
            atol=like.asarray(bound),
            test="residual",
            batch_ndim=self.model.batch_ndim,
            max_steps=_MOST_SWEEPS,
            on_failure="return",
        )

    def direction(
        self,
        space: Space,
        at: tuple[Vec, Vec, Vec],
        length: Array,
        curvature: Curvature,
        slot: Any,
    ) -> Vec:
        """From an input x, the spectral step and G, the step Π(x − HG) − x; or the
        first where that is not downhill.
        """
        x, spectral, g = at
        free = self._free(space, x, spectral)
        step = curvature.step(space, slot, _chosen(space, free, g, space.zeros(g)))
        step = self._ahead(space, x, _chosen(space, free, step, spectral), length)
        slope, square, size = space.dots((g, step), (step, step), (g, g))
        down = slope <= -_DOWN * space.xp.sqrt(square * size)
        down = down & (curvature.scale > 0.0) & (square < space.xp.inf)
        return space.either(down, step, spectral)

    def _free(self, space: Space, x: Vec, spectral: Vec) -> Masks | None:
        """The entries that a spectral step neither leaves where they are nor, with a
        regularizer, takes to zero; None stands for all.
        """
        if self.model.prox is None:
            return None
        moving = tuple([leaf != 0 for leaf in spectral])
        if self.model.regularizer is None:
            return moving
        pairs = zip(moving, space.add(x, spectral), strict=True)
        return tuple([mask & (leaf != 0) for mask, leaf in pairs])

    def _ahead(self, space: Space, x: Vec, step: Vec, length: Array) -> Vec:
        """The step, as far as it leads in the set; with a regularizer, no farther than
        to zero in any entry.
        """
        if self.model.regularizer is not None:
            pairs, xp = zip(x, step, strict=True), space.xp
            step = tuple([xp.where(xp.sign(a) * (a + b) < 0, -a, b) for a, b in pairs])
        # Where h is infinite no step leads; otherwise it takes no part.
        return self._moved(space, x, step, space.precision * length)

    def mapping(self, space: Space, x: Vec, g: Vec, length: Array) -> tuple[Vec, Vec]:
        """The spectral step −λG, and G; of free inputs G is g."""
        step = self._moved(space, x, space.scale(-length, g), length)
        if self.model.prox is None:
            return step, g
        return step, space.scale(space.ratio(-space.one, length), step)

    def _moved(self, space: Space, x: Vec, step: Vec, length: Array) -> Vec:
        """The step, as far as it leads in the set; or prox(x + step, λ) − x."""
        if self.model.prox is None:
            return step
        lengths = self.given("x", tuple([space.factor(length, leaf) for leaf in x]))
        there = self.model.prox(self.given("x", space.add(x, step)), lengths)
        return space.subtract(taken(space.xp, there), x)

    def penalty(self, space: Space, x: Vec) -> Array:
        """h(x)."""
        if self.model.regularizer is None:
            return space.zero
        return space.xp.asarray(self.model.regularizer(self.given("x", x)))


def _chosen(space: Space, masks: Masks | None, these: Vec, those: Vec) -> Vec:
    """These entries where the masks hold, and those elsewhere."""
    if masks is None:
        return these
    return tuple(map(space.xp.where, masks, these, those))
