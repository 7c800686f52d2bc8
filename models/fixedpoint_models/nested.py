"""The nested method: descent on the input, an equilibrium and an adjoint solved at each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import fixedpoint as fp
from fixedpoint.solvers import Solver

Optimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


class Progress(NamedTuple):
    """Where the nested method stands after a step.

    Attributes
    ----------
    at, z, mu : tensor
        The input before the step, and the state and its adjoint that were solved for there.
    x : tensor
        The input after the step.
    seconds : float
        Time spent so far, not counting what the caller did between steps.
    evaluations, products : int
        Evaluations of f and vector-Jacobian products so far.
    """

    at: torch.Tensor
    z: torch.Tensor
    mu: torch.Tensor
    x: torch.Tensor
    seconds: float
    evaluations: int
    products: int


@dataclass(frozen=True)
class Nested:
    """Minimise ℓ(z*(x), x, y) over x by a first-order method on x.

    Every step solves z = f(z, x), then μ = (∂f/∂z)ᵀμ + ∂ℓ/∂z, each from where it stood a step
    ago, and hands ∇ₓ = (∂f/∂x)ᵀμ + ∂ℓ/∂x to an optimiser of ``torch.optim``.

    Parameters
    ----------
    f, loss : callable
        As for :class:`AugmentedDEQ`.
    optimizer : callable
        Makes the optimiser of a list of tensors.
    solver : Solver
        For both inner solves.
    tolerance : float, optional
        The relative tolerance of the inner solves.
    """

    f: Callable[..., Any]
    loss: Callable[..., Any]
    optimizer: Optimizer
    solver: Solver
    tolerance: float = 1e-3

    def steps(self, z: torch.Tensor, x: torch.Tensor, *, params: Any, y: Any) -> Iterator[Progress]:
        """Descend from `x`, without end: the caller stops."""
        mu = torch.zeros_like(z)
        x = x.clone().requires_grad_()
        optimizer = self.optimizer([x])
        seconds, evaluations, products = 0.0, 0, 0
        while True:
            begin = time.perf_counter()
            equilibrium = self._solve(self.f, z, (x.detach(), params))
            z = equilibrium.value
            mu, x.grad, pulled = self._adjoint(z.clone(), mu, x.detach(), params, y)
            at = x.detach().clone()
            optimizer.step()
            seconds += time.perf_counter() - begin
            # The linearisation for the adjoint evaluates f once more at the equilibrium.
            evaluations += equilibrium.work.f + 1
            products += pulled
            yield Progress(at, z, mu, x.detach().clone(), seconds, evaluations, products)

    def _solve(self, f: Callable[..., Any], start: torch.Tensor, args: Any) -> fp.Solution:
        with torch.no_grad():
            return fp.fixed_point(
                f, start, args, solver=self.solver, rtol=self.tolerance, atol=0.0, batch_ndim=1,
                on_failure="return",
            )  # fmt: skip

    def _adjoint(
        self, z: torch.Tensor, mu: torch.Tensor, x: torch.Tensor, params: Any, y: Any
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The adjoint, the gradient in x, and the products they took."""
        with torch.enable_grad():
            z, x = z.requires_grad_(), x.requires_grad_()
            image, loss = self.f(z, x, params), self.loss(z, x, y, params).sum()
        (right,) = torch.autograd.grad(loss, z, retain_graph=True)

        def adjoint(mu: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(image, z, mu, retain_graph=True)[0] + right

        solution = self._solve(adjoint, mu, ())
        mu = solution.value
        direct = torch.autograd.grad(loss, x, retain_graph=True)[0]
        return mu, torch.autograd.grad(image, x, mu)[0] + direct, solution.work.f + 1
