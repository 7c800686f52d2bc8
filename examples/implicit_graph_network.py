"""An implicit graph network, which sees as far along a chain as the chain is long.

Each node of a graph has features z, in equilibrium with those of its neighbors,

    Z = relu(A Z Wᵀ + U Bᵀ) ,

where A is the adjacency matrix and U is what is known of the nodes. With the norm of W
held below that of 1/A there is one equilibrium, and every node hears of every other.
Here the graphs are chains, and the class that all nodes of a chain have to be given is
written into the first node alone, hidden in features that are otherwise noise.

What to look at, in ``implicit_graph_network.png``: the share of nodes that are right,
by their distance from the first. A network of four graph convolutions knows nothing
beyond the fourth node, where it can only guess; the equilibrium reaches the end.

Gu, Chang, Zhu, Sojoudi and El Ghaoui, "Implicit graph neural networks", NeurIPS 2020,
arXiv:2009.06211.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from torch.nn import functional
from tqdm import tqdm

from fixedpoint_torch import DEQ

FEATURES, CLASSES, CHAINS, BOUND, LAYERS = 8, 2, 64, 0.98, 4


class Convolution(torch.nn.Module):
    """Z ↦ relu(A Z Wᵀ + U Bᵀ), the largest row sum of |W| at most `BOUND`.

    Parameters
    ----------
    width : int
        Features of a node's state.
    adjacency : tensor of shape (nodes, nodes)
        A, with row sums of at most 1.
    """

    def __init__(self, width: int, adjacency: torch.Tensor) -> None:
        super().__init__()
        self.free = torch.nn.Parameter(
            torch.eye(width) + 0.1 * torch.randn(width, width)
        )
        self.input = torch.nn.Linear(FEATURES, width, bias=False)
        self.register_buffer("adjacency", adjacency)

    def forward(self, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The next state of all nodes."""
        length = self.free.abs().sum(dim=1, keepdim=True)
        weight = self.free * (BOUND / length.clamp(min=BOUND))
        return functional.relu(self.adjacency @ z @ weight.T + self.input(u))


class Network(torch.nn.Module):
    """The convolution in equilibrium, or a few times from zero, and a linear readout of
    each node.

    Parameters
    ----------
    width, length : int
        Features of a state, and nodes of a chain.
    layers : int or None
        How often the convolution is applied; None stands for the equilibrium.
    """

    def __init__(self, width: int, length: int, layers: int | None) -> None:
        super().__init__()
        # Each node hears the one before it.
        before = torch.diag(torch.ones(length - 1), -1)
        cell = Convolution(width, before)
        self.width, self.layers = width, layers
        self.layer = DEQ(cell, start=self._zero)
        self.readout = torch.nn.Linear(width, CLASSES)

    def _zero(self, u: torch.Tensor) -> torch.Tensor:
        return u.new_zeros(*u.shape[:2], self.width)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """The scores of the classes at each node."""
        if self.layers is None:
            return self.readout(self.layer(u))
        z = self._zero(u)
        for _ in range(self.layers):
            z = self.layer.cell(z, u)
        return self.readout(z)


def chains(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is known of the nodes of `CHAINS` chains, and the class of each chain."""
    labels = torch.randint(CLASSES, (CHAINS,))
    u = 0.01 * torch.randn(CHAINS, length, FEATURES)
    u[torch.arange(CHAINS), 0, labels] += 1.0
    return u, labels


def train(network: Network, length: int, steps: int) -> list[float]:
    """Train in place on fresh chains; the loss of each step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in tqdm(range(steps), disable=None):
        u, labels = chains(length)
        scores = network(u)
        loss = functional.cross_entropy(
            scores.transpose(1, 2), labels[:, None].expand(-1, length)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def accuracy(network: Network, length: int) -> torch.Tensor:
    """The share of new chains whose node is right, for each node."""
    u, labels = chains(length)
    with torch.no_grad():
        return (network(u).argmax(dim=2) == labels[:, None]).double().mean(dim=0)


def draw(
    shares: dict[str, torch.Tensor], losses: dict[str, list[float]], file: Path
) -> None:
    """Accuracy by distance, and loss by step."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, share in shares.items():
        left.plot(share, "o-", ms=3, label=name)
        right.plot(losses[name], label=name)
    left.set(
        xlabel="distance from the first node",
        ylabel="share of nodes right",
        ylim=(0, 1.05),
    )
    right.set(xlabel="step", ylabel="loss", yscale="log")
    left.legend()
    figure.savefig(file, dpi=120)


def main(
    steps: Annotated[int, typer.Option(help="Of training.")] = 120,
    size: Annotated[int, typer.Option(help="Nodes of a chain.")] = 30,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(
        "examples-output"
    ),
) -> dict[str, float]:
    """Train both networks, print how far each sees, and draw it."""
    shares, losses = {}, {}
    for name, layers in {"equilibrium": None, f"{LAYERS} layers": LAYERS}.items():
        torch.manual_seed(seed)
        network = Network(16, size, layers)
        losses[name] = train(network, size, steps)
        shares[name] = accuracy(network, size)
    output.mkdir(parents=True, exist_ok=True)
    draw(shares, losses, output / "implicit_graph_network.png")
    for name, share in shares.items():
        print(
            f"{name}: {float(share.mean()):.1%} of all nodes, {float(share[-1]):.1%} "
            "of the last"
        )
    equilibrium, few = shares.values()
    return {"equilibrium": float(equilibrium.mean()), "layers": float(few.mean())}


if __name__ == "__main__":
    typer.run(main)
