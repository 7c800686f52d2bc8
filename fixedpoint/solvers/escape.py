"""Leaving a point where the derivative is singular."""

from __future__ import annotations

from fixedpoint.backend import Array, Vec
from fixedpoint.solvers.search import Descent
from fixedpoint.space import Space

# Points that are left before a method gives up.
ESCAPES = 3


def escaped(space: Space, value: Vec, escaping: Array, descent: Descent) -> Descent:
    """The descent, but a move away in the samples that are `escaping`, whatever it
    leads to.
    """
    if space.backend.known_none(escaping):
        return descent
    where = space.xp.where
    return Descent(
        space.where(escaping, _away(space, value), descent.direction),
        where(escaping, space.infinity, descent.merit),
        where(escaping, space.zero, descent.slope),
        descent.rows,
    )


def _away(space: Space, value: Vec) -> Vec:
    """A move by about a sixteenth of each entry, or of one where it is zero, to leave a
    point.
    """
    moves, xp = [], space.xp
    for leaf, count in zip(value, space.sizes, strict=True):
        index = xp.astype(xp.arange(count, **space.place), space.dtype)
        graded = space.as_leaf((1.0 + index / (2.0 * count)) / 16.0, leaf)
        moves.append(graded * xp.where(leaf == 0, xp.ones_like(leaf), leaf))
    return tuple(moves)
