"""A transformer block in equilibrium, which follows pointers as far as they lead.

A sequence stands for a forest: token i names its parent, and a root names itself. What
the network has to say for each token is the root of its tree, which lies some steps up.
The state z of all tokens is in equilibrium with a block of attention and a feed-forward
network, both with layer norms after them,

    z = norm(y + feed(y)) ,   y = norm(z + attention(z + x)) ,

where x is put into queries, keys and values at each evaluation. One attention follows
one pointer, or, since what it reads has been followed already, doubles the way; an
equilibrium goes all the way.

What to look at, in ``transformer_deq.png``: the share of tokens that are right, by the
steps to their root. The same block, applied once, reads roots and their children, and
guesses from there. (Applied twice it would nearly do, on sequences as short as these.
What the equilibrium spares is to know how often.)

Bai, Kolter and Koltun, "Deep equilibrium models", NeurIPS 2019, arXiv:1909.01377.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from torch.nn import functional
from tqdm import tqdm

import fixedpoint as fp
from fixedpoint_torch import DEQ

WIDTH, HEADS, BATCH, DEPTH, ROOTS, LAYERS = 48, 4, 64, 5, 0.2, 1


class Block(torch.nn.Module):
    """Attention of all tokens to all, and a feed-forward network.

    Parameters
    ----------
    width, heads : int
        Of a token's state, and of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = torch.nn.Linear(width, 3 * width, bias=False)
        self.mix = torch.nn.Linear(width, width)
        self.feed = torch.nn.Sequential(
            torch.nn.Linear(width, 2 * width),
            torch.nn.ReLU(),
            torch.nn.Linear(2 * width, width),
        )
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)

    def attention(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What each token reads of the others; x is added to queries, keys and
        values.
        """
        parts = (self.project(z) + x).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(query, key, value)
        return self.mix(read.transpose(1, 2).flatten(-2))

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The next state of all tokens."""
        y = self.norm1(z + self.attention(z, x))
        return self.norm2(y + self.feed(y))


class Network(torch.nn.Module):
    """Embeddings, the block in equilibrium or a number of times from zero, and a linear
    readout.

    Parameters
    ----------
    length : int
        Of the sequence.
    layers : int or None
        How often the block is applied; None stands for the equilibrium.
    """

    def __init__(self, length: int, layers: int | None) -> None:
        super().__init__()
        self.parent = torch.nn.Embedding(length, WIDTH)
        self.position = torch.nn.Parameter(torch.randn(length, WIDTH))
        self.inject = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.layers = layers
        self.layer = DEQ(
            Block(WIDTH, HEADS),
            start=self._zero,
            solver=fp.Anderson(memory=5),
            rtol=1e-2,
            max_steps=30,
            on_failure="return",
            adjoint=fp.ImplicitAdjoint(max_steps=30, on_failure="return"),
        )
        self.readout = torch.nn.Linear(WIDTH, length)

    def _zero(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(*x.shape[:2], WIDTH)

    def forward(self, parents: torch.Tensor) -> torch.Tensor:
        """The scores of all tokens as roots of each."""
        x = self.inject(self.parent(parents) + self.position)
        if self.layers is None:
            return self.readout(self.layer(x))
        z = self._zero(x)
        for _ in range(self.layers):
            z = self.layer.cell(z, x)
        return self.readout(z)


def forests(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Parents, roots, and steps to the root, each of shape (BATCH, length), in random
    order.
    """
    place = torch.arange(length).expand(BATCH, length)
    parents = (place - torch.randint(1, 4, place.shape)).clamp(min=0)
    parents = torch.where(torch.rand(place.shape) < ROOTS, place, parents)
    roots, steps = place, torch.zeros_like(place)
    for _ in range(length):
        above = parents.gather(1, roots)
        steps, roots = steps + (above != roots), above
    names = torch.rand(place.shape).argsort(dim=1)
    order = names.argsort(dim=1)
    renamed = (names.gather(1, tokens).gather(1, order) for tokens in (parents, roots))
    return *renamed, steps.gather(1, order)


def train(network: Network, length: int, steps: int) -> list[float]:
    """Train in place on fresh forests; the loss of each step."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in tqdm(range(steps), disable=None):
        parents, roots, _ = forests(length)
        loss = functional.cross_entropy(network(parents).transpose(1, 2), roots)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def accuracy(network: Network, length: int) -> tuple[float, list[float]]:
    """The share of tokens that are right, of all, and for each number of steps to the
    root.
    """
    parents, roots, steps = forests(length)
    with torch.no_grad():
        right = (network(parents).argmax(dim=2) == roots).double()
    return float(right.mean()), [float(right[steps == k].mean()) for k in range(DEPTH)]


def draw(
    shares: dict[str, list[float]], losses: dict[str, list[float]], file: Path
) -> None:
    """Accuracy by the way to the root, and loss by step."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, share in shares.items():
        left.plot(share, "o-", label=name)
        right.semilogy(losses[name], label=name)
    left.set(
        xlabel="steps to the root", ylabel="share of tokens right", ylim=(0.0, 1.05)
    )
    right.set(xlabel="step of training", ylabel="loss of the batch")
    left.legend()
    figure.savefig(file, dpi=120)


def main(
    steps: Annotated[int, typer.Option(help="Of training.")] = 400,
    size: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 10,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(
        "examples-output"
    ),
) -> dict[str, float]:
    """Train both networks, print how far each follows, and draw it."""
    result, shares, losses = {}, {}, {}
    for name, layers in {"equilibrium": None, f"{LAYERS} application": LAYERS}.items():
        torch.manual_seed(seed)
        network = Network(size, layers)
        losses[name] = train(network, size, steps)
        result[name], shares[name] = accuracy(network, size)
        print(
            f"{name}: {result[name]:.1%} of all tokens, {shares[name][-1]:.1%} of the "
            "farthest"
        )
    output.mkdir(parents=True, exist_ok=True)
    draw(shares, losses, output / "transformer_deq.png")
    return result


if __name__ == "__main__":
    typer.run(main)
