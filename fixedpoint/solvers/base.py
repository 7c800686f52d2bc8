"""What the loop asks of a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.functions import Bridge
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.space import Difference, Space
from fixedpoint.status import Status


class Step(NamedTuple):
    """What a step of a solver came to.

    Attributes
    ----------
    point : Point
        Where it leads.
    state : object
        What the method remembers then. Its arrays begin with the axes of the batch.
    work : Work
        The evaluations it took.
    failure : array of int or None
        Per sample the :class:`fixedpoint.Status` of a method that gives up, 0 where it
        goes on; None where it does everywhere.
    correction : Vec or None
        What the method would add to the new point next, undamped and without any
        safeguard: its estimate of z* − z there. None where it has none.
    error_factor : array or None
        How many times the size of the correction the error may be, where the method can
        tell better than :func:`fixedpoint.convergence.judge`; not a number where it can
        not.
    is_direct : bool
        Whether the correction accounts for every equation, however small beside the
        others.
    rounding : callable or None
        What rounding errors of the terms of all equations may do to the state, where
        the method can tell.
    """

    point: Point
    state: Any
    work: Work = Work(f=1)
    failure: Array | None = None
    correction: Vec | Difference | None = None
    error_factor: Array | None = None
    is_direct: bool = False
    rounding: Callable[[], Vec] | None = None


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Settings of a method: immutable, hashable, and free of arrays.

    Where a sample does not converge, the iterate of the smallest residual is returned,
    or the last one if :attr:`latest` holds.
    """

    @property
    def compares_values(self) -> bool:
        """Whether steps are judged by the values of an objective, rounded as they
        are.
        """
        return False

    @property
    def latest(self) -> bool:
        """Whether the last iterate counts, as for descent on something else."""
        return False

    @abstractmethod
    def init(self, problem: Problem, point: Point) -> Any:
        """What the method remembers before its first step from `point`."""

    def initial_work(self, state: Any) -> Work:
        """What :meth:`init` took of evaluations and products, to come to `state`."""
        del state
        return Work()

    @abstractmethod
    def step(self, problem: Problem, point: Point, state: Any) -> Step:
        """The next point, and what the method remembers then.

        Samples that are not ``problem.active`` keep their point, and what is remembered
        of them; None stands for all samples.
        """

    def resume(self, space: Space, state: Any, point: Point, fresh: Any) -> Any:
        """What the method remembers of an earlier call, before its first step from
        `point`.

        ``fresh`` is what :meth:`init` gives there.
        """
        del space, point, fresh
        return state

    def across(self, bridge: Bridge) -> Solver:
        """The method, on states of another array library: functions of the user's that
        are among its settings still see arrays of theirs.
        """
        del bridge
        return self

    @property
    def is_plain(self) -> bool:
        """Whether the method iterates the map itself, and converges as that does."""
        return False

    def patience(self, space: Space) -> int:
        """After how many steps without a new smallest residual the method has stalled.

        Accelerated residuals do rise on their way, for tens of steps.
        """
        del space
        return 100

    @property
    def sequence(self) -> tuple[Solver, ...]:
        """The methods to try, one after the other."""
        return (self,)

    @property
    def name(self) -> str:
        """What messages call the method."""
        return type(self).__name__


def unless_zero(space: Space, count: Array) -> Array | None:
    """A count, or None if it is known to be zero."""
    return None if space.backend.known_here(count <= 0) else count


def statuses(space: Space, *failures: tuple[Array, Status]) -> Array | None:
    """Per sample the last of the failures that hold, or 0; None if there are none."""
    xp, masks = space.xp, [mask for mask, _ in failures]
    if space.backend.known_none(reduce(or_, masks)):
        return None
    status = xp.zeros_like(masks[0], dtype=xp.int32)
    for mask, reason in failures:
        status = xp.where(mask, xp.full_like(status, int(reason)), status)
    return status
