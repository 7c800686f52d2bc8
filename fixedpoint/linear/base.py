"""What solvers of Newton's type ask of a linear solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.space import Space

Product = Callable[[Vec], Vec]


class LinearSolution(NamedTuple):
    """What a linear solver reached.

    Attributes
    ----------
    value : Vec
        The solution.
    residual_norm : array of the batch's shape
        The norm of what is left of the right-hand side.
    products : int
        Products it took.
    """

    value: Vec
    residual_norm: Array
    products: Any


@dataclass(frozen=True, eq=False)
class LinearSystem:
    """The system A x = b of every sample.

    Parameters
    ----------
    space : Space
        Where x and b lie.
    product : callable
        v ↦ Av.
    rhs : Vec
        b.
    target : array of the batch's shape
        The residual norm to reach.
    precondition : callable or None
        v ↦ Pv, an approximate inverse of A.
    active : array of bool or None
        The samples to solve for; None stands for all.
    enough : array of the batch's shape, or None
        The residual norm from which on a method that would have to restart may as well
        end.
    quotient : callable or None
        v, ‖v‖ ↦ Av, where a product needs both.
    """

    space: Space
    product: Product
    rhs: Vec
    target: Array
    precondition: Product | None = None
    active: Array | None = None
    enough: Array | None = None
    quotient: Callable[[Vec, Array], Vec] | None = None

    def along(self, v: Vec, length: Array | None) -> Vec:
        """The product Av, where ‖v‖ may be known."""
        if self.quotient is None or length is None:
            return self.product(v)
        return self.quotient(v, length)

    def start(self) -> tuple[Vec, Array, Array]:
        """The solution zero, its residual's norm, and the samples that are not done."""
        space = self.space
        norm = space.norm(self.rhs)
        busy = norm > self.target
        if self.active is not None:
            busy = busy & self.active
        return space.zeros(self.rhs), norm, busy

    def run(self, step: Callable[[Any], Any], first: Any, most: int) -> Any:
        """What up to `most` steps lead to, as long as there are samples to solve for.

        ``busy`` and ``steps`` of what a step takes and gives say how far it is.
        """
        backend = self.space.backend
        return backend.while_loop(
            lambda now: backend.any(now.busy) & (now.steps < most), step, first, most
        )

    def solution(self, x: Vec, norm: Array, products: Any) -> LinearSolution:
        """What was reached: zero in the samples that had nothing to do."""
        zero, first, busy = self.start()
        norm = self.space.xp.where(busy, norm, first)
        return LinearSolution(self.space.where(busy, x, zero), norm, products)

    def with_preconditioner(self, second: Any) -> LinearSystem:
        """The system with a second preconditioner, ``applied`` after the first."""

        def precondition(v: Vec) -> Vec:
            product: Vec = second.applied(self.space, self.preconditioned(v))
            return product

        return replace(self, precondition=precondition)

    def preconditioned(self, v: Vec) -> Vec:
        """The product Pv, or v where there is no preconditioner."""
        return v if self.precondition is None else self.precondition(v)


@dataclass(frozen=True, kw_only=True)
class LinearSolver(ABC):
    """Settings of a method for linear systems, of which only products are known."""

    def init(self, space: Space) -> Any:
        """What the method remembers before the first of several similar systems."""
        del space
        return None

    @staticmethod
    def check(given: Any) -> None:
        """Raise TypeError unless `given` is such a method."""
        if not isinstance(given, LinearSolver):
            raise TypeError(
                f"linear must be a linear solver such as GMRES(), got {given!r}"
            )

    @abstractmethod
    def solve(self, system: LinearSystem, memory: Any) -> tuple[LinearSolution, Any]:
        """Solve from zero, each sample to its target; and what to remember then."""
