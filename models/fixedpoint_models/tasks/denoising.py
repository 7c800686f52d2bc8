"""Denoising photographs by a convex game between their patches, trained through its
equilibrium.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle

import fixedpoint as fp
from fixedpoint_models import data as sets
from fixedpoint_models.config import ConfigError, setting
from fixedpoint_models.contrasts import Contrasts
from fixedpoint_models.data import DataError
from fixedpoint_models.games import PatchGame
from fixedpoint_models.patch_grid import PatchGrid
from fixedpoint_models.plots import draw_recovered
from fixedpoint_models.tasks.base import Experiment

Tensor = torch.Tensor
WHITE = 255.0
SHOWN, SHOWN_SIDE = 5, 128
TV_WEIGHTS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.5)
"""Of total variation, in standard deviations of the noise, to choose from."""
_chambolle: Any = denoise_tv_chambolle
TV_IMAGES = 8
"""Images to train on that they are chosen with."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the task.

    Parameters
    ----------
    train, test : str
        Folders of photographs, of any size; they are turned gray.
    levels : tuple of float
        Standard deviations of the noise, out of 255; less than 0.1 is far below the
        rounding of a gray value.
    size, atoms, curvature, coupling, ridge, filters, reaches
        As for :class:`fixedpoint_models.games.PatchGame`.
    stride, test_stride : int
        Pixels from one patch to the next, in training and for photographs to test with.
    weight : float
        The weights of the game at first, in standard deviations of the noise.
    crop : int
        The side of what is cut of photographs to train on.
    batch_size, batches : int
        Cuts a step, and steps an epoch.
    rtol, adjoint_rtol : float
        Of solves, and of those for derivatives.
    steps : int
        Of a solve, at most.
    tile, margin : int
        The side of the squares that photographs are tested in, and the pixels around
        them that are solved for along with them.
    held_out : int, optional
        Photographs to test with; all by default.
    seed : int
        Of everything random.
    """

    train: str
    test: str
    levels: tuple[float, ...] = setting((15.0, 25.0, 50.0), least=0.1, most=WHITE)
    size: int = setting(8, least=2)
    atoms: int = setting(100, least=1)
    stride: int = setting(2, least=1)
    test_stride: int = setting(1, least=1)
    curvature: float = setting(0.5, above=0.0)
    coupling: float = setting(0.2, least=0.0)
    ridge: float = setting(0.2, above=0.0)
    filters: int = setting(48, least=0)
    reaches: tuple[int, ...] = setting((4, 12), least=0)
    weight: float = setting(0.7, above=0.0)
    crop: int = setting(40, least=8)
    batch_size: int = setting(4, least=1)
    batches: int = setting(100, least=1)
    rtol: float = setting(1e-2, above=0.0)
    adjoint_rtol: float = setting(1e-1, above=0.0)
    steps: int = setting(100, least=1)
    tile: int = setting(108, least=1)
    margin: int = setting(8, least=1)
    held_out: int | None = setting(None, least=1)
    seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        if len({f"{level:g}" for level in self.levels}) < len(self.levels):
            raise ValueError(
                "levels: expected numbers that differ, which name the figures, got "
                f"{list(self.levels)}"
            )


class Batch(NamedTuple):
    """Clean and noisy images of shape (batch, 1, side, side), and which of the levels
    of noise they have.
    """

    clean: Tensor
    noisy: Tensor
    level: int


class Denoiser(torch.nn.Module):
    """A game for each level of noise, with penalties of its own; dictionaries, and what
    weights make of surroundings, are shared by all.

    Parameters
    ----------
    settings : Settings
        Their settings.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.games = torch.nn.ModuleList(
            PatchGame(
                settings.size,
                settings.atoms,
                stride=settings.stride,
                weight=settings.weight * level / WHITE,
                curvature=settings.curvature,
                coupling=settings.coupling,
                ridge=settings.ridge,
                filters=settings.filters,
                reaches=settings.reaches,
                solver=fp.Anderson(memory=2),
                adjoint=fp.ImplicitAdjoint(
                    rtol=settings.adjoint_rtol, on_failure="return"
                ),
                rtol=settings.rtol,
                max_steps=settings.steps,
            )
            for level in settings.levels
        )
        first: Any = self.games[0]
        for game in self.games:
            game.atoms, game.synthesis = first.atoms, first.synthesis
            for name in Contrasts.SHARED if settings.filters else ():
                setattr(game.seen, name, getattr(first.seen, name))


class Denoising(Experiment):
    """A game of patches that is trained on noisy cuts of photographs.

    Parameters
    ----------
    settings : Settings
        The settings.
    device : torch.device
        The device.

    References
    ----------
    Lecouat, Ponce and Mairal, "A flexible framework for designing trainable priors with
    adaptive smoothing and game encoding", NeurIPS 2020, arXiv:2006.14859.
    """

    module: Denoiser

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.train = sets.gray_images(settings.train)
        self.test = sets.gray_images(settings.test)[: settings.held_out]
        side = min(min(image.shape) for image in self.train)
        if side < settings.crop:
            raise DataError(
                f"{settings.train}: there is an image of side {side}, and cuts are of "
                f"side {settings.crop}"
            )
        try:
            self.module = Denoiser(settings).to(device)
            PatchGrid(settings.size, settings.test_stride)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Cuts at random, mirrored and turned, of one level of noise after the
        other.
        """
        settings = self.settings
        generator = np.random.default_rng([settings.seed, epoch])
        for number in range(settings.batches):
            level = (epoch * settings.batches + number) % len(settings.levels)
            cuts = [self._cut(generator) for _ in range(settings.batch_size)]
            clean = np.stack(cuts)[:, None]
            noise = generator.standard_normal(clean.shape, np.float32)
            noisy = clean + np.float32(settings.levels[level] / WHITE) * noise
            images = [torch.as_tensor(a).to(self.device) for a in (clean, noisy)]
            yield Batch(images[0], images[1], level)

    def _cut(self, generator: np.random.Generator) -> Any:
        image = self.train[generator.integers(len(self.train))]
        crop = self.settings.crop
        row, column = (generator.integers(side - crop + 1) for side in image.shape)
        cut = image[row : row + crop, column : column + crop]
        cut = np.rot90(cut, int(generator.integers(4)))
        return cut[:, :: generator.choice([1, -1])]

    def step(self, batch: Batch) -> dict[str, float]:
        """Add the gradient of the mean squared error, in variances of the noise."""
        game: Any = self.module.games[batch.level]
        denoised, found = game.answer(batch.noisy, on_failure="return")
        variance = (self.settings.levels[batch.level] / WHITE) ** 2
        loss = (denoised - batch.clean).square().mean() / variance
        loss.backward()
        return {
            "loss": float(loss.detach()),
            "steps": float(found.steps.double().mean()),
            "failed": float((~found.converged).double().mean()),
        }

    def noisy(self, number: int, level: int) -> tuple[Tensor, Tensor]:
        """A photograph to test with and its noisy one, of shape (1, 1, H, W)."""
        clean = torch.as_tensor(self.test[number])[None, None]
        generator = torch.Generator().manual_seed(1000 * self.settings.seed + number)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = self.settings.levels[level] / WHITE
        return clean.to(self.device), (clean + sigma * noise).to(self.device)

    def denoised(self, noisy: Tensor, level: int) -> Tensor:
        """What the game of a level makes of a noisy photograph, patches `test_stride`
        pixels apart. A trained one takes as many plain steps as accelerated ones, and
        they are cheaper.
        """
        settings, games = self.settings, self.module.games
        game: Any = games[level]
        image: Tensor = game.with_stride(settings.test_stride).denoise_in_tiles(
            noisy,
            settings.tile,
            settings.margin,
            solver=fp.Picard(),
            on_failure="return",
        )
        return image.clamp(0.0, 1.0)

    def total_variation(self, level: int) -> Callable[[Tensor], Tensor]:
        """Total variation's denoising, its weight chosen on images to train on."""
        sigma = self.settings.levels[level] / WHITE
        generator = np.random.default_rng(self.settings.seed)
        images = self.train[:TV_IMAGES]
        seen = [
            image + sigma * generator.standard_normal(image.shape, np.float32)
            for image in images
        ]

        def quality(weight: float) -> float:
            found = [_without_noise(noisy, weight * sigma) for noisy in seen]
            return float(np.mean(list(map(_psnr, found, images))))

        best = max(TV_WEIGHTS, key=quality) * sigma

        def smoothed(noisy: Tensor) -> Tensor:
            image = _without_noise(noisy[0, 0].cpu().numpy(), best)
            return torch.as_tensor(image)[None, None].to(noisy)

        return smoothed

    def evaluate(self) -> dict[str, float]:
        """Peak signal-to-noise ratios in dB, means over the test photographs: of the
        noisy images, by total variation, and by the game; and the processor time that
        the game takes for one.
        """
        figures: dict[str, float] = {}
        for level, sigma in enumerate(self.settings.levels):
            smoothed, rows = self.total_variation(level), []
            for number in range(len(self.test)):
                clean, noisy = self.noisy(number, level)
                begun = time.process_time()
                ours = self.denoised(noisy, level)
                seconds = time.process_time() - begun
                images = noisy.clamp(0.0, 1.0), smoothed(noisy), ours
                rows.append([*(_psnr(image, clean) for image in images), seconds])
            means = np.mean(rows, axis=0)
            names = "psnr_noisy", "psnr_tv", "psnr", "seconds"
            figures |= {
                f"{name}_{sigma:g}": float(mean)
                for name, mean in zip(names, means, strict=True)
            }
        return figures

    def draw(self, folder: Path) -> list[Path]:
        """Parts of photographs: noisy, by total variation, by the game, and clean."""
        level = len(self.settings.levels) // 2
        smoothed = self.total_variation(level)
        rows: dict[str, list[Any]] = {}
        for number in range(min(SHOWN, len(self.test))):
            clean, noisy = (
                image[..., :SHOWN_SIDE, :SHOWN_SIDE]
                for image in self.noisy(number, level)
            )
            shown = {
                "noisy": noisy.clamp(0.0, 1.0),
                "total variation": smoothed(noisy),
                "game": self.denoised(noisy, level),
                "clean": clean,
            }
            for name, image in shown.items():
                rows.setdefault(name, []).append(image[0, 0].cpu().numpy())
        file = folder / "denoised.png"
        draw_recovered(rows, file)
        return [file]


def _without_noise(noisy: Any, weight: float) -> Any:
    return np.clip(_chambolle(noisy, weight), 0.0, 1.0)


def _psnr(image: Any, clean: Any) -> float:
    """The peak signal-to-noise ratio in dB, the peak being 1."""
    return float(-10.0 * np.log10(float(((image - clean) ** 2).mean())))
