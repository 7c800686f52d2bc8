"""What the core asks of Torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from fixedpoint import tree
from fixedpoint.backend import Backend, Carry, Pullback, Vec, joined
from fixedpoint.evaluator import Evaluated
from fixedpoint.recording import Recorded
from fixedpoint_torch import maps, numpy_algebra
from fixedpoint_torch.autodiff import TorchAutodiff, recording
from fixedpoint_torch.checkpoint import Checkpoint
from fixedpoint_torch.evaluator import TorchEvaluator
from fixedpoint_torch.functions import pushed
from fixedpoint_torch.kept import inside_transform
from fixedpoint_torch.linearization import (
    constant,
    gradients,
    products,
    recorded,
    recording_on,
)
from fixedpoint_torch.namespace import NAMESPACE
from fixedpoint_torch.small_systems import small_solve
from fixedpoint_torch.surroundings import Surroundings, exact

_RECORDED = Recorded(NAMESPACE)

# Entries of a sample that operations take together: on a processor, and on an
# accelerator.
_PIECE, _LARGE_PIECE = 2**18, 2**22


class TorchBackend(Backend):
    """PyTorch tensors, eager, on any device.

    Iterations run outside autograd, in place where they can; derivatives attach around
    them.
    """

    differentiates = True
    autodiff = TorchAutodiff()
    # Whether a tensor tells that it was written into.
    marks_writes = True

    def namespace(self, array: torch.Tensor) -> Any:
        """The array-API namespace of Torch."""
        del array
        return NAMESPACE

    def is_array(self, leaf: Any) -> bool:
        """Whether `leaf` is a tensor."""
        return isinstance(leaf, torch.Tensor)

    def leaf(self, value: Any) -> Any:
        """Tensors pass; nothing is converted to one, since no device would be right."""
        return value

    def holding(self, container: Any, batch_ndim: int) -> TorchBackend:
        """The backend of the parts that are here, where the state is of DTensors."""
        leaves = tree.flatten(container)[0]
        if not any(map(maps.is_dtensor, leaves)):
            return self
        from fixedpoint_torch.sharded import ShardedBackend  # noqa: PLC0415  a cycle

        return ShardedBackend(leaves, batch_ndim, self.communicator)

    def is_readable(self, mask: torch.Tensor) -> bool:
        """Whether the values are in the processor's memory."""
        return mask.device.type == "cpu"

    def defers(self, device: torch.device) -> bool:
        """Whether that is none of the processor's, nor one of Apple's."""
        return device.type not in ("cpu", "mps")

    def known_here(self, mask: torch.Tensor) -> bool:
        """Whether `mask` is readable, and true throughout a transform."""
        return self.is_readable(mask) and bool(_unwrapped(mask).all())

    def any(self, mask: torch.Tensor) -> bool:
        """Whether any of `mask` is true, throughout what it is mapped over."""
        return bool(self.agreed(bool(_unwrapped(mask).any())))

    def numpy(self, array: torch.Tensor) -> Any:
        """A copy for printing, with an axis for each transform that maps over it."""
        # A transform at work would wrap what is detached once more.
        with torch._C._DisableFuncTorch():
            return _unwrapped(array).detach().cpu().numpy()

    def write_secant(
        self,
        residuals: torch.Tensor,
        images: torch.Tensor,
        index: Any,
        z0: torch.Tensor,
        g0: torch.Tensor,
        z1: torch.Tensor,
        g1: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Both differences in place, with no tensor in between."""
        change, image = residuals[index], images[index]
        torch.sub(g1, g0, out=change)
        torch.sub(z1, z0, out=image).add_(change)
        return residuals, images, change, image

    def minus_product(
        self, onto: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> torch.Tensor:
        """`onto` − ab, in one pass where they are stacks of matrices."""
        if onto.ndim != 3:
            return onto - torch.matmul(a, b)
        return torch.baddbmm(onto, a, b, alpha=-1)

    def deducted(
        self, onto: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, axes: int
    ) -> torch.Tensor:
        """The tensor less a combination of the rows, in place."""
        if onto.ndim - axes > 1:
            total: torch.Tensor = self.minus_combination(onto, weights, rows, axes)
            return total
        whole, past = joined(onto, axes), joined(rows, axes)
        row, weights = whole[..., None, :], weights[..., None, :]
        add = row.addmm_ if row.ndim == 2 else row.baddbmm_
        add(weights, past, alpha=-1)
        shaped: torch.Tensor = whole.reshape(onto.shape)
        return shaped

    def piece(self, array: torch.Tensor) -> int | None:
        """More where there are more cores to share them."""
        return _PIECE if array.device.type == "cpu" else _LARGE_PIECE

    def concatenated(
        self, leaves: Sequence[torch.Tensor], batch_ndim: int
    ) -> torch.Tensor:
        """The entries of the leaves in one axis."""
        return torch.cat([joined(leaf, leaf.ndim - batch_ndim) for leaf in leaves], -1)

    def unbound(self, array: torch.Tensor, axis: int) -> Sequence[torch.Tensor]:
        """Views of a tensor, one for each index of an axis."""
        return array.unbind(axis)

    def segment_sums(self, array: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """The sum of each segment of the last axis."""
        lengths = torch.tensor(sizes, device=array.device)
        index = torch.repeat_interleave(lengths).expand(array.shape)
        onto = array.new_zeros((*array.shape[:-1], len(sizes)))
        return onto.scatter_reduce(-1, index, array, "sum", include_self=False)

    def lift(self, f: Callable[..., Any]) -> Vec:
        """The parameters of a module, or of a bound method's module."""
        return maps.lift(f)

    def pure(self, f: Callable[..., Any], inside: Vec) -> Callable[..., Any]:
        """A module as a function of its parameters, its buffers left as they are."""
        return maps.pure(f, inside)

    def solve(self, matrices: torch.Tensor, rights: torch.Tensor) -> torch.Tensor:
        """The solutions of small linear systems, not finite or wrong where singular."""
        solution: torch.Tensor = torch.linalg.solve_ex(matrices, rights[..., None])[0]
        return solution[..., 0]

    def sparse(self, matrix: Any) -> Any:
        """A sparse tensor as a matrix of SciPy's."""
        if not isinstance(matrix, torch.Tensor) or matrix.layout is torch.strided:
            return matrix
        from scipy.sparse import coo_array  # noqa: PLC0415  Torch does without it

        entries = matrix.detach().cpu().to_sparse().coalesce()
        return coo_array(
            (entries.values().numpy(), entries.indices().numpy()), matrix.shape
        )

    def accumulate(
        self, onto: torch.Tensor, coefficient: torch.Tensor, array: torch.Tensor
    ) -> torch.Tensor:
        """`onto` + c·`array`, in one pass where it is in place."""
        if not self.writes:
            return onto + coefficient * array
        return onto.addcmul_(coefficient, array)

    def norm(self, array: torch.Tensor, kind: str, axes: int = 1) -> torch.Tensor:
        """The Euclidean or largest norm over the last axes."""
        if axes == 0:  # for Torch no axis is all of them
            return array.abs()
        order = 2.0 if kind == "euclidean" else float("inf")
        norm: torch.Tensor = torch.linalg.vector_norm(
            array, order, tuple(range(-axes, 0))
        )
        return norm

    def quiet(self) -> AbstractContextManager[Any]:
        """Torch does not warn of overflow."""
        return nullcontext()

    def underived(self) -> AbstractContextManager[Any]:
        """Without autograd."""
        return torch.no_grad()

    @contextmanager
    def unrecorded(self, inputs: Vec) -> Iterator[None]:
        """Without autograd, the algebra without autocast."""
        if inside_transform():
            raise TypeError(
                "inside a transform of torch.func steps cannot be asked for one by "
                "one: use fixed_point, with max_steps= or callback="
            )
        with torch.no_grad(), exact(inputs[0].device):
            yield

    def linearize(self, f: Callable[[Vec], Vec], value: Vec) -> Callable[[Vec], Vec]:
        """The products v ↦ f′(value)v, each the transpose of v ↦ f′(value)ᵀv."""
        return products(lambda z, _: f(z), value, (), transposed=False)

    def vjp(self, f: Callable[..., Any], *primals: Any) -> tuple[Any, Pullback]:
        """The value of f, and a pullback that can be called more than once.

        Where derivatives are recorded both are differentiable. The iteration records
        none, and takes the faster way.
        """
        if torch.is_grad_enabled():
            value, pull, *_ = torch.func.vjp(f, *primals)
            return value, pull
        leaves, structure = tree.flatten(primals)
        with recording_on():
            inputs = [constant(leaf).requires_grad_() for leaf in leaves]
            outputs, out_structure = tree.flatten(f(*structure.rebuild(inputs)))

        def pullback(cotangent: Any) -> tuple[Any, ...]:
            seeds = tuple(tree.flatten(cotangent)[0])
            pulled = gradients(tuple(outputs), tuple(inputs), seeds)
            return tuple(structure.rebuild(pulled))

        return out_structure.rebuild([output.detach() for output in outputs]), pullback

    def rounding(self, value: Vec) -> float:
        """The unit roundoff of autocast."""
        device = value[0].device.type
        if not torch.is_autocast_enabled(device):
            return 0.0
        return torch.finfo(torch.get_autocast_dtype(device)).eps

    def conform(self, leaf: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """`leaf` in the dtype of the state, where autocast chose another."""
        if leaf.dtype != like.dtype and torch.is_autocast_enabled(like.device.type):
            return leaf.to(like.dtype)
        return leaf

    def small(self, function: Callable[..., Vec], *arrays: torch.Tensor) -> Vec:
        """In NumPy, where nothing is recorded."""
        if recording() or not numpy_algebra.holds(arrays):
            return function(self, *arrays)
        bridge = numpy_algebra.NUMPY
        with bridge.backend.quiet():
            return bridge.all_back(function(bridge.backend, *bridge.all_there(arrays)))

    def evaluator(
        self,
        value: Vec,
        unpack: Callable[[Vec], Any],
        packed: Callable[[Any, Vec], Evaluated],
    ) -> TorchEvaluator:
        """An evaluator that restores f's surroundings, and notices if f writes to z."""
        around = Surroundings(value[0].device)
        return TorchEvaluator(unpack, packed, around, self.marks_writes)

    def recording(self, checkpoint: int | None) -> Backend:
        """The backend that writes nothing in place."""
        return RecordingBackend(checkpoint).among(self.communicator)

    def stop(self, vec: Vec) -> Vec:
        """Detached tensors."""
        return tuple(leaf.detach() for leaf in vec)


class RecordingBackend(TorchBackend):
    """Torch, where all that a solver does is recorded by autograd or by a transform.

    Parameters
    ----------
    checkpoint : int or None
        Turns of a loop between two carries that are kept. Transforms of ``torch.func``
        keep all.
    """

    records = True
    writes = False

    def __init__(self, checkpoint: int | None) -> None:
        self.checkpoint = checkpoint
        self.latest: list[Any] = []
        self.inside = False

    def namespace(self, array: torch.Tensor) -> Any:
        """Torch's, with derivatives that are finite."""
        del array
        return _RECORDED

    def is_readable(self, mask: torch.Tensor) -> bool:
        """True: the graph that is recorded depends on the values."""
        del mask
        return True

    def empty(self, xp: Any) -> Callable[..., torch.Tensor]:
        """Zeros."""
        make: Callable[..., torch.Tensor] = xp.zeros
        return make

    def write(
        self, array: torch.Tensor, index: Any, value: torch.Tensor
    ) -> torch.Tensor:
        """A new tensor."""
        value = value.to(array.dtype)
        if array.is_complex():  # of which scatters have no derivative
            parts = (array.real, value.real), (array.imag, value.imag)
            return torch.complex(
                *(self.write(onto, index, part) for onto, part in parts)
            )
        return _written(array, index[1:], value)

    def solve(self, matrices: torch.Tensor, rights: torch.Tensor) -> torch.Tensor:
        """The same, with derivatives that are right in every mode."""
        solution: torch.Tensor = small_solve(matrices, rights[..., None])
        return solution[..., 0]

    write_secant, norm = Backend.write_secant, Backend.norm
    deducted = Backend.deducted

    def piece(self, array: torch.Tensor) -> int | None:
        """All: nothing is written in place."""
        del array
        return None

    def linearize(self, f: Callable[[Vec], Vec], value: Vec) -> Callable[[Vec], Vec]:
        """The products v ↦ f′(value)v, differentiable."""
        if torch.is_grad_enabled() and not inside_transform():
            return recorded(f, value)
        return lambda v: pushed(f, value, v)

    def while_loop(
        self,
        condition: Callable[[Carry], Any],
        body: Callable[[Carry], Carry],
        carry: Carry,
        at_most: Any,
    ) -> Carry:
        """The loop; where checkpoints are asked for, only some carries are kept."""
        is_taped = torch.is_grad_enabled() and not inside_transform()
        if self.checkpoint is None or self.inside or not is_taped:
            return super().while_loop(condition, body, carry, at_most)
        turns = range(self.checkpoint)

        def segment(carry: Carry) -> Carry:
            with self._segment(carry):
                for _ in turns:
                    if not condition(carry):
                        break
                    carry = body(carry)
            return carry

        while condition(carry):
            carry = Checkpoint(segment, carry, self.latest).run()
        return carry

    @contextmanager
    def _segment(self, carry: Carry) -> Iterator[None]:
        """Where inner loops keep no carries, and recomputation is without autocast."""
        leaves = tree.flatten(carry)[0]
        device = next(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
        self.inside = True
        try:
            with exact(device):
                yield
        finally:
            self.inside = False


def _written(
    array: torch.Tensor, parts: tuple[Any, ...], value: torch.Tensor
) -> torch.Tensor:
    """A new tensor, `value` at `parts` of the last axes: numbers or ``slice(n)``."""
    for axis, part in enumerate(parts, -len(parts)):
        if not isinstance(part, slice):
            others = tuple([p for k, p in enumerate(parts, -len(parts)) if k != axis])
            inner = _written(array.select(axis, part), others, value)
            # Not select_scatter, which is wrong in reverse over forward mode.
            inner, place = inner.unsqueeze(axis), part % array.shape[axis]
            return torch.slice_scatter(array, inner, axis, place, place + 1)
    for axis, part in enumerate(parts, -len(parts)):
        if part.stop is not None:
            return torch.slice_scatter(array, value, axis, 0, part.stop)
    return value


def _unwrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor beneath the wrappers of ``torch.func`` transforms."""
    return maps.unwrap(tensor)[-1]
