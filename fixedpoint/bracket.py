"""Scalar roots in brackets, each entry of an array by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fixedpoint.adapters import backend_of, is_number, numbers, of_one_backend
from fixedpoint.adjoints.base import solving
from fixedpoint.adjoints.implicit import ImplicitAdjoint
from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.border import Border, MapOnLeaves
from fixedpoint.chandrupatla import BracketRun, ScalarAdjoint
from fixedpoint.checks import check_bound, check_bounds, check_count, check_function
from fixedpoint.control import Budget, Control, check_callback
from fixedpoint.failure import Policy, check_policy
from fixedpoint.keywords import known_by_name
from fixedpoint.operators.base import Map, Operator
from fixedpoint.remedies import note_mixture
from fixedpoint.root_problem import RootProblem
from fixedpoint.solution import Solution
from fixedpoint.spaces import space_of
from fixedpoint.tolerance import Tolerance


@known_by_name
def bracketed_root(
    F: Callable[..., Any],
    lower: float | Array,
    upper: float | Array,
    args: tuple[Any, ...] = (),
    *,
    rtol: float | Array | None = None,
    xtol: float | Array = 0.0,
    atol: float | Array = 0.0,
    expand: bool = False,
    max_steps: int = 200,
    adjoint: ImplicitAdjoint | None = None,
    on_failure: Policy = "raise",
    has_aux: bool = False,
    record: bool = False,
    callback: Callable[[int, Any, Array], Any] | None = None,
    budget: Budget | None = None,
) -> Solution[Any]:
    """Find x with F(x, \\*args) = 0 between `lower` and `upper`, in every entry by
    itself.

    Chandrupatla's method [1]_ [2]_: inverse quadratic interpolation where three points
    say that it is safe, else bisection. F needs no derivative. A step costs one
    evaluation of F, on the whole array; two more are spent on the ends.

    Parameters
    ----------
    F : callable
        The function. It takes an array of the shape and dtype of the ends, and returns
        such an array, each entry of which depends on that entry of x alone. An infinite
        value counts by its sign. :class:`DomainError`, or another ArithmeticError,
        counts as NaN in every entry.
    lower, upper : float or array
        The ends of the brackets, in either order: real arrays that broadcast against
        each other, and against arrays of `args` where F does so; numbers and lists of
        numbers count as NumPy arrays. Where an end is infinite, points ever farther on
        its side are tried until the signs of F differ.
    args : tuple
        What else `F` takes, with respect to which the root is differentiable. No
        derivative flows to the ends.
    rtol, xtol : float or array, optional
        A bracket is narrow when half its width is at most ``xtol + rtol * abs(x)``, or
        is at the limit of rounding. `rtol` is by default 4 eps.
    atol : float or array, optional
        An entry has also converged wherever ``abs(F(x)) <= atol``.
    expand : bool, optional
        Whether to move the ends outwards, in turn, as long as F has the same sign at
        both: each time four times as far as the time before.
    max_steps : int, optional
        Steps at most.
    adjoint : ImplicitAdjoint, optional
        Only its ``on_failure`` is heeded: the derivative of a scalar root is a
        quotient, which takes no iteration. It fails where F′(x) = 0.
    on_failure : {"raise", "warn", "return", "nan"}, optional
        As in :func:`fixed_point`.
    has_aux, record, callback, budget
        As in :func:`fixed_point`. A callback gets the ends where F is smaller in size,
        and that.

    Returns
    -------
    Solution
        ``value`` is the end of the last bracket where F is smaller in size,
        ``residual_norm`` its size there, ``bracket`` the pair of ends, and ``error``
        their distance. All have the shape of the ends.

    Raises
    ------
    ConvergenceError
        If an entry fails and `on_failure` is "raise".
    ValueError, TypeError
        If an argument is not as described.

    Notes
    -----
    A change of sign is a root, a jump or a pole, and a narrow bracket alone does not
    tell which. An entry has converged when its bracket is narrow and the size of F fell
    with it: either its mean at the two ends is less than half of what it was when the
    width was the geometric mean of the first width and of what counts as narrow; or at
    x it is at most √eps times the smaller one at the ends given. Where F did not fall,
    the bracket is narrowed to the limit of rounding; the status is then ``DIVERGED`` if
    F grew, as at a pole, else ``STALLED``, as at a jump. F with the same sign at both
    ends is ``NO_BRACKET``; NaN at an end, or at a point tried, ``NON_FINITE``.

    References
    ----------
    .. [1] T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding
       the zero of a nonlinear function without using derivatives", Advances in
       Engineering Software 28 (1997) 145–149.
    .. [2] P. O. J. Scherer, "Computational Physics", 2nd ed., Springer 2013.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> a = np.array([1.0, 8.0, 27.0])
    >>> sol = fp.bracketed_root(lambda x, a: x**3 - a, 0.0 * a, 10.0, (a,))
    >>> np.round(sol.value, 12), sol.converged
    (array([1., 2., 3.]), array([ True,  True,  True]))
    """
    check_function("F", F, args)
    check_callback(callback)
    _check_settings(F, adjoint, max_steps, on_failure)
    map_ = Map(F, has_aux=has_aux)
    x, other = _widened(*_ends(lower, upper), map_, args)
    are_numbers = is_number(lower) and is_number(upper)
    border, value = Border.of(x[()] if are_numbers else x, "lower")
    of_value = callback and (lambda step, value, norm: callback(step, value[0], norm))
    run = BracketRun(
        problem=_problem(map_, border, value, args, other, rtol, atol),
        control=Control(
            max_steps=max_steps, budget=budget, callback=of_value, record=record
        ),
        border=border,
        xtol=_tolerance("xtol", xtol, x),
        expand=bool(expand),
    )
    policy = "raise" if adjoint is None else adjoint.on_failure
    try:
        end = solving(ScalarAdjoint(on_failure=policy), run)(value)
    except (TypeError, RuntimeError) as error:
        note_mixture(error, value, args, "lower")
        raise
    return run.packed(end, "bracketed_root", on_failure, map_, args)


def _problem(
    map_: Map,
    border: Border,
    value: Vec,
    args: tuple[Any, ...],
    other: Array,
    rtol: Any,
    atol: Any,
) -> RootProblem:
    """Each entry by itself; behind the arguments the other ends."""
    backend, (x,) = border.backend, value
    on_leaves, arrays = MapOnLeaves.of(map_, border, value, args, "F")
    if rtol is None:
        rtol = 4 * float(backend.namespace(x).finfo(x.dtype).eps)
    rtol, atol = _tolerance("rtol", rtol, x), _tolerance("atol", atol, x)
    return RootProblem(
        space=space_of(backend, value, x.ndim),
        functions=on_leaves.functions().of_part(slice(None, -1)),
        args=(*arrays, other),
        tolerance=Tolerance(rtol, atol, "entries"),
    )


def _check_settings(F: Any, adjoint: Any, max_steps: Any, on_failure: Policy) -> None:
    if isinstance(F, Operator):
        raise TypeError("an operator has fixed points, not roots: use fixed_point")
    if adjoint is not None and not isinstance(adjoint, ImplicitAdjoint):
        raise TypeError(
            f"adjoint must be an adjoint such as ImplicitAdjoint(), got {adjoint!r}"
        )
    check_count("max_steps", max_steps, 0)
    check_policy("on_failure", on_failure)


def _tolerance(name: str, value: Any, x: Array) -> Any:
    """A tolerance: a number, or an array that goes with the ends."""
    if isinstance(value, float) or not hasattr(value, "shape"):
        check_bound(name, value)
        return float(value)
    if not _broadcasts(tuple(value.shape), tuple(x.shape)):
        raise ValueError(
            f"{name} must broadcast to the shape {tuple(x.shape)}, got {value!r}"
        )
    check_bounds(name, value, backend_of([x], ["lower"]))
    return value


def _ends(lower: Any, upper: Any) -> tuple[Backend, Array, Array]:
    """The ends as arrays of one library, dtype and shape."""
    ends = {
        name: numbers(list(end) if type(end) is tuple else end)
        for name, end in (("lower", lower), ("upper", upper))
    }
    bare = {name for name, end in ends.items() if isinstance(end, (int, float))}
    given = {name: end for name, end in ends.items() if name not in bare} or ends
    backend = backend_of(list(given.values()), list(given))
    if backend.holding(given, 0).communicator is not None:
        raise TypeError(
            "each bracket is a problem by itself: give every process the local parts "
            "of lower and upper, in place of spread arrays"
        )
    arrays = {name: backend.leaf(end) for name, end in given.items()}
    xp = backend.namespace(next(iter(arrays.values())))
    like = _common(xp, arrays)
    cast = {name: xp.astype(end, like.dtype) for name, end in arrays.items()}
    full = [cast[n] if n in cast else xp.full_like(like, ends[n]) for n in ends]
    return backend, *_broadcast(xp, *full)


def _common(xp: Any, ends: dict[str, Array]) -> Array:
    """An end of the dtype that both shall have."""
    for name, end in ends.items():
        if not xp.isdtype(end.dtype, "real floating"):
            raise TypeError(
                f"{name} must have a real floating-point dtype, got {end.dtype}"
            )
    return max(ends.values(), key=lambda end: int(xp.finfo(end.dtype).bits))


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    """Whether an array of one shape broadcasts to another."""
    try:
        return np.broadcast_shapes(shape, onto) == onto
    except ValueError:
        return False


def _widened(
    backend: Backend, x: Array, other: Array, map_: Map, args: tuple[Any, ...]
) -> tuple[Array, Array]:
    """The ends in the shape and dtype of F, where an array of args could make these
    larger.

    F is evaluated once more then.
    """
    xp = backend.namespace(x)
    leaves = backend.flatten(args)[0]
    arrays = [a for a in leaves if backend.is_array(a) and of_one_backend(a, x)]
    if not any(_is_wider(xp, array, x) for array in arrays):
        return x, other
    try:
        image = map_.f(x, *args)
    except ArithmeticError:
        return x, other
    image = image[0] if map_.has_aux else image
    if not backend.is_array(image) or not _is_wider(xp, image, x):
        return x, other
    dtype = image.dtype if _bits(xp, image) > _bits(xp, x) else x.dtype
    is_larger = _broadcasts(tuple(x.shape), tuple(image.shape))
    shape = tuple(image.shape if is_larger else x.shape)
    one, two = (_spread(xp, xp.astype(end, dtype), shape) for end in (x, other))
    return one, two


def _bits(xp: Any, array: Array) -> int:
    """How wide a real number of the array is; 0 if it holds no such numbers."""
    real = xp.isdtype(array.dtype, "real floating")
    return int(xp.finfo(array.dtype).bits) if real else 0


def _is_wider(xp: Any, array: Array, x: Array) -> bool:
    """Whether x has to be made larger to have the shape, or the dtype, of an array."""
    shape, onto = tuple(x.shape), tuple(array.shape)
    larger = shape != onto and _broadcasts(shape, onto)
    return larger or _bits(xp, array) > _bits(xp, x)


def _broadcast(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    try:
        shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
    except ValueError:
        raise ValueError(
            "lower and upper must broadcast against each other, "
            f"got the shapes {tuple(a.shape)} and {tuple(b.shape)}"
        ) from None
    return _spread(xp, a, shape), _spread(xp, b, shape)


def _spread(xp: Any, x: Array, shape: tuple[int, ...]) -> Array:
    """An array of that shape, which F may write into, as it may not into a view."""
    return x if tuple(x.shape) == shape else 1.0 * xp.broadcast_to(x, shape)
