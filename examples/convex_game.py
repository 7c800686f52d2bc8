"""A convex game between patches: a denoiser trained through its equilibrium.

The overlapping patches of a noisy photograph are the agents of a game. Each seeks a
sparse code in a dictionary that explains what it sees, and wants to agree with its
neighbors on the pixels they share. The equilibrium is found by proximal gradient steps
of all agents at once, accelerated. The dictionary, the penalties of codes, and a second
dictionary that makes the answer of them are learned by differentiating it implicitly:
memory does not grow with the steps, and no kink is smoothed. Photographs to test on are
others than those to train on, and larger, which makes no difference to the game.

What to look at, in ``convex_game.png``: photographs, what is seen of them, and what the
game makes of it with a cosine basis and after training; below, the atoms before and
after, and the mean of the losses so far.

Lecouat, Ponce and Mairal, "A flexible framework for designing trainable priors with
adaptive smoothing and game encoding", NeurIPS 2020, arXiv:2006.14859.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure

from fixedpoint_models.data import photographs
from fixedpoint_models.games import PatchGame, train_denoiser

SHOWN, TRAIN_SIZE, TEST_SIZE = 5, 32, 64


def psnr(images: torch.Tensor, clean: torch.Tensor) -> float:
    """The mean over the images of the peak signal-to-noise ratio in decibels, the peak
    being 1.
    """
    errors = (images - clean).square().mean(dim=(1, 2, 3))
    return float((-10.0 * torch.log10(errors)).mean())


def cut(limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of shape (number, 1, H, W) to train on, and `limit` larger ones to test
    on.
    """
    train, _ = photographs(TRAIN_SIZE, limit=1000)
    _, test = photographs(TEST_SIZE, limit=limit)
    return torch.as_tensor(train)[:, None], torch.as_tensor(test)[:, None]


def mosaic(dictionary: torch.Tensor) -> torch.Tensor:
    """The atoms beside each other, each scaled to its largest entry."""
    pixels, atoms = dictionary.shape
    size, columns = round(pixels**0.5), round(atoms**0.5)
    scaled = dictionary / dictionary.abs().amax(0)
    tiles = torch.zeros(columns, columns, size + 1, size + 1)
    for k in range(columns**2):
        tiles[k // columns, k % columns, :size, :size] = scaled[:, k].reshape(
            size, size
        )
    return tiles.permute(0, 2, 1, 3).reshape(columns * (size + 1), -1)


def draw(
    rows: dict[str, torch.Tensor],
    atoms: dict[str, torch.Tensor],
    losses: list[float],
    file: Path,
) -> None:
    """The picture."""
    figure = Figure(figsize=(8, 9.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2.3, 1))
    for line, (label, row) in zip(
        above.subplots(len(rows), SHOWN), rows.items(), strict=True
    ):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for axis, image in zip(line, row[:, 0].numpy(), strict=False):
            axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0)
            axis.set(xticks=[], yticks=[])
    *grids, course = below.subplots(1, len(atoms) + 1)
    for axis, (label, dictionary) in zip(grids, atoms.items(), strict=True):
        axis.imshow(mosaic(dictionary).numpy(), cmap="gray", vmin=-1.0, vmax=1.0)
        axis.set(xticks=[], yticks=[], title=f"atoms, {label}")
    means = torch.tensor(losses).cumsum(0) / torch.arange(1, len(losses) + 1)
    course.plot(means.numpy())
    course.set(xlabel="step", title="mean loss so far")
    figure.savefig(file, dpi=110)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(
        "examples-output"
    ),
    steps: Annotated[int, typer.Option(help="Of the training.")] = 400,
    sigma: Annotated[
        float, typer.Option(help="Standard deviation of the noise.")
    ] = 0.1,
    tests: Annotated[int, typer.Option(help="Photographs to test on, 5 or more.")] = 10,
) -> dict[str, float]:
    """Train the game on noisy photographs, and denoise others before and after."""
    train, clean = cut(tests)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    game = PatchGame(size=6, atoms=64, rtol=1e-3)
    rows = {"photograph": clean, "noisy": clean + sigma * noise}
    rows["untrained"], atoms = (
        game.denoise(rows["noisy"]),
        {"untrained": game.dictionary()},
    )
    begin = time.perf_counter()
    losses = train_denoiser(game, train, sigma, steps, batch_size=4, learning_rate=2e-2)
    seconds = time.perf_counter() - begin
    rows["trained"], atoms["trained"] = game.denoise(rows["noisy"]), game.dictionary()
    output.mkdir(parents=True, exist_ok=True)
    still = {name: dictionary.detach() for name, dictionary in atoms.items()}
    draw(rows, still, losses, output / "convex_game.png")
    found = {
        name: psnr(row, clean) for name, row in rows.items() if name != "photograph"
    }
    for name, value in found.items():
        print(f"{name}: {value:.2f} dB")
    print(f"trained in {seconds:.0f} s")
    return found


if __name__ == "__main__":
    typer.run(main)
