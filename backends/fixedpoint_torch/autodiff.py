"""How Torch attaches derivatives to a solution."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from fixedpoint.adjoints.base import Adjoint, Autodiff
from fixedpoint.backend import Vec
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint.solution import BackwardReport
from fixedpoint_torch import maps, numpy_algebra
from fixedpoint_torch.compiling import disabled, is_compiling
from fixedpoint_torch.functions import Call, root
from fixedpoint_torch.kept import inside_transform
from fixedpoint_torch.linearization import constant
from fixedpoint_torch.surroundings import exact


class TorchAutodiff(Autodiff):
    """Autograd functions, where derivatives are recorded; else a run by itself."""

    def attach(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, by the rules of its adjoint where derivatives are recorded."""
        if is_compiling():
            return disabled(self.attach)(adjoint, run, value)
        if torch.is_inference_mode_enabled():
            return self._outside_of_inference(adjoint, run, value)
        with exact(value[0].device):
            if recording():
                return adjoint.attach(run, value)
            return numpy_algebra.iterate(run, value)

    def _outside_of_inference(
        self, adjoint: Adjoint, run: Run, value: Vec
    ) -> Iteration:
        """The solution, where derivatives can be taken: in inference mode all vanish,
        also those that a method asks for.
        """
        with torch.inference_mode(False), torch.no_grad():
            args = tuple(map(constant, run.problem.args))
            return self.attach(adjoint, run.at(args), tuple(map(constant, value)))

    def implicit(self, adjoint: Adjoint, run: Run, value: Vec) -> Iteration:
        """The solution, by an autograd function whose rules are implicit."""
        functions, args = run.problem.functions, run.problem.args
        if inside_transform():
            maps.refuse_hidden(functions, value, args)
        else:
            run = run.with_functions(first=maps.refusing_hidden(functions))
        if not _tracked(*value, *args):
            with torch.no_grad():
                end = numpy_algebra.iterate(run, value)
            return end._replace(backward=BackwardReport())
        call = Call(adjoint, run, len(value), BackwardReport())
        outputs = root(call, *value, *args)
        status, norm, error, precise, steps, method = outputs[len(value) :]
        return call.end.pop()._replace(
            value=outputs[: len(value)],
            status=status,
            residual_norm=norm,
            error=error,
            precise=precise,
            steps=steps,
            method=method,
            backward=call.report,
        )


def recording() -> bool:
    """Whether derivatives are recorded, or a transform is at work."""
    return (
        torch.is_grad_enabled() or forward_ad._current_level >= 0 or inside_transform()
    )


def _tracked(*tensors: torch.Tensor) -> bool:
    """Whether a derivative with respect to one of the tensors may be asked for."""
    transformed = forward_ad._current_level >= 0 or inside_transform()
    return transformed or any(tensor.requires_grad for tensor in tensors)
