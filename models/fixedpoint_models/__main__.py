"""The command line: ``python -m fixedpoint_models demo``, ``train``, ``evaluate``,
``sample``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fixedpoint_models.config import Config, ConfigError, load_config
from fixedpoint_models.data import DataError, digits, load_images
from fixedpoint_models.demo import BACKENDS, run
from fixedpoint_models.runner import (
    CHECKPOINT,
    DeviceError,
    Run,
    begin,
    checked_device,
    load_checkpoint,
    mixed_dtype,
    processes,
    restore,
)
from fixedpoint_models.tasks import offered, task_class
from fixedpoint_models.training import CheckpointError, Training, TrainingError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
)


Task = Annotated[str, typer.Argument(help=f"One of {', '.join(offered())}.")]
File = Annotated[
    str, typer.Option(help="A YAML file, or the name of one that comes along.")
]
Output = Annotated[
    Path | None, typer.Option(help="Folder for all files; default: runs/CONFIG.")
]
Seed = Annotated[int | None, typer.Option(help="In place of the one in the file.")]
Epochs = Annotated[int | None, typer.Option(help="In place of the number in the file.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or cuda:0 and the like.")]


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


@app.callback()
def main() -> None:
    """Augmented deep equilibrium models."""


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of images, or .npz file; default: digits."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the pictures and the checkpoint.")
    ] = Path("demo-output"),
    backend: Annotated[
        str, typer.Option(help="torch, or jax: the joint solve on JAX as well.")
    ] = "torch",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    epochs: Annotated[
        int, typer.Option(help="Passes over the images in training.")
    ] = 60,
) -> None:
    """Train an equilibrium decoder, hide a square of held-out images, and recover
    it.
    """
    if backend not in BACKENDS:
        _stop(f"--backend must be one of {', '.join(BACKENDS)}, got {backend!r}", 2)
    if backend == "jax" and find_spec("jax") is None:
        _stop("--backend jax needs JAX: install the extra 'jax'", 2)
    if epochs < 1:
        _stop(f"--epochs must be 1 or more, got {epochs}", 2)
    if output.exists() and not output.is_dir():
        _stop(f"--output {output}: there is a file of that name", 2)
    try:
        images = digits() if data is None else load_images(data)
        run(images, output, backend, seed, Training(seed=seed, epochs=epochs))
    except (DataError, CheckpointError) as error:
        _stop(str(error), 2)
    except (TrainingError, ArithmeticError) as error:
        _stop(str(error), 1)


@app.command()
def train(
    task: Task,
    config: File,
    output: Output = None,
    seed: Seed = None,
    device: Device = "cpu",
    amp: Annotated[
        bool, typer.Option("--amp", help="Evaluate the network in 16 bits.")
    ] = False,
    epochs: Epochs = None,
) -> None:
    """Train a task's network, from its checkpoint on if there is one; torchrun starts
    several.
    """
    with _errors(), processes(device) as (team, place):
        kind, settings, folder = _task(task, config, output, seed, epochs)
        if not kind.trains:
            raise ConfigError(f"TASK {task}: there is nothing to train, evaluate it")
        if amp and not kind.mixed:
            raise ConfigError(f"--amp: the task {task} does not use it")
        experiment = begin(kind, settings.settings, place)
        precision = mixed_dtype(place) if amp else None
        Run(task, experiment, settings, folder, team, precision).train()


@app.command()
def evaluate(
    task: Task,
    config: File,
    output: Output = None,
    seed: Seed = None,
    device: Device = "cpu",
) -> None:
    """Measure on held-out data what was trained, and write evaluation.json."""
    with _errors():
        experiment, folder = _trained(task, config, output, seed, device)
        figures = experiment.evaluate()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(
            json.dumps(figures, indent=1), encoding="utf-8"
        )
        width = max(map(len, figures))
        for name, value in figures.items():
            typer.echo(f"{name:{width}}  {value:.4g}")


@app.command()
def sample(
    task: Task,
    config: File,
    output: Output = None,
    seed: Seed = None,
    device: Device = "cpu",
) -> None:
    """Draw pictures with what was trained."""
    with _errors():
        experiment, folder = _trained(task, config, output, seed, device)
        folder.mkdir(parents=True, exist_ok=True)
        for file in experiment.draw(folder):
            typer.echo(file)


@contextmanager
def _errors() -> Iterator[None]:
    """What is wrong with the input ends with code 2, a failure to compute with 1: in
    one line.
    """
    try:
        yield
    except (DataError, CheckpointError, ConfigError, DeviceError) as error:
        _stop(str(error), 2)
    except ArithmeticError as error:
        _stop(str(error), 1)


def _task(
    task: str, config: str, output: Path | None, seed: int | None, epochs: int | None
) -> tuple[Any, Config, Path]:
    """The class of a task, its settings, and the folder to write to."""
    if task not in offered():
        raise ConfigError(f"TASK must be one of {', '.join(offered())}, got {task!r}")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed must be 0 or more, got {seed}")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"--epochs must be 1 or more, got {epochs}")
    kind = task_class(task)
    settings = load_config(config, task, kind.settings_type()).overridden(seed, epochs)
    folder = output or Path("runs") / settings.name
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: there is a file of that name")
    return kind, settings, folder


def _trained(
    task: str, config: str, output: Path | None, seed: int | None, device: str
) -> tuple[Any, Path]:
    """A task with the parameters of its checkpoint, and the folder to write to."""
    kind, settings, folder = _task(task, config, output, seed, None)
    place = checked_device(device)
    file = folder / CHECKPOINT
    content = load_checkpoint(file, task) if kind.trains else None
    experiment = begin(kind, settings.settings, place)
    if content is not None:
        restore(experiment, content, file, settings)
    return experiment, folder


if __name__ == "__main__":
    app()
