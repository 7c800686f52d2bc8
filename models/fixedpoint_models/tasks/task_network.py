"""The network whose inputs adapt it to a task, and the loss of its scores."""

from __future__ import annotations

from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional

from fixedpoint.checks import check_count
from fixedpoint_models.networks import FiLM, MDEQCell

Tensor = torch.Tensor
State = tuple[Tensor, ...]
Params = dict[str, Any]


class TaskNetwork(torch.nn.Module):
    """Images of a task to scores of its classes, by an equilibrium that the task's
    vector steers.

    Convolutions take an image to the drive of an :class:`MDEQCell`, whose equilibrium z
    is read out as a feature vector φ(z), normalized. The task's vector v is a context c
    and a code uₖ for each class. The score of class k is ⟨φ(z), uₖ⟩, and the drive is
    modulated by :class:`FiLM` of c and of the mean square of the codes, entry by entry.

    Labels are dealt out anew in every task: which character is called the third is
    known from the support alone. A vector that modulates features and cannot reach the
    read-out cannot tell; the codes bind labels to characters, and at v = 0 all scores
    are zero. They enter the equilibrium in a way that does not depend on the order of
    the labels: their mean is zero at the minimum of a cross-entropy, their mean square
    says along which features the classes differ.

    Parameters
    ----------
    ways : int
        Classes of a task.
    side : int
        Of the images, a multiple of four.
    channels : int, optional
        Of the state, at a quarter of the images' side.
    features, context : int, optional
        Entries of φ, and of c.
    groups, activation, gain
        As for :class:`MDEQCell`.

    References
    ----------
    Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson, "Fast context adaptation via
    meta-learning", ICML 2019, arXiv:1810.03642. Lee, Maji, Ravichandran and Soatto,
    "Meta-learning with differentiable convex optimization", CVPR 2019,
    arXiv:1904.03758.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> network = TaskNetwork(ways=5, side=16)
    >>> images, v = torch.rand(2, 5, 1, 16, 16), torch.zeros(2, network.entries())
    >>> params = network.params(images)
    >>> sol = fp.fixed_point(network.f, network.zero_state(2, 5), (v, params),
    ...                      batch_ndim=1,
    ...                      rtol=1e-4)
    >>> network.scores(sol.value, v, params).shape
    torch.Size([2, 5, 5])
    """

    def __init__(
        self,
        ways: int,
        side: int,
        *,
        channels: int = 32,
        features: int = 32,
        context: int = 8,
        groups: int = 4,
        activation: str = "softplus",
        gain: float = 0.15,
    ) -> None:
        super().__init__()
        sizes = {"ways": ways, "features": features, "context": context}
        for name, value in sizes.items():
            check_count(name, value, 1)
        if side % 4:
            raise ValueError(f"side must be a multiple of 4, got {side}")
        self.ways, self.features, self.context = ways, features, context
        self.stem = _stem(channels, groups)
        film = FiLM(torch.nn.Identity(), context + features, (channels,))
        self.cell = MDEQCell(
            (channels,),
            side // 4,
            film,
            groups=groups,
            activation=activation,
            gain=gain,
            weight_norm=False,
        )
        self.readout = torch.nn.Linear(channels * (side // 4) ** 2, features)
        self.scale = torch.nn.Parameter(torch.tensor(float(features)).sqrt())

    def entries(self, ways: int | None = None) -> int:
        """The length of a task's vector, by default of a task of as many classes as
        those of training.
        """
        return self.context + (ways or self.ways) * self.features

    def zero_state(self, *batch: int) -> State:
        """A state of zeros; where to start."""
        return self.cell.zero_state(*batch)

    def params(self, images: Tensor) -> Params:
        """What :meth:`f` and :meth:`scores` take: the weights, and the drive of the
        images.

        The drive does not depend on what is solved for, and is computed once.

        Parameters
        ----------
        images : tensor of shape (tasks, images, 1, side, side)
            Of the tasks.
        """
        batch = images.shape[:2]
        drive = self.stem(images.flatten(0, 1)).unflatten(0, batch)
        parts = {"cell": self.cell, "readout": self.readout}
        weights = {name: dict(part.named_parameters()) for name, part in parts.items()}
        return {**weights, "scale": self.scale, "drive": drive}

    def f(self, z: State, v: Tensor, params: Params) -> State:
        """The equilibrium map of states (tasks, images, …) and vectors (tasks,
        entries).
        """
        batch = z[0].shape[:2]
        spread = self._codes(v).square().mean(-2)
        steer = torch.cat([v[..., : self.context], spread], dim=-1)
        steer = steer[:, None].expand(*batch, steer.shape[-1]).flatten(0, 1)
        inputs = (params["drive"].flatten(0, 1),), steer
        image = functional_call(
            self.cell, params["cell"], ((z[0].flatten(0, 1),), inputs)
        )
        return (image[0].unflatten(0, batch),)

    def scores(self, z: State, v: Tensor, params: Params) -> Tensor:
        """⟨φ(z), uₖ⟩ for each class, of shape (tasks, images, ways)."""
        read = functional_call(self.readout, params["readout"], (z[0].flatten(2),))
        features: Tensor = params["scale"] * functional.normalize(read, dim=-1)
        return features @ self._codes(v).transpose(-1, -2)

    def _codes(self, v: Tensor) -> Tensor:
        codes = v[..., self.context :]
        return codes.reshape(*v.shape[:-1], -1, self.features)


def _stem(channels: int, groups: int) -> torch.nn.Sequential:
    """Convolutions, twice to half of the side."""
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(1, channels, 3, padding=1)]
    for _ in range(2):
        layers += [
            torch.nn.GroupNorm(groups, channels),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(channels, channels, 3, padding=1),
        ]
    return torch.nn.Sequential(*layers)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """The mean over the images of each task."""
    losses = functional.cross_entropy(scores.transpose(1, 2), labels, reduction="none")
    return losses.mean(dim=1)
