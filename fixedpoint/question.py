"""What is asked for, and how to answer it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from typing import Any, TypedDict, TypeVar

from fixedpoint import tree
from fixedpoint.adapters import numbers
from fixedpoint.adjoints import Adjoint, ImplicitAdjoint, as_adjoint
from fixedpoint.backend import Array, Vec
from fixedpoint.border import Border, MapOnLeaves
from fixedpoint.checks import check_callable, check_count, check_function, check_given
from fixedpoint.communicator import Communicator
from fixedpoint.control import Budget, Control, Memory
from fixedpoint.failure import Policy, check_policy, shorten
from fixedpoint.keywords import OF_CALLS, unexpected
from fixedpoint.operators.base import Map, check_blocks
from fixedpoint.problem import Problem
from fixedpoint.remedies import note_mixture, note_number
from fixedpoint.root_problem import RootProblem
from fixedpoint.run import SolverRun
from fixedpoint.solvers import Solver, as_solver, default_solver
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint.tolerance import Tolerance

Settings = TypeVar("Settings", Map, Control)

IMPLICIT = ImplicitAdjoint()


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
class Question:
    """What is asked for, but for the start: see :func:`fixed_point`."""

    map: Map
    args: tuple[Any, ...]
    control: Control
    solver: Solver | None
    tolerance: Tolerance
    batch_ndim: int
    is_root: bool
    adjoint: Adjoint = IMPLICIT
    on_failure: Policy = "return"
    state: Memory | None = None
    communicator: Communicator | None = None

    @classmethod
    def of(
        cls,
        f: Any,
        control: Control | None,
        fields: Fields,
        solver: Any,
        adjoint: Any = None,
        **rest: Any,
    ) -> Question:
        """That of a call: its fields are known by name, and its methods may be."""
        check_given("F" if rest.get("is_root") else "f", f)
        map_, control = with_fields(f, control, fields)
        solver, adjoint = methods_of(solver, adjoint)
        adjoint = adjoint or IMPLICIT
        return cls(map=map_, control=control, solver=solver, adjoint=adjoint, **rest)

    def run(self, start: Any) -> tuple[SolverRun, Vec]:
        """The run, and the leaves that it begins with."""
        self._check()
        start, whole = numbers(start), "x0" if self.is_root else "z0"
        border, leaves = Border.of(start, whole, self.communicator, self.batch_ndim)
        border.check(leaves, self.batch_ndim)
        border = border.joined(leaves, self.batch_ndim) if self._joins() else border
        value = border.vector(leaves)
        space = space_of(border.backend, value, self.batch_ndim)
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
        name, kind = ("F", RootProblem) if self.is_root else ("f", Problem)
        on_leaves, arrays = MapOnLeaves.of(self.map, border, value, self.args, name)
        symbols = *value, *arrays, self.tolerance.rtol, self.tolerance.atol
        solver = self._solver(space, border.backend.is_compiled(self.map.f, symbols))
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
        has_matrix = self.map.jacobian is not None
        samples = math.prod(space.batch_shape)
        return named or default_solver(
            space.dimension, self.is_root, has_matrix, samples, is_compiled
        )

    def _check(self) -> None:
        if self.is_root and self.map.is_operator:
            raise TypeError("an operator has fixed points, not roots: use fixed_point")
        if self.map.has_aux and self.map.is_operator:
            raise TypeError(
                "an operator returns nothing beside its image: has_aux must be False"
            )
        check_count("batch_ndim", self.batch_ndim, 0)
        check_policy("on_failure", self.on_failure)
        check_function("F" if self.is_root else "f", self.map.f, self.args)
        if self.state is not None and not isinstance(self.state, Memory):
            kind = type(self.state).__name__  # type: ignore[unreachable]
            raise TypeError(f"state must be sol.state of an earlier call, got {kind}")
        joint = self.communicator
        if joint is not None and not isinstance(joint, Communicator):
            raise TypeError(f"communicator must be a Communicator, got {joint!r}")

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
        check_blocks(names, start)
        blocks, first = [], 0
        for name in sorted(start):
            stop = first + len(tree.flatten(start[name])[0])
            if name in names:
                blocks.append(slice(first, stop))
            first = stop
        return tuple(blocks)


@dataclass(frozen=True, eq=False)
class Explained:
    """A block in which f is called: what it raises says where f mixes the libraries of
    arrays, or takes a number for an array, and leaves out what lies between the call
    and f.
    """

    question: Question
    run: SolverRun
    value: Vec

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (TypeError, RuntimeError)):
            name = self.run.border.names[0]
            note_mixture(error, self.value, self.question.args, name)
        if isinstance(error, (TypeError, IndexError)):
            state = self.run.border.unpack(self.value)
            note_number(error, state, self.run.border.names[0].partition("[")[0])
        if isinstance(error, Exception):
            shorten(error)


def with_fields(f: Any, control: Control | None, fields: Fields) -> tuple[Map, Control]:
    """The map and the control, with the fields that are given by name."""
    if control is not None and not isinstance(control, Control):
        raise TypeError(f"control must be a Control, got {control!r}")
    given: dict[str, Any] = dict(fields)
    of_map = {name: given.pop(name) for name in _MAP & given.keys()}
    of_control = {name: given.pop(name) for name in _CONTROL & given.keys()}
    for name in given:
        raise TypeError(unexpected(name, _MAP | _CONTROL | OF_CALLS))
    map_ = _with(f, of_map) if type(f) is Map else Map(f, **of_map)
    if control is None:
        return map_, Control(**of_control)
    return map_, _with(control, of_control)


def _with(settings: Settings, given: dict[str, Any]) -> Settings:
    return replace(settings, **given) if given else settings


_MAP = {field.name for field in fields_of(Map)} - {"f"}
_CONTROL = {field.name for field in fields_of(Control)}


def _on_leaves(control: Control, border: Border) -> Control:
    """`control`, whose callback is called with leaves; the caller's sees copies."""
    call, unpack = control.callback, border.unpack
    if call is None:
        return control

    def called(step: int, value: Vec, norm: Array) -> Any:
        return call(step, unpack(tuple([1.0 * leaf for leaf in value])), norm)

    return replace(control, callback=called)


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
    check_callable("start", layer.start)
