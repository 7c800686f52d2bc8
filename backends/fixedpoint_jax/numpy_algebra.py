"""The algebra of small solves in NumPy, outside of traces.

An operation of JAX outside of a trace takes several times as long as its arithmetic,
and is compiled the first time, for every shape. Only the user's functions see arrays of
JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from fixedpoint.backend import Vec
from fixedpoint.functions import Bridge
from fixedpoint.iterate import Iteration
from fixedpoint.numpy_backend import NumpyBackend
from fixedpoint.run import Run, SolverRun
from fixedpoint_jax.maps import CapturedTracerError

# Entries of a state beyond which JAX's arithmetic, on all cores, wins.
_LARGEST = 2**18


class _Zeroed(NumpyBackend):
    """NumPy's, for states that a trace may go on with, in which all rows are read."""

    def empty(self, xp: Any) -> Callable[..., Any]:
        """Zeros."""
        make: Callable[..., Any] = xp.zeros
        return make


def iterate(run: Run, value: Vec) -> Iteration:
    """What ``run.iterate`` gives, by NumPy where that is better."""
    known = (*value, *run.problem.args)
    if not isinstance(run, SolverRun) or run.backend.is_traced(known):
        return run.iterate(value)
    if run.backend.communicator is not None or not all(map(_is_plain, value)):
        return run.iterate(value)
    if sum(leaf.size for leaf in value) > _LARGEST:
        return run.iterate(value)
    first = value[0]
    place = first.device if first.committed else None
    bridge = Bridge(_Zeroed(), _there, partial(_back, place))
    end = run.on(bridge, value).iterate(bridge.all_there(value))
    return end.converted(bridge.back_in)


def _is_plain(leaf: Any) -> bool:
    """Whether the dtype is NumPy's, and the array on one device, in main memory."""
    real = leaf.dtype in (np.float32, np.float64)
    return real and len(devices := leaf.devices()) == 1 and _is_cpu(*devices)


def _is_cpu(device: Any) -> bool:
    return bool(device.platform == "cpu")


def _there(leaf: Any) -> Any:
    """An array of JAX as one of NumPy's, which cannot be written to."""
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def _back(place: Any, leaf: Any) -> Any:
    """A NumPy array as one of JAX's, on memory of its own.

    While a program is written, as that of jit, there are none, but symbols.
    """
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return leaf
    array = jax.device_put(np.array(leaf), place)
    if isinstance(array, jax.core.Tracer):
        raise CapturedTracerError
    return array
