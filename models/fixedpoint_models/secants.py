"""The matrix of limited-memory BFGS."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.columns import Columns, products
from fixedpoint.space import Space

# The cosine between a step and a change of the gradient from which on they are of use.
_CURVED = 1e-4


class Curvature(NamedTuple):
    """What steps s and changes y of the gradient tell of φ's Hessian.

    Attributes
    ----------
    steps, changes : Columns
        S and Y, of the last of them: zero where they tell nothing.
    products : array (samples, memory, memory)
        ⟨sᵢ, yⱼ⟩.
    squares : array (samples, memory, memory)
        ⟨yᵢ, yⱼ⟩.
    scale : array
        ⟨s, y⟩/⟨y, y⟩ of the last that told anything.
    """

    steps: Columns
    changes: Columns
    products: Array
    squares: Array
    scale: Array

    @classmethod
    def unknown(cls, space: Space, memory: int) -> Curvature:
        """Nothing is known."""
        steps, changes = (Columns.zeros(space, memory) for _ in range(2))
        products, squares = (space.full(0.0, (memory, memory)) for _ in range(2))
        return cls(steps, changes, products, squares, space.full(0.0))

    def noted(
        self, space: Space, slot: Any, pair: tuple[Vec, Vec], known: list[Array]
    ) -> Curvature:
        """With one more step s and change y, in place of the oldest, where it is bent
        upwards; ⟨s, y⟩, ⟨s, s⟩ and ⟨y, y⟩ are known.
        """
        (s, y), (curved, length, size) = pair, known
        useful = curved > _CURVED * space.xp.sqrt(length * size)
        useful = useful & (size < space.xp.inf)
        steps = self.steps.push(space, slot, space.mask(useful, s))
        changes = self.changes.push(space, slot, space.mask(useful, y))
        s, y = steps.column(space, slot), changes.column(space, slot)
        pairs = (changes, s), (steps, y), (changes, y)
        row, column, square = products(space, *pairs)
        write = space.backend.write
        mixed = write(self.products, (..., slot, slice(None)), row)
        mixed = write(mixed, (..., slice(None), slot), column)
        squares = write(self.squares, (..., slot, slice(None)), square)
        squares = write(squares, (..., slice(None), slot), square)
        scale = space.xp.where(useful, space.ratio(curved, size), self.scale)
        return Curvature(steps, changes, mixed, squares, scale)

    def step(self, space: Space, slot: Any, g: Vec) -> Vec:
        """−Hg, where H is the matrix of BFGS, whose newest step is in this slot.

        H = γI + SR⁻ᵀ(D + γYᵀY)R⁻¹Sᵀ − γ(SR⁻ᵀYᵀ + YR⁻¹Sᵀ), where R holds ⟨sᵢ, yⱼ⟩ for i
        no newer than j, and D is its diagonal.
        """
        xp, size = space.xp, self.products.shape[-1]
        age = (slot - xp.arange(size, **space.place)) % size
        known = age[:, None] >= age[None, :]
        triangle = xp.where(known, self.products, space.zero)
        unit = space.identity(size)
        diagonal = xp.sum(unit * self.products, axis=-1)
        empty = space.as_coefficient(diagonal <= 0.0)
        triangle = triangle + unit * empty[..., None]
        scale, solve = self.scale[..., None], space.backend.solve
        along, across = products(space, (self.steps, g), (self.changes, g))
        first = solve(triangle, along)
        image = xp.matmul(self.squares, first[..., None])[..., 0]
        rest = diagonal * first + scale * (image - across)
        second = solve(xp.matrix_transpose(triangle), rest)
        downhill = space.negative(space.scale(self.scale, g))
        downhill = self.steps.subtracted_from(space, downhill, second)
        return self.changes.added_to(space, downhill, scale * first)
