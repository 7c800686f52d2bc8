"""Which solvers are tried: by name, one after the other, or where none is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fixedpoint.checks import chosen
from fixedpoint.functions import Bridge
from fixedpoint.linear import GMRES
from fixedpoint.matrix import MOST_ENTRIES
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.base import Solver, Step
from fixedpoint.solvers.broyden import Broyden
from fixedpoint.solvers.levenberg_marquardt import LevenbergMarquardt
from fixedpoint.solvers.newton import Newton
from fixedpoint.solvers.newton_krylov import NewtonKrylov
from fixedpoint.solvers.picard import Picard
from fixedpoint.solvers.pseudo_transient import PseudoTransient
from fixedpoint.solvers.squarem import SQUAREM

# Up to the first size a Jacobian costs little; up to the second it can still be had,
# if those of all samples are not too much together.
_SMALL, _DENSE = 64, 2000

_NAMES: dict[str, type[Solver]] = {
    "anderson": Anderson,
    "broyden": Broyden,
    "levenberg_marquardt": LevenbergMarquardt,
    "newton": Newton,
    "newton_krylov": NewtonKrylov,
    "picard": Picard,
    "pseudo_transient": PseudoTransient,
    "squarem": SQUAREM,
}


def as_solver(given: Any, argument: str = "solver") -> Solver:
    """A solver as it is given, or the one of that name with its default settings.

    Examples
    --------
    >>> as_solver("Newton-Krylov").name
    'NewtonKrylov'
    >>> as_solver("bisection")  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ValueError: solver must be one of anderson, broyden, levenberg_marquardt, newton,
    newton_krylov, picard, pseudo_transient, squarem, got 'bisection'
    """
    example = "a solver object such as Anderson()"
    return chosen(argument, given, Solver, _NAMES, example)


@dataclass(frozen=True, init=False)
class Fallback(Solver):
    """Try solvers in turn, on the samples that have not converged, each from the start.

    Each may take half of the steps that are left, and the last one all of them; a
    solver that reports a failure before leaves its share to those after it. If none
    succeeds the iterate of the smallest residual is returned. ``sol.method`` says which
    solver found the value.

    Parameters
    ----------
    solvers : sequence of Solver or str
        What to try: solvers, or their names.

    Examples
    --------
    >>> import math, fixedpoint as fp
    >>> sol = fp.fixed_point(lambda z: 4.0 * math.cos(z), 1.0,
    ...                      solver=fp.Fallback([fp.Picard(), fp.Newton()]))
    >>> round(float(sol.value), 6), sol.methods[int(sol.method)]
    (1.252353, 'Newton')
    """

    solvers: tuple[Solver, ...]

    def __init__(self, solvers: Sequence[Solver | str]) -> None:
        if isinstance(solvers, str):
            raise TypeError(f"solvers must be a sequence, got {solvers!r}")
        found = [as_solver(given, "each of solvers") for given in solvers]
        flat = tuple(rung for solver in found for rung in solver.sequence)
        if not flat:
            raise ValueError("solvers must hold at least one solver, got none")
        object.__setattr__(self, "solvers", flat)

    @property
    def sequence(self) -> tuple[Solver, ...]:
        """The methods to try, one after the other."""
        return self.solvers

    def across(self, bridge: Bridge) -> Fallback:
        """The same methods, on states of another array library."""
        found = tuple([solver.across(bridge) for solver in self.solvers])
        return self if found == self.solvers else Fallback(found)

    def init(self, problem: Problem, point: Point) -> Any:
        """What the first solver remembers."""
        return self.solvers[0].init(problem, point)

    def step(self, problem: Problem, point: Point, state: Any) -> Step:
        """A step of the first solver: the loop runs the others."""
        return self.solvers[0].step(problem, point, state)


# What seeks fixed points where every method is compiled, needed or not. The second time
# hardly anything is compiled anew.
_IN_TRACES = Fallback([Anderson(), Anderson(damping=0.1)])


def default_solver(
    size: int,
    is_root: bool,
    has_jacobian: bool = False,
    samples: int = 1,
    is_compiled: bool = False,
) -> Solver:
    """The sequence of solvers behind :func:`fixed_point` and :func:`root`.

    ======= ============ ===========================================================
    seeks   unknowns     tries
    ======= ============ ===========================================================
    fixed   up to 64     :class:`Anderson`; :class:`Newton` with a line search;
    point                :class:`SQUAREM`; :class:`Newton` with bounded steps instead;
    ..                   :class:`Picard`
    ..      up to 2000   :class:`Anderson`; :class:`NewtonKrylov`; :class:`Picard`;
                         of a single sample, :class:`Newton`
    ..      more         :class:`Anderson`; :class:`NewtonKrylov`; :class:`Picard`
    ..      in a trace   :class:`Anderson`, then with damping
    root    up to 64     :class:`Newton` with a line search, then with bounded steps
                         instead; not in a trace: :class:`LevenbergMarquardt`;
    ..                   :class:`Broyden`
    ..      up to 2000   :class:`NewtonKrylov` with bounded steps; :class:`Newton`
                         with bounded steps, then with a line search
    ..      more         :class:`NewtonKrylov` with bounded steps, then with a line
                         search
    either, any          :class:`Newton` with a line search, then with bounded steps
    and its              instead; :class:`NewtonKrylov`, and for a fixed point
    matrix               :class:`Picard`
    ======= ============ ===========================================================

    The sequences and their order were chosen by measurement on
    :mod:`fixedpoint.testing.problems`. A line search may get stuck where the derivative
    is singular, or creep, and gives way after sixty short steps; Newton steps whose
    entries are only kept from exceeding a few times the size of the state escape both,
    but fail where only descent helps. Where a method with a matrix can follow, a linear
    solve gives way to it if it would take more products than the matrix has columns.
    Where all that descend have ended in a minimizer of ‖F‖ that is not a root,
    Broyden's method does not descend. Plain iteration comes last, except for dense
    matrices: a contraction must not fail because its acceleration does. What Anderson's
    method has led out of its domain, as the scale of a distribution to zero, squared
    extrapolation often solves at once.

    In a JAX trace every method is compiled, whether it is needed or not, and those of
    Newton's kind take several times as long to compile as all others. There fixed
    points are sought by Anderson's method alone, and then again with a damping of 0.1;
    roots of few unknowns by Newton's alone. If others are needed, as for maps that are
    far from contracting, name the whole sequence:
    ``solver=default_solver(size, is_root=False)``.

    Parameters
    ----------
    size : int
        Real unknowns of one sample.
    is_root : bool
        Whether a root is sought, or a fixed point.
    has_jacobian : bool, optional
        Whether the call is given ``jacobian``.
    samples : int, optional
        How many problems are solved at once. Where the matrices of more than 64
        unknowns would have more than 2²⁶ entries together, roots are sought as if they
        had more than 2000 unknowns.
    is_compiled : bool, optional
        Whether the solve is compiled before it runs.

    Returns
    -------
    Fallback

    Examples
    --------
    >>> import fixedpoint as fp
    >>> [solver.name for solver in fp.default_solver(10, is_root=True).sequence]
    ['Newton', 'Newton', 'LevenbergMarquardt', 'Broyden']
    """
    is_too_large = size > _DENSE or samples * size**2 > MOST_ENTRIES
    large = (size > _SMALL) * (1 + is_too_large)
    if is_compiled and not (is_root or has_jacobian):
        return _IN_TRACES
    sequence = _sequence(large, is_root, has_jacobian, samples > 1)
    if is_compiled and not (large or has_jacobian):
        return _of_newton(sequence)
    return sequence


@cache
def _of_newton(sequence: Solver) -> Solver:
    """Newton's methods alone, of a sequence."""
    return Fallback([rung for rung in sequence.sequence if isinstance(rung, Newton)])


@cache
def _sequence(large: int, is_root: bool, has_jacobian: bool, is_batch: bool) -> Solver:
    """The sequence for a size: 0 up to the first bound, 1 up to the second, or 2."""
    damped, bounded = Newton(short_steps=60), Newton(line_search=False, step_bound=0.5)
    linear = GMRES(restart=40, max_steps=80)
    krylov = NewtonKrylov(
        line_search=False,
        step_bound=4.0,
        linear=linear,
        forcing=0.1,
        before_matrix=large == 1,
    )
    if has_jacobian and large:
        return Fallback(
            [damped, bounded, NewtonKrylov(), *([] if is_root else [Picard()])]
        )
    if not is_root:
        if not large:
            return Fallback([Anderson(), damped, SQUAREM(), bounded, Picard()])
        dense = [Newton()] if large < 2 and not is_batch else []
        return Fallback([Anderson(), NewtonKrylov(), Picard(), *dense])
    if not large:
        return Fallback([damped, bounded, LevenbergMarquardt(), Broyden()])
    return Fallback([krylov, *([bounded, Newton()] if large < 2 else [NewtonKrylov()])])
