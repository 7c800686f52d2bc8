"""The derivative of the iteration itself."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from fixedpoint.adjoints.base import Adjoint
from fixedpoint.backend import Vec
from fixedpoint.checks import check_count
from fixedpoint.control import Control
from fixedpoint.iterate import Iteration
from fixedpoint.keywords import by_name
from fixedpoint.run import Run
from fixedpoint.spaces import space_of
from fixedpoint.status import Status


@by_name
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
        Only the state at every `checkpoint`-th step is kept, and the steps between are
        repeated in the backward pass.

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

    def attach(self, run: Run, value: Vec) -> Iteration:
        """The solution by a backend that records."""
        control, problem = run.control, run.problem
        if self.checkpoint is not None and control.is_observed:
            control = _HeardOnce(**{name: getattr(control, name) for name in _FIELDS})
        backend = run.backend.recording(self.checkpoint)
        space = space_of(backend, value, problem.space.batch_ndim)
        recorded = replace(run, problem=replace(problem, space=space), control=control)
        end: Iteration = backend.run(
            lambda value, args: recorded.at(args).iterate(value), value, problem.args
        )
        norm, error = backend.stop((end.residual_norm, end.error))
        return end._replace(residual_norm=norm, error=error)


_FIELDS = tuple(field.name for field in fields(Control))


@dataclass(frozen=True, eq=False, kw_only=True)
class _HeardOnce(Control):
    """The control of steps that may be made twice.

    The callback hears of a step once, and the second time the solve ends where the
    first did.
    """

    heard: dict[Any, list[tuple[Any, Status]]] = field(default_factory=dict)

    def ends(self, deadline: float | None, step: Any, *found: Any) -> Any:
        """Whether to end after a step: what was found the first time."""
        if step not in self.heard:
            self.heard[step] = list(super().ends(deadline, step, *found))
        return iter(self.heard[step])
