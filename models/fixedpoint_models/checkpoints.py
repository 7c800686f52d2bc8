"""Checkpoints of trainings, and what may differ from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fixedpoint_models.config import Config
from fixedpoint_models.tasks.base import Experiment
from fixedpoint_models.training import CheckpointError, load_whole

_KEYS = {"task", "config", "module", "optimizer", "epoch", "random", "experiment"}


def load_checkpoint(file: Path, task: str) -> dict[str, Any]:
    """What a checkpoint of a task holds; tensors are on the CPU.

    Parameters
    ----------
    file : Path
        The checkpoint.
    task : str
        The name of the task that wrote it.

    Raises
    ------
    CheckpointError
        If it is not there, or something else.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such checkpoint; train first")
    content = load_whole(file, _KEYS, map_location="cpu")
    if content["task"] != task:
        raise CheckpointError(
            f"{file}: a checkpoint of {content['task']!r}, expected {task!r}"
        )
    return content


def restore(
    experiment: Experiment,
    content: dict[str, Any],
    file: Path,
    config: Config | None = None,
) -> None:
    """Give a task the parameters and the state of a checkpoint.

    Parameters
    ----------
    experiment : Experiment
        The task.
    content : dict
        The checkpoint.
    file : Path
        Where it was read, for messages.
    config : Config, optional
        The settings that the task was made with, to compare with those that it was
        trained with: with another seed, say, images that are held out now may be those
        it was trained on.

    Raises
    ------
    CheckpointError
        If it does not fit.
    """
    if config is not None:
        refuse_difference(
            file, content["config"]["settings"], config.plain()["settings"]
        )
    start_from(experiment, content, file)
    with _fitting(file):
        experiment.load_state_dict(content["experiment"])


def start_from(experiment: Experiment, content: dict[str, Any], file: Path) -> None:
    """Give a task the parameters of a checkpoint, and no more.

    Raises
    ------
    CheckpointError
        If they do not fit.
    """
    with _fitting(file):
        experiment.module.load_state_dict(content["module"])


@contextmanager
def _fitting(file: Path) -> Iterator[None]:
    """Errors in one line, where what was read from a file does not fit."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{file}: does not fit these settings ({reason})"
        ) from error


def refuse_difference(file: Path, old: Any, new: Any) -> None:
    """Raise if a checkpoint was written with other settings than the new ones."""
    difference = _difference(old, new)
    if difference:
        raise CheckpointError(
            f"{file}: written with other settings ({difference}); "
            "move it away to start anew"
        )


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first setting in which two differ, or nothing."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return "" if old == new else f"{where}: {old!r}, now {new!r}"
    pairs = (
        (key, old.get(key), new.get(key)) for key in [*old, *(set(new) - set(old))]
    )
    found = (
        _difference(a, b, f"{where}.{key}" if where else key) for key, a, b in pairs
    )
    return next(filter(None, found), "")


def random_state() -> dict[str, torch.Tensor]:
    """The state of Torch's generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, torch.Tensor]) -> None:
    """Set it to an earlier one."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
