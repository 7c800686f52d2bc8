"""An array-API namespace of two libraries: entries in Dask, coefficients in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.dask.array as compat
import dask
import dask.array
import numpy as np

# What the core makes of entries by these are coefficients: a number or a few a sample.
_REDUCTIONS = frozenset({"all", "any", "max", "mean", "min", "sum", "vecdot"})

# What the core makes from nothing by these, too.
_COEFFICIENTS = frozenset({"arange", "asarray", "eye", "full"})


class Namespace:
    """Operations on NumPy's arrays are NumPy's, and all others Dask's.

    A step has a hundred operations on coefficients, each of which is a recipe in Dask
    that takes longer to write down than to follow.

    Parameters
    ----------
    leaves : sequence of dask.array.Array
        Those of a state.
    batch_ndim : int
        How many of their axes index samples.
    """

    def __init__(self, leaves: Sequence[Any] = (), batch_ndim: int = 0) -> None:
        self.chunks = {
            _with(leaf.shape, batch_ndim, None): _with(leaf.chunks, batch_ndim, -1)
            for leaf in leaves
        }
        self.batch_ndim = batch_ndim
        self.linalg = _Linalg()

    def __getattr__(self, name: str) -> Any:
        """A function of either library, or a dtype."""
        there = getattr(compat, name)
        if isinstance(there, type) or not callable(there):
            return there
        return _either(getattr(np, name), there, name in _REDUCTIONS)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Room for a history, in the chunks of the state."""
        key = _with(_without(shape, self.batch_ndim), self.batch_ndim, None)
        chunks = self.chunks.get(key, "auto")
        return dask.array.zeros(shape, dtype=dtype, chunks=chunks)

    empty = zeros


for _name in _COEFFICIENTS:
    setattr(Namespace, _name, staticmethod(getattr(np, _name)))


class _Linalg:
    """Linear algebra of small matrices: NumPy's, here."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A function of arrays of either library."""
        function = getattr(np.linalg, name)
        return lambda *args, **settings: function(*dask.compute(*args), **settings)


def _either(
    here: Callable[..., Any], there: Callable[..., Any], reduces: bool
) -> Callable[..., Any]:
    """The function of NumPy, or of Dask where an argument is Dask's."""

    def function(*args: Any, **settings: Any) -> Any:
        if not any(map(_is_lazy, args)):
            return here(*args, **settings)
        found = there(*args, **settings)
        return found.compute() if reduces else found

    return function


def _is_lazy(argument: Any) -> bool:
    """Whether this is an array of Dask's, or a list with one."""
    if isinstance(argument, (list, tuple)):
        return any(map(_is_lazy, argument))
    return isinstance(argument, dask.array.Array)


def _with(axes: tuple[Any, ...], place: int, new: Any) -> tuple[Any, ...]:
    return (*axes[:place], new, *axes[place:])


def _without(axes: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return (*axes[:place], *axes[place + 1 :])
