"""The front door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fixedpoint import tree
from fixedpoint.adjoints import Adjoint, ImplicitAdjoint
from fixedpoint.backend import Array, Backend, Vec, backend_of_state, numbers
from fixedpoint.checks import check_count
from fixedpoint.communicator import Communicator
from fixedpoint.control import Budget, Control, Memory
from fixedpoint.failure import Policy, apply_policy, check_policy
from fixedpoint.matrix import as_function
from fixedpoint.operators.base import Operator
from fixedpoint.solution import Solution, Work
from fixedpoint.solve import LeafMap, Outcome, Solve
from fixedpoint.solvers import Solver
from fixedpoint.space import Space
from fixedpoint.tolerance import ENTRIES, NORMS, TESTS, Norm, Test, Tolerance

DEFAULT_MAX_STEPS = 1000
_IMPLICIT = ImplicitAdjoint()


def fixed_point(
    f: Callable[..., Any],
    z0: Any,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver | None = None,
    rtol: float | Array | None = None,
    atol: float | Array = 0.0,
    norm: Norm | None = None,
    test: Test = "error",
    max_steps: int | None = None,
    batch_ndim: int = 0,
    batched_args: Any = None,
    adjoint: Adjoint | None = None,
    on_failure: Policy = "raise",
    project: Callable[[Any], Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    jacobian: Any = None,
    preconditioner: Callable[..., Any] | None = None,
    has_aux: bool = False,
    record: bool = False,
    callback: Callable[[int, Any, Array], Any] | None = None,
    state: Memory | None = None,
    budget: Budget | None = None,
    communicator: Communicator | None = None,
) -> Solution:
    """Find z with z = f(z, \\*args).

    Parameters
    ----------
    f : callable
        The map. It returns what it takes: a container of the structure of `z0`, each
        leaf with the same shape and dtype. In Torch also an ``nn.Module``, whose
        parameters are then differentiated too. An operator of
        :mod:`fixedpoint.operators` brings its own undamped residual, and is tested on
        that. Where f cannot be evaluated it may return NaN, or raise ArithmeticError or
        :class:`DomainError`: a solver that can then takes a shorter step.
    z0 : array or container of arrays
        Where to start: floating-point or complex arrays of NumPy, PyTorch, JAX or
        another array-API library, in lists, tuples and dicts nested at will. A Python
        float counts as a NumPy array without axes.
    args : tuple
        What else `f` takes: arrays and containers of arrays, with respect to which the
        solution is differentiable, and anything else, which is passed on.
    solver : Solver, optional
        By default a :class:`Fallback`, see :func:`default_solver`.
    rtol, atol : float or array of the batch's shape, optional
        A sample has converged when the error ``|z − z*|`` is estimated to be ``atol +
        rtol·|z|`` or less, in each part of the state, see `norm`. `rtol` is by default
        max(1e-6, 10·eps), with the eps of the coarsest dtype among the leaves and that
        of autocast, and `atol` zero. A sample whose residual is nothing but rounding
        has converged whatever was asked, and ``sol.precise`` says so. With both zero a
        fixed number of steps is taken.
    norm : {"entries", "leaves", "euclidean", "max"}, optional
        The parts of the state: its entries; its leaves, in the Euclidean norm; or all
        of it, in the Euclidean or the largest norm. By default each of up to 200
        entries counts by itself, so that pascals may stand beside mole fractions; an
        entry of a larger state counts with its leaf.
    test : {"error", "residual"}, optional
        What the tolerances bound: the error, or the residual, as other libraries do,
        ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖, in the Euclidean norm where no other is named.
        Of a slow contraction a small residual is no small error.
    max_steps : int, optional
        Steps at most, not counting the evaluation at `z0`, summed over the solvers of a
        fallback; by default 1000 times their number.
    batch_ndim : int, optional
        The first `batch_ndim` axes of every leaf index independent problems. Each has
        its own coefficients, status and number of steps, and its answer does not depend
        on the others.
    batched_args : tuple of bool, optional
        For each entry of `args` whether its arrays have an entry per sample, along
        their first axis. Outside a trace, samples that have converged then leave the
        batch.
    adjoint : Adjoint, optional
        How derivatives of the solution are formed, by default :class:`ImplicitAdjoint`.
    on_failure : {"raise", "warn", "return", "nan"}, optional
        What to do when a sample fails: raise :class:`ConvergenceError`, which holds the
        solution; warn; say so in the status alone; or fill the samples that failed with
        NaN. Inside a JAX trace, where nothing can be raised, "raise" and "warn" mean
        "nan".
    project : callable, optional
        A projection z ↦ Π(z), applied to every iterate before f is evaluated there.
    jvp : callable, optional
        The product ``jvp(z, v, *args)`` = f′(z)v, for solvers of Newton's type. By
        default Torch and JAX differentiate f, and elsewhere difference quotients stand
        in.
    jacobian : callable or matrix, optional
        ``jacobian(z, *args)`` is the matrix f′(z), or where f′ is the same everywhere
        the matrix itself: an array (batch, n, n), or (n, n) for all samples, where n
        counts the entries of all leaves of a sample, as raveled and one leaf after the
        other. Of one leaf each axis may be kept, as in ``jax.jacobian``, and of one
        unknown a number will do. Lists and other libraries' arrays count as arrays.
        Outside of a trace, and without a batch, also a sparse matrix, of SciPy or of
        the state's library, which is factored, or a linear operator of SciPy's. A
        complex state may have the complex matrix f′(z) of a holomorphic f, or the real
        one of order 2n, in which the real parts of a leaf stand before its imaginary
        ones.
    preconditioner : callable, optional
        ``preconditioner(z, *args)`` is an approximate inverse of the derivative of the
        residual, f′(z) − I: a function v ↦ Pv, in NumPy also a linear operator or an
        incomplete LU.
    has_aux : bool, optional
        Whether f returns a pair, the image and something more. ``sol.aux`` is what it
        returns at the solution, for one evaluation, and is differentiated like it.
    record : bool, optional
        Keep the course of the residual in ``sol.trace``.
    callback : callable, optional
        ``callback(step, z, residual_norm)`` after each step; a true value ends the
        solve.
    state : object, optional
        ``sol.state`` of an earlier call with the same solver and shapes: what it
        remembered is used again.
    budget : Budget, optional
        Evaluations or seconds that the solve may spend.
    communicator : Communicator, optional
        Where each of several processes or devices calls this with its own part of the
        state: what joins them, see :class:`Communicator`.

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
    call = _Call(
        f=f,
        args=args,
        solver=solver,
        rtol=rtol,
        atol=atol,
        norm=norm,
        test=test,
        max_steps=max_steps,
        batch_ndim=batch_ndim,
        batched_args=batched_args,
        adjoint=adjoint,
        on_failure=on_failure,
        project=project,
        jvp=jvp,
        jacobian=jacobian,
        preconditioner=preconditioner,
        has_aux=has_aux,
        record=record,
        callback=callback,
        state=state,
        budget=budget,
        communicator=communicator,
    )
    return call.solve(z0, is_root=False)


def root(
    F: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    *,
    solver: Solver | None = None,
    rtol: float | Array | None = None,
    atol: float | Array = 0.0,
    norm: Norm | None = None,
    test: Test = "error",
    max_steps: int | None = None,
    batch_ndim: int = 0,
    batched_args: Any = None,
    adjoint: Adjoint | None = None,
    on_failure: Policy = "raise",
    project: Callable[[Any], Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    jacobian: Any = None,
    preconditioner: Callable[..., Any] | None = None,
    has_aux: bool = False,
    record: bool = False,
    callback: Callable[[int, Any, Array], Any] | None = None,
    state: Memory | None = None,
    budget: Budget | None = None,
    communicator: Communicator | None = None,
) -> Solution:
    """Find x with F(x, \\*args) = 0.

    Parameters
    ----------
    F : callable
        The residual. It returns a container of the structure of `x0`, each leaf with
        the same shape and dtype.
    x0 : array or container of arrays
        Where to start.
    args : tuple
        What else `F` takes, with respect to which the root is differentiable.
    solver : Solver, optional
        By default a :class:`Fallback`, see :func:`default_solver`. Solvers that need a
        map iterate x − F(x).
    rtol, atol : float or array of the batch's shape, optional
        A sample has converged when the error ``|x − x*|`` is estimated to be ``atol +
        rtol·|x|`` or less, in each part of the state, as in :func:`fixed_point`.
    test : {"error", "residual"}, optional
        What the tolerances bound: the error, or the residual, ‖F(x)‖ ≤ atol +
        rtol·‖F(x0)‖.
    jvp : callable, optional
        ``jvp(x, v, *args)`` = F′(x)v.
    jacobian : callable or matrix, optional
        ``jacobian(x, *args)`` = F′(x), or F′ itself where it is the same everywhere, as
        in :func:`fixed_point`.
    preconditioner : callable, optional
        ``preconditioner(x, *args)`` is an approximate inverse of F′(x).
    norm, max_steps, batch_ndim, batched_args, adjoint, on_failure, project, \
    has_aux, record, callback, state, budget, communicator
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
    call = _Call(
        f=F,
        args=args,
        solver=solver,
        rtol=rtol,
        atol=atol,
        norm=norm,
        test=test,
        max_steps=max_steps,
        batch_ndim=batch_ndim,
        batched_args=batched_args,
        adjoint=adjoint,
        on_failure=on_failure,
        project=project,
        jvp=jvp,
        jacobian=jacobian,
        preconditioner=preconditioner,
        has_aux=has_aux,
        record=record,
        callback=callback,
        state=state,
        budget=budget,
        communicator=communicator,
    )
    return call.solve(x0, is_root=True)


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of a call but for the start; see :func:`fixed_point`."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    solver: Solver | None
    rtol: Any
    atol: Any
    norm: Norm | None
    test: Test
    max_steps: int | None
    batch_ndim: int
    batched_args: Any
    adjoint: Adjoint | None
    on_failure: Policy
    project: Callable[[Any], Any] | None
    jvp: Callable[..., Any] | None
    jacobian: Any
    preconditioner: Callable[..., Any] | None
    has_aux: bool
    record: bool
    callback: Callable[[int, Any, Array], Any] | None
    state: Memory | None
    budget: Budget | None
    communicator: Communicator | None

    def solve(self, start: Any, is_root: bool) -> Solution:
        """The solution from `start`."""
        self._check(is_root)
        start, whole = numbers(start), "x0" if is_root else "z0"
        backend = backend_of_state(start, whole).among(self.communicator)
        names = backend.paths(start, whole)
        raw, structure = backend.flatten(start)
        value = tuple(backend.leaf(leaf) for leaf in raw)
        _check_state(backend, value, names, self.batch_ndim)
        space = Space.of(backend, value, self.batch_ndim)
        map_, arrays = self._leaf_map(
            backend, structure, names, backend.surroundings(value)
        )
        map_ = replace(map_, name="F") if is_root else map_
        batched = self._batched(backend, map_, arrays, space)
        adjoint = self.adjoint or _IMPLICIT
        solver = self.solver or adjoint.default_solver(
            space.dimension, is_root, self.jacobian is not None, self.batch_ndim > 0
        )
        adjoint.check(solver, is_root)
        solve = Solve(
            map=map_,
            image=_opposite(space, map_.image) if is_root else map_.image,
            bind=map_.bind,
            backend=backend,
            solver=solver,
            tolerance=self._tolerance(space, backend.rounding(value), start),
            batch_ndim=self.batch_ndim,
            adjoint=adjoint,
            control=self._course(structure, bool(batched), len(solver.sequence)),
            is_root=is_root,
            is_operator=isinstance(self.f, Operator),
            project=map_.project if self.project else None,
            batched=batched,
            start=_warm_start(adjoint, map_, value),
            inverse=_inverse(adjoint, map_),
            rebuild=structure.rebuild,
        )
        outcome = backend.attach(solve, value, arrays)
        return self._packed(solve, outcome, arrays, space, structure)

    def _check(self, is_root: bool) -> None:
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise TypeError(
                "solver must be a solver object such as Anderson(), got "
                f"{self.solver!r}"
            )
        if self.adjoint is not None and not isinstance(self.adjoint, Adjoint):
            raise TypeError(
                "adjoint must be an adjoint such as ImplicitAdjoint(), got "
                f"{self.adjoint!r}"
            )
        if self.norm is not None and self.norm not in NORMS:
            raise ValueError(
                f"norm must be one of {', '.join(NORMS)}, got {self.norm!r}"
            )
        if self.test not in TESTS:
            raise ValueError(
                f"test must be one of {', '.join(TESTS)}, got {self.test!r}"
            )
        if is_root and isinstance(self.f, Operator):
            raise TypeError("an operator has fixed points, not roots: use fixed_point")
        if self.has_aux and isinstance(self.f, Operator):
            raise TypeError(
                "an operator returns nothing beside its image: has_aux must be False"
            )
        if self.communicator is not None and self.batched_args is not None:
            raise ValueError(
                "batched_args lets samples leave the batch, which parts joined by a "
                "communicator "
                "would each do by themselves: give one of the two"
            )
        if self.max_steps is not None:
            check_count("max_steps", self.max_steps, 0)
        check_count("batch_ndim", self.batch_ndim, 0)
        check_policy("on_failure", self.on_failure)
        if not callable(self.f):
            raise TypeError(
                f"{'F' if is_root else 'f'} must be callable, got "
                f"{type(self.f).__name__}"
            )
        args: Any = self.args
        if not isinstance(args, tuple):
            kind = type(args).__name__
            raise TypeError(f"args must be a tuple, got {kind}: write args=(x,)")

    def _tolerance(self, space: Space, rounding: float, start: Any) -> Tolerance:
        """The tolerances, the relative one by default what f can reach with its
        `rounding`.
        """
        rtol = (
            max(space.default_rtol, 10 * rounding) if self.rtol is None else self.rtol
        )
        atol, blocks = _tolerance("atol", self.atol), _blocks(self.f, start)
        return Tolerance(
            _tolerance("rtol", rtol), atol, self._norm(space), self.test, blocks
        )

    def _norm(self, space: Space) -> Norm:
        """The parts to test: small vectors may have entries in different units."""
        if self.norm is not None:
            return self.norm
        if self.test == "residual":
            return "euclidean"
        return "entries" if space.dimension <= ENTRIES else "leaves"

    def _course(self, structure: Any, compact: bool, solvers: int) -> Control:
        if compact and self.callback is not None:
            raise ValueError(
                "a callback sees whole batches: give it, or batched_args, not both"
            )
        callback = self.callback and _on_containers(self.callback, structure)
        budget = self.budget or Budget()
        steps = (
            DEFAULT_MAX_STEPS * solvers if self.max_steps is None else self.max_steps
        )
        return Control(steps, budget, callback, self.record, compact, self.state)

    def _leaf_map(
        self, backend: Backend, structure: Any, names: Sequence[str], surroundings: Any
    ) -> tuple[LeafMap, Vec]:
        """The map on leaves, and the arrays among args and inside f."""
        leaves, args_structure = backend.flatten(self.args)
        where = tuple(i for i, leaf in enumerate(leaves) if backend.is_array(leaf))
        constants = tuple(None if backend.is_array(leaf) else leaf for leaf in leaves)
        map_ = LeafMap(
            f=self.f,
            backend=backend,
            state=structure,
            args=args_structure,
            names=tuple(names),
            arrays=where,
            constants=constants,
            jvp=self.jvp,
            jacobian=as_function(backend, self.jacobian),
            preconditioner=self.preconditioner,
            projection=self.project,
            has_aux=self.has_aux,
            surroundings=surroundings,
            guard=backend.guard(),
        )
        return map_, (*(leaves[i] for i in where), *backend.lift(self.f))

    def _batched(
        self, backend: Backend, map_: LeafMap, arrays: Vec, space: Space
    ) -> tuple[bool, ...]:
        """Which of the leaves of args have an entry per sample, if that was said."""
        if self.batched_args is None:
            return ()
        flags = tuple(self.batched_args)
        if self.batch_ndim == 0 or len(flags) != len(self.args):
            raise ValueError(
                "batched_args needs batch_ndim > 0 and an entry for each of the "
                f"{len(self.args)} "
                f"args, got batch_ndim = {self.batch_ndim} and {len(flags)} entries"
            )
        if not callable(self.jacobian) and getattr(self.jacobian, "ndim", 0) > 2:
            raise ValueError(
                "jacobian must be a function where batched_args lets samples leave the "
                "batch, "
                f"got an array of the shape {tuple(self.jacobian.shape)}"
            )
        spread = [
            f
            for f, arg in zip(flags, self.args, strict=True)
            for _ in backend.flatten(arg)[0]
        ]
        batched = tuple(bool(spread[i]) for i in map_.arrays)
        rows = space.batch_shape[0]
        for array, flag in zip(arrays, batched, strict=False):
            if flag and tuple(array.shape[:1]) != (rows,):
                raise ValueError(
                    f"an array of args declared in batched_args must have {rows} rows, "
                    f"got the shape {tuple(array.shape)}"
                )
        return (*batched, *(False,) * (len(arrays) - len(batched)))

    def _packed(
        self, solve: Solve, outcome: Outcome, arrays: Vec, space: Space, structure: Any
    ) -> Solution:
        """The solution in the user's containers, or what `on_failure` says."""
        solution = Solution(
            value=structure.rebuild(outcome.value),
            status=outcome.status,
            residual_norm=outcome.residual_norm,
            steps=outcome.steps,
            work=outcome.work,
            error=outcome.error,
            precise=outcome.precise,
            method=outcome.method,
            methods=tuple(method.name for method in solve.solver.sequence),
            trace=outcome.trace,
            state=outcome.state,
            backward=outcome.backward,
            linearization=_linearization(solve, arrays),
        )
        what = "root failed" if solve.is_root else "fixed_point failed"
        value = apply_policy(
            self.on_failure, what, space, outcome.value, solution, depth=5
        )
        solution.value = structure.rebuild(value)
        if self.has_aux:
            solution.aux = self.f(solution.value, *self.args)[1]
            solution.work = solution.work.plus(Work(f=1))
        return solution


def _warm_start(adjoint: Adjoint, map_: LeafMap, value: Vec) -> Vec | None:
    """The leaves of where the adjoint solve starts."""
    given = adjoint.warm_start
    return None if given is None else map_.leaves(given, value, "warm_start")


def _inverse(adjoint: Adjoint, map_: LeafMap) -> Callable[[Vec, Vec], Any] | None:
    """The adjoint's preconditioner on leaves."""
    given = adjoint.preconditioner
    return (
        None if given is None else lambda value, args: map_.inverse(given, value, args)
    )


def _opposite(
    space: Space, image: Callable[[Vec, Vec], Vec]
) -> Callable[[Vec, Vec], Vec]:
    """The function −F."""
    return lambda value, arrays: space.negative(image(value, arrays))


def _on_containers(callback: Callable[..., Any], structure: Any) -> Callable[..., Any]:
    return lambda step, value, norm: callback(step, structure.rebuild(value), norm)


def _linearization(solve: Solve, arrays: Vec) -> Callable[[Any], Callable[[Any], Any]]:
    """From the solution, as a container, to the products with f′ or F′ there."""

    def linearized(container: Any) -> Callable[[Any], Any]:
        backend = solve.backend
        leaves, structure = backend.flatten(container)
        product = solve.products(tuple(map(backend.leaf, leaves)), arrays)
        return lambda v: structure.rebuild(
            product(tuple(map(backend.leaf, backend.flatten(v)[0])))
        )

    return linearized


def _check_state(
    backend: Backend, value: Vec, names: Sequence[str], batch_ndim: int
) -> None:
    """Each leaf is a floating-point array with entries, and all share their first
    axes.
    """
    batch = tuple(value[0].shape[:batch_ndim])
    xp = backend.namespace(value[0])
    for leaf, name in zip(value, names, strict=True):
        if not xp.isdtype(leaf.dtype, ("real floating", "complex floating")):
            raise TypeError(
                f"{name} must have a floating-point or complex dtype, got {leaf.dtype}"
            )
        shape = tuple(leaf.shape)
        if len(shape) < batch_ndim or shape[:batch_ndim] != batch:
            raise ValueError(
                f"{name} must begin with the {batch_ndim} batch axes {batch} of "
                f"{names[0]}, "
                f"got the shape {shape}"
            )
        if 0 in shape[batch_ndim:]:
            raise ValueError(f"{name} is empty: its shape is {shape}")


def _tolerance(name: str, value: Any) -> Any:
    if isinstance(value, (int, float)) and not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return value


def _blocks(f: Any, z0: Any) -> tuple[slice, ...]:
    """The leaves of each block that f tests by itself, or of all."""
    names = getattr(f, "blocks", None) if isinstance(f, Operator) else None
    if names is None:
        return (slice(None),)
    blocks, start = [], 0
    for name in sorted(z0):
        stop = start + len(tree.flatten(z0[name])[0])
        if name in names:
            blocks.append(slice(start, stop))
        start = stop
    return tuple(blocks)
