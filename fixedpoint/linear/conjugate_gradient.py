"""The method of conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from fixedpoint.backend import Array, Vec, joined
from fixedpoint.checks import check_count
from fixedpoint.columns import Columns
from fixedpoint.keywords import by_name
from fixedpoint.linear.bare_gradients import BareGradients
from fixedpoint.linear.base import LinearSolution, LinearSolver, LinearSystem
from fixedpoint.space import Space

# Residuals that are kept of the first solve, for each Ritz vector that is sought in
# their span.
_WINDOW = 20


class Spectrum(NamedTuple):
    """Ritz vectors of the first solve's matrix: a preconditioner for those to come."""

    vectors: Columns  # W, of the smallest Ritz values θᵢ; zero while not known
    factors: Array  # (batch, k), σ/θᵢ − 1, where σ is the next Ritz value

    def applied(self, space: Space, v: Vec) -> Vec:
        """The product v + Σ (σ/θᵢ − 1) wᵢ ⟨wᵢ, v⟩, which moves each θᵢ to σ."""
        along = self.vectors.transposed_times(space, v)
        return self.vectors.added_to(space, v, self.factors * along)


class _Lanczos(NamedTuple):
    """The normalized residuals of a solve, and what makes up its tridiagonal matrix."""

    basis: Columns
    lengths: Array
    ratios: Array


class _Carry(NamedTuple):
    x: Vec
    r: Vec
    p: Vec
    rz: Array
    norm: Array
    along: Array
    busy: Array
    steps: Any
    lanczos: _Lanczos | None


@by_name
@dataclass(frozen=True, kw_only=True)
class ConjugateGradient(LinearSolver):
    """Conjugate gradients, for Jacobians that are symmetric and positive or negative
    definite.

    Three vectors and one product a step: where the Jacobian of F is known to be
    symmetric definite (the gradient of a convex function, a discretized elliptic
    problem), nothing is cheaper. On others it may not converge, which is reported.

    With `recycle` the first solve keeps its residuals, which are Lanczos vectors, and
    the Ritz vectors of the smallest Ritz values precondition the solves of all later
    Newton steps, whose matrices are close: what slows them down is then out of the way.

    Parameters
    ----------
    max_steps : int, optional
        Products at most.
    recycle : int, optional
        Ritz vectors to keep; the first solve holds up to 20 times as many vectors.

    References
    ----------
    Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
    J. Res. Nat. Bur. Standards 49, 1952. Carpentieri, Duff and Giraud, "A class of
    spectral two-level preconditioners", SIAM J. Sci. Comput. 25, 2003.
    """

    max_steps: int = 500
    recycle: int = 0

    def __post_init__(self) -> None:
        check_count("max_steps", self.max_steps, 1)
        check_count("recycle", self.recycle, 0)

    def init(self, space: Space) -> Spectrum | None:
        """No Ritz vectors yet."""
        size = min(self.recycle, space.size)
        if not size:
            return None
        return Spectrum(Columns.zeros(space, size), space.full(0.0, (size,)))

    def solve(self, system: LinearSystem, memory: Any) -> tuple[LinearSolution, Any]:
        """Solve from zero."""
        space = system.space
        if memory is None:
            return self._run(system, None)[0], None
        unknown = space.xp.all(memory.factors == 0.0, axis=-1)
        if space.backend.known_none(unknown):
            return self._run(system, memory)[0], memory
        most = min(_WINDOW * self.recycle, space.size)
        blank = space.full(0.0, (most,)), space.full(0.0, (most,))
        lanczos = _Lanczos(Columns.zeros(space, most), *blank)
        solution, lanczos = self._run(system, memory, lanczos)
        size = memory.factors.shape[-1]
        lanczos = _trimmed(space, lanczos, solution.products, size + 1)
        found = _spectrum(space, lanczos, size)
        factors = space.xp.where(unknown[..., None], found.factors, memory.factors)
        leaves = space.where(unknown, found.vectors.leaves, memory.vectors.leaves)
        return solution, Spectrum(Columns(leaves), factors)

    def _run(
        self,
        system: LinearSystem,
        spectrum: Spectrum | None,
        lanczos: _Lanczos | None = None,
    ) -> tuple[LinearSolution, Any]:
        """Solve, preconditioned by a spectrum, and fill the window of vectors."""
        space = system.space
        if space.is_bare and system.precondition is None:
            # While there is something to find, nothing is known of the one sample.
            known = spectrum if lanczos is None else None
            return self._bare(system, known, lanczos), lanczos
        if spectrum is not None:
            system = system.with_preconditioner(spectrum)
        x, _, busy = system.start()
        r = space.copy(system.rhs)
        z, rz, square = _measured(system, r)
        norm = space.xp.sqrt(square)
        first = _Carry(x, r, space.copy(z), rz, norm, square, busy, 0, lanczos)
        end = system.run(partial(_step, system), first, self.max_steps)
        return system.solution(end.x, end.norm, end.steps), end.lanczos

    def _bare(
        self, system: LinearSystem, spectrum: Spectrum | None, lanczos: _Lanczos | None
    ) -> LinearSolution:
        """Solve on the one array that there is."""
        shape, rhs = system.space.shapes[0], system.rhs[0].reshape(-1)
        _, norm, busy = system.start()

        def product(v: Array, length: float) -> Array:
            return system.along((v.reshape(shape),), length)[0].reshape(-1)

        gradients = BareGradients(
            product=product,
            r=rhs.copy(),
            target=float(system.target),
            spectrum=spectrum and (spectrum.vectors.matrix(), spectrum.factors),
            window=lanczos and (lanczos.basis.matrix(), *lanczos[1:]),
        )
        steps = gradients.run(self.max_steps if busy else 0)
        x = gradients.x.reshape(shape)
        return system.solution((x,), norm.dtype.type(gradients.norm), steps)


def _step(system: LinearSystem, carry: _Carry) -> _Carry:
    """Minimize along p, and make the next p conjugate to it."""
    space, (x, r, p, rz, norm, along, busy, steps, lanczos) = system.space, carry
    plain = system.precondition is None
    q = system.along(p, space.xp.sqrt(along) if plain else None)
    length = space.xp.where(busy, space.ratio(rz, space.dot(p, q)), space.zero)
    if lanczos is not None:
        lanczos = _kept(space, lanczos, steps, r, norm, length)
    x, r = space.accumulate(x, length, p), space.accumulate(r, -length, q)
    z, rz_new, square = _measured(system, r)
    norm_new, ratio = space.xp.sqrt(square), space.ratio(rz_new, rz)
    if lanczos is not None:
        lanczos = lanczos._replace(ratios=_written(space, lanczos.ratios, steps, ratio))
    p = space.axpy(ratio, p, z)
    busy = busy & (norm_new > system.target) & (norm_new < space.xp.inf)
    busy = busy & (length != 0.0)
    along = square + ratio * ratio * along  # r is orthogonal to what p was
    return _Carry(x, r, p, rz_new, norm_new, along, busy, steps + 1, lanczos)


def _measured(system: LinearSystem, r: Vec) -> tuple[Vec, Array, Array]:
    """The preconditioned residual z, ⟨r, z⟩, and ‖r‖²."""
    space, z = system.space, system.preconditioned(r)
    if z is r:
        square = space.dot(r, r)
        return z, square, square
    return z, *space.dots((r, z), (r, r))


def _kept(
    space: Space, lanczos: _Lanczos, steps: Any, r: Vec, norm: Array, length: Array
) -> _Lanczos:
    """The window with one more residual, while there is room, of samples not done."""
    window = lanczos.lengths.shape[-1]
    slot = steps % window
    fits = (length != 0.0) & (steps < window)
    unit = space.scale(space.ratio(space.one, norm), r)
    if not space.backend.known_all(fits):
        unit = space.where(fits, unit, lanczos.basis.column(space, slot))
    return lanczos._replace(
        basis=lanczos.basis.push(space, slot, unit),
        lengths=_written(space, lanczos.lengths, steps, length),
    )


def _written(space: Space, numbers: Array, steps: Any, new: Array) -> Array:
    """`numbers` with a new one at the place `steps`, if there is such a place."""
    slot, fits = steps % numbers.shape[-1], steps < numbers.shape[-1]
    if fits is False:
        return numbers
    if fits is not True:  # it is traced
        new = space.xp.where(fits, new, numbers[..., slot])
    return space.backend.write(numbers, (..., slot), new)


def _trimmed(space: Space, lanczos: _Lanczos, steps: Any, least: int) -> _Lanczos:
    """The part of the window that was filled, if it is known how much that is."""
    if not isinstance(steps, int):
        return lanczos
    basis = lanczos.basis.first(space, max(steps, least))
    count = basis.width(space)
    return _Lanczos(basis, lanczos.lengths[..., :count], lanczos.ratios[..., :count])


def _spectrum(space: Space, lanczos: _Lanczos, size: int) -> Spectrum:
    """The Ritz vectors of the smallest Ritz values, from the vectors of a solve."""
    xp, (matrix, above) = space.xp, _lanczos_matrix(space, lanczos)
    values, turned = xp.linalg.eigh(matrix)
    weights = xp.matrix_transpose(turned[..., :, :size])
    leaves = tuple([_combined(space, weights, past) for past in lanczos.basis.leaves])
    last = min(size, values.shape[-1] - 1)
    target, values = values[..., last : last + 1], values[..., :size]
    target = xp.where(target < above, target, values[..., :1])
    genuine = (values < above) & (values > 0.0)
    factors = space.ratio(target, values)
    return Spectrum(Columns(leaves), xp.where(genuine, factors - 1.0, space.zero))


def _lanczos_matrix(space: Space, lanczos: _Lanczos) -> tuple[Array, Array]:
    """The tridiagonal matrix of a solve, which goes on with a number above its spectrum
    where the solve ended before the window; and this number.
    """
    xp, lengths, ratios = space.xp, lanczos.lengths, lanczos.ratios
    inverse = xp.abs(space.ratio(space.one, lengths))
    coupling = xp.sqrt(xp.abs(ratios)) * inverse
    before = xp.concat([0.0 * ratios[..., :1], (ratios * inverse)[..., :-1]], axis=-1)
    diagonal = inverse + before
    used = (lengths != 0.0) & xp.isfinite(diagonal) & xp.isfinite(coupling)
    diagonal = xp.where(used, diagonal, space.zero)
    above = 4.0 * xp.max(diagonal, axis=-1, keepdims=True) + 1.0
    linked = used[..., :-1] & used[..., 1:]
    beside = xp.where(linked, -coupling[..., :-1], space.zero)
    return _tridiagonal(space, xp.where(used, diagonal, above), beside), above


def _tridiagonal(space: Space, diagonal: Array, beside: Array) -> Array:
    size = diagonal.shape[-1]
    unit = space.identity(size)
    upper = space.xp.concat([unit[..., 1:, :], 0.0 * unit[..., :1, :]], axis=-2)
    padded = space.xp.concat([beside, 0.0 * diagonal[..., :1]], axis=-1)
    half = padded[..., :, None] * upper
    return diagonal[..., :, None] * unit + half + space.xp.matrix_transpose(half)


def _combined(space: Space, weights: Array, past: Array) -> Array:
    """The Ritz vectors; those of a sample that is not finite are zero."""
    xp = space.xp
    lead = space.batch_ndim + 1
    columns = joined(past, past.ndim - lead)
    rows = xp.matmul(space.cast(weights, past.dtype), columns)
    vectors = xp.reshape(rows, (*rows.shape[:lead], *past.shape[lead:]))
    return xp.where(xp.isfinite(vectors), vectors, xp.zeros_like(vectors))
