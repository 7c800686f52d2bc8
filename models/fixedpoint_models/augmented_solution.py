"""What a solve of the augmented system found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fixedpoint as fp
from fixedpoint.backend import Array
from fixedpoint.shown import brief, glimpse


@dataclass(eq=False)
class AugmentedSolution:
    """What :meth:`~fixedpoint_models.AugmentedDEQ.solve` found.

    Attributes
    ----------
    z, mu, x : array or container of arrays
        The joint iterate: state, adjoint and input.
    objective : array of the batch's shape
        ℓ(z*(x), x, y) + h(x), where z*(x) was solved for afresh from the start `z0`:
        NaN in a sample for which that solve failed. The objective at the iterate z
        itself means nothing as long as z is not an equilibrium.
    kkt : dict of str to array of the batch's shape
        At the joint iterate, ‖f(z, x) − z‖, ‖(∂f/∂z)ᵀμ + ∂ℓ/∂z − μ‖ and ‖Π(x − ∇ₓL) −
        x‖, under the names of the blocks, ``"z"``, ``"mu"`` and ``"x"``; Π stands for
        the proximal operator of h, too.
    joint : Solution
        Status, steps and work of the joint iteration.
    """

    z: Any
    mu: Any
    x: Any
    objective: Array
    kkt: dict[str, Array]
    joint: fp.Solution[Any]

    def __repr__(self) -> str:
        """The iterate, and how the joint iteration ended."""
        names = "z", "mu", "x", "objective"
        lines = [f"{name}: {glimpse(getattr(self, name))}" for name in names]
        lines += [f"kkt: {brief(self.kkt)}", f"joint: {self.joint.message}"]
        return "\n    ".join(["AugmentedSolution", *lines])
