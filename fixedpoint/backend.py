"""What the core asks of an array library.

The class :class:`Backend` is complete for every eager namespace of the Python array API
(array-api-strict, CuPy, …). Adapters subclass it; a package announces its
adapter by an entry point of the group ``fixedpoint.backends``, see
:mod:`fixedpoint.adapters`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from itertools import accumulate, pairwise
from typing import Any

import array_api_compat
import numpy as np

from fixedpoint import tree
from fixedpoint.communicator import Communicator, Reduction
from fixedpoint.elimination import gauss_jordan
from fixedpoint.evaluator import Evaluated, Evaluator

Array = Any
Vec = tuple[Array, ...]
Carry = Any
Pullback = Callable[[Any], tuple[Any, ...]]


class Backend:
    """An eager array-API namespace without automatic differentiation.

    Attributes
    ----------
    differentiates : bool
        Whether there are exact products with derivatives.
    autodiff : Autodiff or None
        What attaches derivatives to solutions, see ``fixedpoint.adjoints``.
    records : bool
        Whether the framework differentiates what a solver does.
    writes : bool
        Whether arrays that are ours are written to, and not replaced by new ones.
    compiles : bool
        Whether every new shape takes the library long, even outside of traces.
    communicator : Communicator or None
        What joins this part of the problem to others.
    is_partial : bool
        Whether the entries of a sample are spread.
    """

    differentiates = False
    autodiff: object | None = None
    records = False
    writes = True
    compiles = False
    communicator: Communicator | None = None
    is_partial = False

    def among(self, communicator: Communicator | None) -> Backend:
        """This backend, for parts of a state that a communicator joins."""
        if communicator is None:
            return self
        backend = copy(self)
        backend.communicator = communicator
        backend.is_partial = not communicator.whole_samples
        return backend

    def holding(self, container: Any, batch_ndim: int) -> Backend:
        """This backend, for a state whose arrays know how they are spread over devices;
        the first `batch_ndim` axes index samples.
        """
        del container, batch_ndim
        return self

    @property
    def threads(self) -> int:
        """How many threads a compiled step may take."""
        return 1

    def reduced(self, array: Array, reduction: Reduction) -> Array:
        """The sum or the largest over all who hold entries of these samples."""
        if self.communicator is None or not self.is_partial:
            return array
        return self.communicator.reduce(array, reduction)

    def agreed(self, flag: Any) -> Any:
        """Whether the flag is true for any of those who take part."""
        return flag if self.communicator is None else self.communicator.agree(flag)

    def namespace(self, array: Array) -> Any:
        """The array-API namespace of `array`."""
        return array_api_compat.array_namespace(array)

    def is_array(self, leaf: Any) -> bool:
        """Whether `leaf` is an array of this backend."""
        return bool(array_api_compat.is_array_api_obj(leaf))

    def device(self, array: Array) -> Any:
        """Where coefficients that go with `array` live; None: the library decides."""
        return getattr(array, "device", None)

    def leaf(self, value: Any) -> Array:
        """`value` as an array, if it is a number that this library makes one of."""
        return value

    def flatten(self, container: Any) -> tuple[list[Any], Any]:
        """The leaves of a container, and its structure, which can ``rebuild`` it."""
        return tree.flatten(container)

    def outputs(self, container: Any, structure: Any) -> list[Any] | None:
        """The leaves of what f returned, or None if it is not of this `structure`."""
        leaves: list[Any] | None = structure.match(container)
        return leaves

    def paths(self, container: Any, prefix: str) -> list[str]:
        """A name for each leaf of a container, for messages."""
        return tree.paths(container, prefix)

    def lift(self, f: Callable[..., Any]) -> Vec:
        """The arrays inside `f` that derivatives are taken with respect to."""
        del f
        return ()

    def pure(self, f: Callable[..., Any], inside: Vec) -> Callable[..., Any]:
        """`f` as a pure function, `inside` in place of what :meth:`lift` found."""
        del inside
        return f

    def is_traced(self, vec: Vec) -> bool:
        """Whether entries of `vec` are symbols of a trace, without values."""
        del vec
        return False

    def is_compiled(self, f: Callable[..., Any], arrays: Vec) -> bool:
        """Whether a solve of `f` is compiled as a whole before it runs."""
        del f, arrays
        return False

    def is_readable(self, mask: Array) -> bool:
        """Whether the values of `mask` can be read without waiting for a device."""
        del mask
        return True

    def known_here(self, mask: Array) -> bool:
        """Whether `mask` is readable, and all of it true here.

        Others who hold entries of the same samples find the same; but those of other
        samples may not, and no evaluation of f must hang on it.
        """
        return self.is_readable(mask) and bool(self.namespace(mask).all(mask))

    def known_all(self, mask: Array) -> bool:
        """Whether `mask` is readable, and all of it true for all who take part."""
        return self.is_readable(mask) and not self.agreed(not self.known_here(mask))

    def known_none(self, mask: Array) -> bool:
        """Whether `mask` is readable, and none of it true for any who takes part."""
        return self.is_readable(mask) and not self.any(mask)

    def replaced_where(
        self,
        arrays: tuple[Array, ...],
        mask: Array,
        function: Callable[[], tuple[Array, ...]],
        evaluates: bool = False,
    ) -> tuple[Array, ...]:
        """The arrays, with those of `function` where `mask` holds.

        It runs only if the mask holds somewhere, on which all who take part agree where
        it `evaluates` f.
        """
        if self.known_none(mask) if evaluates else self.known_here(~mask):
            return arrays
        masks = [mask[(..., *(None,) * (a.ndim - mask.ndim))] for a in arrays]
        return tuple(map(self.namespace(mask).where, masks, function(), arrays))

    def any(self, mask: Array) -> Any:
        """Whether any of `mask` is true, even if that waits; a symbol in a trace."""
        some = self.namespace(mask).any(mask) if mask.ndim else mask
        return self.agreed(bool(some))

    def counted(self, number: int, mask: Array) -> Any:
        """`number` if any of `mask` is true, else none; a symbol in a trace."""
        return number if self.any(mask) else 0

    def numpy(self, array: Array) -> Any:
        """`array` in NumPy, for printing."""
        return np.asarray(array)

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

    def read(self, array: Array, index: Any) -> Array:
        """The entries ``array[index]``."""
        return array[index]

    def constant(
        self, value: float, xp: Any, dtype: Any, place: dict[str, Any]
    ) -> Array:
        """A number as an array without axes, which may be kept."""
        return xp.asarray(value, dtype=dtype, **place)

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

    def sparse(self, matrix: Any) -> Any:
        """`matrix`; if it is one of this library's sparse ones, as one of SciPy's."""
        return matrix

    def singular(self, matrices: Array) -> tuple[Array, Array, Array]:
        """The thin singular value decompositions of small matrices."""
        svd = self.namespace(matrices).linalg.svd
        left, values, right = svd(matrices, full_matrices=False)
        return left, values, right

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

    # Small leaves that are joined.

    def is_whole(self, leaf: Array) -> bool:
        """Whether all of the leaf is here."""
        del leaf
        return self.communicator is None

    def concatenated(self, leaves: Sequence[Array], batch_ndim: int) -> Array:
        """The entries of the leaves in one axis, after those of the batch."""
        rows = [joined(leaf, leaf.ndim - batch_ndim) for leaf in leaves]
        return self.namespace(rows[0]).concat(rows, axis=-1)

    def unbound(self, array: Array, axis: int) -> Sequence[Array]:
        """Views of an array, one for each index of an axis."""
        lead = (slice(None),) * axis
        return [array[(*lead, k, ...)] for k in range(array.shape[axis])]

    def segmented(
        self, array: Array, sizes: Sequence[int], reduction: Reduction
    ) -> Array:
        """The sum or the largest of each segment, of these sizes, of the last axis."""
        xp = self.namespace(array)
        reduce = xp.sum if reduction == "sum" else xp.max
        ends = accumulate(sizes, initial=0)
        parts = [array[..., a:b] for a, b in pairwise(ends)]
        return xp.stack([reduce(part, axis=-1) for part in parts], axis=-1)

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

    def deducted(self, onto: Array, weights: Array, rows: Array, axes: int) -> Array:
        """What :meth:`minus_combination` gives; `onto` may be written to."""
        size, piece = math.prod(onto.shape[onto.ndim - axes :]), self.piece(onto)
        if piece is None or size <= piece:
            return self.minus_combination(onto, weights, rows, axes)
        less = lambda part, past: self.minus_combination(part, weights, past, 1)
        return self.filled(onto, less, (onto, rows), axes)

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

    def minus_product(self, onto: Array, a: Array, b: Array) -> Array:
        """`onto` minus the matrix product of a and b."""
        return onto - self.namespace(onto).matmul(a, b)

    def mapped(self, function: Callable[[Array], Array], rows: Array) -> Array:
        """The columns ``function(row)``, for each of the rows of matrices."""
        every = [function(rows[..., j, :]) for j in range(rows.shape[-2])]
        return self.namespace(rows).stack(every, axis=-1)

    def small(self, function: Callable[..., Vec], *arrays: Array) -> Vec:
        """``function(backend, *arrays)``, by what is fastest with few numbers."""
        return function(self, *arrays)

    def evaluator(
        self,
        value: Vec,
        unpack: Callable[[Vec], Any],
        packed: Callable[[Any, Vec], Evaluated],
    ) -> Evaluator:
        """The :class:`~fixedpoint.evaluator.Evaluator` of f at states like `value`."""
        del value
        return Evaluator(unpack, packed)

    def report(self, function: Callable[..., Any], *arrays: Array) -> None:
        """Call `function` with the arrays, once their values are known."""
        function(*arrays)

    def rounding(self, value: Vec) -> float:
        """The unit roundoff of f's own arithmetic, if coarser than the state's."""
        del value
        return 0.0

    def conform(self, leaf: Array, like: Array) -> Array:
        """An output of f, in the state's dtype where the framework chose its own."""
        del like
        return leaf

    def while_loop(
        self,
        condition: Callable[[Carry], Any],
        body: Callable[[Carry], Carry],
        carry: Carry,
        at_most: Any,
    ) -> Carry:
        """Apply `body` to `carry` while `condition` holds, `at_most` so many times."""
        del at_most
        while condition(carry):
            carry = body(carry)
        return carry

    def quiet(self) -> AbstractContextManager[Any]:
        """A context without warnings of overflow, for which iterations test."""
        loud = {
            kind: "ignore" for kind, action in np.geterr().items() if action == "warn"
        }
        return np.errstate(**loud)  # type: ignore[arg-type]

    def unrecorded(self, inputs: Vec) -> AbstractContextManager[Any]:
        """A context for a step that a caller asks for: it records no derivatives.

        Raises TypeError inside a trace or a transform, whose derivatives would be lost.
        """
        del inputs
        return nullcontext()

    def linearize(self, f: Callable[[Vec], Vec], value: Vec) -> Callable[[Vec], Vec]:
        """The products v ↦ f′(value)v, where the framework differentiates."""
        raise NotImplementedError

    def vjp(self, f: Callable[..., Any], *primals: Any) -> tuple[Any, Pullback]:
        """The value of `f` at `primals`, and its pullback of cotangents."""
        del f
        raise TypeError(
            f"{type(primals[0]).__module__} arrays have no automatic differentiation: "
            "pass the vector-Jacobian products yourself, or use Torch or JAX arrays"
        )

    # What adjoints ask of a framework that records derivatives.

    def recording(self, checkpoint: int | None) -> Backend:
        """This backend, but all that a solver does is recorded, for the framework to
        differentiate.

        With `checkpoint`, only the carry of a loop at each so many turns is kept.
        """
        raise NotImplementedError

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``, as this backend has it done."""
        return function(*args)

    def decisive(self, known: Any) -> Any:
        """`known`, a tree of arrays from which decisions follow and nothing else.

        Its derivatives, which may be infinite, are left out where a framework would
        multiply them by zero.
        """
        return known

    def stop(self, vec: Vec) -> Vec:
        """The same arrays, through which no derivative flows."""
        return vec


def joined(array: Array, axes: int) -> Array:
    """`array` with its last `axes` axes as one."""
    if axes == 1:
        return array
    kept = array.ndim - axes
    shape = (*array.shape[:kept], math.prod(array.shape[kept:]))
    if hasattr(array, "reshape"):  # to look for the namespace takes longer
        return array.reshape(shape)
    return array_api_compat.array_namespace(array).reshape(array, shape)
