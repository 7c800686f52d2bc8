"""What the core asks of Dask."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import dask
import dask.array
import numpy as np

from fixedpoint import tree
from fixedpoint.backend import Backend, Carry, Vec
from fixedpoint.evaluator import Evaluated, Evaluator
from fixedpoint.numpy_backend import NumpyBackend
from fixedpoint_dask.namespace import Namespace

_NUMPY = NumpyBackend()


class DaskBackend(Backend):
    """Dask's lazy arrays, of which no derivatives are known.

    A lazy array is a graph of operations, which run anew whenever a number of it is
    asked for. So what f returns is persisted, once for each evaluation, and what one
    step hands to the next, so that graphs do not grow from step to step. Norms, inner
    products and what follows from them are computed, and are NumPy's.
    """

    writes = False
    layouts: tuple[Any, ...] = ()
    xp = Namespace()

    def holding(self, container: Any, batch_ndim: int) -> DaskBackend:
        """This backend, which keeps the chunks of a state."""
        leaves = tree.flatten(container)[0]
        for leaf in leaves:
            if any(np.isnan(length) for length in leaf.shape):
                raise ValueError(
                    "z0 has chunks of unknown size: call its compute_chunk_sizes()"
                )
        backend = copy(self)
        backend.xp = Namespace(leaves, batch_ndim)
        backend.layouts = tuple([leaf.chunks for leaf in leaves])
        return backend

    def namespace(self, array: Any) -> Any:
        """That of entries and of coefficients."""
        del array
        return self.xp

    def is_array(self, leaf: Any) -> bool:
        """Whether `leaf` is one of Dask's."""
        return isinstance(leaf, dask.array.Array)

    def leaf(self, value: Any) -> Any:
        """Arrays pass; nothing is converted to one."""
        return value

    def outputs(self, container: Any, structure: Any) -> list[Any] | None:
        """The leaves of what an operator returned, persisted."""
        return super().outputs(persisted(container), structure)

    def evaluator(
        self,
        value: Vec,
        unpack: Callable[[Vec], Any],
        packed: Callable[[Any, Vec], Evaluated],
    ) -> Evaluator:
        """What evaluates f once, at a state in the chunks of the start."""
        del value
        chunked = lambda leaves: unpack(tuple(map(_chunked, leaves, self.layouts)))
        return Evaluator(
            chunked, lambda output, leaves: packed(persisted(output), leaves)
        )

    def while_loop(
        self,
        condition: Callable[[Carry], Any],
        body: Callable[[Carry], Carry],
        carry: Carry,
        at_most: Any,
    ) -> Carry:
        """The loop, each carry persisted."""
        return super().while_loop(
            condition, lambda carry: persisted(body(carry)), carry, at_most
        )

    def write(self, array: Any, index: Any, value: Any) -> Any:
        """A new array: the chunks of an old one may be read by others."""
        array = array.copy()
        array[index] = value
        return array

    def products(self, rows: Any, vector: Any, axes: int) -> Any:
        """The inner products with the rows of a history, computed."""
        return dask.compute(super().products(rows, vector, axes))[0]

    def solve(self, matrices: Any, rights: Any) -> Any:
        """The solutions of small linear systems, computed."""
        return _NUMPY.solve(*dask.compute(matrices, rights))

    def singular(self, matrices: Any) -> tuple[Any, Any, Any]:
        """The decompositions of small matrices, computed."""
        return _NUMPY.singular(*dask.compute(matrices))


def _chunked(leaf: Any, chunks: Any) -> Any:
    """A leaf in these chunks, of Dask if it was computed."""
    return dask.array.asarray(leaf).rechunk(chunks)


def persisted(container: Any) -> Any:
    """The container with all of its lazy arrays computed, together, and kept."""
    leaves, structure = tree.flatten(container)
    return structure.rebuild(dask.persist(*leaves))
