"""The method of conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.linear.base import LinearSolution, LinearSolver, LinearSystem


class _Carry(NamedTuple):
    x: Vec
    r: Vec
    p: Vec
    rz: Array
    norm: Array
    busy: Array
    steps: Any


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(LinearSolver):
    """Conjugate gradients, for Jacobians that are symmetric and positive or negative definite.

    Three vectors and one product a step: where the Jacobian of F is known to be symmetric
    definite (the gradient of a convex function, a discretised elliptic problem), nothing is
    cheaper. On others it may not converge, which is reported.

    Parameters
    ----------
    max_steps : int, optional
        Products at most.

    References
    ----------
    Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. Nat.
    Bur. Standards 49, 1952.
    """

    max_steps: int = 500

    def solve(self, system: LinearSystem) -> LinearSolution:
        """Solve from zero."""
        space = system.space
        x, norm, busy = system.start()
        z = system.preconditioned(system.right)
        first = _Carry(x, system.right, z, space.dot(system.right, z), norm, busy, 0)

        def unfinished(carry: _Carry) -> Any:
            return space.backend.any(carry.busy) & (carry.steps < self.max_steps)

        end = space.backend.while_loop(unfinished, lambda c: _step(system, c), first)
        return LinearSolution(end.x, end.norm, end.steps)


def _step(system: LinearSystem, carry: _Carry) -> _Carry:
    """Minimise along p, and make the next p conjugate to it."""
    space, (x, r, p, rz, _, busy, steps) = system.space, carry
    q = system.product(p)
    length = space.xp.where(busy, space.ratio(rz, space.dot(p, q)), space.xp.zeros_like(rz))
    x, r = space.axpy(length, p, x), space.axpy(-length, q, r)
    z = system.preconditioned(r)
    rz_new, norm_new = space.dot(r, z), space.norm(r)
    p = space.axpy(space.ratio(rz_new, rz), p, z)
    busy = busy & (norm_new > system.target) & (norm_new < space.xp.inf) & (length != 0.0)
    return _Carry(x, r, p, rz_new, norm_new, busy, steps + 1)
