"""How JAX attaches derivatives to a solution."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import zero_from_primal

from fixedpoint.adjoints.base import Adjoint, Autodiff, LinearAdjoint
from fixedpoint.backend import Vec
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint_jax import meshes, numpy_algebra, programs
from fixedpoint_jax.derivatives import tangent
from fixedpoint_jax.maps import CapturedTracerError, hoisted, is_staged, without_tracers


class JaxAutodiff(Autodiff):
    """A custom rule, in a trace; else a run by itself."""

    def attach(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, by the adjoint's rules in a trace or where f holds tracers."""
        functions, backend, args = run.problem.functions, run.backend, run.problem.args
        asked = run.problem.tolerance.rtol, run.problem.tolerance.atol
        traced = backend.is_traced((*value, *args, *asked))
        if meshes.is_explicit((*value, *args)):
            attach = lambda value, args: self.attach(adjoint, run.at(args), value)
            ndim = run.problem.space.batch_ndim
            solved: Any = lambda value, args: meshes.solved(ndim, value, args, attach)
            return (jax.jit(solved) if traced else solved)(value, args)  # type: ignore[no-any-return]
        if not traced:
            try:
                known = run.with_functions(at=without_tracers(functions.at))
                return numpy_algebra.iterate(known, value)
            except CapturedTracerError:
                pass  # f is evaluated once more, in a trace of its own
        run, value = hoisted(run, value)
        with _promoting():
            if any(map(is_staged, (*value, *run.problem.args))):
                return adjoint.attach(run, value)
            return programs.attach(adjoint, run, value)

    def implicit(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, its derivative that of a linear system."""
        args, run = run.problem.args, run.at(())  # the rules outlive a trace

        @jax.custom_jvp
        def solved(value: Vec, args: Vec) -> Iteration:
            # Differentiated outside of jit, a number of Python comes as it is.
            return run.at(args).iterate(tuple(map(jnp.asarray, value)))

        @solved.defjvp
        def rule(primals: Any, tangents: Any) -> Any:
            assert isinstance(adjoint, LinearAdjoint)
            end = solved(*primals)
            with _promoting():
                u = tangent(adjoint, run.at(primals[1]), end, tangents[1])
            return end, jax.tree.map(zero_from_primal, end)._replace(value=u)

        return solved(value, args)


def _promoting() -> ExitStack:
    """A context in which ranks and dtypes are promoted, whatever the caller forbids.

    A caller's own map is a program already, and was traced as the caller wished.
    """
    stack = ExitStack()
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    return stack
