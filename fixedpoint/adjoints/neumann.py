"""The truncated Neumann series."""

from __future__ import annotations

from dataclasses import dataclass

from fixedpoint.adjoints.base import AdjointSystem, SeriesAdjoint
from fixedpoint.checks import check_count, check_positive
from fixedpoint.iterate import Iteration


@dataclass(frozen=True, kw_only=True)
class NeumannSeries(SeriesAdjoint):
    """Differentiate by the first terms of the Neumann series of (I − Jᵀ)⁻¹.

    With B = τJ + (1 − τ)I, whose I − B is τ(I − J), the solution of (I − Jᵀ)u = v
    becomes

        u = τ (v + Bᵀv + … + (Bᵀ)ᵏ⁻¹v) ,

    at the cost of k − 1 products. This is the phantom gradient in its Neumann form:
    what :class:`PhantomGradient` gives at an exact z*, without evaluating f.

    Parameters
    ----------
    steps : int, optional
        The number k of terms.
    damping : float, optional
        The damping τ; 1 is none.

    References
    ----------
    Geng, Zhang, Bai, Wang and Lin, "On training implicit models", NeurIPS 2021,
    arXiv:2111.05177.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> sol = fp.fixed_point(lambda z, a: 0.5 * z + a, torch.tensor(0.0), (a,),
    ...                      adjoint=fp.NeumannSeries(steps=3))
    >>> sol.value.backward()
    >>> a.grad  # 1 + 1/2 + 1/4
    tensor(1.7500)
    """

    steps: int = 5
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 1)
        check_positive("damping", self.damping, 2.0)

    def solve(self, system: AdjointSystem) -> Iteration:
        """Horner's scheme: u ← Bᵀu + τv."""
        space, tau = system.space, self.damping
        u = space.scale(tau, system.rhs)
        for _ in range(self.steps - 1):
            u = space.add(space.scale(tau, system.image(u)), space.scale(1.0 - tau, u))
        return system.unfinished(u, self.steps - 1)
