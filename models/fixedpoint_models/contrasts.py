"""How much there is to see in the patches of an image, and around them."""

from __future__ import annotations

import math

import torch

from fixedpoint.checks import check_count
from fixedpoint_models.patch_grid import PatchGrid, cosines

Tensor = torch.Tensor
GAIN = 0.1
"""Of what is learned about surroundings, next to what is learned about atoms: many
entries add up, and Adam moves all of them equally far.
"""


class Contrasts(torch.nn.Module):
    """What tells of a patch, and of those around it, how much there is to see.

    The filters' squared answers to the patch less its mean, in units of a scale of each
    filter's own, are averaged over all patches that begin within each of the reaches,
    after a logarithm of one more than them. The patch's own are taken along.

    Parameters
    ----------
    size : int
        The side of a patch.
    atoms : int
        Of the game.
    filters : int
        As many cosines at first, lowest frequencies first.
    reaches : tuple of int
        In pixels, to each side.
    scale : float
        The scales at first.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.contrasts import Contrasts
    >>> from fixedpoint_models.patch_grid import PatchGrid
    >>> seen = Contrasts(size=4, atoms=25, filters=10, reaches=(4,), scale=0.1)
    >>> seen(torch.rand(1, 1, 12, 12), PatchGrid(4)).shape
    torch.Size([1, 20, 81])
    """

    SHARED = ("filters", "mix", "window", "trust")
    """What games for several levels of noise may share."""

    def __init__(
        self,
        size: int,
        atoms: int,
        filters: int,
        reaches: tuple[int, ...],
        scale: float,
    ) -> None:
        super().__init__()
        check_count("filters", filters, 1)
        for reach in reaches:
            check_count("reaches", reach, 0)
        self.reaches, number = reaches, filters * (1 + len(reaches))
        self.filters = torch.nn.Parameter(cosines(size, filters + 1)[:, 1:].clone())
        self.log_scales = torch.nn.Parameter(torch.full((filters, 1), math.log(scale)))
        self.mix = torch.nn.Parameter(torch.zeros(atoms, number))
        self.window = torch.nn.Parameter(torch.zeros(size**2, 1))
        self.trust = torch.nn.Parameter(torch.zeros(1, number))

    def forward(self, image: Tensor, grid: PatchGrid) -> Tensor:
        """Of each patch, shape (batch, entries, patches)."""
        patches = grid.cut(image)
        patches = patches - patches.mean(1, keepdim=True)
        answers = (self.filters * torch.exp(-self.log_scales.T)).T @ patches
        logs = torch.log1p(answers.square())
        rows = (image.shape[-2] - grid.size) // grid.stride + 1
        around = logs.reshape(*logs.shape[:2], rows, -1)
        means = [_box_mean(around, reach // grid.stride) for reach in self.reaches]
        # Of noise alone, whatever the filter, about a half at first.
        return torch.cat([logs, *(mean.flatten(2) for mean in means)], 1) - 0.5

    def shift(self, seen: Tensor) -> Tensor:
        """What is added to the raw weights, of shape (batch, atoms, patches)."""
        shift: Tensor = GAIN * self.mix @ seen
        return shift

    def shares(self, seen: Tensor) -> Tensor:
        """What each patch's pixels count for in the answer: the window times a factor
        of each patch's own, of shape (batch, pixels, patches).
        """
        shares: Tensor = torch.exp(self.window) * torch.exp(GAIN * self.trust @ seen)
        return shares


def _box_mean(maps: Tensor, reach: int) -> Tensor:
    """Of maps (..., rows, columns), the mean over those within reach, as products with
    banded matrices.
    """
    down, across = (_band(maps, side, reach) for side in maps.shape[-2:])
    mean: Tensor = down @ (maps @ across.T)
    return mean


def _band(like: Tensor, number: int, reach: int) -> Tensor:
    """The matrix of means over indices no farther than reach."""
    index = torch.arange(number, device=like.device)
    near = ((index[:, None] - index).abs() <= reach).to(like.dtype)
    return near / near.sum(1, keepdim=True)
