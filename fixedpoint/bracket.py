"""Scalar roots between two ends where the signs differ, each entry of an array by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fixedpoint.adjoints.base import AdjointSystem, LinearAdjoint
from fixedpoint.adjoints.implicit import ImplicitAdjoint
from fixedpoint.backend import Array, Backend, Vec, backend_of
from fixedpoint.checks import check_count
from fixedpoint.failure import apply_policy, check_policy
from fixedpoint.iterate import Course, Iteration, Memory
from fixedpoint.operators.base import Operator
from fixedpoint.solution import Solution, Status, Work
from fixedpoint.solve import LeafMap, Outcome, Solve
from fixedpoint.solvers import Picard
from fixedpoint.space import Space

# Halving the interval brings a root near zero closer by one binary digit a step, and never there.
# A bracket that has not become narrow after this many steps is therefore cut at zero, and from then
# on every other time halved on a logarithmic scale, which takes ten steps from 1 to 1e-300.
_PLAIN_STEPS = 8


def bracketed_root(
    F: Callable[..., Any],
    lower: float | Array,
    upper: float | Array,
    args: tuple[Any, ...] = (),
    *,
    rtol: float | None = None,
    xtol: float = 0.0,
    atol: float = 0.0,
    max_steps: int = 200,
    adjoint: ImplicitAdjoint | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Find x with F(x, \\*args) = 0 between `lower` and `upper`, in every entry by itself.

    Chandrupatla's method [1]_ [2]_: inverse quadratic interpolation where three points say that
    it is safe, else bisection. F needs no derivative. A step costs one evaluation of F, on the
    whole array; two more are spent on the ends.

    Parameters
    ----------
    F : callable
        The function. It takes an array of the shape and dtype of the ends, and returns such an
        array, each entry of which depends on that entry of x alone. An infinite value counts by
        its sign. :class:`DomainError`, or another ArithmeticError, counts as NaN in every entry.
    lower, upper : float or array
        The ends of the brackets, in either order: real floating-point arrays that broadcast
        against each other. A Python float takes the dtype of the other end.
    args : tuple
        What else `F` takes, with respect to which the root is differentiable. No derivative flows
        to the ends.
    rtol, xtol : float, optional
        A bracket is narrow when half its width is at most ``xtol + rtol * abs(x)``, or is at the
        limit of rounding. `rtol` is by default 4 eps.
    atol : float, optional
        An entry has also converged wherever ``abs(F(x)) <= atol``.
    max_steps : int, optional
        Steps at most.
    adjoint : ImplicitAdjoint, optional
        Only its ``on_failure`` is heeded: the derivative of a scalar root is a quotient, which
        takes no iteration. It fails where F′(x) = 0.
    on_failure : {"raise", "warn", "return", "nan"}, optional
        As in :func:`fixed_point`.

    Returns
    -------
    Solution
        ``value`` is the end of the last bracket where F is smaller in size, ``residual_norm`` its
        size there. All have the shape of the ends.

    Raises
    ------
    ConvergenceError
        If an entry fails and `on_failure` is "raise".
    ValueError, TypeError
        If an argument is not as described, or an end is infinite.

    Notes
    -----
    A change of sign is a root, a jump or a pole, and a narrow bracket alone does not tell which.
    An entry has converged when its bracket is narrow and the size of F fell with it: either its
    mean at the two ends is less than half of what it was when the width was the geometric mean of
    the first width and of what counts as narrow; or at x it is at most √eps times the smaller one
    at the ends given. Where F did not fall, the bracket is narrowed to the limit of rounding; the
    status is then ``DIVERGED`` if F grew, as at a pole, else ``STALLED``, as at a jump. F with the
    same sign at both ends is ``NO_BRACKET``; NaN at an end, or at a point tried, ``NON_FINITE``.

    References
    ----------
    .. [1] T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of
       a nonlinear function without using derivatives", Advances in Engineering Software 28
       (1997) 145–149.
    .. [2] P. O. J. Scherer, "Computational Physics", 2nd ed., Springer 2013.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> a = np.array([1.0, 8.0, 27.0])
    >>> sol = fp.bracketed_root(lambda x, a: x**3 - a, 0.0 * a, 10.0, (a,))
    >>> np.round(sol.value, 12), sol.converged
    (array([1., 2., 3.]), array([ True,  True,  True]))
    """
    _check_settings(F, args, adjoint, max_steps, on_failure)
    backend, x, other = _ends(lower, upper)
    space = Space.of(backend, (x,), x.ndim)
    map_, arrays = _leaf_map(F, args, backend, x)
    quotient = Quotient(on_failure="raise" if adjoint is None else adjoint.on_failure)
    rtol = 4 * space.rounding if rtol is None else _tolerance("rtol", rtol)
    solve = BracketSolve(
        map_, _opposite(map_), map_.bind, backend, Division(), rtol,
        _tolerance("atol", atol), "euclidean", x.ndim, quotient, Course(max_steps), is_root=True,
        xtol=_tolerance("xtol", xtol),
    )  # fmt: skip
    outcome = backend.attach(solve, (x,), (*arrays, other))
    return _packed(solve, outcome, (*arrays, other), on_failure)


def _check_settings(F: Any, args: Any, adjoint: Any, max_steps: Any, on_failure: str) -> None:
    if isinstance(F, Operator):
        raise TypeError("an operator has fixed points, not roots: use fixed_point")
    if not callable(F):
        raise TypeError(f"F must be callable, got {type(F).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}: write args=(x,)")
    if adjoint is not None and not isinstance(adjoint, ImplicitAdjoint):
        raise TypeError(f"adjoint must be an adjoint such as ImplicitAdjoint(), got {adjoint!r}")
    check_count("max_steps", max_steps, 0)
    check_policy("on_failure", on_failure)


def _tolerance(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number, not negative, got {value!r}")
    return float(value)


def _ends(lower: Any, upper: Any) -> tuple[Backend, Array, Array]:
    """The ends as finite arrays of one library, dtype and shape."""
    ends = {"lower": lower, "upper": upper}
    given = {name: end for name, end in ends.items() if not isinstance(end, float)} or ends
    backend = backend_of(list(given.values()), list(given))
    arrays = {name: backend.leaf(end) for name, end in given.items()}
    like = next(iter(arrays.values()))
    xp = backend.namespace(like)
    _check_dtypes(xp, arrays, like)
    filled = (arrays[n] if n in arrays else xp.full_like(like, end) for n, end in ends.items())
    a, b = _broadcast(xp, *filled)
    infinite = xp.isinf(a) | xp.isinf(b)
    if not backend.is_traced((infinite,)) and backend.any(infinite):
        raise ValueError("lower and upper must be finite")
    return backend, a, b


def _check_dtypes(xp: Any, ends: dict[str, Array], like: Array) -> None:
    for name, end in ends.items():
        if not xp.isdtype(end.dtype, "real floating"):
            raise TypeError(f"{name} must have a real floating-point dtype, got {end.dtype}")
        if end.dtype != like.dtype:
            raise TypeError(f"{name} must have the dtype of lower, {like.dtype}, got {end.dtype}")


def _broadcast(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    try:
        shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
    except ValueError:
        raise ValueError(
            "lower and upper must broadcast against each other, "
            f"got the shapes {tuple(a.shape)} and {tuple(b.shape)}"
        ) from None
    # A view of a broadcast array cannot be written to, and F may expect an array that can.
    a, b = (x if tuple(x.shape) == shape else 1.0 * xp.broadcast_to(x, shape) for x in (a, b))
    return a, b


def _leaf_map(
    F: Callable[..., Any], args: tuple[Any, ...], backend: Backend, x: Array
) -> tuple[LeafMap, Vec]:
    """The function on leaves, and the arrays among args and inside F."""
    leaves, structure = backend.flatten(args)
    where = tuple(i for i, leaf in enumerate(leaves) if backend.is_array(leaf))
    constants = tuple(None if backend.is_array(leaf) else leaf for leaf in leaves)
    map_ = LeafMap(
        F,
        backend,
        backend.flatten(x)[1],
        structure,
        ("lower",),
        where,
        constants,
        surroundings=backend.surroundings((x,)),
    )
    return map_, (*(leaves[i] for i in where), *backend.lift(F))


def _opposite(map_: LeafMap) -> Callable[[Vec, Vec], Vec]:
    """The function −F, without the last of its arguments, which is the other end."""
    return lambda value, args: tuple(-leaf for leaf in map_.image(value, args[:-1]))


def _packed(solve: BracketSolve, outcome: Outcome, args: Vec, on_failure: str) -> Solution:
    """The solution, or what `on_failure` says."""

    def linearised(at: Any) -> Callable[[Any], Any]:
        product = solve.products((solve.backend.leaf(at),), args)
        return lambda v: product((solve.backend.leaf(v),))[0]

    solution = Solution(
        outcome.value[0], outcome.status, outcome.residual_norm, outcome.steps, outcome.work,
        outcome.method, ("Chandrupatla",), backward=outcome.backward, linearisation=linearised,
    )  # fmt: skip
    space = Space.of(solve.backend, outcome.value, solve.batch_ndim)
    what = "bracketed_root failed"
    (solution.value,) = apply_policy(on_failure, what, space, outcome.value, solution)
    return solution


class Bracket(NamedTuple):
    """Three points, and F there.

    Attributes
    ----------
    x1, f1 : array
        The latest point, an end of the bracket.
    x2, f2 : array
        The other end.
    x3, f3 : array
        The point that was an end before; at first the other end.
    """

    x1: Array
    f1: Array
    x2: Array
    f2: Array
    x3: Array
    f3: Array

    def moved(self, xp: Any, x: Array, f: Array) -> Bracket:
        """The bracket that is left after F was found to be `f` at `x`, between the ends."""
        same = (f > 0) == (self.f1 > 0)
        leaving = xp.where(same, self.x1, self.x2), xp.where(same, self.f1, self.f2)
        staying = xp.where(same, self.x2, self.x1), xp.where(same, self.f2, self.f1)
        return Bracket(x, f, *staying, *leaving)

    def best_first(self, xp: Any) -> Bracket:
        """The same points, the end with the smaller |F| in front."""
        size1, size2 = xp.abs(self.f1), xp.abs(self.f2)
        first = (size1 <= size2) | xp.isnan(size2)
        front = xp.where(first, self.x1, self.x2), xp.where(first, self.f1, self.f2)
        back = xp.where(first, self.x2, self.x1), xp.where(first, self.f2, self.f1)
        return Bracket(*front, *back, self.x3, self.f3)

    @property
    def half_width(self) -> Array:
        """Half the width, without overflow."""
        return abs(0.5 * self.x2 - 0.5 * self.x1)

    def safe(self, xp: Any) -> Array:
        """Chandrupatla's inequalities: the inverse parabola is monotonic between the ends.

        Comparisons with NaN, which infinite values of F lead to, do not hold.
        """
        x1, f1, x2, f2, x3, f3 = self
        xi = _ratio(xp, x1 - x2, x3 - x2)
        phi = _ratio(xp, f1 - f2, f3 - f2)
        inside = (xi >= 0) & (xi <= 1) & (x3 != x2)  # at first there are but two points
        xi = xp.where(inside, xi, xp.zeros_like(xi))
        return inside & (1.0 - xp.sqrt(1.0 - xi) < phi) & (phi < xp.sqrt(xi))

    def fraction(self, xp: Any) -> Array:
        """How far from x1 to x2 the parabola through the points, x of F, has its root."""
        x1, f1, x2, f2, x3, f3 = self
        alpha = _ratio(xp, x3 - x1, x2 - x1)
        linear = _ratio(xp, f1, f1 - f2) * _ratio(xp, f3, f3 - f2)
        return linear + alpha * _ratio(xp, f1, f3 - f1) * _ratio(xp, f2, f3 - f2)

    def middle(self, xp: Any, tiny: float, late: Any) -> Array:
        """Half-way between the ends; if `late`, on a logarithmic scale, or at zero."""
        plain = 0.5 * self.x1 + 0.5 * self.x2
        near = xp.minimum(xp.abs(self.x1), xp.abs(self.x2))
        far = xp.maximum(xp.abs(self.x1), xp.abs(self.x2))
        floor = xp.full_like(near, tiny)
        logarithmic = xp.sign(plain) * xp.sqrt(xp.maximum(near, floor)) * xp.sqrt(far)
        middle = xp.where((far > 4.0 * near) & late, logarithmic, plain)
        return xp.where(self.straddles_zero & late, xp.zeros_like(plain), middle)

    @property
    def straddles_zero(self) -> Array:
        """Whether zero lies strictly between the ends."""
        return _opposed(self.x1, self.x2)


def _opposed(a: Array, b: Array) -> Array:
    """Whether one is negative and the other positive."""
    return ((a < 0) & (b > 0)) | ((a > 0) & (b < 0))


def _ratio(xp: Any, a: Array, b: Array) -> Array:
    """The quotient a/b, or a where b = 0."""
    return a / xp.where(b == 0, xp.ones_like(b), b)


class Search(NamedTuple):
    """What one step hands to the next.

    Attributes
    ----------
    bracket : Bracket
        Where each entry stands.
    reference : array
        The mean of |F| at the ends of the last bracket that was wide.
    status, steps : array of int
        How each entry stands, and how many steps it took.
    step : int
        Steps so far.
    running : bool
        Whether any entry is unfinished.
    """

    bracket: Bracket
    reference: Array
    status: Array
    steps: Array
    step: Any
    running: Any


@dataclass(frozen=True, eq=False)
class BracketSolve(Solve):
    """A function and how to find its roots in brackets.

    The state is one end of every bracket, and the last of the arguments the other. `map` is F or
    −F, which have the same roots; `image` is −F, the derivative of which the adjoint,
    :class:`Quotient`, inverts: that of x − F(x) would be one, but for rounding, where F is small.

    Parameters
    ----------
    xtol : float
        As in :func:`bracketed_root`.
    """

    xtol: float = 0.0

    def run(self, value: Vec, args: Vec) -> Outcome:
        """Narrow the brackets, recording no derivatives."""
        space = Space.of(self.backend, value, self.batch_ndim)
        x1, xp = value[0], space.xp
        x2 = xp.broadcast_to(args[-1], x1.shape)
        with self.backend.quiet():
            f1, f2 = self.evaluate(x1, args), self.evaluate(x2, args)
            end = _Loop.of(self, args, xp, Bracket(x1, f1, x2, f2, x2, f2)).run()
        x, f, *_ = end.bracket.best_first(xp)
        norm = xp.astype(xp.abs(f), space.dtype)
        status = _mark(xp, end.status, end.status == int(Status.RUNNING), Status.MAX_STEPS)
        none = xp.zeros_like(status)
        return Outcome((x,), status, norm, end.steps, none, Work(f=2 + end.step))

    def evaluate(self, x: Array, args: Vec) -> Array:
        """F(x), up to its sign; NaN where F says that it is not defined."""
        try:
            return self.map((x,), args)[0][0]
        except ArithmeticError:
            if self.backend.is_traced((x, *args)):
                raise
            xp = self.backend.namespace(x)
            return xp.full_like(x, xp.nan)


@dataclass(frozen=True, eq=False)
class _Loop:
    """The steps of a solve from the `first` brackets on.

    ``smaller`` is the smaller |F| at their ends, zero where both are infinite; ``eps`` and ``tiny``
    are the unit roundoff and the smallest normal number.
    """

    solve: BracketSolve
    args: Vec
    xp: Any
    first: Bracket
    smaller: Array
    eps: float
    tiny: float

    @classmethod
    def of(cls, solve: BracketSolve, args: Vec, xp: Any, first: Bracket) -> _Loop:
        smaller = xp.abs(first.best_first(xp).f1)
        smaller = xp.where(xp.isfinite(smaller), smaller, xp.zeros_like(smaller))
        info = xp.finfo(first.x1.dtype)
        return cls(solve, args, xp, first, smaller, float(info.eps), float(info.smallest_normal))

    def run(self) -> Search:
        """All steps."""
        loop, stop = self.solve.backend.while_loop, self.solve.course.max_steps
        end: Search = loop(lambda s: s.running & (s.step < stop), self.turn, self.opened(), stop)
        return end

    def opened(self) -> Search:
        """The brackets before the first step: roots among the ends, and ends that do not do."""
        xp, first = self.xp, self.first
        sound = xp.isfinite(first.x1) & xp.isfinite(first.x2)
        status, reference = self.judged(first, xp.zeros_like(first.f1))
        status = _mark(xp, status, ~_opposed(first.f1, first.f2), Status.NO_BRACKET)
        status = _mark(xp, status, xp.isnan(first.f1) | xp.isnan(first.f2), Status.NON_FINITE)
        status = _mark(
            xp, status, xp.abs(first.best_first(xp).f1) <= self.solve.atol, Status.CONVERGED
        )
        status = _mark(xp, status, ~sound, Status.NON_FINITE)
        return self.searched(first, reference, status, xp.zeros_like(status), 0)

    def searched(
        self, bracket: Bracket, reference: Array, status: Array, steps: Array, step: Any
    ) -> Search:
        running = self.solve.backend.any(status == int(Status.RUNNING))
        return Search(bracket, reference, status, steps, step, running)

    def turn(self, search: Search) -> Search:
        """One step of the entries that are unfinished."""
        xp, old = self.xp, search.bracket
        active = search.status == int(Status.RUNNING)
        late = (search.step >= _PLAIN_STEPS) & (search.step % 2 == 0)
        x = xp.where(active, self.trial(old, late), old.x1)
        f = self.solve.evaluate(x, self.args)
        lost = xp.isnan(f)
        pairs = zip(old.moved(xp, x, f), old, strict=True)
        bracket = Bracket(*(xp.where(active & ~lost, new, past) for new, past in pairs))
        status, reference = self.judged(bracket, search.reference)
        status = _mark(xp, status, lost, Status.NON_FINITE)
        status = xp.where(active, status, search.status)
        reference = xp.where(active, reference, search.reference)
        steps = xp.where(active, search.steps + 1, search.steps)
        return self.searched(bracket, reference, status, steps, search.step + 1)

    def trial(self, bracket: Bracket, late: Any) -> Array:
        """The point to try next, no closer to an end than half of what counts as narrow.

        It is reckoned from the end with the smaller |F|: from the other one, which may be far
        larger, it would be rounded.
        """
        xp, near = self.xp, bracket.best_first(self.xp)
        least = _ratio(xp, 0.5 * self.narrow(near.x1), near.half_width)
        least = xp.minimum(least, xp.full_like(least, 0.5))
        fraction = xp.minimum(xp.maximum(near.fraction(xp), least), 1.0 - least)
        interpolated = near.x1 + fraction * (near.x2 - near.x1)
        safe = bracket.safe(xp) & ~(bracket.straddles_zero & late)
        return xp.where(safe, interpolated, bracket.middle(xp, self.tiny, late))

    def limit(self, x: Array) -> Array:
        """Half the width of a bracket at x that is at the limit of rounding."""
        return self.eps * self.xp.abs(x) + self.tiny

    def narrow(self, x: Array) -> Array:
        """Half the width of a bracket at x that counts as narrow."""
        return self.xp.maximum(self.solve.xtol + self.solve.rtol * self.xp.abs(x), self.limit(x))

    def judged(self, bracket: Bracket, reference: Array) -> tuple[Array, Array]:
        """The status of each entry, and the reference that F has to fall from."""
        xp, half = self.xp, bracket.half_width
        x, f, *_ = bracket.best_first(xp)
        residual = xp.abs(f)
        narrow, limit = self.narrow(x), self.limit(x)
        size = 0.5 * xp.abs(bracket.f1) + 0.5 * xp.abs(bracket.f2)
        between = xp.sqrt(self.first.half_width) * xp.sqrt(narrow)
        wide = (half >= between) & xp.isfinite(size)
        reference = xp.where(wide, size, reference)
        fell = (size < 0.5 * reference) | (residual <= math.sqrt(self.eps) * self.smaller)
        status = xp.zeros_like(x, dtype=xp.int32)
        status = _mark(xp, status, half <= limit, Status.STALLED)
        status = _mark(xp, status, (half <= limit) & (residual > reference), Status.DIVERGED)
        status = _mark(xp, status, (half <= narrow) & fell, Status.CONVERGED)
        return _mark(xp, status, residual <= self.solve.atol, Status.CONVERGED), reference


def _mark(xp: Any, status: Array, mask: Array, as_: Status) -> Array:
    return xp.where(mask, xp.full_like(status, int(as_)), status)


@dataclass(frozen=True, kw_only=True)
class Division(Picard):
    """What messages call the solver of one equation in one unknown."""


@dataclass(frozen=True, kw_only=True)
class Quotient(LinearAdjoint):
    """Differentiate a scalar root by a division.

    Where F(x*, θ) = 0, the cotangent v of x* gives that of θ as −(∂F/∂θ)ᵀu with F′(x*) u = v. F′
    is diagonal, since each entry is a problem by itself: one product with a vector of ones gives
    it, and no F′ ≠ 0 is too small or too large.

    Parameters
    ----------
    on_failure : {"raise", "warn", "return", "nan"}, optional
        What to do where F′(x*) is zero or not finite, and v is not zero.
    """

    on_failure: str = "raise"

    @property
    def policy(self) -> str:
        """What to do where there is no quotient."""
        return self.on_failure

    def solve(self, system: AdjointSystem) -> Iteration:
        """The quotient of v and F′."""
        space, xp = system.space, system.space.xp
        (v,) = space.shaped(system.right)
        (slope,) = space.shaped(system.product(space.rows((xp.ones_like(v),))))
        u = xp.where(v == 0, xp.zeros_like(v), _ratio(xp, -v, slope))
        solved = (v == 0) | ((slope != 0) & xp.isfinite(u))
        status = xp.full_like(v, int(Status.LINEAR_SOLVE_FAILED), dtype=xp.int32)
        status = _mark(xp, status, solved, Status.CONVERGED)
        none, norm = xp.zeros_like(status), xp.astype(xp.abs(slope * u + v), space.dtype)
        memory = Memory(Division(), ())
        return Iteration(space.rows((u,)), norm, none, status, none, Work(vjp=1), None, memory)
