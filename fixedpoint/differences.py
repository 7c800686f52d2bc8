"""Difference quotients, for array libraries that do not differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fixedpoint.backend import Array, Vec

if TYPE_CHECKING:
    from fixedpoint.problem import Point, Problem


def difference_product(problem: Problem, point: Point) -> Callable[[Vec], Vec]:
    """The products v ↦ (g(z + hv) − g(z))/h, one evaluation each.

    The step h‖v‖ is ε^(1/2) times ‖z‖, or where z = 0 times 1: it goes with the length of the whole
    state, and not with the typical size of an entry nor with ‖g‖, for g is often a sum of large
    terms that cancel (a discrete Laplacian), whose rounding errors a shorter step would drown in.
    """
    space, xp = problem.space, problem.space.xp
    size = space.norm(point.value)
    reach = space.rounding**0.5 * xp.where(size > 0.0, size, xp.ones_like(size))

    def product(v: Vec) -> Vec:
        length = space.norm(v)
        moves = length > 0.0
        step = xp.where(moves, reach / xp.where(moves, length, xp.ones_like(length)), reach)
        image = problem.increment_nearby(space.add(point.value, space.scale(step, v)))
        return space.scale(1.0 / step, space.subtract(image, point.increment))

    return product


def difference_jacobian(problem: Problem, point: Point) -> Array:
    """The Jacobian of the increment by forward differences, one evaluation a column.

    The step in each entry is ε^(1/2) times its size, which counts as at least a thousandth of the
    largest: an entry that happens to vanish must not be moved by less than g can feel.
    """
    space, xp = problem.space, problem.space.xp
    entries, origin = space.ravel(point.value), space.ravel(point.increment)
    largest = xp.max(xp.abs(entries), axis=-1, keepdims=True)
    typical = xp.where(largest > 0.0, largest, xp.ones_like(largest))
    sizes = xp.maximum(xp.abs(entries), 1e-3 * typical)
    steps = (entries + space.rounding**0.5 * sizes) - entries  # exactly representable
    unit = space.identity(space.real_size)
    columns = []
    for j in range(space.real_size):
        moved = entries + steps * unit[..., j, :]
        image = problem.increment_nearby(space.unravel(moved))
        columns.append((space.ravel(image) - origin) / steps[..., j : j + 1])
    return xp.stack(columns, axis=-1)
