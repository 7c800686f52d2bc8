"""Chandrupatla's method for brackets, each entry of an array by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint.adjoints.base import LinearAdjoint
from fixedpoint.adjoints.system import AdjointSystem
from fixedpoint.backend import Array, Vec
from fixedpoint.carry import blank, marked, shortened
from fixedpoint.failure import Policy
from fixedpoint.functions import Mapped
from fixedpoint.interval import Bracket, Ends, chosen, least, ratio
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint.solution import Trace, Work
from fixedpoint.space import Space
from fixedpoint.status import Status

# Halving the interval brings a root near zero closer by one binary digit a step, and
# never there. A bracket that has not become narrow after this many steps is therefore
# cut at zero, and from then on halved on a logarithmic scale as long as one end is more
# than four times the other: eleven times at most, and ten from 1 to 1e-300.
_PLAIN_STEPS = 8

# An end that is moved outwards goes so many times as far, and the next time so many
# times farther; where F is not defined the square root of that, until it is hardly any
# farther.
_REACH, _NEAR = 4.0, 1.001


class Opening(NamedTuple):
    """The brackets when the signs at their ends first differed."""

    half_width: Array
    smaller: Array  # the smaller |F| at the ends, zero where both are infinite

    @classmethod
    def of(cls, xp: Any, bracket: Bracket) -> Opening:
        """That of `bracket`."""
        smaller = xp.abs(bracket.best_first(xp).f1)
        finite = xp.isfinite(smaller)
        smaller = xp.where(finite, smaller, xp.zeros_like(smaller))
        return cls(bracket.half_width, smaller)


class Search(NamedTuple):
    """What one step hands to the next."""

    bracket: Bracket
    opening: Opening
    # Whether there is a bracket. A compiler that evaluates F twice may find it zero
    # only once: what was found is kept.
    found: Array
    # The mean of |F| at the ends of the last bracket that was wide; if it was infinite
    # in all of these, that of the first where it is not, and infinite so long. Zero
    # where no bracket was wide.
    reference: Array
    # Where a bracket is sought: how many times farther than the last one the next end
    # is tried.
    reach: Array
    status: Array
    steps: Array
    step: Any
    running: Any  # whether any entry does
    trace: Trace | None
    # In a trace, the point tried last and F there, of which the rest takes account one
    # turn later. A compiler may evaluate F twice, for its value and for its sign, and
    # round differently: decisions have to be made on the value that is stored.
    latest: tuple[Array, Array] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class BracketRun(Run):
    """A function and how its roots in brackets are found.

    The state is one end of every bracket, and the last of the arguments the other. What
    the adjoint, :class:`ScalarAdjoint`, inverts is the derivative of −F: that of x −
    F(x) would be one, but for rounding, where F is small.
    """

    xtol: Any = 0.0  # these two as in bracketed_root
    expand: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        """The one method."""
        return ("Chandrupatla",)

    def iterate(self, value: Vec) -> Iteration:
        """Narrow the brackets, recording no derivatives."""
        space, args = self.problem.space, self.problem.args
        xp, x = space.xp, value[0]
        ends = Ends.of(xp, x, xp.broadcast_to(args[-1], x.shape), self.expand)
        deadline = self.control.deadline((x, *args), self.backend)
        with self.backend.quiet():
            f1 = self.evaluate(ends.x1, self.problem.opening)
            f2 = self.evaluate(ends.x2, self.problem.mapped)
            loop = _Loop(self, space, ends, xp.finfo(ends.x1.dtype), deadline)
            end = loop.search(Bracket(ends.x1, f1, ends.x2, f2, ends.x2, f2))
        return _iteration(space, end)

    def evaluate(self, x: Array, mapped: Mapped) -> Array:
        """F(x); NaN where F says that it is not defined."""
        return self.problem.nearby(lambda value: mapped(value)[0], (x,))[0]


def _iteration(space: Space, end: Search) -> Iteration:
    """What is reported of a search."""
    xp = space.xp
    x, f, *_ = end.bracket.best_first(xp)
    width = xp.abs(end.bracket.x2 - end.bracket.x1)
    width = xp.where(f == 0, xp.zeros_like(f), width)
    width = xp.where(end.found, width, xp.full_like(width, xp.inf))
    norm, width = (xp.astype(a, space.dtype) for a in (xp.abs(f), width))
    late = end.status == int(Status.RUNNING)
    status = marked(xp, end.status, late, Status.MAX_STEPS)
    status = marked(xp, status, late & ~end.found, Status.NO_BRACKET)
    none = xp.zeros_like(status)
    least = xp.minimum(end.bracket.x1, end.bracket.x2)
    return Iteration(
        value=(x,),
        status=status,
        residual_norm=norm,
        error=width,
        precise=none > 0,
        steps=end.steps,
        method=none,
        work=Work(f=2 + end.step),
        trace=shortened(end.trace, end.step),
        bracket=(least, xp.maximum(end.bracket.x1, end.bracket.x2)),
    )


@dataclass(frozen=True, eq=False)
class _Loop:
    """The steps of a search from the `ends` on, whose dtype has the limits `info`."""

    run: BracketRun
    space: Space
    ends: Ends
    info: Any
    deadline: float | None

    @property
    def xp(self) -> Any:
        """The namespace."""
        return self.space.xp

    def search(self, first: Bracket) -> Search:
        """All steps."""
        stop, loop = self.run.control.steps(1), self.run.backend.while_loop
        going = lambda search: search.running & (search.step < stop)
        end: Search = loop(going, self.turn, self.opened(first, stop), stop)
        if end.latest is None:
            return end
        return self.observed(self.advanced(end, *end.latest))

    def opened(self, first: Bracket, stop: int) -> Search:
        """The brackets before the first step."""
        xp, found, control = self.xp, first.holds, self.run.control
        opening, none = Opening.of(xp, first), xp.zeros_like(first.f1)
        status, reference = self.assessed(first, opening, found, none)
        status = self._begun(first, found, status)
        search = Search(
            bracket=first,
            opening=opening,
            found=found,
            reference=reference,
            reach=xp.full_like(first.x1, _REACH),
            status=status,
            steps=xp.zeros_like(status),
            step=0,
            running=self.run.backend.any(status == int(Status.RUNNING)),
            trace=blank(self.space, stop + 1) if control.record else None,
            latest=first[:2] if self.run.backend.is_traced(first) else None,
        )
        return self.recorded(search)

    def _begun(self, first: Bracket, found: Array, status: Array) -> Array:
        """The status where an end is a root, or no search can begin."""
        xp = self.xp
        movable = (self.ends.free1 | self.ends.free2) & (first.x1 != first.x2)
        small = xp.abs(first.best_first(xp).f1) <= self.run.problem.tolerance.atol
        undefined = xp.isnan(first.f1) | xp.isnan(first.f2)
        sound = xp.isfinite(first.x1) & xp.isfinite(first.x2)
        status = marked(xp, status, ~(found | movable), Status.NO_BRACKET)
        status = marked(xp, status, undefined, Status.NON_FINITE)
        status = marked(xp, status, small, Status.CONVERGED)
        return marked(xp, status, ~sound, Status.NON_FINITE)

    def turn(self, search: Search) -> Search:
        """One step of the entries that are unfinished."""
        if search.latest is not None:
            search = self.advanced(search, *search.latest)
        xp, old = self.xp, search.bracket
        late = search.step >= _PLAIN_STEPS
        x = xp.where(search.found, self.trial(old, late), self.beyond(search))
        x = xp.where(search.status == int(Status.RUNNING), x, old.x1)
        f = self.run.evaluate(x, self.run.problem.mapped)
        search = search._replace(step=search.step + 1)
        after = self.observed(self.recorded(self.advanced(search, x, f)))
        if search.latest is None:
            return after
        return search._replace(latest=(x, f), running=after.running, trace=after.trace)

    def advanced(self, search: Search, x: Array, f: Array) -> Search:
        """The search once it knows F at x, the point that its last step led to."""
        xp, lost = self.xp, self.xp.isnan(f)
        active = (search.status == int(Status.RUNNING)) & (search.step > 0)
        bracket = self.narrowed(search, x, f, active & ~lost)
        new = active & ~search.found & bracket.holds
        opened, found = Opening.of(xp, bracket), search.found | new
        opening = Opening(*chosen(xp, new, opened, search.opening))
        status, reference = self.assessed(bracket, opening, found, search.reference)
        status = self._sought(search, x, lost, status)
        changed = reference, self._reached(search, lost), status, search.steps + 1
        kept = search.reference, search.reach, search.status, search.steps
        reference, reach, status, steps = chosen(xp, active, changed, kept)
        return search._replace(
            bracket=bracket,
            opening=opening,
            found=found,
            reference=reference,
            reach=reach,
            status=status,
            steps=steps,
        )

    def _sought(self, search: Search, x: Array, lost: Array, status: Array) -> Array:
        """The status where no point farther out is left, or F was `lost` for good."""
        xp, old, sought = self.xp, search.bracket, ~search.found
        spent = sought & ((x == old.x1) | (x == old.x2))
        status = marked(xp, status, spent, Status.NO_BRACKET)
        retried = sought & (search.reach > _NEAR)
        return marked(xp, status, lost & ~retried, Status.NON_FINITE)

    def _reached(self, search: Search, lost: Array) -> Array:
        """How many times farther the next end is tried: less far where F was lost."""
        xp, reach = self.xp, search.reach
        grown = xp.where(reach < _REACH, reach, _REACH * reach)
        reach = xp.where(lost, xp.sqrt(reach), grown)
        return xp.minimum(reach, xp.full_like(reach, 1.0 / float(self.info.eps)))

    def narrowed(self, search: Search, x: Array, f: Array, where: Array) -> Bracket:
        """The brackets with the new point, or the ends moved outwards to it."""
        xp, old = self.xp, search.bracket
        outer = old.stretched(xp, x, f, self.moves_first(search.step - 1))
        ends = chosen(xp, search.found, old.moved(xp, x, f), outer)
        return Bracket(*chosen(xp, where, ends, old))

    def recorded(self, search: Search) -> Search:
        """Write down where the search stands."""
        if search.trace is None:
            return search
        write, index = self.run.backend.write, (..., search.step)
        _, f, *_ = search.bracket.best_first(self.xp)
        size = self.space.as_coefficient(self.xp.abs(f))
        norms = write(search.trace.residual_norm, index, size)
        work = self.space.full(0.0) + (2.0 + search.step)
        evaluations = write(search.trace.evaluations, index, work)
        return search._replace(trace=Trace(norms, evaluations))

    def observed(self, search: Search) -> Search:
        """Heed the callback and the budget, and see whether any entry still runs."""
        xp, control, status = self.xp, self.run.control, search.status
        if not control.is_plain:
            x, f, *_ = search.bracket.best_first(xp)
            now = search.step, (x,), xp.abs(f), 2 + search.step
            for over, reason in control.ends(self.deadline, *now):
                running = status == int(Status.RUNNING)
                status = marked(xp, status, running & over, reason)
        running = self.run.backend.any(status == int(Status.RUNNING))
        return search._replace(status=status, running=running)

    def moves_first(self, step: Any) -> Array:
        """Whether it is the first end's turn to be moved outwards."""
        return self.ends.free1 & ((step % 2 == 0) | ~self.ends.free2)

    def beyond(self, search: Search) -> Array:
        """A point outside the ends, at the due multiple of their width."""
        xp, old, most = self.xp, search.bracket, float(self.info.max)
        first = self.moves_first(search.step)
        far = old.x2 + (old.x1 - old.x2) * search.reach
        far = xp.where(first, far, old.x1 + (old.x2 - old.x1) * search.reach)
        largest = xp.full_like(far, most)
        return xp.maximum(xp.minimum(far, largest), -largest)

    def trial(self, bracket: Bracket, late: Any) -> Array:
        """The point to try next, no closer to an end than half of what counts as
        narrow.

        It is computed from the end with the smaller |F|: from the other one, which may
        be far larger, it would be rounded.
        """
        xp, near = self.xp, bracket.best_first(self.xp)
        share = ratio(xp, 0.5 * self.gap(near), near.half_width)
        share = xp.minimum(share, xp.full_like(share, 0.5))
        fraction = xp.minimum(xp.maximum(near.fraction(xp), share), 1.0 - share)
        interpolated = near.x1 + fraction * (near.x2 - near.x1)
        new = (interpolated != near.x1) & (interpolated != near.x2)
        new = new & xp.isfinite(interpolated)  # else a ratio of distances overflowed
        safe = bracket.safe(xp) & ~(bracket.straddles_zero & late)
        middle = bracket.middle(xp, self.info, self.run.xtol, late)
        return xp.where(safe & new, interpolated, middle)

    def narrow(self, x: Array) -> Array:
        """Half the width of a bracket at x that counts as narrow; it may underflow."""
        xp, size = self.xp, self.xp.abs(x)
        asked = self.run.xtol + self.run.problem.tolerance.rtol * size
        return xp.maximum(asked, float(self.info.eps) * size)

    def gap(self, near: Bracket) -> Array:
        """The same at the first end, and what there is in its place if it is zero."""
        xp, narrow = self.xp, self.narrow(near.x1)
        return xp.where(narrow > 0, narrow, least(xp, near.half_width, self.info))

    def at_limit(self, bracket: Bracket, x: Array) -> Array:
        """Whether a bracket at x cannot be halved but for rounding."""
        half, size = bracket.half_width, self.xp.abs(x)
        return (half <= float(self.info.eps) * size) | bracket.is_adjacent(self.xp)

    def compared(
        self, bracket: Bracket, opening: Opening, x: Array, reference: Array
    ) -> tuple[Array, Array]:
        """The mean of |F| at the ends, and the reference that it has to fall from."""
        xp, half = self.xp, bracket.half_width
        size = 0.5 * xp.abs(bracket.f1) + 0.5 * xp.abs(bracket.f2)
        floor = least(xp, opening.half_width, self.info)
        between = xp.sqrt(opening.half_width) * xp.sqrt(
            xp.maximum(self.narrow(x), floor)
        )
        wide, finite = half >= between, xp.isfinite(size)
        infinite = xp.full_like(size, xp.inf)
        late = finite & xp.isinf(reference)
        reference = xp.where(wide & ~finite & (reference == 0), infinite, reference)
        return size, xp.where((wide & finite) | late, size, reference)

    def assessed(
        self, bracket: Bracket, opening: Opening, found: Array, reference: Array
    ) -> tuple[Array, Array]:
        """The status of each entry, and the reference that F has to fall from."""
        xp, (x, f, *_) = self.xp, bracket.best_first(self.xp)
        residual, limited = xp.abs(f), self.at_limit(bracket, x)
        size, reference = self.compared(bracket, opening, x, reference)
        narrow = (bracket.half_width <= self.narrow(x)) | limited
        little = math.sqrt(float(self.info.eps)) * opening.smaller
        fell = (size < 0.5 * reference) | (residual <= little)
        grew = (reference > 0) & (xp.isinf(reference) | (residual > reference))
        small = residual <= self.run.problem.tolerance.atol
        status = xp.zeros_like(x, dtype=xp.int32)
        status = marked(xp, status, limited, Status.STALLED)
        status = marked(xp, status, limited & grew, Status.DIVERGED)
        status = marked(xp, status, narrow & fell, Status.CONVERGED)
        status = marked(xp, status, ~found, Status.RUNNING)
        return marked(xp, status, small, Status.CONVERGED), reference


@dataclass(frozen=True, kw_only=True)
class ScalarAdjoint(LinearAdjoint):
    """Differentiate a scalar root by a division.

    Where F(x*, θ) = 0, the cotangent v of x* gives that of θ as −(∂F/∂θ)ᵀu with F′(x*)
    u = v. F′ is diagonal, since each entry is a problem by itself: one product with a
    vector of ones gives it, and no F′ ≠ 0 is too small or too large. It fails where
    F′(x*) is zero or not finite, and v is not zero.
    """

    on_failure: Policy = "raise"

    def solve(self, system: AdjointSystem) -> Iteration:
        """The quotient of v and F′."""
        space, xp = system.space, system.space.xp
        (v,) = system.rhs
        (slope,) = system.product((xp.ones_like(v),))
        u = xp.where(v == 0, xp.zeros_like(v), ratio(xp, -v, slope))
        solved = (v == 0) | ((slope != 0) & xp.isfinite(u))
        end, norm = system.unfinished((u,), 1), xp.abs(slope * u + v)
        norm, none = xp.astype(norm, space.dtype), xp.zeros_like(end.status)
        status = xp.full_like(none, int(Status.LINEAR_SOLVE_FAILED))
        return end._replace(
            residual_norm=norm,
            error=norm,
            status=marked(xp, status, solved, Status.CONVERGED),
            steps=none,
        )
