"""What is read off a multiscale state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from fixedpoint.checks import check_count
from fixedpoint_models.networks.layers import (
    State,
    Tensor,
    activation_of,
    check_channels,
    check_sides,
    convolution,
)


class ImageHead(torch.nn.Module):
    """A state to an image.

    All branches are enlarged to the first one's side and pass a 3×3 convolution, an
    activation and a 1×1 convolution, whose channels are shuffled into the pixels of the
    image.

    Parameters
    ----------
    channels : sequence of int
        Of each branch.
    side : int
        Of the first branch.
    out_channels, out_side : int
        Of the image; `out_side` is a multiple of `side`.
    hidden : int, optional
        Channels between the convolutions, by default the sum of the branches'.
    activation : {"relu", "softplus"}, optional
        Between the convolutions.
    sigmoid : bool, optional
        Whether a sigmoid takes the pixels into (0, 1).
    weight_norm : bool, optional
        Whether the convolutions are weight-normalized.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.networks import ImageHead
    >>> head = ImageHead((8, 4), side=8, out_channels=3, out_side=32)
    >>> head((torch.zeros(2, 8, 8, 8), torch.zeros(2, 4, 4, 4))).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        channels: Sequence[int],
        side: int,
        out_channels: int = 1,
        out_side: int = 64,
        *,
        hidden: int | None = None,
        activation: str = "relu",
        sigmoid: bool = False,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        width = sum(check_channels(channels))
        check_sides(side, len(channels))
        check_count("out_channels", out_channels, 1)
        check_count("out_side", out_side, 1)
        if out_side % side:
            raise ValueError(
                f"out_side must be a multiple of the side {side}, got {out_side}"
            )
        self.enlarge, self.sigmoid = out_side // side, sigmoid
        self.activation = activation_of(activation)
        hidden = width if hidden is None else hidden
        pixels = out_channels * self.enlarge**2
        self.conv1 = convolution(width, hidden, 3, bias=True, normalized=weight_norm)
        self.conv2 = convolution(hidden, pixels, 1, bias=True, normalized=weight_norm)

    def forward(self, z: State) -> Tensor:
        """The image."""
        maps = [z[0]]
        for level, leaf in enumerate(z[1:], 1):
            maps.append(
                functional.interpolate(leaf, scale_factor=2**level, mode="nearest")
            )
        hidden = self.activation(self.conv1(torch.cat(maps, dim=1)))
        image = functional.pixel_shuffle(self.conv2(hidden), self.enlarge)
        return torch.sigmoid(image) if self.sigmoid else image


class ClassHead(torch.nn.Module):
    """A state to a score for each class: averages of the maps over a grid of squares,
    and a linear map of these.

    The average of a whole map says little, as the maps are normalized in groups.

    Parameters
    ----------
    channels : sequence of int
        Of each branch.
    side : int
        Of the first branch.
    classes : int
        How many.
    grid : int, optional
        Squares along each side of a map; every pixel is one where the map is smaller.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.networks import ClassHead
    >>> head = ClassHead((8, 4), side=8, classes=10)
    >>> head((torch.zeros(2, 8, 8, 8), torch.zeros(2, 4, 4, 4))).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, channels: Sequence[int], side: int, classes: int, grid: int = 4
    ) -> None:
        super().__init__()
        check_count("classes", classes, 1)
        check_count("grid", grid, 1)
        sides = check_sides(side, len(check_channels(channels)))
        self.grids = [min(grid, one) for one in sides]
        averages = zip(channels, self.grids, strict=True)
        self.linear = torch.nn.Linear(sum(c * g**2 for c, g in averages), classes)

    def forward(self, z: State) -> Tensor:
        """The scores."""
        averages = [
            functional.adaptive_avg_pool2d(leaf, grid).flatten(1)
            for leaf, grid in zip(z, self.grids, strict=True)
        ]
        scores: Tensor = self.linear(torch.cat(averages, dim=-1))
        return scores
