"""The Jacobian-free derivative."""

from __future__ import annotations

from dataclasses import dataclass

from fixedpoint.adjoints.base import AdjointSystem, SeriesAdjoint
from fixedpoint.iterate import Iteration


@dataclass(frozen=True, kw_only=True)
class JacobianFree(SeriesAdjoint):
    """Differentiate one application of f at z*, as if z* on its right were a constant.

    The solution of (I − Jᵀ)u = v is replaced by u = v, without any product. Where f is
    a contraction, and ∂f/∂θ is well enough conditioned, the outcome is a direction of
    descent; it is not the gradient.

    References
    ----------
    Fung, Heaton, Li, McKenzie, Osher and Yin, "JFB: Jacobian-free backpropagation for
    implicit networks", AAAI 2022, arXiv:2103.12803.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> sol = fp.fixed_point(lambda z, a: 0.5 * z + a, torch.tensor(0.0), (a,),
    ...                      adjoint=fp.JacobianFree())
    >>> sol.value.backward()
    >>> a.grad  # 2 is exact
    tensor(1.)
    """

    def solve(self, system: AdjointSystem) -> Iteration:
        """The right-hand side itself."""
        return system.unfinished(system.rhs, 0)
