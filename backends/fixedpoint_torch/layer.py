"""A layer whose output is an equilibrium."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, NoReturn

import torch

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.adapters import type_name
from fixedpoint.checks import check_cell, checked_steps
from fixedpoint.failure import Policy
from fixedpoint.keywords import by_name, by_position
from fixedpoint.question import check_layer, methods_of
from fixedpoint.shown import changed_settings, represented
from fixedpoint.solvers import Solver
from fixedpoint.spectrum import spectral_radius
from fixedpoint.starting import first_state, starting
from fixedpoint.tolerance import Norm, Test
from fixedpoint_torch import maps
from fixedpoint_torch.backend import TorchBackend
from fixedpoint_torch.compiling import eager, refuse_export
from fixedpoint_torch.parametrized import with_weights_computed
from fixedpoint_torch.surroundings import Surroundings


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a solve came to, apart from the graph of its derivatives.

    Attributes
    ----------
    status, steps : tensor of int, of the batch's shape
        A :class:`fixedpoint.Status` and the number of steps per sample.
    residual_norm, error : tensor of the batch's shape
        ‖f(z) − z‖ per sample, and the estimate of ‖z − z*‖.
    work : Work
        Evaluations for the whole batch.
    backward : BackwardReport or None
        What became of the adjoint solve, once the backward pass has run.
    """

    status: torch.Tensor
    steps: torch.Tensor
    residual_norm: torch.Tensor
    error: torch.Tensor
    work: fp.Work
    backward: fp.BackwardReport | None

    @property
    def converged(self) -> torch.Tensor:
        """Which samples have converged."""
        return self.status == int(fp.Status.CONVERGED)

    __repr__ = represented


@by_name
class DEQ(torch.nn.Module):
    """A deep equilibrium layer: z with z = cell(z, x), differentiated implicitly.

    Parameters
    ----------
    cell : nn.Module or callable
        ``cell(z, *inputs)`` returns what is like z. The parameters of a module are
        trained with the layer; a function must be passed all that is to be
        differentiated. Weights under ``torch.nn.utils.parametrize`` are computed once
        for each solve.
    solver, adjoint, rtol, atol, norm, test, max_steps, batch_ndim, on_failure
        As in :func:`fixedpoint.fixed_point`, except that leaves are tested, not
        entries. Samples where the cell is not finite are NaN.
    start : callable, optional
        ``start(*inputs)`` is where to start, a tensor or a container of tensors. By
        default zeros like the first input.

    Attributes
    ----------
    statistics : Statistics or None
        Those of the latest solve. Nothing in it keeps a graph alive.

    Examples
    --------
    >>> import torch, fixedpoint_torch
    >>> class Cell(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner = torch.nn.Linear(4, 4)
    ...     def forward(self, z, x):
    ...         return torch.tanh(0.5 * self.inner(z) + x)
    >>> layer = fixedpoint_torch.DEQ(Cell())
    >>> z = layer(torch.ones(3, 4))
    >>> z.sum().backward()
    >>> layer.statistics.status, layer.cell.inner.weight.grad.shape
    (tensor([1, 1, 1], dtype=torch.int32), torch.Size([4, 4]))
    """

    def __init__(
        self,
        cell: Callable[..., Any],
        *,
        solver: Solver | str | None = None,
        adjoint: fp.Adjoint | str | None = None,
        rtol: float | torch.Tensor | None = None,
        atol: float | torch.Tensor = 0.0,
        norm: Norm | None = "leaves",
        test: Test = "error",
        max_steps: int = 1000,
        batch_ndim: int = 1,
        on_failure: Policy = "warn",
        start: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        check_cell(cell)
        self.cell = cell
        self.solver, self.adjoint = methods_of(solver, adjoint)
        self.rtol, self.atol, self.norm, self.test = rtol, atol, norm, test
        self.max_steps, self.batch_ndim = max_steps, batch_ndim
        self.on_failure = on_failure
        self.start = start
        check_layer(self)
        self.statistics: Statistics | None = None

    def extra_repr(self) -> str:
        """The settings that are not the defaults, for ``print``."""
        return ", ".join(changed_settings(DEQ.__init__, vars(self)))

    def __prepare_scriptable__(self) -> NoReturn:
        """Answer ``torch.jit.script``, which asks this of a module first."""
        refuse_export()

    @eager
    @by_position
    def forward(self, *inputs: Any, z0: Any = None) -> Any:
        """The equilibrium.

        Parameters
        ----------
        *inputs : object
            What the cell takes beside the state; tensors in it are differentiated.
        z0 : tensor or container of tensors, optional
            Where to start this time.
        """
        return self.solve(*inputs, z0=z0).value

    @by_position
    def solve(
        self,
        *inputs: Any,
        z0: Any = None,
        callback: Callable[[int, Any, torch.Tensor], Any] | None = None,
    ) -> fp.Solution[Any]:
        """The equilibrium with all that is known of its solve; see :meth:`forward`.

        Parameters
        ----------
        *inputs, z0
            As there.
        callback : callable, optional
            As in :func:`fixedpoint.fixed_point`.
        """
        f, args = with_weights_computed(self.cell, inputs)
        first = self._first(inputs, z0)
        with starting(self, z0, first):
            return self._noted(self._solved(f, args, first, callback))

    def trajectory(
        self, *inputs: Any, steps: Sequence[int], z0: Any = None
    ) -> list[Any]:
        """The states after some steps of one solve, and the equilibrium.

        Parameters
        ----------
        *inputs, z0
            As in :meth:`forward`.
        steps : sequence of int
            After which steps, in ascending order. Step 0 has the start, and a step that
            the solve does not reach the state of the last.

        Returns
        -------
        list
            cell(zₖ, \\*inputs) for each of the states zₖ, in the order of `steps`, and
            the equilibrium itself, for :func:`correction_loss`. Its derivatives are
            those of the layer. Those of the others are of the one application of the
            cell, zₖ a constant.
        """
        steps = checked_steps(steps)
        first = self._first(inputs, z0)
        seen: dict[int, Any] = {0: _mapped(torch.detach, first)}

        def note(step: int, z: Any, residual_norm: torch.Tensor) -> None:
            del residual_norm
            if step in steps:
                seen[step] = _mapped(torch.detach, z)

        f, args = with_weights_computed(self.cell, inputs)
        around = Surroundings.of_now(tree.flatten(first)[0][0].device)
        end = self._noted(self._solved(f, args, first, note)).value
        last = _mapped(torch.detach, end)
        return [
            *(_applied(around, f, seen.get(step, last), *args) for step in steps),
            end,
        ]

    def spectral_radius(
        self, *inputs: Any, z0: Any = None, steps: int = 30
    ) -> torch.Tensor:
        """The spectral radius of ∂cell/∂z at the equilibrium, per sample, without
        derivatives.

        Picard's method converges where it is below one. See
        :func:`fixedpoint.spectral_radius`, which starts here from a vector that is the
        same in each call.

        Parameters
        ----------
        *inputs, z0
            As in :meth:`forward`.
        steps : int, optional
            Products at most.
        """
        with torch.no_grad():
            f, args = with_weights_computed(self.cell, inputs)
            first = self._first(inputs, z0)
            around = Surroundings.of_now(tree.flatten(first)[0][0].device)
            z = self._solved(f, args, first, None).value
            _, pullback = TorchBackend().vjp(lambda z: _applied(around, f, z, *args), z)
            radius: torch.Tensor = spectral_radius(
                # Of the transpose, whose eigenvalues are the same.
                lambda v: pullback(v)[0],
                _mapped(self._direction, z),
                steps=steps,
                batch_ndim=self.batch_ndim,
            )
        return radius

    def _direction(self, leaf: torch.Tensor) -> torch.Tensor:
        """A random vector, the same for every sample and in every call."""
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(
            leaf.shape[self.batch_ndim :], generator=generator, dtype=leaf.dtype
        )
        return vector.to(leaf.device).expand(leaf.shape).contiguous()

    def _first(self, inputs: tuple[Any, ...], z0: Any) -> Any:
        """Where to start."""
        return first_state(self, inputs, z0, _zeros)

    def _solved(
        self, f: Any, args: tuple[Any, ...], z0: Any, callback: Any
    ) -> fp.Solution[Any]:
        """Solve, by the settings."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return fp.fixed_point(f, z0, args, callback=callback, **settings)

    def _noted(self, solution: fp.Solution[Any]) -> fp.Solution[Any]:
        """Keep the statistics of `solution`; samples that were lost are NaN."""
        lost = solution.status == int(fp.Status.NON_FINITE)
        solution.value = _mapped(lambda leaf: _without(lost, leaf), solution.value)
        self.statistics = Statistics(
            _detached(solution.status),
            _detached(solution.steps),
            _detached(solution.residual_norm),
            _detached(solution.error),
            solution.work,
            solution.backward,
        )
        return solution


def _applied(around: Surroundings, f: Callable[..., Any], z: Any, *args: Any) -> Any:
    """f(z, *args) in these surroundings, in the dtype of z under autocast too."""
    with around.around():
        leaves, structure = tree.flatten(f(z, *args))
    conform = TorchBackend().conform
    return structure.rebuild(list(map(conform, leaves, tree.flatten(z)[0])))


def _mapped(function: Callable[[torch.Tensor], torch.Tensor], container: Any) -> Any:
    leaves, structure = tree.flatten(container)
    return structure.rebuild(list(map(function, leaves)))


def _zeros(first: Any) -> Any:
    """Zeros like the first input."""
    for leaf in tree.flatten(first)[0]:
        if not torch.is_tensor(leaf):
            raise TypeError(
                "the first input must be a tensor or a container of tensors, got "
                f"{type_name(leaf)}: give it as torch.as_tensor(...), or say where to "
                "start by z0= or start="
            )
    return _mapped(torch.zeros_like, first)


def _without(lost: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """The leaf, not a number in the samples that were lost."""
    if maps.is_dtensor(leaf):
        from fixedpoint_torch.sharded import on_parts  # noqa: PLC0415  rarely needed

        return on_parts(lambda part: _without(lost, part), leaf)
    if lost.device.type == "cpu" and not maps.unwrap(lost)[-1].any():
        return leaf
    mask = lost.reshape(*lost.shape, *(1,) * (leaf.ndim - lost.ndim))
    return leaf.masked_fill(mask, float("nan"))


_SETTINGS = tuple(
    name for name in signature(DEQ).parameters if name not in {"cell", "start"}
)


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor beneath all that records or transforms."""
    return maps.unwrap(tensor)[-1].detach()
