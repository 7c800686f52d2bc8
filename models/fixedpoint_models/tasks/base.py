"""What the command line asks of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import torch

from fixedpoint import tree

LOOSE = 0.1
"""What is left of a state or adjoint, in parts of it, that its gradient is trusted
with.
"""


def norms(state: Any) -> torch.Tensor:
    """The norm of each sample of a state."""
    squares = [leaf.flatten(1).square().sum(1) for leaf in tree.flatten(state)[0]]
    return torch.stack(squares).sum(0).sqrt()


class Experiment(ABC):
    """A task: its data, its network, and what training, evaluating and sampling mean.

    It is made of settings and a device, on which it puts its network and its data. The
    settings are the frozen dataclass that the first parameter of its ``__init__`` is
    annotated with; its fields are the keys of the YAML file, beside ``task`` and
    ``training``, with ranges given by :func:`fixedpoint_models.config.setting`, and one
    of them is `seed`. All that is random has to follow from the seed, or from Torch's
    global generator, which is seeded before the task is made and whose state is part of
    a checkpoint.

    Parameters
    ----------
    settings : dataclass
        The settings.
    device : torch.device
        The device.

    Attributes
    ----------
    trains : bool
        Whether there is something to train; otherwise a checkpoint of another task is
        used.
    mixed : bool
        Whether ``--amp`` has an effect: the network is then evaluated by way of
        :meth:`network`.
    module : torch.nn.Module
        What is trained.
    amp : torch.dtype, optional
        The type of the network's evaluation under ``--amp``, set while steps are made.
    """

    trains: ClassVar[bool] = True
    mixed: ClassVar[bool] = False
    module: torch.nn.Module
    amp: torch.dtype | None = None

    @abstractmethod
    def __init__(self, settings: Any, device: torch.device) -> None: ...

    @classmethod
    def settings_type(cls) -> Any:
        """The dataclass of the settings."""
        return get_type_hints(cls.__init__)["settings"]

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch, the same ones for the same epoch."""

    @abstractmethod
    def step(self, batch: Any) -> dict[str, float]:
        """Add the gradient of the batch's mean loss to the parameters; return what to
        write down.

        The names are the same in every call. `failed` is the part of the samples whose
        solve failed; an epoch where it is most of them ends training. Where several
        processes train, `batch` is a part.
        """

    def remedy(self) -> str:
        """What is wrong where most solves of an epoch failed, and what to do."""
        return (
            "the network has lost its equilibria, and its gradients mean nothing; "
            "raise the weight of the Jacobian penalty, fix the lengths of filters, or "
            "lower the learning rate"
        )

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Figures of merit on held-out data."""

    @abstractmethod
    def draw(self, folder: Path) -> list[Path]:
        """Write pictures to `folder`, and return their paths."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold beside the parameters and the optimizer.

        Tensors, numbers and strings, in lists and dicts: it is read without unpickling.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        if state:
            raise ValueError(f"this task keeps no state, got {sorted(state)}")

    def count(self, batch: Any) -> int:
        """How many samples a batch has: the length of its first tensor."""
        return len(tree.flatten(batch)[0][0])

    def part(self, batch: Any, rank: int, ranks: int) -> Any:
        """The samples of a batch that one of several processes takes; there may be
        none.

        Tensors as long as the first one are cut, and others are passed whole.
        """
        if ranks == 1:
            return batch
        leaves, structure = tree.flatten(batch)
        number = len(leaves[0])
        rows = slice(number * rank // ranks, number * (rank + 1) // ranks)
        return structure.rebuild(
            [
                leaf[rows] if getattr(leaf, "shape", ())[:1] == (number,) else leaf
                for leaf in leaves
            ]
        )

    def merge(self, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Collect what the processes stored for their samples, after each epoch.

        Parameters
        ----------
        total : callable
            Takes a tensor to its sum over all processes.
        """
        del total

    def network(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which evaluates the network on a state, so that it heeds
        :attr:`amp`.

        Only what runs inside is of low precision. What comes out is of the precision of
        the first argument: solvers add up small differences of states, which half
        precision loses.
        """

        def evaluated(z: Any, *args: Any) -> Any:
            if self.amp is None:
                return function(z, *args)
            first = tree.flatten(z)[0][0]
            with torch.autocast(first.device.type, dtype=self.amp):
                leaves, structure = tree.flatten(function(z, *args))
            return structure.rebuild([leaf.to(first.dtype) for leaf in leaves])

        return evaluated
