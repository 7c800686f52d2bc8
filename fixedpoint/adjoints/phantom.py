"""The phantom gradient."""

from __future__ import annotations

from dataclasses import dataclass

from fixedpoint.adjoints.base import Adjoint, autodiff_of, refuse_roots
from fixedpoint.backend import Vec
from fixedpoint.checks import check_count, check_positive
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint.solvers import Solver


@dataclass(frozen=True, kw_only=True)
class PhantomGradient(Adjoint):
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

    steps: int = 5
    damping: float = 0.5

    def __post_init__(self) -> None:
        check_count("steps", self.steps, 1)
        check_positive("damping", self.damping, 2.0)

    def check(self, solver: Solver, is_root: bool) -> None:
        """Roots have no steps of f."""
        del solver
        refuse_roots(self, is_root)

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
