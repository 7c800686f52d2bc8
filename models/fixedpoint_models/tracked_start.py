"""Where Newton's method in the input starts: an equilibrium, and a model there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from fixedpoint import tree
from fixedpoint.adapters import backend_of
from fixedpoint.backend import Array, Vec
from fixedpoint.operators import Lagrangian
from fixedpoint.operators.base import leafwise
from fixedpoint.solution import Work
from fixedpoint.space import Space
from fixedpoint_models import quasi_newton
from fixedpoint_models.curvature import Loss, inverted
from fixedpoint_models.quasi_newton import Memory
from fixedpoint_models.sensitivity import Tangents, alike, tangents
from fixedpoint_models.sweeping import RUNAWAY, rebuilt, space_of_samples

# Sweeps at most, where an equilibrium is not known.
MOST_SWEEPS = 20

# The equilibrium that everything starts from: its relative tolerance, and sweeps at
# most.
_ROUGH, _SWEEPS = 1e-3, 100


class TrackedState(NamedTuple):
    """What :class:`TrackedNewton` remembers.

    Attributes
    ----------
    model : Memory
        The quadratic model of each sample, about the last input that was accepted.
    state, adjoint : Vec
        z and μ there, their entries in one axis.
    count : int
        Steps so far.
    """

    model: Memory
    state: Vec
    adjoint: Vec
    count: Any = 0


@dataclass(frozen=True, eq=False)
class Start:
    """What the first step of Newton's method is made of.

    Parameters
    ----------
    lagrangian : Lagrangian
        The problem.
    params, y
        What f and ℓ are given.
    blocks, tangent_rtol, damping
        The settings of the method.
    """

    lagrangian: Lagrangian
    params: Any
    y: Any
    blocks: int
    tangent_rtol: float
    damping: float

    def made(
        self, z0: Any, x0: Any
    ) -> tuple[dict[str, Any], tuple[Any, Tangents, TrackedState], Work]:
        """The first state, what the method needs besides, and what they took."""
        same = _same_rows(z0) and _same_rows(x0)
        z, x = (leafwise(_first_row if same else _zero_row, a) for a in (z0, x0))
        z, rate, count = self._equilibrium(z, x)
        settings = self.params, self.blocks, self.tangent_rtol
        local = _finite(tangents(self.lagrangian, z, x, *settings))
        # The first evaluation takes a product, and so does a Jacobian.
        work = Work(f=count + 1, vjp=1 + (not local.products), jvp=local.products)
        if not same:
            z = z0
            for _ in range(MOST_SWEEPS):
                z = self.lagrangian.f(z, x0, self.params)
            work = work.plus(Work(f=MOST_SWEEPS))
        first, inputs = self._model(z, x0, local), space_of_samples(x0)
        step = quasi_newton.step_of(inputs, first.model)
        if not same:  # the gradient is not right before the adjoint is
            unknown = inputs.full(float("inf"))
            first = first._replace(model=first.model._replace(value=unknown))
            step = 0.0 * step
        start, first = self._trial(z0, x0, step, local, first)
        return start, (rate, local, first), work.plus(Work(f=1))

    def _equilibrium(self, z: Any, x: Any) -> tuple[Any, Any, int]:
        """A rough equilibrium of one sample, the rate at which sweeps contracted, and
        how many they were; in a trace nothing is known of the rate.
        """
        space, leaves = space_of_samples(z), tuple(tree.flatten(z)[0])
        traced = space.backend.is_traced((*leaves, *tree.flatten((x, self.params))[0]))
        before, rate, count = math.inf, 0.0, 0
        while count < (MOST_SWEEPS if traced else _SWEEPS):
            count += 1
            image = self._image(z, x, leaves)
            z, change, leaves = rebuilt(z, image), space.subtract(image, leaves), image
            if traced:
                continue
            size = float(space.norm(change)[0])
            rate, before = size / before if before else 0.0, size
            if not size > _ROUGH * float(space.norm(leaves)[0]):
                break
        return z, space.zero if traced else rate, count

    def _image(self, z: Any, x: Any, like: Vec) -> Vec:
        """The leaves of f(z, x), which have the shapes of others."""
        return alike(tree.flatten(self.lagrangian.f(z, x, self.params))[0], like)

    def _model(self, z: Any, x: Any, local: Tangents) -> TrackedState:
        """What is remembered at equilibria z of inputs x: one z may stand for all."""
        inputs, given, params = space_of_samples(x), self.lagrangian.output, self.params
        rows = inputs.batch_shape[0]
        output = _for_all(z if given is None else given(z, params), rows)
        loss = Loss(inputs, self.lagrangian.loss, params, local)
        value, slope, product = loss.expanded(output, x, self.y)
        hessian = loss.curvature(output, x, self.y, product)
        gradient = loss.reduced(slope)
        inverse = inverted(inputs, hessian, self.damping) + 0.0 * gradient[:, :, None]
        at = inputs.ravel(tuple(tree.flatten(x)[0]))
        model = quasi_newton.opened(inputs, at, gradient, value, inverse)
        z = _for_all(z, rows)
        slope = self.lagrangian.loss_and_gradient(z, x, params, self.y)[1]
        state, adjoint = (
            space_of_samples(z).rows(tuple(tree.flatten(block)[0]))
            for block in (z, slope)
        )
        return TrackedState(model, state, adjoint)

    def _trial(
        self, z0: Any, x0: Any, step: Array, local: Tangents, first: TrackedState
    ) -> tuple[dict[str, Any], TrackedState]:
        """The first trial, its state after a sweep; where that runs away, the start."""
        states, inputs = space_of_samples(z0), space_of_samples(x0)
        home = states.shaped(first.state)
        ahead = states.shaped(pushed(first.state, step, local.state))
        x = inputs.unravel(first.model.x + step)
        image = self._image(rebuilt(z0, ahead), rebuilt(x0, x), ahead)
        expected = states.norm(ahead) + states.norm(home)
        sound = states.norm(image) <= RUNAWAY * expected
        sound = sound | (inputs.backend.norm(step, "euclidean") == 0.0)
        x = inputs.where(sound, x, inputs.unravel(first.model.x))
        start = {
            "z": rebuilt(z0, states.where(sound, image, home)),
            "mu": rebuilt(z0, states.shaped(first.adjoint)),
            "x": rebuilt(x0, x),
        }
        return start, first._replace(model=shrunk(inputs, first.model, sound))


def shrunk(space: Space, model: Memory, sound: Array) -> Memory:
    """The model, its radius a tenth of the step where that was not sound."""
    step = space.backend.norm(quasi_newton.step_of(space, model), "euclidean")
    radius = space.xp.where(sound, model.radius, 0.1 * step)
    return model._replace(radius=radius)


def pushed(state: Vec, step: Array, local: Vec) -> Vec:
    """The state ahead, z + S Δx."""
    return tuple([z + step @ rows for z, rows in zip(state, local, strict=True)])


def _finite(local: Tangents) -> Tangents:
    """The tangents, or zero where I − J is singular: there sweeps alone tell how the
    state moves.
    """

    def known(rows: Array) -> Array:
        xp = array_namespace(rows)
        moved: Array = xp.where(xp.isfinite(xp.sum(rows)), rows, xp.zeros_like(rows))
        return moved

    state, output = (tuple(map(known, part)) for part in local[:2])
    return Tangents(state, output, local.products)


def _for_all(container: Any, rows: int) -> Any:
    """The container, its only row as often as there are samples, or its rows as they
    are.
    """
    leaves, structure = tree.flatten(container)
    xp = array_namespace(*leaves)
    many = [xp.broadcast_to(leaf, (rows, *leaf.shape[1:])) for leaf in leaves]
    return structure.rebuild(many)


def _same_rows(container: Any) -> bool:
    """Whether all samples are known to be the same."""
    leaves = tree.flatten(container)[0]
    backend = backend_of(leaves, tree.paths(container, "x0"))
    return not backend.is_traced(tuple(leaves)) and all(
        backend.known_all(leaf == leaf[:1, ...]) for leaf in leaves
    )


def _first_row(leaf: Any) -> Any:
    return leaf[:1, ...]


def _zero_row(leaf: Any) -> Any:
    return array_namespace(leaf).zeros_like(leaf[:1, ...])
