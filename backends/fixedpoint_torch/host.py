"""The algebra of small solves in NumPy.

At the sizes of most equilibrium layers an operation of Torch takes several times as
long as its arithmetic, and a step of a solver has dozens. NumPy's take a fraction of
that, on the same memory: only the user's functions see tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fixedpoint import tree
from fixedpoint.backend import Backend, Vec
from fixedpoint.control import Control, Memory
from fixedpoint.iterate import Iteration
from fixedpoint.problem import Map
from fixedpoint.solution import ConvergenceError
from fixedpoint.solve import Outcome, Solve
from fixedpoint_torch.linearization import products

NUMPY = Backend()

# Entries of a state beyond which Torch's arithmetic, on all cores, wins.
_LARGEST = 2**18

_DTYPES = (torch.float32, torch.float64)


def fits(solve: Solve, value: Vec, args: Vec = ()) -> bool:
    """Whether the algebra of `solve` on vectors like `value` is better done in
    NumPy.
    """
    taken = [a for a, batched in zip(args, solve.batched, strict=False) if batched]
    if solve.backend.communicator is not None:
        return False
    if type(solve) is not Solve or any(a.dtype is torch.bfloat16 for a in taken):
        return False
    return holds(value)


def holds(leaves: Vec) -> bool:
    """Whether algebra on vectors like `leaves` is better done in NumPy."""
    plain = all(leaf.device.type == "cpu" and leaf.dtype in _DTYPES for leaf in leaves)
    return plain and sum(leaf.numel() for leaf in leaves) <= _LARGEST


def small(function: Callable[..., Vec], leaves: Vec) -> Vec:
    """What ``function(backend, *leaves)`` gives, by NumPy."""
    with NUMPY.quiet():
        return tensors(function(NUMPY, *arrays(leaves)))


def arrays(leaves: Vec) -> Vec:
    """Tensors as NumPy arrays, on the same memory."""
    return tuple([(x.detach() if x.requires_grad else x).numpy() for x in leaves])


def tensors(leaves: Vec) -> Vec:
    """NumPy arrays as tensors, on the same memory."""
    return tuple([torch.from_numpy(np.asarray(leaf)) for leaf in leaves])


def run(solve: Solve, value: Vec, args: Vec) -> Outcome:
    """What ``solve.run`` gives, by NumPy."""
    flags = (*solve.batched, *(False,) * (len(args) - len(solve.batched)))
    taken = tuple(
        _array(a) if batched else a for a, batched in zip(args, flags, strict=True)
    )
    outcome = _hosted(solve).run(arrays(value), taken)
    state = outcome.state
    memory = state and Memory(state.solver, _converted(state.contents, _tensor))
    plain = outcome._replace(state=None)
    converted: Outcome = _converted(plain, _tensor)
    return converted._replace(state=memory)


def linear_solve(
    solve: Solve,
    product: Callable[[Vec], Vec],
    right: Vec,
    transposed: bool,
    at: tuple[Vec, Vec],
    memory: Memory | None,
) -> tuple[Vec, Iteration]:
    """What ``solve.linear_solve`` gives, by NumPy."""
    kept = memory and Memory(memory.solver, _converted(memory.contents, _array))
    hosted = _hosted(solve)
    try:
        u, end = hosted.linear_solve(
            _between(product), arrays(right), transposed, at, kept
        )
    except ConvergenceError as error:
        error.solution = dataclasses.replace(
            error.solution,
            **{
                field.name: _converted(getattr(error.solution, field.name), _tensor)
                for field in dataclasses.fields(error.solution)
            },
        )
        raise
    converted: Iteration = _converted(end._replace(state=None), _tensor)  # type: ignore[arg-type]
    return tensors(u), converted


def _hosted(solve: Solve) -> Solve:
    """`solve` on NumPy arrays, its functions still those of tensors."""
    inverse, start = solve.inverse, solve.start
    return dataclasses.replace(
        solve,
        backend=NUMPY,
        map=lambda args: _on_arrays(solve.map(tuple(map(_tensor, args)))),
        bind=lambda args: _bound(solve, tuple(map(_tensor, args))),
        tolerance=dataclasses.replace(
            solve.tolerance,
            rtol=_array(solve.tolerance.rtol),
            atol=_array(solve.tolerance.atol),
        ),
        control=_watched(solve.control),
        adjoint=_reporting(solve.adjoint),
        project=solve.project and _between(solve.project),
        start=None if start is None else arrays(start),
        inverse=inverse and (lambda *at: _between(inverse(*at))),
    )


def _between(f: Callable[[Vec], Vec]) -> Callable[[Vec], Vec]:
    """A function of tensors as one of arrays."""
    return lambda leaves: arrays(f(tensors(leaves)))


def _on_arrays(mapped: Map) -> Map:
    """The map of tensors as one of arrays."""

    def on_arrays(value: Vec) -> tuple[Vec, Vec | None]:
        image, residual = mapped(tensors(value))
        return arrays(image), None if residual is None else arrays(residual)

    return on_arrays


def _bound(solve: Solve, args: Vec) -> dict[str, Any]:
    """The user's other functions on arrays, and the exact products where none are
    given.
    """
    given = solve.bind(args)
    bound: dict[str, Any] = {}
    if "jacobian" in given:
        bound["jacobian"] = lambda value: _matrix(given["jacobian"](tensors(value)))
    elif "jvp" in given:
        bound["jvp"] = lambda value, v: arrays(given["jvp"](tensors(value), tensors(v)))
    else:
        mapped = solve.map(args)
        bound["jvp"] = _Products(lambda value: mapped(value)[0])
    if "preconditioner" in given:
        bound["preconditioner"] = lambda value: _between(
            given["preconditioner"](tensors(value))
        )
    return bound


def _matrix(given: Any) -> Any:
    """A Jacobian, or the numbers in a list of lists, without tensors."""
    if isinstance(given, (list, tuple)):
        return _converted(given, _array)
    is_narrow = isinstance(given, torch.Tensor) and given.dtype is torch.bfloat16
    return _array(given.float() if is_narrow else given)


class _Products:
    """The products with the derivative of `f`, one linearization for all at the same
    state.
    """

    def __init__(self, f: Callable[[Vec], Vec]) -> None:
        self.f = f
        self.value: Vec = ()
        self.product: Callable[[Vec], Vec] | None = None

    def __call__(self, value: Vec, v: Vec) -> Vec:
        if self.product is None or not all(map(_same, self.value, value)):
            f = lambda z, _: self.f(z)  # noqa: E731
            self.value, self.product = (
                value,
                products(f, tensors(value), (), transposed=False),
            )
        return arrays(self.product(tensors(v)))


def _same(a: Any, b: Any) -> bool:
    """Whether two arrays are the same memory, which the first one keeps from being
    freed.
    """
    first, second = a.__array_interface__, b.__array_interface__
    return bool(first["data"] == second["data"])


def _watched(control: Control) -> Control:
    """`control`, its callback still called with tensors."""
    callback, state = control.callback, control.state
    if state is not None:
        state = Memory(state.solver, _converted(state.contents, _array))
    if callback is None:
        return dataclasses.replace(control, state=state)

    def called(step: int, value: Vec, norm: Any) -> Any:
        return callback(step, tensors(value), _tensor(norm))

    return dataclasses.replace(control, state=state, callback=called)


def _reporting(adjoint: Any) -> Any:
    """`adjoint`, its report still called with tensors."""
    report = adjoint.report
    if report is None:
        return adjoint
    return dataclasses.replace(
        adjoint, report=lambda *found: report(*map(_tensor, found))
    )


def _converted(contents: Any, convert: Callable[[Any], Any]) -> Any:
    """A container with its arrays converted."""
    leaves, structure = tree.flatten(contents)
    return structure.rebuild([convert(leaf) for leaf in leaves])


def _tensor(leaf: Any) -> Any:
    return (
        torch.from_numpy(np.asarray(leaf))
        if isinstance(leaf, (np.ndarray, np.generic))
        else leaf
    )


def _array(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return leaf.detach().numpy()
