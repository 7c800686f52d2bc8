"""What the adapters ask of an adjoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import mul, truediv
from typing import Any, ClassVar

from fixedpoint.backend import Array, Vec
from fixedpoint.control import Memory
from fixedpoint.differences import units_of_state
from fixedpoint.failure import Policy, apply_policy
from fixedpoint.functions import Bridge, Product
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint.solution import Solution, Status, Work
from fixedpoint.solvers import Solver
from fixedpoint.space import Space


@dataclass(frozen=True, eq=False)
class AdjointSystem:
    """The linear system (I − A)u = v of every sample, A = Jᵀ for cotangents and J for
    tangents.

    For roots it is F′ᵀu = v, or F′u = v. There A belongs to −F, and the system is −Au =
    v.

    Parameters
    ----------
    space : Space
        Where u and v lie, as rows.
    product : callable
        u ↦ Au.
    rhs : Vec
        v.
    rtol : float
        The tolerance of the forward solve.
    is_root : bool
        Whether a root is differentiated.
    transposed : bool
        Whether A is Jᵀ.
    start : Vec or None
        Where to start.
    precondition : callable or None
        v ↦ Pv, P an approximate inverse of I − A or −A.
    memory : Memory or None
        What the forward solver remembers.
    units : Vec or None
        What the entries of u are multiplied by to be comparable, as powers of two; None
        where they are.
    """

    space: Space
    product: Product
    rhs: Vec
    rtol: float
    is_root: bool
    transposed: bool
    start: Vec | None = None
    precondition: Product | None = None
    memory: Memory | None = None
    units: Vec | None = None

    def on(self, bridge: Bridge) -> AdjointSystem:
        """The same by another library's arithmetic."""
        rhs, start, memory = bridge.all_there(self.rhs), self.start, self.memory
        return replace(
            self,
            space=Space.of(bridge.backend, rhs, self.space.batch_ndim),
            product=bridge.function(self.product),
            rhs=rhs,
            start=start and bridge.all_there(start),
            precondition=bridge.function(self.precondition),
            memory=memory and memory.converted(bridge.there_in),
            units=self.units and bridge.all_there(self.units),
        )

    def comparable(self, units: Vec) -> AdjointSystem:
        """The system of the entries Du in units alike, D(I − A)D⁻¹(Du) = Dv."""
        inverse = self.precondition
        times: Product = lambda u: tuple(map(mul, units, u))
        back: Product = lambda w: tuple(map(truediv, w, units))
        return replace(
            self,
            product=lambda w: times(self.product(back(w))),
            rhs=times(self.rhs),
            start=None if self.start is None else times(self.start),
            precondition=inverse and (lambda w: times(inverse(back(w)))),
        )

    def is_uneven(self, u: Vec, share: float) -> Array:
        """Whether an equation of u leaves more than a share of its largest term."""
        xp, image, masks = self.space.xp, self.product(u), []
        left = self.space.add(image, self.rhs)
        left = left if self.is_root else self.space.subtract(left, u)
        for rest, *terms in zip(left, u, image, self.rhs, strict=True):
            most = reduce(xp.maximum, [xp.abs(term) for term in terms])
            masks.append(xp.abs(rest) <= share * most)
        return ~self.space.every(masks)

    def image(self, u: Vec) -> Vec:
        """Au + v: the map whose fixed point is sought, or for roots the residual."""
        return self.space.add(self.product(u), self.rhs)

    def residual(self, u: Vec) -> Vec:
        """What u leaves of v."""
        image = self.image(u)
        return image if self.is_root else self.space.subtract(image, u)

    def operator(self, u: Vec) -> Vec:
        """The product with I − A, or for roots −A."""
        image = self.product(u)
        return (
            self.space.negative(image)
            if self.is_root
            else self.space.subtract(u, image)
        )

    def unfinished(self, u: Vec, products: int) -> Iteration:
        """An approximation that nobody has tested: its residual is not a number."""
        xp, space = self.space.xp, self.space
        norm = space.full(float("nan"))
        zero = xp.zeros_like(norm, dtype=xp.int32)
        return Iteration(
            value=u,
            residual_norm=norm,
            error=norm,
            method=zero,
            status=zero + int(Status.MAX_STEPS),
            precise=zero > 0,
            steps=zero + products,
            work=Work(vjp=products),
        )


class Adjoint(ABC):
    """How derivatives of a solution are formed: immutable, hashable settings."""

    warm_start: Any = None
    preconditioner: Callable[..., Any] | None = None
    report: Callable[..., Any] | None = None
    shares_memory: ClassVar[bool] = False
    # The forward solver where none is named, if only one will do.
    forward_solver: ClassVar[Solver | None] = None

    @abstractmethod
    def attach(self, run: Run, value: Vec) -> Iteration:
        """The solution of `run`, differentiable with respect to its arguments."""

    def check(self, solver: Solver, is_root: bool) -> None:
        """Raise if this cannot differentiate solutions of `solver`, or roots."""
        del solver, is_root


class LinearAdjoint(Adjoint):
    """An adjoint that solves (I − A)u = v, or approximates its solution.

    The rules of the adapters differentiate u as the exact solution, whatever
    :meth:`solve` does: second derivatives are formed of first ones of the same quality.
    """

    #: What to do where :meth:`solve` fails.
    on_failure: Policy = "return"

    def attach(self, run: Run, value: Vec) -> Iteration:
        """The solution; the adapter's rules call :meth:`solve` for every derivative."""
        if self.warm_start is not None:
            run.border.pack(self.warm_start, value, "warm_start")
        return autodiff_of(run).implicit(self, run, value)

    def system(
        self,
        run: Run,
        product: Product,
        rhs: Vec,
        *,
        transposed: bool,
        value: Vec,
        memory: Memory | None = None,
        rhs_axes: int = 0,
    ) -> AdjointSystem:
        """The linear system of a derivative at the solution `value` of `run`.

        ``product`` belongs to the derivative of the problem's image there, ``memory``
        is the forward solver's, and ``rhs`` has ``rhs_axes`` axes in front that `value`
        lacks.
        """
        space, problem, start = run.problem.space, run.problem, self.warm_start
        inverse = problem.functions.adjoint_preconditioner
        if rhs_axes or not transposed:
            start = inverse = None
        if start is not None:
            start = run.border.pack(start, value, "warm_start")
        # Cotangents are in one over the units of the state, and tangents in those.
        units = units_of_state(space, value)
        if units is not None and not transposed:
            units = tuple([1.0 / unit for unit in units])
        return AdjointSystem(
            space=Space.of(run.backend, rhs, space.batch_ndim + rhs_axes),
            product=product,
            rhs=rhs,
            rtol=_relative(problem.tolerance.rtol, space),
            is_root=problem.is_root,
            transposed=transposed,
            start=start,
            precondition=None if inverse is None else inverse(value, problem.args),
            memory=memory,
            units=units,
        )

    @abstractmethod
    def solve(self, system: AdjointSystem) -> Iteration:
        """The solution u, or an approximation of it."""

    def solved(self, system: AdjointSystem) -> tuple[Vec, Iteration]:
        """The solution, or what :attr:`on_failure` says, and what became of it."""
        end, space = self.solve(system), system.space
        if self.report is not None:
            space.backend.report(self.report, end.status, end.residual_norm, end.steps)
        what = "the adjoint solve" if system.transposed else "the tangent solve"
        solution = Solution(
            value=end.value,
            status=end.status,
            residual_norm=end.residual_norm,
            steps=end.steps,
            work=Work(vjp=sum(end.work)),
            error=end.error,
            precise=end.precise,
            method=0 * end.method,
            methods=() if end.state is None else (end.state.solver.name,),
        )
        return apply_policy(self.on_failure, what, space, solution.value, solution), end


def _relative(rtol: Any, space: Space) -> float:
    """The relative tolerance of the forward solve, if it is one number."""
    known = isinstance(rtol, (int, float)) and rtol > 0
    return float(rtol) if known else space.default_rtol


class Autodiff(ABC):
    """How a framework that differentiates attaches derivatives to a solution."""

    @abstractmethod
    def attach(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, by the rules of its adjoint where derivatives are recorded."""

    @abstractmethod
    def implicit(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, differentiated by the linear systems of its adjoint."""


def solving(adjoint: Adjoint, run: Run) -> Callable[[Vec], Iteration]:
    """What takes a start to the solution, recorded where a framework does so."""
    if run.backend.autodiff is None:
        return run.iterate
    return partial(autodiff_of(run).attach, adjoint, run)


def autodiff_of(run: Run) -> Autodiff:
    """What differentiates the solution of `run`."""
    autodiff = run.backend.autodiff
    assert isinstance(autodiff, Autodiff)
    return autodiff
