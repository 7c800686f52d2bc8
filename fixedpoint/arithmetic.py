"""The arithmetic that the core asks of an array library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import array_api_compat
import numpy as np

from fixedpoint.elimination import gauss_jordan

Array = Any
Vec = tuple[Array, ...]


class Arithmetic:
    """What is done with arrays, and done faster here and there by an adapter.

    Attributes
    ----------
    writes : bool
        Whether arrays that are ours are written to, and not replaced by new ones.
    """

    writes = True

    def namespace(self, array: Array) -> Any:
        """The array-API namespace of `array`."""
        return array_api_compat.array_namespace(array)

    def numpy(self, array: Array) -> Any:
        """`array` in NumPy, for printing."""
        read = np.asarray(array)
        return self._entry_by_entry(array) if read.dtype == object else read

    def _entry_by_entry(self, array: Array) -> Any:
        """`array` in NumPy, which takes it for an object: by numbers of Python."""
        xp = self.namespace(array)
        kinds = {"bool": bool, "integral": int, "real floating": float}
        of = (kinds[kind] for kind in kinds if xp.isdtype(array.dtype, kind))
        number = next(of, complex)
        entries = xp.reshape(array, (-1,))
        flat = [number(entries[i]) for i in range(math.prod(array.shape))]
        return np.asarray(flat, dtype=number).reshape(array.shape)

    def constant(
        self, value: float, xp: Any, dtype: Any, place: dict[str, Any]
    ) -> Array:
        """A number as an array without axes, which may be kept."""
        return xp.asarray(value, dtype=dtype, **place)

    # Arrays that are written to.

    def write(self, array: Array, index: Any, value: Array) -> Array:
        """`array`, which may be written to, with ``array[index] = value``."""
        array[index] = value
        return array

    def write_scaled(
        self, array: Array, index: Any, coefficient: Array, value: Array
    ) -> tuple[Array, Array]:
        """`array`, which may be written to, with c·`value` at `index`; and that."""
        row = coefficient * value
        return self.write(array, index, row), row

    def write_secant(
        self,
        residuals: Array,
        images: Array,
        index: Any,
        z0: Array,
        g0: Array,
        z1: Array,
        g1: Array,
    ) -> tuple[Array, Array, Array, Array]:
        """The arrays with g₁ − g₀, and z₁ − z₀ + (g₁ − g₀), at `index`, and these
        differences.

        Both arrays may be written to.
        """
        change = g1 - g0
        image = (z1 - z0) + change
        images = self.write(images, index, image)
        return self.write(residuals, index, change), images, change, image

    def read(self, array: Array, index: Any) -> Array:
        """The entries ``array[index]``."""
        return array[index]

    def empty(self, xp: Any) -> Callable[..., Array]:
        """What makes an array whose rows are written before they are read."""
        make: Callable[..., Array] = xp.empty
        return make

    def accumulate(self, onto: Array, coefficient: Array, array: Array) -> Array:
        """`onto` + c·`array`; where arrays are written to, in place."""
        if not self.writes:
            return onto + coefficient * array
        onto += coefficient * array
        return onto

    # Small systems.

    def solve(self, matrices: Array, rights: Array) -> Array:
        """The solutions of small systems, one right-hand side each; NaN if singular."""
        xp = self.namespace(matrices)
        if not hasattr(xp, "linalg"):
            return gauss_jordan(xp, matrices, rights)
        try:
            return xp.linalg.solve(matrices, rights[..., None])[..., 0]
        except np.linalg.LinAlgError:
            if matrices.ndim == 2:
                return xp.full_like(rights, float("nan"))
        size = rights.shape[-1]
        systems = xp.reshape(matrices, (-1, size, size)), xp.reshape(rights, (-1, size))
        count = systems[1].shape[0]
        solutions = [self.solve(*(a[k, ...] for a in systems)) for k in range(count)]
        return xp.reshape(xp.stack(solutions), rights.shape)

    def solve_definite(self, matrices: Array, rights: Array) -> Array:
        """The same, where matrices are symmetric and positive definite."""
        return self.solve(matrices, rights)

    def singular(self, matrices: Array) -> tuple[Array, Array, Array]:
        """The thin singular value decompositions of small matrices."""
        svd = self.namespace(matrices).linalg.svd
        left, values, right = svd(matrices, full_matrices=False)
        return left, values, right

    # Small leaves that are joined.

    def concatenated(self, leaves: Sequence[Array], batch_ndim: int) -> Array:
        """The entries of the leaves in one axis, after those of the batch."""
        rows = [joined(leaf, leaf.ndim - batch_ndim) for leaf in leaves]
        return self.namespace(rows[0]).concat(rows, axis=-1)

    def unbound(self, array: Array, axis: int) -> Sequence[Array]:
        """Views of an array, one for each index of an axis."""
        lead = (slice(None),) * axis
        return [array[(*lead, k, ...)] for k in range(array.shape[axis])]

    def segment_sums(self, array: Array, sizes: Sequence[int]) -> Array:
        """The sum of each segment, of these sizes, of the last axis."""
        xp, ends = self.namespace(array), accumulate(sizes, initial=0)
        sums = [xp.sum(array[..., a:b], axis=-1) for a, b in pairwise(ends)]
        return xp.stack(sums, axis=-1)

    # Contractions over the axes of the entries, which are the last ones.

    def inner(self, a: Array, b: Array, axes: int) -> Array:
        """The inner product ⟨a, b⟩ over the last `axes` axes."""
        return self.namespace(a).vecdot(joined(a, axes), joined(b, axes))

    def norm(self, array: Array, kind: str, axes: int = 1) -> Array:
        """The ``"euclidean"`` or ``"max"`` norm over the last `axes` axes."""
        xp = self.namespace(array)
        if kind == "max":
            return xp.max(xp.abs(array), axis=tuple(range(-axes, 0)))
        square = self.inner(array, array, axes)
        is_complex = xp.isdtype(square.dtype, "complex floating")
        return xp.sqrt(xp.real(square) if is_complex else square)

    def products(self, rows: Array, vector: Array, axes: int) -> Array:
        """The inner products ⟨v, hⱼ⟩ with each of the rows of a history."""
        xp, row = self.namespace(vector), joined(vector, axes)
        if xp.isdtype(row.dtype, "complex floating"):
            row = xp.conj(row)
        # A row times a matrix: a matrix times a column is several times slower in
        # Torch.
        columns = xp.matrix_transpose(joined(rows, axes))
        return xp.matmul(row[..., None, :], columns)[..., 0, :]

    def minus_combination(
        self, onto: Array, weights: Array, rows: Array, axes: int
    ) -> Array:
        """The array `onto` − Σⱼ cⱼhⱼ of the rows of a history."""
        row = joined(onto, axes)[..., None, :]
        total = self.minus_product(row, weights[..., None, :], joined(rows, axes))
        total = total[..., 0, :]
        return total if axes == 1 else self.namespace(onto).reshape(total, onto.shape)

    def minus_product(self, onto: Array, a: Array, b: Array) -> Array:
        """`onto` minus the matrix product of a and b."""
        return onto - self.namespace(onto).matmul(a, b)

    # Large leaves, piece by piece.

    def piece(self, array: Array) -> int | None:
        """The entries of a sample that are best taken together; None stands for all.

        Operations on large states are then faster, and leave none that is but an
        intermediate result. Slices have to be views that can be written to.
        """
        del array
        return None

    def pieces(self, arrays: Sequence[Array], axes: int) -> Iterator[Sequence[Array]]:
        """The arrays piece by piece, entries in one axis; or whole, as they are."""
        first = arrays[0]
        size, piece = math.prod(first.shape[first.ndim - axes :]), self.piece(first)
        if piece is None or size <= piece:
            yield arrays
            return
        rows = [joined(array, axes) for array in arrays]
        for start in range(0, size, piece):
            yield [row[..., start : start + piece] for row in rows]

    def filled(
        self, onto: Array, function: Callable[..., Array], arrays: Vec, axes: int
    ) -> Array:
        """The array ``function(*arrays)``, entry by entry, written to `onto`."""
        whole, *rows = [joined(array, axes) for array in (onto, *arrays)]
        for part, *given in self.pieces((whole, *rows), 1):
            part[...] = function(*given)
        return whole.reshape(onto.shape)

    def deducted(self, onto: Array, weights: Array, rows: Array, axes: int) -> Array:
        """What :meth:`minus_combination` gives; `onto` may be written to."""
        size, piece = math.prod(onto.shape[onto.ndim - axes :]), self.piece(onto)
        if piece is None or size <= piece:
            return self.minus_combination(onto, weights, rows, axes)
        less = lambda part, past: self.minus_combination(part, weights, past, 1)
        return self.filled(onto, less, (onto, rows), axes)


def joined(array: Array, axes: int) -> Array:
    """`array` with its last `axes` axes as one."""
    if axes == 1:
        return array
    kept = array.ndim - axes
    shape = (*array.shape[:kept], math.prod(array.shape[kept:]))
    if hasattr(array, "reshape"):  # to look for the namespace takes longer
        return array.reshape(shape)
    return array_api_compat.array_namespace(array).reshape(array, shape)
