"""The augmented system by descent in the input, state and adjoint tracked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.adapters import backend_of
from fixedpoint.backend import Vec
from fixedpoint.checks import check_count
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
from fixedpoint_models.descent_rules import DescentRule, Inputs
from fixedpoint_models.objective_solver import ObjectiveSolver

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ

Projection = Callable[[Any], Any]


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
