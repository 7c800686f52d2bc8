"""The front door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fixedpoint import tree
from fixedpoint.adjoints.implicit import Implicit
from fixedpoint.backend import Array, Backend, Vec, backend_of
from fixedpoint.failure import apply_policy, check_policy
from fixedpoint.operators.joint import Joint
from fixedpoint.solution import Solution, Work
from fixedpoint.solve import LeafMap, Outcome, Solve
from fixedpoint.solvers import Anderson, Solver
from fixedpoint.solvers.base import check_count
from fixedpoint.space import Space

DEFAULT_MAX_STEPS = 200
_IMPLICIT, _ANDERSON = Implicit(), Anderson()


def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver | None = None,
    rtol: float | Array | None = None,
    atol: float | Array = 1e-9,
    norm: str = "euclidean",
    max_steps: int = DEFAULT_MAX_STEPS,
    batch_ndim: int = 0,
    adjoint: Implicit | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Find z with z = f(z, \\*args).

    Parameters
    ----------
    f : callable
        The map. It returns what it takes: a container of the structure of `z0`, each leaf with the
        same shape and dtype. In Torch also an ``nn.Module``, whose parameters are then
        differentiated too. An operator of :mod:`fixedpoint.operators` brings its own undamped
        residual, and is tested on that.
    z0 : array or container of arrays
        Where to start: floating-point or complex arrays of NumPy, PyTorch, JAX or another
        array-API library, in lists, tuples and dicts nested at will. A Python float counts as a
        NumPy array without axes.
    args : tuple
        What else `f` takes: arrays and containers of arrays, with respect to which the
        solution is differentiable, and anything else, which is passed on.
    solver : Solver, optional
        By default ``Anderson()``.
    rtol, atol : float or array of the batch's shape, optional
        A sample has converged when ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖. The residual is that of the
        value returned, undamped. A sample that took steps must also have brought it below 0.9 of
        what it was at `z0`, or below `atol`, so that no runaway passes because ‖f(z)‖ grows.
        `rtol` is by default max(1e-6, 10·eps) of the coarsest dtype among the leaves.
    norm : {"euclidean", "max"}, optional
        The norm of that test, over all leaves of a sample.
    max_steps : int, optional
        Steps at most, not counting the evaluation at `z0`.
    batch_ndim : int, optional
        The first `batch_ndim` axes of every leaf index independent problems. Each has its own
        coefficients, status and number of steps, and its answer does not depend on the others.
    adjoint : Implicit, optional
        How derivatives of the solution are formed.
    on_failure : {"raise", "warn", "return", "nan"}, optional
        What to do when a sample fails: raise :class:`ConvergenceError`, which holds the
        solution; warn; say so in the status alone; or fill the samples that failed with NaN.
        Inside a JAX trace, where nothing can be raised, "raise" and "warn" mean "nan".

    Returns
    -------
    Solution
        The value in the structure of `z0`, and per sample status, residual norm and steps.

    Raises
    ------
    ConvergenceError
        If a sample fails and `on_failure` is "raise".
    ValueError, TypeError
        If an argument is not as described, or f changes the structure, shape or dtype of the
        state: the message names the leaf. Exceptions of f pass through untouched.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> sol = fp.fixed_point(np.cos, 1.0)
    >>> round(float(sol.value), 6), bool(sol.converged)
    (0.739085, True)

    Two problems at once, each with its own status:

    >>> sol = fp.fixed_point(lambda z, c: c * np.cos(z), np.ones((2, 1)),
    ...                      (np.array([[1.0], [0.5]]),), batch_ndim=1)
    >>> np.round(sol.value[:, 0], 6), sol.status
    (array([0.739085, 0.450184]), array([1, 1], dtype=int32))
    """
    adjoint = _IMPLICIT if adjoint is None else adjoint
    solver = _ANDERSON if solver is None else solver
    _check_settings(solver, norm, max_steps, batch_ndim, on_failure, adjoint)
    names = tree.paths(z0, "z0")
    backend = backend_of(tree.flatten(z0)[0], names)
    raw, structure = backend.flatten(z0)
    value = tuple(backend.leaf(leaf) for leaf in raw)
    _check_state(backend, value, names, batch_ndim)
    space = Space.of(backend, value, batch_ndim)
    map_, arrays = _leaf_map(f, backend, structure, names, args)
    solve = Solve(
        map_, map_.image, backend, solver, _relative(rtol, space), _tolerance("atol", atol),
        norm, max_steps, batch_ndim, adjoint, _blocks(f, z0),
    )  # fmt: skip
    outcome = backend.attach(solve, value, arrays)
    return _pack(outcome, on_failure, space, structure)


def _check_settings(
    solver: Any, norm: str, max_steps: Any, batch_ndim: Any, on_failure: str, adjoint: Any
) -> None:
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a solver object such as Anderson(), got {solver!r}")
    if not isinstance(adjoint, Implicit):
        raise TypeError(f"adjoint must be an adjoint such as Implicit(), got {adjoint!r}")
    if norm not in ("euclidean", "max"):
        raise ValueError(f"norm must be 'euclidean' or 'max', got {norm!r}")
    check_count("max_steps", max_steps, 0)
    check_count("batch_ndim", batch_ndim, 0)
    check_policy("on_failure", on_failure)


def _check_state(backend: Backend, value: Vec, names: Sequence[str], batch_ndim: int) -> None:
    """Each leaf is a floating-point array with entries, and all share their first axes."""
    batch = tuple(value[0].shape[:batch_ndim])
    xp = backend.namespace(value[0])
    for leaf, name in zip(value, names, strict=True):
        if not xp.isdtype(leaf.dtype, ("real floating", "complex floating")):
            raise TypeError(f"{name} must have a floating-point or complex dtype, got {leaf.dtype}")
        shape = tuple(leaf.shape)
        if len(shape) < batch_ndim or shape[:batch_ndim] != batch:
            raise ValueError(
                f"{name} must begin with the {batch_ndim} batch axes {batch} of {names[0]}, "
                f"got the shape {shape}"
            )
        if 0 in shape[batch_ndim:]:
            raise ValueError(f"{name} is empty: its shape is {shape}")


def _leaf_map(
    f: Callable[..., Any], backend: Backend, structure: Any, names: Sequence[str], args: Any
) -> tuple[LeafMap, Vec]:
    """The map on leaves, and the arrays among args and inside f."""
    if not callable(f):
        raise TypeError(f"f must be callable, got {type(f).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}: write args=(x,)")
    leaves, args_structure = backend.flatten(args)
    where = tuple(i for i, leaf in enumerate(leaves) if backend.is_array(leaf))
    constants = tuple(None if backend.is_array(leaf) else leaf for leaf in leaves)
    map_ = LeafMap(f, backend, structure, args_structure, tuple(names), where, constants)
    return map_, (*(leaves[i] for i in where), *backend.lift(f))


def _relative(rtol: Any, space: Space) -> Any:
    return space.default_rtol if rtol is None else _tolerance("rtol", rtol)


def _tolerance(name: str, value: Any) -> Any:
    if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return value


def _blocks(f: Any, z0: Any) -> tuple[slice, ...]:
    """The leaves of each block that f tests by itself, or of all."""
    if not isinstance(f, Joint):
        return (slice(None),)
    blocks, start = [], 0
    for name in sorted(f.blocks):
        stop = start + len(tree.flatten(z0[name])[0])
        blocks.append(slice(start, stop))
        start = stop
    return tuple(blocks)


def _pack(outcome: Outcome, on_failure: str, space: Space, structure: Any) -> Solution:
    """The solution in the user's containers, or what `on_failure` says."""
    solution = Solution(
        structure.rebuild(outcome.value), outcome.status, outcome.residual_norm,
        outcome.steps, Work(f=outcome.evaluations), outcome.backward,
    )  # fmt: skip
    what = "fixed_point failed"
    value = apply_policy(on_failure, what, space, outcome.value, solution)
    solution.value = structure.rebuild(value)
    return solution
