"""The front door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from typing import Any, TypedDict, Unpack

from fixedpoint import tree
from fixedpoint.adjoints import Adjoint, ImplicitAdjoint, as_adjoint
from fixedpoint.adjoints.base import solving
from fixedpoint.backend import Array, Vec, numbers
from fixedpoint.border import Border, MapOnLeaves, note_mixture
from fixedpoint.checks import check_count
from fixedpoint.communicator import Communicator
from fixedpoint.control import Budget, Control, Memory
from fixedpoint.failure import Policy, apply_policy, check_policy, shorten
from fixedpoint.iterate import Iteration
from fixedpoint.operators.base import Map
from fixedpoint.problem import FixedPointProblem, RootProblem
from fixedpoint.run import SolverRun
from fixedpoint.solution import Solution, T, Work
from fixedpoint.solvers import Solver, as_solver, default_solver
from fixedpoint.space import Space
from fixedpoint.tolerance import Norm, Test, Tolerance

_IMPLICIT = ImplicitAdjoint()


def fixed_point(
    f: Callable[..., Any],
    z0: T,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver | str | None = None,
    rtol: float | Array | None = None,
    atol: float | Array = 0.0,
    norm: Norm | None = None,
    test: Test = "error",
    batch_ndim: int = 0,
    adjoint: Adjoint | str | None = None,
    on_failure: Policy = "raise",
    state: Memory | None = None,
    communicator: Communicator | None = None,
    control: Control | None = None,
    **fields: Unpack[Fields],
) -> Solution[T]:
    """Find z with z = f(z, \\*args).

    Parameters
    ----------
    f : callable or Map
        The map. It returns what it takes: a container of the structure of `z0`, each
        leaf with the same shape and dtype. In Torch also an ``nn.Module``, whose
        parameters are then differentiated too. An operator of
        :mod:`fixedpoint.operators` brings its own undamped residual, and is tested on
        that. Where f cannot be evaluated it may return NaN, or raise ArithmeticError or
        :class:`DomainError`: a solver that can then takes a shorter step.
    z0 : array or container of arrays
        Where to start: floating-point or complex arrays of NumPy, PyTorch, JAX or
        another array-API library, in lists, tuples and dicts, nested in any way. A
        Python float counts as a NumPy array without axes.
    args : tuple
        What else `f` takes: arrays and containers of arrays, with respect to which the
        solution is differentiable, and anything else, which is passed on.
    solver : Solver or str, optional
        The method, or the name of one with its default settings: "anderson",
        "broyden", "levenberg_marquardt", "newton", "newton_krylov", "picard",
        "pseudo_transient" or "squarem", in any case. By default a :class:`Fallback`,
        see :func:`default_solver`.
    rtol, atol : float or array of the batch's shape, optional
        A sample has converged when the error ``|z − z*|`` is estimated to be ``atol +
        rtol·|z|`` or less, in each part of the state, see `norm`. `rtol` is by default
        max(1e-6, 10·eps), with the eps of the coarsest dtype among the leaves and that
        of autocast, and `atol` zero. A sample whose residual is nothing but rounding
        has converged whatever was asked, and ``sol.precise`` says so. With both zero a
        fixed number of steps is taken.
    norm : {"entries", "leaves", "euclidean", "max"}, optional
        The parts of the state: its entries; its leaves, in the Euclidean norm; or all
        of it, in the Euclidean or the maximum norm. By default each of up to 200
        entries is tested by itself, so that pascals and mole fractions may be mixed; a
        larger state is tested leaf by leaf.
    test : {"error", "residual"}, optional
        What the tolerances bound: the error, or the residual, as other libraries do,
        ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖, in the Euclidean norm unless another is named.
        For a slow contraction a small residual does not mean a small error.
    batch_ndim : int, optional
        The first `batch_ndim` axes of every leaf index independent problems. Each has
        its own coefficients, status and number of steps, and its answer does not depend
        on the others.
    adjoint : Adjoint or str, optional
        How derivatives of the solution are formed, by default :class:`ImplicitAdjoint`;
        or the name of one with its default settings: "implicit", "jacobian_free",
        "neumann_series", "phantom_gradient", "shared_inverse" or "unrolled".
    on_failure : {"raise", "warn", "return", "nan"}, optional
        What to do when a sample fails: raise :class:`ConvergenceError`, which holds the
        solution; warn; say so in the status alone; or fill the samples that failed with
        NaN. Inside a JAX trace, where nothing can be raised, "raise" and "warn" mean
        "nan".
    state : object, optional
        ``sol.state`` of an earlier call with the same solver and shapes: what it
        remembered is used again.
    communicator : Communicator, optional
        What joins several processes or devices, each of which calls this with its own
        part of the state: see :class:`Communicator`.
    control : Control, optional
        Limits, and what is observed and recorded.
    **fields
        The fields of :class:`Map` and :class:`Control`, by name.

    Other Parameters
    ----------------
    jvp, jacobian, preconditioner, project, has_aux
        What is known about f, see :class:`Map`. With ``has_aux=True``, f returns a
        pair, and ``sol.aux`` is its second entry at the solution, at the cost of one
        evaluation and differentiable like the value.
    max_steps, budget, callback, record, batched_args
        Limits, and what is observed and recorded: see :class:`Control`.

    Returns
    -------
    Solution
        The value in the structure of `z0`, and per sample status, residual norm and
        steps.

    Raises
    ------
    ConvergenceError
        If a sample fails and `on_failure` is "raise".
    ValueError, TypeError
        If an argument is not as described, or f changes the structure, shape or dtype
        of the state: the message names the leaf. Exceptions of f pass through
        untouched.

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
    map_, control = _with_fields(f, control, fields)
    solver, adjoint = methods_of(solver, adjoint)
    question = _Question(
        map=map_,
        args=args,
        control=control,
        solver=solver,
        tolerance=Tolerance(rtol, atol, norm, test),
        batch_ndim=batch_ndim,
        adjoint=_IMPLICIT if adjoint is None else adjoint,
        on_failure=on_failure,
        state=state,
        communicator=communicator,
        is_root=False,
    )
    run, value = question.run(z0)
    try:
        end = solving(question.adjoint, run)(value)
    except Exception as error:
        question.explain(error, run, value)
        raise
    return question.packed(run, end)


def root(
    F: Callable[..., Any],
    x0: T,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver | str | None = None,
    rtol: float | Array | None = None,
    atol: float | Array = 0.0,
    norm: Norm | None = None,
    test: Test = "error",
    batch_ndim: int = 0,
    adjoint: Adjoint | str | None = None,
    on_failure: Policy = "raise",
    state: Memory | None = None,
    communicator: Communicator | None = None,
    control: Control | None = None,
    **fields: Unpack[Fields],
) -> Solution[T]:
    """Find x with F(x, \\*args) = 0.

    Parameters
    ----------
    F : callable or Map
        The residual. It returns a container of the structure of `x0`, each leaf with
        the same shape and dtype.
    x0 : array or container of arrays
        Where to start.
    args : tuple
        What else `F` takes, with respect to which the root is differentiable.
    solver : Solver or str, optional
        The method, or its name, as in :func:`fixed_point`. By default a
        :class:`Fallback`, see :func:`default_solver`. Solvers that need a
        map iterate x − F(x).
    rtol, atol : float or array of the batch's shape, optional
        A sample has converged when the error ``|x − x*|`` is estimated to be ``atol +
        rtol·|x|`` or less, in each part of the state, as in :func:`fixed_point`.
    test : {"error", "residual"}, optional
        What the tolerances bound: the error, or the residual, ‖F(x)‖ ≤ atol +
        rtol·‖F(x0)‖.
    norm, batch_ndim, adjoint, on_failure, state, communicator, control
        As in :func:`fixed_point`.
    **fields
        The fields of :class:`Map` and :class:`Control`, by name.

    Other Parameters
    ----------------
    jvp, jacobian, preconditioner, project, has_aux
        What is known of F: ``jvp(x, v, *args)`` = F′(x)v, ``jacobian(x, *args)`` =
        F′(x), and an approximate inverse of that.
    max_steps, budget, callback, record, batched_args
        As in :func:`fixed_point`.

    Returns
    -------
    Solution
        The value in the structure of `x0`, and per sample status, residual norm and
        steps.

    Raises
    ------
    ConvergenceError
        If a sample fails and `on_failure` is "raise".
    ValueError, TypeError
        If an argument is not as described.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> sol = fp.root(lambda x: np.stack([x[0] ** 2 + x[1] ** 2 - 4.0, x[0] - x[1]]),
    ...               np.ones(2))
    >>> np.round(sol.value, 6)
    array([1.414214, 1.414214])
    """
    map_, control = _with_fields(F, control, fields)
    solver, adjoint = methods_of(solver, adjoint)
    question = _Question(
        map=map_,
        args=args,
        control=control,
        solver=solver,
        tolerance=Tolerance(rtol, atol, norm, test),
        batch_ndim=batch_ndim,
        adjoint=_IMPLICIT if adjoint is None else adjoint,
        on_failure=on_failure,
        state=state,
        communicator=communicator,
        is_root=True,
    )
    run, value = question.run(x0)
    try:
        end = solving(question.adjoint, run)(value)
    except Exception as error:
        question.explain(error, run, value)
        raise
    return question.packed(run, end)


def steps(
    f: Callable[..., Any],
    z0: T,
    args: tuple[Any, ...] = (),
    *,
    is_root: bool = False,
    solver: Solver | str | None = None,
    rtol: float | Array | None = None,
    atol: float | Array = 0.0,
    norm: Norm | None = None,
    test: Test = "error",
    batch_ndim: int = 0,
    control: Control | None = None,
    **fields: Unpack[Fields],
) -> Iterator[Solution[T]]:
    """Solve step by step, in a loop of your own.

    Each item is the solution so far: the first is that of the start, and the one after
    k steps is what :func:`fixed_point`, or :func:`root`, would return if it ended
    there, except that samples still running have the status ``Status.RUNNING``. A step
    is taken when the next item is requested. The iterator ends where the solve would;
    only the status tells of failures.

    No derivatives are recorded, and the steps are not available inside a JAX trace or a
    transform of ``torch.func``. ``aux`` is not evaluated.

    Parameters
    ----------
    f, z0, args
        As in :func:`fixed_point`, or :func:`root`.
    is_root : bool, optional
        Whether to find a root of the function instead of a fixed point.
    solver, rtol, atol, norm, test, batch_ndim, control
        As in :func:`fixed_point`.
    **fields
        The fields of :class:`Map` and :class:`Control`, by name, except
        ``batched_args``: samples that leave a batch are missing until the end of a
        solve, but each item here is the solution of all.

    Yields
    ------
    Solution
        The value so far, its residual norm and error, and the status of each sample.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> for sol in fp.steps(np.cos, 1.0, solver="picard"):
    ...     print(f"{int(sol.steps)}: {float(sol.value):.4f}")
    ...     if sol.residual_norm < 0.1:
    ...         break
    0: 1.0000
    1: 0.5403
    2: 0.8576
    3: 0.6543
    4: 0.7935
    """
    map_, control = _with_fields(f, control, fields)
    if control.batched_args is not None:
        raise ValueError(
            "steps shows whole batches, which samples would leave: leave batched_args "
            "out, or call fixed_point or root"
        )
    question = _Question(
        map=map_,
        args=args,
        control=control,
        solver=methods_of(solver, None)[0],
        tolerance=Tolerance(rtol, atol, norm, test),
        batch_ndim=batch_ndim,
        adjoint=_IMPLICIT,
        on_failure="return",
        state=None,
        communicator=None,
        is_root=is_root,
    )
    run, value = question.run(z0)
    return run.steps(value)


class Fields(TypedDict, total=False):
    """What a call may be given by name of a :class:`Map` and a :class:`Control`."""

    jvp: Callable[..., Any] | None
    jacobian: Any
    preconditioner: Callable[..., Any] | None
    project: Callable[[Any], Any] | None
    has_aux: bool
    max_steps: int | None
    budget: Budget | None
    callback: Callable[[int, Any, Array], Any] | None
    record: bool
    batched_args: Sequence[bool] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Question:
    """What is asked for, but for the start: see :func:`fixed_point`."""

    map: Map
    args: tuple[Any, ...]
    control: Control
    solver: Solver | None
    tolerance: Tolerance
    batch_ndim: int
    adjoint: Adjoint
    on_failure: Policy
    state: Memory | None
    communicator: Communicator | None
    is_root: bool

    def explain(self, error: Exception, run: SolverRun, value: Vec) -> None:
        """Add to an error that f raised where it mixes the libraries of arrays, and
        leave out of its traceback what lies between the call and f.
        """
        if isinstance(error, (TypeError, RuntimeError)):
            note_mixture(error, value, self.args, run.border.names[0])
        shorten(error)

    def run(self, start: Any) -> tuple[SolverRun, Vec]:
        """The run, and the leaves that it begins with."""
        self._check()
        start, whole = numbers(start), "x0" if self.is_root else "z0"
        border, leaves = Border.of(start, whole, self.communicator, self.batch_ndim)
        _check_state(border, leaves, self.batch_ndim)
        border = border.joined(leaves, self.batch_ndim) if self._joins() else border
        value = border.vector(leaves)
        space = Space.of(border.backend, value, self.batch_ndim)
        return self._run(border, space, value, self._blocks(start)), value

    def _joins(self) -> bool:
        """Whether nothing is asked of single leaves."""
        solvers = () if self.solver is None else self.solver.sequence
        weighted = any(getattr(solver, "weights", None) for solver in solvers)
        return not (weighted or self.map.is_operator)

    def _run(
        self, border: Border, space: Space, value: Vec, blocks: tuple[slice, ...]
    ) -> SolverRun:
        """The problem on leaves, and how to solve it."""
        name, kind = ("F", RootProblem) if self.is_root else ("f", FixedPointProblem)
        on_leaves, arrays = MapOnLeaves.of(self.map, border, value, self.args, name)
        solver = self._solver(
            space, border.backend.is_compiled(self.map.f, (*value, *arrays))
        )
        self.adjoint.check(solver, self.is_root)
        rounding = border.backend.rounding(value)
        problem = kind(
            space=space,
            functions=on_leaves.functions(self.adjoint.preconditioner),
            args=arrays,
            tolerance=self.tolerance.settled(space, rounding, blocks, border.sizes),
            batched=self._batched(on_leaves, arrays, space),
        )
        return SolverRun(
            problem=problem,
            control=_on_leaves(self.control, border),
            border=border,
            solver=solver,
            memory=self.state,
        )

    def _solver(self, space: Space, is_compiled: bool) -> Solver:
        """The method that is named, or the default for such a problem."""
        named = self.solver or self.adjoint.forward_solver
        has_matrix, has_batch = self.map.jacobian is not None, self.batch_ndim > 0
        return named or default_solver(
            space.dimension, self.is_root, has_matrix, has_batch, is_compiled
        )

    def _check(self) -> None:
        f, args, name = self.map.f, self.args, "F" if self.is_root else "f"
        if self.is_root and self.map.is_operator:
            raise TypeError("an operator has fixed points, not roots: use fixed_point")
        if self.map.has_aux and self.map.is_operator:
            raise TypeError(
                "an operator returns nothing beside its image: has_aux must be False"
            )
        check_count("batch_ndim", self.batch_ndim, 0)
        check_policy("on_failure", self.on_failure)
        if not callable(f):
            raise TypeError(f"{name} must be callable, got {type(f).__name__}")
        if not isinstance(args, tuple):
            kind = type(args).__name__  # type: ignore[unreachable]
            raise TypeError(f"args must be a tuple, got {kind}: write args=(x,)")

    def _batched(
        self, on_leaves: MapOnLeaves, arrays: Vec, space: Space
    ) -> tuple[bool, ...]:
        """Which of the leaves of args have an entry per sample, if that was said."""
        if self.control.batched_args is None:
            return ()
        self._check_batched_args(space)
        flags, flatten = self.control.batched_args, space.backend.flatten
        pairs = zip(flags, self.args, strict=True)
        spread = [flag for flag, arg in pairs for _ in flatten(arg)[0]]
        batched = tuple(bool(spread[i]) for i in on_leaves.arguments.places)
        rows = space.batch_shape[0]
        for array, flag in zip(arrays, batched, strict=False):
            if flag and tuple(array.shape[:1]) != (rows,):
                raise ValueError(
                    f"an array of args declared in batched_args must have {rows} rows, "
                    f"got the shape {tuple(array.shape)}"
                )
        return (*batched, *(False,) * (len(arrays) - len(batched)))

    def _check_batched_args(self, space: Space) -> None:
        """Raise ValueError where samples cannot leave the batch."""
        flags, jacobian = tuple(self.control.batched_args or ()), self.map.jacobian
        if space.backend.communicator is not None:
            raise ValueError(
                "batched_args lets samples leave the batch, which parts joined by a "
                "communicator, or by a DTensor's mesh, would each do by themselves: "
                "give one of the two"
            )
        if self.batch_ndim == 0 or len(flags) != len(self.args):
            raise ValueError(
                "batched_args needs batch_ndim > 0 and an entry for each of the "
                f"{len(self.args)} args, got batch_ndim = {self.batch_ndim} and "
                f"{len(flags)} entries"
            )
        if not callable(jacobian) and getattr(jacobian, "ndim", 0) > 2:
            raise ValueError(
                "jacobian must be a function where batched_args lets samples leave the "
                f"batch, got an array of the shape {tuple(jacobian.shape)}"
            )

    def _blocks(self, start: Any) -> tuple[slice, ...]:
        """The leaves of each block that an operator tests by itself, or all."""
        names = getattr(self.map.f, "blocks", None) if self.map.is_operator else None
        if names is None:
            return (slice(None),)
        blocks, first = [], 0
        for name in sorted(start):
            stop = first + len(tree.flatten(start[name])[0])
            if name in names:
                blocks.append(slice(first, stop))
            first = stop
        return tuple(blocks)

    def packed(self, run: SolverRun, end: Iteration) -> Solution[Any]:
        """The solution in the user's containers, or what `on_failure` says."""
        solution = run.solution(end)
        what = "root" if self.is_root else "fixed_point"
        value = apply_policy(
            self.on_failure, what, run.problem.space, end.value, solution, depth=4
        )
        solution.value = run.border.unpack(value)
        if self.map.has_aux:
            solution.aux = self.map.f(solution.value, *self.args)[1]
            solution.work = solution.work.plus(Work(f=1))
        return solution


def methods_of(solver: Any, adjoint: Any) -> tuple[Solver | None, Adjoint | None]:
    """The solver and the adjoint that are given, as objects, by name, or not at all."""
    return (
        None if solver is None else as_solver(solver),
        None if adjoint is None else as_adjoint(adjoint),
    )


def check_layer(layer: Any) -> None:
    """Raise what a solve with the settings of a layer would raise for them."""
    Tolerance(layer.rtol, layer.atol, layer.norm, layer.test)
    Control(max_steps=layer.max_steps)
    check_count("batch_ndim", layer.batch_ndim, 0)
    check_policy("on_failure", layer.on_failure)


def _with_fields(
    f: Any, control: Control | None, fields: Fields
) -> tuple[Map, Control]:
    """The map and the control, with the fields that are given by name."""
    if control is not None and not isinstance(control, Control):
        raise TypeError(f"control must be a Control, got {control!r}")
    map_, control = f if type(f) is Map else Map(f), control or Control()
    given: dict[str, Any] = dict(fields)
    of_map = {name: given.pop(name) for name in _MAP & given.keys()}
    of_control = {name: given.pop(name) for name in _CONTROL & given.keys()}
    for name in given:
        here = f": here it is {_HERE[name]}" if name in _HERE else ""
        raise TypeError(f"unexpected keyword argument {name!r}{here}")
    map_ = replace(map_, **of_map) if of_map else map_
    return map_, replace(control, **of_control) if of_control else control


# What other libraries call some of the keywords.
_HERE = {
    "fprime": "jacobian=",
    "jac": "jacobian=",
    "max_iter": "max_steps=",
    "maxiter": "max_steps=",
    "method": "solver=",
    "throw": 'on_failure="return"',
    "tol": "rtol= or atol=",
    "xtol": "rtol=",
}
_MAP = {field.name for field in fields_of(Map)} - {"f"}
_CONTROL = {field.name for field in fields_of(Control)}


def _check_state(border: Border, leaves: Vec, batch_ndim: int) -> None:
    """Each leaf is a floating-point array with entries, and all share their first
    axes.
    """
    backend, batch = border.backend, tuple(leaves[0].shape[:batch_ndim])
    xp = backend.namespace(leaves[0])
    for leaf, name in zip(leaves, border.names, strict=True):
        if not xp.isdtype(leaf.dtype, ("real floating", "complex floating")):
            raise TypeError(
                f"{name} must have a floating-point or complex dtype, got {leaf.dtype}"
            )
        shape = tuple(leaf.shape)
        if len(shape) < batch_ndim:
            raise ValueError(
                f"{name} has {len(shape)} axes, fewer than batch_ndim={batch_ndim}"
            )
        if shape[:batch_ndim] != batch:
            raise ValueError(
                f"{name} must begin with the {batch_ndim} batch axes {batch} of "
                f"{border.names[0]}, got the shape {shape}"
            )
        if 0 in shape[batch_ndim:]:
            raise ValueError(f"{name} is empty: its shape is {shape}")


def _on_leaves(control: Control, border: Border) -> Control:
    """`control`, whose callback is called with leaves."""
    call, unpack = control.callback, border.unpack
    if call is None:
        return control
    return replace(
        control, callback=lambda step, value, norm: call(step, unpack(value), norm)
    )
