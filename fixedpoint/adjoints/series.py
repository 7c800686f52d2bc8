"""Adjoints that stand on a few powers of the Jacobian, or on a few steps."""

from __future__ import annotations

from dataclasses import dataclass

from fixedpoint.adjoints.base import Adjoint, LinearAdjoint, autodiff_of
from fixedpoint.adjoints.system import AdjointSystem
from fixedpoint.backend import Vec
from fixedpoint.checks import check_count, check_positive
from fixedpoint.iterate import Iteration
from fixedpoint.keywords import by_name
from fixedpoint.run import Run
from fixedpoint.solvers import Solver


class _OfMaps(Adjoint):
    """An adjoint that approximates the derivative of a fixed point."""

    def check(self, solver: Solver, is_root: bool) -> None:
        """Raise TypeError for a root, which has no powers of a Jacobian to go by."""
        del solver
        if is_root:
            raise TypeError(
                f"{type(self).__name__} approximates the derivative of a fixed point "
                "by a few applications of its Jacobian: for a root use ImplicitAdjoint"
            )


@dataclass(frozen=True, kw_only=True)
class _Terms(_OfMaps):
    """So many damped terms, or steps."""

    steps: int = 5
    damping: float = 1.0

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 1)
        check_positive("damping", self.damping, 2.0)


@by_name
@dataclass(frozen=True, kw_only=True)
class JacobianFree(_OfMaps, LinearAdjoint):
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


@by_name
@dataclass(frozen=True, kw_only=True)
class NeumannSeries(_Terms, LinearAdjoint):
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

    def solve(self, system: AdjointSystem) -> Iteration:
        """Horner's scheme: u ← Bᵀu + τv."""
        space, tau = system.space, self.damping
        u = space.scale(tau, system.rhs)
        for _ in range(self.steps - 1):
            u = space.add(space.scale(tau, system.image(u)), space.scale(1.0 - tau, u))
        return system.unfinished(u, self.steps - 1)


@by_name
@dataclass(frozen=True, kw_only=True)
class PhantomGradient(_Terms):
    """Differentiate a few damped steps from z*, held constant at their start.

    The framework records

        h ← h + τ(f(h, θ) − h) ,    h = z* at first,

    k times, and differentiates that in place of z*(θ). The value stays z*, and nothing
    of the iteration before is recorded. At an exact z* the derivative is that of
    :class:`NeumannSeries`, with k evaluations of f in place of products; at a rough one
    it is that of steps which go on toward the equilibrium.

    Parameters
    ----------
    steps : int, optional
        The number k of steps.
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
    ...                      adjoint=fp.PhantomGradient(steps=3, damping=1.0))
    >>> sol.value.backward()
    >>> a.grad  # 1 + 1/2 + 1/4
    tensor(1.7500)
    """

    damping: float = 0.5

    def attach(self, run: Run, value: Vec) -> Iteration:
        """The solution unrecorded, and then the steps."""
        backend, problem = run.backend, run.problem
        still = run.at(backend.stop(problem.args))
        outcome = autodiff_of(run).implicit(self, still, backend.stop(value))
        space, end = problem.space, backend.stop(outcome.value)
        h = end
        for _ in range(self.steps):
            step = space.subtract(problem.image(h, problem.args), h)
            h = space.add(h, space.scale(self.damping, step))
        recorded = space.subtract(h, backend.stop(h))  # zero, but for its derivative
        return outcome._replace(value=space.add(end, recorded))
