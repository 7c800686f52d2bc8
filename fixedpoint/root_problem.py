"""The problem of a root."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fixedpoint.backend import Array, Vec
from fixedpoint.differences import difference_product
from fixedpoint.functions import Product
from fixedpoint.point import Point
from fixedpoint.problem import Problem, Sizes


@dataclass(frozen=True, eq=False)
class RootProblem(Problem):
    """Find x with F(x) = 0.

    The increment is −F(x): methods that need a map iterate x − F(x).
    """

    is_root = True

    def image(self, value: Vec, args: Vec) -> Vec:
        """The map −F."""
        return self.space.negative(self.functions.image(value, args))

    def increments(
        self, value: Vec, image: Vec, residual: Vec | None
    ) -> tuple[Vec, Vec | None, Vec]:
        """The increment −F(x)."""
        del value, residual
        increment = self.space.negative(image)
        return increment, None, increment

    def increment(self, value: Vec) -> Vec:
        """The increment −F(x)."""
        return self.space.negative(self.mapped(value)[0])

    def computed(self, point: Point) -> Vec:
        """The increment −F(x)."""
        return point.increment

    def shared(self, point: Point, sizes: Sizes) -> Sizes:
        """Those of the correction: a residual has other units."""
        del point
        return sizes

    def is_rounding(
        self, residual: Sequence[Array], state: Sequence[Array], norm: Array
    ) -> Array:
        """Whether F(x) = 0: the residual does not tell how much of it is rounding."""
        del residual, state
        return norm == 0.0

    def length_of_state(self, point: Point) -> Array:
        """The norm of x."""
        return self.space.norm(point.value)

    def least_noise(self, value: Vec) -> Vec:
        """Nothing: F may be exact."""
        return tuple([0.0 * self.space.xp.abs(leaf) for leaf in value])

    def rounding(self, point: Point) -> Array:
        """Zero: the rounding errors of F are not known."""
        return 0.0 * point.residual_norm

    def is_small(self, point: Point, size: Array, share: float) -> Array:
        """Whether the last correction is."""
        return size <= share * self.space.norm(point.value, self.tolerance.kind)

    def fell(self, sizes: Sizes, first: tuple[Array, ...]) -> Array:
        """Whether each is ten times the relative tolerance of what it was, or less.

        A method that takes the norm of all equations does not see those in small units.
        Of a single part there is no other: see :meth:`equations`.
        """
        if len(first) == 1 and math.prod(first[0].shape[self.space.batch_ndim :]) == 1:
            return sizes.length == sizes.length
        share = self.tolerance.relative_share
        pairs = zip(sizes.residual, first, strict=True)
        return self.space.every([part <= share(part) * most for part, most in pairs])

    def equations(self, point: Point) -> tuple[Array, ...] | None:
        """The size of each equation, where the tolerance is for parts of several: in a
        norm of them, those in small units count for nothing.
        """
        if self.tolerance.test == "residual" or self.tolerance.norm == "entries":
            return None
        return tuple(map(self.space.magnitudes, point.increment))

    def coarse(self, first: Point) -> Array | None:
        """Whether it does; None in a trace."""
        is_traced = self.space.backend.is_traced((first.residual_norm,))
        asked = not is_traced and self.tolerance.test == "error"
        return self.space.is_shorter(first.increment) if asked else None

    def residual_bound(self, point: Point) -> Array:
        """The bound atol, to which rtol adds what is not known here."""
        return self.tolerance.bound(0.0 * point.magnitude)

    def residual_scale(
        self, point: Point, first: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        """Those of F(x₀)."""
        del point
        return first

    def initial_scale(self, point: Point) -> tuple[Array, int]:
        """The σ = ±‖g‖/‖g′g‖ of the sign that lowers ‖g + σg′g‖; 1 where it is not
        finite.

        The σ that minimizes it is shorter by the cosine between g and g′g: where that
        is small, an estimate begun with it needs ten times the 2n updates of a linear
        system.
        """
        space, xp = self.space, self.space.xp
        further, size = [0], space.norm(point.increment)
        # Of about unit length: the image of g is as g squared, and its norm overflows.
        unit = 2.0 ** -xp.round(xp.log2(space.select(size > 0.0, size, space.one)))
        along, size = space.scale(unit, point.increment), unit * size
        image = difference_product(self, point, further)(along, size)
        length = space.ratio(size, space.norm(image))
        scale = xp.where(space.dot(along, image) > 0.0, -length, length)
        sound = (scale != 0.0) & (xp.abs(scale) < xp.inf)
        return xp.where(sound, scale, xp.ones_like(scale)), 1 + further[0]

    def of_user(self, product: Product) -> Product:
        """The products with −F′, or its inverse."""
        return lambda v: self.space.negative(product(v))

    of_user_inverse = of_user

    def of_user_matrix(self, matrix: Any) -> Any:
        """The matrix −F′."""
        return -matrix
