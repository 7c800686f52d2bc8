"""The generalized minimal residual method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count
from fixedpoint.linear.base import LinearSolution, LinearSolver, LinearSystem
from fixedpoint.space import Space

# A direction that is the residual itself is safe as long as the residual falls; where
# it does not, the next direction is the newest basis vector, as in Arnoldi's process.
_FALL = 0.9

# A cycle that leaves more than this of the residual is the last one.
_STAGNATION = 0.99


class _Cycle(NamedTuple):
    """The subspace of a cycle: A P = Q R with orthonormal Q, and the residual b −
    Ax.
    """

    directions: Vec
    basis: Vec
    triangle: Array
    coefficients: Array
    next: Vec
    r: Vec
    norm: Array
    busy: Array
    size: Any


class _Carry(NamedTuple):
    x: Vec
    r: Vec
    norm: Array
    busy: Array
    products: Any


@dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """Flexible GMRES, preconditioned from the right and restarted.

    The residual is minimized over the space of the directions pⱼ = P rⱼ, whose images
    are kept orthonormal, A P = Q R: "simpler" GMRES with the adaptive choice of
    directions, which is as stable as Arnoldi's process, knows its true residual at
    every step, and allows the preconditioner to change from one to the next.

    Parameters
    ----------
    restart : int, optional
        Directions in a cycle, clamped to the dimension; two vectors are kept for each.
    max_steps : int, optional
        Products at most, over all cycles. A complex state counts as its real and
        imaginary parts, and takes twice as many of both.

    References
    ----------
    Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7, 1986. Saad, "A flexible
    inner-outer preconditioned GMRES algorithm", SIAM J. Sci. Comput. 14, 1993. Jiránek
    and Rozložník, "Adaptive version of Simpler GMRES", Numer. Algorithms 53, 2010.
    """

    restart: int = 30
    max_steps: int = 300

    def __post_init__(self) -> None:
        check_count("restart", self.restart, 1)
        check_count("max_steps", self.max_steps, 1)

    def solve(self, system: LinearSystem, memory: Any) -> tuple[LinearSolution, Any]:
        """Solve from zero."""
        space = system.space
        x, norm, busy = system.start()
        parts = 2 if any(space.complex_leaves) else 1
        size, most = min(parts * self.restart, space.dimension), parts * self.max_steps

        def unfinished(carry: _Carry) -> Any:
            return space.backend.any(carry.busy) & (carry.products < most)

        def cycle(carry: _Carry) -> _Carry:
            first = _opened(space, size, carry)
            limit = most - carry.products
            end = space.backend.while_loop(
                lambda c: (
                    space.backend.any(c.busy) & (c.size < size) & (c.size < limit)
                ),
                lambda c: _extended(system, c),
                first,
                size,
            )
            return _closed(system, carry, end)

        start = _Carry(x, system.right, norm, busy, 0)
        end = space.backend.while_loop(unfinished, cycle, start, most)
        return LinearSolution(end.x, end.norm, end.products), memory


def _opened(space: Space, memory: int, carry: _Carry) -> _Cycle:
    """A cycle with no direction yet. The triangle is that of the unit matrix where not
    filled.
    """
    return _Cycle(
        directions=space.empty(memory),
        basis=space.empty(memory),
        triangle=space.identity(memory),
        coefficients=space.full(0.0, (memory,)),
        next=carry.r,
        r=carry.r,
        norm=carry.norm,
        busy=carry.busy,
        size=0,
    )


def _extended(system: LinearSystem, cycle: _Cycle) -> _Cycle:
    """The subspace with one more direction, and the residual over it."""
    space, slot, xp = system.space, cycle.size, system.space.xp
    unit = space.ratio(space.full(1.0), space.norm(cycle.next))
    p = system.preconditioned(space.scale(unit, cycle.next))
    image = system.product(p)
    q, h = space.orthogonalized(space.filled(cycle.basis, slot), image)
    length = space.norm(q)
    # What is left of the image must be more than the rounding errors of the
    # orthogonalization, by so much that the solution, which is divided by it, keeps the
    # residual true.
    least = space.precision**0.75 * space.norm(image)
    holds = cycle.busy & (length > least) & (length < xp.inf)
    zero = space.zeros(p)
    q = space.where(holds, space.scale(space.ratio(space.full(1.0), length), q), zero)
    p = space.where(holds, p, zero)
    amount = space.dot(q, cycle.r)
    r = space.axpy(-amount, q, cycle.r)
    norm = space.norm(r)
    column = xp.where(holds[..., None], h, xp.zeros_like(h))
    above = slice(column.shape[-1])
    triangle = space.backend.write(cycle.triangle, (..., above, slot), column)
    diagonal = xp.where(holds, length, space.full(1.0))
    triangle = space.backend.write(triangle, (..., slot, slot), diagonal)
    return _Cycle(
        directions=space.push(cycle.directions, slot, p),
        basis=space.push(cycle.basis, slot, q),
        triangle=triangle,
        coefficients=space.backend.write(cycle.coefficients, (..., slot), amount),
        next=space.where(norm <= _FALL * cycle.norm, r, q),
        r=r,
        norm=norm,
        busy=holds & (norm > system.target),
        size=slot + 1,
    )


def _closed(system: LinearSystem, carry: _Carry, cycle: _Cycle) -> _Carry:
    """The solution over the subspace, and which samples need another cycle."""
    space = system.space
    directions = space.filled(cycle.directions, cycle.size)
    size = space.rows_of(directions)
    triangle, right = cycle.triangle[..., :size, :size], cycle.coefficients[..., :size]
    x = space.minus_combination(
        carry.x, -space.backend.solve(triangle, right), directions
    )
    busy = (
        carry.busy
        & (cycle.norm > system.target)
        & (cycle.norm < _STAGNATION * carry.norm)
    )
    return _Carry(x, cycle.r, cycle.norm, busy, carry.products + cycle.size)
