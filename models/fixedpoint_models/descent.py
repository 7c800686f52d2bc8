"""The augmented system by descent in the input, state and adjoint tracked."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.adapters import backend_of
from fixedpoint.backend import Vec
from fixedpoint.checks import check_count, check_positive
from fixedpoint.functions import Bridge
from fixedpoint.keywords import by_name
from fixedpoint.operators import Evaluation, InputStep, Joint, LocalGradients
from fixedpoint.operators.augmented import unit_step
from fixedpoint.operators.regularizers import prox_of
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Step
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint_models.objective_solver import ObjectiveSolver

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ

Projection = Callable[[Any], Any]


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


class BeforeProjection(InputStep):
    """A projected step that shows where the gradient alone leads.

    Its image is not the projected one, of which solutions are the fixed points; its
    residual is that.
    """

    def evaluate(self, state: Any, gradients: LocalGradients) -> Evaluation:
        """The image before the projection, and the residual of the projected step."""
        ahead, _, residual = self.along(state, gradients)
        return Evaluation(ahead, residual, gradients.input_terms)


class DescentState(NamedTuple):
    """What :class:`TrackedDescent` remembers.

    Attributes
    ----------
    memory : tuple of Vec
        What its rule remembers, in arrays shaped like the input.
    """

    memory: tuple[Vec, ...]


@by_name
@dataclass(frozen=True, kw_only=True)
class TrackedDescent(ObjectiveSolver):
    """Descent in the input, with state and adjoint tracked: a single loop.

    Right for inputs of many entries and for constraints: attacks, for one. A step takes
    z ← f(z, x) and μ ← (∂f/∂z)ᵀμ + ∂ℓ/∂z a number of times, each at the cost of one
    evaluation of f and one vector-Jacobian product, and then moves x by a rule along
    the gradient ∇ₓL = (∂f/∂x)ᵀμ + ∂ℓ/∂x that the last of these gave, and projects it
    onto the set of inputs. Neither z nor μ is ever solved for: as x comes to rest, they
    arrive.

    Parameters
    ----------
    rule : DescentRule
        How x moves: :class:`Momentum`, :class:`BarzilaiBorwein` or
        :class:`ConditionalGradient`.
    sweeps : int, optional
        Evaluations for each move of x. The fewer, the more the gradient lags behind.
    container : Structure, optional
        That of the inputs; :meth:`solve` sets it.

    References
    ----------
    Hinze, Pinnau, Ulbrich and Ulbrich, "Optimization with PDE Constraints", Springer
    2009; Ta'asan, "One shot methods for optimal control of distributed parameter
    systems", ICASE Report 91-2, 1991.

    Examples
    --------
    The least ⟨c, z⟩ with z = z/2 + x over the unit ball is at x = −c/‖c‖:

    >>> import torch
    >>> from fixedpoint_models import (
    ...     AugmentedDEQ, ConditionalGradient, TrackedDescent, ball, linear_minimizer)
    >>> model = AugmentedDEQ(
    ...     lambda z, x, params: 0.5 * z + x,
    ...     lambda z, x, c, params: (c * z).sum(-1), project=ball(1.0))
    >>> rule = ConditionalGradient(oracle=linear_minimizer(1.0))
    >>> zero, c = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    >>> sol = model.solve(zero, zero, params=None, y=c,
    ...                   method=TrackedDescent(rule=rule))
    >>> [round(v, 3) for v in sol.x[0].tolist()]
    [-0.6, -0.8]
    """

    rule: DescentRule
    sweeps: int = 2
    container: tree.Structure = field(default=tree.LEAF, repr=False)

    def __post_init__(self) -> None:
        check_count("sweeps", self.sweeps, 1)

    def solve(
        self,
        model: AugmentedDEQ,
        z0: Any,
        mu0: Any,
        x0: Any,
        params: Any,
        y: Any,
        **control: Any,
    ) -> fp.Solution[Any]:
        """Solve for z, μ and x; `control` goes to :func:`fixedpoint.fixed_point`.

        The adjoint starts from ∂ℓ/∂z, if no `mu0` is given: from zero the first
        gradient would be zero, too, and the first step lost.
        """
        lagrangian = model.problem
        if model.regularizer is not None:
            raise ValueError(
                "TrackedDescent is for inputs without a regularizer: use TrackedLBFGS"
            )
        if mu0 is None:
            mu0 = lagrangian.loss_and_gradient(z0, x0, params, y)[1]
        control |= {
            "solver": replace(self, container=tree.flatten(x0)[1]),
            "batch_ndim": model.batch_ndim,
        }
        start, args = {"z": z0, "mu": mu0, "x": x0}, (params, y)
        if model.project is None:
            found = fp.fixed_point(model.system, start, args, **control)
        else:
            found = _constrained(model.system, model.project, start, args, **control)
        return replace(found, work=found.work.plus(Work(vjp=1)))  # the first evaluation

    @property
    def compares_values(self) -> bool:
        """It follows gradients, and looks at no value."""
        return False

    def across(self, bridge: Bridge) -> TrackedDescent:
        """The method whose rule sees arrays of the user's library."""
        return replace(self, rule=self.rule.across(bridge))

    def init(self, problem: Problem, point: Point) -> DescentState:
        """What the rule remembers before the first move."""
        x = self._parts(point.value)[1]
        return DescentState(self.rule.start(self._inputs(problem.space, x), x))

    def step(self, problem: Problem, point: Point, state: DescentState) -> Step:
        """Sweep, the first time by the evaluation at `point`, and move the input."""
        space, here = problem.space, point
        x = self._parts(point.value)[1]
        for _ in range(self.sweeps - 1):
            here = problem.trial(self._advanced(space, here, x), point)
        inputs = self._inputs(space, x)
        gradient = self._gradient(problem, inputs.space, here)
        moved, memory = self.rule.move(inputs, x, gradient, state.memory)
        new = problem.trial(self._advanced(space, here, moved), point)
        pairs = zip(memory, state.memory, strict=True)
        memory = tuple([inputs.space.where(problem.active, *pair) for pair in pairs])
        return Step(new, DescentState(memory), Work(f=self.sweeps, vjp=self.sweeps))

    def _inputs(self, space: Space, x: Vec) -> Inputs:
        return Inputs(space_of(space.backend, x, space.batch_ndim), self.container)

    def _parts(self, leaves: Vec) -> tuple[Vec, Vec, Vec]:
        """The leaves of μ, x and z: a container's, in the order of its names."""
        inputs = len(tree.flatten(self.container.rebuild(leaves))[0])
        states = (len(leaves) - inputs) // 2
        return leaves[:states], leaves[states:-states], leaves[-states:]

    def _advanced(self, space: Space, here: Point, x: Vec) -> Vec:
        """The state and the adjoint after a sweep, beside an input."""
        mu, _, z = self._parts(space.add(here.value, here.increment))
        return (*mu, *x, *z)

    def _gradient(self, problem: Problem, space: Space, here: Point) -> Vec:
        """∇ₓL. The residual of free inputs is −∇ₓL; where inputs are projected, the
        operator alone leads along it.
        """
        if problem.functions.project is None:
            return tuple([-leaf for leaf in self._parts(here.tested)[1]])
        x, step = (self._parts(part)[1] for part in (here.value, here.increment))
        # Blocks are in the order of their names.
        t = unit_step(space, space.norm(x), problem.parts(here).scales[1])
        return space.scale(-1.0 / t, step)


def _constrained(
    system: Joint,
    project: Projection,
    start: Any,
    args: tuple[Any, ...],
    **control: Any,
) -> fp.Solution[Any]:
    """A solution of a projected system, by steps that see it before the projection.

    Its derivatives are those of the projected system.
    """
    before = {**system.blocks, "x": BeforeProjection(prox=prox_of(project, None))}
    onto = partial(_projected, project)
    joint = replace(system, blocks=before)
    found = fp.fixed_point(joint, start, args, project=onto, **control)

    def there(value: Any) -> fp.Solution[Any]:
        """The projected system at a value, and no step from it."""
        return fp.fixed_point(system, value, args, **control | {"max_steps": 0})

    leaves = tuple(tree.flatten((start, args))[0])
    if not backend_of(leaves[:1], ["x"]).is_traced(leaves):
        return replace(found, linearization=lambda at: there(at).linearize())
    end = there(found.value)
    return replace(end, work=found.work.plus(end.work), steps=found.steps)


def _projected(project: Projection, state: dict[str, Any]) -> dict[str, Any]:
    """The state with its input in the set."""
    return {**state, "x": project(state["x"])}
