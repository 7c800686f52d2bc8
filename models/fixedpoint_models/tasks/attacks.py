"""Attacks, and the images with their classes that are attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

from fixedpoint_models import data as sets
from fixedpoint_models.classifier import (
    ball,
    ball_in_box,
    linear_minimizer,
    linear_minimizer_in_box,
)
from fixedpoint_models.config import setting

Tensor = torch.Tensor

CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How a perturbation is found.

    Parameters
    ----------
    method : {"joint", "recipe", "nested", "none"}
        Tracked conditional gradients; the published Anderson iteration; projected steps
        along the normalized gradient with full inner solves; or no perturbation at all.
    steps : int
        Moves of the perturbation, or joint steps.
    sweeps : int
        Evaluations a move, for the first method.
    step_size : float
        For the second and the third.
    radius : float
        Of the ball.
    norm : {"l2", "linf"}
        Of the ball.
    box : bool
        Whether attacked images keep to values from 0 to 1.
    """

    method: Literal["joint", "recipe", "nested", "none"] = "joint"
    steps: int = setting(12, least=1)
    sweeps: int = setting(1, least=1)
    step_size: float = setting(0.4, above=0.0)
    radius: float = setting(0.5, above=0.0)
    norm: Literal["l2", "linf"] = "l2"
    box: bool = True

    def project(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The projection of perturbations of `images` onto those that are allowed."""
        if self.box:
            return ball_in_box(images, self.radius, self.norm)
        return ball(self.radius, self.norm)

    def oracle(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """What takes a gradient to the allowed perturbation that it favors most."""
        if self.box:
            return linear_minimizer_in_box(images, self.radius, self.norm)
        return linear_minimizer(self.radius, self.norm)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the task.

    Parameters
    ----------
    images : {"digits", "mnist", "cifar10"}
        The images.
    folder : str, optional
        Where the files of the last two are.
    train, test : str
        Which of them: as "train" and "test[:2000]".
    kind : {"dense", "mdeq"}
        :class:`DenseClassifier` or :class:`MDEQClassifier`.
    width : int
        Entries of the dense state.
    channels, side, weight_norm, fixed_lengths
        Of the other; the side of the first branch is that of the images by default.
    jacobian : float
        The weight of the penalty on the Jacobian at the end of each attack.
    attack : Attack
        The attack in training.
    batch_size, held_out : int
        Images a step, and to test with.
    test_batch : int
        Images that are tested at a time.
    seed : int
        Of everything random.
    """

    images: Literal["digits", "mnist", "cifar10"] = "digits"
    folder: str | None = None
    train: str = "train"
    test: str = "test"
    kind: Literal["dense", "mdeq"] = "dense"
    width: int = setting(128, least=1)
    channels: tuple[int, ...] = setting((16, 16), least=1)
    side: int | None = setting(None, least=1)
    weight_norm: bool = False
    fixed_lengths: bool = False
    jacobian: float = setting(0.0, least=0.0)
    attack: Attack = Attack()
    batch_size: int = setting(100, least=1)
    held_out: int = setting(300, least=1)
    test_batch: int = setting(500, least=1)
    seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        if self.folder is None and self.images != "digits":
            raise ValueError(f"folder: missing, {self.images} is read from files")


class Batch(NamedTuple):
    """Images of shape (batch, channels, height, width), and their classes, one-hot."""

    images: Tensor
    classes: Tensor


def load(settings: Settings) -> tuple[Batch, Batch]:
    """Images to train on and to test with, in single precision."""
    if settings.images == "digits":
        images, classes = load_digits(return_X_y=True)
        order = np.random.default_rng(settings.seed).permutation(len(images))
        images, classes = images[order].reshape(-1, 1, 8, 8) / 16.0, classes[order]
        cut = settings.held_out
        return _batch(images[cut:], classes[cut:]), _batch(images[:cut], classes[:cut])
    read: Any = sets.mnist if settings.images == "mnist" else sets.cifar10
    train, test = (
        read(settings.folder, split) for split in (settings.train, settings.test)
    )
    return _batch(*train), _batch(*(part[: settings.held_out] for part in test))


def _batch(images: Any, classes: Any) -> Batch:
    images = torch.as_tensor(np.asarray(images, np.float32))
    one_hot = torch.nn.functional.one_hot(torch.as_tensor(classes).long(), CLASSES)
    return Batch(
        images if images.ndim == 4 else images[:, None], one_hot.to(images.dtype)
    )
