"""Implicit differentiation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import truediv
from typing import Any, NamedTuple

from fixedpoint.adjoints.base import LinearAdjoint
from fixedpoint.adjoints.system import AdjointSystem, Scales
from fixedpoint.backend import Array
from fixedpoint.carry import marked
from fixedpoint.checks import check_callable, check_count, check_preconditioner
from fixedpoint.control import Control, Memory
from fixedpoint.failure import Policy, check_policy
from fixedpoint.functions import Functions
from fixedpoint.iterate import Iteration, Solve
from fixedpoint.keywords import by_name
from fixedpoint.linear import GMRES
from fixedpoint.matrix import MOST_ENTRIES
from fixedpoint.problem import Problem
from fixedpoint.root_problem import RootProblem
from fixedpoint.shown import represented
from fixedpoint.solution import Work
from fixedpoint.solvers import Anderson, NewtonKrylov, Solver, as_solver
from fixedpoint.space import Space
from fixedpoint.status import Status
from fixedpoint.tolerance import ENTRIES, Tolerance

_ANDERSON, _DAMPING = Anderson(memory=10), 0.1
_LINEAR = GMRES(restart=50, max_steps=500)
_GMRES = NewtonKrylov(linear=_LINEAR, forcing=1e-3, line_search=False)

# Up to so many unknowns, a product for each costs no more than an iterative solve.
_MATRIX = 16

# Where all else has failed, so many products for each step that is allowed.
_PRODUCTS = 4


@by_name
@dataclass(frozen=True, kw_only=True)
class ImplicitAdjoint(LinearAdjoint):
    """Differentiate z* = f(z*, θ) by the implicit function theorem.

    With J = ∂f/∂z at z*, the cotangent v of z* gives that of θ as (∂f/∂θ)ᵀu, where

        (I − Jᵀ) u = v .

    The system is solved as the fixed point of u ↦ Jᵀu + v, matrix-free, by the engine
    that solves for z*, each sample for itself. For a root F(x*, θ) = 0 the system is
    F′ᵀu = v, and the cotangent of θ is −(∂F/∂θ)ᵀu. One linearization of f serves all
    its products, and memory does not grow with the steps of either solve. The
    derivative is that of the exact solution: its error is that of z* and of u, times
    the condition number of I − J.

    Parameters
    ----------
    solver : Solver or str, optional
        How to solve the adjoint system. By default that of a single sample of up to
        sixteen unknowns (and `max_steps`) by elimination, or by least squares where its
        matrix is singular; else by ``Anderson(memory=10)``, and where that gives up
        with a damping of 0.1; for roots, and with a preconditioner, by
        :class:`NewtonKrylov`, one step of which is GMRES. Outside of a trace, what
        these fail at is solved by elimination up to `max_steps` unknowns. Beyond, where
        they give up before `max_steps`, GMRES follows, and elimination up to four times
        as many. Each of these takes half a gibibyte at most in float64. In a trace,
        roots of up to 200 unknowns alone are solved by elimination then.
    preconditioner : callable, optional
        ``preconditioner(z, *args)`` returns v ↦ Pv, with P an approximate inverse of I
        − Jᵀ, or of F′ᵀ, on containers like z. Only products with Jᵀ use it.
    warm_start : array or container of arrays, optional
        Where to start, shaped like z, by default at v, or for roots at zero. The
        multiplier of the augmented system is such a start, and so is
        ``sol.backward.value`` of an earlier solve.
    rtol, atol : float, optional
        It ends when the error of u is estimated to be atol + rtol·‖u‖ or less. Where an
        equation does not hold to that in its own terms, the system is solved again: in
        the units of z for a fixed point, by elimination for a root, of which that is
        done as well where units are a million apart. Of states of more than 200 entries
        only the leaves are told apart.
        By default rtol is that of the forward solve, if it is a positive float, or
        max(1e-6, 10·eps).
    max_steps : int, optional
        Steps of the adjoint solve at most.
    on_failure : {"raise", "warn", "return", "nan"}, optional
        What to do when the adjoint solve fails: raise :class:`ConvergenceError` out of
        the backward pass, warn, go on with what was reached, or fill the gradients of
        the samples that failed with NaN. In a trace "raise" does the last.
    report : callable, optional
        Called as ``report(status, residual_norm, steps)``, arrays of the batch's shape,
        after each solve, under ``jit`` too, where a solution has no ``sol.backward``.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> sol = fp.fixed_point(lambda z, a: 0.5 * z + a, torch.tensor(0.0), (a,),
    ...                      adjoint=fp.ImplicitAdjoint(rtol=1e-7))
    >>> sol.value.backward()
    >>> round(float(a.grad), 5)
    2.0
    """

    solver: Solver | str | None = None
    preconditioner: Callable[..., Any] | None = None
    warm_start: Any = field(default=None, compare=False)
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 500
    on_failure: Policy = "raise"
    report: Callable[..., Any] | None = None

    __repr__ = represented

    def __post_init__(self) -> None:
        if self.solver is not None:
            object.__setattr__(self, "solver", as_solver(self.solver))
        check_count("max_steps", self.max_steps, 0)
        check_policy("on_failure", self.on_failure)
        check_preconditioner(self.preconditioner)
        check_callable("report", self.report)

    def solve(self, system: AdjointSystem) -> Iteration:
        """The solution, as accurate as the tolerance asks."""
        if self._eliminates(system):
            return system.eliminated()
        small = system.space.dimension <= ENTRIES
        if small and system.is_root and system.units is not None:
            return self._confirmed(system)
        return self._rescued(system, self._attempted(system))

    def _eliminates(self, system: AdjointSystem) -> bool:
        """Whether the system is small, and nothing says how to solve it.

        Samples that f couples all the same, as by statistics of their batch, have no
        matrices of their own.
        """
        space = system.space
        small = space.real_size <= _MATRIX and space.batch_ndim == 0
        return small and system.start is None and self._is_open(system)

    def _is_open(self, system: AdjointSystem, products: int = 1) -> bool:
        """Whether nothing says how to solve the system, and its matrices are known here
        in so many `products` for each step, and no more memory than is allowed.
        """
        size = system.space.real_size
        return size <= products * self.max_steps and self._holds(system, size)

    def _holds(self, system: AdjointSystem, columns: int) -> bool:
        """Whether nothing says how to solve the system, and so many vectors of each
        sample are no more than may be held here.
        """
        space, backend = system.space, system.space.backend
        if math.prod(space.batch_shape) * space.real_size * columns > MOST_ENTRIES:
            return False
        told = self.solver, system.precondition, backend.communicator
        is_free = all(part is None for part in told)
        return is_free and all(map(backend.is_whole, system.rhs))

    def _confirmed(self, system: AdjointSystem) -> Iteration:
        """The solution of a small root's system, by elimination where the norm of all
        equations, or of all unknowns, may see only those in large units, where an
        equation does not hold, or where a Krylov method fails.

        What the entries of such a solution are says nothing of their units.
        """
        backend = system.space.backend
        if self._is_open(system) and backend.known_all(system.is_mixed):
            end = system.eliminated()
            if backend.known_all(~_has_failed(end)):
                return end
        end = self._solved(system)
        uneven, sizes, products = system.equations(end.value, self._rtol(system))
        alike = system.are_alike(sizes) & system.are_alike(end.value)
        end = end._replace(
            status=marked(
                system.space.xp, end.status, uneven, Status.LINEAR_SOLVE_FAILED
            ),
            work=end.work.plus(Work(f=products)),
            state=Memory(self._method(system), ()),
        )
        mask = ~alike | _has_failed(end)
        return _solved_where(system, mask, end, _eliminated)

    def _rescued(self, system: AdjointSystem, end: Iteration) -> Iteration:
        """The solution, by GMRES or by elimination where other methods fail.

        That of a map whose derivative has eigenvalues outside of the unit circle, which
        Newton's method does not mind, takes Anderson's method more steps than it has
        unknowns, if it converges. In a trace this would double what is compiled.
        """
        if system.space.backend.is_traced((end.status,)):
            return end
        if self._is_open(system):
            return _solved_where(system, _has_failed(end), end, _eliminated)
        if not system.is_root and self._holds(system, _LINEAR.restart):
            linear = replace(_LINEAR, max_steps=self.max_steps)
            by_gmres = replace(self, solver=replace(_GMRES, linear=linear))
            end = _solved_where(system, _gave_up(end), end, by_gmres._attempted)
        if self._is_open(system, _PRODUCTS):
            end = _solved_where(system, _gave_up(end), end, _eliminated)
        return end

    def _attempted(self, system: AdjointSystem) -> Iteration:
        """What one method makes of the system; again where that may help."""
        again = system.units is not None or self._follows_map(system)
        return self._solved_again(system) if again else self._solved(system)

    def _follows_map(self, system: AdjointSystem) -> bool:
        """Whether the method is Anderson's, which damping helps."""
        return self._method(system) is _ANDERSON

    def _solved_again(self, system: AdjointSystem) -> Iteration:
        """The solution, sought once more with damping where that failed, and in
        comparable units where an equation does not hold: the norm of all of them may
        see only those in large units.
        """
        space, backend = system.space, system.space.backend

        def again(tried: _Tried) -> _Tried:
            found = self._solved_scaled(system, tried)
            is_better = ~_has_failed(found) | (tried.times == 0)
            end = _renewed(space, tried.uneven & is_better, tried.end, found)
            return self._looked_at(system, tried, end)

        def goes_on(tried: _Tried) -> Any:
            return (tried.times < 2) & backend.any(tried.uneven)

        start, scales = system.unfinished(system.rhs, 0), None
        if system.units is not None:
            none = tuple(map(space.xp.ones_like, system.rhs))
            scales = Scales(none, none)
        first = _Tried(start.status == start.status, start, 0, scales)
        last: _Tried = backend.while_loop(goes_on, again, first, 2)
        return last.end._replace(state=Memory(self._method(system), ()))

    def _solved_scaled(self, system: AdjointSystem, tried: _Tried) -> Iteration:
        """The solution in the units, and with the damping, that are tried next."""
        space, scales, damped = system.space, tried.scales, _gave_up(tried.end)
        if scales is not None:
            system = system.comparable(scales)
        if self._follows_map(system) and not space.backend.known_none(damped):
            factor = space.select(damped, _DAMPING * space.one, space.one)
            system = system.damped(factor)
        found = self._solved(system)
        if scales is None:
            return found
        return found._replace(value=tuple(map(truediv, found.value, scales.columns)))

    def _looked_at(
        self, system: AdjointSystem, tried: _Tried, end: Iteration
    ) -> _Tried:
        """What was tried, where it ended, and the samples to be solved once more."""
        uneven, scales = _gave_up(end), tried.scales
        if scales is not None:
            uneven, sizes, products = system.equations(end.value, self._rtol(system))
            end = end._replace(work=end.work.plus(Work(f=products)))
            scales = system.scales(sizes)
        return _Tried(tried.uneven & uneven, end, tried.times + 1, scales)

    def _rtol(self, system: AdjointSystem) -> float:
        return system.rtol if self.rtol is None else self.rtol

    def _solved(self, system: AdjointSystem) -> Iteration:
        """The solution, its error small in the Euclidean norm."""
        tolerance = Tolerance(self._rtol(system), self.atol, "euclidean")
        problem = linear_problem(system, tolerance)
        fresh = system.space.zeros(system.rhs) if system.is_root else system.rhs
        start = fresh if system.start is None else system.start
        control, solver = Control(max_steps=self.max_steps), self._method(system)
        return Solve(problem=problem, control=control, solver=solver).iterate(start)

    def _method(self, system: AdjointSystem) -> Solver:
        preconditioned = system.precondition is not None
        if self.solver is not None:
            return as_solver(self.solver)
        return _GMRES if system.is_root or preconditioned else _ANDERSON


class _Tried(NamedTuple):
    """A system that may be solved again."""

    uneven: Array  # whether an equation does not hold
    end: Iteration
    times: Any = 0  # how often it was solved in units
    scales: Any = None  # those to solve it in next


_eliminated = AdjointSystem.eliminated


def _has_failed(end: Iteration) -> Array:
    failed: Array = end.status != int(Status.CONVERGED)
    return failed


def _gave_up(end: Iteration) -> Array:
    """Whether the method failed before it had taken all steps that it might."""
    return _has_failed(end) & (end.status != int(Status.MAX_STEPS))


def _solved_where(
    system: AdjointSystem,
    mask: Array,
    end: Iteration,
    attempt: Callable[[AdjointSystem], Iteration],
) -> Iteration:
    """The iteration with the solution by another attempt, where there is one, in the
    samples of a mask.
    """
    space, backend = system.space, system.space.backend

    def solved(tried: _Tried) -> _Tried:
        found = attempt(system)
        sound = tried.uneven & ~_has_failed(found)
        end = _renewed(space, sound, tried.end, found)
        return _Tried(tried.uneven & ~tried.uneven, end)

    goes_on = lambda tried: backend.any(tried.uneven)
    last: _Tried = backend.while_loop(goes_on, solved, _Tried(mask, end), 1)
    return last.end


def _renewed(space: Space, mask: Array, old: Iteration, new: Iteration) -> Iteration:
    """The iteration with what is new in the samples of `mask`, and the work of both."""
    names = "residual_norm", "error", "method", "status", "precise", "steps"
    ends = [(name, getattr(new, name), getattr(old, name)) for name in names]
    parts = {name: space.xp.where(mask, a, b) for name, a, b in ends}
    value = space.where(mask, new.value, old.value)
    work = old.work.plus(new.work)
    return old._replace(value=value, work=work, **parts)


def linear_problem(system: AdjointSystem, tolerance: Tolerance) -> Problem:
    """The system as a problem of the engine's."""
    negative, product = system.space.negative, system.product
    inverse = system.precondition
    tolerance = tolerance.settled(system.space, 0.0, (slice(None),), ())
    if system.is_root:
        functions = Functions.of_image(
            lambda u, _: negative(system.image(u)),
            product=lambda *_: lambda v: negative(product(v)),
            preconditioner=inverse and (lambda *_: inverse),
        )
        return RootProblem(system.space, functions, (), tolerance, is_affine=True)
    functions = Functions.of_image(
        lambda u, _: system.image(u),
        product=lambda *_: product,
        preconditioner=inverse and (lambda *_: lambda v: negative(inverse(v))),
    )
    return Problem(system.space, functions, (), tolerance, is_affine=True)
