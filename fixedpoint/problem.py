"""A fixed-point problem: its residual at a point, and the test that ends the iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.space import Space

# The image of a state; and, where it differs from image − state, the residual that is tested.
Map = Callable[[Vec], tuple[Vec, Vec | None]]


class Point(NamedTuple):
    """A state, and what one evaluation of the map told about it.

    Attributes
    ----------
    value : Vec
        The state z.
    increment : Vec
        f(z) − z, which solvers drive to zero.
    residual_norm : array
        The norm, per sample, of the residual that is tested.
    scale : array
        ‖f(z)‖ per sample.
    satisfied : array of bool
        Whether the residual of each sample is within tolerance.
    """

    value: Vec
    increment: Vec
    residual_norm: Array
    scale: Array
    satisfied: Array


@dataclass(frozen=True, eq=False)
class FixedPointProblem:
    """Find z with z = f(z).

    A sample's residual is within tolerance if ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖, where the map has
    several blocks, for each block by itself.

    Parameters
    ----------
    space : Space
        Where z lies.
    map : callable
        Takes the leaves of z to those of f(z), and to those of the tested residual or None, which
        stands for f(z) − z.
    rtol, atol : float or array of the batch's shape
        Tolerances.
    norm : {"euclidean", "max"}
        The norm of the test.
    blocks : tuple of slice
        The leaves of each block.
    """

    space: Space
    map: Map
    rtol: Any
    atol: Any
    norm: str = "euclidean"
    blocks: tuple[slice, ...] = (slice(None),)

    def evaluate(self, value: Vec) -> Point:
        """Evaluate the map once at `value`."""
        space = self.space
        image, residual = self.map(value)
        increment = space.subtract(image, value)
        if residual is None:
            norm, scale = space.norm(increment, self.norm), space.norm(image, self.norm)
            return Point(value, increment, norm, scale, self._within(norm, scale))
        target = space.add(value, residual)
        norms = [space.norm(residual[block], self.norm) for block in self.blocks]
        scales = [space.norm(target[block], self.norm) for block in self.blocks]
        satisfied = reduce(and_, map(self._within, norms, scales))
        norm, scale = (space.join_norms(parts, self.norm) for parts in (norms, scales))
        return Point(value, increment, norm, scale, satisfied)

    def _within(self, norm: Array, scale: Array) -> Array:
        return norm <= self.atol + self.rtol * scale
