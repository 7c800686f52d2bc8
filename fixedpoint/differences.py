"""Difference quotients, for array libraries that do not differentiate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from fixedpoint.backend import Array, Vec
from fixedpoint.matrix import Matrix, Sparsity, times
from fixedpoint.point import Point
from fixedpoint.solution import Work
from fixedpoint.space import Space
from fixedpoint.tolerance import ENTRIES

# How far the product of a compressed Jacobian with a vector may be from its difference
# quotient.
_AGREEMENT = 1e-3

# A change that is less than so many rounding errors tells too little of a derivative:
# the function is flat there. The step then becomes this part of the entry, and grows by
# a factor if need be.
_FELT, _PART, _GROWTH, _GROWTHS = 2.0**10, 2.0**-4, 2.0**13, 4

# A change of less than so many rounding errors of the largest term is noise.
_NOISE = 16.0

# An entry of the Jacobian is slight beside another one of its row by this share.
_SLIGHT = 1e-3

# A change over half of a step that is this far from half of the change is not linear.
_BENT = 0.1

# A change over half of a step that is this near to half of the change is linear.
_LINEAR = 1e-2

# Binary digits by which quantities may differ without being taken to be in different
# units.
UNITS = 20.0

# A dtype that is coarser than this has a range of few decades.
_COARSE_DTYPE = 1e-5

# A step from zero should be less than the part of what would account for the residual.
_COARSE = 2.0**10


def difference_product(
    problem: Any, point: Point, further: list[int]
) -> Callable[[Vec, Array], Vec]:
    """The products v, ‖v‖ ↦ (g(z + hv) − g(z))/h, one evaluation each.

    The step h‖v‖ is ε^(1/2) times ‖z‖, for maps no less than ‖g‖, or where that is zero
    times 1: it goes with the length of the whole state, and not with the typical size
    of an entry nor, for roots, with ‖g‖, for g is often a sum of large terms that
    cancel (a discrete Laplacian), whose rounding errors a shorter step would drown in.
    Where g does not feel it, it grows, at the cost of evaluations that are added to
    `further`. It takes no more than the leading digits of ‖v‖.
    """
    space: Space = problem.space
    xp, size = space.xp, problem.length_of_state(point)
    reach = space.rounding**0.5 * xp.where(size > 0.0, size, space.one)
    noise = _felt(space) * space.norm(point.increment)
    nearby, increment, factors = problem.nearby, problem.increment, growths(space)
    if space.backend.is_traced((noise,)):
        factors = ()

    def change(v: Vec, step: Array) -> Vec:
        moved = nearby(increment, space.axpy(step, v, point.value))
        return space.subtract(moved, point.increment)

    def product(v: Vec, length: Array) -> Vec:
        nonlocal reach
        unit = space.select(length > 0.0, length, space.one)
        moved = change(v, step := reach / unit)
        for factor in factors:
            deaf = (space.norm(moved) < noise) & (length > 0.0)
            if not space.backend.any(deaf):
                break
            further[0] += 1
            reach = xp.where(deaf, factor * reach, reach)
            moved = change(v, step := reach / unit)
        return space.scale(1.0 / step, moved)

    return product


def _felt(space: Space) -> float:
    """The least relative change that tells of a derivative: of half a precision that
    is coarse, half of what a step brings about.
    """
    return min(_FELT * space.rounding, 0.5 * math.sqrt(space.rounding))


def growths(space: Space) -> tuple[float, ...]:
    """What a step is multiplied by, one after the other, as long as it is not felt."""
    return (_PART / space.rounding**0.5, *(_GROWTH,) * (_GROWTHS - 1))


def difference_jacobian(
    problem: Any, point: Point, sparsity: Sparsity | None, sizes: Array
) -> Matrix:
    """The Jacobian of the increment by forward differences.

    The step in each entry is ε^(1/2) times its size, which counts as at least a
    thousandth of the largest of those in comparable units, by the `sizes` that entries
    have had: one that happens to vanish must not be moved by less than g can feel. Of
    an entry that has been zero until now nothing is known. If no equation feels a step
    above its rounding errors, or those of its largest term, the step grows; if an entry
    is not known and its step turns out to be large beside what would account for the
    residual, it shrinks, unless g is linear over it. The first time one evaluation
    makes a column. If the entries that are exactly zero let columns share an
    evaluation, they do so from then on, and one more evaluation checks the product with
    a random vector: where the pattern has grown all columns are made anew.

    References
    ----------
    Curtis, Powell and Reid, "On the estimation of sparse Jacobian matrices", IMA J.
    Appl. Math. 13, 1974.
    """
    quotients = _Quotients(problem, point, sizes)
    evaluations = 0
    if sparsity is not None:
        matrix, evaluations = quotients.compressed(sparsity)
        evaluations += 1
        if quotients.confirms(matrix):
            return Matrix(matrix, Work(f=evaluations), sparsity, sizes=quotients.known)
    matrix, more = quotients.full()
    work = Work(f=evaluations + more)
    return Matrix(matrix, work, quotients.sparsity, ~quotients.flat, quotients.known)


def units_of(space: Space, sizes: Array) -> Array:
    """Powers of two by which quantities of these sizes may be divided, to be
    comparable.

    Sizes that are less than a million apart are taken to be in the same unit, which is
    1 for the largest; zero, of which nothing is known, is as well.
    """
    xp = space.xp
    largest = xp.max(
        xp.where(sizes < xp.inf, sizes, space.zero), axis=-1, keepdims=True
    )
    known = (sizes > 0.0) & (sizes < xp.inf)
    ratio = space.ratio(sizes, largest)
    return _power_of_two(xp, xp.where(known, ratio, space.one))


def are_alike(space: Space, sizes: Array) -> Array:
    """Whether quantities of these sizes are less than a million apart, those that are
    zero apart: (batch, 1).
    """
    xp = space.xp
    known = (sizes > 0.0) & (sizes < xp.inf)
    least = xp.min(xp.where(known, sizes, space.infinity), axis=-1, keepdims=True)
    most = xp.max(xp.where(known, sizes, space.zero), axis=-1, keepdims=True)
    return 2.0**-UNITS * most <= least  # which overflows nowhere


def _power_of_two(xp: Any, ratio: Array) -> Array:
    """That nearest to a ratio of which the exponent is a multiple of `UNITS`."""
    power: Array = 2.0 ** (UNITS * xp.round(xp.log2(ratio) / UNITS))
    return power


def units_of_state(space: Space, value: Vec) -> Vec | None:
    """Powers of two by which the entries of a state may be divided to be comparable;
    None where they are known to be, or where a dtype or a device cannot say.

    Of a large state, those of its leaves. A zero is taken to be in the largest unit of
    its leaf.
    """
    if not has_units(space, value):
        return None
    xp, small = space.xp, space.dimension <= ENTRIES
    value = space.backend.stop(value)
    tops = [space.norm((leaf,), "max") for leaf in value]
    largest, units = reduce(xp.maximum, tops), []
    for leaf, top in zip(value, tops, strict=True):
        size = space.spread(top, leaf)
        if small:
            own = space.magnitudes(leaf)
            size = xp.where(own > 0.0, own, size)
        ratio = space.ratio(size, space.spread(largest, leaf))
        known = (ratio > 0.0) & (ratio < xp.inf)
        unit = _power_of_two(xp, xp.where(known, ratio, space.one))
        units.append(space.factor(unit, leaf))
    alike = space.every([unit == 1.0 for unit in units])
    # All who take part are asked: with units, a system is solved by another loop.
    return None if space.backend.known_all(alike) else tuple(units)


def has_units(space: Space, value: Vec) -> bool:
    """Whether units can be known: of the entries of a small state, or of its leaves."""
    coarse = space.rounding > _COARSE_DTYPE  # whose range is too small for weights
    some = space.dimension <= ENTRIES or len(value) > 1
    return some and not (coarse or space.backend.is_partial)


class _Quotients:
    """Difference quotients at a point."""

    def __init__(self, problem: Any, point: Point, sizes: Array) -> None:
        self.problem = problem
        self.space: Space = problem.space
        space, xp = self.space, self.space.xp
        self.entries = space.ravel(point.value)
        self.origin = space.ravel(point.increment)
        self.unknown, size = sizes == 0.0, xp.abs(self.entries)
        unit = units_of(space, sizes)
        largest = xp.max(size / unit, axis=-1, keepdims=True)
        # From zero, the residual of a map says how long a step is.
        length = problem.length_of_state(point)[..., None]
        told = (largest == 0.0) & (length > 0.0) & (length < xp.inf)
        typical = unit * xp.where(largest > 0.0, largest, space.one)
        typical = xp.where(told, length, typical)
        self.known = xp.where(self.unknown, typical, sizes)
        least = xp.where(told, space.one, 1e-3 * space.one) * typical
        self.resized(xp.maximum(size, least))
        self.sparsity: Sparsity | None = None
        self.grown, self.straight = sizes < 0.0, sizes < 0.0
        self.flat = xp.any(self.grown, axis=-1)

    def resized(self, sizes: Array) -> None:
        """Take steps by other sizes, such that they are exactly representable."""
        self.sizes = sizes
        self.steps = (self.entries + self.space.rounding**0.5 * sizes) - self.entries

    def change(self, direction: Array) -> Array:
        """The change of g over the steps times `direction`."""
        moved = self.space.unravel(self.entries + self.steps * direction)
        found = self.problem.nearby(self.problem.increment, moved)
        return self.space.ravel(found) - self.origin

    def full(self) -> tuple[Array, int]:
        """All columns, one by one; take note of where they are zero."""
        space, xp, size = self.space, self.space.xp, self.space.real_size
        unit = space.identity(size)
        changes = [self.change(unit[..., j, :]) for j in range(size)]
        evaluations = size + self.grow(changes) + self.straighten(changes)
        self.flat, more = self.bent(changes)
        matrix = xp.stack(changes, axis=-1) / self.steps[..., None, :]
        samples = np.asarray(space.backend.numpy(matrix)).reshape(-1, size, size)
        found = Sparsity.of((samples != 0.0).any(0))
        self.sparsity = found if len(found.groups) < size - 1 else None
        return matrix, evaluations + more

    def grow(self, changes: list[Array]) -> int:
        """Replace changes over too short or too long steps; the evaluations it took."""
        space, xp = self.space, self.space.xp
        unit, evaluations = space.identity(space.real_size), 0
        noisy = self.grown
        for growth in growths(space):
            whole = xp.stack(changes, axis=-1)
            factors, drowned = self.factors(whole, growth), self.drowned(whole)
            if space.backend.known_none(drowned | (factors != 1.0)):
                break
            self.known = xp.where(self.unknown, self.known * factors, self.known)
            evaluations += self.keep(changes, factors < 1.0)
            factors = xp.where(self.straight, space.one, factors)
            longer = drowned & (factors == 1.0)
            factors = xp.where(longer, _GROWTH * space.one, factors)
            self.resized(self.sizes * factors)
            self.grown, noisy = self.grown | (factors > 1.0), noisy | drowned
            self.learn(noisy)
            columns = self.columns(factors != 1.0)
            for j in columns:
                changes[j] = self.change(unit[..., j, :])
            evaluations += len(columns)
        return evaluations

    def learn(self, noisy: Array) -> None:
        """Let entries that drowned count as so large that no step is shorter again."""
        xp = self.space.xp
        largest = xp.max(self.known, axis=-1, keepdims=True)
        size = xp.minimum(2.0**UNITS * self.sizes, largest)
        self.known = xp.where(noisy, xp.maximum(size, self.known), self.known)

    def keep(self, changes: list[Array], shorter: Array) -> int:
        """Take note over which steps, of those to be made `shorter`, g is linear; the
        evaluations it took.

        How many steps would account for the residual is no measure of an unknown where
        an equation happens to be nearly satisfied.
        """
        space, xp = self.space, self.space.xp
        unit, columns = space.identity(space.real_size), self.columns(shorter)
        noise = _felt(space) * xp.abs(self.origin)
        for j in columns:
            half, whole = self.change(0.5 * unit[..., j, :]), changes[j]
            allowed = _LINEAR * xp.abs(whole) + noise
            linear = xp.all(xp.abs(2.0 * half - whole) <= allowed, axis=-1)[..., None]
            self.straight = self.straight | linear & shorter & (unit[..., j, :] > 0.0)
        return len(columns)

    def columns(self, mask: Array) -> list[int]:
        """The columns in which a mask holds for any sample."""
        samples = np.asarray(self.space.backend.numpy(mask))
        found = np.nonzero(samples.reshape(-1, self.space.real_size).any(0))[0]
        return [int(j) for j in found]

    def straighten(self, changes: list[Array]) -> int:
        """Leave out the squares of unknowns of which nothing is known; the evaluations
        it took.

        Where an equation is satisfied, as many are in kinetics that begin without a
        product, such a change would be all that it has, and give it a wrong unit.
        """
        space, xp = self.space, self.space.xp
        if space.backend.known_none(self.unknown):
            return 0
        unit = space.identity(space.real_size)
        slopes = xp.abs(xp.stack(changes, axis=-1) / self.steps[..., None, :])
        doubtful = slopes < _SLIGHT * xp.max(slopes, axis=-1, keepdims=True)
        satisfied = (self.origin == 0.0)[..., :, None]
        doubtful = doubtful & (slopes > 0.0) & satisfied & self.unknown[..., None, :]
        columns = self.columns(xp.any(doubtful, axis=-2))
        for j in columns:
            half, whole = self.change(0.5 * unit[..., j, :]), changes[j]
            curved = xp.abs(2.0 * half - whole) > _BENT * xp.abs(whole)
            changes[j] = xp.where(doubtful[..., :, j] & curved, space.zero, whole)
        return len(columns)

    def bent(self, changes: list[Array]) -> tuple[Array, int]:
        """Whether g is not linear over a step that grew; and the evaluations taken."""
        space, xp, bent = self.space, self.space.xp, self.flat
        if space.backend.known_none(self.grown):
            return bent, 0
        unit, grown = space.identity(space.real_size), self.columns(self.grown)
        for j in grown:
            half = self.change(0.5 * unit[..., j, :])
            wrong = xp.max(xp.abs(2.0 * half - changes[j]), axis=-1)
            curved = wrong > _BENT * xp.max(xp.abs(changes[j]), axis=-1)
            bent = bent | (self.grown[..., j] & curved)
        return bent, len(grown)

    def factors(self, changes: Array, growth: float) -> Array:
        """What to multiply each step by: `growth` where no equation feels it."""
        space, xp = self.space, self.space.xp
        size, origin = xp.abs(changes), xp.abs(self.origin)[..., :, None]
        known = (size > 0.0) & (size < xp.inf) & (origin > 0.0)
        # How many of its steps would account for the residual, by the equation that
        # says least.
        account = xp.where(known, space.ratio(origin, size), space.infinity)
        fewest = xp.min(account, axis=-2)
        # An equation that is satisfied tells of no unit, but may feel the step.
        silent = ~xp.any((size > 0.0) & (origin == 0.0), axis=-2)
        deaf = silent & (fewest > 1.0 / _felt(space)) & xp.any(origin > 0.0, axis=-2)
        coarse = self.unknown & ~self.straight & (fewest < _COARSE)
        shrunk = space.rounding**0.5 * xp.where(coarse, fewest, space.one)
        return xp.where(deaf, growth * space.one, xp.where(coarse, shrunk, space.one))

    def drowned(self, changes: Array) -> Array:
        """Whether changes are less than what may be rounding errors in every equation,
        by the largest of its terms.
        """
        xp, size = self.space.xp, self.space.xp.abs(changes)
        terms = size * (xp.abs(self.entries) / xp.abs(self.steps))[..., None, :]
        terms = xp.where(xp.isfinite(terms), terms, self.space.zero)
        noise = _NOISE * self.space.rounding * xp.max(terms, axis=-1, keepdims=True)
        return xp.all(size <= noise, axis=-2) & xp.any(noise > 0.0, axis=-2)

    def compressed(self, sparsity: Sparsity) -> tuple[Array, int]:
        """The columns of each group from one evaluation."""
        space, xp = self.space, self.space.xp
        members = np.zeros((len(sparsity.groups), space.real_size))
        for row, group in zip(members, sparsity.groups, strict=True):
            row[group] = 1.0
        changes = [
            self.change(xp.asarray(row, dtype=space.dtype) + 0.0 * self.entries)
            for row in members
        ]
        group_of = xp.asarray(members.argmax(axis=0))
        spread = xp.take(xp.stack(changes, axis=-1), group_of, axis=-1)
        pattern = xp.asarray(sparsity.pattern, dtype=space.dtype)
        return spread * pattern / self.steps[..., None, :], len(changes)

    def confirms(self, matrix: Array) -> bool:
        """Whether a random direction finds no entry that `matrix` lacks.

        No two columns are moved by the same multiple of their steps: of those that
        share an evaluation, one would hide an entry that the other lacks.
        """
        space, xp, random = self.space, self.space.xp, np.random.default_rng(0)
        signs = random.choice([-1.0, 1.0], space.real_size)
        multiples = signs * random.uniform(0.5, 1.0, space.real_size)
        direction = xp.asarray(multiples, dtype=space.dtype) + 0.0 * self.entries
        moves = (self.entries + self.steps * direction) - self.entries
        change = self.change(direction)
        wrong = xp.abs(change - times(space, matrix, moves))
        # Row by row: the equations may differ in scale. What is not finite tells
        # nothing.
        size = xp.abs(change) + times(space, xp.abs(matrix), xp.abs(moves))
        return bool(xp.all((wrong <= _AGREEMENT * size) | ~xp.isfinite(wrong)))
