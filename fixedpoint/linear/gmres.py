"""The generalized minimal residual method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count
from fixedpoint.columns import Columns, products
from fixedpoint.keywords import by_name
from fixedpoint.linear.bare_cycle import DEEP, FALL, FALLEN, KEPT, TIGHT, BareCycle
from fixedpoint.linear.base import LinearSolution, LinearSolver, LinearSystem
from fixedpoint.linear.leads import Corrections, Leads, is_led, leading, led_by
from fixedpoint.matrix import times
from fixedpoint.space import Space

# A second orthogonalization that leaves less than this share of the square was of
# rounding errors alone.
_NEW = 1e-6

# A cycle that leaves more than this of the residual is the last one.
_STAGNATION = 0.99


class _Cycle(NamedTuple):
    """The subspace of a cycle: A P = Q R with orthonormal Q, and the residual b − Ax.

    Without a preconditioner the directions are not kept: those along a residual follow
    from that and from Q.
    """

    directions: Columns | None  # P, with a preconditioner
    basis: Columns  # Q
    triangle: Array  # R
    coefficients: Array  # the products of Q with the first residual
    kinds: Array  # 1/‖r‖ of a direction along r then, −1 of Q's newest one, 0 of a lead
    next: Vec  # what the next direction is along
    unit: Array  # one over its length
    fell: Array  # whether it is the residual
    r: Vec
    norm: Array
    busy: Array
    taken: Array  # directions that were not known before
    size: Any


class _Carry(NamedTuple):
    x: Vec
    r: Vec
    norm: Array
    busy: Array
    taken: Array
    steps: Any  # directions so far, a product each
    leads: Leads | None


class _Image(NamedTuple):
    """What is left of the image of a direction beside the basis."""

    left: Vec
    products: Array  # of the image with the basis
    square: Array  # ‖left‖²
    toward: Array  # ⟨left, r⟩
    size: Array  # the length of the image


@by_name
@dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """Flexible GMRES, preconditioned from the right, restarted and augmented.

    The residual is minimized over the space of the directions pⱼ = P rⱼ, whose images
    are kept orthonormal, A P = Q R: "simpler" GMRES with the adaptive choice of
    directions, which is as stable as Arnoldi's process, knows its true residual at
    every step, and allows the preconditioner to change from one to the next. One pass
    of the classical process of Gram and Schmidt takes all inner products of a step at
    once, and the length of what is left by Pythagoras' theorem: one sum over those who
    share a state. A second one follows where little is left of the vector.

    Of a sequence of similar systems, as in Newton's method, the last solutions lead the
    space: what converges slowly lies in their span, and need not be found again. Each
    costs a product: they are used where the last system took more products than they
    will. After a restart it is the correction of the cycle before that leads.

    Parameters
    ----------
    restart : int, optional
        Directions in a cycle. A vector is kept for each, with a preconditioner two.
    max_steps : int, optional
        Products at most, over all cycles. A complex state counts as its real and
        imaginary parts, and takes twice as many of both.
    augment : int, optional
        Solutions that are kept, clamped to half of `restart` and to the dimension.

    References
    ----------
    Saad and Schultz, "GMRES", SIAM J. Sci. Stat. Comput. 7, 1986. Saad, "A flexible
    inner-outer preconditioned GMRES algorithm", SIAM J. Sci. Comput. 14, 1993. Baker,
    Jessup and Manteuffel, "A technique for accelerating the convergence of restarted
    GMRES", SIAM J. Matrix Anal. Appl. 26, 2005: what leads the space. Jiránek and
    Rozložník, "Adaptive version of Simpler GMRES", Numer. Algorithms 53, 2010. Giraud,
    Langou and Rozložník, "The loss of orthogonality in the Gram-Schmidt
    orthogonalization process", Comput. Math. Appl. 50, 2005: two passes are enough.
    Smoktunowicz, Barlow and Langou, "A note on the error analysis of classical
    Gram-Schmidt", Numer. Math. 105, 2006: lengths by Pythagoras' theorem.
    """

    restart: int = 30
    max_steps: int = 300
    augment: int = 10

    def __post_init__(self) -> None:
        check_count("restart", self.restart, 1)
        check_count("max_steps", self.max_steps, 1)
        check_count("augment", self.augment, 0)

    def init(self, space: Space) -> Corrections | None:
        """No solutions yet."""
        size = min(self.augment, self.restart // 2, space.dimension)
        if not size:
            return None
        return Corrections(Columns.zeros(space, size + 1), 0, space.full(0.0) > 0.0)

    def solve(self, system: LinearSystem, memory: Any) -> tuple[LinearSolution, Any]:
        """Solve from zero."""
        space, parts = system.space, 2 if any(system.space.complex_leaves) else 1
        x, norm, busy = system.start()
        rows = 0 if memory is None else memory.rows(space)
        size = min(parts * self.restart, space.dimension + rows)
        most = parts * self.max_steps
        taken = space.xp.zeros_like(busy, dtype=space.xp.int32)
        leads = None if memory is None else memory.leads(space)
        start = _Carry(x, space.copy(system.rhs), norm, busy, taken, 0, leads)
        end = system.run(partial(_cycled, system, size, most), start, most)
        if memory is not None:
            vectors, wanted = end.leads.vectors, end.taken > rows
            memory = Corrections(vectors, memory.count, wanted).followed(space, end.x)
        return LinearSolution(end.x, end.norm, end.steps), memory


def _cycled(system: LinearSystem, size: int, most: int, carry: _Carry) -> _Carry:
    """The solution after a cycle of `size` directions, and `most` products in all."""
    space, limit = system.space, most - carry.steps
    if space.is_bare and system.precondition is None:
        return _closed(system, carry, _bare(system, carry, size, limit))
    end = space.backend.while_loop(
        lambda c: space.backend.any(c.busy) & (c.size < size) & (c.size < limit),
        partial(_extended, system, carry),
        _opened(space, size, carry, system.precondition is not None),
        size,
    )
    return _closed(system, carry, end)


def _opened(space: Space, size: int, carry: _Carry, keeps: bool) -> _Cycle:
    """A cycle with no direction yet, which `keeps` those it takes or not. The triangle
    is that of the unit matrix where not filled.
    """
    unit = space.ratio(space.one, carry.norm)
    toward, unit = leading(space, carry.leads, 0, carry.r, unit)
    return _Cycle(
        directions=_workspace(space, "directions", size) if keeps else None,
        basis=_workspace(space, "basis", size),
        triangle=space.identity(size),
        coefficients=space.full(0.0, (size,)),
        kinds=space.full(0.0, (size,)),
        next=toward,
        unit=unit,
        fell=carry.norm == carry.norm,
        r=carry.r,
        norm=carry.norm,
        busy=carry.busy,
        taken=carry.taken,
        size=0,
    )


def _workspace(space: Space, name: str, size: int) -> Columns:
    """Room for the vectors of a cycle: the same each time, where it is written to."""
    if not space.backend.writes:
        return Columns.empty(space, size)
    kept = space.workspaces.get(name)
    if kept is None or kept.width(space) != size:
        kept = space.workspaces[name] = Columns.empty(space, size)
    return kept


def _extended(system: LinearSystem, carry: _Carry, cycle: _Cycle) -> _Cycle:
    """The subspace with one more direction, and the residual over it."""
    space, before = system.space, cycle.norm
    led = is_led(carry.leads, cycle.size)
    cycle, p, known = _directed(system, cycle, led)
    image, length, holds = _beside(system, carry, cycle, p, known)
    cycle, q = _added(space, cycle, image, length)
    unknown = cycle.busy if led is False else cycle.busy & ~led
    cycle = cycle._replace(
        busy=cycle.busy & (holds | led) & (cycle.norm > system.target),
        taken=space.select(unknown, cycle.taken + 1, cycle.taken),
    )
    # Next along the residual if that fell, else along the newest vector of the basis.
    fell = (cycle.norm <= FALL * before) | led
    unit = space.select(fell, space.ratio(space.one, cycle.norm), space.one)
    along = space.either(fell, cycle.r, q)
    along, unit = leading(space, carry.leads, cycle.size, along, unit)
    return cycle._replace(next=along, unit=unit, fell=fell)


def _added(
    space: Space, cycle: _Cycle, image: _Image, length: Array
) -> tuple[_Cycle, Vec]:
    """The subspace with an image in its basis, as q, and q."""
    slot, write, unit = cycle.size, space.backend.write, 1.0 / length
    amount = unit * image.toward
    basis, q = cycle.basis.push_scaled(space, slot, unit, image.left)
    r = space.accumulate(cycle.r, -amount, q)
    above = slice(image.products.shape[-1])
    triangle = write(cycle.triangle, (..., above, slot), image.products)
    cycle = cycle._replace(
        basis=basis,
        triangle=write(triangle, (..., slot, slot), length),
        coefficients=write(cycle.coefficients, (..., slot), amount),
        r=r,
        norm=_fallen(space, cycle.norm, amount, r),
        size=slot + 1,
    )
    return cycle, q


def _beside(
    system: LinearSystem, carry: _Carry, cycle: _Cycle, p: Vec, size: Array | None
) -> tuple[_Image, Array, Array]:
    """What is left of the image of a direction beside the basis, its length, and
    whether it is more than the rounding errors of the orthogonalization.

    So much more that the solution, which is divided by it, keeps the residual true.
    Elsewhere nothing is left, of length one.
    """
    space, xp = system.space, system.space.xp
    basis, twice = cycle.basis.first(space, cycle.size), _below(system, carry)
    product = system.along(p, size)
    image = _orthogonalized(space, basis, product, cycle.r, cycle.norm < twice)
    length = xp.sqrt(space.select(image.square > 0.0, image.square, space.zero))
    least = _least(space) * image.size
    holds = cycle.busy & (length > least) & (length < xp.inf)
    if space.backend.known_here(holds):
        return image, length, holds
    products, zero = image.products, space.zero
    image = image._replace(
        left=space.mask(holds, image.left),
        products=xp.where(holds[..., None], products, xp.zeros_like(products)),
        toward=xp.where(holds, image.toward, zero),
    )
    return image, xp.where(holds, length, space.one), holds


def _directed(
    system: LinearSystem, cycle: _Cycle, led: Any
) -> tuple[_Cycle, Vec, Array | None]:
    """The cycle with one more direction, this, and its length if that is known; zero in
    samples that are done.
    """
    space, slot, write = system.space, cycle.size, system.space.backend.write
    length = space.as_coefficient(cycle.busy)
    unit = length * cycle.unit
    p = space.scale(unit, cycle.next)
    if cycle.directions is not None:
        if led is False:
            p = system.preconditioned(p)
        elif not space.backend.known_here(led):
            p = space.where(led, p, system.preconditioned(p))
        if not space.backend.known_here(cycle.busy):
            p = space.mask(cycle.busy, p)
        directions = cycle.directions.push(space, slot, p)
        return cycle._replace(directions=directions), p, None
    kind = space.select(cycle.fell, unit, -length)
    kind = kind if led is False else space.select(led, space.zero, kind)
    kinds = write(cycle.kinds, (..., slot), kind)
    return cycle._replace(kinds=kinds), p, length


def _orthogonalized(
    space: Space, basis: Columns, image: Vec, r: Vec, twice: Array
) -> _Image:
    """An image without its part in the basis, to which r is orthogonal; by two passes
    where one is not enough, or `twice` asks for them.
    """
    xp = space.xp
    square, toward, along = products(space, (image, image), (r, image), (basis, image))
    left = basis.subtracted_from(space, image, along)
    rest = square - xp.sum(along * along, axis=-1)
    again = (rest < KEPT**2 * square) | twice

    def second() -> tuple[Array, ...]:
        nearer, whole, more = products(space, (r, left), (left, left), (basis, left))
        final = basis.subtracted_from(space, left, more)
        rest = whole - xp.sum(more * more, axis=-1)
        rest = space.select(rest > _NEW * whole, rest, space.zero)
        return along + more, rest, nearer, *final

    along, rest, toward, *leaves = space.backend.replaced_where(
        (along, rest, toward, *left), again, second
    )
    return _Image(tuple(leaves), along, rest, toward, xp.sqrt(square))


def _below(system: LinearSystem, carry: _Carry) -> Array:
    """The norm of a residual below which images are orthogonalized twice."""
    space, tight = system.space, system.target < TIGHT * carry.norm
    return space.select(tight, space.infinity, FALLEN * carry.norm)


def _least(space: Space) -> float:
    """What share of an image beside the basis is more than rounding errors."""
    return float(space.precision**0.75)


def _bare(system: LinearSystem, carry: _Carry, size: int, limit: int) -> _Cycle:
    """The whole cycle on the one array of one sample."""
    space, first = system.space, _opened(system.space, size, carry, keeps=False)
    shape, basis, leads = space.shapes[0], first.basis.matrix(), carry.leads
    known = basis[:0]
    if leads is not None and leads.wanted:
        known = leads.vectors.matrix()[leads.first : leads.first + leads.count]
    cycle = BareCycle(
        product=lambda p: system.along((p.reshape(shape),), 1.0)[0].reshape(-1),
        basis=basis,
        triangle=first.triangle,
        coefficients=first.coefficients,
        kinds=first.kinds,
        known=known,
        r=first.r[0].reshape(-1),
        norm=float(first.norm),
        target=float(system.target),
        below=float(_below(system, carry)),
        least=_least(space),
    )
    size = cycle.run(min(size, limit))
    r, taken = (cycle.r.reshape(shape),), first.taken + cycle.taken
    return first._replace(r=r, size=size, taken=taken)


def _fallen(space: Space, norm: Array, amount: Array, r: Vec) -> Array:
    """The norm of r, from which an orthogonal vector of the length `amount` was taken;
    `norm` is what it was.
    """
    xp, square = space.xp, (norm - amount) * (norm + amount)
    deep = square < (DEEP * norm) ** 2
    left = xp.sqrt(space.select(deep, space.one, square))
    renewed = lambda: (space.norm(r),)
    (left,) = space.backend.replaced_where((left,), deep, renewed)
    return left


def _closed(system: LinearSystem, carry: _Carry, cycle: _Cycle) -> _Carry:
    """The solution over the subspace, and which samples need another cycle."""
    space = system.space
    size = cycle.basis.first(space, cycle.size).width(space)
    triangle, rhs = cycle.triangle[..., :size, :size], cycle.coefficients[..., :size]
    y = space.backend.solve(triangle, rhs)
    if cycle.directions is None:
        x = _combined(space, carry, cycle, y)
    else:
        x = cycle.directions.first(space, size).added_to(space, carry.x, y)
    norm, leads = space.norm(cycle.r), carry.leads
    enough = system.target if system.enough is None else system.enough
    busy = carry.busy & (norm > system.target) & (norm > enough)
    busy = busy & (norm < _STAGNATION * carry.norm)
    if leads is not None:
        leads = leads.renewed(space, space.subtract(x, carry.x), busy)
    steps = carry.steps + cycle.size
    return _Carry(x, cycle.r, norm, busy, cycle.taken, steps, leads)


def _combined(space: Space, carry: _Carry, cycle: _Cycle, y: Array) -> Vec:
    """The solution with Σ yⱼpⱼ, of directions that were not kept.

    Those along a residual are pⱼ = rⱼ/‖rⱼ‖, and rⱼ = r + Σ aᵢqᵢ over i ≥ j, where r is
    the residual now and aᵢ = ⟨qᵢ, r₀⟩; others are qⱼ₋₁, or a lead.
    """
    xp, size, leads = space.xp, y.shape[-1], carry.leads
    slots, kinds = xp.arange(size, **space.place), cycle.kinds[..., :size]
    shares = xp.where(kinds > 0.0, y * kinds, space.zero)
    after = xp.where(kinds < 0.0, y, space.zero)
    until = space.as_coefficient(slots[:, None] >= slots)
    following = space.as_coefficient(slots[:, None] + 1 == slots)
    sums = times(space, until, shares)
    weights = cycle.coefficients[..., :size] * sums
    weights = weights + times(space, following, after)
    x = space.axpy(xp.sum(shares, axis=-1), cycle.r, carry.x)
    x = cycle.basis.first(space, size).added_to(space, x, weights)
    return x if leads is None else led_by(space, x, leads, y)
