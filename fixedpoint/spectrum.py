"""Spectral radius and norm of a Jacobian that is known by its products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.border import Border
from fixedpoint.checks import check_count, check_given
from fixedpoint.columns import Columns
from fixedpoint.space import Space
from fixedpoint.spaces import space_of

Product = Callable[[Any], Any]


def spectral_radius(
    product: Product, start: Any, *, steps: int = 30, batch_ndim: int = 0
) -> Array:
    """The largest modulus of an eigenvalue of a linear map J, by Arnoldi's method.

    Parameters
    ----------
    product : callable
        v ↦ Jv, on containers like `start`; ``sol.linearize()`` returns one. The
        transpose has the same eigenvalues: v ↦ Jᵀv serves as well.
    start : array or container of arrays
        A vector with a part in every direction, such as a random one.
    steps : int, optional
        Products at most, and vectors that are kept. With as many as a sample has
        entries the result is exact but for rounding.
    batch_ndim : int, optional
        The first `batch_ndim` axes of every leaf index independent maps, each with its
        own radius.

    Returns
    -------
    array of the batch's shape
        The largest modulus of an eigenvalue of J, compressed to the span of v, Jv, J²v,
        …; NaN where a product or `start` is not finite, or `start` is zero.

    Notes
    -----
    Pairs of complex eigenvalues, and several of one modulus, are told as well as a
    single one: no limit of ratios is taken. With few steps the estimate is that of J on
    a subspace: for a normal J never too large. A defective eigenvalue that stands p
    times in its Jordan block is known to ε^(1/p), ε the unit roundoff, by this as by
    any method; a nilpotent J, so, to ε^(1/p) of its norm.

    References
    ----------
    Arnoldi, "The principle of minimized iterations in the solution of the matrix
    eigenvalue problem", Quart. Appl. Math. 9, 1951.

    Examples
    --------
    A rotation, which power iteration would not settle on:

    >>> import numpy as np, fixedpoint as fp
    >>> from fixedpoint.spectrum import spectral_radius
    >>> J = np.array([[0.0, -0.9], [0.9, 0.0]])
    >>> round(float(spectral_radius(lambda v: J @ v, np.array([1.0, 2.0]))), 10)
    0.9

    At a solution, for each of two samples:

    >>> sol = fp.fixed_point(lambda z, c: c * np.cos(z), np.ones((2, 1)),
    ...                      (np.array([[1.0], [0.5]]),), batch_ndim=1)
    >>> np.round(spectral_radius(sol.linearize(), np.ones((2, 1)), batch_ndim=1), 4)
    array([0.6736, 0.2176])
    """
    check_given("product", product)
    check_count("steps", steps, 1)
    check_count("batch_ndim", batch_ndim, 0)
    border, value = Border.of(start, "start", batch_ndim=batch_ndim)
    space = space_of(border.backend, value, batch_ndim)

    def on_leaves(v: Vec) -> Vec:
        return border.pack(product(border.unpack(v)), value, "product")

    with border.backend.quiet():
        return _largest_modulus(space.backend, _arnoldi(space, on_leaves, value, steps))


def spectral_norm(
    product: Product,
    transposed: Product,
    start: Any,
    *,
    steps: int = 30,
    batch_ndim: int = 0,
) -> Array:
    """The largest singular value of a linear map J, its norm as a map of Euclidean
    spaces.

    It is the root of the spectral radius of JᵀJ, and never overestimated.

    Parameters
    ----------
    product, transposed : callable
        v ↦ Jv and v ↦ Jᵀv, on containers like `start`. For complex entries the
        transpose is that with respect to Re⟨u, v⟩.
    start, steps, batch_ndim
        As in :func:`spectral_radius`; a step takes one product of each kind.

    Returns
    -------
    array of the batch's shape
        ‖J‖₂.

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint.spectrum import spectral_norm
    >>> J = np.array([[0.5, 3.0], [0.0, 0.5]])  # of spectral radius 0.5
    >>> round(float(spectral_norm(lambda v: J @ v, lambda v: J.T @ v, np.ones(2))), 6)
    3.081139
    """
    square = spectral_radius(
        lambda v: transposed(product(v)), start, steps=steps, batch_ndim=batch_ndim
    )
    return square**0.5


class _Krylov(NamedTuple):
    """An orthonormal basis Q, the vector to join it next, and the columns of QᵀJQ."""

    basis: Columns
    next: Vec
    hessenberg: Array
    size: Any


def _arnoldi(
    space: Space, product: Callable[[Vec], Vec], start: Vec, steps: int
) -> Array:
    """QᵀJQ, with Q an orthonormal basis of v, Jv, J²v, …: (batch, steps, steps)."""
    steps = min(steps, space.dimension)
    unit = space.scale(1.0 / space.safe_norm(start), start)
    blank = space.full(0.0, (steps + 1, steps))
    first = _Krylov(Columns.zeros(space, steps), unit, blank, 0)
    last = space.backend.while_loop(
        lambda krylov: krylov.size < steps,
        lambda krylov: _extended(space, product, krylov),
        first,
        steps,
    )
    return last.hessenberg[..., :steps, :]


def _extended(space: Space, product: Callable[[Vec], Vec], krylov: _Krylov) -> _Krylov:
    """One more basis vector: zero for a sample whose subspace is invariant."""
    slot, write = krylov.size, space.backend.write
    basis = krylov.basis.push(space, slot, krylov.next)
    image = product(krylov.next)
    # By the process of Gram and Schmidt, twice.
    first = basis.transposed_times(space, image)
    left = basis.subtracted_from(space, image, first)
    second = basis.transposed_times(space, left)
    left, column = basis.subtracted_from(space, left, second), first + second
    length = space.safe_norm(left)
    # What is no more than rounding of the image is nothing: its direction means nothing
    # either.
    holds = length > 10.0 * space.rounding * space.safe_norm(image)
    unit = space.mask(holds, space.scale(space.ratio(space.one, length), left))
    hessenberg = write(krylov.hessenberg, (..., slice(column.shape[-1]), slot), column)
    below = space.xp.where(holds, length, space.xp.zeros_like(length))
    hessenberg = write(hessenberg, (..., slot + 1, slot), below)
    return _Krylov(basis, unit, hessenberg, slot + 1)


def _largest_modulus(backend: Backend, matrices: Array) -> Array:
    """The spectral radius of small matrices; NaN of those that are not finite."""
    xp = backend.namespace(matrices)
    size = xp.max(xp.abs(matrices), axis=(-2, -1))
    finite, unit = xp.isfinite(size), xp.where(size > 0.0, size, xp.ones_like(size))
    scaled = matrices / unit[..., None, None]  # moduli square their parts
    sound = xp.where(finite[..., None, None], scaled, xp.zeros_like(matrices))
    radii = unit * xp.max(xp.abs(_eigenvalues(backend, sound)), axis=-1)
    return xp.where(finite, radii, xp.full_like(radii, float("nan")))


def _eigenvalues(backend: Backend, matrices: Array) -> Array:
    """By the library, or by NumPy: the array API knows symmetric matrices alone."""
    xp = backend.namespace(matrices)
    eigenvalues = getattr(xp.linalg, "eigvals", None)
    if eigenvalues is not None:
        return eigenvalues(matrices)
    return xp.asarray(np.linalg.eigvals(backend.numpy(matrices)))
