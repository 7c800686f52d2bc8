"""The augmented system: equilibrium, adjoint and input as one fixed point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import add, neg, sub
from typing import Any, NamedTuple

from fixedpoint.adapters import backend_of_state
from fixedpoint.backend import Array, Pullback
from fixedpoint.checks import check_callable, check_positive
from fixedpoint.operators.base import Evaluation, Joint, Operator, leafwise
from fixedpoint.operators.regularizers import Regularizer, prox_of
from fixedpoint.space import Space
from fixedpoint.spaces import space_of


class LocalGradients(NamedTuple):
    """What one evaluation of f and one vector-Jacobian product tell at (z, μ, x).

    Attributes
    ----------
    value
        f(z, x).
    objective
        ℓ(z, x, y) per sample.
    state_gradient
        (∂f/∂z)ᵀμ + ∂ℓ/∂z.
    input_gradient
        (∂f/∂x)ᵀμ + ∂ℓ/∂x.
    state_terms, input_terms
        The absolute values of the two terms of each gradient, added up; or None.
    """

    value: Any
    objective: Any
    state_gradient: Any
    input_gradient: Any
    state_terms: Any = None
    input_terms: Any = None


class Local(NamedTuple):
    """f and ℓ at (z, x), linearized.

    Attributes
    ----------
    value
        f(z, x).
    pullback : callable
        μ ↦ ((∂f/∂z)ᵀμ, (∂f/∂x)ᵀμ).
    objective
        ℓ(z, x, y) per sample.
    slope, direct
        ∂ℓ/∂z and ∂ℓ/∂x.
    """

    value: Any
    pullback: Pullback
    objective: Any
    slope: Any
    direct: Any


@dataclass(frozen=True)
class Lagrangian:
    """L = ℓ(z, x, y) + μᵀ(f(z, x) − z), linearized at a state ``{"z", "mu", "x"}``.

    Parameters
    ----------
    f : callable
        ``f(z, x, params)``, the equilibrium map.
    loss : callable
        ``loss(o, x, y, params)``, one number per sample, where o is the output or else
        z.
    vjp : callable, optional
        For arrays without automatic differentiation: ``vjp(z, x, params)`` returns f(z,
        x) and the pullback μ ↦ ((∂f/∂z)ᵀμ, (∂f/∂x)ᵀμ).
    loss_gradient : callable, optional
        Likewise ``loss_gradient(z, x, y, params)`` returns ℓ and (∂ℓ/∂z, ∂ℓ/∂x).
    output : callable, optional
        ``output(z, params)``, what the loss reads of z: an image, or the scores of
        classes. By default it is z itself.
    """

    f: Callable[..., Any]
    loss: Callable[..., Any]
    vjp: Callable[..., tuple[Any, Pullback]] | None = None
    loss_gradient: Callable[..., tuple[Any, tuple[Any, Any]]] | None = None
    output: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if (self.vjp is None) != (self.loss_gradient is None):
            raise ValueError(
                "vjp and loss_gradient must be given together, or neither of them"
            )
        if self.loss_gradient is not None and self.output is not None:
            raise ValueError(
                "loss_gradient is with respect to z: output must not be given with it"
            )

    def at(self, z: Any, x: Any, params: Any, y: Any) -> Local:
        """One evaluation of f and one of ℓ, with the gradient of ℓ, and a pullback of f
        that may be called more than once.
        """
        loss = self.loss_and_gradient(z, x, params, y)
        if self.vjp is not None:
            return Local(*self.vjp(z, x, params), *loss)
        backend = backend_of_state(z, "z")
        return Local(*backend.vjp(lambda z, x: self.f(z, x, params), z, x), *loss)

    def loss_and_gradient(self, z: Any, x: Any, params: Any, y: Any) -> tuple[Any, ...]:
        """ℓ, ∂ℓ/∂z and ∂ℓ/∂x."""
        if self.loss_gradient is not None:
            objective, gradients = self.loss_gradient(z, x, y, params)
            return (objective, *gradients)
        backend = backend_of_state(z, "z")
        objective, pull = backend.vjp(lambda z, x: self.loss_at(z, x, y, params), z, x)
        return (objective, *pull(backend.namespace(objective).ones_like(objective)))

    def loss_at(self, z: Any, x: Any, y: Any, params: Any) -> Any:
        """ℓ at a state, by way of the output."""
        seen = z if self.output is None else self.output(z, params)
        return self.loss(seen, x, y, params)

    def __call__(self, state: Any, params: Any, y: Any) -> LocalGradients:
        """One evaluation of f, one of ℓ, and one reverse pass through both."""
        value, objective, pulled, slopes = self._pulled(
            state["z"], state["mu"], state["x"], params, y
        )
        pairs = list(zip(pulled, slopes, strict=True))
        gradients = [leafwise(add, *pair) for pair in pairs]
        terms = [leafwise(_sizes, *pair) for pair in pairs]
        return LocalGradients(value, objective, *gradients, *terms)

    def _pulled(self, z: Any, mu: Any, x: Any, params: Any, y: Any) -> tuple[Any, ...]:
        """The values of f and ℓ, μ pulled back through f, and the gradient of ℓ."""
        if self.vjp is not None:
            here = self.at(z, x, params, y)
            return here.value, here.objective, here.pullback(mu), here[-2:]
        backend = backend_of_state(z, "z")

        def both(z: Any, x: Any, seen: Any, beside: Any) -> tuple[Any, Any]:
            return self.f(z, x, params), self.loss_at(seen, beside, y, params)

        # Each has inputs of its own, so that one pass tells their gradients apart.
        (value, objective), pullback = backend.vjp(both, z, x, z, x)
        ones = backend.namespace(objective).ones_like(objective)
        pulled = pullback((mu, ones))
        return value, objective, pulled[:2], pulled[2:]


def _sizes(a: Any, b: Any) -> Any:
    """|a| + |b|, of the dtype of a."""
    total = abs(a) + abs(b)
    return total if total.dtype == a.dtype else total + 0.0 * a


@dataclass(frozen=True)
class StateMap(Operator):
    """The block z ← f(z, x), read off a :class:`LocalGradients`."""

    def evaluate(self, state: Any, gradients: LocalGradients) -> Evaluation:
        """No evaluation: the value is there already."""
        image = gradients.value
        return Evaluation(image, leafwise(sub, image, state))


@dataclass(frozen=True)
class AdjointMap(Operator):
    """The block μ ← (∂f/∂z)ᵀμ + ∂ℓ/∂z, read off a :class:`LocalGradients`."""

    def evaluate(self, state: Any, gradients: LocalGradients) -> Evaluation:
        """No evaluation: the gradient is there already, and so are its terms."""
        image = gradients.state_gradient
        return Evaluation(image, leafwise(sub, image, state), gradients.state_terms)


@dataclass(frozen=True)
class InputStep(Operator):
    """The block x ← prox(x − α∇ₓL, α), with the step-free residual [prox(x − t∇ₓL, t) −
    x]/t.

    prox(v, α) is the proximal operator of αh, h a convex function of x that is added to
    L; of the set that x lies in, the projection. Free inputs have the residual −∇ₓL
    whatever t is. Others have that of a step as long as x, if it went along all terms
    of the gradient: with t = ‖x‖/‖terms‖ the unit of ℓ does not matter. Where no terms
    are given, t = 1.

    Parameters
    ----------
    step_size : float, optional
        The step α; t by default.
    prox : callable, optional
        ``prox(v, alpha)``, as that of a :class:`Regularizer`; the identity by default.
    """

    step_size: float | None = None
    prox: Callable[[Any, Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        check_callable("prox", self.prox)

    def evaluate(self, state: Any, gradients: LocalGradients) -> Evaluation:
        """No evaluation: the gradient is there already."""
        gradient, terms = gradients.input_gradient, gradients.input_terms
        step = self.step_size
        if step is None:
            return Evaluation(*self.along(state, gradients)[1:], terms)
        moved = leafwise(lambda a, g: a - step * g, state, gradient)
        if self.prox is None:
            return Evaluation(moved, leafwise(neg, gradient), terms)
        residual = self.along(state, gradients)[2]
        return Evaluation(self.prox(moved, step), residual, terms)

    def along(self, x: Any, gradients: LocalGradients) -> tuple[Any, Any, Any]:
        """Where a step as long as x leads before it is projected, its image, and its
        residual; from zero, that of a step as long as the set lets one of length one
        become.
        """
        gradient, prox = gradients.input_gradient, self.prox
        space, length, size = input_sizes(x, gradients)

        def moved(t: Array) -> tuple[Any, Any]:
            (t,) = space.backend.stop((t,))  # the solution is the same for all of them
            steps = leafwise(lambda a: space.factor(t, a), x)
            ahead = leafwise(lambda a, g, step: a - step * g, x, gradient, steps)
            return ahead, ahead if prox is None else prox(ahead, steps)

        t = unit_step(space, length, size)
        ahead, image = moved(t)
        if prox is None:
            return ahead, image, leafwise(neg, gradient)
        if not space.backend.known_all(length > 0.0):
            change = leafwise(sub, image, x)
            reach = space.norm(tuple(space.backend.flatten(change)[0]))
            t = space.xp.where(length > 0.0, t, unit_step(space, reach, size))
            image = moved(t)[1]
        rate = lambda old, new: space.factor(1.0 / t, old) * (new - old)
        return ahead, image, leafwise(rate, x, image)


def unit_step(space: Space, length: Array, size: Array) -> Array:
    """The t for which t∇ₓL is as long as x, of this `length`, if the terms of ∇ₓL are
    of this `size` and nothing of them cancels; at zero, of length one.
    """
    where, one = space.xp.where, space.one
    length, size = [where(a > 0.0, a, one) for a in (length, size)]
    return length / size


def input_sizes(x: Any, gradients: LocalGradients) -> tuple[Space, Array, Array]:
    """The space of an input, and the lengths t is made of: its own and that of the
    terms of its gradient.
    """
    backend = backend_of_state(x, "x")
    at = tuple(backend.flatten(x)[0])
    if gradients.input_terms is None:
        space = space_of(backend, at, 0)
        return space, space.full(1.0), space.full(1.0)
    # ℓ has the axes of the batch.
    space = space_of(backend, at, gradients.objective.ndim)
    terms = tuple(backend.flatten(gradients.input_terms)[0])
    length, size = space.sound_norms([(at, "euclidean"), (terms, "euclidean")])
    return space, length, size


def augmented(
    f: Callable[..., Any],
    loss: Callable[..., Any],
    *,
    step_size: float,
    project: Callable[[Any], Any] | None = None,
    regularizer: Regularizer | None = None,
    state_damping: float = 0.8,
    adjoint_damping: float = 0.6,
    vjp: Callable[..., tuple[Any, Pullback]] | None = None,
    loss_gradient: Callable[..., tuple[Any, tuple[Any, Any]]] | None = None,
    output: Callable[..., Any] | None = None,
) -> Joint:
    """The augmented equilibrium system as one operator.

    The stationary points of min ℓ(z, x, y) over x in C, subject to z = f(z, x), are the
    fixed points of

        z ← f(z, x) ,    μ ← (∂f/∂z)ᵀμ + ∂ℓ/∂z ,    x ← Π(x − α[(∂f/∂x)ᵀμ + ∂ℓ/∂x]) ,

    each block damped by itself. With a regularizer h it is min ℓ + h, and the proximal
    operator of αh stands in the place of Π. One application costs one evaluation of f
    and one vector-Jacobian product.

    Parameters
    ----------
    f, loss, vjp, loss_gradient, output
        As for :class:`Lagrangian`.
    step_size : float
        The step α.
    project : callable, optional
        The projection Π onto C.
    regularizer : Regularizer, optional
        What is added to ℓ in place of C: :class:`L1Norm`, for one.
    state_damping, adjoint_damping : float, optional
        Damping of the first two blocks.

    Returns
    -------
    Joint
        An operator on states ``{"z", "mu", "x"}`` that takes the arguments ``(params,
        y)``.

    References
    ----------
    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236.

    Examples
    --------
    The least ℓ = (z − 2)² + x² subject to z = z/2 + x, in NumPy: z = 2x, so x = 4/5.

    >>> import numpy as np, fixedpoint as fp
    >>> joint = fp.operators.augmented(
    ...     lambda z, x, params: 0.5 * z + x,
    ...     lambda z, x, y, params: np.sum((z - y) ** 2 + x**2, axis=-1),
    ...     step_size=0.1,
    ...     vjp=lambda z, x, params: (0.5 * z + x, lambda mu: (0.5 * mu, mu)),
    ...     loss_gradient=lambda z, x, y, params: (
    ...         np.sum((z - y) ** 2 + x**2, axis=-1), (2 * (z - y), 2 * x)),
    ... )
    >>> start = {"z": np.zeros(1), "mu": np.zeros(1), "x": np.zeros(1)}
    >>> sol = fp.fixed_point(joint, start, (None, np.array([2.0])))
    >>> np.round(sol.value["x"], 5)
    array([0.8])
    """
    blocks: dict[str, Operator] = {
        "z": StateMap().damped(state_damping),
        "mu": AdjointMap().damped(adjoint_damping),
        "x": InputStep(step_size, prox_of(project, regularizer)),
    }
    return Joint(Lagrangian(f, loss, vjp, loss_gradient, output), blocks)
