"""Sweeps of state and adjoint, and what they tell of an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import add, sub
from typing import Any, NamedTuple

from array_api_compat import array_namespace

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.adapters import backend_of
from fixedpoint.backend import Array, Vec
from fixedpoint.operators import Joint, Lagrangian
from fixedpoint.operators.augmented import Local
from fixedpoint.operators.base import leafwise
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.space import Space
from fixedpoint.spaces import space_of

# A value is in doubt by no less than this part of its correction.
_SLOW = 0.1

# A trial at which things are so many times as large is not looked at any further.
RUNAWAY = 1e3


class Tracked(NamedTuple):
    """z and μ after some sweeps, and what the last one told.

    Attributes
    ----------
    state, adjoint : Vec
        z and μ.
    defect, adjoint_defect : Vec
        By how much the last sweep changed them.
    gradient : Vec
        (∂f/∂x)ᵀμ + ∂ℓ/∂x.
    objective : array
        ℓ per sample.
    """

    state: Vec
    adjoint: Vec
    defect: Vec
    adjoint_defect: Vec
    gradient: Vec
    objective: Array

    def value(self, states: Space) -> tuple[Array, Array]:
        """φ ≈ ℓ + μᵀ[f(z, x) − z], and how far it may be off."""
        xp = states.xp
        shift = states.dot(self.adjoint, self.defect)
        product = xp.abs(states.dot(self.adjoint_defect, self.defect))
        # Where sweeps contract slowly, both defects are small, and their errors are
        # not.
        return self.objective + shift, xp.maximum(product, _SLOW * xp.abs(shift))


@dataclass(frozen=True, eq=False)
class Sweeping:
    """The augmented system near a state: f, ℓ, and what they are given.

    Parameters
    ----------
    lagrangian : Lagrangian
        f and ℓ.
    like : dict
        A state ``{"z", "mu", "x"}`` in the user's arrays.
    params, y
        What f and ℓ take.
    """

    lagrangian: Lagrangian
    like: Any
    params: Any
    y: Any

    def parts(self, leaves: Vec) -> tuple[Vec, Vec, Vec]:
        """The leaves of μ, x and z."""
        split = len(tree.flatten(self.like["z"])[0])
        return leaves[:split], leaves[split:-split], leaves[-split:]

    def told(self, xp: Any, here: Local, state: Any, adjoint: Any) -> Tracked:
        """What a last sweep of both tells, with f and ℓ linearized at the state."""
        own = partial(taken, xp)
        pulled, pulled_input = here.pullback(adjoint)
        after = leafwise(add, pulled, here.slope)
        return Tracked(
            own(here.value),
            own(after),
            own(leafwise(sub, here.value, state)),
            own(leafwise(sub, after, adjoint)),
            own(leafwise(add, pulled_input, here.direct)),
            xp.asarray(here.objective),
        )

    def given(self, name: str, leaves: Vec) -> Any:
        """The user's container of a block's leaves."""
        like, structure = tree.flatten(self.like[name])
        xp = array_namespace(*like)
        return structure.rebuild([xp.asarray(leaf) for leaf in leaves])


def near(problem: Problem, point: Point) -> Any:
    """The augmented system near a point: what a method gave in place of a matrix."""
    given: Any = problem.functions.jacobian
    return given(point.value, problem.args)


def is_sound(problem: Problem, point: Point, new: Point) -> Array:
    """Whether a trial from a point has not run away, in any block.

    Each is in units of its own. From zero there is nothing to compare one with.
    """
    space, old = problem.space, problem.parts(point)
    rows = zip(problem.parts(new).sizes, old.sizes, old.scales, strict=True)
    most = [(size, RUNAWAY * (left + scale)) for size, left, scale in rows]
    sound = [(size <= m) | ((m == 0.0) & (size < space.xp.inf)) for size, m in most]
    return space.every(sound)


def linearized(
    joint: Joint, args: tuple[Any, ...], batch_ndim: int
) -> Callable[[Any], Callable[[Any], Any]]:
    """What takes a state to the products with the joint map's derivative there.

    Methods that give what they need as the map's matrix have no other.
    """

    def there(value: Any) -> Callable[[Any], Any]:
        control: dict[str, Any] = {"max_steps": 0, "on_failure": "return"}
        found = fp.fixed_point(joint, value, args, batch_ndim=batch_ndim, **control)
        return found.linearize()

    return there


def space_of_samples(container: Any) -> Space:
    """The space of the leaves of a container, whose first axis indexes samples."""
    leaves = tuple(tree.flatten(container)[0])
    backend = backend_of(leaves, tree.paths(container, "z0"))
    return space_of(backend, leaves, 1)


def rebuilt(like: Any, leaves: Vec) -> Any:
    """The container of leaves that is made as another one."""
    return tree.flatten(like)[1].rebuild(leaves)


def taken(xp: Any, container: Any) -> Vec:
    """The leaves of a container as arrays of a namespace."""
    return tuple([xp.asarray(leaf) for leaf in tree.flatten(container)[0]])
