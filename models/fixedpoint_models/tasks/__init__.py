"""The tasks of the command line, by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

TASKS: dict[str, str] = {
    "adversarial": "fixedpoint_models.tasks.adversarial:Adversarial",
    "denoising": "fixedpoint_models.tasks.denoising:Denoising",
    "generative": "fixedpoint_models.tasks.generative:Generative",
    "inverse": "fixedpoint_models.tasks.inverse:Inverse",
    "meta": "fixedpoint_models.tasks.meta:Meta",
}
"""``module:class`` of each, a subclass of
:class:`fixedpoint_models.tasks.base.Experiment`.
"""


def offered() -> list[str]:
    """The names of the tasks whose modules are there.

    Examples
    --------
    >>> from fixedpoint_models.tasks import offered
    >>> "generative" in offered()
    True
    """
    return [name for name, entry in TASKS.items() if find_spec(entry.partition(":")[0])]


def trained() -> list[str]:
    """The names of the tasks that have something to train.

    Examples
    --------
    >>> from fixedpoint_models.tasks import trained
    >>> "inverse" in trained()  # which takes the decoder of another
    False
    """
    return [name for name in offered() if name != "inverse"]


def task_class(name: str) -> Any:
    """The class of a task.

    Parameters
    ----------
    name : str
        One of :func:`offered`.

    Raises
    ------
    ValueError
        If there is no task of this name.
    """
    if name not in offered():
        raise ValueError(f"TASK must be one of {', '.join(offered())}, got {name!r}")
    module, _, attribute = TASKS[name].partition(":")
    return getattr(import_module(module), attribute)
