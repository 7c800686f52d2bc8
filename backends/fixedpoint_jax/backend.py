"""What the core asks of JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fixedpoint.backend import Array, Backend, Carry, Pullback, Vec
from fixedpoint.control import Memory
from fixedpoint.recording import Recorded
from fixedpoint.solution import Solution
from fixedpoint_jax import axes
from fixedpoint_jax.autodiff import JaxAutodiff
from fixedpoint_jax.derivatives import linearized
from fixedpoint_jax.elimination import gauss_jordan_in_loop
from fixedpoint_jax.indexing import contracted, entries, written
from fixedpoint_jax.mapping import all_mapped, any_mapped

# Unknowns up to which a trace eliminates by a loop of its own: the library's
# factorization takes longer to compile than all the rest of a solve.
_ELIMINATED = 32

_RECORDED = Recorded(jnp)

# What of a solution a trace keeps. Of its map it keeps nothing; the names of methods
# are static.
_FIELDS = tuple(
    field.name
    for field in dataclasses.fields(Solution)
    if field.name not in ("methods", "linearization")
)


def _flattened(solution: Solution[Any]) -> tuple[Any, Any]:
    """The arrays, and what is static."""
    keyed = [
        (jax.tree_util.GetAttrKey(name), getattr(solution, name)) for name in _FIELDS
    ]
    return keyed, solution.methods


def _unflattened(methods: Any, leaves: Any) -> Solution[Any]:
    return Solution(**dict(zip(_FIELDS, leaves, strict=True)), methods=methods)


# A solution can be returned from a jitted function, and what a solver remembers be
# passed to it.
jax.tree_util.register_pytree_with_keys(Solution, _flattened, _unflattened)
jax.tree_util.register_dataclass(
    Memory, data_fields=["contents"], meta_fields=["solver"]
)


class JaxBackend(Backend):
    """JAX arrays.

    The loop is Python's where values are known, and ``lax.while_loop`` in a trace.
    """

    differentiates = True
    autodiff = JaxAutodiff()
    writes = False
    compiles = True

    def namespace(self, array: Array) -> Any:
        """``jax.numpy``, which is an array-API namespace."""
        del array
        return jnp

    def is_array(self, leaf: Any) -> bool:
        """Whether `leaf` is a JAX array or a tracer."""
        return isinstance(leaf, jax.Array)

    def device(self, array: Array) -> Any:
        """The device of an array that lies on one; else the compiler decides."""
        device = getattr(array, "device", None)
        spread = (
            isinstance(device, jax.sharding.Sharding) and len(device.device_set) > 1
        )
        return None if spread else device

    def leaf(self, value: Any) -> Any:
        """NumPy arrays and scalars that f returns become JAX arrays."""
        return value if isinstance(value, jax.Array) else super().leaf(value)

    def flatten(self, container: Any) -> tuple[list[Any], Any]:
        """The leaves of a pytree, registered containers included."""
        leaves, definition = jax.tree.flatten(container)
        return leaves, _Structure(definition)

    def paths(self, container: Any, prefix: str) -> list[str]:
        """A name for each leaf of a pytree."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(container)
        return [prefix + jax.tree_util.keystr(path) for path, _ in leaves]

    def is_traced(self, vec: Vec) -> bool:
        """Whether any leaf is a tracer."""
        return any(isinstance(leaf, jax.core.Tracer) for leaf in vec)

    def is_compiled(self, f: Callable[..., Any], arrays: Vec) -> bool:
        """Whether there are tracers among the arrays, or in the closure of f."""
        return self.is_traced((*arrays, *jax.tree.leaves(_captured(f))))

    def is_readable(self, mask: Array) -> bool:
        """Whether `mask` is no symbol of a trace."""
        return not self.is_traced((mask,))

    def known_here(self, mask: Array) -> bool:
        """Whether `mask` is no symbol, and all of it true."""
        return self.is_readable(mask) and bool(mask.all())

    def replaced_where(
        self,
        arrays: tuple[Array, ...],
        mask: Array,
        function: Callable[[], tuple[Array, ...]],
        evaluates: bool = False,
    ) -> tuple[Array, ...]:
        """The arrays, with those of `function`, if it must run, where `mask` holds."""
        amend = partial(super().replaced_where, evaluates=evaluates)
        if not self.is_traced((mask,)):
            return amend(arrays, mask, function)
        arrays = axes.settled(lambda arrays: amend(arrays, mask, function), arrays)
        some = self.agreed(any_mapped(mask))
        replaced_where: tuple[Array, ...] = jax.lax.cond(
            some, lambda: amend(arrays, mask, function), lambda: arrays
        )
        return replaced_where

    def any(self, mask: Array) -> Any:
        """Whether any of `mask` is true; a symbol in a trace."""
        return self.agreed(mask.any() if self.is_traced((mask,)) else bool(mask.any()))

    def counted(self, number: int, mask: Array) -> Any:
        """`number` if any of `mask` is true, else none; a symbol in a trace."""
        if self.is_traced((mask,)):
            return jnp.where(self.any(mask), number, 0)
        return super().counted(number, mask)

    def write(self, array: Array, index: Any, value: Array) -> Array:
        """A new array, by the update of a slice: a scatter takes long to compile."""
        return written(array, index, value)

    def read(self, array: Array, index: Any) -> Array:
        """The entries at `index`, by a slice rather than a gather."""
        return entries(array, index)

    def constant(
        self, value: float, xp: Any, dtype: Any, place: dict[str, Any]
    ) -> Array:
        """A NumPy array: what JAX makes inside a loop's trace must not outlive it."""
        del xp, place
        return np.asarray(value, dtype=dtype)

    def solve(self, matrices: Array, rights: Array) -> Array:
        """The solutions of small linear systems, not finite where singular."""
        if self.is_traced((matrices, rights)) and rights.shape[-1] <= _ELIMINATED:
            return gauss_jordan_in_loop(matrices, rights)
        return jnp.linalg.solve(matrices, rights[..., None])[..., 0]

    def solve_definite(self, matrices: Array, rights: Array) -> Array:
        """The same, where matrices are symmetric and positive definite."""
        if self.is_traced((matrices, rights)) and rights.shape[-1] <= _ELIMINATED:
            return gauss_jordan_in_loop(matrices, rights, is_definite=True)
        return self.solve(matrices, rights)

    def mapped(self, function: Callable[[Array], Array], rows: Array) -> Array:
        """The columns, in a trace by a loop: a program does not grow with n."""
        if not self.is_traced((rows,)):
            return super().mapped(function, rows)
        return jnp.moveaxis(jax.lax.map(function, jnp.moveaxis(rows, -2, 0)), 0, -1)

    def sparse(self, matrix: Any) -> Any:
        """A ``jax.experimental.sparse.BCOO`` as a SciPy matrix, outside of traces."""
        if type(matrix).__name__ != "BCOO":  # the module takes long to import
            return matrix
        if matrix.n_batch or self.is_traced((matrix.data,)):
            return matrix
        from scipy.sparse import coo_array  # noqa: PLC0415  JAX needs it, and this seldom

        entries, indices = np.asarray(matrix.data), np.asarray(matrix.indices)
        inside = (indices < np.asarray(matrix.shape)).all(-1)  # the rest is padding
        return coo_array((entries[inside], indices[inside].T), matrix.shape)

    def empty(self, xp: Any) -> Callable[..., Array]:
        """Zeros: in a trace all rows are read."""
        make: Callable[..., Array] = xp.zeros
        return make

    def is_whole(self, leaf: Array) -> bool:
        """Whether all of the leaf is on one device; in a trace the compiler may spread
        it, and gathers what is small.
        """
        device = getattr(leaf, "device", None)
        if isinstance(device, jax.sharding.Sharding) and len(device.device_set) > 1:
            return False
        return super().is_whole(leaf)

    def unbound(self, array: Array, axis: int) -> Sequence[Array]:
        """Slices of an array, one for each index of an axis.

        In a trace their places are hidden from the compiler, which would compile each
        of the slices, and what is calculated from it, by itself.
        """
        count = array.shape[axis]
        if not self.is_traced((array,)):
            take = partial(jax.lax.index_in_dim, array, axis=axis, keepdims=False)
            return [take(k) for k in range(count)]
        places: Any = tuple(map(np.int32, range(count)))
        places = jax.lax.optimization_barrier(places)  # type: ignore[no-untyped-call]
        take = partial(jax.lax.dynamic_index_in_dim, array, axis=axis, keepdims=False)
        return list(map(take, places))

    def segment_sums(self, array: Array, sizes: Sequence[int]) -> Array:
        """The sum of each segment of the last axis."""
        index = np.repeat(np.arange(len(sizes)), sizes)
        onto = jnp.zeros((*array.shape[:-1], len(sizes)), array.dtype).at[..., index]
        return onto.add(array, indices_are_sorted=True)

    # One contraction over all axes: with one axis for all, an array that is spread over
    # devices would have to be gathered first.

    def inner(self, a: Array, b: Array, axes: int) -> Array:
        """The inner product over the last axes."""
        return contracted(a.conj(), b, a.ndim - axes, 0)

    def products(self, rows: Array, vector: Array, axes: int) -> Array:
        """The inner products with the rows of a history."""
        return contracted(rows, vector.conj(), vector.ndim - axes, 1)

    def minus_combination(
        self, onto: Array, weights: Array, rows: Array, axes: int
    ) -> Array:
        """The array less a combination of the rows of a history."""
        batch = tuple(range(onto.ndim - axes))
        memory = ((len(batch),), (len(batch),))
        return onto - jax.lax.dot_general(weights, rows, (memory, (batch, batch)))

    def conform(self, leaf: Array, like: Array) -> Array:
        """`leaf`; a NumPy array of integers in the dtype of the state."""
        return leaf if isinstance(leaf, jax.Array) else super().conform(leaf, like)

    def report(self, function: Callable[..., Any], *arrays: Array) -> None:
        """Call `function` when the computation comes by."""
        jax.debug.callback(function, *arrays)

    def quiet(self) -> AbstractContextManager[Any]:
        """JAX does not warn of overflow."""
        return nullcontext()

    def unrecorded(self, inputs: Vec) -> AbstractContextManager[Any]:
        """Outside of a trace JAX records nothing."""
        if self.is_traced(inputs):
            raise TypeError(
                "inside a trace of JAX steps cannot be asked for one by one: use "
                "fixed_point, with max_steps="
            )
        return nullcontext()

    def linearize(self, f: Callable[[Vec], Vec], value: Vec) -> Callable[[Vec], Vec]:
        """The products v ↦ f′(value)v."""
        return linearized(f, value)

    def while_loop(
        self,
        condition: Callable[[Carry], Any],
        body: Callable[[Carry], Carry],
        carry: Carry,
        at_most: Any,
    ) -> Carry:
        """The loop, in Python or in the trace."""
        leaves, structure = jax.tree.flatten(carry)
        if not self.is_traced(tuple(leaves)):
            return super().while_loop(condition, body, carry, at_most)
        leaves = all_mapped(tuple(map(jnp.asarray, leaves)))
        carry = axes.settled(body, jax.tree.unflatten(structure, leaves))
        return jax.lax.while_loop(condition, body, carry)

    def vjp(self, f: Callable[..., Any], *primals: Any) -> tuple[Any, Pullback]:
        """The value of f and its pullback."""
        return jax.vjp(f, *primals)

    def recording(self, checkpoint: int | None) -> Backend:
        """The backend whose loops are scans."""
        return RecordingBackend(checkpoint).among(self.communicator)

    def numpy(self, array: Array) -> Any:
        """`array` in NumPy, for printing, without the tangent that it may carry."""
        return np.asarray(jax.lax.stop_gradient(array))

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

    records = True

    def __init__(self, checkpoint: int | None) -> None:
        self.checkpoint = checkpoint

    def namespace(self, array: Array) -> Any:
        """That of JAX, with derivatives that are finite."""
        del array
        return _RECORDED

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """In a trace of its own: outside, some values would be known and others not."""
        return jax.jit(function)(*args)

    def decisive(self, known: Any) -> Any:
        """Constants: old releases have the transpose of a condition make a cotangent,
        if only of zeros, for each of its outputs.
        """
        return jax.lax.stop_gradient(known)

    def while_loop(
        self,
        condition: Callable[[Carry], Any],
        body: Callable[[Carry], Carry],
        carry: Carry,
        at_most: Any,
    ) -> Carry:
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


def _captured(f: Callable[..., Any]) -> list[Any]:
    """What a function has in its closure."""
    captured = []
    for cell in getattr(f, "__closure__", None) or ():
        with suppress(ValueError):  # nothing yet
            captured.append(cell.cell_contents)
    return captured


@dataclasses.dataclass(frozen=True)
class _Structure:
    """A pytree's structure, with the method that the core calls."""

    definition: Any

    def match(self, container: Any) -> list[Any] | None:
        """The leaves of a container if it has this structure, else None."""
        leaves, definition = jax.tree.flatten(container)
        return leaves if definition == self.definition else None

    def rebuild(self, leaves: Any) -> Any:
        """Put the leaves back."""
        return jax.tree.unflatten(self.definition, leaves)
