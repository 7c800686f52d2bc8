"""A generative model: an equilibrium decoder, trained while the codes of its images are
found.

A decoder takes a code x to the equilibrium z = f(z, x) and that to an image D(z).
Training knows no codes. In every step those of a batch of images are found together
with the equilibria and their adjoints as one fixed point; the adjoints then give the
gradient in the parameters, without a backward solve. New images are those of codes
drawn from a mixture of Gaussians, fitted to the codes of the training images.

What to look at, in ``generative_model.png``: above, images that no training has seen,
and what the decoder makes of the codes found for them; then new images. Below, how well
held-out images are explained against the processor time of training, with the tracked
Newton method and with the published recipe, Anderson's method on the joint map, which
starts from the codes of an epoch ago.

Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
equilibrium networks", NeurIPS 2021, arXiv:2111.13236.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from tqdm import tqdm

from fixedpoint_models import TrackedNewton
from fixedpoint_models.comparison import one_thread
from fixedpoint_models.plots import fill_with_images
from fixedpoint_models.tasks.generative import Generative
from fixedpoint_models.tasks.images import quality, shown
from fixedpoint_models.tasks.settings import Images, Network, Settings, Solve

SHOWN, NEW = 12, 3
SOLVES = {
    "newton": Solve(steps=30),
    "recipe": Solve(
        method="recipe", steps=30, step_size=0.1, final_step_size=0.05, warm="code"
    ),
}
Curve = list[tuple[float, float]]


def train(solve: Solve, epochs: int) -> tuple[Generative, Curve, torch.Tensor]:
    """A decoder, what it has come to after each epoch, and held-out images decoded at
    the end.
    """
    network = Network(kind="dense")
    settings = Settings(
        images=Images(name="digits"), network=network, solve=solve, batch_size=100
    )
    torch.manual_seed(0)
    task = Generative(settings, torch.device("cpu"))
    optimizer = torch.optim.Adam(task.module.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    seconds, curve = 0.0, []
    for epoch in tqdm(range(epochs), desc=f"epochs, {solve.method}", disable=None):
        begin = time.process_time()
        for batch in task.batches(epoch):
            optimizer.zero_grad()
            task.step(batch)
            optimizer.step()
        schedule.step()
        seconds += time.process_time() - begin
        objective, decoded = evaluated(task)
        curve.append((seconds, objective))
    return task, curve, decoded


def evaluated(task: Generative) -> tuple[float, torch.Tensor]:
    """The mean objective of held-out images, re-solved, and the images at the codes
    found.
    """
    params, images = task.decoder.frozen(task.settings.prior), task.held_out
    z, x = task.decoder.start(len(images))
    found = task.model.solve(
        z,
        x,
        params=params,
        y=images,
        method=TrackedNewton(),
        max_steps=50,
        on_failure="return",
    )
    return float(found.objective.mean()), task.decoder.images(found.x, params)


def draw(
    task: Generative, decoded: torch.Tensor, curves: dict[str, Curve], file: Path
) -> None:
    """The picture."""
    params = task.decoder.frozen(task.settings.prior)
    new = task.decoder.images(task.sample(NEW * SHOWN), params)
    rows = {"held out": task.held_out[:SHOWN], "decoded": decoded[:SHOWN]}
    rows |= {
        "new" if k == 0 else " " * k: part for k, part in enumerate(new.split(SHOWN))
    }
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.4, 1))
    fill_with_images(above, {label: shown(images) for label, images in rows.items()})
    axis = below.subplots()
    for label, curve in curves.items():
        axis.plot(*zip(*curve, strict=True), label=label)
    axis.set(yscale="log", xlabel="seconds of training", ylabel="objective, held out")
    axis.legend()
    figure.savefig(file, dpi=110)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(),
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 30,
) -> dict[str, Any]:
    """Train by both methods, decode, draw new images, and plot."""
    pictures, curves, figures = {}, {}, {}
    with one_thread():
        for name, solve in SOLVES.items():
            task, curves[name], decoded = train(solve, epochs)
            psnr = quality(decoded, task.held_out)["psnr"]
            (_, first), (seconds, objective) = curves[name][0], curves[name][-1]
            figures[name] = {
                "seconds": seconds,
                "first": first,
                "objective": objective,
                "psnr": sum(psnr) / len(psnr),
            }
            print(name, {key: round(value, 3) for key, value in figures[name].items()})
            pictures[name] = task, decoded
    draw(*pictures["newton"], curves, output / "generative_model.png")
    return figures


if __name__ == "__main__":
    typer.run(main)
