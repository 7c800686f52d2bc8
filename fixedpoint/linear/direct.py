"""Linear systems whose matrix is known, by elimination or by least squares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fixedpoint.backend import Array
from fixedpoint.matrix import as_coefficients, is_sparse, product_with, times
from fixedpoint.space import Space

# A correction of more than this share of a solution leaves too few digits of it; ten
# times the root of a roundoff in lower precision.
_DIGITS = 1e-3

# What elimination may leave of the right-hand side, for its solution to be used.
_TRUST = 1e-6

# Rounding errors that a term of an equation may make.
_ROUNDINGS = 8.0

# A solution that leaves more of the right-hand side has reduced nothing: the matrix is
# singular. One that leaves less than this part of every entry has missed none.
_UNEXPLAINED, _SOUND = 1.0 - 1e-6, 0.5


class Factors(NamedTuple):
    """The scaled Jacobian, its singular values and vectors, J D⁻¹ = U Σ Vᵀ, and D.

    Where the Jacobian is not finite, ``finite`` is false, and the factors are those of
    zero. Singular values that are rounding are zero. Σ, U and V are constant to
    derivatives: where singular values repeat they have none.
    """

    matrix: Array
    left: Array
    values: Array
    right: Array
    scales: Array
    finite: Array


def factorized(space: Space, matrix: Array, scales: Array) -> Factors:
    """The factors of `matrix` with its columns divided by `scales`."""
    xp = space.xp
    finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))
    matrix = matrix / scales[..., None, :]
    matrix = xp.where(finite[..., None, None], matrix, space.zero)
    left, values, right = space.backend.singular(*space.backend.stop((matrix,)))
    least = matrix.shape[-1] * space.precision * values[..., :1]
    values = xp.where(values > least, values, space.zero)
    return Factors(matrix, left, values, right, scales, finite)


def column_norms(space: Space, matrix: Array) -> Array:
    """The norm of each column, 1 where it is zero or not finite."""
    xp = space.xp
    squares = xp.sum(matrix * matrix, axis=-2)
    return xp.sqrt(xp.where((squares > 0.0) & (squares < xp.inf), squares, space.one))


def solved(space: Space, factors: Factors, rhs: Array) -> Array:
    """The least-squares solution J⁺b."""
    none = space.xp.zeros_like(rhs[..., :1])
    turned = damped(space, factors, rotated(space, factors, rhs), none)
    return rotated_back(space, factors, turned)


def rotated(space: Space, factors: Factors, rhs: Array) -> Array:
    """The product Uᵀb."""
    return times(space, space.xp.matrix_transpose(factors.left), rhs)


def damped(space: Space, factors: Factors, rhs: Array, lam: Array) -> Array:
    """The q = (Σ² + λ)⁻¹Σb; D⁻¹Vq is the damped solution for the right side Ub."""
    entries = space.ratio(factors.values * rhs, factors.values * factors.values + lam)
    if space.backend.records:
        return _recorded(space, factors, rhs, lam, entries)
    return entries


def _recorded(
    space: Space, factors: Factors, rhs: Array, lam: Array, entries: Array
) -> Array:
    """The same `entries`, with their derivative.

    With C = UᵀJD⁻¹V, which is Σ but for its derivative, and y = Σ⁻¹q, they are Cᵀy plus
    the solution of (CᵀC + λ)x = Cᵀ(b − CCᵀy) − λCᵀy. That is zero but for its
    derivative, and its matrix, with the diagonal brought to one, a unit matrix however
    C is conditioned.
    """
    xp, backend, values = space.xp, space.backend, factors.values
    known, shift = backend.stop((entries, lam))
    kept, inverse = values > 0.0, space.ratio(space.one, values)
    scale = space.ratio(inverse, xp.sqrt(1.0 + shift * inverse * inverse))
    core, unit = _core(space, factors), space.identity(values.shape[-1])
    across = xp.matrix_transpose(core)
    start = times(space, across, inverse * known)
    left = times(space, across, rhs - times(space, core, start)) - lam * start
    normal = xp.matmul(across, core) + lam[..., None] * unit
    normal = scale[..., None] * normal * scale[..., None, :]
    normal = xp.where(kept[..., None], normal, unit)
    return start + scale * backend.solve(normal, scale * left)


def _core(space: Space, factors: Factors) -> Array:
    """The product UᵀJD⁻¹V, which is Σ but for its derivative."""
    xp, kept = space.xp, factors.values > 0.0
    left, right = xp.matrix_transpose(factors.left), xp.matrix_transpose(factors.right)
    product = xp.matmul(xp.matmul(left, factors.matrix), right)
    change = product - space.backend.stop((product,))[0]
    change = xp.where(kept[..., :, None] | kept[..., None, :], change, space.zero)
    return factors.values[..., None] * space.identity(factors.values.shape[-1]) + change


def rotated_back(space: Space, factors: Factors, entries: Array) -> Array:
    """The product D⁻¹V with `entries`."""
    turned = times(space, space.xp.matrix_transpose(factors.right), entries)
    return turned / factors.scales


class System(ABC):
    """A linear system Ax = b of every sample, solved."""

    space: Space  # that of x, in its coefficients
    rhs: Array  # b, zero where it or A is not finite
    finite: Array  # whether both are

    @staticmethod
    def of(space: Space, matrix: Any, rhs: Array, kept: list[Any]) -> System:
        """The system of a dense matrix for each sample, or of a sparse one.

        `kept` is where the factors of the last sparse one are kept.
        """
        if is_sparse(matrix):
            return Sparse(space, matrix, rhs, kept)
        return Dense(space, matrix, rhs)

    @abstractmethod
    def solved(self, rhs: Array) -> Array:
        """The solution for another right-hand side."""

    @abstractmethod
    def times(self, entries: Array) -> Array:
        """The product with A."""

    @abstractmethod
    def row_maxima(self, sizes: Array) -> Array:
        """The largest |aᵢⱼ| sizeⱼ of each row."""

    @abstractmethod
    def dense(self) -> Array:
        """A as an array."""

    @cached_property
    def entries(self) -> Array:
        """The solution x."""
        return self.solved(self.rhs)

    @cached_property
    def _left(self) -> Array:
        """What x leaves of b, Ax − b."""
        return self.left(self.entries)

    @cached_property
    def _terms(self) -> Array:
        """The largest |aᵢⱼxⱼ| of each row."""
        return self.row_maxima(self.space.xp.abs(self.entries))

    @cached_property
    def explained(self) -> Array:
        """Whether x accounts for any of b, equations in units of coefficients."""
        xp, space = self.space.xp, self.space
        weights = space.ratio(space.one, xp.maximum(self._terms, xp.abs(self.rhs)))
        norm = xp.linalg.vector_norm
        left, whole = (norm(weights * u, axis=-1) for u in (self._left, self.rhs))
        return left / whole <= _UNEXPLAINED

    @cached_property
    def sound(self) -> Array:
        """Whether x accounts for most of every entry of b."""
        return self._is_small(self._left, self.rhs, self._terms)

    def accounts_for(self, entries: Array, rhs: Array) -> Array:
        """Whether entries, the solution for another side, account for most of that."""
        terms = self.row_maxima(self.space.xp.abs(entries))
        return self._is_small(self.times(entries) - rhs, rhs, terms)

    def left(self, entries: Array) -> Array:
        """What entries leave of b, Ax − b."""
        return self.times(entries) - self.rhs

    def _is_small(self, left: Array, rhs: Array, terms: Array) -> Array:
        xp = self.space.xp
        bound = _SOUND * xp.abs(rhs) + _TRUST * terms
        return xp.all(xp.abs(left) <= bound, axis=-1)


class Dense(System):
    """A system with a dense matrix (batch, n, n)."""

    def __init__(self, space: Space, matrix: Array, rhs: Array) -> None:
        xp = space.xp
        finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))
        finite = finite & xp.all(xp.isfinite(rhs), axis=-1)
        self.unit = space.identity(rhs.shape[-1])
        matrix = xp.where(finite[..., None, None], matrix, self.unit)
        self.space, self.finite, self.matrix = space, finite, matrix
        self.rhs = xp.where(finite[..., None], rhs, space.zero)
        self.scales = column_norms(space, matrix)
        scaled = matrix / self.scales[..., None, :]
        # Powers of two, which leave every digit of a graded chain as it is.
        norms = column_norms(space, xp.matrix_transpose(scaled))
        self.rows = 2.0 ** xp.round(xp.log2(norms))
        self.scaled = scaled / self.rows[..., :, None]

    def solved(self, rhs: Array) -> Array:
        """By elimination, which knows chains of equations to the last, however graded.

        Where that cannot be trusted, the least-squares solution.
        """
        space, xp, b = self.space, self.space.xp, rhs / self.rows
        entries = self._eliminated(self.scaled, b)
        left = xp.max(xp.abs(times(space, self.scaled, entries) - b), axis=-1)
        trusted = left <= _TRUST * xp.max(xp.abs(b), axis=-1)
        entries = entries / self.scales
        if space.backend.records and not space.backend.known_all(trusted):
            # The derivative of a solution with a singular matrix is not finite.
            sound = xp.where(trusted[..., None, None], self.scaled, self.unit)
            entries = self._eliminated(sound, b) / self.scales
        least = lambda: (self._least_squares(rhs),)
        return space.backend.replaced_where((entries,), ~trusted, least)[0]

    def _eliminated(self, matrix: Array, rhs: Array) -> Array:
        """The solution; of one equation by a division, which is much faster."""
        if rhs.shape[-1] == 1:
            return self.space.ratio(rhs, matrix[..., 0])
        return self.space.backend.solve(matrix, rhs)

    def refined(self) -> tuple[Array, Array]:
        """The solution by elimination, corrected once, and the correction; where that
        does not solve the system, the least-squares solution.
        """

        def eliminated(rhs: Array) -> Array:
            return self._eliminated(self.scaled, rhs / self.rows) / self.scales

        first = eliminated(self.rhs)
        more = eliminated(self.rhs - self.times(first))
        whole = first + more
        wrong = ~self.holds(whole, self.left(whole))
        none = self.space.xp.zeros_like(more)
        least = lambda: (self._least_squares(self.rhs), none)
        replaced = self.space.backend.replaced_where
        entries, more = replaced((whole, more), wrong, least)
        return entries, more

    def holds(self, entries: Array, left: Array, rounding: float = 0.0) -> Array:
        """Whether entries satisfy every equation, of which they leave so much, but for
        rounding of its terms, or where these cancel by the root of a roundoff.

        Entries that would be zero are rounding errors of the others. A right-hand side
        that is less than rounding of the terms in every equation is lost among these.
        """
        xp, size = self.space.xp, entries.shape[-1]
        own = size * _ROUNDINGS * self.space.precision
        sizes = xp.abs(entries) * self.scales
        least = own * xp.max(sizes, axis=-1, keepdims=True)
        terms = self.row_maxima(xp.maximum(sizes, least) / self.scales)
        terms = xp.maximum(terms, xp.abs(self.rhs))
        holds = xp.abs(left) <= max(_TRUST, own, rounding**0.5) * terms
        lost = xp.abs(self.rhs) <= _ROUNDINGS * self.space.precision * terms
        told = xp.any(~lost, axis=-1) | ~xp.any(self.rhs != 0.0, axis=-1)
        return self.finite & told & xp.all(holds, axis=-1)

    def resolves(self, entries: Array, more: Array) -> Array:
        """Whether a correction, which is what rounding makes of the entries, leaves
        digits of them, each in the unit of its column.
        """
        xp, scales = self.space.xp, self.scales
        sizes = [xp.max(scales * xp.abs(u), axis=-1) for u in (more, entries)]
        share = max(_DIGITS, 10.0 * self.space.rounding**0.5)
        return sizes[0] <= share * sizes[1]

    def _least_squares(self, rhs: Array) -> Array:
        """The least-squares solution."""
        return solved(self.space, factorized(self.space, self.matrix, self.scales), rhs)

    def times(self, entries: Array) -> Array:
        """The product with A."""
        return times(self.space, self.matrix, entries)

    def row_maxima(self, sizes: Array) -> Array:
        """The largest |aᵢⱼ| sizeⱼ of each row."""
        xp = self.space.xp
        return xp.max(xp.abs(self.matrix) * sizes[..., None, :], axis=-1)

    def dense(self) -> Array:
        """A."""
        return self.matrix


class Sparse(System):
    """A system with one of SciPy's sparse matrices, factored by SuperLU, or UMFPACK if
    it is there.

    All is done in NumPy, in double precision. Nothing is known of its least-squares
    solution: where it is singular the solution is zero. If the matrix is the last one
    again, so are its factors.
    """

    def __init__(self, space: Space, matrix: Any, rhs: Array, kept: list[Any]) -> None:
        from scipy.sparse import diags_array  # noqa: PLC0415  there, since the matrix is

        b = space.backend.numpy(rhs)
        self.is_finite = bool(np.isfinite(matrix.data).all() and np.isfinite(b).all())
        self.space, self.finite = space, space.full(float(self.is_finite)) > 0.0
        self.rhs = rhs if self.is_finite else space.xp.zeros_like(rhs)
        self.matrix, self.kept = matrix, kept
        self.columns = _positive(_largest(abs(matrix), axis=0))
        scaled = matrix @ diags_array(1.0 / self.columns)
        self.rows = _positive(_largest(abs(scaled), axis=1))
        self.scaled = (diags_array(1.0 / self.rows) @ scaled).tocsc()

    @cached_property
    def _factors(self) -> Any:
        """What solves the scaled system, or None where it is singular."""
        if not self.is_finite:
            return None
        if not any(_same(last, self.scaled) for last, _ in self.kept):
            self.kept[:] = [(self.scaled, _factorized(self.scaled))]
        return self.kept[0][1]

    def solved(self, rhs: Array) -> Array:
        """By the factors."""
        if self._factors is None:
            return self.space.xp.zeros_like(rhs)
        b = np.asarray(self.space.backend.numpy(rhs), dtype=np.float64)
        entries = self._factors(b / self.rows) / self.columns
        known = np.isfinite(entries).all()
        return as_coefficients(self.space, entries if known else np.zeros_like(entries))

    def times(self, entries: Array) -> Array:
        """The product with A."""
        return product_with(self.space, self.matrix, entries)

    def row_maxima(self, sizes: Array) -> Array:
        """The largest |aᵢⱼ| sizeⱼ of each row."""
        columns = self.space.backend.numpy(sizes)[None, :]
        terms = abs(self.matrix).multiply(columns).tocsr()
        return as_coefficients(self.space, _largest(terms, axis=1))

    def dense(self) -> Array:
        """A as an array."""
        return as_coefficients(self.space, self.matrix.toarray())


def _factorized(matrix: Any) -> Any:
    from scipy.sparse.linalg import factorized  # noqa: PLC0415  there, since the matrix is

    try:
        return factorized(matrix)
    except RuntimeError:  # SuperLU's word for a matrix that is exactly singular
        return None


def _same(a: Any, b: Any) -> bool:
    """Whether two matrices in compressed columns are the same."""
    pairs = (a.data, b.data), (a.indices, b.indices), (a.indptr, b.indptr)
    return all(np.array_equal(first, second) for first, second in pairs)


def _largest(matrix: Any, axis: int) -> Any:
    """The largest entry of each row or column."""
    return matrix.max(axis=axis).toarray().reshape(-1)


def _positive(sizes: Any) -> Any:
    """Ones in place of zeros."""
    return np.where((sizes > 0.0) & np.isfinite(sizes), sizes, 1.0)
