"""What one turn of the loop hands to the next, and the samples that leave it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fixedpoint import tree
from fixedpoint.backend import Array, Vec
from fixedpoint.evidence import Evidence
from fixedpoint.point import Point, choose
from fixedpoint.solution import Trace, Work
from fixedpoint.space import Space
from fixedpoint.status import Status

RUNNING = int(Status.RUNNING)  # array-API namespaces compare with plain integers alone

# Steps that a trace has room for at first.
COLUMNS = 32


class Best(NamedTuple):
    """What would be returned now, and which solver found it."""

    # What satisfied the test, or has the smallest residual, or came last.
    value: Vec
    residual_norm: Array
    error: Array  # as estimated
    method: Array  # the place of the solver that found it

    def renewed(
        self, space: Space, better: Array, point: Point, error: Array, method: int
    ) -> Best:
        """The best iterates: copied only where some samples, not all, are better."""
        if space.backend.known_here(~better):
            return self
        found = self.method * 0 + method
        new = Best(point.value, point.residual_norm, error, found)
        every = space.backend.known_here(better)
        return new if every else choose(space, better, new, self)


class Carry(NamedTuple):
    """What one turn of the loop hands to the next."""

    point: Point  # where the iteration stands
    best: Best
    status: Array
    steps: Array  # when each sample ended
    improved: Array  # the step at which its residual was last smaller than before
    lowest: Array  # the smallest residual norm of the window of steps that runs now
    reference: Array  # the last residual norm of the window before
    precise: Array  # whether the sample ended at the limit of its arithmetic
    coupled: Array  # whether f gave something else there after the sample had ended
    evidence: Evidence  # what the steps told of the error
    work: Work
    state: Any = ()  # what the solver remembers
    active: Array | None = None  # who still runs; None where all are known to
    running: Any = True  # whether any does
    step: Any = 0  # turns so far
    all_improved: Any = 0  # the last turn after which every sample stood at its best
    trace: Trace | None = None

    def live(self, mask: Array) -> Array:
        """The samples of `mask` that still run."""
        return mask if self.active is None else mask & self.active


def marked(xp: Any, status: Array, mask: Array, as_: Status) -> Array:
    """The status, `as_` in the samples of `mask`."""
    return xp.where(mask, xp.full_like(status, int(as_)), status)


def ends_alone(space: Space, status: Array) -> bool:
    """Whether this is one sample in a trace: a turn never finds that it has ended."""
    backend, is_one = space.backend, not space.batch_shape
    return is_one and backend.communicator is None and backend.is_traced((status,))


def sifted(space: Space, carry: Carry) -> Carry:
    """Find the samples that still run."""
    active = carry.status == RUNNING
    if ends_alone(space, active):
        return carry._replace(active=None, running=active)
    is_empty = 0 in space.batch_shape and space.backend.communicator is None
    # Of a batch that some have left, all run again too seldom to ask for that.
    asked = not is_empty and carry.active is None
    every = asked and space.backend.known_all(active)
    running = every or space.backend.any(active)
    return carry._replace(active=None if every else active, running=running)


def recorded(space: Space, carry: Carry) -> Carry:
    """Write down where the iteration stands."""
    trace = carry.trace
    if trace is None:
        return carry
    columns = trace.residual_norm.shape[-1]
    if isinstance(carry.step, int) and carry.step >= columns:
        trace = widened(space, trace, 2 * columns)
    write, index = space.backend.write, (..., carry.step)
    norms = write(trace.residual_norm, index, carry.point.residual_norm)
    work = space.full(0.0) + sum(carry.work)
    return carry._replace(trace=Trace(norms, write(trace.evaluations, index, work)))


def blank(space: Space, columns: int) -> Trace:
    """Nothing recorded yet."""
    return Trace(*(space.full(float("nan"), (columns,)) for _ in range(2)))


def widened(space: Space, trace: Trace, columns: int) -> Trace:
    """`trace` with room for more steps."""
    more = columns - trace.residual_norm.shape[-1]
    pairs = zip(trace, blank(space, more), strict=True)
    return Trace(*(space.xp.concat(pair, axis=-1) for pair in pairs))


def shortened(trace: Trace | None, steps: Any) -> Trace | None:
    """A trace that ends with the last step, where that is known."""
    if trace is None or not isinstance(steps, int):
        return trace
    return Trace(*(column[..., : steps + 1] for column in trace))


def taken_rows(space: Space, carry: Any, rows: Array) -> Any:
    """The `rows` of all arrays of `carry`, whose first axis is that of the batch."""
    leaves, structure = tree.flatten(carry)
    xp, is_batched = space.xp, [_is_batched(space, leaf) for leaf in leaves]
    pairs = zip(leaves, is_batched, strict=True)
    return structure.rebuild([xp.take(a, rows, axis=0) if b else a for a, b in pairs])


def put_rows(space: Space, carry: Carry, rows: Array, few: Carry) -> Carry:
    """`few` in the `rows` of `carry`."""
    if carry.trace is not None and few.trace is not None:
        columns = few.trace.residual_norm.shape[-1]
        carry = carry._replace(trace=widened(space, carry.trace, columns))
    xp, length = space.xp, carry.status.shape[0]
    places = np.arange(length)
    places[space.backend.numpy(rows)] = length + np.arange(rows.shape[0])
    source = xp.asarray(places, **space.place)

    def merged(full: Any, part: Any) -> Any:
        if part is None:  # known to be nothing of interest in the rows, or in all
            return full
        if not _is_batched(space, part):
            return part
        if full is None:
            full = xp.zeros((length, *part.shape[1:]), dtype=part.dtype)
        return xp.take(xp.concat([full, part]), source, axis=0)

    all_run = carry._replace(active=None), few._replace(active=None)
    whole: Carry = tree.paired(merged, *all_run)
    return whole


def _is_batched(space: Space, leaf: Any) -> bool:
    return space.backend.is_array(leaf) and leaf.ndim > 0
