"""What one turn of the loop hands to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.convergence import Evidence
from fixedpoint.point import Point, choose
from fixedpoint.solution import Status, Trace, Work
from fixedpoint.space import Space

RUNNING = int(Status.RUNNING)  # array-API namespaces compare with plain integers alone

# Steps that a trace has room for at first.
COLUMNS = 32


class Best(NamedTuple):
    """What would be returned now, and which solver found it.

    Attributes
    ----------
    value : Vec
        The iterate that satisfied the test, or the one of the smallest residual, or the
        last.
    residual_norm, error : array
        Its residual norm, and the estimate of its error.
    method : array of int
        The solver that found it.
    """

    value: Vec
    residual_norm: Array
    error: Array
    method: Array

    def renewed(
        self, space: Space, better: Array, point: Point, error: Array, method: int
    ) -> Best:
        """The best iterates, copied only where some samples are better and others are
        not.
        """
        if space.backend.known_here(~better):
            return self
        found = self.method * 0 + method
        new = Best(point.value, point.residual_norm, error, found)
        every = space.backend.known_here(better)
        return new if every else choose(space, better, new, self)


class Carry(NamedTuple):
    """What one turn of the loop hands to the next.

    Attributes
    ----------
    point : Point
        Where the iteration stands.
    best : Best
        What would be returned now.
    status, steps, improved : array of int of the batch's shape
        How each sample stands, when it stopped, and when its residual last fell.
    lowest, reference : array of the batch's shape
        The smallest residual norms of the steps that are watched now, and of those
        before.
    precise : array of bool of the batch's shape
        Whether the sample ended because its arithmetic cannot do better.
    evidence : Evidence
        What the steps told of the error.
    work : Work
        Evaluations so far.
    state
        What the solver remembers.
    active : array of bool or None
        The samples that still run; None if all are known to.
    running : bool
        Whether any does.
    step, all_improved : int
        Turns so far, and the last one after which every sample stood at its best
        iterate.
    trace : Trace or None
        What is recorded.
    """

    point: Point
    best: Best
    status: Array
    steps: Array
    improved: Array
    lowest: Array
    reference: Array
    precise: Array
    evidence: Evidence
    work: Work
    state: Any = ()
    active: Array | None = None
    running: Any = True
    step: Any = 0
    all_improved: Any = 0
    trace: Trace | None = None


def marked(xp: Any, status: Array, mask: Array, as_: Status) -> Array:
    """The status, `as_` in the samples of `mask`."""
    return xp.where(mask, xp.full_like(status, int(as_)), status)


def live(mask: Array, active: Array | None) -> Array:
    """The samples of `mask` that still run."""
    return mask if active is None else mask & active


def ends_alone(space: Space, status: Array) -> bool:
    """Whether this is one sample in a trace: there is no turn in which it has ended."""
    backend, is_one = space.backend, not space.batch_shape
    return is_one and backend.communicator is None and backend.is_traced((status,))


def sifted(space: Space, carry: Carry) -> Carry:
    """Find the samples that still run."""
    active = carry.status == RUNNING
    if ends_alone(space, active):
        return carry._replace(active=None, running=active)
    every = space.backend.known_all(active)
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
