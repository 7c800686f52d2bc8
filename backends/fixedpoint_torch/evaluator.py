"""How Torch evaluates a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fixedpoint.backend import Vec
from fixedpoint.evaluator import Evaluated, Evaluator
from fixedpoint_torch.surroundings import Surroundings


class TorchEvaluator(Evaluator):
    """Evaluates f so that it does not write into the state, in the same surroundings
    each time.

    The first evaluation is given copies. If it wrote into them, as an activation in
    place does, so are all others; if not, none may.

    Parameters
    ----------
    unpack, packed : callable
        As for every evaluator.
    surroundings : Surroundings
        Autocast, and random numbers.
    marks_writes : bool
        Whether a leaf tells that it was written into; else all evaluations are given
        copies.
    """

    def __init__(
        self,
        unpack: Callable[[Vec], Any],
        packed: Callable[[Any, Vec], Evaluated],
        surroundings: Surroundings,
        marks_writes: bool,
    ) -> None:
        super().__init__(unpack, packed)
        self.surroundings = surroundings
        self.copies, self.is_known = True, not marks_writes

    def __call__(
        self, f: Callable[..., Any], args: tuple[Any, ...], bridge: Any, value: Vec
    ) -> Evaluated:
        """The leaves of ``f(z, *args)`` at those of z, and what is tested."""
        leaves = value if bridge is None else bridge.all_back(value)
        given = tuple([leaf.clone() for leaf in leaves]) if self.copies else leaves
        before = _versions(given)
        with self.surroundings.around():
            output = f(self.unpack(given), *args)
            self._note(before != _versions(given))
            found = self.packed(output, leaves)
        return found if bridge is None else bridge.evaluated_there(found)

    def _note(self, wrote: bool) -> None:
        """Take note of whether f wrote into what it was given."""
        if not self.is_known:
            self.is_known, self.copies = True, wrote
        elif wrote and not self.copies:
            raise RuntimeError(
                "f wrote into its argument, which it had not done in its first "
                "evaluation: let it return a new tensor"
            )


def _versions(leaves: Vec) -> list[int]:
    """How often each tensor was written into, as far as Torch keeps count."""
    return [0 if leaf.is_inference() else leaf._version for leaf in leaves]
