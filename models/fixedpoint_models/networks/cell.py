"""The map whose fixed point is a multiscale equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fixedpoint.checks import check_count, check_positive
from fixedpoint_models.networks.layers import (
    State,
    Tensor,
    activation_of,
    check_channels,
    check_groups,
    check_sides,
    convolution,
    fix_lengths,
    group_norm,
)

# Gains at the start: of the last convolution of a residual block, and of all that a
# branch receives from each of the others. The drive and what a branch has itself are of
# size one.
RESIDUAL, FUSION = 0.05, 0.2


class Block(torch.nn.Module):
    """The residual block of a branch, norm(σ(z + norm(conv(σ(norm(conv z))) +
    injected))).

    Parameters
    ----------
    channels, inner : int
        Of the state, and between the two convolutions.
    groups : int
        Of the norms.
    activation : str
        σ.
    weight_norm : bool
        Whether the convolutions are weight-normalized.
    """

    def __init__(
        self, channels: int, inner: int, groups: int, activation: str, weight_norm: bool
    ) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.conv1 = convolution(channels, inner, 3, normalized=weight_norm)
        self.conv2 = convolution(
            inner, channels, 3, gain=RESIDUAL, normalized=weight_norm
        )
        self.norm1 = group_norm(groups, inner)
        self.norm2 = group_norm(groups, channels)
        self.norm3 = group_norm(groups, channels)

    def forward(self, z: Tensor, injected: Tensor) -> Tensor:
        """The block's output, of the shape of z."""
        y = self.conv2(self.activation(self.norm1(self.conv1(z))))
        output: Tensor = self.norm3(self.activation(z + self.norm2(y + injected)))
        return output


def resample(
    channels: Sequence[int],
    source: int,
    target: int,
    upsampling: str,
    weight_norm: bool,
) -> torch.nn.Module:
    """The map from branch `source` to branch `target`.

    Down it is a 3×3 convolution of stride two for each halving; up, a 1×1 convolution,
    made where the image is small, and an interpolation.
    """
    inputs, outputs = channels[source], channels[target]
    if source == target:
        return torch.nn.Identity()
    if source > target:
        first = convolution(inputs, outputs, 1, gain=FUSION, normalized=weight_norm)
        factor = 2 ** (source - target)
        return torch.nn.Sequential(
            first, torch.nn.Upsample(scale_factor=factor, mode=upsampling)
        )
    halvings = target - source
    widths = [inputs] * halvings + [outputs]
    gains = [1.0] * (halvings - 1) + [FUSION]
    return torch.nn.Sequential(
        *(
            convolution(
                width, next_width, 3, stride=2, gain=gain, normalized=weight_norm
            )
            for width, next_width, gain in zip(
                widths[:-1], widths[1:], gains, strict=True
            )
        )
    )


class Total(torch.nn.ModuleList):
    """What a branch receives: the sum of all branches, each through a module of its
    own.
    """

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """The sum."""
        terms = [part(output) for part, output in zip(self, outputs, strict=True)]
        total: Tensor = sum(terms[1:], start=terms[0])
        return total


class MDEQCell(torch.nn.Module):
    """One step of a multiscale equilibrium: a residual block per branch, then their
    fusion.

    The state is a tuple of maps, that of branch i of shape (batch, channels[i],
    side/2ⁱ, side/2ⁱ). Each branch passes a residual block, which the features of the
    input enter; then each receives the sum of all of them, brought to its resolution,
    through an activation and a norm. Norms are of groups of channels, within a sample:
    no sample sees another.

    Parameters
    ----------
    channels : sequence of int
        Of one to four branches, the highest resolution first.
    side : int
        Of the first branch; each of the others has half the side of the one before.
    injection : nn.Module
        What makes the features: :class:`LatentInjection`, :class:`ImageInjection`,
        :class:`FiLM` of either, or another module that returns one map for each branch.
    groups : int, optional
        Of the group norms; divides all channels.
    activation : {"relu", "softplus"}, optional
        Softplus where second derivatives matter.
    expansion : int, optional
        How many times the channels a block has between its convolutions.
    gain : float, optional
        The root mean square of a state's entries at first.
    upsampling : {"nearest", "bilinear"}, optional
        How a map is enlarged.
    weight_norm : bool, optional
        Whether the convolutions are weight-normalized. Torch has no forward-mode
        derivatives with respect to the parameters of such weights.
    fixed_lengths : bool, optional
        Whether the lengths of these filters and the gains of the norms, those of
        `injection` included, stay as they are at first. What bounds the state's share
        in each norm then holds in training, but for how filters are aligned.

    Notes
    -----
    Each group norm divides by the size of its input: what passes it contracts as far as
    something else contributes to that size. So at first the drive is of size one, the
    state of size `gain`, and what passes the two convolutions of a block a twentieth.
    With the default gain the spectral radius of ∂cell/∂z is then 0.3 to 0.55 at the
    equilibria of random latent codes and of zero, and 0.3 to 0.75 at those of random
    images, the larger the smaller the coarsest branch: Picard iteration converges. A
    blank image, which drives a channel equally everywhere, may come to 0.95, and beyond
    one where each channel is a group. Training may end all that within some tens of
    steps; `fixed_lengths` with :func:`fixedpoint_torch.jacobian_penalty` holds it.

    The block is that of the paper. Its fusion has further norms after each convolution
    and a further convolution at the end, and only the first branch is driven.

    References
    ----------
    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", NeurIPS 2020,
    arXiv:2006.08656.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> from fixedpoint_models.networks import ImageInjection, MDEQCell
    >>> cell = MDEQCell((8, 4), side=8, injection=ImageInjection(1, (8, 4)))
    >>> image = torch.rand(3, 1, 8, 8)
    >>> sol = fp.fixed_point(cell, cell.zero_state(3), (image,), batch_ndim=1,
    ...                      rtol=1e-4)
    >>> [tuple(leaf.shape) for leaf in sol.value]
    [(3, 8, 8, 8), (3, 4, 4, 4)]
    """

    def __init__(
        self,
        channels: Sequence[int],
        side: int,
        injection: torch.nn.Module,
        *,
        groups: int = 4,
        activation: str = "relu",
        expansion: int = 1,
        gain: float = 0.15,
        upsampling: str = "nearest",
        weight_norm: bool = True,
        fixed_lengths: bool = False,
    ) -> None:
        super().__init__()
        if fixed_lengths and not weight_norm:
            raise ValueError("fixed_lengths needs weight_norm, got weight_norm=False")
        channels = check_channels(channels)
        sides = check_sides(side, len(channels))
        check_groups(groups, channels, sides)
        check_count("expansion", expansion, 1)
        check_positive("gain", gain)
        if upsampling not in ("nearest", "bilinear"):
            raise ValueError(
                f"upsampling must be nearest or bilinear, got {upsampling!r}"
            )
        self.shapes = tuple((c, s, s) for c, s in zip(channels, sides, strict=True))
        self.activation = activation_of(activation)
        self.injection = injection
        self.blocks = torch.nn.ModuleList(
            Block(number, expansion * number, groups, activation, weight_norm)
            for number in channels
        )
        every = range(len(channels))
        self.fusion = torch.nn.ModuleList(
            Total(resample(channels, j, i, upsampling, weight_norm) for j in every)
            for i in every
        )
        self.norms = torch.nn.ModuleList(
            group_norm(groups, number, gain) for number in channels
        )
        if fixed_lengths:
            fix_lengths(self)

    def inject(self, x: Any) -> State:
        """The features of the input, the same at every step of a solve."""
        features: State = self.injection(x)
        return features

    def step(self, z: State, injected: State) -> State:
        """The next state, by the features of the input."""
        rows = zip(self.blocks, z, injected, strict=True)
        outputs = [block(leaf, features) for block, leaf, features in rows]
        ends = zip(self.norms, self.fusion, strict=True)
        return tuple(norm(self.activation(total(outputs))) for norm, total in ends)

    def forward(self, z: State, x: Any) -> State:
        """The next state, by the input."""
        return self.step(z, self.inject(x))

    def zero_state(self, *batch: int) -> State:
        """Zeros with the batch's axes, of the parameters' dtype and on their device."""
        like = self.norms[0].get_parameter("weight")
        return tuple(like.new_zeros(*batch, *shape) for shape in self.shapes)
