"""Sweeps of state and adjoint, and what they tell of an input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from fixedpoint import tree
from fixedpoint.backend import Array, Vec, backend_of
from fixedpoint.operators import Lagrangian
from fixedpoint.operators.base import leafwise
from fixedpoint.space import Space
from fixedpoint_models.sensitivity import alike

# The sweeps of a step leave this part of a defect, and after some steps less from step
# to step: a model of the curvature is worth as much as the gradients it is made of.
_FIRST, _EARLY, _TIGHTER, _LAST = 0.15, 4, 0.6, 0.01

# Sweeps at least, at most in the first steps, and at most; and the part of the steps
# taken that they are at least.
_LEAST, _FEW, MOST, _SLOWER = 3, 8, 20, 4

# The equilibrium that everything starts from: its relative tolerance, and sweeps at
# most.
_ROUGH, _SWEEPS = 1e-3, 100


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
    rate : float
        The rate at which sweeps contract.
    """

    lagrangian: Lagrangian
    like: Any
    params: Any
    y: Any
    rate: Any

    def parts(self, leaves: Vec) -> tuple[Vec, Vec, Vec]:
        """The leaves of μ, x and z."""
        split = len(tree.flatten(self.like["z"])[0])
        return leaves[:split], leaves[split:-split], leaves[-split:]

    def sweeps(self, count: Any) -> int:
        """The sweeps of a step, `count` steps before it.

        They depend on no sample, or one would depend on its neighbors.
        """
        if not isinstance(self.rate, float):  # in a trace nothing is known
            return _FEW
        wanted = max(_FIRST * _TIGHTER ** max(count - _EARLY, 0), _LAST)
        most = _FEW if count <= _EARLY else MOST
        rate = min(max(self.rate, 0.05), 0.999)
        sweeps: int = min(
            max(math.ceil(math.log(wanted) / math.log(rate)), _LEAST), most
        )
        # What is left after so many steps contracts more slowly.
        return max(sweeps, int(count) // _SLOWER)

    def swept(self, xp: Any, z: Vec, mu: Vec, x: Vec, sweeps: int) -> Tracked:
        """Z and μ after so many sweeps, one of which came before; μ's are products at
        the last z.
        """
        given, own = self._given, partial(taken, xp)
        state, adjoint, at = given("z", z), given("mu", mu), given("x", x)
        for _ in range(sweeps - 2):
            state = self.lagrangian.f(state, at, self.params)
        here = self.lagrangian.at(state, at, self.params, self.y)
        for _ in range(sweeps - 1):
            before = adjoint
            pulled, pulled_input = here.pullback(before)
            adjoint = leafwise(_plus, pulled, here.slope)
        return Tracked(
            own(here.value),
            own(adjoint),
            own(leafwise(_minus, here.value, state)),
            own(leafwise(_minus, adjoint, before)),
            own(leafwise(_plus, pulled_input, here.direct)),
            xp.asarray(here.objective),
        )

    def _given(self, name: str, leaves: Vec) -> Any:
        """The user's container of a block's leaves."""
        like, structure = tree.flatten(self.like[name])
        xp = array_namespace(*like)
        return structure.rebuild([xp.asarray(leaf) for leaf in leaves])


def equilibrium(
    lagrangian: Lagrangian, z: Any, x: Any, params: Any
) -> tuple[Any, Any, int]:
    """A rough equilibrium, the rate at which the sweeps contracted that led there, and
    how many they were.
    """
    space, leaves = space_of(z), tuple(tree.flatten(z)[0])
    traced = space.backend.is_traced((*leaves, *tree.flatten((x, params))[0]))
    xp, before, rate, count = space.xp, None, 0.0, 0
    while count < (MOST if traced else _SWEEPS):
        count += 1
        image = alike(tree.flatten(lagrangian.f(z, x, params))[0], leaves)
        z, change, leaves = rebuilt(z, image), space.subtract(image, leaves), image
        if traced:
            continue
        size = space.norm(change)
        if before is not None:
            rate = float(xp.max(space.ratio(size, before)))
        before = size
        if not space.backend.any(size > _ROUGH * space.norm(leaves)):
            break
    return z, space.zero if traced else rate, count


def space_of(container: Any) -> Space:
    """The space of the leaves of a container, whose first axis indexes samples."""
    leaves = tuple(tree.flatten(container)[0])
    backend = backend_of(leaves, tree.paths(container, "z0"))
    return Space.of(backend, leaves, 1)


def rebuilt(like: Any, leaves: Vec) -> Any:
    """The container of leaves that is made as another one."""
    return tree.flatten(like)[1].rebuild(leaves)


def taken(xp: Any, container: Any) -> Vec:
    """The leaves of a container as arrays of a namespace."""
    return tuple([xp.asarray(leaf) for leaf in tree.flatten(container)[0]])


def _plus(a: Array, b: Array) -> Array:
    return a + b


def _minus(a: Array, b: Array) -> Array:
    return a - b
