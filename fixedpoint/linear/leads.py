"""What leads the space of a cycle of GMRES: what is known of such systems."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.columns import Columns
from fixedpoint.matrix import times
from fixedpoint.space import Space


class Corrections(NamedTuple):
    """What is kept of the systems before."""

    vectors: Columns  # the correction of a cycle, then a ring of unit solutions
    count: Any  # solutions so far
    wanted: Array  # whether they pay: the last system took more products than they will

    def rows(self, space: Space) -> int:
        """How many solutions there is room for."""
        return self.vectors.width(space) - 1

    def leads(self, space: Space) -> Leads:
        """The solutions, before the first cycle."""
        count, rows = self.count, self.rows(space)
        known = isinstance(count, int)
        count = min(count, rows) if known else space.xp.minimum(count, rows)
        return Leads(self.vectors, 1, count, self.wanted)

    def followed(self, space: Space, x: Vec) -> Corrections:
        """The solutions with one more, in place of the oldest."""
        slot = 1 + self.count % self.rows(space)
        vectors = _with_unit(space, self.vectors, slot, x)
        return self._replace(vectors=vectors, count=self.count + 1)


class Leads(NamedTuple):
    """What leads the space of a cycle: some of the `vectors`."""

    vectors: Columns
    first: Any  # the first one that does
    count: Any  # how many do
    wanted: Array  # the samples in which they do

    def renewed(self, space: Space, step: Vec, wanted: Array) -> Leads:
        """The correction of a cycle, which leads the next one."""
        return Leads(_with_unit(space, self.vectors, 0, step), 0, 1, wanted)


def _with_unit(space: Space, vectors: Columns, slot: Any, u: Vec) -> Columns:
    """The vectors with u, brought to length one, in place of that at `slot`."""
    unit = space.ratio(space.one, space.norm(u))
    return vectors.push_scaled(space, slot, unit, u)[0]


def is_led(leads: Leads | None, slot: Any) -> Any:
    """Whether the direction `slot` is along what is known, by sample; False where all
    are known not to be.
    """
    if leads is None or (isinstance(leads.count, int) and slot >= leads.count):
        return False
    return leads.wanted & (slot < leads.count)


def leading(
    space: Space, leads: Leads | None, slot: Any, other: Vec, unit: Array
) -> tuple[Vec, Array]:
    """What leads the direction `slot`, or the `other`, and one over its length."""
    led = is_led(leads, slot)
    if leads is None or led is False:
        return other, unit
    lead = leads.vectors.column(space, leads.first + slot)
    return space.either(led, lead, other), space.select(led, space.one, unit)


def led_by(space: Space, x: Vec, leads: Leads, y: Array) -> Vec:
    """The solution with what the directions that were known have of it."""
    rows = space.xp.arange(leads.vectors.width(space), **space.place)
    slots = space.xp.arange(y.shape[-1], **space.place)
    which = (rows[:, None] == leads.first + slots) & (slots < leads.count)
    y = space.select(leads.wanted[..., None], y, space.zero)
    weights = times(space, space.as_coefficient(which), y)
    return leads.vectors.added_to(space, x, weights)
