"""A convolutional deep equilibrium model that reads handwritten digits.

The layer is that of the tutorial: an image of features z with

    z = norm(relu(z + norm(x + conv(norm(relu(conv(z))))))) ,

a residual block whose output is its input, x the features of the picture. A network of
one such layer is trained on the digits of scikit-learn, with Anderson acceleration
forward and backward and the tutorial's tolerance of one per cent.

What to look at, in ``convolutional_deq.png``: the loss falls and the accuracy rises as
for any network, but the depth is not fixed. At the start a handful of evaluations make
an equilibrium; as the weights grow, so do they, up to the number allowed. The dotted
line is how many samples are solved by then. Gradients at the others may be far too
large, and are clipped: without that the loss jumps, and the model reads a tenth of the
digits less.

Kolter, Duvenaud and Johnson, "Deep implicit layers: neural ODEs, deep equilibrium
models, and beyond", tutorial at NeurIPS 2020, chapter 4,
http://implicit-layers-tutorial.org.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch.nn import functional
from tqdm import tqdm

import fixedpoint as fp
from fixedpoint_torch import DEQ

HELD_OUT, BATCH, GROUPS = 360, 64, 8


class Cell(torch.nn.Module):
    """A residual block with group norms.

    Parameters
    ----------
    channels, inner : int
        Of the state, and between the two convolutions: multiples of 8.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.conv2 = torch.nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norm1 = torch.nn.GroupNorm(GROUPS, inner)
        self.norm2 = torch.nn.GroupNorm(GROUPS, channels)
        self.norm3 = torch.nn.GroupNorm(GROUPS, channels)
        for convolution in (self.conv1, self.conv2):
            torch.nn.init.normal_(convolution.weight, std=0.01)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The next state."""
        y = self.norm1(functional.relu(self.conv1(z)))
        return self.norm3(functional.relu(z + self.norm2(x + self.conv2(y))))


def classifier(channels: int) -> torch.nn.Sequential:
    """A convolution, the equilibrium, and a linear readout of its averages."""
    layer = DEQ(
        Cell(channels, channels + GROUPS),
        solver=fp.Anderson(memory=5),
        rtol=1e-2,
        max_steps=30,
        on_failure="return",
        adjoint=fp.ImplicitAdjoint(max_steps=30, on_failure="return"),
    )
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, channels, 3, padding=1),
        torch.nn.BatchNorm2d(channels),
        layer,
        torch.nn.BatchNorm2d(channels),
        torch.nn.AvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * channels, 10),
    )


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The images of shape (number, 1, 8, 8), shuffled, and their labels."""
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    order = torch.randperm(len(images))
    return images[order], torch.as_tensor(data.target)[order]


def accuracy(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> float:
    """The share of the images that the model reads rightly."""
    model.eval()
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    model.train()
    return float(right.float().mean())


def train(
    model: torch.nn.Sequential, images: torch.Tensor, labels: torch.Tensor, steps: int
) -> dict[str, list[float]]:
    """Train in place; returns what is drawn, a number for each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    layer: Any = next(module for module in model if isinstance(module, DEQ))
    history: dict[str, list[float]] = {
        name: [] for name in ("loss", "f", "products", "solved")
    }
    for _ in tqdm(range(steps), disable=None):
        rows = torch.randint(len(images), (BATCH,))
        loss = functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        schedule.step()
        solved = (layer.statistics.status == fp.Status.CONVERGED).float().mean()
        numbers = (
            loss.detach(),
            layer.statistics.work.f,
            layer.statistics.backward.products,
            solved,
        )
        for name, number in zip(history, numbers, strict=True):
            history[name].append(float(number))
    return history


def draw(history: dict[str, list[float]], reached: float, file: Path) -> None:
    """Loss and evaluations by step."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(history["loss"])
    left.set(
        xlabel="step",
        ylabel="loss of the batch",
        title=f"held-out accuracy {reached:.1%}",
    )
    right.plot(history["f"], label="forward: evaluations")
    right.plot(history["products"], label="backward: products")
    right.set(xlabel="step", title="work of a step", ylim=(0.0, None))
    right.legend(loc="lower right")
    share = right.twinx()
    share.plot(history["solved"], "k:")
    share.set(ylim=(0.0, 1.05), ylabel="share of the samples solved, dotted")
    figure.savefig(file, dpi=120)


def main(
    steps: Annotated[int, typer.Option(help="Of training.")] = 200,
    size: Annotated[
        int, typer.Option(help="Channels of the state, a multiple of 8.")
    ] = 24,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(
        "examples-output"
    ),
) -> dict[str, float]:
    """Train the model, print how well it reads the digits held out, and draw its
    training.
    """
    torch.manual_seed(seed)
    images, labels = digits()
    model = classifier(size)
    history = train(model, images[HELD_OUT:], labels[HELD_OUT:], steps)
    reached = accuracy(model, images[:HELD_OUT], labels[:HELD_OUT])
    output.mkdir(parents=True, exist_ok=True)
    draw(history, reached, output / "convolutional_deq.png")
    result = {
        name: sum(numbers[-20:]) / len(numbers[-20:])
        for name, numbers in history.items()
    }
    print(f"accuracy on {HELD_OUT} digits held out: {reached:.1%}")
    print(
        f"of the last steps: loss {result['loss']:.3f}, {result['f']:.1f} evaluations, "
        f"{result['products']:.1f} products, {result['solved']:.1%} of the samples "
        "solved"
    )
    return result | {"accuracy": reached, "first_loss": history["loss"][0]}


if __name__ == "__main__":
    typer.run(main)
