"""Inverse problems: digits recovered from a part of them, through an equilibrium
decoder.

A decoder z = f(z, x), image = D(z), was trained on images together with a latent code x
for each; its weights come along, and ``--epochs`` trains it anew. Given a part of
another image, or a noisy one, the code that explains it best is sought. State, adjoint
and code are found together as one fixed point.

What to look at, in ``inverse_problems.png``: above, images, what is seen of them, and
what is recovered; below, the objective, re-solved from a cold start at the code,
against processor time: by the tracked Newton method, by the published recipe and by
nested descent at the best of a few step sizes.

Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
equilibrium networks", NeurIPS 2021, arXiv:2111.13236.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure

import fixedpoint as fp
from fixedpoint_models import Training, decode, equilibrium_map, pretrained, train
from fixedpoint_models.comparison import Comparison, Task, Trace, compare, recovery
from fixedpoint_models.data import digits, square_masks
from fixedpoint_models.demo import Split, split
from fixedpoint_models.plots import fill_with_images

SHOWN = 10


def problems(images: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What is seen of images, and where."""
    masks = torch.as_tensor(square_masks(len(images), 8, 8, 0).reshape(len(images), -1))
    noise = torch.randn(
        images.shape, generator=torch.Generator().manual_seed(0), dtype=images.dtype
    )
    whole = torch.ones_like(images)
    return {"inpainting": (images, masks), "denoising": (images + 0.4 * noise, whole)}


def decoded(task: Task, x: torch.Tensor) -> torch.Tensor:
    """The images at the equilibria of x."""
    solution = fp.fixed_point(equilibrium_map, task.z, (x, task.params), batch_ndim=1)
    images: torch.Tensor = decode(solution.value, task.params)
    return images


def quick(name: str) -> bool:
    """Whether a method is worth its time in an example."""
    nested = "Picard" in name and ("L-BFGS" in name or "momentum 0.5" in name)
    return nested or ("(10) of type 2" in name and "α=0.4" in name)


def lowest(traces: list[Trace]) -> list[tuple[float, float]]:
    """The lowest objective of all traces, against time."""
    points = sorted(
        p for t in traces for p in zip(t.seconds, t.objectives, strict=True)
    )
    best = [min(o for _, o in points[: i + 1]) for i in range(len(points))]
    return [(s, b) for (s, _), b in zip(points, best, strict=True)]


def draw(
    rows: dict[str, torch.Tensor], found: dict[str, Comparison], file: Path
) -> None:
    """The picture."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.3, 1))
    images = {
        label: row[:SHOWN].reshape(-1, 8, 8).numpy() for label, row in rows.items()
    }
    fill_with_images(above, images)
    for axis, (name, comparison) in zip(
        below.subplots(1, len(found)), found.items(), strict=True
    ):
        for label, traces in comparison._asdict().items():
            axis.plot(*zip(*lowest(traces), strict=True), label=label)
        axis.set(
            xscale="log", yscale="log", title=name, xlabel="seconds", ylabel="objective"
        )
        axis.legend()
    figure.savefig(file, dpi=110)


def decoder(parts: Split, epochs: int | None) -> dict[str, Any]:
    """The parameters that come along, or those after some passes over the images."""
    if epochs is None:
        return pretrained("digits-decoder")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        return train(parts.train, Training(epochs=epochs), file).params()


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(),
    epochs: Annotated[int | None, typer.Option(help="Passes in training.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each nested method.")] = 0.5,
) -> dict[str, Any]:
    """Recover, compare and draw."""
    parts = split(digits(), seed=0)
    params, images = decoder(parts, epochs), parts.held_out
    rows, found, figures = {"image": images}, {}, {}
    for name, (seen, mask) in problems(images).items():
        task = recovery(params, seen, mask)
        found[name] = compare(task, seconds=seconds, keep=quick)
        rows[name] = torch.where(mask > 0, seen, torch.nan)
        recovered = decoded(task, found[name].newton[0].final["x"])
        rows[f"{name}, recovered"] = recovered
        error = float((recovered - images).square().mean())
        unrecovered = float((mask * seen - images).square().mean())
        figures[name] = {
            "ratio": found[name].mean_ratio,
            "error": error,
            "seen": unrecovered,
        }
        print(name, {key: round(value, 4) for key, value in figures[name].items()})
    draw(rows, found, output / "inverse_problems.png")
    return figures


if __name__ == "__main__":
    typer.run(main)
