"""The command line: ``python -m fixedpoint_models demo``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from fixedpoint_models.data import DataError, digits, load_images
from fixedpoint_models.demo import BACKENDS, run
from fixedpoint_models.training import CheckpointError, Training, TrainingError

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


@app.callback()
def main() -> None:
    """Augmented deep equilibrium models."""


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder of images, or .npz file; default: digits.")
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the pictures and the checkpoint.")
    ] = Path("demo-output"),
    backend: Annotated[
        str, typer.Option(help="torch, or jax: the joint solve on JAX as well.")
    ] = "torch",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    epochs: Annotated[int, typer.Option(help="Passes over the images in training.")] = 60,
) -> None:
    """Train an equilibrium decoder, hide a square of held-out images, and recover it."""
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


if __name__ == "__main__":
    app()
