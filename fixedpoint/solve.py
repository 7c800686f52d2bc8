"""One solve, in terms of leaves: what a backend runs and attaches derivatives to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

from fixedpoint.adjoints.base import Adjoint, AdjointSystem, LinearAdjoint, Product
from fixedpoint.backend import Array, Backend, Vec, numbers, of_one_backend, type_name
from fixedpoint.control import Control, Memory
from fixedpoint.iterate import Iteration, iterate
from fixedpoint.operators.base import Operator
from fixedpoint.problem import FixedPointProblem, Map, Problem, RootProblem
from fixedpoint.solution import BackwardReport, Trace, Work
from fixedpoint.solvers import Solver
from fixedpoint.space import Space
from fixedpoint.tolerance import Tolerance


class Outcome(NamedTuple):
    """What a solve computed, leaves still apart.

    Attributes
    ----------
    value : Vec
        The leaves of the solution.
    status, residual_norm, error, precise, steps, method : array of the batch's shape
        As in :class:`fixedpoint.Solution`.
    work, trace, state, backward, bracket
        As there.
    """

    value: Vec
    status: Array
    residual_norm: Array
    error: Array
    precise: Array
    steps: Array
    method: Array
    work: Work
    trace: Trace | None = None
    state: Memory | None = None
    backward: BackwardReport | None = None
    bracket: tuple[Array, Array] | None = None


@dataclass(frozen=True, eq=False)
class LeafMap:
    """The user's map as a function of leaves, its output checked against its input.

    Parameters
    ----------
    f : callable
        The user's ``f(z, *args)``, or an operator, which brings the residual to test.
    backend : Backend
        The array library's adapter.
    state, args : structure
        How to rebuild the containers from their leaves.
    names, name : tuple of str, and str
        What to call each leaf of the state in a message, and f.
    arrays : tuple of int
        Which of the leaves of args are arrays; the others are `constants`.
    constants : tuple
        All leaves of args, those in `arrays` replaced by None.
    jvp, jacobian, preconditioner, projection : callable or None
        The user's functions of those names.
    has_aux : bool
        Whether f returns something beside its image, which is left out here.
    surroundings : callable or None
        Calls a function of leaves with them, in the surroundings of the first
        evaluation.
    guard : callable or None
        Calls a function of leaves with them, so that it cannot change them.
    """

    f: Callable[..., Any]
    backend: Backend
    state: Any
    args: Any
    names: tuple[str, ...]
    arrays: tuple[int, ...]
    constants: tuple[Any, ...]
    jvp: Callable[..., Any] | None = None
    jacobian: Callable[..., Any] | None = None
    preconditioner: Callable[..., Any] | None = None
    projection: Callable[[Any], Any] | None = None
    has_aux: bool = False
    surroundings: Callable[..., Any] | None = None
    guard: Callable[[Callable[..., Any], Vec], Any] | None = None
    name: str = "f"

    def bind(self, arrays: Vec) -> dict[str, Any]:
        """The user's other functions, for given arguments."""
        bound: dict[str, Any] = {}
        if self.jvp is not None:
            bound["jvp"] = lambda value, v: self._product(value, v, arrays)
        if self.jacobian is not None:
            bound["jacobian"] = lambda value: self._matrix(value, arrays)
        given = self.preconditioner
        if given is not None:
            bound["preconditioner"] = lambda value: self.inverse(given, value, arrays)
        return bound

    def project(self, value: Vec) -> Vec:
        """The leaves of the user's projection."""
        assert self.projection is not None
        return self.leaves(self.projection(self.state.rebuild(value)), value, "project")

    def _product(self, value: Vec, v: Vec, arrays: Vec) -> Vec:
        assert self.jvp is not None
        product = self.jvp(
            self.state.rebuild(value), self.state.rebuild(v), *self.unpack(arrays)
        )
        return self.leaves(product, value, "jvp")

    def _matrix(self, value: Vec, arrays: Vec) -> Any:
        assert self.jacobian is not None
        return self.backend.sparse(
            self.jacobian(self.state.rebuild(value), *self.unpack(arrays))
        )

    def inverse(self, given: Callable[..., Any], value: Vec, arrays: Vec) -> Any:
        """What a preconditioner that is `given` returns: on leaves, if it is on
        containers.
        """
        inverse = given(self.state.rebuild(value), *self.unpack(arrays))
        if (
            hasattr(inverse, "solve")
            or hasattr(inverse, "matvec")
            or not callable(inverse)
        ):
            return inverse
        return lambda v: self.leaves(
            inverse(self.state.rebuild(v)), value, "preconditioner"
        )

    def __call__(self, arrays: Vec) -> Map:
        """The map of the state for given arguments.

        It returns the leaves of f(z, *args), and of the residual to test if that is not
        f(z) − z. `arrays` are those of args, then those that the backend found inside
        f, which is called as it is and brings them along.
        """
        f, args = self.f, self.unpack(arrays)
        if isinstance(f, Operator):
            mapped = partial(self._of_operator, f, args)
        else:
            mapped = partial(self._mapped, self._guarded(f, args))
        return (
            mapped if self.surroundings is None else partial(self.surroundings, mapped)
        )

    def _of_operator(
        self, f: Operator, args: Any, value: Vec
    ) -> tuple[Vec, Vec | None]:
        """What an operator returns."""
        image, residual = f.evaluate(self.state.rebuild(value), *args)
        return self.leaves(image, value), self.leaves(residual, value)

    def _mapped(self, f: Callable[[Vec], Any], value: Vec) -> tuple[Vec, Vec | None]:
        """What a function returns, which has no residual of its own."""
        image = self._image(f(value))
        if self._is_bare and _alike(image, value[0]):
            return (image,), None
        return self.leaves(image, value), None

    def _guarded(self, f: Callable[..., Any], args: Any) -> Callable[[Vec], Any]:
        """The function z ↦ f(z, *args) of leaves, which must not change them."""
        rebuild = self.state.rebuild
        function: Callable[..., Any] = lambda *leaves: f(rebuild(leaves), *args)  # noqa: E731
        if self._is_bare:
            function = (lambda leaf: f(leaf, *args)) if args else f
        if self.guard is None:
            return lambda value: function(*value)
        return partial(self.guard, function)

    @cached_property
    def _is_bare(self) -> bool:
        """Whether the state is an array by itself, and f a function of it."""
        mark = object()
        alone = len(self.names) == 1 and self.state.rebuild([mark]) is mark
        return alone and not isinstance(self.f, Operator)

    def image(self, value: Vec, arrays: Vec) -> Vec:
        """The leaves of f(z, *args), a pure function of all `arrays`."""
        if self.surroundings is not None:
            leaves: Vec = self.surroundings(self._pure, value, arrays)
            return leaves
        return self._pure(value, arrays)

    def _pure(self, value: Vec, arrays: Vec) -> Vec:
        f = self.backend.pure(self.f, arrays[len(self.arrays) :])
        image = self._image(self._guarded(f, self.unpack(arrays))(value))
        return self.leaves(image, value)

    def _image(self, output: Any) -> Any:
        """What f returns, without what is beside it."""
        if not self.has_aux:
            return output
        if not isinstance(output, tuple) or len(output) != 2:
            raise ValueError(
                f"{self.name} must return a pair (z, aux) where has_aux=True, "
                f"got {type_name(output)}"
            )
        return output[0]

    def unpack(self, arrays: Vec) -> Any:
        """The user's args, as given."""
        if not self.constants:
            return ()
        leaves = list(self.constants)
        for position, array in zip(
            self.arrays, arrays[: len(self.arrays)], strict=True
        ):
            leaves[position] = array
        return self.args.rebuild(leaves)

    def leaves(self, image: Any, value: Vec, what: str | None = None) -> Vec:
        """The leaves of what `what` returned, by default f, alike those of `value`."""
        what = self.name if what is None else what
        if self._is_bare and isinstance(image, list):
            image = numbers(image)
        leaves, structure = self.backend.flatten(image)
        if structure != self.state:
            start = self.names[0].partition("[")[0]
            raise ValueError(
                f"{what} must return a container like {start}, with leaves "
                f"{', '.join(self.names)}; "
                f"it returned {type(image).__name__} with {len(leaves)} leaves"
            )
        leaves = [self.backend.leaf(leaf) for leaf in leaves]
        for name, new, old in zip(self.names, leaves, value, strict=True):
            _check_leaf(what, name, new, old, self.backend)
        return tuple(
            [self.backend.conform(n, o) for n, o in zip(leaves, value, strict=True)]
        )


def _alike(new: Any, old: Array) -> bool:
    """Whether `new` can take the place of `old`."""
    return (
        type(new) is type(old)
        and new.shape == old.shape
        and bool(new.dtype == old.dtype)
    )


def _check_leaf(what: str, name: str, new: Any, old: Array, backend: Backend) -> None:
    """Raise unless `new`, an output of `what`, has the type, shape and dtype of the
    leaf.
    """
    if type(new) is not type(old) and not of_one_backend(new, old):
        raise TypeError(
            f"{what} must return an array for {name}, of the same library: expected "
            f"{type_name(old)}, got {type_name(new)}"
        )
    if new.shape != old.shape:
        raise ValueError(
            f"{what} must keep the shape of {name}: expected {tuple(old.shape)}, "
            f"got {tuple(new.shape)}"
        )
    if backend.conform(new, old).dtype != old.dtype:
        raise TypeError(
            f"{what} must keep the dtype of {name}: expected {old.dtype}, got "
            f"{new.dtype}. "
            "Give the start the dtype that f computes in"
        )


@dataclass(frozen=True, eq=False)
class Solve:
    """A map and how to find its fixed point or root: all of a call but the arrays.

    Parameters
    ----------
    map : LeafMap or callable
        Takes the leaves of the arguments to the map of the state, which returns the
        leaves of the image, and of the residual to test or None.
    image : callable
        Takes the leaves of the state and of the arguments to those of the image: a pure
        function, which derivative rules differentiate. Its fixed point is sought; or
        where a root of F is, it is −F.
    bind : callable
        Takes the leaves of the arguments to the user's other functions on leaves, by
        name.
    backend, solver, tolerance, batch_ndim, adjoint, project
        As in :func:`fixedpoint.fixed_point` and :mod:`fixedpoint.problem`.
    control : Control
        How far to go, and who watches.
    is_root, is_operator : bool
        Whether a root is sought, and whether the map brings a residual of its own.
    batched : tuple of bool
        Which leaves of the arguments have an entry per sample.
    start : Vec or None
        Where the adjoint solve starts.
    inverse : callable or None
        Takes the leaves of the state and of the arguments to the adjoint's
        preconditioner.
    rebuild : callable
        Puts the leaves of the state into the user's container.
    """

    map: Callable[[Vec], Map]
    image: Callable[[Vec, Vec], Vec]
    bind: Callable[[Vec], dict[str, Any]]
    backend: Backend
    solver: Solver
    tolerance: Tolerance
    batch_ndim: int
    adjoint: Adjoint
    control: Control
    is_root: bool = False
    is_operator: bool = False
    project: Callable[[Vec], Vec] | None = None
    batched: tuple[bool, ...] = ()
    start: Vec | None = None
    inverse: Callable[[Vec, Vec], Product] | None = None
    rebuild: Callable[[Vec], Any] = tuple

    def run(self, value: Vec, args: Vec) -> Outcome:
        """Iterate from `value`, recording no derivatives."""
        problem = self.problem(value, args)
        end = iterate(self.solver, problem, value, self.control)
        return Outcome(
            value=end.value,
            status=end.status,
            residual_norm=end.residual_norm,
            error=end.error,
            precise=end.precise,
            steps=end.steps,
            method=end.method,
            work=end.work,
            trace=end.trace,
            state=end.state,
        )

    def problem(self, value: Vec, args: Vec) -> Problem:
        """The problem for given arguments."""
        space = Space.of(self.backend, value, self.batch_ndim)
        common = {
            "space": space,
            "tolerance": self.tolerance,
            "restrict": lambda rows: self._restricted(space, args, rows),
            **self._functions(args),
        }
        return (
            RootProblem(**common)
            if self.is_root
            else FixedPointProblem(**common, is_operator=self.is_operator)
        )

    def _functions(self, args: Vec) -> dict[str, Any]:
        """The user's functions of the state alone."""
        functions = {"map": self.map(args), **self.bind(args)}
        return (
            functions
            if self.project is None
            else {**functions, "project": self.project}
        )

    def _restricted(self, space: Space, args: Vec, rows: Array) -> dict[str, Any]:
        """The functions for the samples `rows` alone."""
        flags = (*self.batched, *(False,) * (len(args) - len(self.batched)))
        pairs = zip(args, flags, strict=True)
        taken = tuple(space.xp.take(a, rows, axis=0) if b else a for a, b in pairs)
        return self._functions(taken)

    def linear_solve(
        self,
        product: Product,
        right: Vec,
        transposed: bool,
        at: tuple[Vec, Vec],
        memory: Memory | None = None,
    ) -> tuple[Vec, Iteration]:
        """The solution of the :class:`AdjointSystem` on leaves, and what became of it.

        ``product`` belongs to the derivative of :attr:`image` at the value and
        arguments ``at``, and ``memory`` is the forward solver's. Where a sample fails,
        the adjoint's ``on_failure`` is heeded.
        """
        assert isinstance(self.adjoint, LinearAdjoint)
        space = Space.of(self.backend, right, self.batch_ndim)
        start, inverse = (self.start, self.inverse) if transposed else (None, None)
        system = AdjointSystem(
            space=space,
            product=product,
            right=right,
            rtol=_relative(self.tolerance.rtol, space),
            is_root=self.is_root,
            transposed=transposed,
            start=start,
            precondition=None if inverse is None else inverse(*at),
            memory=memory,
        )
        return self.adjoint.solved(system)

    def products(self, value: Vec, args: Vec) -> Callable[[Vec], Vec]:
        """The products with the derivative of the user's map at `value`."""
        problem = self.problem(value, args)
        space, product = (
            problem.space,
            problem.linearize(problem.evaluate(value)).product,
        )
        if self.is_root:
            return lambda v: space.negative(product(v))
        return lambda v: space.add(product(v), v)


def _relative(rtol: Any, space: Space) -> float:
    """The forward solve's relative tolerance, if it is one number the adjoint can
    use.
    """
    known = isinstance(rtol, (int, float)) and rtol > 0
    return float(rtol) if known else space.default_rtol
