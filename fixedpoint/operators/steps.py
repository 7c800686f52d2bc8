"""Steps in an input: where they lead, and what is learned from them."""

from __future__ import annotations

from typing import NamedTuple

from fixedpoint.backend import Array
from fixedpoint.space import Space

# The part of the foretold fall from which a step is good, and below which it is poor.
_GOOD, _POOR = 0.7, 0.3

# A step may be this many times longer than those before, and after a poor one this part
# of it.
_GROWTH, _SHRINKAGE = 2.0, 0.25

# How much of the foretold fall may be in doubt, and after a return of the gradient.
_DOUBT, _SETTLED = 0.3, 0.1

# How the patience with an unfinished gradient falls: where too much was foretold, that
# may be why.
_STRICTER, _STRICTEST = 0.1, 0.02

# Powell: the curvature along a step is at least this part of what the Hessian says.
_CURVATURE = 0.2


class Memory(NamedTuple):
    """What is remembered of each sample's way.

    Attributes
    ----------
    x, gradient, value : array
        The last accepted input, and φ's gradient and value there.
    inverse : array (samples, entries, entries)
        B, in the place of the inverse of φ's Hessian.
    patience : array
        How much of a gradient may be left to be corrected when a step is judged.
    radius : array
        What a step is shortened to, unless it is zero.
    """

    x: Array
    gradient: Array
    value: Array
    inverse: Array
    patience: Array
    radius: Array

    @classmethod
    def first(
        cls, space: Space, x: Array, gradient: Array, value: Array, inverse: Array
    ) -> Memory:
        """At the start, from which the first step is −Bg."""
        free = cls(x, gradient, value, inverse, space.full(1.0), space.full(0.0))
        return free._replace(radius=_GROWTH * _norm(space, _newton(free)))

    def packed(self, space: Space) -> Array:
        """All of it in one array: every leaf of a state costs time."""
        x, gradient, value, inverse, *numbers = self
        entries = space.xp.reshape(inverse, (inverse.shape[0], -1))
        columns = [x, gradient, space.xp.stack([value, *numbers], axis=-1), entries]
        return space.xp.concat(columns, axis=-1)

    @classmethod
    def unpacked(cls, space: Space, packed: Array) -> Memory:
        """The inverse of :meth:`packed`."""
        n = space.real_size
        inverse = space.xp.reshape(packed[:, 2 * n + 3 :], (-1, n, n))
        value, *numbers = (packed[:, 2 * n + k] for k in range(3))
        return cls(packed[:, :n], packed[:, n : 2 * n], value, inverse, *numbers)


class Found(NamedTuple):
    """What an evaluation tells about φ at x, and what is not finished.

    Attributes
    ----------
    x, gradient, value : array
        The input, and φ's gradient and value there.
    doubt : array
        How far off the value may be on account of the adjoint.
    ahead, left : array
        How far the state has to go, and how large the gradient's correction is.
    """

    x: Array
    gradient: Array
    value: Array
    doubt: Array
    ahead: Array
    left: Array


def moved(
    space: Space, memory: Memory, found: Found, metric: Array, forcing: float
) -> tuple[Memory, Array, Array]:
    """What is remembered now, the next input, and where it is another one.

    A sample that tries a step waits until it can be judged. If it is accepted, the next
    one follows; if not, the sample goes home, to the last accepted input, and waits
    until the gradient there is right: it was noted on the way, and may be what was
    wrong.

    The `metric` takes a step in x to the length of what it moves the state by.
    """
    where, step = space.xp.where, found.x - memory.x
    # The way home is walked by a difference, which is rounded.
    rounding = 10 * space.precision * _norm(space, memory.x)
    home = _norm(space, step) <= rounding
    reach = where(home, space.zero, _length(space, step, metric))
    judged, ready, accepted = _judged(space, memory, found, step, reach, forcing)
    memory = judged._replace(
        gradient=where(home[:, None], found.gradient, judged.gradient),
        value=where(home, found.value + found.doubt, judged.value),
    )
    step = first_step(space, memory)
    near = found.ahead <= forcing * _length(space, step, metric)
    settled = home & near & (found.left <= _SETTLED * _norm(space, found.gradient))
    moves = ready | settled
    aim = where((accepted | settled)[:, None], memory.x + step, memory.x)
    return memory, where(moves[:, None], aim, found.x), moves


def first_step(space: Space, memory: Memory) -> Array:
    """−Bg, no longer than the radius."""
    step = _newton(memory)
    length = _norm(space, step)
    short = (memory.radius > 0.0) & (length > memory.radius)
    part = space.xp.where(short, space.ratio(memory.radius, length), space.one)
    return part[:, None] * step


def _judged(
    space: Space,
    memory: Memory,
    found: Found,
    step: Array,
    reach: Array,
    forcing: float,
) -> tuple[Memory, Array, Array]:
    """What is remembered after a step; and where it could be judged, and was
    accepted.
    """
    xp, where, dot = space.xp, space.xp.where, space.xp.vecdot
    change, length = found.gradient - memory.gradient, _norm(space, step)
    # A step is some part of −Bg, and so its product with B⁻¹ that part of −g.
    part = space.ratio(length, _norm(space, _newton(memory)))
    curved = -part[:, None] * memory.gradient
    bend = 0.5 * dot(step, curved)
    foretold = -dot(memory.gradient, step) - bend
    # A fall that is lost in rounding counts as foretold.
    rounding = 100 * space.precision * xp.abs(memory.value)
    fall = memory.value - found.value + rounding
    # What is not finished may neither hide a rise nor, noted as too low a value, veto
    # what follows.
    lag = space.ratio(found.ahead, reach)
    doubt = found.doubt + lag**2 * bend
    ready = (reach > 0.0) & (lag <= forcing)
    ready = ready & (doubt <= _DOUBT * xp.abs(foretold) + rounding)
    small = xp.minimum(_norm(space, found.gradient), _norm(space, change))
    ready = ready & (found.left <= memory.patience * small)
    accepted = ready & (fall >= 0.0)
    ratio = space.ratio(fall, foretold + rounding)
    strict = xp.clip(_STRICTER * memory.patience, _STRICTEST, 1.0)
    radius = xp.maximum(memory.radius, _GROWTH * length)
    radius = where(ratio > _GOOD, radius, memory.radius)
    radius = where(ratio < _POOR, _SHRINKAGE * length, radius)
    inverse = _updated(space, memory.inverse, step, curved, change)
    after = Memory(
        where(accepted[:, None], found.x, memory.x),
        where(accepted[:, None], found.gradient, memory.gradient),
        where(accepted, found.value + doubt, memory.value),
        where(accepted[:, None, None], inverse, memory.inverse),
        where(ready & (ratio < _POOR), strict, memory.patience),
        where(ready, radius, memory.radius),
    )
    return after, ready, accepted


def _updated(
    space: Space, inverse: Array, step: Array, curved: Array, change: Array
) -> Array:
    """The BFGS update of B, damped as Powell's is, which keeps it positive definite."""
    xp, dot = space.xp, space.xp.vecdot
    expected, found = dot(step, curved), dot(step, change)
    short = found < _CURVATURE * expected
    blend = space.ratio((1 - _CURVATURE) * expected, expected - found)
    blend = xp.where(short, blend, space.one)[:, None]
    change = blend * change + (1 - blend) * curved
    image = (inverse @ change[..., None])[..., 0]
    gain = space.ratio(space.one, dot(step, change))[:, None]
    # B + σ[(1 + σ yᵀBy) ssᵀ − Bysᵀ − s(By)ᵀ] = B + asᵀ + saᵀ
    a = gain * (0.5 * (1.0 + gain * dot(change, image)[:, None]) * step - image)
    added = a[:, :, None] * step[:, None, :]
    return inverse + added + xp.matrix_transpose(added)


def _newton(memory: Memory) -> Array:
    """−Bg."""
    step: Array = -(memory.inverse @ memory.gradient[..., None])[..., 0]
    return step


def _norm(space: Space, u: Array) -> Array:
    return space.backend.norm(u, "euclidean")


def _length(space: Space, step: Array, metric: Array) -> Array:
    """√(ΔxᵀGΔx)"""
    square = space.xp.vecdot(step @ metric, step)
    return space.xp.sqrt(space.xp.clip(square, 0.0, None))
