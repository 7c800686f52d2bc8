"""How a function of the user's is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Leaves = tuple[Any, ...]


class Tested(NamedTuple):
    """The residual that is tested, where it is not image − state.

    Attributes
    ----------
    residual : tuple of array
        Its leaves.
    terms : tuple of array or None
        How large the terms of each leaf are; None where it is in the units of the
        state.
    """

    residual: Leaves
    terms: Leaves

    def across(self, convert: Callable[[Leaves], Leaves]) -> Tested:
        """The same, its leaves converted."""
        terms = [leaf if leaf is None else convert((leaf,))[0] for leaf in self.terms]
        return Tested(convert(self.residual), tuple(terms))


# What one evaluation of a map gives.
Evaluated = tuple[Leaves, Tested | None]


class Evaluator:
    """Evaluates functions of the user's so that none writes into the state it is given.

    There is one in a solve, which comes to know what f does. NumPy's arrays are passed
    as views that cannot be written to; a function that tries is given copies from then
    on: it may use its argument up. Adapters whose arrays know no such views, or whose
    frameworks surround f with more than its arguments, have their own.

    Parameters
    ----------
    unpack : callable
        Takes the leaves of a state to its container.
    packed : callable
        Takes what f returned, and the leaves it was given, to the leaves of the image,
        and what is tested, or None.
    """

    def __init__(
        self,
        unpack: Callable[[Leaves], Any],
        packed: Callable[[Any, Leaves], Evaluated],
    ) -> None:
        self.unpack, self.packed = unpack, packed
        self.copies = False

    def __call__(
        self, f: Callable[..., Any], args: tuple[Any, ...], bridge: Any, value: Leaves
    ) -> Evaluated:
        """The leaves of ``f(z, *args)`` at those of z, and what is tested.

        They are of another library where a `bridge` leads there from f's.
        """
        leaves = value if bridge is None else bridge.all_back(value)
        if not self.copies:
            try:
                output = f(self.unpack(tuple(map(_locked, leaves))), *args)
            except (TypeError, ValueError) as error:
                if not _is_of_writing(error, leaves):
                    raise
                self.copies = True
        if self.copies:
            output = f(self.unpack(tuple([leaf.copy() for leaf in leaves])), *args)
        found = self.packed(output, leaves)
        return found if bridge is None else bridge.evaluated_there(found)


def _is_of_writing(error: Exception, leaves: Leaves) -> bool:
    """Whether an error says that f wrote into what cannot be written to."""
    arrays = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return arrays and "readonly" in str(error).replace("-", "").lower()


def _locked(leaf: Any) -> Any:
    """A view of a NumPy array that cannot be written to; other arrays as they are."""
    if not isinstance(leaf, np.ndarray):
        return leaf
    view = leaf.view()
    view.flags.writeable = False
    return view
