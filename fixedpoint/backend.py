"""What the core asks of an array library.

The class :class:`Backend` is complete for every eager namespace of the Python array API
(array-api-strict, CuPy, …). Adapters subclass it; a package announces its
adapter by an entry point of the group ``fixedpoint.backends``, see
:mod:`fixedpoint.adapters`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import array_api_compat
import numpy as np

from fixedpoint import tree
from fixedpoint.arithmetic import Arithmetic, Array, Vec, joined
from fixedpoint.communicator import Communicator, Reduction
from fixedpoint.evaluator import Evaluated, Evaluator

Carry = Any
Pullback = Callable[[Any], tuple[Any, ...]]

__all__ = ["Array", "Backend", "Carry", "Pullback", "Vec", "joined"]


class Backend(Arithmetic):
    """An eager array-API namespace without automatic differentiation.

    Attributes
    ----------
    differentiates : bool
        Whether there are exact products with derivatives.
    autodiff : Autodiff or None
        What attaches derivatives to solutions, see ``fixedpoint.adjoints``.
    records : bool
        Whether the framework differentiates what a solver does.
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

    def defers(self, device: Any) -> bool:
        """Whether operations are queued for a device that has doubles, where a few more
        take less than to wait for the first ones.
        """
        del device
        return False

    def known_here(self, mask: Array) -> bool:
        """Whether `mask` is readable, and all of it true here.

        Others who hold entries of the same samples find the same; but those of other
        samples may not, and no evaluation of f must hang on it.
        """
        return self.is_readable(mask) and bool(self.namespace(mask).all(mask))

    def known_all(self, mask: Array) -> bool:
        """Whether all of `mask` is true for all who take part, even if that waits;
        unknown, and so false, in a trace.
        """
        return not (self.is_traced((mask,)) or self.any(~mask))

    def known_none(self, mask: Array) -> bool:
        """Whether none of `mask` is true for any who takes part, even if that waits;
        unknown, and so false, in a trace.
        """
        return not (self.is_traced((mask,)) or self.any(mask))

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

    def sparse(self, matrix: Any) -> Any:
        """`matrix`; if it is one of this library's sparse ones, as one of SciPy's."""
        return matrix

    def is_whole(self, leaf: Array) -> bool:
        """Whether all of the leaf is here."""
        del leaf
        return self.communicator is None

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

    def underived(self) -> AbstractContextManager[Any]:
        """A context whose results are constants, whatever a function holds, in a
        library that records what is computed.
        """
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
