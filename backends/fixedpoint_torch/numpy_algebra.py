"""The algebra of small solves in NumPy.

At the sizes of most equilibrium layers an operation of Torch takes several times as
long as its arithmetic, and a step of a solver has dozens. NumPy's take a fraction of
that, on the same memory: only the user's functions see tensors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from fixedpoint.adjoints.base import LinearAdjoint
from fixedpoint.adjoints.system import AdjointSystem
from fixedpoint.backend import Vec
from fixedpoint.functions import Bridge
from fixedpoint.iterate import Iteration
from fixedpoint.kernels import kernel_of
from fixedpoint.numpy_backend import NumpyBackend
from fixedpoint.run import Run, SolverRun
from fixedpoint.solution import ConvergenceError

# Entries of a state beyond which Torch's arithmetic, on all cores, wins over NumPy's;
# compiled steps take as many cores.
_LARGEST = 2**18

_DTYPES = (torch.float32, torch.float64)


def holds(leaves: Vec) -> bool:
    """Whether algebra on vectors like `leaves` is better done in NumPy."""
    return _can_hold(leaves) and sum(leaf.numel() for leaf in leaves) <= _LARGEST


def _can_hold(leaves: Vec) -> bool:
    """Whether NumPy can do algebra on vectors like `leaves`, in the same memory."""
    return all(leaf.device.type == "cpu" and leaf.dtype in _DTYPES for leaf in leaves)


def iterate(run: Run, value: Vec) -> Iteration:
    """What ``run.iterate`` gives, by NumPy where that is better."""
    if not isinstance(run, SolverRun) or not _fits(run, value):
        return run.iterate(value)
    there = run.on(NUMPY, value)
    if not holds(value) and kernel_of(there.solver.sequence[0], there.problem) is None:
        return run.iterate(value)
    return there.iterate(NUMPY.all_there(value)).converted(NUMPY.back_in)


def _fits(run: SolverRun, value: Vec) -> bool:
    """Whether a run from `value` can be done in NumPy, which has no bfloat16."""
    problem = run.problem
    pairs = zip(problem.args, problem.batched, strict=False)
    narrow = any(batched and a.dtype is torch.bfloat16 for a, batched in pairs)
    return _can_hold(value) and not narrow and run.backend.communicator is None


def solved(adjoint: LinearAdjoint, system: AdjointSystem) -> tuple[Vec, Iteration]:
    """What ``adjoint.solved`` gives, by NumPy where that is better."""
    if not holds(system.rhs) or system.space.backend.communicator is not None:
        return adjoint.solved(system)
    try:
        u, end = _reporting(adjoint).solved(system.on(NUMPY))
    except ConvergenceError as error:
        parts = vars(error.solution).items()
        there = {name: NUMPY.back_in(part) for name, part in parts}
        error.solution = dataclasses.replace(error.solution, **there)
        raise
    return NUMPY.all_back(u), end.converted(NUMPY.back_in)


def _reporting(adjoint: LinearAdjoint) -> LinearAdjoint:
    """`adjoint`, its report still called with tensors."""
    report: Any = adjoint.report
    if report is None:
        return adjoint
    settings: Any = adjoint
    changed: LinearAdjoint = dataclasses.replace(
        settings, report=lambda *found: report(*map(_tensor, found))
    )
    return changed


def _tensor(leaf: Any) -> Any:
    """A NumPy array as a tensor on the same memory."""
    if isinstance(leaf, np.ndarray):
        return torch.from_numpy(leaf)
    return torch.from_numpy(np.asarray(leaf)) if isinstance(leaf, np.generic) else leaf


def _array(leaf: Any) -> Any:
    """A tensor as a NumPy array on the same memory."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    leaf = leaf.detach() if leaf.requires_grad else leaf
    return leaf.float().numpy() if leaf.dtype is torch.bfloat16 else leaf.numpy()


class _NumPy(NumpyBackend):
    """NumPy, for tensors: with the threads that Torch may take."""

    @property
    def threads(self) -> int:
        """Those of Torch."""
        return torch.get_num_threads()


NUMPY = Bridge(_NumPy(), _array, _tensor)
