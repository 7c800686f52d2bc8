"""Monotone operator equilibrium networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import fixedpoint as fp
from fixedpoint.checks import check_positive
from fixedpoint.operators import (
    ForwardBackward,
    Operator,
    PeacemanRachford,
    largest_step,
    rectify,
    resolvent_matrix,
)
from fixedpoint.solvers import Solver

Tensor = torch.Tensor


class MonotoneLinear(torch.nn.Module):
    """z ↦ Wz with W = (1 − m)I − AᵀA + B − Bᵀ, so that I − W ≥ mI whatever A and B are.

    Parameters
    ----------
    width : int
        The size of z.
    m : float, optional
        The modulus of strong monotonicity.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import MonotoneLinear
    >>> W = MonotoneLinear(5, m=0.5).weight()
    >>> gap = torch.eye(5) - (W + W.T) / 2
    >>> bool(torch.linalg.eigvalsh(gap).min() > 0.5 - 1e-6)
    True
    """

    def __init__(self, width: int, m: float = 0.1) -> None:
        super().__init__()
        check_positive("m", m)
        self.m = m
        bound = 1.0 / math.sqrt(width)
        self.A = torch.nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))
        self.B = torch.nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))

    def weight(self) -> Tensor:
        """The matrix W, a differentiable function of A and B."""
        identity = torch.eye(self.A.shape[-1], dtype=self.A.dtype, device=self.A.device)
        return (1.0 - self.m) * identity - self.A.T @ self.A + self.B - self.B.T

    def forward(self, z: Tensor) -> Tensor:
        """Wz, along the last axis."""
        return z @ self.weight().T


def _affine(z: Tensor, W: Tensor, drive: Tensor, *inverse: Tensor) -> Tensor:
    del inverse
    return z @ W.T + drive


def _resolvent(
    v: Tensor, alpha: float, W: Tensor, drive: Tensor, inverse: Tensor
) -> Tensor:
    del alpha, W, drive
    return v @ inverse.T


class MonotoneDEQ(torch.nn.Module):
    """The layer x ↦ z*, where z* = σ(Wz* + Ux + b) has one solution, whatever its
    parameters.

    W is a :class:`MonotoneLinear`, σ = prox¹ of a convex function. z* is found by
    operator splitting, and differentiated implicitly by the same splitting; both
    converge from every start.

    Parameters
    ----------
    inputs, width : int
        The sizes of x and of z.
    m : float, optional
        The modulus of strong monotonicity of I − W: the larger, the fewer steps.
    splitting : {"peaceman_rachford", "forward_backward"}, optional
        The operator. Peaceman-Rachford splitting inverts a matrix for every call and
        takes two matrix products a step where the other takes one, but far fewer steps.
    step : float, optional
        The step α. By default it follows W: 2/‖I − W‖ for Peaceman-Rachford splitting,
        and three quarters of :func:`fixedpoint.operators.largest_step` for
        forward-backward splitting, which refuses a step beyond that.
    prox : callable, optional
        ``prox(v, alpha)``, the proximal operator of αh: ReLU by default.
    solver : Solver, optional
        By default ``fixedpoint.Picard()``, which cannot fail for want of contraction.
    adjoint : Adjoint, optional
        By default Picard iteration as well.
    rtol : float, optional
        As in :func:`fixedpoint.fixed_point`, of both solves. In single precision
        forward-backward splitting with small steps reaches the default and not much
        less.
    max_steps : int, optional
        Of the solve, and of the default adjoint.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import MonotoneDEQ
    >>> layer = MonotoneDEQ(inputs=4, width=10, m=0.5)
    >>> x = torch.ones(3, 4, requires_grad=True)
    >>> layer(x).sum().backward()
    >>> x.grad.shape, layer.state.A.grad.shape
    (torch.Size([3, 4]), torch.Size([10, 10]))
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        m: float = 0.1,
        splitting: str = "peaceman_rachford",
        step: float | None = None,
        prox: Callable[[Any, float], Any] = rectify,
        solver: Solver | None = None,
        adjoint: fp.Adjoint | None = None,
        rtol: float = 1e-4,
        max_steps: int = 2000,
    ) -> None:
        super().__init__()
        if splitting not in _OPERATORS:
            raise ValueError(
                f"splitting must be one of {list(_OPERATORS)}, got {splitting!r}"
            )
        if step is not None:
            check_positive("step", step)
        self.splitting, self.step, self.prox = splitting, step, prox
        self.solver = solver or fp.Picard()
        self.adjoint = adjoint or fp.ImplicitAdjoint(
            solver=fp.Picard(), max_steps=max_steps
        )
        self.rtol, self.max_steps = rtol, max_steps
        self.state = MonotoneLinear(width, m)
        self.input = torch.nn.Linear(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        """z*, of shape (…, width), for x of shape (…, inputs)."""
        value: Tensor = self.solve(x).value
        return value

    def solve(
        self, x: Tensor, z0: Tensor | None = None, **settings: Any
    ) -> fp.Solution[Any]:
        """The solution with its status, steps and residual, from the start `z0` or
        zero.

        `settings` go to :func:`fixedpoint.fixed_point`.
        """
        W, drive = self.state.weight(), self.input(x)
        operator, inverse = _OPERATORS[self.splitting](W.detach(), self.prox, self.step)
        start = torch.zeros_like(drive) if z0 is None else z0
        own: dict[str, Any] = {
            "solver": self.solver,
            "adjoint": self.adjoint,
            "rtol": self.rtol,
            "test": "residual",
            "norm": "leaves",
            "max_steps": self.max_steps,
            "batch_ndim": x.ndim - 1,
        }
        return fp.fixed_point(operator, start, (W, drive, *inverse), **(own | settings))


Split = tuple[Operator, tuple[Tensor, ...]]


def _forward_backward(W: Tensor, prox: Any, step: float | None) -> Split:
    limit = largest_step(W)
    if step is not None and not step < limit:
        raise ValueError(
            f"step must be below {limit:.3g} for forward-backward splitting with these "
            f"weights, got {step!r}: leave it out, or use peaceman_rachford"
        )
    return ForwardBackward(
        _affine, prox, 0.75 * limit if step is None else step, limit
    ), ()


def _peaceman_rachford(W: Tensor, prox: Any, step: float | None) -> Split:
    identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
    alpha = step or 2.0 / float(torch.linalg.matrix_norm(identity - W, 2))
    return PeacemanRachford(_affine, prox, _resolvent, alpha), (
        resolvent_matrix(W, alpha),
    )


_OPERATORS = {
    "peaceman_rachford": _peaceman_rachford,
    "forward_backward": _forward_backward,
}
