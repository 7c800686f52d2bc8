"""The front door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Unpack

from fixedpoint.adjoints import Adjoint
from fixedpoint.adjoints.base import solving
from fixedpoint.backend import Array
from fixedpoint.communicator import Communicator
from fixedpoint.control import Control, Memory
from fixedpoint.failure import Policy
from fixedpoint.question import Explained, Fields, Question
from fixedpoint.solution import Solution, T
from fixedpoint.solvers import Solver
from fixedpoint.tolerance import Norm, Test, Tolerance


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
        Python float counts as a NumPy scalar, and gives one back.
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
    question = Question.of(
        f,
        control,
        fields,
        solver,
        adjoint,
        args=args,
        tolerance=Tolerance(rtol, atol, norm, test),
        batch_ndim=batch_ndim,
        on_failure=on_failure,
        state=state,
        communicator=communicator,
        is_root=False,
    )
    run, value = question.run(z0)
    with Explained(question, run, value):
        end = solving(question.adjoint, run)(value)
    return run.packed(end, "fixed_point", on_failure, question.map, args)


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
    question = Question.of(
        F,
        control,
        fields,
        solver,
        adjoint,
        args=args,
        tolerance=Tolerance(rtol, atol, norm, test),
        batch_ndim=batch_ndim,
        on_failure=on_failure,
        state=state,
        communicator=communicator,
        is_root=True,
    )
    run, value = question.run(x0)
    with Explained(question, run, value):
        end = solving(question.adjoint, run)(value)
    return run.packed(end, "root", on_failure, question.map, args)


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
    question = Question.of(
        f,
        control,
        fields,
        solver,
        args=args,
        tolerance=Tolerance(rtol, atol, norm, test),
        batch_ndim=batch_ndim,
        is_root=is_root,
    )
    if question.control.batched_args is not None:
        raise ValueError(
            "steps shows whole batches, which samples would leave: leave batched_args "
            "out, or call fixed_point or root"
        )
    run, value = question.run(z0)
    return run.steps(value)
