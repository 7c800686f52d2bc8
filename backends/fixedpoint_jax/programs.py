"""Compiled solves for transforms outside of ``jit``.

A gradient of a solve outside of ``jit`` is made of loops and linear solves that JAX
would compile anew in every call, since the functions in them are new. It is therefore
compiled as a whole, once for each program of f, by which are meant the operations that
a trace of it found, and not the function: what f reads from outside is an argument or a
number of the program.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax

from fixedpoint.adjoints.base import Adjoint
from fixedpoint.backend import Vec
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run, SolverRun

# Programs that are kept, those used last.
_KEPT = 64

Program = Callable[[Vec, Vec], Iteration]

# With each program what its key only names: functions inside a jaxpr are told by their
# addresses, which are theirs as long as they are kept.
_programs: OrderedDict[Any, tuple[Program, Any]] = OrderedDict()


def attach(adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
    """The solution of `run` by the rules of its adjoint, by a program made once."""
    key, args = _key(adjoint, run, value), run.problem.args
    if key is None:
        whole: Program = lambda value, args: adjoint.attach(run.at(args), value)
        if not run.backend.is_traced((*value, *args)):
            # The tolerance alone is a symbol, and so must be what is held against it.
            whole = jax.jit(whole)
        return whole(value, args)
    if key not in _programs:
        bare = run.at(())  # arguments are not kept with a program
        program = jax.jit(lambda value, args: adjoint.attach(bare.at(args), value))
        _programs[key] = program, run.problem.functions.program
    _programs.move_to_end(key)
    if len(_programs) > _KEPT:
        _programs.popitem(last=False)
    return _programs[key][0](value, args)


def _key(adjoint: Adjoint, run: Run, value: Vec) -> Any:
    """What a program depends on; None where that cannot be told."""
    if not isinstance(run, SolverRun) or run.backend.communicator is not None:
        return None
    problem, control, tolerance = run.problem, run.control, run.problem.tolerance
    asked = tolerance.rtol, tolerance.atol, tolerance.norm, tolerance.test
    unclear = (run.memory, adjoint.warm_start, control.callback, control.batched_args)
    numbers = all(isinstance(part, (int, float)) for part in asked[:2])
    if not numbers or any(part is not None for part in unclear):
        return None
    if not problem.functions.is_plain:
        return None
    jaxpr, structure = problem.functions.program
    return (
        str(jaxpr),
        structure,
        tuple(map(jax.typeof, (*value, *problem.args))),
        (adjoint, run.solver, problem.is_root, problem.space.batch_ndim),
        (*asked, tolerance.segments, str(tolerance.blocks)),
        (control.max_steps, control.budget, control.record),
        problem.functions.has_residual,
        run.border.structure,
    )
