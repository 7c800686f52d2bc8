"""The patches of an image, and the cosines that patterns in them begin with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from fixedpoint.checks import check_count

Tensor = torch.Tensor


@dataclass(frozen=True)
class PatchGrid:
    """Where the square patches of an image are.

    Parameters
    ----------
    size : int
        The side of a patch, in pixels.
    stride : int, optional
        Pixels from one patch to the next.

    Examples
    --------
    The average undoes the cutting:

    >>> import torch
    >>> from fixedpoint_models.games import PatchGrid
    >>> grid, image = PatchGrid(size=2), torch.arange(12.0).reshape(1, 1, 3, 4)
    >>> patches = grid.cut(image)
    >>> patches.shape, bool((grid.average(patches, image.shape) == image).all())
    (torch.Size([1, 4, 6]), True)
    """

    size: int
    stride: int = 1

    def __post_init__(self) -> None:
        check_count("size", self.size, 1)
        check_count("stride", self.stride, 1)
        if self.stride > self.size:
            raise ValueError(
                f"stride must be at most the size, {self.size}, got {self.stride}"
            )

    def cut(self, image: Tensor) -> Tensor:
        """The patches, of shape (batch, pixels, patches), of images (batch, 1, H,
        W).
        """
        return functional.unfold(image, self.size, stride=self.stride)

    def average(self, patches: Tensor, shape: torch.Size) -> Tensor:
        """The images of `shape` in which each pixel is the mean of its values in
        `patches`.
        """
        return self.sum(patches, shape) / self.count(patches, shape)

    def count(self, like: Tensor, shape: torch.Size) -> Tensor:
        """In how many patches each pixel is, of shape (1, 1, H, W)."""
        return self.sum(self.cut(like.new_ones(1, 1, *shape[-2:])), shape)

    def sum(self, patches: Tensor, shape: torch.Size) -> Tensor:
        """The images of `shape` in which each pixel is the sum of its values in
        `patches`.
        """
        return functional.fold(
            patches, (shape[-2], shape[-1]), self.size, stride=self.stride
        )

    def padded(self, image: Tensor) -> Tensor:
        """The images with rows and columns mirrored at the lower and the right edge,
        as few as patches need to cover them.
        """
        self._check_sides(image)
        missing = [(self.size - side) % self.stride for side in image.shape[-2:]]
        return functional.pad(image, (0, missing[1], 0, missing[0]), mode="reflect")

    def spans(
        self, length: int, tile: int, margin: int
    ) -> list[tuple[slice, slice, slice]]:
        """For each tile of a side: what is solved for, what is kept of the side, and
        where that is in what was solved for.
        """
        spans = []
        for first in range(0, length, tile):
            start, last = max(0, first - margin), min(first + tile, length)
            # So that patches end where the part does.
            end = min(last + margin + self.size % self.stride, length)
            kept, part = slice(first, last), slice(first - start, last - start)
            spans.append((slice(start, end), kept, part))
        return spans

    def check_tiles(self, tile: int, margin: int) -> None:
        """Raise unless images may be solved for in tiles, with a margin around each."""
        check_count("tile", tile, 1)
        check_count("margin", margin, self.size)
        for name, value in (("tile", tile), ("margin", margin)):
            if value % self.stride:
                multiple = f"a multiple of the stride {self.stride}"
                raise ValueError(f"{name} must be {multiple}, got {value}")

    def check(self, image: Tensor) -> None:
        """Raise ValueError unless `image` is (batch, 1, H, W), and the patches cover
        it.
        """
        self._check_sides(image)
        if any((side - self.size) % self.stride for side in image.shape[-2:]):
            raise ValueError(
                f"image must be covered by patches of side {self.size} with stride "
                f"{self.stride}, got sides {tuple(image.shape[-2:])}"
            )

    def _check_sides(self, image: Tensor) -> None:
        """Raise ValueError unless `image` is (batch, 1, H, W), and no smaller than a
        patch.
        """
        if image.ndim != 4 or image.shape[1] != 1:
            raise ValueError(
                f"image must be of shape (batch, 1, H, W), got {tuple(image.shape)}"
            )
        if min(image.shape[-2:]) < self.size:
            raise ValueError(
                f"image must be no smaller than a patch, of side {self.size}, "
                f"got sides {tuple(image.shape[-2:])}"
            )


def cosines(size: int, atoms: int) -> Tensor:
    """An overcomplete cosine basis: its columns have unit norm, and all but the first
    mean zero.

    Parameters
    ----------
    size : int
        The side of a patch.
    atoms : int
        Columns, those of lowest frequency of the products of ⌈√atoms⌉ cosines along
        each axis.

    Examples
    --------
    >>> from fixedpoint_models.patch_grid import cosines
    >>> cosines(8, 100).shape
    torch.Size([64, 100])
    """
    number = math.isqrt(atoms - 1) + 1
    frequency = torch.arange(number)
    line = torch.cos(
        torch.pi / number * (torch.arange(size)[:, None] + 0.5) * frequency
    )
    line[:, 1:] -= line[:, 1:].mean(0)
    order = torch.argsort((frequency[:, None] + frequency).flatten(), stable=True)[
        :atoms
    ]
    return functional.normalize(torch.kron(line, line)[:, order], dim=0)
