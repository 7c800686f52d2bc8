"""The nested method: descent on the input, an equilibrium and an adjoint solved at each
step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.operators import Lagrangian
from fixedpoint.operators.base import leafwise
from fixedpoint.solvers import Solver
from fixedpoint_torch.linearization import gradients

Optimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


class Reduced(NamedTuple):
    """What the inner solves tell of an input.

    Attributes
    ----------
    z, mu : tensor or container of tensors
        The state and its adjoint.
    gradient : tensor
        (∂f/∂x)ᵀμ + ∂ℓ/∂x.
    loss : float
        ℓ, summed over the samples.
    evaluations, products : int
        Evaluations of f and vector-Jacobian products that it took.
    """

    z: Any
    mu: Any
    gradient: torch.Tensor
    loss: float
    evaluations: int
    products: int


class Progress(NamedTuple):
    """Where the nested method stands after a step.

    Attributes
    ----------
    at : tensor
        The input before the step.
    z, mu : tensor or container of tensors
        The state and its adjoint that were solved for there.
    x : tensor
        The input after the step.
    seconds : float
        Processor time spent so far, not counting what the caller did between steps.
    evaluations, products : int
        Evaluations of f and vector-Jacobian products so far.
    """

    at: torch.Tensor
    z: Any
    mu: Any
    x: torch.Tensor
    seconds: float
    evaluations: int
    products: int


@dataclass(frozen=True)
class Nested:
    """Minimize ℓ(z*(x), x, y) over x by a first-order method on x.

    Every step solves z = f(z, x), then μ = (∂f/∂z)ᵀμ + ∂ℓ/∂z, each from where it stood
    a step ago, and hands ∇ₓ = (∂f/∂x)ᵀμ + ∂ℓ/∂x to an optimizer of ``torch.optim``.

    Parameters
    ----------
    problem : Lagrangian
        f and ℓ.
    optimizer : callable
        Makes the optimizer of a list of tensors.
    solver : Solver
        For both inner solves.
    tolerance : float, optional
        The relative tolerance of the inner solves.
    project : callable, optional
        The projection onto a convex set, after every step.
    normalized : bool, optional
        Whether each sample's gradient is made a unit vector.
    """

    problem: Lagrangian
    optimizer: Optimizer
    solver: Solver
    tolerance: float = 1e-3
    project: Callable[[torch.Tensor], torch.Tensor] | None = None
    normalized: bool = False

    def steps(
        self, z: Any, x: torch.Tensor, *, params: Any, y: Any
    ) -> Iterator[Progress]:
        """Descend from `x`, without end: the caller stops."""
        mu = leafwise(torch.zeros_like, z)
        x = x.clone().requires_grad_()
        optimizer = self.optimizer([x])
        seconds, evaluations, products = 0.0, 0, 0
        while True:
            begin = time.process_time()
            found = self.reduced(z, mu, x.detach(), params=params, y=y)
            z, mu, at = found.z, found.mu, x.detach().clone()
            self._move(optimizer, x, found.gradient, found.loss)
            seconds += time.process_time() - begin
            evaluations += found.evaluations
            products += found.products
            yield Progress(
                at, z, mu, x.detach().clone(), seconds, evaluations, products
            )

    def reduced(
        self, z: Any, mu: Any, x: torch.Tensor, *, params: Any, y: Any
    ) -> Reduced:
        """The loss at an input and its gradient, state and adjoint solved for from
        where they were.
        """
        equilibrium = self._solve(self.problem.f, z, (x, params))
        z = equilibrium.value
        mu, gradient, loss, products = self._adjoint(z, mu, x, params, y)
        # The linearization for the adjoint evaluates f once more at the equilibrium.
        evaluations = equilibrium.work.f + 1
        return Reduced(z, mu, gradient, loss, evaluations, products)

    def _move(
        self,
        optimizer: torch.optim.Optimizer,
        x: torch.Tensor,
        gradient: torch.Tensor,
        loss: float,
    ) -> None:
        if self.normalized:
            gradient = torch.nn.functional.normalize(gradient.flatten(1)).reshape(
                gradient.shape
            )
        x.grad = gradient
        optimizer.step(lambda: loss)
        if self.project is not None:
            with torch.no_grad():
                x.copy_(self.project(x))

    def _solve(self, f: Callable[..., Any], start: Any, args: Any) -> fp.Solution[Any]:
        with torch.no_grad():
            return fp.fixed_point(
                f,
                start,
                args,
                solver=self.solver,
                rtol=self.tolerance,
                test="residual",
                batch_ndim=1,
                on_failure="return",
            )

    def _adjoint(
        self, z: Any, mu: Any, x: torch.Tensor, params: Any, y: Any
    ) -> tuple[Any, torch.Tensor, float, int]:
        """The adjoint, the gradient in x, the loss, and the products they took."""
        leaves, structure = tree.flatten(z)
        x, *leaves = (leaf.detach().requires_grad_() for leaf in (x, *leaves))
        with torch.enable_grad():
            state = structure.rebuild(leaves)
            image = tuple(tree.flatten(self.problem.f(state, x, params))[0])
            loss = self.problem.loss_at(state, x, y, params).sum()
        direct, *right = gradients((loss,), (x, *leaves), (torch.ones_like(loss),))

        def adjoint(mu: Any) -> Any:
            pulled = gradients(image, tuple(leaves), tuple(tree.flatten(mu)[0]))
            return structure.rebuild(
                [a + b for a, b in zip(pulled, right, strict=True)]
            )

        solution = self._solve(adjoint, mu, ())
        mu = solution.value
        (pulled,) = gradients(image, (x,), tuple(tree.flatten(mu)[0]))
        return mu, pulled + direct, float(loss.detach()), solution.work.f + 1
