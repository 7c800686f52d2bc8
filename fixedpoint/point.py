"""A state, and what one evaluation told about it."""

from __future__ import annotations

from typing import NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.space import Space


class Point(NamedTuple):
    """A state, and what one evaluation told about it.

    Attributes
    ----------
    value : Vec
        The state z.
    increment : Vec
        What solvers drive to zero: f(z) − z, or −F(z).
    residual : Vec or None
        The residual that is tested, if it is another: that of a damped operator is
        undamped.
    residual_norm : array
        The norm, per sample, of the residual that is tested.
    magnitude : array
        What the rounding errors of `increment` are relative to: ‖f(z)‖, or ‖F(z)‖.
    """

    value: Vec
    increment: Vec
    residual: Vec | None
    residual_norm: Array
    magnitude: Array

    @property
    def tested(self) -> Vec:
        """The residual that is tested."""
        return self.increment if self.residual is None else self.residual


def choose(space: Space, mask: Array, new: Point, old: Point) -> Point:
    """The new point in the samples of `mask`, the old one elsewhere."""
    where, same = space.xp.where, new.residual is None or old.residual is None
    return Point(
        space.where(mask, new.value, old.value),
        space.where(mask, new.increment, old.increment),
        None if same else space.where(mask, new.tested, old.tested),
        where(mask, new.residual_norm, old.residual_norm),
        where(mask, new.magnitude, old.magnitude),
    )
