"""Operator splitting for unique equilibria: z = prox(Wz + c), I − W monotone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import sub
from typing import Any

import array_api_compat

from fixedpoint.adapters import backend_of
from fixedpoint.backend import Array
from fixedpoint.checks import check_positive
from fixedpoint.operators.base import Evaluation, Operator, leafwise


def rectify(v: Any, alpha: float = 1.0) -> Any:
    """max(v, 0), the proximal operator of αh for every α, h being 0 on v ≥ 0 and ∞
    elsewhere.

    Its derivative at 0 is 0, as that of ``torch.relu`` and ``jax.nn.relu``. NaN stays
    NaN.
    """
    del alpha
    return leafwise(_rectified, v)


def _rectified(v: Array) -> Array:
    xp = _namespace(v)
    return xp.where(v <= 0, xp.zeros_like(v), v)


@dataclass(frozen=True)
class SoftThreshold:
    """Soft thresholding, v ↦ v − min(max(v, −αt), αt), the proximal operator of αt‖·‖₁.

    Parameters
    ----------
    threshold : float
        The threshold t.
    """

    threshold: float

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)

    def __call__(self, v: Any, alpha: Any = 1.0) -> Any:
        """The proximal operator at `v`, α a number, or a container like `v` of arrays
        that broadcast against its leaves.
        """

        def shrunk(leaf: Array, a: Any = alpha) -> Array:
            bound = a * self.threshold
            return leaf - _namespace(leaf).clip(leaf, -bound, bound)

        number = isinstance(alpha, (int, float))
        return leafwise(shrunk, v) if number else leafwise(shrunk, v, alpha)


def _namespace(array: Array) -> Any:
    return backend_of((array,), ("the argument",)).namespace(array)


@dataclass(frozen=True)
class ForwardBackward(Operator):
    """Forward-backward splitting, z ← prox^α(z + α(Wz + c − z)).

    Its fixed points are the solutions of z = prox¹(Wz + c) whatever α is, and the
    residual is that of this equation. Here prox^α = (I + α∂h)⁻¹ for one convex function
    h; an activation such as ReLU is prox¹ of some h. If I − W ≥ mI with m > 0, there is
    one solution, and Picard iteration finds it from every start for 0 < α < 2m/‖I −
    W‖², and up to the larger bound of :func:`largest_step`.

    With D = ∂prox^α, which lies between 0 and I, the adjoint system reads u = (I − α(I
    − W))ᵀDu + v: the same splitting of the transposed equation. The bound that makes
    the solve contract makes this contract, so that ``ImplicitAdjoint(solver=Picard())``
    converges whenever the solve did.

    Parameters
    ----------
    affine : callable
        ``affine(z, *args)`` is Wz + c. What is to be differentiated goes through args.
    prox : callable
        ``prox(v, alpha)`` is prox^α(v), on containers like z: :func:`rectify`,
        :class:`SoftThreshold` or another. Where it depends on α, an activation that
        ignores α would solve another equation.
    step_size : float
        The step α.
    limit : float, optional
        What `step_size` must be below, none by default.

    References
    ----------
    Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020,
    arXiv:2006.08591.

    Examples
    --------
    ReLU, and a W of norm 4, for which z ← ReLU(Wz + c) does not converge:

    >>> import numpy as np, fixedpoint as fp
    >>> from fixedpoint.operators import ForwardBackward, largest_step, rectify
    >>> W, c = np.array([[0.0, 4.0], [-4.0, 0.0]]), np.array([-3.0, 5.0])
    >>> affine = lambda z, W, c: W @ z + c
    >>> limit = largest_step(W)
    >>> operator = ForwardBackward(affine, rectify, 0.75 * limit, limit)
    >>> sol = fp.fixed_point(operator, np.zeros(2), (W, c), solver=fp.Picard())
    >>> np.round(sol.value, 5)
    array([1., 1.])
    """

    affine: Callable[..., Any]
    prox: Callable[[Any, float], Any]
    step_size: float
    limit: float = float("inf")

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        if not self.step_size < self.limit:
            raise ValueError(
                f"step_size must be below {self.limit:g}, got {self.step_size!r}"
            )

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """One evaluation of the affine map, two of the proximal operator."""
        target, alpha = self.affine(state, *args), float(self.step_size)
        moved = leafwise(lambda z, t: z + alpha * (t - z), state, target)
        image, undamped = self.prox(moved, alpha), self.prox(target, 1.0)
        return Evaluation(image, leafwise(sub, undamped, state))


@dataclass(frozen=True)
class PeacemanRachford(Operator):
    """Peaceman-Rachford splitting, which converges for every step.

    The method alternates reflections at two resolvents, of I − W and of ∂h. Written for
    z itself rather than for the usual auxiliary vector u, with z = (I + α(I − W))⁻¹(u +
    αc), it reads

        z ← z + 2(I + α(I − W))⁻¹(FB(z) − z) ,

    FB being the step of :class:`ForwardBackward`: both have the same state, solution
    and residual, and that residual is free of α. If I − W ≥ mI with m > 0, Picard
    iteration converges for every α > 0, and so does the adjoint system, as for
    :class:`ForwardBackward`. Damped by a half it is Douglas-Rachford splitting.

    Parameters
    ----------
    affine, prox
        As for :class:`ForwardBackward`.
    resolvent : callable
        ``resolvent(v, alpha, *args)`` solves (I + α(I − W))z = v. It acts as a
        preconditioner: the solution and its derivatives do not depend on it, so that
        what it needs, an inverse from :func:`resolvent_matrix` or a factorization, is
        computed once and passed without derivatives.
    step_size : float
        The step α > 0. A good one is 2/‖I − W‖.

    References
    ----------
    Winston and Kolter, "Monotone operator equilibrium networks", NeurIPS 2020,
    arXiv:2006.08591.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> from fixedpoint.operators import PeacemanRachford, rectify, resolvent_matrix
    >>> W = np.array([[0.0, 4.0], [-4.0, 0.0]])
    >>> operator = PeacemanRachford(
    ...     lambda z, W, c, inverse: W @ z + c, rectify,
    ...     lambda v, alpha, W, c, inverse: inverse @ v, step_size=0.5,
    ... )
    >>> args = (W, np.array([-3.0, 5.0]), resolvent_matrix(W, 0.5))
    >>> sol = fp.fixed_point(operator, np.zeros(2), args, solver=fp.Picard())
    >>> np.round(sol.value, 5)
    array([1., 1.])
    """

    affine: Callable[..., Any]
    prox: Callable[[Any, float], Any]
    resolvent: Callable[..., Any]
    step_size: float

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """What forward-backward splitting evaluates, and the resolvent once."""
        forward_backward = ForwardBackward(self.affine, self.prox, self.step_size)
        found = forward_backward.evaluate(state, *args)
        change = leafwise(sub, found.image, state)
        solved = self.resolvent(change, float(self.step_size), *args)
        image = leafwise(lambda z, r: z + 2.0 * r, state, solved)
        return Evaluation(image, found.residual)


def resolvent_matrix(W: Array, step_size: float) -> Array:
    """The matrix (I + α(I − W))⁻¹ that a dense :class:`PeacemanRachford` needs.

    Parameters
    ----------
    W : array of shape (n, n)
        In Torch, detached: nothing is lost, since no derivative goes this way.
    step_size : float
        The step α.
    """
    check_positive("step_size", step_size)
    xp, identity = _namespace_and_identity(W)
    return xp.linalg.inv(identity + float(step_size) * (identity - W))


def largest_step(W: Array) -> float:
    """The step that :class:`ForwardBackward` must stay below to be sure to converge.

    I − α(I − W) has a norm below 1 if and only if α is below this, 2λₘᵢₙ of the
    symmetric part of (I − W)⁻¹. It is at least 2m/‖I − W‖², and can be a hundred times
    that.

    Parameters
    ----------
    W : array of shape (n, n)
        With a symmetric part of I − W that is positive definite. In Torch, detached.

    Raises
    ------
    ValueError
        If I − W is not strongly monotone: no step is then safe.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> fp.operators.largest_step(np.diag([0.5, -3.0]))
    0.5
    """
    xp, identity = _namespace_and_identity(W)
    inverse = xp.linalg.inv(identity - W)
    least = float(xp.linalg.eigvalsh(inverse + xp.matrix_transpose(inverse))[0])
    if not least > 0.0:
        raise ValueError("W must leave the symmetric part of I - W positive definite")
    return least


def _namespace_and_identity(W: Array) -> tuple[Any, Array]:
    xp = _namespace(W)
    identity = xp.eye(W.shape[-1], dtype=W.dtype, device=array_api_compat.device(W))
    return xp, identity
