"""The augmented system by descent in the input, state and adjoint tracked by a few
evaluations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fixedpoint import tree
from fixedpoint.backend import Array, Vec, backend_of
from fixedpoint.checks import check_count, check_positive
from fixedpoint.operators.augmented import Lagrangian, Linearization
from fixedpoint.operators.base import Evaluation, Operator, leafwise
from fixedpoint.space import Space

Projection = Callable[[Any], Any]


class DescentRule(ABC):
    """How an input moves along its gradient; it remembers arrays shaped like the
    input.
    """

    @abstractmethod
    def start(self, inputs: Inputs, x: Vec) -> tuple[Vec, ...]:
        """What is remembered before the first step."""

    @abstractmethod
    def move(
        self, inputs: Inputs, x: Vec, gradient: Vec, memory: tuple[Vec, ...]
    ) -> tuple[Vec, tuple[Vec, ...]]:
        """The next input, and what is remembered then."""


@dataclass(frozen=True)
class Inputs:
    """The space of inputs, and the set C that they are to lie in."""

    space: Space
    structure: Any
    projection: Projection | None

    def container(self, x: Vec) -> Any:
        """The input as the user knows it."""
        return self.structure.rebuild(x)

    def leaves(self, container: Any) -> Vec:
        """The inverse of :meth:`container`."""
        return tuple(tree.flatten(container)[0])

    def projected(self, x: Vec) -> Vec:
        """Π(x)."""
        return (
            x
            if self.projection is None
            else self.leaves(self.projection(self.container(x)))
        )


@dataclass(frozen=True, kw_only=True)
class Momentum(DescentRule):
    """Projected gradient steps with Nesterov's momentum: v ← βv + g, x ← Π(x − α(g +
    βv)).

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
            return inputs.projected(
                space.subtract(x, space.scale(self.step_size, gradient))
            ), ()
        velocity = space.add(space.scale(self.momentum, memory[0]), gradient)
        ahead = space.add(gradient, space.scale(self.momentum, velocity))
        return inputs.projected(
            space.subtract(x, space.scale(self.step_size, ahead))
        ), (velocity,)


@dataclass(frozen=True, kw_only=True)
class BarzilaiBorwein(DescentRule):
    """Projected gradient steps, x ← Π(x − αg), α per sample from the last step s and y
    = Δg.

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
        check_positive("growth", self.growth)

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
        moved = inputs.projected(space.subtract(x, space.scale(size, gradient)))
        return moved, (x, gradient, space.scale(size, tuple(map(xp.ones_like, x))))


@dataclass(frozen=True, kw_only=True)
class ConditionalGradient(DescentRule):
    """Steps towards the point of C that is best for the linearized loss, x ← x + γ(x̂ −
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

    def start(self, inputs: Inputs, x: Vec) -> tuple[Vec, ...]:
        """Nothing is remembered."""
        del inputs, x
        return ()

    def move(
        self, inputs: Inputs, x: Vec, gradient: Vec, memory: tuple[Vec, ...]
    ) -> tuple[Vec, tuple[Vec, ...]]:
        """One step."""
        space, target = (
            inputs.space,
            inputs.leaves(self.oracle(inputs.container(gradient))),
        )
        return space.add(
            x, space.scale(self.step_size, space.subtract(target, x))
        ), memory


@dataclass(frozen=True)
class TrackedDescent(Operator):
    """Descent in the input x, the state z and its adjoint μ tracked: a single loop.

    One application takes z ← f(z, x) and μ ← (∂f/∂z)ᵀμ + ∂ℓ/∂z a number of times, each
    at the cost of one evaluation of f and one vector-Jacobian product, and then moves x
    by a rule along the gradient ∇ₓL = (∂f/∂x)ᵀμ + ∂ℓ/∂x that the last of these gave.
    Neither z nor μ is ever solved for: as x comes to rest, they arrive.

    States are ``{"z", "mu", "x", "memory"}``, made by :meth:`start`; args are
    ``(params, y)``. It is to be iterated plainly, by
    ``fixedpoint.Picard(keep_last=True)``.

    Parameters
    ----------
    lagrangian : Lagrangian
        f and ℓ.
    rule : DescentRule
        How x moves: :class:`Momentum`, :class:`BarzilaiBorwein` or
        :class:`ConditionalGradient`.
    project : callable, optional
        The projection onto the set C of inputs, the identity by default.
    sweeps : int, optional
        Evaluations for each move of x. The fewer, the more the gradient lags behind.
    batch_ndim : int, optional
        How many axes index samples.

    References
    ----------
    Hinze, Pinnau, Ulbrich and Ulbrich, "Optimization with PDE Constraints", Springer
    2009; Ta'asan, "One shot methods for optimal control of distributed parameter
    systems", ICASE Report 91-2, 1991.

    Examples
    --------
    The least ⟨c, z⟩ with z = z/2 + x over the unit ball is at x = −c/‖c‖:

    >>> import torch, fixedpoint as fp
    >>> from fixedpoint.operators import ConditionalGradient, Lagrangian, TrackedDescent
    >>> lagrangian = Lagrangian(
    ...     lambda z, x, _: 0.5 * z + x, lambda z, x, c, _: (c * z).sum(-1))
    >>> rule = ConditionalGradient(oracle=lambda g: -g / g.norm(dim=-1, keepdim=True))
    >>> ball = lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1.0)
    >>> descent = TrackedDescent(lagrangian, rule, ball)
    >>> c, zero = torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)
    >>> sol = fp.fixed_point(descent, descent.start(zero, zero), (None, c),
    ...                      solver=fp.Picard(keep_last=True), batch_ndim=1)
    >>> [round(v, 3) for v in sol.value["x"][0].tolist()]
    [-0.6, -0.8]
    """

    lagrangian: Lagrangian
    rule: DescentRule
    project: Projection | None = None
    sweeps: int = 2
    batch_ndim: int = 1

    blocks = ("mu", "x", "z")

    def __post_init__(self) -> None:
        check_count("sweeps", self.sweeps, 1)

    def start(self, z: Any, x: Any, mu: Any = None) -> dict[str, Any]:
        """The first state, with the adjoint zero unless it is given."""
        backend = backend_of(tree.flatten(z)[0], tree.paths(z, "z"))
        zeros = backend.namespace(tree.flatten(z)[0][0]).zeros_like
        inputs = self._inputs(x)
        memory = [
            inputs.container(part) for part in self.rule.start(inputs, inputs.leaves(x))
        ]
        return {
            "z": z,
            "mu": leafwise(zeros, z) if mu is None else mu,
            "x": x,
            "memory": memory,
        }

    def evaluate(self, state: Any, params: Any, y: Any) -> Evaluation:
        """As many evaluations of f and ℓ, and reverse passes, as there are sweeps."""
        here = self.lagrangian(state, params, y)
        residual, x = self._residual(state, here), state["x"]
        for _ in range(self.sweeps - 1):
            here = self.lagrangian(_advanced(here, x), params, y)
        inputs = self._inputs(x)
        memory = tuple(inputs.leaves(part) for part in state["memory"])
        moved, memory = self.rule.move(
            inputs, inputs.leaves(x), inputs.leaves(here.input_gradient), memory
        )
        parts = [inputs.container(part) for part in memory]
        return Evaluation(
            {**_advanced(here, inputs.container(moved)), "memory": parts}, residual
        )

    def _inputs(self, x: Any) -> Inputs:
        leaves, structure = tree.flatten(x)
        backend = backend_of(leaves, tree.paths(x, "x"))
        return Inputs(
            Space.of(backend, tuple(leaves), self.batch_ndim), structure, self.project
        )

    def _residual(self, state: Any, here: Linearization) -> dict[str, Any]:
        """The blocks of the KKT residual; what is remembered is right by itself."""
        x = state["x"]
        full = leafwise(_minus, x, here.input_gradient)
        full = full if self.project is None else self.project(full)
        return {
            "z": leafwise(_minus, here.value, state["z"]),
            "mu": leafwise(_minus, here.state_gradient, state["mu"]),
            "x": leafwise(_minus, full, x),
            "memory": [leafwise(_minus, part, part) for part in state["memory"]],
        }


def _advanced(here: Linearization, x: Any) -> dict[str, Any]:
    return {"z": here.value, "mu": here.state_gradient, "x": x}


def _minus(a: Array, b: Array) -> Array:
    return a - b
