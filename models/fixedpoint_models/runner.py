"""Training of any task: the loop, and what is written down."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.image import imread
from tqdm import tqdm

from fixedpoint_models.checkpoints import (
    load_checkpoint,
    random_state,
    refuse_difference,
    restore,
    set_random_state,
)
from fixedpoint_models.config import Config, Training
from fixedpoint_models.devices import Processes
from fixedpoint_models.tasks.base import Experiment
from fixedpoint_models.training import CheckpointError, TrainingError, write_whole

T = TypeVar("T", bound=Experiment)
CHECKPOINT, METRICS = "checkpoint.pt", "metrics.csv"
MOST_FAILED = 0.5
"""Training ends where a larger part of an epoch's solves failed."""
_SHOWN = ("loss", "failed")
# With what the columns of the metrics begin.
_COLUMNS = ["epoch", "learning_rate", "seconds"]


def begin(task: type[T], settings: Any, device: torch.device) -> T:
    """The task, made from the seed of its settings.

    Parameters
    ----------
    task : type
        A subclass of :class:`Experiment`.
    settings : dataclass
        Its settings.
    device : torch.device
        The device.
    """
    torch.manual_seed(settings.seed)
    return task(settings, device)


@dataclass
class Run:
    """A training run: all that changes, and all that a checkpoint holds.

    Parameters
    ----------
    name : str
        The name of the task.
    experiment : Experiment
        The task.
    config : Config
        The settings.
    folder : Path
        Where everything is written.
    team : Processes
        The processes that train.
    amp : torch.dtype, optional
        The precision of the network's evaluation.
    """

    name: str
    experiment: Experiment
    config: Config
    folder: Path
    team: Processes
    amp: torch.dtype | None = None

    def __post_init__(self) -> None:
        settings = self.config.training
        self.epoch = 0
        # All processes have made the same parameters; from here on each draws its own
        # numbers.
        torch.manual_seed(self.config.settings.seed + self.team.rank)
        self.optimizer = torch.optim.Adam(
            _trained(self.experiment.module),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )

    @property
    def checkpoint(self) -> Path:
        """The file of the checkpoint."""
        return self.folder / CHECKPOINT

    def train(self, *, progress: bool = True) -> None:
        """Train to the last epoch, from the checkpoint on if there is one.

        A run that has come to its last epoch is trained on if there are more epochs
        now.

        Raises
        ------
        CheckpointError
            If the checkpoint is of another task or other settings, or a file that no
            run has written is where the metrics would be.
        TrainingError
            If a gradient is not finite, or most solves of an epoch failed.
        """
        if self.checkpoint.exists():
            self.restore()
        first = self.team.rank == 0
        log = Log(self.folder, self.epoch) if first else None
        epochs = self.config.training.epochs
        bar = tqdm(
            range(self.epoch, epochs),
            initial=self.epoch,
            total=epochs,
            desc=self.name,
            unit="epoch",
            disable=not (progress and first),
        )
        for _ in bar:
            row = self._epoch()
            self.epoch += 1
            if log is not None:
                log.write({"epoch": self.epoch, **row})
            bar.set_postfix({k: f"{row[k]:.3g}" for k in _SHOWN if k in row})
            self._refuse_failures(row)
            self.save()
        if log is not None:
            log.close()

    def _refuse_failures(self, row: dict[str, float]) -> None:
        """Raise TrainingError where gradients are mostly those of no solution."""
        if row.get("failed", 0.0) > MOST_FAILED:
            raise TrainingError(
                f"{row['failed']:.0%} of the solves failed in epoch {self.epoch}: "
                f"{self.experiment.remedy()}"
            )

    def _epoch(self) -> dict[str, float]:
        """One pass; the means of what the steps wrote down."""
        begun, settings = time.perf_counter(), self.config.training
        rate = _rate(settings, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, float] = {}
        samples = 0
        for batch in self.experiment.batches(self.epoch):
            number = self.experiment.count(batch)
            for name, value in self._step(batch, number).items():
                totals[name] = totals.get(name, 0.0) + value * number
            samples += number
        self.experiment.merge(self.team.total)
        means = {name: value / max(samples, 1) for name, value in totals.items()}
        seconds = time.perf_counter() - begun
        return {"learning_rate": rate, "seconds": round(seconds, 3), **means}

    def _step(self, batch: Any, number: int) -> dict[str, float]:
        """One step of Adam, on the mean gradient of all processes."""
        part = self.experiment.part(batch, self.team.rank, self.team.ranks)
        weight = self.experiment.count(part) / number
        self.optimizer.zero_grad()
        with _mixed(self.experiment, self.amp):
            metrics = self.experiment.step(part) if weight else {}
        gradients = _gradients(self.experiment.module)
        if self.team.ranks > 1:
            for gradient in gradients:
                gradient.copy_(self.team.total(gradient * weight))
            metrics = _mean(self.team.everywhere((weight, metrics)))
        limit = self.config.training.clip or math.inf
        parameters = _trained(self.experiment.module)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient is not finite in epoch {self.epoch + 1}: lower the "
                "learning rate"
            )
        self.optimizer.step()
        return {**metrics, "gradient_norm": norm}

    def save(self) -> None:
        """Write beside the file and rename: a checkpoint is whole, or it is the one
        before.
        """
        random = self.team.everywhere(random_state())
        if self.team.rank != 0:
            return
        content = {
            "task": self.name,
            "config": self._settings(),
            "module": self.experiment.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "random": random,
            "experiment": self.experiment.state_dict(),
        }
        write_whole(content, self.checkpoint)

    def restore(self) -> None:
        """Take up the checkpoint."""
        content = load_checkpoint(self.checkpoint, self.name)
        old, new = content["config"], self._settings()
        finished = content["epoch"] == old["training"]["epochs"]
        if finished and self.config.training.epochs > content["epoch"]:
            # A run that has ended may go on; the rate then follows the longer curve.
            new["training"] = new["training"] | {"epochs": content["epoch"]}
        refuse_difference(self.checkpoint, old, new)
        restore(self.experiment, content, self.checkpoint)
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch = content["epoch"]
        if self.team.rank < len(content["random"]):
            set_random_state(content["random"][self.team.rank])

    def _settings(self) -> dict[str, Any]:
        return {**self.config.plain(), "amp": str(self.amp)}


class Log:
    """What is written down of each epoch: a row of a CSV file, and points for
    TensorBoard.

    Parameters
    ----------
    folder : Path
        Where the files are.
    epoch : int
        The epochs that are kept of a file that is there: a run may have been
        interrupted after a row was written and before the checkpoint was.

    Raises
    ------
    CheckpointError
        If there is a file of that name that no run has written.
    """

    def __init__(self, folder: Path, epoch: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / METRICS
        self.columns: list[str] = []
        rows = self._rows()
        self.file.unlink(missing_ok=True)
        for row in rows:
            if int(row["epoch"]) <= epoch:
                self._append(row)
        self.board = _tensorboard(folder, epoch)

    def _rows(self) -> list[dict[str, str]]:
        """What an earlier run wrote; a last row that was cut short is left out."""
        if not self.file.exists() or self.file.stat().st_size == 0:
            return []
        try:
            with self.file.open(newline="", encoding="utf-8") as stream:
                columns, *rows = csv.reader(stream, strict=True)
        except (ValueError, csv.Error):
            columns, rows = [], []  # not even a table, and refused like another one
        if rows and len(rows[-1]) < len(columns):
            del rows[-1]
        whole = all(len(row) == len(columns) and row[0].isdecimal() for row in rows)
        if columns[: len(_COLUMNS)] != _COLUMNS or not whole:
            raise CheckpointError(
                f"{self.file}: not the metrics of a run, which would be written there; "
                "move it away"
            )
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def write(self, row: dict[str, float]) -> None:
        """Add an epoch."""
        self._append(row)
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, row["epoch"])

    def _append(self, row: dict[str, Any]) -> None:
        """A row under the columns of the first one."""
        new = not self.columns
        self.columns = self.columns or list(row)
        if set(row) != set(self.columns):
            raise TrainingError(
                f"{self.file}: the columns are {self.columns}, got {list(row)}"
            )
        with self.file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.columns)
            if new:
                writer.writeheader()
            writer.writerow(row)

    def close(self) -> None:
        """Write what is still in memory."""
        if self.board is not None:
            self.board.close()


def show_pictures(folder: Path, files: list[Path], epoch: int) -> None:
    """Show pictures in TensorBoard too, where it is installed.

    Parameters
    ----------
    folder : Path
        That of the run.
    files : list of Path
        The pictures.
    epoch : int
        The epoch that they stand at.
    """
    if find_spec("tensorboard") is None:
        return
    board = _tensorboard(folder, epoch)
    for file in files:
        board.add_image(file.stem, imread(file), epoch, dataformats="HWC")
    board.close()


def _tensorboard(folder: Path, epoch: int) -> Any:
    """A writer for TensorBoard, or None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - optional
    except ImportError:
        tqdm.write(
            "TensorBoard is not installed (extra 'tensorboard'): metrics.csv alone"
        )
        return None
    writer: Callable[..., Any] = SummaryWriter
    return writer(str(folder / "tensorboard"), purge_step=epoch + 1)


def _rate(settings: Training, epoch: int) -> float:
    """The learning rate of an epoch, along half a cosine."""
    low = settings.final_rate
    part = low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * epoch / settings.epochs))
    return settings.learning_rate * part


@contextmanager
def _mixed(experiment: Experiment, amp: torch.dtype | None) -> Iterator[None]:
    experiment.amp = amp
    try:
        yield
    finally:
        experiment.amp = None


def _trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that are not fixed."""
    return [p for p in module.parameters() if p.requires_grad]


def _gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    """The gradients of all parameters that are trained, zero where there was none."""
    for parameter in _trained(module):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in _trained(module) if p.grad is not None]


def _mean(parts: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """The metrics of all processes, weighted; a process without samples has none."""
    names = next(metrics for weight, metrics in parts if weight)
    return {
        n: sum(weight * metrics[n] for weight, metrics in parts if weight)
        for n in names
    }
