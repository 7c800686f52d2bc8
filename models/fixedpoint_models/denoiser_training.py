"""Training of a convex game between patches on noisy images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fixedpoint.checks import check_count, check_positive

if TYPE_CHECKING:
    from fixedpoint_models.games import PatchGame

Tensor = torch.Tensor


def train_denoiser(
    game: PatchGame,
    images: Tensor,
    sigma: float,
    steps: int,
    *,
    batch_size: int = 8,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> list[float]:
    """Train the dictionaries and penalties of `game`, in place, by Adam.

    The loss is the mean squared error of the denoised images. Noise is drawn anew in
    each step, and the learning rate falls to a tenth along a half cosine.

    Parameters
    ----------
    game : PatchGame
        The game.
    images : tensor of shape (number, 1, H, W)
        Clean images, of the dtype of the game's parameters.
    sigma : float
        The standard deviation of the noise.
    steps : int
        Of Adam.
    batch_size : int, optional
        Images of a step, drawn at random.
    learning_rate : float, optional
        At the start.
    seed : int, optional
        Of the noise and the order of the images.

    Returns
    -------
    list of float
        The loss of each step.
    """
    check_positive("sigma", sigma)
    check_count("steps", steps, 0)
    check_count("batch_size", batch_size, 1)
    check_positive("learning_rate", learning_rate)
    game.check(images)
    if not len(images):
        raise ValueError("images must be one or more, got none")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(game.parameters(), lr=learning_rate)
    losses = []
    for step in range(steps):
        fall = 0.55 + 0.45 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = learning_rate * fall
        clean = images[torch.randint(len(images), (batch_size,), generator=generator)]
        noisy = _noisy(clean, sigma, generator)
        losses.append(_adam_step(game, optimizer, clean, noisy))
    return losses


def _noisy(clean: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """White noise added; drawn on the CPU in single precision, and so the same
    everywhere.
    """
    return clean + sigma * torch.randn(clean.shape, generator=generator).to(clean)


def _adam_step(
    game: PatchGame, optimizer: torch.optim.Optimizer, clean: Tensor, noisy: Tensor
) -> float:
    """One step; returns the loss."""
    loss = (game(noisy) - clean).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
