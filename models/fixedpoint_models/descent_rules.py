"""How an input moves along its gradient: the rules of a descent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fixedpoint import tree
from fixedpoint.backend import Vec
from fixedpoint.checks import check_positive
from fixedpoint.functions import Bridge
from fixedpoint.keywords import by_name
from fixedpoint.space import Space


class DescentRule(ABC):
    """How an input moves along its gradient; it remembers arrays shaped like the
    input.

    Where inputs are to lie in a set, the method projects them onto it after each move.
    """

    @abstractmethod
    def start(self, inputs: Inputs, x: Vec) -> tuple[Vec, ...]:
        """What is remembered before the first step."""

    @abstractmethod
    def move(
        self, inputs: Inputs, x: Vec, gradient: Vec, memory: tuple[Vec, ...]
    ) -> tuple[Vec, tuple[Vec, ...]]:
        """The next input, and what is remembered then."""

    def across(self, bridge: Bridge) -> DescentRule:
        """The rule for arrays of another library: the user's functions see theirs."""
        del bridge
        return self


@dataclass(frozen=True)
class _Across:
    """A function on containers of the user's arrays, for those of another library."""

    function: Callable[[Any], Any]
    bridge: Bridge

    def __call__(self, container: Any) -> Any:
        leaves, structure = tree.flatten(container)
        given = structure.rebuild(self.bridge.all_back(tuple(leaves)))
        leaves, structure = tree.flatten(self.function(given))
        return structure.rebuild(self.bridge.all_there(tuple(leaves)))


@dataclass(frozen=True)
class Inputs:
    """The space of inputs, and the container that the user knows them in."""

    space: Space
    structure: tree.Structure

    def container(self, x: Vec) -> Any:
        """The input as the user knows it."""
        return self.structure.rebuild(x)

    def leaves(self, container: Any) -> Vec:
        """The inverse of :meth:`container`."""
        return tuple(tree.flatten(container)[0])


@by_name
@dataclass(frozen=True, kw_only=True)
class Momentum(DescentRule):
    """Gradient steps with Nesterov's momentum: v ← βv + g, x ← x − α(g + βv).

    Parameters
    ----------
    step_size : float
        The step α.
    momentum : float in [0, 1), optional
        The factor β.
    normalized : bool, optional
        Whether g is the gradient of each sample divided by its norm.

    References
    ----------
    Nesterov, "A method for solving the convex programming problem with convergence rate
    O(1/k²)", Soviet Math. Dokl. 27, 1983; in the form of Sutskever, Martens, Dahl and
    Hinton, ICML 2013.
    """

    step_size: float
    momentum: float = 0.0
    normalized: bool = False

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum!r}")

    def start(self, inputs: Inputs, x: Vec) -> tuple[Vec, ...]:
        """The velocity zero, if there is momentum."""
        return (inputs.space.zeros(x),) if self.momentum else ()

    def move(
        self, inputs: Inputs, x: Vec, gradient: Vec, memory: tuple[Vec, ...]
    ) -> tuple[Vec, tuple[Vec, ...]]:
        """One step."""
        space = inputs.space
        if self.normalized:
            gradient = space.scale(
                space.ratio(space.one, space.norm(gradient)), gradient
            )
        if not self.momentum:
            return space.subtract(x, space.scale(self.step_size, gradient)), ()
        velocity = space.add(space.scale(self.momentum, memory[0]), gradient)
        ahead = space.add(gradient, space.scale(self.momentum, velocity))
        return space.subtract(x, space.scale(self.step_size, ahead)), (velocity,)


@by_name
@dataclass(frozen=True, kw_only=True)
class BarzilaiBorwein(DescentRule):
    """Gradient steps x ← x − αg, α per sample from the last step s and y = Δg.

    α = ⟨s, s⟩/⟨s, y⟩ where that is positive, and the last one elsewhere; no more than
    `growth` times the last one. It is not monotone.

    Parameters
    ----------
    step_size : float
        The first α.
    growth : float, optional
        How much α may grow at a step.

    References
    ----------
    Barzilai and Borwein, "Two-point step size gradient methods", IMA J. Numer. Anal. 8,
    1988.
    """

    step_size: float
    growth: float = 4.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_positive("growth", self.growth, math.inf)

    def start(self, inputs: Inputs, x: Vec) -> tuple[Vec, ...]:
        """The last input and gradient, and α, in every entry of an array like them."""
        zeros = inputs.space.zeros(x)
        return zeros, zeros, inputs.space.zeros(x)

    def move(
        self, inputs: Inputs, x: Vec, gradient: Vec, memory: tuple[Vec, ...]
    ) -> tuple[Vec, tuple[Vec, ...]]:
        """One step."""
        space, xp = inputs.space, inputs.space.xp
        last, slope, sizes = memory
        step, change = space.subtract(x, last), space.subtract(gradient, slope)
        curvature = space.dot(step, change)
        known = space.norm(sizes, "max")
        first = known == 0.0
        size = xp.minimum(
            space.ratio(space.dot(step, step), curvature), self.growth * known
        )
        size = xp.where(curvature > 0.0, size, known)
        size = xp.where(first, xp.full_like(known, self.step_size), size)
        moved = space.subtract(x, space.scale(size, gradient))
        return moved, (x, gradient, space.scale(size, tuple(map(xp.ones_like, x))))


@by_name
@dataclass(frozen=True, kw_only=True)
class ConditionalGradient(DescentRule):
    """Steps toward the point of C that is best for the linearized loss, x ← x + γ(x̂ −
    x).

    With x̂ = argmin over C of ⟨g, x̂⟩. Where the loss falls along every direction that
    grows, as that of an attack does, the minimum lies on the boundary, and γ = 1 goes
    there at once: a generalized power iteration.

    Parameters
    ----------
    oracle : callable
        Takes the gradient g, a container like x, to x̂.
    step_size : float in (0, 1], optional
        The step γ.

    References
    ----------
    Frank and Wolfe, "An algorithm for quadratic programming", Naval Res. Logist. Quart.
    3, 1956; Journée, Nesterov, Richtárik and Sepulchre, "Generalized power method for
    sparse principal component analysis", JMLR 11, 2010.
    """

    oracle: Callable[[Any], Any]
    step_size: float = 1.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size, 1.0)

    def across(self, bridge: Bridge) -> ConditionalGradient:
        """The rule whose oracle sees arrays of the user's library."""
        return replace(self, oracle=_Across(self.oracle, bridge))

    def start(self, inputs: Inputs, x: Vec) -> tuple[Vec, ...]:
        """Nothing is remembered."""
        del inputs, x
        return ()

    def move(
        self, inputs: Inputs, x: Vec, gradient: Vec, memory: tuple[Vec, ...]
    ) -> tuple[Vec, tuple[Vec, ...]]:
        """One step."""
        space, oracle = inputs.space, self.oracle
        target = inputs.leaves(oracle(inputs.container(gradient)))
        step = space.scale(self.step_size, space.subtract(target, x))
        return space.add(x, step), memory
