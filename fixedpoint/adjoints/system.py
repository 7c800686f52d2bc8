"""The linear systems of derivatives, and what makes their equations comparable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import mul, truediv
from typing import NamedTuple

import numpy as np

from fixedpoint.backend import Array, Vec
from fixedpoint.carry import marked
from fixedpoint.control import Memory
from fixedpoint.differences import are_alike, has_units, units_of_state
from fixedpoint.functions import Bridge, Product
from fixedpoint.iterate import Iteration
from fixedpoint.linear.direct import Dense
from fixedpoint.matrix import as_coefficients
from fixedpoint.solution import Work
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint.status import Status

_Entrywise = Callable[[Vec, Vec], Vec]


class Scales(NamedTuple):
    """What equations, and the entries of their solution, are multiplied by."""

    rows: Vec
    columns: Vec


@dataclass(frozen=True, eq=False)
class AdjointSystem:
    """The linear system (I − A)u = v of every sample, A = Jᵀ for cotangents and J for
    tangents.

    For roots it is F′ᵀu = v, or F′u = v. There A belongs to −F, and the system is −Au =
    v.

    Parameters
    ----------
    space : Space
        Where u and v lie, as rows.
    product : callable
        u ↦ Au.
    rhs : Vec
        v.
    rtol : float
        The tolerance of the forward solve.
    is_root : bool
        Whether a root is differentiated.
    transposed : bool
        Whether A is Jᵀ.
    start : Vec or None
        Where to start.
    precondition : callable or None
        v ↦ Pv, P an approximate inverse of I − A or −A.
    memory : Memory or None
        What the forward solver remembers.
    units : Vec or None
        What the entries of u are multiplied by to be comparable, as powers of two, as
        far as the state tells; None where no equation has to be looked at.
    """

    space: Space
    product: Product
    rhs: Vec
    rtol: float
    is_root: bool
    transposed: bool
    start: Vec | None = None
    precondition: Product | None = None
    memory: Memory | None = None
    units: Vec | None = None

    def on(self, bridge: Bridge) -> AdjointSystem:
        """The same by another library's arithmetic."""
        rhs, start, memory = bridge.all_there(self.rhs), self.start, self.memory
        return replace(
            self,
            space=space_of(bridge.backend, rhs, self.space.batch_ndim),
            product=bridge.function(self.product),
            rhs=rhs,
            start=start and bridge.all_there(start),
            precondition=bridge.function(self.precondition),
            memory=memory and memory.converted(bridge.there_in),
            units=self.units and bridge.all_there(self.units),
        )

    def comparable(self, scales: Scales) -> AdjointSystem:
        """The system R(I − A)C⁻¹(Cu) = Rv, for roots −RAC⁻¹(Cu) = Rv."""
        rows, columns = scales
        inverse, product = self.precondition, self.product
        times: _Entrywise = lambda units, u: tuple(map(mul, units, u))
        over: _Entrywise = lambda u, units: tuple(map(truediv, u, units))
        return replace(
            self,
            product=lambda w: times(rows, product(over(w, columns))),
            rhs=times(rows, self.rhs),
            start=None if self.start is None else times(columns, self.start),
            precondition=inverse and (lambda w: times(columns, inverse(over(w, rows)))),
        )

    def damped(self, factor: Array) -> AdjointSystem:
        """The system β(I − A)u = βv of a fixed point, whose map takes damped steps."""
        space, product = self.space, self.product

        def times(u: Vec) -> Vec:
            step = space.subtract(product(u), u)
            return space.add(u, space.scale(factor, step))

        return replace(self, product=times, rhs=space.scale(factor, self.rhs))

    def equations(self, u: Vec, rtol: float) -> tuple[Array, Vec, int]:
        """Whether u leaves of an equation more than ten times `rtol` of its terms, by
        sample; the size of these terms, and products taken.

        The terms of a root's equation may cancel: they are as large as the products
        with either half of u.
        """
        xp, space = self.space.xp, self.space
        halves = _halves(space, u) if self.is_root else (u,)
        images = [self.product(half) for half in halves]
        left = space.add(reduce(space.add, images), self.rhs)
        terms = [*images, self.rhs]
        if not self.is_root:
            left, terms = space.subtract(left, u), [*terms, u]
        sizes = [reduce(xp.maximum, map(xp.abs, of)) for of in zip(*terms, strict=True)]
        share, pairs = 10.0 * rtol, zip(left, sizes, strict=True)
        holds = space.every([xp.abs(rest) <= share * most for rest, most in pairs])
        return ~holds, tuple(sizes), len(images)

    @property
    def is_mixed(self) -> Array:
        """The samples whose unknowns the state knows to be in different units."""
        return ~self.are_alike(self._units)

    def are_alike(self, vector: Vec) -> Array:
        """Whether the entries of each sample are less than a million apart in size."""
        xp, sizes = self.space.xp, tuple(map(self.space.magnitudes, vector))
        return are_alike(self.space, xp.concat(self.space.rows(sizes), axis=-1))[..., 0]

    @property
    def _units(self) -> Vec:
        """The units of the unknowns, of each right-hand side."""
        assert self.units is not None
        return tuple(map(mul, self.units, map(self.space.xp.ones_like, self.rhs)))

    def scales(self, sizes: Vec) -> Scales:
        """What makes equations and entries comparable, by the size of an equation's
        terms for roots; those of a fixed point are in the units of the state.
        """
        units = self._units
        return Scales(_reciprocals(self.space, sizes) if self.is_root else units, units)

    def eliminated(self) -> Iteration:
        """The solution with a matrix, and one correction, which is its error.

        Samples that f couples have no matrices of their own: what the solutions of a
        batch leave of their equations is told by another product.
        """
        space, products = self.space, 0
        column = lambda unit: space.ravel(self.operator(space.unravel(unit)))
        matrix = space.backend.mapped(column, space.identity(space.real_size))
        dense = Dense(space, matrix, space.ravel(self.rhs))
        entries, more = dense.refined()
        u, left = space.unravel(entries), dense.left(entries)
        if space.batch_ndim:
            left, products = -space.ravel(self.residual(u)), 1
        with space.backend.quiet():
            residual, error = space.norms(space.unravel(left), space.unravel(more))
        end = self.unfinished(u, space.real_size + products)
        failed = 0 * end.status + int(Status.LINEAR_SOLVE_FAILED)
        holds = dense.holds(entries, left, space.rounding if products else 0.0)
        holds = holds & dense.resolves(entries, more)
        return end._replace(
            status=marked(space.xp, failed, holds, Status.CONVERGED),
            residual_norm=residual,
            error=error,
        )

    def image(self, u: Vec) -> Vec:
        """Au + v: the map whose fixed point is sought, or for roots the residual."""
        return self.space.add(self.product(u), self.rhs)

    def residual(self, u: Vec) -> Vec:
        """What u leaves of v."""
        image = self.image(u)
        return image if self.is_root else self.space.subtract(image, u)

    def operator(self, u: Vec) -> Vec:
        """The product with I − A, or for roots −A."""
        space, image = self.space, self.product(u)
        return space.negative(image) if self.is_root else space.subtract(u, image)

    def unfinished(self, u: Vec, products: int) -> Iteration:
        """An approximation that nobody has tested: its residual is not a number."""
        xp, space = self.space.xp, self.space
        norm = space.full(float("nan"))
        zero = xp.zeros_like(norm, dtype=xp.int32)
        return Iteration(
            value=u,
            residual_norm=norm,
            error=norm,
            method=zero,
            status=zero + int(Status.MAX_STEPS),
            precise=zero > 0,
            steps=zero + products,
            work=Work(vjp=products),
        )


def units_of_unknowns(
    space: Space, value: Vec, is_root: bool, transposed: bool
) -> Vec | None:
    """What makes the unknowns of a derivative comparable; None where nothing is to be
    looked at: equations of a fixed point are in the units of its state.

    Cotangents are in one over the units of the state, and tangents in those.
    """
    units = units_of_state(space, value)
    if units is None:
        looked_at = is_root and has_units(space, value)
        return tuple(map(space.xp.ones_like, value)) if looked_at else None
    return units if transposed else tuple([1.0 / unit for unit in units])


def _reciprocals(space: Space, vector: Vec) -> Vec:
    """Powers of two that bring the entries of a vector to the size of its largest."""
    xp, tops = space.xp, [space.norm((leaf,), "max") for leaf in vector]
    largest, scales = reduce(xp.maximum, tops), []
    for leaf in vector:
        top = space.spread(largest, leaf)
        ratio = space.ratio(space.magnitudes(leaf), top)
        known = (ratio > space.rounding) & (ratio < xp.inf)
        power = 2.0 ** -xp.round(xp.log2(xp.where(known, ratio, space.one)))
        scales.append(space.factor(power, leaf))
    return tuple(scales)


def _halves(space: Space, u: Vec) -> list[Vec]:
    """The parts of u in either half of the entries, chosen at random."""
    chosen, begin, halves = _chosen(sum(space.sizes)), 0, []
    for leaf, count in zip(u, space.sizes, strict=True):
        part = as_coefficients(space, chosen[begin : begin + count])
        mask = space.as_leaf(part, leaf)
        halves.append((mask * leaf, (1.0 - mask) * leaf))
        begin += count
    return [tuple(half) for half in zip(*halves, strict=True)]


@cache
def _chosen(entries: int) -> Array:
    """Ones at half of the entries, the same ones for every derivative."""
    return np.random.default_rng(0).permutation(entries) % 2
