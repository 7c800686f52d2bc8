"""The main job: take or train an equilibrium decoder of images, hide a square, and
recover it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fixedpoint as fp
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.comparison import (
    Comparison,
    Task,
    Trace,
    compare,
    races,
    recovery,
)
from fixedpoint_models.data import square_masks
from fixedpoint_models.decoder import decode, equilibrium_map, masked_loss
from fixedpoint_models.plots import draw_race, draw_recovered
from fixedpoint_models.tracked import TrackedNewton
from fixedpoint_models.trained_weights import pretrained
from fixedpoint_models.training import Training, train

PICTURES = "recovered.png", "race.png"
HELD_OUT = 48
SHOWN = 12
# Of the grids of methods, those that are near the front on digits.
QUICK = {
    "recipe, Anderson(10) of type 2, α=0.8",
    "recipe, Anderson(20) of type 1, α=0.4",
    "nested, L-BFGS 1.0, Anderson(5)",
    "nested, Nesterov 0.1, momentum 0.7, Picard",
    "nested, Adam 0.2, Picard",
}


@dataclass(frozen=True)
class Split:
    """Images to train on and images to recover, of shape (number, pixels)."""

    train: torch.Tensor
    held_out: torch.Tensor
    masks: torch.Tensor
    shape: tuple[int, int]


def split(images: Any, seed: int) -> Split:
    """Shuffle, hold out up to 48 images, and hide a square of each."""
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = min(HELD_OUT, len(images) // 4)
    height, width = images.shape[1:]
    rows = torch.as_tensor(images[order].reshape(len(images), -1), dtype=torch.float64)
    masks = square_masks(held_out, height, width, seed).reshape(held_out, -1)
    return Split(
        rows[held_out:], rows[:held_out], torch.as_tensor(masks), (height, width)
    )


def run(
    images: Any,
    output: Path,
    backend: str,
    seed: int,
    settings: Training | None,
    *,
    full: bool = True,
) -> None:
    """Train, recover, compare, print and draw.

    Parameters
    ----------
    images : array of shape (number, height, width)
        Values from 0 to 1.
    output : Path
        The folder for the pictures and the checkpoint.
    backend : {"torch", "jax"}
        With "jax" the joint solve is repeated on JAX with the same weights, and
        compared.
    seed : int
        Of the split, the masks, the weights and the batches.
    settings : Training or None
        How to train; None for the weights "digits-decoder", with the seed 0.
    full : bool, optional
        Whether to race against the whole grids of methods, or the best five of them.
    """
    console = Console(width=120)
    output.mkdir(parents=True, exist_ok=True)
    parts = split(images, seed)
    console.print(
        f"{len(parts.train)} images to train on, {len(parts.held_out)} to recover"
    )
    if settings is None:
        params, files = pretrained("digits-decoder"), list(PICTURES)
        console.print("with the weights of digits-decoder")
    else:
        files = ["checkpoint.pt", *PICTURES]
        params = train(parts.train, settings, output / files[0]).params()
    task = recovery(params, parts.held_out, parts.masks)
    found = compare(task) if full else compare(task, keep=QUICK.__contains__)
    best = [min(traces, key=lambda trace: min(trace.objectives)) for traces in found]
    console.print(_table(task, best), _race_table(found, full))
    draw_race(
        {
            "tracked Newton": found.newton,
            "published recipe": found.recipe,
            "nested": found.nested,
        },
        found.lowest,
        output / "race.png",
    )
    draw_recovered(_rows(task, best, parts.shape), output / "recovered.png")
    for file in files:
        console.print(f"written: {output / file}", soft_wrap=True)
    if backend == "jax":
        console.print(compare_with_jax(task))


def _table(task: Task, traces: list[Trace]) -> Table:
    """What the best joint and the best nested method reached, and for how much."""
    table = Table(
        "method",
        "seconds",
        "f",
        "vjp",
        "re-solved objective",
        "masked MSE",
        "KKT z / μ / x",
        title="At the lowest objective of the best of each grid",
    )
    for trace in traces:
        i, final = trace.best, trace.final
        kkt = task.model.kkt(
            final["z"], final["mu"], final["at"], params=task.params, y=task.y
        )
        table.add_row(
            trace.name,
            f"{trace.seconds[i]:.3f}",
            str(trace.evaluations[i]),
            str(trace.products[i]),
            f"{trace.objectives[i]:.4f}",
            f"{_masked_mse(task, final['x']):.4f}",
            " / ".join(f"{float(norm.mean()):.1e}" for norm in kkt.values()),
        )
    return table


def _race_table(found: Comparison, full: bool) -> Table:
    """The time of the tracked Newton method to each target, and of the others."""
    table = Table(
        "target",
        "tracked Newton",
        "best nested",
        "seconds",
        "ratio",
        "nested Adam",
        "recipe",
        title="Seconds to a multiple of the lowest objective; "
        + ("the others tuned for each target" if full else "--full tunes the others"),
        caption=(
            "ratio: best nested / tracked Newton. "
            f"Geometric mean {found.mean_ratio:.1f}, worst ratio "
            f"{found.worst_ratio:.1f}"
        ),
    )
    for race in races(found.newton, found.nested, found.lowest):
        adam = [trace for trace in found.nested if "Adam" in trace.name]
        others = [
            min(t.time_to(race.target) for t in traces)
            for traces in (adam, found.recipe)
        ]
        table.add_row(
            f"{race.factor} ×",
            f"{race.joint.time_to(race.target):.4f}",
            race.nested.name,
            f"{race.nested.time_to(race.target):.4f}",
            f"{race.ratio:.1f}",
            *(f"{seconds:.4f}" for seconds in others),
        )
    return table


def _decoded(task: Task, x: torch.Tensor) -> torch.Tensor:
    """The images at the equilibria of x."""
    solution = fp.fixed_point(
        equilibrium_map, task.z, (x, task.params), batch_ndim=1, norm="leaves"
    )
    images: torch.Tensor = decode(solution.value, task.params)
    return images


def _masked_mse(task: Task, x: torch.Tensor) -> float:
    images, masks = task.y
    hidden = 1.0 - masks
    return float((hidden * (_decoded(task, x) - images) ** 2).sum() / hidden.sum())


def _rows(task: Task, traces: list[Trace], shape: tuple[int, int]) -> dict[str, Any]:
    images, masks = task.y
    seen = torch.where(masks > 0, images, torch.nan)
    recovered = [_decoded(task, trace.final["x"]) for trace in traces]
    labels = ("original", "masked", "tracked Newton", "recipe", "nested")
    rows = zip(labels, (images, seen, *recovered), strict=True)
    return {label: row[:SHOWN].reshape(-1, *shape).numpy() for label, row in rows}


def compare_with_jax(task: Task, steps: int = 100) -> str:
    """The joint solve on JAX and on Torch: a line that says how far they agree.

    Raises
    ------
    ArithmeticError
        If they do not.
    """
    import jax  # noqa: PLC0415 - optional, and slow to import
    import jax.numpy as jnp  # noqa: PLC0415

    jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]

    def converted(leaf: Any) -> Any:
        return jnp.asarray(leaf.numpy()) if isinstance(leaf, torch.Tensor) else leaf

    here = (task.z, task.x, task.params, task.y)
    there = jax.tree.map(converted, here)
    # In a trace nothing is known of how fast sweeps contract: the path is another, and
    # leads to the same end.
    solve_there = jax.jit(_jointly, static_argnums=1)
    difference = np.abs(np.asarray(_jointly(there, 5)) - _jointly(here, 5).numpy())
    ours = task.objective(_jointly(here, steps))
    theirs = task.objective(torch.as_tensor(np.array(solve_there(there, steps))))
    line = (
        f"JAX and Torch: x after 5 joint steps differs by {difference.max():.1e}; "
        f"re-solved objective after {steps}: {theirs:.4f} and {ours:.4f}"
    )
    if difference.max() > 1e-8 or abs(ours - theirs) > 0.01 * ours:
        raise ArithmeticError(f"{line}: they disagree")
    return line


def _jointly(arguments: Any, max_steps: int) -> Any:
    """The input that so many joint steps lead to."""
    z, x, params, y = arguments
    model = AugmentedDEQ(equilibrium_map, masked_loss, decode, step_size=0.1)
    control: dict[str, Any] = {"max_steps": max_steps, "on_failure": "return"}
    method = TrackedNewton()
    found = model.iterate(z, x, params=params, y=y, method=method, **control)
    return found.value["x"]
