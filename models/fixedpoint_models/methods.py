"""Ways to solve the augmented system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace

import fixedpoint as fp
from fixedpoint import operators, tree
from fixedpoint.backend import backend_of
from fixedpoint.failure import Policy
from fixedpoint.operators import DescentRule, Lagrangian, ReducedNewton, tangents
from fixedpoint.operators.base import leafwise
from fixedpoint.solution import Work

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ


# The published rule: any iterate of so many steps, and later residuals up to this
# factor.
_FREE_STEPS, _TOLERATED = 10, 1.3


@dataclass(frozen=True, kw_only=True)
class TrackedNewton:
    """Newton's method in the input, with state and adjoint tracked.

    See :class:`fixedpoint.operators.ReducedNewton`.

    Right for inputs of few entries, up to a hundred or so, without constraints. How the
    equilibrium moves with the input is computed once, for one sample that stands for
    all: where all rows of z0 and x0 agree, at their equilibrium, and otherwise at that
    of zero. Samples that have converged leave the batch where all arrays of y have an
    entry for each.

    Parameters
    ----------
    blocks, tangent_rtol : optional
        Steps at most, and tolerance, of :func:`fixedpoint.operators.tangents`.
    forcing, damping : float, optional
        As for :class:`fixedpoint.operators.ReducedNewton`.
    inner_rtol : float, optional
        Relative tolerance of the equilibrium that everything starts from, before it is
        corrected by the tangents.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import AugmentedDEQ, TrackedNewton
    >>> model = AugmentedDEQ(
    ...     lambda z, x, w: w * z + x, lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1))
    >>> sol = model.solve(torch.zeros(2, 1), torch.zeros(2, 1),
    ...                   params=torch.tensor(0.5),
    ...                   y=torch.tensor([[2.0], [1.0]]), method=TrackedNewton())
    >>> [round(float(x), 4) for x in sol.x]
    [0.8, 0.4]
    """

    blocks: int = 8
    tangent_rtol: float = 0.03
    forcing: float = 0.3
    damping: float = 0.05
    inner_rtol: float = 1e-2

    def solve(
        self,
        model: AugmentedDEQ,
        z0: Any,
        mu0: Any,
        x0: Any,
        params: Any,
        y: Any,
        **control: Any,
    ) -> fp.Solution:
        """Solve for z, μ and x; `control` goes to :func:`fixedpoint.fixed_point`.

        The adjoint starts from what the tangents foretell, not from `mu0`.
        """
        del mu0
        if model.project is not None or model.batch_ndim != 1:
            raise ValueError(
                "TrackedNewton is for one axis of samples and inputs without "
                "constraints: "
                "use TrackedDescent"
            )
        problem, shared = model.problem, _same_rows(z0) and _same_rows(x0)
        z1, x1 = (leafwise(_first_row if shared else _zero_row, a) for a in (z0, x0))
        z1, work = self._equilibrium(problem, z1, x1, params)
        local = tangents(problem, z1, x1, params, self.blocks, self.tangent_rtol)
        steps = len(local.left[0]) // len(local.state[0])
        work = work.plus(Work(f=1, jvp=steps + 1))
        if shared:
            z = local.corrected(problem.f, z1, x1, params)
        else:
            z, more = self._equilibrium(problem, z0, x0, params)
            z, work = local.corrected(problem.f, z, x0, params), work.plus(more)
        newton = ReducedNewton(problem, self.forcing, self.damping)
        start = newton.start(z, x0, params, y, local)
        found = fp.fixed_point(
            newton,
            start,
            (params, y, local),
            solver=fp.Picard(keep_last=True),
            batch_ndim=1,
            batched_args=(False, True, False) if _per_sample(y, z0) else None,
            **control,
        )
        return _without_memory(found, work.plus(Work(vjp=found.work.f)))

    def _equilibrium(
        self, problem: Lagrangian, z: Any, x: Any, params: Any
    ) -> tuple[Any, Work]:
        found = fp.fixed_point(
            problem.f,
            z,
            (x, params),
            rtol=self.inner_rtol,
            test="residual",
            batch_ndim=1,
            on_failure="return",
        )
        return found.value, found.work


@dataclass(frozen=True, kw_only=True)
class TrackedDescent:
    """Descent in the input, with state and adjoint tracked; see the operator of the
    same name.

    Right for inputs of many entries and for constraints: attacks, for one.

    Parameters
    ----------
    rule : DescentRule
        How the input moves: ``Momentum``, ``BarzilaiBorwein`` or
        ``ConditionalGradient`` of :mod:`fixedpoint.operators`.
    sweeps : int, optional
        Evaluations of f and products for each move.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint.operators import Momentum
    >>> from fixedpoint_models import AugmentedDEQ, TrackedDescent
    >>> model = AugmentedDEQ(
    ...     lambda z, x, w: w * z + x, lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1))
    >>> sol = model.solve(torch.zeros(1, 1), torch.zeros(1, 1),
    ...                   params=torch.tensor(0.5),
    ...                   y=torch.tensor([[2.0]]), max_steps=200,
    ...                   method=TrackedDescent(rule=Momentum(step_size=0.1)))
    >>> [round(float(x), 3) for x in sol.x]
    [0.8]
    """

    rule: DescentRule
    sweeps: int = 2

    def solve(
        self,
        model: AugmentedDEQ,
        z0: Any,
        mu0: Any,
        x0: Any,
        params: Any,
        y: Any,
        **control: Any,
    ) -> fp.Solution:
        """Solve for z, μ and x; `control` goes to :func:`fixedpoint.fixed_point`."""
        descent = operators.TrackedDescent(
            model.problem, self.rule, model.project, self.sweeps, model.batch_ndim
        )
        found = fp.fixed_point(
            descent,
            descent.start(z0, x0, mu0),
            (params, y),
            solver=fp.Picard(keep_last=True),
            batch_ndim=model.batch_ndim,
            **control,
        )
        evaluations = self.sweeps * found.work.f
        return _without_memory(
            found, Work(f=evaluations - found.work.f, vjp=evaluations)
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
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
    >>> from fixedpoint_models import AugmentedDEQ, Recipe
    >>> model = AugmentedDEQ(
    ...     lambda z, x, w: w * z + x, lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1))
    >>> sol = model.solve(torch.zeros(1, 1), torch.zeros(1, 1),
    ...                   params=torch.tensor(0.5),
    ...                   y=torch.tensor([[2.0]]),
    ...                   method=Recipe(step_size=0.1, later=0.03))
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
        *,
        max_steps: int,
        on_failure: Policy,
        **control: Any,
    ) -> fp.Solution:
        """Solve for z, μ and x; `control` goes to :func:`fixedpoint.fixed_point`."""
        solver = fp.Anderson(memory=self.memory, type=self.type)
        best = _Best(
            lambda state: model.problem.loss_at(state["z"], state["x"], y, params)
        )
        state, work, taken = {"z": z0, "mu": mu0, "x": x0}, Work(), 0
        first = round(self.drop * max_steps)
        for alpha, before, steps in (
            (self.step_size, 0, first),
            (self.later, first, max_steps),
        ):
            note = partial(best.note, before)
            operator = replace(
                model,
                step_size=alpha,
                state_damping=self.state_damping,
                adjoint_damping=self.adjoint_damping,
            ).operator
            found = fp.fixed_point(
                operator,
                state,
                (params, y),
                solver=solver,
                max_steps=steps - before,
                callback=note,
                batch_ndim=model.batch_ndim,
                on_failure="return",
                **control,
            )
            work, taken = work.plus(found.work), taken + found.steps
            note(max_steps, found.value, found.residual_norm)
            state = best.state
        # What is said of the iterate that is returned is found out at it.
        last = fp.fixed_point(
            operator,
            state,
            (params, y),
            solver=solver,
            max_steps=0,
            batch_ndim=model.batch_ndim,
            on_failure=on_failure,
            **control,
        )
        work = work.plus(last.work)
        return replace(last, work=work.plus(Work(vjp=work.f)), steps=taken)


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
            self.state, self.residual, self.cost = (
                leafwise(_copy, state),
                residual,
                cost,
            )
            return False
        lower = (cost < self.cost) & (residual < _TOLERATED * self.residual)
        better = (residual < self.residual) | lower
        if before + step <= _FREE_STEPS:
            better = xp.ones_like(better)
        self.cost = xp.where(better, cost, self.cost)
        self.residual = xp.where(residual < self.residual, residual, self.residual)
        self.state = leafwise(
            lambda new, old: xp.where(_beside(better, new), new, old), state, self.state
        )
        return False


def _copy(leaf: Any) -> Any:
    return 1.0 * leaf


def _beside(mask: Any, leaf: Any) -> Any:
    """`mask` with as many axes as `leaf`."""
    xp = array_namespace(mask)
    return xp.reshape(mask, (*mask.shape, *(1,) * (leaf.ndim - mask.ndim)))


def _without_memory(found: fp.Solution, more: Work) -> fp.Solution:
    """The solution for z, μ and x alone, and `more` work than its steps."""
    value = {name: found.value[name] for name in ("z", "mu", "x")}
    return replace(found, value=value, work=found.work.plus(more))


def _same_rows(container: Any) -> bool:
    """Whether all samples are known to be the same."""
    leaves = tree.flatten(container)[0]
    backend = backend_of(leaves, tree.paths(container, "x0"))
    return not backend.is_traced(tuple(leaves)) and all(
        backend.known_all(leaf == leaf[:1, ...]) for leaf in leaves
    )


def _per_sample(y: Any, z: Any) -> bool:
    """Whether all arrays of y have an entry for each sample of z, so that samples may
    leave.
    """
    number = tree.flatten(z)[0][0].shape[:1]
    arrays = [leaf for leaf in tree.flatten(y)[0] if hasattr(leaf, "shape")]
    return bool(arrays) and all(leaf.shape[:1] == number for leaf in arrays)


def _first_row(leaf: Any) -> Any:
    return leaf[:1, ...]


def _zero_row(leaf: Any) -> Any:
    return array_namespace(leaf).zeros_like(leaf[:1, ...])
