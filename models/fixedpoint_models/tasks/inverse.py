"""Inverse problems: images from measurements, with a trained decoder for a prior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.checkpoints import load_checkpoint, restore
from fixedpoint_models.config import ConfigError, build, setting
from fixedpoint_models.plots import draw_recovered
from fixedpoint_models.principal import Components, principal_components
from fixedpoint_models.runner import begin
from fixedpoint_models.tasks import baselines
from fixedpoint_models.tasks.base import Experiment
from fixedpoint_models.tasks.decoding import infer
from fixedpoint_models.tasks.generative import Generative
from fixedpoint_models.tasks.images import load, mean_of_known, quality, shown, together
from fixedpoint_models.tasks.measurements import (
    PROBLEMS,
    Measured,
    Problem,
    measure,
    operator_of,
)
from fixedpoint_models.tasks.settings import Settings as GenerativeSettings
from fixedpoint_models.tasks.settings import Solve

Tensor = torch.Tensor
SHOWN = 10
# How pictures call what recovers images without a decoder.
BASELINES = {
    "pca": "PCA",
    "pca_prior": "PCA, prior",
    "tv": "total variation",
    "biharmonic": "biharmonic",
}
# Weights of total variation, and the images to choose one on.
TV_WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
TV_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the task.

    Parameters
    ----------
    checkpoint : str
        That of a training of the task generative, whose held-out images are measured.
    problems : tuple of Problem
        What is measured of them.
    number : int, optional
        How many of them; all by default.
    steps : int
        Of a solve, at most.
    rtol : float
        Of every block.
    solve : Solve, optional
        How to solve, but for these two; as in training by default.
    baselines : bool
        Whether figures include those of principal components, as many as a code has
        entries; of total variation, for noise with a weight tuned on images to train
        on; and, for inpainting, of biharmonic functions.
    seed : int
        Of noise and squares.
    """

    checkpoint: str
    problems: tuple[Problem, ...] = PROBLEMS
    number: int | None = setting(None, least=1)
    steps: int = setting(200, least=1)
    rtol: float = setting(1e-4, above=0.0)
    solve: Solve | None = None
    baselines: bool = False
    seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        names = [problem.name for problem in self.problems]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"problems: expected some, with names of their own, got {names}"
            )


class Inverse(Experiment):
    """Images from measurements A(image) + noise: the codes that explain these are
    solved for.

    The loss is s‖A(D(z)) − measurements‖² + λ‖x‖² with the scale s of training,
    64/pixels of the image, as all that is measured is as precise as a pixel.

    Parameters
    ----------
    settings : Settings
        The settings.
    device : torch.device
        The device.
    """

    trains = False

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings = settings
        self.generative = _trained(Path(settings.checkpoint), device)
        self.module = self.generative.module
        self.images = self.generative.held_out[: settings.number]
        solve = settings.solve or self.generative.settings.solve
        self.solve = replace(solve, warm="none")
        # Made at once, so that an operator that cannot be used is told at once.
        self.measured = [
            self._measure(i, p, self.images) for i, p in enumerate(settings.problems)
        ]

    def batches(self, epoch: int) -> Iterator[Any]:
        """There are none."""
        raise NotImplementedError("there is nothing to train")

    def step(self, batch: Any) -> dict[str, float]:
        """There is none."""
        raise NotImplementedError("there is nothing to train")

    def _measure(self, number: int, problem: Problem, images: Tensor) -> Measured:
        """What is measured of images: the same for the same seed."""
        generator = np.random.default_rng((self.settings.seed, number))
        return measure(problem, images, generator)

    def posed(self, problem: Problem) -> AugmentedDEQ:
        """The augmented system of a problem, whose data are of type
        :class:`Measured`.
        """
        operator = operator_of(problem)

        def loss(decoded: Any, x: Any, y: Any, params: Any) -> Any:
            misfit = operator(decoded, y.masks) - y.values
            explained = params["scale"] * (misfit**2).flatten(1).sum(-1)
            return explained + (params["prior"] * x**2).sum(-1)

        return self.generative.posed(loss, self.generative.module.head)

    def _recover(
        self, problem: Problem, y: Measured
    ) -> tuple[Tensor, dict[str, list[float]]]:
        """The images recovered from some measurements, and what the solve says of
        them.
        """
        decoder, settings = self.generative.decoder, self.settings
        params, model = decoder.frozen(self._prior(problem)), self.posed(problem)
        z, x = decoder.start(len(y.values))
        found = infer(
            model,
            self.solve,
            {"z": z, "mu": z, "x": x},
            params=params,
            y=y,
            steps=settings.steps,
            rtol=settings.rtol,
        )
        x = found.value["x"]
        objective = model.objective(z, x, params=params, y=y).tolist()
        converged = found.converged.double().tolist()
        recovered = _pasted(problem, decoder.images(x, params), y)
        return recovered, {"objective": objective, "converged": converged}

    def _prior(self, problem: Problem) -> float:
        """The weight of ‖x‖²."""
        trained = self.generative.settings.prior
        return trained if problem.prior is None else problem.prior

    def evaluate(self) -> dict[str, float]:
        """Mean figures of each problem, compared with the original images.

        `objective` is the loss of the codes found, with equilibria solved for afresh;
        `mse` is the mean squared error of the images decoded from them, `psnr` the same
        as a signal-to-noise ratio in dB, and `ssim` the structural similarity, 1 for
        equal images. `psnr_measured` is that of the measurements themselves, if they
        are images other than the original ones. `converged` is the share that was
        solved.
        """
        figures: dict[str, float] = {}
        for problem, measured in zip(
            self.settings.problems, self.measured, strict=True
        ):
            for name, value in self._evaluated(problem, measured).items():
                figures[f"{problem.name}/{name}"] = value
        return figures

    def _evaluated(self, problem: Problem, measured: Measured) -> dict[str, float]:
        size = self.generative.settings.batch_size
        rows = []
        parts = (torch.split(tensor, size) for tensor in (self.images, *measured))
        for images, values, masks in zip(*parts, strict=True):
            recovered, told = self._recover(problem, Measured(values, masks))
            rows.append({**told, **_quality_of(problem, recovered, images, masks)})
        means = {name: mean_of_known(x) for name, x in together(rows).items()}
        if _shows_images(problem, measured, self.images):
            seen = measured.values.clamp(0.0, 1.0)
            psnr = quality(seen, self.images)["psnr"]
            means["psnr_measured"] = float(np.mean(psnr))
        if self.settings.baselines and problem.kind != "operator":
            means |= self._compared(problem, measured)
        return means

    def _compared(self, problem: Problem, measured: Measured) -> dict[str, float]:
        """PSNR and SSIM of what recovers images without a network."""
        figures = {}
        for name, images in self.baselines(problem, measured).items():
            found = _quality_of(problem, images, self.images, measured.masks)
            for key in ("psnr", "ssim"):
                figures[f"{key}_{name}"] = float(np.mean(found[key]))
        return figures

    def baselines(self, problem: Problem, measured: Measured) -> dict[str, Tensor]:
        """Images recovered without a network: by principal components, the nearest
        image and that with the prior of the decoder; by total variation, where there is
        something to remove; and by biharmonic functions, where something is hidden.
        """
        scale = 64.0 / math.prod(self.images.shape[1:])
        found = {
            name: baselines.by_components(*measured, self.components, ridge)
            for name, ridge in (
                ("pca", 0.0),
                ("pca_prior", self._prior(problem) / scale),
            )
        }
        if problem.kind == "inpainting":
            found["tv"] = baselines.filled_by_total_variation(*measured)
            found["biharmonic"] = baselines.by_biharmonic(*measured)
        elif problem.sigma > 0.0:
            weight = self._tuned(problem)
            found["tv"] = baselines.by_total_variation(measured.values, weight)
        return {k: _pasted(problem, images, measured) for k, images in found.items()}

    @cached_property
    def examples(self) -> Tensor:
        """The images that the decoder was trained on."""
        settings = self.generative.settings
        return load(settings.images, settings.seed)[0]

    @cached_property
    def components(self) -> Components:
        """Principal components of these, as many as a code has entries."""
        settings = self.generative.settings
        return principal_components(
            self.examples, settings.network.latent, settings.seed
        )

    def _tuned(self, problem: Problem) -> float:
        """The weight of total variation that is best for some of these images."""
        images = self.examples[:TV_IMAGES]
        seen = self._measure(len(self.settings.problems), problem, images)

        def psnr(weight: float) -> float:
            found = baselines.by_total_variation(seen.values, weight)
            return float(np.mean(quality(found, images)["psnr"]))

        return max(TV_WEIGHTS, key=psnr)

    def draw(self, folder: Path) -> list[Path]:
        """Originals, measurements and what is recovered of them, without the decoder
        as well where the settings ask for that; a file for each problem.
        """
        files = []
        for problem, measured in zip(
            self.settings.problems, self.measured, strict=True
        ):
            few = Measured(*(tensor[:SHOWN] for tensor in measured))
            originals = self.images[:SHOWN]
            rows = {"original": shown(originals)}
            if few.values.ndim == 4 and few.values.shape[1] == originals.shape[1]:
                seen = few.values.clamp(0.0, 1.0)
                rows["measured"] = shown(
                    torch.where(few.masks > 0.0, seen, torch.nan)
                    if problem.kind == "inpainting"
                    else seen
                )
            rows["recovered"] = shown(self._recover(problem, few)[0])
            if self.settings.baselines and problem.kind != "operator":
                for name, images in self.baselines(problem, few).items():
                    rows[BASELINES[name]] = shown(images)
            files.append(folder / f"{problem.name}.png")
            draw_recovered(rows, files[-1])
        return files


def _pasted(problem: Problem, images: Tensor, measured: Measured) -> Tensor:
    """Images with the pixels that are known, where some are not."""
    if problem.kind != "inpainting":
        return images
    known = measured.values.clamp(0.0, 1.0)
    return torch.where(measured.masks > 0.0, known, images)


def _shows_images(problem: Problem, measured: Measured, images: Tensor) -> bool:
    """Whether measurements are whole images, and not the original ones."""
    is_image = measured.values.shape == images.shape and problem.kind != "inpainting"
    return is_image and not torch.equal(measured.values, images)


def _quality_of(
    problem: Problem, recovered: Tensor, images: Tensor, masks: Tensor
) -> dict[str, list[float]]:
    """The quality of images, of the square that was hidden alone if there was one."""
    hidden = masks if problem.kind == "inpainting" else None
    return quality(recovered, images, hidden)


def _trained(file: Path, device: torch.device) -> Generative:
    """The task that wrote a checkpoint, as it was then."""
    content = load_checkpoint(file, "generative")
    try:
        settings = build(GenerativeSettings, content["config"]["settings"])
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    experiment = begin(Generative, settings, device)
    restore(experiment, content, file)
    return experiment
