"""The stabilized method of biconjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count
from fixedpoint.keywords import by_name
from fixedpoint.linear.base import LinearSolution, LinearSolver, LinearSystem
from fixedpoint.space import Space

# A residual this nearly orthogonal to the shadow residual takes its place.
_ORTHOGONAL = 1e-4

# The least cosine that a step of minimal residual counts with, so that it does not
# stagnate.
_LEAST_COSINE = 0.7

# Rounding errors of the largest residual, by which the recurrence may differ from b −
# Ax.
_DRIFT = 1e3


class _Carry(NamedTuple):
    x: Vec
    r: Vec
    p: Vec
    v: Vec
    shadow: Vec
    rho: Array
    alpha: Array
    omega: Array
    norm: Array
    highest: Array
    busy: Array
    steps: Any
    products: Any


@by_name
@dataclass(frozen=True, kw_only=True)
class BiCGStab(LinearSolver):
    """BiCGStab, preconditioned from the right.

    A short recurrence for any Jacobian: eight vectors and two products a step, and
    nothing to orthogonalize. Where it would break down it begins anew from the
    residual, and its steps of minimal residual are kept from vanishing. Where the
    recurrence of the residual has drifted from b − Ax, that takes its place at the cost
    of a product. It may stagnate where GMRES would not, which is reported.

    Parameters
    ----------
    max_steps : int, optional
        Steps at most, of two products each.

    References
    ----------
    van der Vorst, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the
    solution of nonsymmetric linear systems", SIAM J. Sci. Stat. Comput. 13, 1992.
    """

    max_steps: int = 250

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps, 1)

    def solve(self, system: LinearSystem, memory: Any) -> tuple[LinearSolution, Any]:
        """Solve from zero."""
        space = system.space
        x, norm, busy = system.start()
        one = space.full(1.0)
        first = _Carry(
            x=x,
            r=system.rhs,
            p=x,
            v=x,
            shadow=system.rhs,
            rho=one,
            alpha=one,
            omega=one,
            norm=norm,
            highest=norm,
            busy=busy,
            steps=0,
            products=0,
        )
        end = system.run(partial(_step, system), first, self.max_steps)
        return system.solution(end.x, end.norm, end.products), memory


def _step(system: LinearSystem, carry: _Carry) -> _Carry:
    """A step of biconjugate gradients, then one of minimal residual."""
    space, where, zero = system.space, system.space.xp.where, system.space.zero
    carry = _directed(space, carry)
    p_hat = system.preconditioned(carry.p)
    v = system.product(p_hat)
    alpha = space.ratio(carry.rho, space.dot(carry.shadow, v))
    alpha = where(carry.busy, alpha, zero)
    s = space.axpy(-alpha, v, carry.r)
    s_hat = system.preconditioned(s)
    t = system.product(s_hat)
    omega = where(carry.busy, _minimal(space, s, t), zero)
    x = space.axpy(omega, s_hat, space.axpy(alpha, p_hat, carry.x))
    r = space.axpy(-omega, t, s)
    carry = carry._replace(x=x, r=r, v=v, alpha=alpha, omega=omega)
    return _measured(system, carry)


def _directed(space: Space, carry: _Carry) -> _Carry:
    """The next direction p; the residual, where that is orthogonal to its shadow."""
    where, r, shadow = space.xp.where, carry.r, carry.shadow
    rho, square = space.dots((shadow, r), (shadow, shadow))
    least = _ORTHOGONAL * space.xp.sqrt(square) * carry.norm
    anew = space.xp.abs(rho) <= least
    beta = space.ratio(rho, carry.rho) * space.ratio(carry.alpha, carry.omega)
    beta = where(anew, space.zero, beta)
    return carry._replace(
        p=space.axpy(beta, space.axpy(-carry.omega, carry.v, carry.p), r),
        shadow=space.where(anew, r, shadow),
        rho=where(anew, carry.norm * carry.norm, rho),
    )


def _measured(system: LinearSystem, carry: _Carry) -> _Carry:
    """The norm of the residual, and which samples have more to do."""
    space, norm = system.space, system.space.norm(carry.r)
    moved = (norm < space.xp.inf) & (carry.alpha != 0.0) & (carry.omega != 0.0)
    carry = carry._replace(
        norm=norm,
        highest=space.xp.maximum(carry.highest, norm),
        busy=carry.busy & moved,
        steps=carry.steps + 1,
        products=carry.products + 2,
    )
    carry = _corrected(system, carry)
    return carry._replace(busy=carry.busy & (carry.norm > system.target))


def _corrected(system: LinearSystem, carry: _Carry) -> _Carry:
    """The residual b − Ax, where the recurrence has drifted from it."""
    space, where = system.space, system.space.xp.where
    drift = _DRIFT * space.rounding * carry.highest
    drifted = carry.busy & (carry.norm < drift) & (drift > system.target)

    def renewed() -> Vec:
        left = space.subtract(system.rhs, system.product(carry.x))
        return space.norm(left), *left

    norm, *leaves = space.backend.replaced_where(
        (carry.norm, *carry.r), drifted, renewed, evaluates=True
    )
    r = tuple(leaves)
    return carry._replace(
        r=r,
        shadow=space.where(drifted, r, carry.shadow),
        norm=norm,
        highest=where(drifted, norm, carry.highest),
        alpha=where(drifted, space.zero, carry.alpha),
        products=carry.products + space.backend.counted(1, drifted),
    )


def _minimal(space: Space, s: Vec, t: Vec) -> Array:
    """The ω that minimizes ‖s − ωt‖, but no shorter than if the cosine of their angle
    were 0.7.
    """
    xp, (product, *squares) = space.xp, space.dots((t, s), (s, s), (t, t))
    norm_s, norm_t = map(xp.sqrt, squares)
    full = space.ratio(norm_s, norm_t)
    cosine = space.ratio(product, norm_s * norm_t)
    sign = xp.where(cosine < 0.0, -space.one, space.one)
    return sign * full * xp.maximum(xp.abs(cosine), xp.full_like(cosine, _LEAST_COSINE))
