"""One solve, in terms of leaves: what a backend runs and attaches derivatives to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.adjoints.implicit import Implicit
from fixedpoint.backend import Array, Backend, Vec, of_one_backend, type_name
from fixedpoint.iterate import iterate
from fixedpoint.operators.base import Operator
from fixedpoint.problem import FixedPointProblem
from fixedpoint.solvers import Solver
from fixedpoint.space import Space


class Outcome(NamedTuple):
    """What a solve computed, leaves still apart.

    Attributes
    ----------
    value : Vec
        The leaves of the solution.
    status, residual_norm, steps : array of the batch's shape
        As in :class:`fixedpoint.Solution`.
    evaluations : int
        How often the map was called.
    backward : object or None
        The adjoint's report.
    """

    value: Vec
    status: Array
    residual_norm: Array
    steps: Array
    evaluations: Any
    backward: Any = None


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
    names : tuple of str
        What to call each leaf of the state in a message.
    arrays : tuple of int
        Which of the leaves of args are arrays; the others are `constants`.
    constants : tuple
        All leaves of args, those in `arrays` replaced by None.
    """

    f: Callable[..., Any]
    backend: Backend
    state: Any
    args: Any
    names: tuple[str, ...]
    arrays: tuple[int, ...]
    constants: tuple[Any, ...]

    def __call__(self, value: Vec, arrays: Vec) -> tuple[Vec, Vec | None]:
        """The leaves of f(z, *args), and of the residual to test if it is not f(z) − z.

        `arrays` are those of args, then those that the backend found inside f, which is called
        as it is and brings them along.
        """
        z, args = self.state.rebuild(value), self.unpack(arrays)
        if isinstance(self.f, Operator):
            image, residual = self.f.evaluate(z, *args)
            return self._leaves(image, value), self._leaves(residual, value)
        return self._leaves(self.f(z, *args), value), None

    def image(self, value: Vec, arrays: Vec) -> Vec:
        """The leaves of f(z, *args), a pure function of all `arrays`."""
        f = self.backend.pure(self.f, arrays[len(self.arrays) :])
        return self._leaves(f(self.state.rebuild(value), *self.unpack(arrays)), value)

    def unpack(self, arrays: Vec) -> Any:
        """The user's args, as given."""
        leaves = list(self.constants)
        for position, array in zip(self.arrays, arrays[: len(self.arrays)], strict=True):
            leaves[position] = array
        return self.args.rebuild(leaves)

    def _leaves(self, image: Any, value: Vec) -> Vec:
        leaves, structure = self.backend.flatten(image)
        if structure != self.state:
            raise ValueError(
                f"f must return a container like z0, with leaves {', '.join(self.names)}; "
                f"it returned {type(image).__name__} with {len(leaves)} leaves"
            )
        leaves = [self.backend.leaf(leaf) for leaf in leaves]
        for name, new, old in zip(self.names, leaves, value, strict=True):
            _check_leaf(name, new, old)
        return tuple(leaves)


def _check_leaf(name: str, new: Any, old: Array) -> None:
    """Raise unless `new`, an output of f, has the type, shape and dtype of the state's leaf."""
    if type(new) is not type(old) and not of_one_backend(new, old):
        raise TypeError(
            f"f must return an array for {name}, of the same library: expected "
            f"{type_name(old)}, got {type_name(new)}"
        )
    if new.shape != old.shape:
        raise ValueError(
            f"f must keep the shape of {name}: expected {tuple(old.shape)}, got {tuple(new.shape)}"
        )
    if new.dtype != old.dtype:
        raise TypeError(
            f"f must keep the dtype of {name}: expected {old.dtype}, got {new.dtype}. "
            "Give z0 the dtype that f computes in"
        )


@dataclass(frozen=True, eq=False)
class Solve:
    """A map and how to find its fixed point: all of a call but the arrays.

    Parameters
    ----------
    map : callable
        Takes the leaves of the state and of the arguments; returns those of the image, and of the
        residual to test or None.
    image : callable
        The same, without the residual: a pure function, which derivative rules differentiate.
    backend, solver, rtol, atol, norm, max_steps, batch_ndim, adjoint, blocks
        As in :func:`fixedpoint.fixed_point` and :class:`fixedpoint.problem.FixedPointProblem`.
    """

    map: Callable[[Vec, Vec], tuple[Vec, Vec | None]]
    image: Callable[[Vec, Vec], Vec]
    backend: Backend
    solver: Solver
    rtol: Any
    atol: Any
    norm: str
    max_steps: int
    batch_ndim: int
    adjoint: Implicit
    blocks: tuple[slice, ...]

    def run(self, value: Vec, args: Vec) -> Outcome:
        """Iterate from `value`, recording no derivatives."""
        space = Space.of(self.backend, value, self.batch_ndim)
        problem = FixedPointProblem(
            space, lambda z: self.map(z, args), self.rtol, self.atol, self.norm, self.blocks
        )
        end = iterate(self.solver, problem, value, self.max_steps)
        point = end.point
        return Outcome(point.value, end.status, point.residual_norm, end.steps, end.evaluations)
