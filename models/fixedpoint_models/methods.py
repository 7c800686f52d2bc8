"""Ways to solve the augmented system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from array_api_compat import array_namespace

import fixedpoint as fp
from fixedpoint.keywords import by_name
from fixedpoint.operators.base import leafwise
from fixedpoint.solution import Work

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ


# The published rule: any iterate of so many steps, and later residuals up to this
# factor.
_FREE_STEPS, _TOLERATED = 10, 1.3


class Method(Protocol):
    """A way to solve the augmented system."""

    def solve(
        self,
        model: AugmentedDEQ,
        z0: Any,
        mu0: Any,
        x0: Any,
        params: Any,
        y: Any,
        **control: Any,
    ) -> fp.Solution[Any]:
        """Solve for z, μ and x; `control` goes to :func:`fixedpoint.fixed_point`."""


@by_name
@dataclass(frozen=True, kw_only=True)
class JointIteration:
    """The joint fixed point as it was published: a baseline.

    Anderson's iteration on z, μ and x together, the first two damped, and x moved by
    steps that drop once. Each sample keeps its best iterate: any of the first ten;
    later, one whose residual is the lowest, or whose loss is lower while its residual
    is less than 1.3 times the lowest.

    Parameters
    ----------
    step_size, later : float, optional
        The step α, and what it drops to.
    drop : float, optional
        The part of the steps after which it does.
    memory, type : int, optional
        Of :class:`fixedpoint.Anderson`.
    state_damping, adjoint_damping : float, optional
        Of the blocks.

    References
    ----------
    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import AugmentedDEQ, JointIteration
    >>> model = AugmentedDEQ(
    ...     lambda z, x, w: w * z + x, lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1))
    >>> sol = model.solve(torch.zeros(1, 1), torch.zeros(1, 1),
    ...                   params=torch.tensor(0.5),
    ...                   y=torch.tensor([[2.0]]),
    ...                   method=JointIteration(step_size=0.1, later=0.03))
    >>> [round(float(x), 3) for x in sol.x]
    [0.8]
    """

    step_size: float = 0.01
    later: float = 0.003
    drop: float = 0.5
    memory: int = 40
    type: int = 1
    state_damping: float = 0.8
    adjoint_damping: float = 0.6

    def solve(
        self,
        model: AugmentedDEQ,
        z0: Any,
        mu0: Any,
        x0: Any,
        params: Any,
        y: Any,
        **control: Any,
    ) -> fp.Solution[Any]:
        """Solve for z, μ and x; `control` goes to :func:`fixedpoint.fixed_point`."""
        mu0 = zeros_like(z0) if mu0 is None else mu0
        solver = fp.Anderson(memory=self.memory, type=self.type)
        control |= {"solver": solver, "batch_ndim": model.batch_ndim}
        loss = lambda state: model.objective_at(
            state["z"], state["x"], params=params, y=y
        )
        best, max_steps = _Best(loss), control["max_steps"]
        state, work, taken = {"z": z0, "mu": mu0, "x": x0}, Work(), 0
        first = round(self.drop * max_steps)
        parts = (self.step_size, 0, first), (self.later, first, max_steps)
        for alpha, before, steps in parts:
            note, operator = partial(best.note, before), self._operator(model, alpha)
            during = {"max_steps": steps - before, "on_failure": "return"}
            during = control | during | {"callback": note}
            found = fp.fixed_point(operator, state, (params, y), **during)
            work, taken = work.plus(found.work), taken + found.steps
            note(max_steps, found.value, found.residual_norm)
            state = best.state
        # What is said of the iterate that is returned is found out at it.
        control |= {"max_steps": 0}
        last = fp.fixed_point(operator, state, (params, y), **control)
        work = work.plus(last.work)
        return replace(last, work=work.plus(Work(vjp=work.f)), steps=taken)

    def _operator(self, model: AugmentedDEQ, step_size: float) -> fp.operators.Joint:
        """The joint operator of a model with these steps and dampings."""
        return replace(
            model,
            step_size=step_size,
            state_damping=self.state_damping,
            adjoint_damping=self.adjoint_damping,
        ).operator


def zeros_like(container: Any) -> Any:
    """A container of zeros."""
    return leafwise(lambda leaf: array_namespace(leaf).zeros_like(leaf), container)


class _Best:
    """The best iterate of each sample, by its residual and its loss."""

    def __init__(self, loss: Callable[[Any], Any]) -> None:
        self.loss = loss
        self.state: Any = None
        self.residual: Any = None
        self.cost: Any = None

    def note(self, before: int, step: int, state: Any, residual: Any) -> bool:
        """Keep an iterate where it is better; it ends no iteration.

        It is the iterate after so many steps, and those `before` them.
        """
        cost, xp = self.loss(state), array_namespace(residual)
        if self.state is None:
            self.state = leafwise(lambda leaf: 1.0 * leaf, state)
            self.residual, self.cost = residual, cost
            return False
        lower = (cost < self.cost) & (residual < _TOLERATED * self.residual)
        better = (residual < self.residual) | lower
        if before + step <= _FREE_STEPS:
            better = xp.ones_like(better)
        self.cost = xp.where(better, cost, self.cost)
        self.residual = xp.where(residual < self.residual, residual, self.residual)
        self.state = leafwise(
            lambda new, old: xp.where(beside(better, new), new, old), state, self.state
        )
        return False


def beside(mask: Any, leaf: Any) -> Any:
    """A mask of samples with as many axes as `leaf`."""
    xp = array_namespace(mask)
    return xp.reshape(mask, (*mask.shape, *(1,) * (leaf.ndim - mask.ndim)))
