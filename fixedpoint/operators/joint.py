"""Several unknowns that are solved for together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fixedpoint.operators.base import Evaluation, Operator


@dataclass(frozen=True)
class Joint(Operator):
    """The joint operator of several blocks, which share one piece of work.

    The state is a dictionary with an entry for each block. ``shared(state, *args)``
    computes once what all blocks need; block k is then ``blocks[k].evaluate(state[k],
    shared)``. Every block reads the old state of all (a Jacobi sweep), and has
    converged by its own residual.

    Parameters
    ----------
    shared : callable
        Takes the state and args, returns what the blocks read.
    blocks : mapping of str to Operator
        The operator of each block.

    Examples
    --------
    Two coupled unknowns, u = v/2 + 1 and v = u/2:

    >>> import numpy as np, fixedpoint as fp
    >>> Map = fp.operators.Map
    >>> joint = fp.operators.Joint(
    ...     lambda state: state,
    ...     {"u": Map(lambda u, s: s["v"] / 2 + 1),
    ...      "v": Map(lambda v, s: s["u"] / 2).damped(0.9)},
    ... )
    >>> sol = fp.fixed_point(joint, {"u": np.zeros(1), "v": np.zeros(1)})
    >>> np.round(sol.value["u"], 5), np.round(sol.value["v"], 5)
    (array([1.33333]), array([0.66667]))
    """

    shared: Callable[..., Any]
    blocks: Mapping[str, Operator]

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """One evaluation of what is shared, and one of each block."""
        if set(state) != set(self.blocks):
            raise ValueError(
                f"the state must have the blocks {set(self.blocks)}, got {set(state)}"
            )
        shared = self.shared(state, *args)
        parts = {
            name: block.evaluate(state[name], shared)
            for name, block in self.blocks.items()
        }
        images = {name: part.image for name, part in parts.items()}
        return Evaluation(images, {name: part.residual for name, part in parts.items()})
