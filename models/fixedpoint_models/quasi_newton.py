"""Quasi-Newton steps in an input, each sample in a trust region of its own."""

from __future__ import annotations

from typing import NamedTuple

from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.space import Space
from fixedpoint.spaces import space_of

# The part of the predicted fall from which a step is good, and below which it is poor.
_GOOD, _POOR = 0.7, 0.25

# A step may be this many times longer than those before; after a poor one it is this
# part of it.
_GROWTH, _SHRINKAGE = 2.0, 0.5

# Powell: the curvature along a step is at least this part of what the model says.
_CURVATURE = 0.2

# The first curvature that is seen shrinks the whole model to what it says, but not
# further than this: far from a minimum the matrix of Gauss and Newton is too large.
_SMALLEST = 0.2

# How far a value may be off, as a part of what is not finished, and of what was
# predicted.
_DOUBT = 0.5

# A value is noted as so many times what is unfinished of it higher than it looks: one
# that is too low vetoes what follows.
_NOTED = 2.0

# A trial waits while the correction of its gradient is more than this part of the
# gradient, or what is unfinished of its value than this part of the predicted fall; but
# not for more than so many steps.
_LEFT, _WAITS = 0.5, 4

# Where the curvature takes no more than this part of the slope off a step, it is not
# made smaller: the radius bounds the step, and B would grow without bound.
_FREE = 0.1


class Memory(NamedTuple):
    """The quadratic model of each sample, about the last input that was accepted.

    Attributes
    ----------
    x, gradient, value : array
        That input, and φ's gradient and value there.
    inverse : array (samples, entries, entries)
        B, in the place of the inverse of φ's Hessian: positive definite.
    radius : array
        What a step is shortened to.
    untried : array
        1 until a curvature has been seen, then 0.
    rejected : array
        1 where the last trial was rejected, else 0.
    waited : array
        For how many steps the trial has been waiting to be judged.
    """

    x: Array
    gradient: Array
    value: Array
    inverse: Array
    radius: Array
    untried: Array
    rejected: Array
    waited: Array

    def newton(self) -> Array:
        """The step −Bg."""
        step: Array = -(self.inverse @ self.gradient[..., None])[..., 0]
        return step


class Trial(NamedTuple):
    """What is known of φ at a trial, up to what is not finished.

    Attributes
    ----------
    x, gradient, value : array
        The trial, and φ's gradient and value there.
    unfinished : array
        By how much the value may be off.
    left : array
        The length of the gradient's correction.
    """

    x: Array
    gradient: Array
    value: Array
    unfinished: Array
    left: Array


def opened(
    space: Space, x: Array, gradient: Array, value: Array, inverse: Array
) -> Memory:
    """The memory before the first step, which is −Bg."""
    infinite = space.full(float("inf"))
    one, zero = space.full(1.0), space.full(0.0)
    free = Memory(x, gradient, value, inverse, infinite, one, zero, zero)
    return free._replace(radius=_GROWTH * _norm(space, free.newton()))


def step_of(space: Space, memory: Memory) -> Array:
    """−Bg, no longer than the radius."""
    step = memory.newton()
    length, radius = _norm(space, step), memory.radius
    part = space.xp.where(length > radius, space.ratio(radius, length), space.one)
    return part[:, None] * step


def moved(backend: Backend, *arrays: Array) -> Vec:
    """What is remembered after a trial, the next one's distance, where this one was
    accepted, and where it waits.

    `arrays` are the parts of a :class:`Trial` and of a :class:`Memory`. What was seen
    of the curvature counts where a trial is rejected, too. After two rejections the
    sample returns to the last accepted input, whose gradient and value are renewed
    there: they may be what was wrong.
    """
    found, memory = Trial(*arrays[:5]), Memory(*arrays[5:])
    space = space_of(backend, (found.x,), 1)
    xp, where, step = space.xp, space.xp.where, found.x - memory.x
    length = _norm(space, step)
    # A step is a part of −Bg, and its product with B⁻¹ that part of −g.
    part = space.ratio(length, _norm(space, memory.newton()))
    curved = -part[:, None] * memory.gradient
    predicted = -(1.0 - 0.5 * part) * space.xp.vecdot(memory.gradient, step)
    waits = _waits(space, memory, found, predicted)
    accepted, ratio = _accepted(space, memory, found, predicted)
    accepted, rejected = accepted & ~waits, ~accepted & ~waits
    returns = rejected & (memory.rejected > 0.0)
    inverse, untried = _updated(space, memory, step, curved, found, waits)
    radius = _radius(space, memory.radius, length, ratio)
    after = Memory(
        where(accepted[:, None], found.x, memory.x),
        where(accepted[:, None], found.gradient, memory.gradient),
        where(accepted, found.value + _NOTED * xp.abs(found.unfinished), memory.value),
        inverse,
        where(waits, memory.radius, radius),
        untried,
        where(waits, memory.rejected, xp.astype(rejected & ~returns, space.dtype)),
        where(waits, memory.waited + 1.0, space.zero),
    )
    aim = where(returns[:, None], space.zero, step_of(space, after))
    return (*after, where(waits[:, None], step, aim), accepted, waits)


def _waits(space: Space, memory: Memory, found: Trial, predicted: Array) -> Array:
    """Whether too much is unfinished for a trial to be judged.

    It waits for no more than a few steps: there may be no equilibrium that sweeps find.
    At the last accepted input it waits for as long as it takes: all that follows is
    compared with what is found there. There the fall is that of the next step.
    """
    xp, home = space.xp, predicted == 0.0
    ahead = -0.5 * xp.vecdot(memory.gradient, step_of(space, memory))
    ahead = ahead + 100 * space.precision * xp.abs(memory.value)
    fall = xp.abs(xp.where(home, ahead, predicted))
    left = found.left > _LEFT * _norm(space, found.gradient)
    left = left | (xp.abs(found.unfinished) > _LEFT * fall)
    return left & (home | (memory.waited < _WAITS))


def _accepted(
    space: Space, memory: Memory, found: Trial, predicted: Array
) -> tuple[Array, Array]:
    """Whether a trial is accepted, and its fall as a part of what was predicted.

    Nothing is known of the first value where samples start from inputs of their own:
    what is found there is accepted. What is not a number is not.
    """
    xp, known = space.xp, memory.value < space.infinity
    sound = found.value + xp.vecdot(found.gradient, found.gradient) < space.infinity
    # A fall that is lost in rounding counts as predicted.
    rounding = 100 * space.precision * xp.abs(memory.value)
    unfinished = xp.minimum(xp.abs(found.unfinished), xp.abs(predicted))
    fall = memory.value - found.value
    fell = fall >= -rounding - _DOUBT * unfinished
    ratio = space.ratio(fall + rounding, predicted + rounding)
    ratio = xp.where(known, ratio, 0.5 * (_GOOD + _POOR))
    returned = predicted == 0.0
    return sound & (~known | fell | returned), xp.where(sound, ratio, -space.one)


def _radius(space: Space, radius: Array, length: Array, ratio: Array) -> Array:
    """The radius after a step of this length, which kept so much of its promise."""
    where, longer = space.xp.where, space.xp.maximum(radius, _GROWTH * length)
    radius = where(ratio > _GOOD, longer, radius)
    return where((ratio < _POOR) & (length > 0.0), _SHRINKAGE * length, radius)


def _updated(
    space: Space, memory: Memory, step: Array, curved: Array, found: Trial, waits: Array
) -> tuple[Array, Array]:
    """B after the BFGS update, damped as Powell's is; and what is still untried.

    The first update scales B as well (Shanno and Phua, Math. Program. 14, 1978).
    Changes of the gradient that are mostly what is left to be corrected, or rounding,
    tell nothing.
    """
    xp, dot = space.xp, space.xp.vecdot
    change = found.gradient - memory.gradient
    expected, seen, size = dot(step, curved), dot(step, change), _norm(space, change)
    noise = found.left + 100 * space.precision * _norm(space, memory.gradient)
    free = (expected < -_FREE * dot(step, memory.gradient)) & (seen < expected)
    learns = (expected > 0.0) & (size > noise) & (size < space.infinity)
    learns = learns & ~free & ~waits
    scale = xp.clip(space.ratio(seen, expected), _SMALLEST, 1.0)
    scale = xp.where(learns & (memory.untried > 0.0), scale, space.one)
    curved, expected = scale[:, None] * curved, scale * expected
    short = seen < _CURVATURE * expected
    blend = space.ratio((1 - _CURVATURE) * expected, expected - seen)
    blend = xp.where(short, blend, space.one)[:, None]
    change = blend * change + (1 - blend) * curved
    step, change = (xp.where(learns[:, None], v, space.zero) for v in (step, change))
    inverse = memory.inverse / scale[:, None, None]
    untried = xp.where(learns, space.zero, memory.untried)
    return inverse + _secant(space, inverse, step, change), untried


def _secant(space: Space, inverse: Array, step: Array, change: Array) -> Array:
    """What BFGS adds to B, so that it takes the change of the gradient to the step.

    σ[(1 + σ yᵀBy) ssᵀ − Bysᵀ − s(By)ᵀ] = asᵀ + saᵀ, with σ = 1/sᵀy.
    """
    xp, dot = space.xp, space.xp.vecdot
    image = (inverse @ change[..., None])[..., 0]
    gain = space.ratio(space.one, dot(step, change))[:, None]
    a = gain * (0.5 * (1.0 + gain * dot(change, image)[:, None]) * step - image)
    columns, rows = xp.stack([a, step], axis=-1), xp.stack([step, a], axis=-2)
    return columns @ rows


def _norm(space: Space, u: Array) -> Array:
    return space.backend.norm(u, "euclidean")
