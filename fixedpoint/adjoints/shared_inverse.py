"""The inverse of the forward solve, shared with the backward one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from operator import truediv
from typing import ClassVar

from fixedpoint.adjoints.base import LinearAdjoint
from fixedpoint.adjoints.implicit import linear_problem
from fixedpoint.adjoints.system import AdjointSystem
from fixedpoint.backend import Vec
from fixedpoint.carry import marked
from fixedpoint.checks import check_count, check_positive
from fixedpoint.control import Control, Memory
from fixedpoint.iterate import Iteration, Solve
from fixedpoint.keywords import by_name
from fixedpoint.linear import GMRES, LinearSystem
from fixedpoint.solution import Work
from fixedpoint.solvers import Broyden, Solver
from fixedpoint.solvers.broyden import BroydenState
from fixedpoint.status import Status
from fixedpoint.tolerance import Tolerance

# What is left of a system may be so many times what GMRES, rounded, has been told.
_PARTED = 10.0


@by_name
@dataclass(frozen=True, kw_only=True)
class SharedInverse(LinearAdjoint):
    """Differentiate with the inverse that Broyden's method left behind (SHINE).

    The estimate H ≈ (I − J)⁻¹ of the forward solve gives the solution of (I − Jᵀ)u = v
    as u = Hᵀv, without any product. It may then be improved: by secant pairs in the
    direction that the loss asks for, which H has never seen, and by GMRES, started at u
    with Hᵀ as its preconditioner. The solver must be :class:`Broyden`, and is that
    where none is named.

    Parameters
    ----------
    fallback : float, optional
        Samples with ‖u‖ > fallback·‖v‖ take u = v, the Jacobian-free direction,
        instead.
    outer_aware : int, optional
        Steps of Broyden's method on the adjoint system, which start at u with Hᵀ: each
        is a product and a secant pair in the needed direction.
    refine : int, optional
        Products of GMRES at most, after that, and two more; it ends where the residual
        meets the tolerance of the forward solve in the norm of all entries, for a fixed
        point in units that make these comparable.

    References
    ----------
    Ramzi, Mannel, Bai, Starck, Ciuciu and Moreau, "SHINE: SHaring the INverse Estimate
    from the forward pass for bi-level optimization and implicit models", ICLR 2022,
    arXiv:2106.00553.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> sol = fp.fixed_point(lambda z, a: 0.5 * z + a, torch.tensor(0.0), (a,),
    ...                      adjoint=fp.SharedInverse(fallback=10.0))
    >>> sol.value.backward()
    >>> round(float(a.grad), 4)
    2.0
    """

    fallback: float | None = None
    outer_aware: int = 0
    refine: int = 0
    shares_memory: ClassVar[bool] = True
    forward_solver: ClassVar[Solver | None] = Broyden()

    def __post_init__(self) -> None:
        if self.fallback is not None:
            check_positive("fallback", self.fallback, math.inf)
        check_count("outer_aware", self.outer_aware, 0)
        check_count("refine", self.refine, 0)

    def check(self, solver: Solver, is_root: bool) -> None:
        """Only one solver estimates the inverse."""
        del is_root
        if not isinstance(solver, Broyden):
            raise TypeError(
                f"SharedInverse needs the inverse of Broyden(), got {solver!r}"
            )

    def solve(self, system: AdjointSystem) -> Iteration:
        """The product with the shared inverse, improved as asked."""
        assert system.memory is not None
        kept: BroydenState = system.memory.contents
        inverse = kept.transposed() if system.transposed else kept
        u = self._shared(system, inverse)
        end = system.unfinished(u, 0)
        if self.outer_aware:
            end = _aware(system, inverse, u, self.outer_aware)
            assert end.state is not None
            inverse = end.state.contents
        return _refined(system, inverse, end, self.refine) if self.refine else end

    def _shared(self, system: AdjointSystem, inverse: BroydenState) -> Vec:
        """The product with the inverse, where it is not too long."""
        space, v = system.space, system.rhs
        u = inverse.times(space, v)
        if self.fallback is None:
            return u
        short = space.norm(u) <= self.fallback * space.norm(v)
        return space.where(short, u, space.scale(inverse.scale, v))


def _aware(
    system: AdjointSystem, inverse: BroydenState, u: Vec, steps: int
) -> Iteration:
    """Broyden's method on the adjoint system, from u and the inverse."""
    left = max(2 * system.space.real_size - inverse.used.shape[-1], 0)
    wider = inverse.widened(system.space, min(steps, left))
    solver = Broyden(memory=wider.used.shape[-1])
    problem = linear_problem(system, Tolerance(system.rtol, 0.0, "euclidean"))
    control, memory = Control(max_steps=steps), Memory(solver, wider)
    solve = Solve(problem=problem, control=control, solver=solver, memory=memory)
    return solve.iterate(u)


def _refined(
    system: AdjointSystem, inverse: BroydenState, end: Iteration, products: int
) -> Iteration:
    """Preconditioned GMRES from the end of an iteration, in comparable units: a norm of
    all entries would see only the large ones.

    Equations of a root have units of their own, which nothing tells.
    """
    precondition = lambda w: inverse.times(system.space, w)
    system = replace(system, start=end.value, precondition=precondition)
    if system.units is None or system.is_root:
        return _improved(system, end, products)
    scales = system.scales(system.rhs)
    found = _improved(system.comparable(scales), end, products)
    value = tuple(map(truediv, found.value, scales.columns))
    return found._replace(value=value)


def _improved(system: AdjointSystem, end: Iteration, products: int) -> Iteration:
    """Preconditioned GMRES from the start of a system, or from zero if closer.

    Where the inverse is nearly singular, rounding parts the residual of GMRES from what
    its solution leaves of the system, which is looked at.
    """
    space, v, where = system.space, system.rhs, system.space.xp.where
    assert system.start is not None
    left = system.residual(system.start)
    before, size, zero = space.norms(left, system.start, v)
    closer = before < zero
    target = system.rtol * where(closer, space.xp.maximum(zero, size), zero)
    start = space.where(closer, left, v)
    inner = LinearSystem(space, system.operator, start, target, system.precondition)
    solution, _ = GMRES(restart=products, max_steps=products).solve(inner, None)
    u = space.add(space.mask(closer, system.start), solution.value)
    after = space.norm(system.residual(u))
    better = after < space.xp.minimum(before, zero)
    norm = where(better, after, before)
    return end._replace(
        value=space.where(better, u, system.start),
        residual_norm=norm,
        status=marked(space.xp, end.status, norm <= _PARTED * target, Status.CONVERGED),
        steps=end.steps + solution.products,
        work=end.work.plus(Work(vjp=solution.products + 2)),
    )
