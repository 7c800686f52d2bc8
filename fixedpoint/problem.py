"""The problems that solvers solve: a residual at a point, and what tests ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from fixedpoint.backend import Array, Vec
from fixedpoint.evaluator import Tested
from fixedpoint.functions import Bridge, Functions, Mapped, Product
from fixedpoint.linearization import Linearizable
from fixedpoint.point import Parts, Point
from fixedpoint.space import Difference, Measured, Space
from fixedpoint.spaces import space_of
from fixedpoint.tolerance import Tolerance

# What changes by no more than so many rounding errors of a residual tells nothing.
ROUNDINGS = 4.0


class Sizes(NamedTuple):
    """How large things are at a point, as the tolerance measures them."""

    state: tuple[Array, ...]  # of each part of the state
    residual: tuple[Array, ...]  # of each part of the residual
    shares: tuple[Array, ...]  # of each part of the error, estimated by the correction
    length: Array  # of the whole error, estimated in the same way
    moved: Array  # ‖Δz‖ of the last step
    changed: Array  # ‖Δg‖ of the last step


@dataclass(frozen=True, eq=False)
class Problem(Linearizable):
    """Find z with z = f(z), where the increment f(z) − z vanishes.

    Parameters
    ----------
    space : Space
        Where z lies.
    functions : Functions
        The map, and what is known of it.
    args : Vec
        The leaves of the arguments.
    tolerance : Tolerance
        What is asked.
    batched : tuple of bool
        Which of `args` have an entry per sample, if samples may be taken out.
    active : array of bool or None
        The samples that have not ended; None stands for all.
    is_affine : bool
        Whether the map is known to be affine.
    factors : list
        Where a linear solve keeps the factors of a sparse matrix, in case it comes
        again.
    """

    space: Space
    functions: Functions
    args: Vec
    tolerance: Tolerance
    batched: tuple[bool, ...] = ()
    active: Array | None = None
    is_affine: bool = False
    factors: list[Any] = field(default_factory=list)

    # Whether a root is sought, whose residual has units of its own.
    is_root: ClassVar[bool] = False

    @cached_property
    def mapped(self) -> Mapped:
        """The map of the state alone."""
        return self.functions.at(self.args)

    @property
    def tests_parts(self) -> bool:
        """Whether residuals are tested, of several parts."""
        tolerance = self.tolerance
        whole = self.is_root or tolerance.is_whole(self.space)
        return tolerance.test == "residual" and not whole

    def image(self, value: Vec, args: Vec) -> Vec:
        """The map whose fixed point derivative rules differentiate; of a root, −F."""
        return self.functions.image(value, args)

    def among(self, active: Array | None) -> Problem:
        """The problem of a batch of which the samples not `active` have ended."""
        if active is self.active:
            return self
        other = copy(self)  # with what is bound already
        object.__setattr__(other, "active", active)
        return other

    def live(self, mask: Array) -> Array:
        """The samples of a mask that have not ended."""
        return mask if self.active is None else mask & self.active

    def renewed(self, accepted: Array) -> Array:
        """The samples whose new point is taken: those that have ended are where they
        were, but f may give something else there.
        """
        return accepted if self.active is None else accepted | ~self.active

    def trial(self, value: Vec, old: Point | None = None) -> Point:
        """Evaluate once at a point that a solver proposes; where f cannot, the point is
        not finite.

        Samples that have ended stay at the `old` point, if that is given.
        """
        if old is not None:
            value = self.space.where(self.active, value, old.value)
        if self.functions.project is not None:
            value = self.functions.project(value)
        try:
            evaluated = self.mapped(value)
        except ArithmeticError:
            if self.space.backend.is_traced(value):
                raise
            return self.undefined(value)
        return self.point(value, *evaluated)

    @property
    def opening(self) -> Mapped:
        """The map of the state alone, for the evaluation at the start."""
        first = self.functions.first
        return self.mapped if first is None else first(self.args)

    def begin(self, start: Vec) -> Point:
        """Evaluate once at the start: exceptions of f pass."""
        return self.point(start, *self.opening(start))

    def evaluate(self, value: Vec) -> Point:
        """Evaluate once at `value`: exceptions of f pass."""
        return self.point(value, *self.mapped(value))

    def point(self, value: Vec, image: Vec, given: Tested | None) -> Point:
        """The point `value`, where the map gave an image, and maybe what is tested."""
        residual, terms = given or (None, None)
        increment, residual, target = self.increments(value, image, residual)
        tested = increment if residual is None else residual
        vectors = (tested,) if target is tested else (tested, target)
        lengths: list[Measured] = [(u, self.tolerance.kind) for u in vectors]
        if terms is None or not self.tests_parts:
            norms = self.space.sound_norms(lengths)
            return Point(value, increment, residual, norms[0], norms[-1])
        pairs = zip(terms, target, strict=True)
        scale = tuple([size if own is None else own for own, size in pairs])
        (sizes, scales), whole = self._parts((tested, scale), lengths)
        rows = zip(scales, self.tolerance.have_terms(terms), strict=True)
        parts = Parts(sizes, scales, tuple([a if own else None for a, own in rows]))
        return Point(value, increment, residual, whole[0], whole[1], parts)

    def parts(self, point: Point) -> Parts:
        """The parts of the residual at a point."""
        if point.parts is not None:
            return point.parts
        sizes = self.tolerance.parts(self.space, point.tested)
        return Parts(sizes, self.residual_scale(point, ()), (None,) * len(sizes))

    def increments(
        self, value: Vec, image: Vec, residual: Vec | None
    ) -> tuple[Vec, Vec | None, Vec]:
        """The increment, the residual if it is another, and what its rounding is
        relative to: f(z), or z plus the residual.
        """
        increment = self.space.subtract(image, value)
        if residual is None:
            return increment, None, image
        return increment, residual, self.space.add(value, residual)

    def increment(self, value: Vec) -> Vec:
        """The increment alone."""
        return self.space.subtract(self.mapped(value)[0], value)

    def computed(self, point: Point) -> Vec:
        """What the map gave at a point: of a root −F."""
        return self.space.add(point.value, point.increment)

    # What the test of convergence asks.

    def sizes(self, old: Point, point: Point, correction: Vec | Difference) -> Sizes:
        """The sizes that matter at a point, where a method proposes a `correction`."""
        space, tolerance = self.space, self.tolerance
        lengths: list[Measured] = [
            (correction, tolerance.kind),
            (Difference(point.value, old.value), "euclidean"),
            (Difference(point.increment, old.increment), "euclidean"),
        ]
        if tolerance.is_whole(space):
            lengths = [(point.value, tolerance.kind), *lengths]
            size, *norms = space.sound_norms(lengths)
            state, residual, shares = (size,), (point.residual_norm,), (norms[0],)
        else:
            vectors = point.value, point.tested, correction
            (state, residual, shares), norms = self._parts(vectors, lengths)
        return self.shared(point, Sizes(state, residual, shares, *norms))

    def _parts(
        self, vectors: Sequence[Vec | Difference], lengths: list[Measured]
    ) -> tuple[list[tuple[Array, ...]], list[Array]]:
        """The parts of some vectors, and the norms of others."""
        space, tolerance = self.space, self.tolerance
        if tolerance.norm == "entries":
            parts = [tolerance.parts(space, space.formed(u)) for u in vectors]
            return parts, list(space.sound_norms(lengths))
        groups = [part for u in vectors for part in tolerance.measured(u)]
        norms, each = space.sound_norms(groups + lengths), len(groups) // len(vectors)
        parts = [norms[i : i + each] for i in range(0, len(groups), each)]
        return parts, list(norms[len(groups) :])

    def shared(self, point: Point, sizes: Sizes) -> Sizes:
        """The sizes, where no error is taken to be far below the residual.

        Of the two, the residual is the larger one in some parts of a state.
        """
        maximum = self.space.xp.maximum
        shares = tuple(map(maximum, sizes.shares, sizes.residual))
        return sizes._replace(
            shares=shares, length=maximum(sizes.length, point.residual_norm)
        )

    def is_rounding(
        self, residual: Sequence[Array], state: Sequence[Array], norm: Array
    ) -> Array:
        """Whether each part of the residual is two units in the last place of z."""
        del norm
        unit, pairs = 2.0 * self.space.rounding, zip(residual, state, strict=True)
        return self.space.every([left <= unit * size for left, size in pairs])

    def length_of_state(self, point: Point) -> Array:
        """What a change of the whole state is relative to: ‖z‖ or ‖f(z) − z‖."""
        return self.space.xp.maximum(
            self.space.norm(point.value), self.space.norm(point.increment)
        )

    def least_noise(self, value: Vec) -> Vec:
        """What the residual is rounded by at least: half a unit in the last place."""
        xp = self.space.xp
        return tuple([(0.5 * float(xp.finfo(z.dtype).eps)) * xp.abs(z) for z in value])

    def rounding(self, point: Point) -> Array:
        """What the norm of the residual may be by the rounding of f(z) alone."""
        return self.space.rounding * point.magnitude

    def exceeds_rounding(self, point: Point, change: Array) -> Array:
        """Whether a change of the residual is more than the rounding of the state."""
        return change > ROUNDINGS * self.rounding(point)

    def is_small(self, point: Point, size: Array, share: float) -> Array:
        """Whether an error of about `size` would be a small share of the state.

        Of a fixed point the residual tells.
        """
        del size
        return point.residual_norm <= share * point.magnitude

    def share_within(self, point: Point, amplification: Array, merit: Array) -> Array:
        """What share of the residual may be left for the error to be tolerated."""
        space, tolerance = self.space, self.tolerance
        if tolerance.test == "residual":
            return space.ratio(self.residual_bound(point), point.residual_norm)
        return space.ratio(
            tolerance.bound(space.norm(point.value)), amplification * merit
        )

    def fell(self, sizes: Sizes, first: tuple[Array, ...]) -> Array:
        """Whether every part of the residual has fallen, where a method may miss one.

        Here every part is compared with its part of the state, so that none is missed.
        """
        del first
        return sizes.length == sizes.length

    def equations(self, point: Point) -> tuple[Array, ...] | None:
        """The size of each equation, where a part of the residual holds several that
        may be in units of their own; None of a map, which has those of its state.
        """
        del point
        return None

    def coarse(self, first: Point) -> Array | None:
        """Whether the first residual seems to come out of a shorter arithmetic than the
        state's; None of a map, whose later values tell more.
        """
        del first
        return None

    def residual_bound(self, point: Point) -> Array:
        """The bound atol + rtol·‖f(z)‖ of the test of residuals."""
        return self.tolerance.bound(point.magnitude)

    def is_negligible(self, direction: Vec, point: Point) -> Array:
        """Whether a step is within the tolerance of errors, to be taken as it is."""
        tolerance = self.tolerance
        if tolerance.test == "residual" or tolerance.is_zero:
            return point.residual_norm != point.residual_norm
        return tolerance.covers(self.space, direction, point.value)

    def residual_scale(
        self, point: Point, first: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        """What the parts of a residual are compared with: those of f(z).

        `first` are the parts of the first residual.
        """
        del first
        if self.tolerance.is_whole(self.space):
            return (point.magnitude,)
        target = self.space.add(point.value, point.tested)
        return self.tolerance.parts(self.space, target)

    def initial_scale(self, point: Point) -> tuple[Array, int]:
        """What to multiply the first increment by, 1, and the evaluations that took."""
        del point
        return self.space.full(1.0), 0

    def at(self, args: Vec) -> Problem:
        """The problem with other arguments."""
        return replace(self, args=args)

    def changed(self, **functions: Any) -> Problem:
        """The problem with some of its functions changed."""
        return replace(self, functions=replace(self.functions, **functions))

    def on(self, bridge: Bridge, value: Vec) -> Problem:
        """The problem of states like `value`, by another library's arithmetic.

        The map stays where it is, and so does what differentiates it.
        """
        functions, here = self.functions, self.space.backend
        if functions.product is None and functions.jacobian is None:
            functions = replace(
                functions,
                product=lambda value, args: here.linearize(
                    lambda z: functions.at(args)(z)[0], value
                ),
            )
        taken = zip(self.args, self.batched, strict=False)
        there = [bridge.there(a) if batched else a for a, batched in taken]
        return replace(
            self,
            space=space_of(
                bridge.backend, bridge.all_there(value), self.space.batch_ndim
            ),
            functions=functions.across(bridge),
            args=(*there, *self.args[len(there) :]),
            tolerance=self.tolerance.converted(bridge.there),
        )

    def take(self, rows: Array) -> Problem:
        """The problem of the samples `rows` of the first axis alone."""
        xp, pairs = self.space.xp, zip(self.args, self.batched, strict=True)
        return replace(
            self,
            space=self.space.of_rows(int(rows.shape[0])),
            active=None,
            args=tuple([xp.take(a, rows, axis=0) if b else a for a, b in pairs]),
            tolerance=self.tolerance.take(xp, rows),
        )

    def nearby(self, function: Product, value: Vec) -> Vec:
        """What a function gives near a state; NaN where f cannot be evaluated."""
        try:
            return function(value)
        except ArithmeticError:
            if self.space.backend.is_traced(value):
                raise
            return self.undefined(value).increment

    def undefined(self, value: Vec) -> Point:
        """The point `value`, where the map cannot be evaluated."""
        xp, nan = self.space.xp, self.space.full(float("nan"))
        increment = tuple(xp.full_like(leaf, float("nan")) for leaf in value)
        residual = increment if self.functions.has_residual else None
        return Point(value, increment, residual, nan, nan)
