"""Intervals at whose ends a function is known, each entry of an array by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec


class Bracket(NamedTuple):
    """Three points, and F there."""

    x1: Array  # the latest point, an end of the bracket
    f1: Array
    x2: Array  # the other end
    f2: Array
    x3: Array  # the point that was an end before; at first the other end
    f3: Array

    def moved(self, xp: Any, x: Array, f: Array) -> Bracket:
        """The bracket that is left once F is `f` at `x`, between the ends."""
        same = (f > 0) == (self.f1 > 0)
        staying = chosen(xp, same, self[2:4], self[:2])
        leaving = chosen(xp, same, self[:2], self[2:4])
        return Bracket(x, f, *staying, *leaving)

    def stretched(self, xp: Any, x: Array, f: Array, first: Array) -> Bracket:
        """The ends once one was moved outwards to x, or the bracket on that side if the
        sign differs; the `first` end, or the other.

        The third point of a new bracket is one of its ends, as at the beginning.
        """
        one, two, new = self[:2], self[2:4], (x, f)
        near = chosen(xp, first, one, two)
        holds = _opposed(f, near[1]) | (f == 0)
        one = chosen(xp, holds, new, chosen(xp, first, new, one))
        two = chosen(xp, holds, near, chosen(xp, first, two, new))
        return Bracket(*one, *two, *two)

    def best_first(self, xp: Any) -> Bracket:
        """The same points, the end with the smaller |F| in front."""
        size1, size2 = xp.abs(self.f1), xp.abs(self.f2)
        first = (size1 <= size2) | xp.isnan(size2)
        x1, f1 = chosen(xp, first, self[:2], self[2:4])
        x2, f2 = chosen(xp, first, self[2:4], self[:2])
        return Bracket(x1, f1, x2, f2, self.x3, self.f3)

    @property
    def half_width(self) -> Array:
        """Half the width, without overflow."""
        return abs(0.5 * self.x2 - 0.5 * self.x1)

    def safe(self, xp: Any) -> Array:
        """Chandrupatla's inequalities: the inverse parabola is monotonic between the
        ends.

        Comparisons with NaN, which infinite values of F lead to, do not hold.
        """
        x1, f1, x2, f2, x3, f3 = self
        xi = ratio(xp, x1 - x2, x3 - x2)
        phi = ratio(xp, f1 - f2, f3 - f2)
        inside = (xi >= 0) & (xi <= 1) & (x3 != x2)  # at first there are but two points
        xi = xp.where(inside, xi, xp.zeros_like(xi))
        return inside & (1.0 - xp.sqrt(1.0 - xi) < phi) & (phi < xp.sqrt(xi))

    def fraction(self, xp: Any) -> Array:
        """The share of the way from x1 to x2 at the root of the inverse parabola."""
        x1, f1, x2, f2, x3, f3 = self
        alpha = ratio(xp, x3 - x1, x2 - x1)
        linear = ratio(xp, f1, f1 - f2) * ratio(xp, f3, f3 - f2)
        return linear + alpha * ratio(xp, f1, f3 - f1) * ratio(xp, f2, f3 - f2)

    def half_way(self, xp: Any) -> Array:
        """The point half-way between the ends.

        Neither form overflows; 0.5 x1 + 0.5 x2 would, as a compiler may write it.
        """
        mean, apart = 0.5 * (self.x1 + self.x2), 0.5 * (self.x2 - self.x1)
        return xp.where(self.straddles_zero, mean, self.x1 + apart)

    def is_adjacent(self, xp: Any) -> Array:
        """Whether no number lies between the ends, as the arithmetic has them."""
        middle = self.half_way(xp)
        return (middle == self.x1) | (middle == self.x2)

    def middle(self, xp: Any, info: Any, xtol: Any, late: Any) -> Array:
        """Half-way between the ends; if `late`, on a logarithmic scale down to `xtol`,
        or at zero.
        """
        plain = self.half_way(xp)
        near = xp.minimum(xp.abs(self.x1), xp.abs(self.x2))
        far = xp.maximum(xp.abs(self.x1), xp.abs(self.x2))
        floor = xp.maximum(least(xp, far, info), 0.0 * far + xtol)
        size = xp.sqrt(xp.maximum(near, floor)) * xp.sqrt(far)
        inside = (far > 4.0 * near) & (size > near) & (size < far)
        middle = xp.where(inside & late, xp.sign(plain) * size, plain)
        return xp.where(self.straddles_zero & late, xp.zeros_like(plain), middle)

    @property
    def holds(self) -> Array:
        """Whether a root lies between the ends, or is one."""
        return _opposed(self.f1, self.f2) | (self.f1 == 0) | (self.f2 == 0)

    @property
    def straddles_zero(self) -> Array:
        """Whether zero lies strictly between the ends."""
        return _opposed(self.x1, self.x2)


class Ends(NamedTuple):
    """The ends that were given."""

    x1: Array  # finite points, where the end itself is infinite in its place
    x2: Array
    free1: Array  # whether the end may be moved outwards until the signs differ
    free2: Array

    @classmethod
    def of(cls, xp: Any, x1: Array, x2: Array, expand: bool) -> Ends:
        """Those of two arrays; all of them may be moved, or just the infinite ones."""
        infinite1, infinite2 = xp.isinf(x1), xp.isinf(x2)
        one, two = (_finite(xp, x, other) for x, other in ((x1, x2), (x2, x1)))
        return cls(one, two, infinite1 | expand, infinite2 | expand)


def _finite(xp: Any, x: Array, other: Array) -> Array:
    """The end x, or if it is infinite a point on that side of the other, or of 0."""
    base = xp.where(xp.isfinite(other), other, xp.zeros_like(other))
    size, most = xp.abs(base), float(xp.finfo(x.dtype).max)
    step = xp.minimum(xp.maximum(size, xp.ones_like(base)), most - size)
    return xp.where(xp.isinf(x), base + xp.sign(x) * step, x)


def _opposed(a: Array, b: Array) -> Array:
    """Whether one is negative and the other positive."""
    return ((a < 0) & (b > 0)) | ((a > 0) & (b < 0))


def least(xp: Any, size: Array, info: Any) -> Array:
    """The least number worth telling from zero beside a `size`.

    That is the smallest normal one, which every arithmetic has; below its quadruple the
    smallest of all, which some take for zero.
    """
    normal = float(info.smallest_normal)
    floor = xp.full_like(size, normal)
    return xp.where(size > 4.0 * normal, floor, float(info.eps) * floor)


def ratio(xp: Any, a: Array, b: Array) -> Array:
    """The quotient a/b, or a where b = 0."""
    return a / xp.where(b == 0, xp.ones_like(b), b)


def chosen(xp: Any, mask: Array, these: Vec, those: Vec) -> Vec:
    """These arrays where the mask holds, and those elsewhere."""
    pairs = zip(these, those, strict=True)
    return tuple([xp.where(mask, this, that) for this, that in pairs])
