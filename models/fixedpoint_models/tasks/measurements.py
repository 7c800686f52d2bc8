"""What is measured of images, and how."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from fixedpoint_models.config import ConfigError, setting

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is measured of an image.

    Parameters
    ----------
    name : str
        What figures and pictures are called; letters, digits, hyphens and underscores.
    kind : {"reconstruction", "inpainting", "operator"}
        The whole image, all but a random square, or what an operator makes of it. Of
        inpainting, the pixels that are known are pasted back, and figures are those of
        the square.
    sigma : float
        Standard deviation of the noise that is added.
    hidden : int, optional
        The side of the square; by default 20/64 of the image's.
    operator : str, optional
        ``package.module:callable``, which takes images of shape (number, channels,
        height, width) to measurements, sample by sample and differentiably; see
        :mod:`fixedpoint_models.tasks.operators`. Complex measurements, as those of
        ``torch.fft:fft2``, count as their real and imaginary parts, each with noise.
    prior : float, optional
        The weight of ‖x‖², by default that of training.
    """

    name: str
    kind: Literal["reconstruction", "inpainting", "operator"] = "reconstruction"
    sigma: float = setting(0.0, least=0.0)
    hidden: int | None = setting(None, least=1)
    operator: str | None = None
    prior: float | None = setting(None, least=0.0)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"name: expected letters, digits, - and _, got {self.name!r}"
            )
        if (self.kind == "operator") != (self.operator is not None):
            raise ValueError(
                "operator: to be given with the kind operator, and not otherwise"
            )


PROBLEMS = (
    Problem(name="reconstruction"),
    Problem(name="denoising-0.2", sigma=0.2),
    Problem(name="denoising-0.4", sigma=0.4),
    Problem(name="inpainting", kind="inpainting"),
)


class Measured(NamedTuple):
    """Measurements, and masks for inpainting: 0 where a pixel is hidden."""

    values: Tensor
    masks: Tensor


def measure(
    problem: Problem, images: Tensor, generator: np.random.Generator
) -> Measured:
    """What is measured of images."""
    masks = _masks(problem, images, generator)
    exact = _checked(problem, operator_of(problem), images, masks)
    noise = problem.sigma * generator.standard_normal(
        tuple(exact.shape), dtype=np.float32
    )
    values = exact + torch.as_tensor(noise).to(exact)
    # What is hidden has no noise either.
    return Measured(values * masks if problem.kind == "inpainting" else values, masks)


def _masks(problem: Problem, images: Tensor, generator: np.random.Generator) -> Tensor:
    """Masks that hide a random square of each image, or nothing."""
    number, _, height, width = images.shape
    masks = torch.ones(number, 1, height, width, device=images.device)
    if problem.kind != "inpainting":
        return masks
    side = problem.hidden or round(20 / 64 * min(height, width))
    if side > min(height, width):
        raise ConfigError(
            f"problems: {problem.name}: hidden: expected at most "
            f"{min(height, width)}, got {side}"
        )
    for mask in masks:
        row, column = generator.integers(0, (height - side + 1, width - side + 1))
        mask[:, row : row + side, column : column + side] = 0.0
    return masks


def operator_of(problem: Problem) -> Callable[[Any, Any], Any]:
    """What takes images and masks to measurements without noise."""
    if problem.kind == "inpainting":
        return lambda images, masks: images * masks
    operator = (
        (lambda images: images) if problem.operator is None else _imported(problem)
    )

    def measured(images: Any, masks: Any) -> Any:
        del masks
        return _real_parts(operator(images))

    return measured


def _real_parts(values: Any) -> Any:
    """Rows of complex numbers as rows of their real and imaginary parts; what else an
    operator returns as it is.
    """
    if not (isinstance(values, Tensor) and values.is_complex() and values.ndim):
        return values
    return torch.stack((values.real, values.imag), -1).flatten(1)


def _imported(problem: Problem) -> Any:
    module, _, name = str(problem.operator).partition(":")
    try:
        operator = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _unusable(problem, f"cannot be imported ({error})") from None
    if not callable(operator):
        raise _unusable(problem, "is not callable")
    return operator


def _checked(
    problem: Problem, operator: Callable[[Any, Any], Any], images: Tensor, masks: Tensor
) -> Tensor:
    """The measurements without noise, if the operator is what it should be."""
    probe = images.clone().requires_grad_()
    try:
        measured = operator(probe, masks)
    except Exception as error:  # a user's code raises whatever it likes
        line = str(error).splitlines()[0] if str(error) else ""
        raise _unusable(problem, f"failed ({type(error).__name__}: {line})") from error
    if not isinstance(measured, Tensor) or measured.shape[:1] != images.shape[:1]:
        raise _unusable(problem, "did not return a tensor with a row for each image")
    if not measured.requires_grad:
        raise _unusable(problem, "is not differentiable")
    if not measured.isfinite().all():
        raise _unusable(problem, "makes infinite values, or NaN, of the images")
    return measured.detach()


def _unusable(problem: Problem, reason: str) -> ConfigError:
    return ConfigError(
        f"problems: {problem.name}: operator {problem.operator} {reason}"
    )
