"""The derivative of the iteration itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fixedpoint.adjoints.base import Adjoint
from fixedpoint.backend import Vec
from fixedpoint.checks import check_count

if TYPE_CHECKING:
    from fixedpoint.solve import Outcome, Solve


@dataclass(frozen=True, kw_only=True)
class Unrolled(Adjoint):
    """Differentiate what the solver did, step by step.

    The derivative is that of the computed value, by the framework, with respect to the
    arguments and the start. It needs no equilibrium, and so is right for a fixed number
    of steps; it costs memory in proportion to the steps. In JAX a solve that is
    differentiated so makes all `max_steps` turns of its loop, those after the last step
    empty.

    Parameters
    ----------
    checkpoint : int, optional
        Only the state at each so many steps is kept, and the steps between are made
        once more in the backward pass.

    Examples
    --------
    Two steps of Picard's method give a + a/2:

    >>> import torch, fixedpoint as fp
    >>> a = torch.tensor(1.0, requires_grad=True)
    >>> sol = fp.fixed_point(lambda z, a: 0.5 * z + a, torch.tensor(0.0), (a,),
    ...                      max_steps=2,
    ...                      solver=fp.Picard(), adjoint=fp.Unrolled(),
    ...                      on_failure="return")
    >>> sol.value.backward()
    >>> a.grad
    tensor(1.5000)
    """

    checkpoint: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            check_count("checkpoint", self.checkpoint, 1)

    def attach(self, solve: Solve, value: Vec, args: Vec) -> Outcome:
        """Run `solve` on a backend that records."""
        recording, control = solve.backend.recording(self.checkpoint), solve.control
        if self.checkpoint is not None and control.is_observed:
            control = dataclasses.replace(control, told={})
        recorded = dataclasses.replace(solve, backend=recording, control=control)
        outcome: Outcome = recording.run(recorded.run, value, args)
        norm, error = recording.stop((outcome.residual_norm, outcome.error))
        return outcome._replace(residual_norm=norm, error=error)
