"""What drives an equilibrium: features of the input, for each branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from fixedpoint.checks import check_count
from fixedpoint_models.networks.layers import State, Tensor, check_channels, convolution

# The drive of an input that is zero. A group norm divides by the size of its input:
# were there no drive, it would blow up what little the state itself contributes.
LATENT_BIAS, IMAGE_BIAS = 1.0, 0.5


class LatentInjection(torch.nn.Module):
    """A latent code to a map of features for each branch, affinely.

    Parameters
    ----------
    latent : int
        Entries of the code.
    channels, sides : sequence of int
        Of each branch.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.networks import LatentInjection
    >>> injected = LatentInjection(3, (8, 4), (16, 8))(torch.zeros(5, 3))
    >>> [tuple(features.shape) for features in injected]
    [(5, 8, 16, 16), (5, 4, 8, 8)]
    """

    def __init__(
        self, latent: int, channels: Sequence[int], sides: Sequence[int]
    ) -> None:
        super().__init__()
        check_count("latent", latent, 1)
        if len(channels) != len(sides):
            raise ValueError(
                f"sides must be as many as channels, got {sides!r} and {channels!r}"
            )
        self.shapes = [
            (c, s, s) for c, s in zip(check_channels(channels), sides, strict=True)
        ]
        self.maps = torch.nn.ModuleList(
            torch.nn.Linear(latent, math.prod(shape)) for shape in self.shapes
        )
        for layer in self.maps:
            torch.nn.init.normal_(
                layer.get_parameter("weight"), std=1.0 / math.sqrt(latent)
            )
            torch.nn.init.normal_(layer.get_parameter("bias"), std=LATENT_BIAS)

    def forward(self, x: Tensor) -> State:
        """The features of codes of shape (batch, latent)."""
        return tuple(
            layer(x).unflatten(-1, shape)
            for layer, shape in zip(self.maps, self.shapes, strict=True)
        )


class ImageInjection(torch.nn.Module):
    """An image to a map of features for each branch.

    The highest resolution gets a convolution of the image, each lower one a convolution
    of the image's averages. (In the paper those branches start from nothing and see the
    input through the fusion alone. A branch without drive is a loop of norms, which do
    not contract.)

    Parameters
    ----------
    in_channels : int
        Of the image.
    channels : sequence of int
        Of each branch.
    shrink : int, optional
        How many times the side of the first branch the image's side is. Squares of that
        side become channels, so that nothing is lost.
    weight_norm : bool, optional
        Whether the convolutions are weight-normalized.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.networks import ImageInjection
    >>> injected = ImageInjection(3, (8, 4), shrink=2)(torch.zeros(5, 3, 32, 32))
    >>> [tuple(features.shape) for features in injected]
    [(5, 8, 16, 16), (5, 4, 8, 8)]
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        *,
        shrink: int = 1,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels, 1)
        check_count("shrink", shrink, 1)
        self.shrink = shrink
        self.convolutions = torch.nn.ModuleList(
            convolution(
                in_channels * shrink**2, number, 3, bias=True, normalized=weight_norm
            )
            for number in check_channels(channels)
        )
        for layer in self.convolutions:
            _alternate(layer.get_parameter("bias"))

    def forward(self, x: Tensor) -> State:
        """The features of images of shape (batch, in_channels, side, side)."""
        x = functional.pixel_unshuffle(x, self.shrink)
        features = [self.convolutions[0](x)]
        for layer in self.convolutions[1:]:
            x = functional.avg_pool2d(x, 2)
            features.append(layer(x))
        return tuple(features)


class FiLM(torch.nn.Module):
    """An injection whose features h a vector v scales and shifts, (1 + γ(v))∘h + β(v).

    γ and β are linear, a number for each channel: v = 0 changes nothing.

    Parameters
    ----------
    injection : nn.Module
        What the features are of.
    task : int
        Entries of v.
    channels : sequence of int
        Of each branch.

    References
    ----------
    Perez, Strub, de Vries, Dumoulin and Courville, "FiLM: visual reasoning with a
    general conditioning layer", AAAI 2018, arXiv:1709.07871.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.networks import FiLM, ImageInjection
    >>> plain = ImageInjection(1, (8,))
    >>> image = torch.rand(2, 1, 8, 8)
    >>> modulated = FiLM(plain, task=5, channels=(8,))((image, torch.zeros(2, 5)))
    >>> torch.equal(modulated[0], plain(image)[0])
    True
    """

    def __init__(
        self, injection: torch.nn.Module, task: int, channels: Sequence[int]
    ) -> None:
        super().__init__()
        check_count("task", task, 1)
        self.injection = injection
        self.maps = torch.nn.ModuleList(
            torch.nn.Linear(task, 2 * number, bias=False)
            for number in check_channels(channels)
        )
        for layer in self.maps:
            torch.nn.init.normal_(
                layer.get_parameter("weight"), std=0.1 / math.sqrt(task)
            )

    def forward(self, x: tuple[Any, Tensor]) -> State:
        """The features of a pair: what `injection` takes, and v of shape (batch,
        task).
        """
        inner, v = x
        features = []
        for h, layer in zip(self.injection(inner), self.maps, strict=True):
            scale, shift = layer(v)[..., None, None].chunk(2, dim=-3)
            features.append((1.0 + scale) * h + shift)
        return tuple(features)


def _alternate(bias: Tensor) -> None:
    """Set `bias` to values of alternating sign, so that channels differ where an image
    is blank.
    """
    with torch.no_grad():
        bias.fill_(IMAGE_BIAS)[1::2].neg_()
