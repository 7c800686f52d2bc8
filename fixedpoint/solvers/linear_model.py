"""The linear model of a residual, with the Jacobian as a matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.differences import are_alike, units_of
from fixedpoint.linear.direct import System
from fixedpoint.matrix import Matrix, Sparsity
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.base import statuses
from fixedpoint.space import Space
from fixedpoint.status import Status

# The squares of numbers, times this, are odd and even below the point like random ones.
_QUADRATIC = 2.0**0.5


class LinearModel(NamedTuple):
    """The model g + g′d of the increment near a point."""

    matrix: Matrix  # the Jacobian g′
    system: System  # g′d = −g, in whose solution the model vanishes
    sizes: Array  # (batch, n), the largest that each entry of the state has been

    @classmethod
    def at(cls, problem: Problem, point: Point, state: Any) -> LinearModel:
        """The model at a point; `state` is what a method remembers of models before."""
        space, value = problem.space, problem.space.ravel(point.value)
        sizes = space.xp.maximum(state.sizes, space.xp.abs(value))
        matrix = problem.matrix(point, state.sparsity, sizes)
        rhs = -space.ravel(point.increment)
        system = System.of(space, matrix.entries, rhs, problem.factors)
        found = sizes if matrix.sizes is None else matrix.sizes
        return cls(matrix, system, found)

    @property
    def is_derivative(self) -> Array:
        """Whether it accounts for every equation, and tells of what comes next."""
        return self.system.sound & self.matrix.reliable

    def rounding(self, problem: Problem, point: Point) -> Vec:
        """What rounding errors of the terms of all equations may do to the state.

        Their signs are not known: it is the larger one of two answers for each entry,
        with all alike, and with such as are left to chance.
        """
        space, xp = problem.space, problem.space.xp
        terms = self.system.row_maxima(xp.abs(space.ravel(point.value)))
        if not problem.is_root:
            terms = xp.maximum(terms, xp.abs(space.ravel(point.value)))
        errors = 0.5 * space.rounding * terms
        index = space.as_coefficient(xp.arange(terms.shape[-1], **space.place))
        signs = 1.0 - 2.0 * (xp.floor(_QUADRATIC * index * index) % 2.0)
        found = [xp.abs(self.system.solved(u)) for u in (errors, signs * errors)]
        return space.unravel(xp.maximum(*found))

    def failure(self, space: Space, pending: Array) -> Array | None:
        """The statuses of samples that the model does not serve, or whose search is
        `pending`; None if there are none.
        """
        return statuses(
            space,
            (~self.system.finite, Status.LINEAR_SOLVE_FAILED),
            (pending, Status.LINE_SEARCH_FAILED),
            (pending & ~self.system.explained, Status.SINGULAR),
        )


def matching(space: Space, sparsity: Sparsity | None) -> Sparsity | None:
    """`sparsity`, if it is that of a Jacobian of this size; else raise ValueError."""
    if sparsity is not None and len(sparsity.pattern) != space.real_size:
        raise ValueError(
            "state must come from a call with the same shapes: expected "
            f"{space.real_size} unknowns, got {len(sparsity.pattern)}"
        )
    return sparsity


def units(space: Space, system: System, value: Array, weights: Array) -> Array:
    """`weights`, or what brings equations together whose units are more than a million
    apart.

    An equation is as large as its change when the unknowns change by their own size, or
    where they are zero by the first correction. Where these are a million apart neither
    may be typical of an unknown that is small as yet: if equal changes of all unknowns
    change all equations alike, one unit serves them all.
    """
    xp = space.xp
    if space.backend.known_here(weights > 0.0):
        return weights
    slopes = system.row_maxima(xp.ones_like(value))
    size = xp.where(value == 0.0, xp.abs(system.entries), xp.abs(value))
    terms = system.row_maxima(xp.where(xp.isfinite(size), size, space.zero))
    terms = xp.where(terms < xp.inf, terms, space.zero)
    largest = xp.max(terms, axis=-1, keepdims=True)
    largest = xp.where(largest > 0.0, largest, space.one)
    one = are_alike(space, slopes) & ~are_alike(space, terms)
    found = 2.0 ** -xp.round(xp.log2(largest)) / xp.where(
        one, space.one, units_of(space, terms)
    )
    return xp.where(weights > 0.0, weights, found)
