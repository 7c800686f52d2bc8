"""The problems that solvers solve: a residual at a point, its linearisation, and the test."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import numpy as np

from fixedpoint.backend import Array, Vec
from fixedpoint.differences import Sparsity, difference_jacobian, difference_product
from fixedpoint.solution import Work
from fixedpoint.space import Space

# The image of a state; and, where it differs from image − state, the residual that is tested.
Map = Callable[[Vec], tuple[Vec, Vec | None]]
Product = Callable[[Vec], Vec]


class Point(NamedTuple):
    """A state, and what one evaluation told about it.

    Attributes
    ----------
    value : Vec
        The state z.
    increment : Vec
        What solvers drive to zero: f(z) − z, or −F(z).
    residual_norm : array
        The norm, per sample, of the residual that is tested.
    magnitude : array
        What the rounding errors of `increment` are relative to: ‖f(z)‖, or ‖F(z)‖.
    satisfied : array of bool
        Whether the residual of each sample is within tolerance.
    """

    value: Vec
    increment: Vec
    residual_norm: Array
    magnitude: Array
    satisfied: Array


class Linearisation(NamedTuple):
    """The products v ↦ g′(z)v, where g is the increment, and what each costs."""

    product: Product
    evaluations: int
    products: int


def choose(space: Space, mask: Array, new: Point, old: Point) -> Point:
    """The new point in the samples of `mask`, the old one elsewhere."""
    where = space.xp.where
    return Point(
        space.where(mask, new.value, old.value),
        space.where(mask, new.increment, old.increment),
        where(mask, new.residual_norm, old.residual_norm),
        where(mask, new.magnitude, old.magnitude),
        where(mask, new.satisfied, old.satisfied),
    )


class Matrix(NamedTuple):
    """The increment's derivative (batch, n, n), what it took, and its sparsity if that helps."""

    entries: Array
    work: Work
    sparsity: Sparsity | None


@dataclass(frozen=True, eq=False)
class Problem(ABC):
    """Find where the increment vanishes.

    Parameters
    ----------
    space : Space
        Where z lies.
    map : callable
        The user's map on leaves.
    rtol, atol : float or array of the batch's shape
        Tolerances.
    norm : {"euclidean", "max"}
        The norm of the test.
    jvp : callable or None
        The user's product (z, v) ↦ f′(z)v, on leaves.
    jacobian : callable or None
        The user's Jacobian z ↦ f′(z), an array (batch, n, n).
    preconditioner : callable or None
        Takes z to v ↦ Pv, P an approximate inverse of the derivative of the user's residual.
    project : callable or None
        What is applied to every trial point.
    restrict : callable or None
        Takes indices of samples to those of the functions above that depend on the sample, for
        these samples alone.
    """

    space: Space
    map: Any
    rtol: Any
    atol: Any
    norm: str = "euclidean"
    jvp: Callable[[Vec, Vec], Vec] | None = None
    jacobian: Callable[[Vec], Array] | None = None
    preconditioner: Callable[[Vec], Product] | None = None
    project: Callable[[Vec], Vec] | None = None
    restrict: Callable[[Array], dict[str, Any]] | None = None

    @abstractmethod
    def evaluate(self, value: Vec) -> Point:
        """Evaluate the map once at `value`."""

    @abstractmethod
    def increment(self, value: Vec) -> Vec:
        """The increment alone."""

    @abstractmethod
    def anchored(self, first: Point) -> Problem:
        """The problem with the tolerances that hold for iterations from `first`."""

    @abstractmethod
    def initial_scale(self, point: Point) -> Array:
        """The multiple of the increment to step by where nothing else is known."""

    @property
    @abstractmethod
    def initial_work(self) -> Work:
        """What that takes."""

    @abstractmethod
    def of_user(self, product: Product, v: Vec) -> Vec:
        """The product of the increment's derivative, by the user's product with f′ or F′."""

    def take(self, rows: Array) -> Problem:
        """The problem of the samples `rows` of the first axis alone."""
        xp, restrict = self.space.xp, self.restrict
        functions = {} if restrict is None else restrict(rows)

        def part(tolerance: Any) -> Any:
            batched = getattr(tolerance, "ndim", 0) > 0
            return xp.take(tolerance, rows, axis=0) if batched else tolerance

        def further(again: Array) -> dict[str, Any]:
            return {} if restrict is None else restrict(xp.take(rows, again, axis=0))

        space = self.space.of_rows(int(rows.shape[0]))
        tolerances = {"rtol": part(self.rtol), "atol": part(self.atol)}
        return replace(self, space=space, restrict=further, **tolerances, **functions)

    def trial(self, value: Vec) -> Point:
        """Evaluate at a point that a solver proposes; where f cannot, the point is not finite."""
        if self.project is not None:
            value = self.project(value)
        try:
            return self.evaluate(value)
        except ArithmeticError:
            if self.space.backend.is_traced(value):
                raise
            return self._undefined(value)

    def increment_nearby(self, value: Vec) -> Vec:
        """The increment at a point of a difference quotient; NaN where f cannot be evaluated."""
        try:
            return self.increment(value)
        except ArithmeticError:
            if self.space.backend.is_traced(value):
                raise
            return self._undefined(value).increment

    def _undefined(self, value: Vec) -> Point:
        xp, nan = self.space.xp, self.space.full(float("nan"))
        increment = tuple(xp.full_like(leaf, float("nan")) for leaf in value)
        return Point(value, increment, nan, nan, xp.zeros_like(nan, dtype=xp.bool))

    def linearise(self, point: Point) -> Linearisation:
        """The products with the increment's derivative at `point`, exact where they can be."""
        given, backend = self.jvp, self.space.backend
        if given is not None:
            product = lambda v: self.of_user(lambda w: given(point.value, w), v)  # noqa: E731
            return Linearisation(product, 0, 1)
        if self.jacobian is not None:
            times = self._times(self.jacobian(point.value))
            return Linearisation(lambda v: self.of_user(times, v), 0, 1)
        if backend.differentiates:
            return Linearisation(backend.linearise(self.increment, point.value), 0, 1)
        return Linearisation(difference_product(self, point), 1, 0)

    def precondition(self, point: Point) -> Product | None:
        """The product with the user's approximate inverse of the increment's derivative."""
        if self.preconditioner is None:
            return None
        inverse, space = self.preconditioner(point.value), self.space
        apply = getattr(inverse, "solve", None) or getattr(inverse, "matvec", None)
        if apply is None:
            return lambda v: self.of_user_inverse(inverse, v)
        flat = lambda v: space.unravel(apply(space.ravel(v)))  # noqa: E731
        return lambda v: self.of_user_inverse(flat, v)

    def tolerance(self, point: Point) -> Array:
        """What the residual norm must not exceed."""
        return self.atol + self.rtol * point.magnitude

    @abstractmethod
    def of_user_inverse(self, product: Product, v: Vec) -> Vec:
        """The product with the inverse of the increment's derivative, by the user's."""

    def matrix(self, point: Point, sparsity: Sparsity | None) -> Matrix:
        """The increment's derivative (batch, n, n); `sparsity` is what an earlier one found."""
        space = self.space
        if self.jacobian is not None:
            given = self.jacobian(point.value)
            dense = given if space.backend.is_array(given) else given @ np.eye(given.shape[-1])
            return Matrix(self._of_user_matrix(dense), Work(), None)
        if self.jvp is None and not space.backend.differentiates:
            entries, evaluations, sparsity = difference_jacobian(self, point, sparsity)
            return Matrix(entries, Work(f=evaluations), sparsity)
        product, size = self.linearise(point).product, space.real_size
        unit = space.identity(size)
        columns = [space.ravel(product(space.unravel(unit[..., j, :]))) for j in range(size)]
        return Matrix(space.xp.stack(columns, axis=-1), Work(jvp=size), None)

    def _times(self, matrix: Any) -> Product:
        """The products with a matrix, an array per sample or an operator that knows ``@``."""
        space = self.space

        def product(v: Vec) -> Vec:
            entries = space.ravel(v)
            if space.backend.is_array(matrix):
                return space.unravel(space.xp.matmul(matrix, entries[..., None])[..., 0])
            return space.unravel(matrix @ entries)

        return product

    @abstractmethod
    def _of_user_matrix(self, matrix: Array) -> Array:
        """The increment's derivative, by the user's f′ or F′."""

    def _within(self, norm: Array, scale: Array) -> Array:
        # A term that is zero is not worth an operation on the hot path.
        if isinstance(self.atol, float) and self.atol == 0.0:
            return norm <= self.rtol * scale
        if isinstance(self.rtol, float) and self.rtol == 0.0:
            return norm <= self.atol
        return norm <= self.atol + self.rtol * scale


@dataclass(frozen=True, eq=False)
class FixedPointProblem(Problem):
    """Find z with z = f(z).

    A sample's residual is within tolerance if ‖f(z) − z‖ ≤ atol + rtol·‖f(z)‖, where the map has
    several blocks, for each block by itself. Attribute `blocks` holds the leaves of each.
    """

    blocks: tuple[slice, ...] = (slice(None),)

    def evaluate(self, value: Vec) -> Point:
        """Evaluate f once."""
        space = self.space
        image, residual = self.map(value)
        increment = space.subtract(image, value)
        if residual is None:
            return Point(value, increment, *self._tested([increment], [image]))
        target = space.add(value, residual)
        parts = [[u[block] for block in self.blocks] for u in (residual, target)]
        return Point(value, increment, *self._tested(*parts))

    def _tested(self, residuals: list[Vec], targets: list[Vec]) -> tuple[Array, Array, Array]:
        """The norms of all residuals and targets, and whether each residual is within tolerance."""
        space = self.space
        tested = self._norms(space.norm, residuals, targets)
        # Squares that underflow must not pass for a residual of zero.
        doubtful = tested[2] if len(residuals) > 1 else tested[2] & (tested[0] < space.small)
        if self.norm == "max":
            return tested
        safe = lambda: self._norms(space.safe_norm, residuals, targets)  # noqa: E731
        norm, magnitude, satisfied = space.backend.amended(tested, doubtful, safe)
        return norm, magnitude, satisfied

    def _norms(
        self, norm: Any, residuals: list[Vec], targets: list[Vec]
    ) -> tuple[Array, Array, Array]:
        norms = [norm(residual, self.norm) for residual in residuals]
        scales = [norm(target, self.norm) for target in targets]
        satisfied = reduce(and_, map(self._within, norms, scales))
        join = self.space.join_norms
        return join(norms, self.norm), join(scales, self.norm), satisfied

    def increment(self, value: Vec) -> Vec:
        """The increment f(z) − z."""
        return self.space.subtract(self.map(value)[0], value)

    def anchored(self, first: Point) -> Problem:
        """The same: its tolerance goes with the current ‖f(z)‖."""
        del first
        return self

    def initial_scale(self, point: Point) -> Array:
        """One: the first step goes to f(z)."""
        del point
        return self.space.full(1.0)

    @property
    def initial_work(self) -> Work:
        """Nothing."""
        return Work()

    def of_user(self, product: Product, v: Vec) -> Vec:
        """The product f′v − v."""
        return self.space.subtract(product(v), v)

    def of_user_inverse(self, product: Product, v: Vec) -> Vec:
        """The product with the inverse of f′ − I."""
        return product(v)

    def _of_user_matrix(self, matrix: Array) -> Array:
        return matrix - self.space.identity(self.space.real_size)


@dataclass(frozen=True, eq=False)
class RootProblem(Problem):
    """Find x with F(x) = 0, to ‖F(x)‖ ≤ atol + rtol·‖F(x₀)‖.

    The increment is −F(x): methods that need a map iterate x − F(x). Attribute `scale` is ‖F(x₀)‖,
    or None while it is not known.
    """

    scale: Array | None = None

    def evaluate(self, value: Vec) -> Point:
        """Evaluate F once."""
        increment = self.increment(value)
        norm = self.space.norm(increment, self.norm)
        satisfied = self._within(norm, norm if self.scale is None else self.scale)
        doubtful = satisfied & (norm < self.space.small)

        def safe() -> tuple[Array, Array]:
            norm = self.space.safe_norm(increment, self.norm)
            return norm, self._within(norm, norm if self.scale is None else self.scale)

        norm, satisfied = self.space.backend.amended((norm, satisfied), doubtful, safe)
        return Point(value, increment, norm, norm, satisfied)

    def increment(self, value: Vec) -> Vec:
        """The increment −F(x)."""
        return self.space.negative(self.map(value)[0])

    def anchored(self, first: Point) -> Problem:
        """The problem whose tolerance is relative to ‖F(x₀)‖."""
        return replace(self, scale=first.residual_norm)

    def take(self, rows: Array) -> Problem:
        """The problem of the samples `rows` alone."""
        scale = self.scale if self.scale is None else self.space.xp.take(self.scale, rows, axis=0)
        return super(RootProblem, replace(self, scale=scale)).take(rows)

    def initial_scale(self, point: Point) -> Array:
        """The σ that minimises ‖g + σg′g‖; 1 where g′g is orthogonal to g, or not finite."""
        space, xp = self.space, self.space.xp
        image = self.linearise(point).product(point.increment)
        scale = -space.ratio(space.dot(point.increment, image), space.dot(image, image))
        return xp.where((scale != 0.0) & (xp.abs(scale) < xp.inf), scale, xp.ones_like(scale))

    @property
    def initial_work(self) -> Work:
        """One product, or the evaluation of a difference quotient."""
        exact = self.jvp is not None or self.jacobian is not None
        return Work(jvp=1) if exact or self.space.backend.differentiates else Work(f=1)

    def of_user(self, product: Product, v: Vec) -> Vec:
        """The product −F′v."""
        return self.space.negative(product(v))

    def of_user_inverse(self, product: Product, v: Vec) -> Vec:
        """The product with the inverse of −F′."""
        return self.space.negative(product(v))

    def tolerance(self, point: Point) -> Array:
        """What the residual norm must not exceed."""
        return self.atol + self.rtol * (point.magnitude if self.scale is None else self.scale)

    def _of_user_matrix(self, matrix: Array) -> Array:
        return -matrix
