"""The stabilised method of biconjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count
from fixedpoint.linear.base import LinearSolution, LinearSolver, LinearSystem


class _Carry(NamedTuple):
    x: Vec
    r: Vec
    p: Vec
    v: Vec
    rho: Array
    alpha: Array
    omega: Array
    norm: Array
    busy: Array
    steps: Any


@dataclass(frozen=True, kw_only=True)
class BiCGStab(LinearSolver):
    """BiCGStab, preconditioned from the right.

    A short recurrence for any Jacobian: seven vectors and two products a step, and nothing to
    orthogonalise. It may break down or stagnate where GMRES would not, which is reported.

    Parameters
    ----------
    max_steps : int, optional
        Steps at most, of two products each.

    References
    ----------
    van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the solution of
    nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 13, 1992.
    """

    max_steps: int = 250

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps, 1)

    def solve(self, system: LinearSystem, memory: Any) -> tuple[LinearSolution, Any]:
        """Solve from zero."""
        space = system.space
        x, norm, busy = system.start()
        one = space.full(1.0)
        first = _Carry(x, system.right, x, x, one, one, one, norm, busy, 0)

        def unfinished(carry: _Carry) -> Any:
            return space.backend.any(carry.busy) & (carry.steps < self.max_steps)

        end = space.backend.while_loop(
            unfinished, lambda c: _step(system, c), first, self.max_steps
        )
        return system.solution(end.x, end.norm, 2 * end.steps), memory


def _step(system: LinearSystem, carry: _Carry) -> _Carry:
    """A step of biconjugate gradients, then one of minimal residual; the shadow residual is b."""
    space, (x, r, p, v, rho, alpha, omega, _, busy, steps) = system.space, carry
    where, zero = space.xp.where, space.full(0.0)
    rho_new = space.dot(system.right, r)
    beta = space.ratio(rho_new, rho) * space.ratio(alpha, omega)
    p = space.axpy(beta, space.axpy(-omega, v, p), r)
    p_hat = system.preconditioned(p)
    v = system.product(p_hat)
    alpha = where(busy, space.ratio(rho_new, space.dot(system.right, v)), zero)
    s = space.axpy(-alpha, v, r)
    s_hat = system.preconditioned(s)
    t = system.product(s_hat)
    omega = where(busy, space.ratio(space.dot(t, s), space.dot(t, t)), zero)
    x = space.axpy(omega, s_hat, space.axpy(alpha, p_hat, x))
    r = space.axpy(-omega, t, s)
    norm = space.norm(r)
    busy = busy & (norm > system.target) & (norm < space.xp.inf) & (alpha != 0.0) & (omega != 0.0)
    return _Carry(x, r, p, v, rho_new, alpha, omega, norm, busy, steps + 1)
