"""Jacobians: their zeros, and what callers give for them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fixedpoint.adapters import type_name
from fixedpoint.backend import Array, Backend
from fixedpoint.solution import Work
from fixedpoint.space import Space

# Unknowns up to which the columns of a linear operator are made one by one.
_COLUMNS = 200

# Entries of the matrices of all samples together, at most: half a gibibyte of doubles.
MOST_ENTRIES = 2**26

# The kinds of NumPy's dtypes that hold numbers.
_NUMBERS = "biufc"


@dataclass(frozen=True, eq=False)
class Sparsity:
    """The zeros of a Jacobian, and columns that may be differenced together."""

    pattern: Any  # (n, n), where any sample's has ever had an entry other than zero
    groups: tuple[Any, ...]  # of columns of which no two share a row

    @classmethod
    def of(cls, pattern: Any) -> Sparsity:
        """Put each column into the first group in which none shares a row with it."""
        if pattern.all():
            return cls(pattern, tuple(np.arange(len(pattern))[:, None]))
        taken: list[Any] = []
        groups: list[list[int]] = []
        for j, rows in enumerate(pattern.T):
            group = next(
                (k for k, used in enumerate(taken) if not (used & rows).any()), None
            )
            if group is None:
                group = len(groups)
                groups.append([])
                taken.append(np.zeros_like(rows))
            groups[group].append(j)
            taken[group] |= rows
        return cls(pattern, tuple(np.asarray(group) for group in groups))


class Matrix(NamedTuple):
    """The increment's derivative."""

    entries: Any  # an array (batch, n, n), or sparse; not finite where not known
    work: Work  # what it took
    sparsity: Sparsity | None  # its zeros, if that helps to make the next one
    reliable: Any = True  # not so for difference quotients where a function is flat
    sizes: Any = None  # (batch, n), of the state's entries, as quotients found them


def as_function(backend: Backend, given: Any) -> Any:
    """A Jacobian as a function: a matrix is a constant, also to derivatives."""
    if given is None or (callable(given) and not is_operator(given)):
        return given
    constant = backend.stop((given,))[0] if backend.is_array(given) else given
    return lambda *_: constant


def matrix_of(space: Space, given: Any) -> Any:
    """The real Jacobian of every sample: an array (batch, n, n), sparse, or a linear
    operator.

    A complex matrix of a complex state becomes the real one of twice the order. Where a
    state has several axes, its Jacobian may have them twice.

    Raises
    ------
    ValueError, TypeError
        If it is none of these, or has not as many rows and columns as there are
        unknowns.
    """
    if is_sparse(given) or is_operator(given):
        _check_order(space, given)
        real = _real_sparse if is_sparse(given) else _real_operator
        return real(space, given)
    array = given if _is_own(space, given) else _as_array(space, given)
    shape = tuple(array.shape)
    for order, expected in _accepted(space):
        for lead in (space.batch_shape, ()):
            if shape == (*lead, *expected):
                return _real(space, space.xp.reshape(array, (*lead, order, order)))
    raise ValueError(f"jacobian must have {_expected(space)}, got the shape {shape}")


def is_sparse(given: Any) -> bool:
    """Whether this is a sparse matrix or array of SciPy's."""
    return hasattr(given, "tocsc") and hasattr(given, "nnz")


def is_operator(given: Any) -> bool:
    """Whether this knows products only."""
    return hasattr(given, "matvec") and hasattr(given, "shape")


def product_with(space: Space, matrix: Any, entries: Array) -> Array:
    """The product of what :func:`matrix_of` returns with the entries of each sample."""
    if space.backend.is_array(matrix):
        return times(space, matrix, entries)
    return as_coefficients(space, matrix @ space.backend.numpy(entries))


def times(space: Space, matrix: Array, entries: Array) -> Array:
    """The product of each sample's matrix with its vector."""
    return space.xp.matmul(matrix, entries[..., None])[..., 0]


def as_coefficients(space: Space, array: Any) -> Array:
    """A NumPy array of coefficients in the library of the state."""
    return space.xp.asarray(array, dtype=space.dtype, **space.place)


def columns_of(space: Space, operator: Any) -> Any:
    """The matrix of a linear operator, not finite where that has too many columns."""
    order = operator.shape[-1]
    if order <= _COLUMNS:
        return as_coefficients(space, operator @ np.eye(order))
    from scipy.sparse import coo_array  # noqa: PLC0415  no room is needed for it

    return coo_array(([np.nan], ([0], [0])), shape=(order, order)).tocsr()


def _is_own(space: Space, given: Any) -> bool:
    """Whether this is an array of numbers, of the library of the state."""
    if isinstance(given, np.ndarray) and given.dtype.kind not in _NUMBERS:
        return False
    return space.backend.is_array(given) and space.backend.namespace(given) is space.xp


def _as_array(space: Space, given: Any) -> Array:
    """A number, a list of lists or another library's array as an array."""
    failures = TypeError, ValueError, RuntimeError
    try:
        array = np.asarray(given)
        if array.dtype.kind in _NUMBERS:
            return space.xp.asarray(array.copy(), **space.place)
    except failures:  # as of a list that holds the symbols of a trace
        with suppress(*failures):
            return space.xp.asarray(given)
    raise TypeError(f"jacobian must have {_expected(space)}, got {type_name(given)}")


def _accepted(space: Space) -> list[tuple[int, tuple[int, ...]]]:
    """The shapes that one sample's matrix may have, each with its order."""
    n, real = space.size, space.real_size
    accepted: list[tuple[int, tuple[int, ...]]] = [(n, (n, n)), (real, (real, real))]
    if n == 1:
        accepted += [(1, ()), (1, (1,))]
    if len(space.shapes) == 1:
        accepted.append((n, 2 * space.shapes[0]))
    return accepted


def _expected(space: Space) -> str:
    """What a Jacobian should be, for messages."""
    n, batch = space.size, space.batch_shape
    if batch:
        return f"the shape {(*batch, n, n)} or {(n, n)}, as an array"
    kinds = "an array, a sparse matrix of SciPy's or a linear operator"
    return f"the shape {(n, n)}, as {kinds}"


def _check_order(space: Space, given: Any) -> None:
    """Raise unless a sparse matrix or an operator is for one sample of this size."""
    shape, orders = tuple(given.shape), (space.size, space.real_size)
    if space.batch_shape or shape not in [(order, order) for order in orders]:
        raise ValueError(
            f"jacobian must have {_expected(space)}, got a {type_name(given)} of the "
            f"shape {shape}"
        )
    _check_parts(space, given.dtype.kind == "c", shape[-1])


def _check_parts(space: Space, is_complex: bool, order: int) -> None:
    """Raise unless it is known which rows and columns are real and imaginary parts."""
    if is_complex and not any(space.complex_leaves):
        raise TypeError("jacobian must be real for a real state, got a complex matrix")
    if order != space.real_size and len(space.complex_leaves) > 1:
        raise ValueError(
            "jacobian of a state with several leaves, complex ones among them, must be "
            f"the real matrix of order {space.real_size}, got the order {order}"
        )


def _real_sparse(space: Space, given: Any) -> Any:
    """A sparse matrix in double precision, of real and imaginary parts if complex."""
    from scipy.sparse import block_array, csr_array  # noqa: PLC0415  there, since the matrix is

    if given.shape[-1] == space.real_size:
        return csr_array(given.real, dtype=np.float64)
    real, imaginary = (
        csr_array(part, dtype=np.float64) for part in (given.real, given.imag)
    )
    return block_array([[real, -imaginary], [imaginary, real]], format="csr")


def _real_operator(space: Space, given: Any) -> Any:
    """A linear operator on the real entries."""
    order = given.shape[-1]
    if order == space.real_size:
        return given
    from scipy.sparse.linalg import LinearOperator  # noqa: PLC0415

    def product(entries: Any) -> Any:
        flat = entries.reshape(-1)
        image = given.matvec(flat[:order] + 1j * flat[order:])
        return np.concatenate([image.real, image.imag])

    return LinearOperator((2 * order, 2 * order), matvec=product, dtype=np.float64)


def _real(space: Space, array: Array) -> Array:
    """A complex matrix as the real one of twice the order, first the real parts."""
    xp, order = space.xp, array.shape[-1]
    is_complex = bool(xp.isdtype(array.dtype, "complex floating"))
    _check_parts(space, is_complex, order)
    real = space.as_coefficient(xp.real(array) if is_complex else array)
    if order == space.real_size:
        return real
    imaginary = (
        space.as_coefficient(xp.imag(array)) if is_complex else xp.zeros_like(real)
    )
    upper = xp.concat([real, -imaginary], axis=-1)
    lower = xp.concat([imaginary, real], axis=-1)
    return xp.concat([upper, lower], axis=-2)
