"""Augmented deep equilibrium models: try, train, evaluate and draw them.

Only what a command needs is imported, when it runs: help comes without PyTorch.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from fixedpoint_models.tasks import TASKS, offered, task_class, trained

EXTRA = "pip install 'fixedpoint-solvers[models]'"
if find_spec("typer") is None or find_spec("yaml") is None:
    print(f"error: the command line is not installed: {EXTRA}", file=sys.stderr)
    sys.exit(2)

import typer

from fixedpoint_models.config import ConfigError, described, load_config, shipped, shown

if TYPE_CHECKING:
    from fixedpoint_models.config import Config

BACKENDS = ("torch", "jax")
# The names of data sets in the files of settings, and what is expected in `folder`.
DATA = {
    "digits": "included (8×8 pixels)",
    "photographs": "included (patches), or image files of any size",
    "glyphs": "included (characters of the fonts that matplotlib has)",
    "mnist": "train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], t10k-...",
    "cifar10": "data_batch_1.bin to data_batch_5.bin and test_batch.bin",
    "celeba": "image files, or img_align_celeba/ with them",
    "omniglot": "images_background/Alphabet/characterNN/*.png, or archives of these",
}

app = typer.Typer(
    name="fixedpoint-models",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help=(__doc__ or "").partition("\n")[0],
)


Task = Annotated[
    str, typer.Argument(help=f"One of {', '.join(offered())}.", autocompletion=offered)
]
Trained = Annotated[
    str, typer.Argument(help=f"One of {', '.join(trained())}.", autocompletion=trained)
]
File = Annotated[
    str,
    typer.Option(
        help="A YAML file, or the name of an included one.", autocompletion=shipped
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="Folder for all files; default: runs/CONFIG.")
]
Seed = Annotated[int | None, typer.Option(help="Overrides the one in the file.")]
Epochs = Annotated[int | None, typer.Option(help="Overrides the number in the file.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, ...")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the file, as in network.latent=8; repeatable.",
    ),
]


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


def _version(asked: bool) -> None:
    if asked:
        from fixedpoint import __version__

        typer.echo(f"fixedpoint {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Augmented deep equilibrium models: try, train, evaluate and draw them."""


@app.command("list")
def list_all() -> None:
    """List tasks, settings files and data sets."""
    tasks = {name: _purpose(name) for name in offered()}
    configs = {name: described(name) for name in shipped()}
    for title, rows in (
        ("Tasks", tasks),
        ("Settings files, for --config", configs),
        ("Data sets, and what their folders must contain", DATA),
    ):
        typer.echo(f"{title}:")
        width = max(map(len, rows))
        for name, text in rows.items():
            typer.echo(f"  {name:{width}}  {text}")
        typer.echo()


def _purpose(task: str) -> str:
    """What the module of a task says of itself, without importing it."""
    found = find_spec(TASKS[task].partition(":")[0])
    source = Path(str(found and found.origin)).read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(source)) or ""
    return " ".join(text.partition("\n\n")[0].split())


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
        str, typer.Option(help="torch; or jax, for a joint solve on JAX as well.")
    ] = "torch",
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the images in training; default: none for the digits, "
            "whose weights are included, otherwise 15, or 60."
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Compare with whole grids, and train longer: minutes."
        ),
    ] = False,
) -> None:
    """Recover a hidden square of images.

    Loads or trains an equilibrium decoder, hides a square of held-out images, and
    recovers it.
    """
    if backend not in BACKENDS:
        _stop(f"--backend must be one of {', '.join(BACKENDS)}, got {backend!r}", 2)
    if backend == "jax" and find_spec("jax") is None:
        _stop("--backend jax needs JAX: install the extra 'jax'", 2)
    if epochs is not None and epochs < 1:
        _stop(f"--epochs must be 1 or more, got {epochs}", 2)
    with _errors():
        _prepare(output)
        from fixedpoint_models.data import digits, load_images
        from fixedpoint_models.demo import run
        from fixedpoint_models.training import Training

        images = digits() if data is None else load_images(data)
        # The included weights have not seen what the seed 0 holds out.
        is_known = data is None and seed == 0 and epochs is None
        passes = epochs or (60 if full else 15)
        training = None if is_known else Training(seed=seed, epochs=passes)
        run(images, output, backend, seed, training, full=full)


@app.command()
def train(
    task: Trained,
    config: File,
    *,
    output: Output = None,
    seed: Seed = None,
    device: Device = "cpu",
    amp: Annotated[
        bool, typer.Option("--amp", help="Evaluate the network in 16 bits.")
    ] = False,
    epochs: Epochs = None,
    changes: Changes = None,
    start: Annotated[
        Path | None,
        typer.Option(help="A checkpoint of the task, whose network a new run takes."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read the data, show the settings, write nothing."
        ),
    ] = False,
) -> None:
    """Train the network of a task.

    Resumes from the checkpoint if there is one; torchrun starts several processes.
    """
    with _errors():
        kind, settings, folder = _task(task, config, output, seed, epochs, changes)
        if not kind.trains:
            raise ConfigError(f"TASK {task}: there is nothing to train, evaluate it")
        if amp and not kind.mixed:
            raise ConfigError(f"--amp: the task {task} does not use it")
        if dry_run:
            _rehearse(kind, settings, folder, device)
        else:
            _train(task, kind, settings, folder, device, amp, start)


def _rehearse(kind: Any, settings: Config, folder: Path, device: str) -> None:
    """All of training but the steps."""
    from fixedpoint_models.devices import checked_device
    from fixedpoint_models.runner import CHECKPOINT, begin

    module = begin(kind, settings.settings, checked_device(device)).module
    number = sum(parameter.numel() for parameter in module.parameters())
    typer.echo(shown(settings), nl=False)
    typer.echo(f"# {number:,} parameters; would write {folder / CHECKPOINT}")


def _train(
    task: str,
    kind: Any,
    settings: Config,
    folder: Path,
    device: str,
    amp: bool,
    start: Path | None,
) -> None:
    from fixedpoint_models.checkpoints import load_checkpoint, start_from
    from fixedpoint_models.devices import mixed_dtype, processes
    from fixedpoint_models.runner import METRICS, Run, begin

    with processes(device) as (team, place):
        _prepare(folder)
        experiment = begin(kind, settings.settings, place)
        if start is not None:
            start_from(experiment, load_checkpoint(start, task), start)
        precision = mixed_dtype(place) if amp else None
        run = Run(task, experiment, settings, folder, team, precision)
        run.train()
        if team.rank == 0:
            typer.echo(f"epochs: {run.epoch}")
            typer.echo(f"checkpoint: {run.checkpoint}")
            typer.echo(f"metrics: {folder / METRICS}")
            typer.echo(
                "The metrics have one row per epoch; loss is the mean of what training "
                "minimizes. Next, measure the result on held-out data with evaluate, "
                "or draw it with sample."
            )


@app.command()
def evaluate(
    task: Task,
    config: File,
    *,
    output: Output = None,
    seed: Seed = None,
    device: Device = "cpu",
    changes: Changes = None,
) -> None:
    """Evaluate a network on held-out data.

    Prints the figures, and writes them to evaluation.json.
    """
    with _errors():
        experiment, folder, _ = _trained(task, config, output, seed, device, changes)
        figures = experiment.evaluate()
        file = folder / "evaluation.json"
        file.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        width = max(map(len, figures))
        for name, value in figures.items():
            typer.echo(f"{name:{width}}  {value:.4g}")
        typer.echo(f"figures: {file}")
        meaning = inspect.getdoc(type(experiment).evaluate) or ""
        typer.echo(meaning.replace("`", ""))


@app.command()
def sample(
    task: Task,
    config: File,
    *,
    output: Output = None,
    seed: Seed = None,
    device: Device = "cpu",
    changes: Changes = None,
) -> None:
    """Draw pictures, and list their files."""
    with _errors():
        found = _trained(task, config, output, seed, device, changes)
        experiment, folder, epoch = found
        from fixedpoint_models.runner import show_pictures

        files = experiment.draw(folder)
        for file in files:
            typer.echo(file)
        show_pictures(folder, files, epoch)


@contextmanager
def _errors() -> Iterator[None]:
    """What is wrong with the input ends with code 2, a failure to compute with 1: in
    one line.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "matplotlib", "PIL", "scipy", "sklearn", "tqdm"}:
            raise
        _stop(f"{error.name} is not installed: {EXTRA}", 2)
    except OSError as error:
        _stop(f"{error.filename or 'files'}: {error.strerror or error}", 2)
    except ValueError as error:
        if not _about_input(error):
            raise
        _stop(str(error), 2)
    except ArithmeticError as error:
        _stop(str(error), 1)


def _about_input(error: ValueError) -> bool:
    """Whether an error is one of those that say what is wrong with the input."""
    if isinstance(error, ConfigError):
        return True
    from fixedpoint_models.data import DataError
    from fixedpoint_models.devices import DeviceError
    from fixedpoint_models.training import CheckpointError

    return isinstance(error, DataError | DeviceError | CheckpointError)


def _prepare(folder: Path) -> None:
    """Make a folder, and see at once whether files can be written to it."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder}: there is a file of that name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--output {folder}: {error.strerror}") from None


def _task(
    task: str,
    config: str,
    output: Path | None,
    seed: int | None,
    epochs: int | None,
    changes: list[str] | None,
) -> tuple[Any, Config, Path]:
    """The class of a task, its settings, and the folder to write to."""
    if task not in offered():
        raise ConfigError(f"TASK must be one of {', '.join(offered())}, got {task!r}")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed must be 0 or more, got {seed}")
    if epochs is not None and epochs < 1:
        raise ConfigError(f"--epochs must be 1 or more, got {epochs}")
    kind = task_class(task)
    settings = load_config(config, task, kind.settings_type(), changes or ())
    settings = settings.overridden(seed, epochs)
    return kind, settings, output or Path("runs") / settings.name


def _trained(
    task: str,
    config: str,
    output: Path | None,
    seed: int | None,
    device: str,
    changes: list[str] | None,
) -> tuple[Any, Path, int]:
    """A task with the parameters of its checkpoint, the folder to write to, and the
    epochs that it was trained for.
    """
    kind, settings, folder = _task(task, config, output, seed, None, changes)
    from fixedpoint_models import checkpoints
    from fixedpoint_models.devices import checked_device
    from fixedpoint_models.runner import CHECKPOINT, begin

    place, file = checked_device(device), folder / CHECKPOINT
    content = checkpoints.load_checkpoint(file, task) if kind.trains else None
    experiment = begin(kind, settings.settings, place)
    if content is not None:
        checkpoints.restore(experiment, content, file, settings)
    _prepare(folder)
    return experiment, folder, 0 if content is None else content["epoch"]


if __name__ == "__main__":
    app()
