"""What the core asks of JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fixedpoint.backend import Array, Backend, Carry, Pullback, Vec
from fixedpoint.iterate import Memory
from fixedpoint.solution import Solution
from fixedpoint.solve import Outcome, Solve
from fixedpoint_jax.derivatives import no_tangent, tangent
from fixedpoint_jax.maps import CapturedTracerError, hoisted, without_tracers

# A solution can be returned from a jitted function.
jax.tree_util.register_dataclass(
    Solution,
    data_fields=[
        field.name
        for field in dataclasses.fields(Solution)
        if field.name not in ("methods", "linearisation")
    ],
    meta_fields=["methods"],
    drop_fields=["linearisation"],
)
jax.tree_util.register_dataclass(Memory, data_fields=["contents"], meta_fields=["solver"])


class JaxBackend(Backend):
    """JAX arrays.

    The loop is Python's where values are known, and ``lax.while_loop`` in a trace.
    """

    differentiates = True

    def namespace(self, array: Array) -> Any:
        """``jax.numpy``, which is an array-API namespace."""
        del array
        return jnp

    def is_array(self, leaf: Any) -> bool:
        """Whether `leaf` is a JAX array or a tracer."""
        return isinstance(leaf, jax.Array)

    def leaf(self, value: Any) -> Any:
        """NumPy arrays and scalars that f returns become JAX arrays."""
        return value if isinstance(value, jax.Array) else super().leaf(value)

    def flatten(self, container: Any) -> tuple[list[Any], Any]:
        """The leaves of a pytree, registered containers included."""
        leaves, definition = jax.tree.flatten(container)
        return leaves, _Structure(definition)

    def is_traced(self, vec: Vec) -> bool:
        """Whether any leaf is a tracer."""
        return any(isinstance(leaf, jax.core.Tracer) for leaf in vec)

    def known_all(self, mask: Array) -> bool:
        """Whether all of `mask` is true; in a trace that is never known."""
        return not self.is_traced((mask,)) and bool(mask.all())

    def known_none(self, mask: Array) -> bool:
        """Whether none of `mask` is true; in a trace that is never known."""
        return not self.is_traced((mask,)) and not bool(mask.any())

    def any(self, mask: Array) -> Any:
        """Whether any of `mask` is true; a symbol in a trace."""
        return mask.any() if self.is_traced((mask,)) else bool(mask.any())

    def write(self, array: Array, index: Any, value: Array) -> Array:
        """A new array: JAX arrays are immutable."""
        return array.at[index].set(value)

    def constant(self, value: float, xp: Any, dtype: Any, place: dict[str, Any]) -> Array:
        """A NumPy array: what JAX makes inside a loop's trace must not outlive it."""
        del xp, place
        return np.asarray(value, dtype=dtype)

    def room(self, xp: Any) -> Callable[..., Array]:
        """Zeros: in a trace all rows are read."""
        make: Callable[..., Array] = xp.zeros
        return make

    def accumulate(self, onto: Array, coefficient: Array, array: Array) -> Array:
        """A new array."""
        return onto + coefficient * array

    def renew(self, onto: Array, coefficient: Array, array: Array) -> Array:
        """A new array."""
        return array + coefficient * onto

    def quiet(self) -> AbstractContextManager[Any]:
        """JAX does not warn of overflow."""
        return nullcontext()

    def linearise(self, f: Callable[[Vec], Vec], value: Vec) -> Callable[[Vec], Vec]:
        """The products v ↦ f′(value)v."""
        product: Callable[[Vec], Vec] = jax.linearize(f, value)[1]
        return product

    def while_loop(
        self, condition: Callable[[Carry], Any], body: Callable[[Carry], Carry], carry: Carry,
        at_most: Any,
    ) -> Carry:  # fmt: skip
        """The loop, in Python or in the trace."""
        if not self.is_traced(tuple(jax.tree.leaves(carry))):
            return super().while_loop(condition, body, carry, at_most)
        return jax.lax.while_loop(condition, body, jax.tree.map(jnp.asarray, carry))

    def vjp(self, f: Callable[..., Any], *primals: Any) -> tuple[Any, Pullback]:
        """The value of f and its pullback."""
        return jax.vjp(f, *primals)

    def attach(self, solve: Solve, value: Vec, args: Vec) -> Outcome:
        """Run `solve`; in a trace, or where f holds tracers, by the rules of its adjoint."""
        if not self.is_traced((*value, *args)):
            try:
                return dataclasses.replace(solve, map=without_tracers(solve.map)).run(value, args)
            except CapturedTracerError:
                pass  # f is evaluated once more, in a trace of its own
        solve, args = hoisted(solve, value, args)
        return solve.adjoint.attach(solve, value, args)

    def implicit(self, solve: Solve, value: Vec, args: Vec) -> Outcome:
        """Run `solve`, with a derivative that is the solution of a linear system."""

        @jax.custom_jvp
        def run(value: Vec, args: Vec) -> Outcome:
            return solve.run(value, args)

        @run.defjvp
        def rule(primals: Any, tangents: Any) -> Any:
            outcome = run(*primals)
            u = tangent(solve, outcome, primals[1], tangents[1])
            return outcome, jax.tree.map(no_tangent, outcome)._replace(value=u)

        return run(value, args)

    def recording(self, checkpoint: int | None) -> Backend:
        """The backend whose loops are scans."""
        return RecordingBackend(checkpoint)

    def stop(self, vec: Vec) -> Vec:
        """The same arrays, constant to derivatives."""
        stopped: Vec = jax.lax.stop_gradient(vec)
        return stopped


class RecordingBackend(JaxBackend):
    """JAX, where loops have a fixed number of turns, which reverse mode asks for.

    Parameters
    ----------
    checkpoint : int or None
        Turns of a loop between two carries that are kept.
    """

    def __init__(self, checkpoint: int | None) -> None:
        self.checkpoint = checkpoint

    def while_loop(
        self, condition: Callable[[Carry], Any], body: Callable[[Carry], Carry], carry: Carry,
        at_most: Any,
    ) -> Carry:  # fmt: skip
        """A scan, whose turns are empty once `condition` no longer holds."""

        def turn(carry: Carry, _: None) -> tuple[Carry, None]:
            return jax.lax.cond(condition(carry), body, lambda same: same, carry), None

        def segment(carry: Carry, _: None) -> tuple[Carry, None]:
            return jax.lax.scan(turn, carry, length=self.checkpoint)[0], None

        carry = jax.tree.map(jnp.asarray, carry)
        if self.checkpoint is None:
            return jax.lax.scan(turn, carry, length=at_most)[0]
        segments = -(-at_most // self.checkpoint)
        return jax.lax.scan(jax.checkpoint(segment), carry, length=segments)[0]


@dataclasses.dataclass(frozen=True)
class _Structure:
    """A pytree's structure, with the method that the core calls."""

    definition: Any

    def rebuild(self, leaves: Any) -> Any:
        """Put the leaves back."""
        return jax.tree.unflatten(self.definition, leaves)
