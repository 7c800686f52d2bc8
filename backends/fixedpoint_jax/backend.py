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
        self, condition: Callable[[Carry], Any], body: Callable[[Carry], Carry], carry: Carry
    ) -> Carry:
        """The loop, in Python or in the trace."""
        if not self.is_traced(tuple(jax.tree.leaves(carry))):
            return super().while_loop(condition, body, carry)
        return jax.lax.while_loop(condition, body, jax.tree.map(jnp.asarray, carry))

    def vjp(self, f: Callable[..., Any], *primals: Any) -> tuple[Any, Pullback]:
        """The value of f and its pullback."""
        return jax.vjp(f, *primals)

    def attach(self, solve: Solve, value: Vec, args: Vec) -> Outcome:
        """Run `solve`; a derivative of it is refused."""

        @jax.custom_jvp
        def run(value: Vec, args: Vec) -> Outcome:
            return solve.run(value, args)

        @run.defjvp
        def refuse(primals: Any, tangents: Any) -> Any:
            del primals, tangents
            raise TypeError(
                "solutions on JAX arrays have no derivatives yet: apply jax.lax.stop_gradient to "
                "z0 and args, or solve on Torch tensors"
            )

        return run(value, args)


@dataclasses.dataclass(frozen=True)
class _Structure:
    """A pytree's structure, with the method that the core calls."""

    definition: Any

    def rebuild(self, leaves: Any) -> Any:
        """Put the leaves back."""
        return jax.tree.unflatten(self.definition, leaves)
