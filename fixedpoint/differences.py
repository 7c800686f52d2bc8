"""Difference quotients, for array libraries that do not differentiate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fixedpoint.backend import Array, Vec

if TYPE_CHECKING:
    from fixedpoint.problem import Point, Problem

# How far the product of a compressed Jacobian with a vector may be from its difference quotient.
_AGREEMENT = 1e-3


def difference_product(problem: Problem, point: Point) -> Callable[[Vec], Vec]:
    """The products v ↦ (g(z + hv) − g(z))/h, one evaluation each.

    The step h‖v‖ is ε^(1/2) times ‖z‖, or where z = 0 times 1: it goes with the length of the whole
    state, and not with the typical size of an entry nor with ‖g‖, for g is often a sum of large
    terms that cancel (a discrete Laplacian), whose rounding errors a shorter step would drown in.
    """
    space, xp = problem.space, problem.space.xp
    size = space.norm(point.value)
    reach = space.rounding**0.5 * xp.where(size > 0.0, size, space.one)

    def product(v: Vec) -> Vec:
        length = space.norm(v)
        step = xp.where(length > 0.0, reach / xp.where(length > 0.0, length, space.one), reach)
        image = problem.increment_nearby(space.axpy(step, v, point.value))
        return space.scale(1.0 / step, space.subtract(image, point.increment))

    return product


@dataclass(frozen=True, eq=False)
class Sparsity:
    """Where a Jacobian has entries, and columns that share no row, to be differenced together.

    Parameters
    ----------
    pattern : ndarray of bool, (n, n)
        Where any sample's Jacobian has ever had an entry other than zero.
    groups : tuple of ndarray of int
        The columns of each group.
    """

    pattern: Any
    groups: tuple[Any, ...]

    @classmethod
    def of(cls, pattern: Any) -> Sparsity:
        """Put each column into the first group none of whose columns shares a row with it."""
        taken: list[Any] = []
        groups: list[list[int]] = []
        for j, rows in enumerate(pattern.T):
            group = next((k for k, used in enumerate(taken) if not (used & rows).any()), None)
            if group is None:
                group = len(groups)
                groups.append([])
                taken.append(np.zeros_like(rows))
            groups[group].append(j)
            taken[group] |= rows
        return cls(pattern, tuple(np.asarray(group) for group in groups))


def difference_jacobian(
    problem: Problem, point: Point, sparsity: Sparsity | None
) -> tuple[Array, int, Sparsity | None]:
    """The Jacobian of the increment by forward differences, the evaluations, and its sparsity.

    The step in each entry is ε^(1/2) times its size, which counts as at least a thousandth of the
    largest: an entry that happens to vanish must not be moved by less than g can feel. The first
    time one evaluation makes a column. If the entries that are exactly zero let columns share an
    evaluation, they do so from then on, and one more evaluation checks the product with a random
    vector: where the pattern has grown all columns are made anew.

    References
    ----------
    Curtis, Powell and Reid, "On the estimation of sparse Jacobian matrices", IMA J. Appl. Math.
    13, 1974.
    """
    quotients = _Quotients.at(problem, point)
    if sparsity is None:
        return *quotients.full(), quotients.sparsity
    matrix, evaluations = quotients.compressed(sparsity)
    if quotients.confirms(matrix):
        return matrix, evaluations + 1, sparsity
    matrix, more = quotients.full()
    return matrix, evaluations + 1 + more, quotients.sparsity


class _Quotients:
    """Difference quotients at a point, whose steps are fixed."""

    def __init__(self, problem: Problem, entries: Array, origin: Array, steps: Array) -> None:
        self.problem, self.entries, self.origin, self.steps = problem, entries, origin, steps
        self.space = problem.space
        self.sparsity: Sparsity | None = None

    @classmethod
    def at(cls, problem: Problem, point: Point) -> _Quotients:
        space, xp = problem.space, problem.space.xp
        entries = space.ravel(point.value)
        largest = xp.max(xp.abs(entries), axis=-1, keepdims=True)
        typical = xp.where(largest > 0.0, largest, space.one)
        sizes = xp.maximum(xp.abs(entries), 1e-3 * typical)
        steps = (entries + space.rounding**0.5 * sizes) - entries  # exactly representable
        return cls(problem, entries, space.ravel(point.increment), steps)

    def change(self, direction: Array) -> Array:
        """The change of g over the steps times `direction`."""
        moved = self.space.unravel(self.entries + self.steps * direction)
        return self.space.ravel(self.problem.increment_nearby(moved)) - self.origin

    def full(self) -> tuple[Array, int]:
        """All columns, one by one; take note of where they are zero."""
        xp, size = self.space.xp, self.space.real_size
        unit = self.space.identity(size)
        columns = [self.change(unit[..., j, :]) / self.steps[..., j : j + 1] for j in range(size)]
        matrix = xp.stack(columns, axis=-1)
        samples = np.asarray(self.space.backend.numpy(matrix)).reshape(-1, size, size)
        found = Sparsity.of((samples != 0.0).any(0))
        self.sparsity = found if len(found.groups) < size - 1 else None
        return matrix, size

    def compressed(self, sparsity: Sparsity) -> tuple[Array, int]:
        """The columns of each group from one evaluation."""
        space, xp = self.space, self.space.xp
        members = np.zeros((len(sparsity.groups), space.real_size))
        for row, group in zip(members, sparsity.groups, strict=True):
            row[group] = 1.0
        changes = [
            self.change(xp.asarray(row, dtype=space.dtype) + 0.0 * self.entries) for row in members
        ]
        group_of = xp.asarray(members.argmax(axis=0))
        spread = xp.take(xp.stack(changes, axis=-1), group_of, axis=-1)
        pattern = xp.asarray(sparsity.pattern, dtype=space.dtype)
        return spread * pattern / self.steps[..., None, :], len(changes)

    def confirms(self, matrix: Array) -> bool:
        """Whether a random direction finds no entry that `matrix` lacks."""
        space, xp = self.space, self.space.xp
        signs = np.random.default_rng(0).choice([-1.0, 1.0], space.real_size)
        direction = xp.asarray(signs, dtype=space.dtype) + 0.0 * self.entries
        moves = (self.steps * direction)[..., None]
        change = self.change(direction)
        wrong = xp.abs(change - xp.matmul(matrix, moves)[..., 0])
        # Row by row: the equations may differ in scale. What is not finite tells nothing.
        size = xp.abs(change) + xp.matmul(xp.abs(matrix), xp.abs(moves))[..., 0]
        return bool(xp.all((wrong <= _AGREEMENT * size) | ~xp.isfinite(wrong)))
