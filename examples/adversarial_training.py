"""Adversarial training: digits perturbed against a classifier while it learns them.

The attack on an image is the perturbation x in a Euclidean ball that raises the
cross-entropy most. It is found together with the equilibrium z = f(z, x) and its
adjoint as one fixed point: every evaluation of f moves all three, the perturbation to
the point of the ball farthest along the gradient. The same adjoint then gives the
gradient in the parameters, without a backward solve.

What to look at, in ``adversarial_training.png``: above, images, what is added to them,
and the sum; below, how the loss of the test images grows with processor time, by the
joint attack and by nested ones, which solve for equilibrium and adjoint at each step.
The table printed gives accuracies on clean and on attacked images, after training by
either, and without attacks.

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

from fixedpoint_models.classifier import cross_entropy
from fixedpoint_models.comparison import one_thread
from fixedpoint_models.plots import fill_with_images
from fixedpoint_models.tasks.adversarial import Adversarial, Attack, Settings

RADIUS = 0.5
TRAININGS = {
    "joint": Attack(steps=12, radius=RADIUS),
    "nested": Attack(method="nested", steps=5, step_size=0.6 * RADIUS, radius=RADIUS),
    "none": Attack(method="none", radius=RADIUS),
}
RATES = (0.4 * RADIUS, 2.0 * RADIUS)
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24)


def train(attack: Attack, epochs: int) -> tuple[Adversarial, float]:
    """A classifier trained against an attack, and the seconds of processor time it
    took.
    """
    torch.manual_seed(0)
    task = Adversarial(Settings(attack=attack), torch.device("cpu"))
    optimizer = torch.optim.Adam(task.module.parameters(), lr=3e-3)
    begin = time.process_time()
    for epoch in tqdm(range(epochs), desc=f"epochs, {attack.method}", disable=None):
        for batch in task.batches(epoch):
            optimizer.zero_grad()
            task.step(batch)
            optimizer.step()
    return task, time.process_time() - begin


def strength(task: Adversarial, attack: Attack) -> tuple[float, float]:
    """Seconds that an attack takes, and the mean loss it leads to, at equilibria solved
    anew.
    """
    begin = time.process_time()
    perturbed = task.perturbed(attack)
    seconds = time.process_time() - begin
    with torch.no_grad():
        return seconds, float(
            cross_entropy(task.logits(perturbed), task.test.classes).mean()
        )


def curves(task: Adversarial) -> dict[str, list[tuple[float, float]]]:
    """Loss against time, by numbers of steps."""
    joint = [Attack(steps=steps, radius=RADIUS) for steps in STEPS]
    found = {"joint": [strength(task, attack) for attack in joint]}
    for rate in RATES:
        nested = [
            Attack(method="nested", steps=steps, step_size=rate, radius=RADIUS)
            for steps in STEPS
        ]
        found[f"nested, steps of {rate:g}"] = [
            strength(task, attack) for attack in nested
        ]
    return found


def draw(
    task: Adversarial, found: dict[str, list[tuple[float, float]]], file: Path
) -> None:
    """The picture."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.2, 1))
    images, attacked = task.test.images, task.perturbed(TRAININGS["joint"])
    rows = {"image": images, "added": 0.5 + attacked - images, "sum": attacked}
    fill_with_images(above, {label: row[:10, 0].numpy() for label, row in rows.items()})
    axis = below.subplots()
    for label, points in found.items():
        axis.plot(*zip(*points, strict=True), marker="o", ms=3, label=label)
    axis.set(xscale="log", xlabel="seconds", ylabel="cross-entropy reached")
    axis.legend()
    figure.savefig(file, dpi=110)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(),
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 20,
) -> dict[str, Any]:
    """Train three classifiers, attack them, and draw."""
    figures, tasks = {}, {}
    with one_thread():
        for name, attack in TRAININGS.items():
            tasks[name], seconds = train(attack, epochs)
            figures[name] = {"seconds": seconds, **tasks[name].evaluate()}
            print(name, {key: round(value, 3) for key, value in figures[name].items()})
        draw(
            tasks["joint"], curves(tasks["joint"]), output / "adversarial_training.png"
        )
    return figures


if __name__ == "__main__":
    typer.run(main)
