"""A state, and what one evaluation told about it."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from fixedpoint.backend import Array, Vec
from fixedpoint.space import Space
from fixedpoint.tree import paired

Fields = TypeVar("Fields", bound=NamedTuple)


class Parts(NamedTuple):
    """The parts of a residual, each of which is tested by itself.

    Attributes
    ----------
    sizes, scales : tuple of array
        How large each is, and what it is compared with: its terms, where it is in units
        of its own, and else f(z).
    terms : tuple of array or None
        The former of these; None in the place of the others.
    """

    sizes: tuple[Array, ...]
    scales: tuple[Array, ...]
    terms: tuple[Array | None, ...]


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
    parts : Parts or None
        Its parts, if they were measured.
    """

    value: Vec
    increment: Vec
    residual: Vec | None
    residual_norm: Array
    magnitude: Array
    parts: Parts | None = None

    @property
    def tested(self) -> Vec:
        """The residual that is tested."""
        return self.increment if self.residual is None else self.residual


def choose(space: Space, mask: Array, new: Fields, old: Fields) -> Fields:
    """What is `new` in the samples of `mask` and `old` elsewhere, field by field."""

    def chosen(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return None
        return space.xp.where(space.spread(mask, a), a, b)

    found: Fields = paired(chosen, new, old)
    return found
