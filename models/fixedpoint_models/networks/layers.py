"""Pieces that the multiscale networks share, and checks of their settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from fixedpoint.checks import check_count

Tensor = torch.Tensor
State = tuple[Tensor, ...]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "softplus": functional.softplus,
}

# The derivative of a group norm at a constant is 1/√ε: solves start at one, zero, and
# an image without contrast makes others. This bounds it by 10; Torch's own default,
# 1e-5, allows 316.
EPSILON = 1e-2


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The activation called `name`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def convolution(
    inputs: int,
    outputs: int,
    size: int,
    *,
    stride: int = 1,
    gain: float = 1.0,
    bias: bool = False,
    normalized: bool = True,
) -> torch.nn.Conv2d:
    """A convolution whose outputs have about `gain` times the size of its inputs.

    Parameters
    ----------
    inputs, outputs, size, stride
        As for ``torch.nn.Conv2d``; the padding keeps the side, but for the stride.
    gain : float, optional
        Root mean square of an output for independent inputs of unit variance.
    bias : bool, optional
        Whether there is one, zero at first.
    normalized : bool, optional
        Whether length and direction of each filter are parameters of their own.
    """
    layer = torch.nn.Conv2d(
        inputs, outputs, size, stride=stride, padding=size // 2, bias=bias
    )
    torch.nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs * size**2))
    if layer.bias is not None:
        torch.nn.init.zeros_(layer.bias)
    return weight_norm(layer) if normalized else layer


def fix_lengths(module: torch.nn.Module) -> None:
    """Leave the lengths of weight-normalized filters and the gains of group norms as
    they are: directions and shifts are trained alone.
    """
    for name, parameter in module.named_parameters():
        if name.endswith("parametrizations.weight.original0"):
            parameter.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.weight.requires_grad_(False)


def group_norm(groups: int, channels: int, gain: float = 1.0) -> torch.nn.GroupNorm:
    """A group norm whose output has the root mean square `gain` at first."""
    norm = torch.nn.GroupNorm(groups, channels, eps=EPSILON)
    torch.nn.init.constant_(norm.weight, gain)
    return norm


def check_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """The channels of one to four branches; raise ValueError if they are something
    else.
    """
    if not 1 <= len(channels) <= 4:
        raise ValueError(f"channels must be those of 1 to 4 branches, got {channels!r}")
    for number in channels:
        check_count("channels", number, 1)
    return tuple(channels)


def check_sides(side: int, branches: int) -> tuple[int, ...]:
    """The sides of all branches, each half of the one before; raise ValueError if one
    is odd.
    """
    check_count("side", side, 1)
    if side % 2 ** (branches - 1):
        raise ValueError(
            f"side must be a multiple of {2 ** (branches - 1)} for {branches} "
            f"branches, got {side}"
        )
    return tuple(side >> i for i in range(branches))


def check_groups(groups: int, channels: Sequence[int], sides: Sequence[int]) -> None:
    """Raise ValueError unless the norms' groups divide the channels and hold several
    numbers.
    """
    check_count("groups", groups, 1)
    for number, side in zip(channels, sides, strict=True):
        if number % groups:
            raise ValueError(
                f"groups must divide all channels, got {groups} and {tuple(channels)}"
            )
        if number * side**2 == groups:
            raise ValueError(
                f"groups must be fewer than {groups}: at side {side} each would hold "
                "one number, and its norm be zero"
            )
