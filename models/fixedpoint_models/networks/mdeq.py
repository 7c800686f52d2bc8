"""Multiscale equilibrium models as the functions that an augmented system is made
of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.func import functional_call

from fixedpoint.checks import check_count
from fixedpoint_models.networks.cell import MDEQCell
from fixedpoint_models.networks.heads import ClassHead, ImageHead
from fixedpoint_models.networks.injections import FiLM, ImageInjection, LatentInjection
from fixedpoint_models.networks.layers import State, Tensor, check_channels, check_sides

Params = dict[str, Any]


class _MDEQ(torch.nn.Module):
    """A cell and a head, as functions of their parameters.

    Parameters
    ----------
    cell : MDEQCell
        The equilibrium map.
    readout : nn.Module
        What takes a state to an output.
    """

    def __init__(self, cell: MDEQCell, readout: torch.nn.Module) -> None:
        super().__init__()
        self.cell, self.readout = cell, readout

    def zero_state(self, *batch: int) -> State:
        """A state of zeros, of the parameters' dtype and on their device; where to
        start.

        Parameters
        ----------
        *batch : int
            The batch's axes.
        """
        return self.cell.zero_state(*batch)

    def f(self, z: State, x: Any, params: Params) -> State:
        """The equilibrium map, for :class:`fixedpoint_models.AugmentedDEQ`.

        Parameters
        ----------
        z : tuple of tensors
            The state, with any number of the batch's axes.
        x : tensor
            The input that is solved for.
        params : dict
            What :meth:`params` returns, or the like.
        """
        batch = z[0].shape[:-3]
        inputs = self._inputs(x, params, batch)
        image = functional_call(self.cell, _part(params, "cell."), (_merged(z), inputs))
        return tuple(leaf.reshape(*batch, *leaf.shape[1:]) for leaf in image)

    def head(self, z: State, params: Params) -> Tensor:
        """The output of a state.

        Parameters
        ----------
        z : tuple of tensors
            The state, with any number of the batch's axes.
        params : dict
            What :meth:`params` returns, or the like.
        """
        batch = z[0].shape[:-3]
        output: Tensor = functional_call(
            self.readout, _part(params, "readout."), (_merged(z),)
        )
        return output.reshape(*batch, *output.shape[1:])

    def _inputs(self, x: Any, params: Params, batch: torch.Size) -> Any:
        """What the cell takes beside the state, with one axis for the batch."""
        raise NotImplementedError


class MDEQDecoder(_MDEQ):
    """A latent code to an image, by a multiscale equilibrium.

    The code is the input x that an augmented system solves for, as in generative
    modelling and inverse problems.

    Parameters
    ----------
    latent : int
        Entries of a code.
    channels : sequence of int
        Of one to four branches.
    side : int
        Of the first branch.
    out_channels, out_side : int, optional
        Of the image; `out_side` is a multiple of `side`.
    groups, activation, expansion, gain, upsampling, weight_norm, fixed_lengths
        As for :class:`MDEQCell`.
    sigmoid : bool, optional
        Whether pixels lie in (0, 1).

    References
    ----------
    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", NeurIPS 2020,
    arXiv:2006.08656.

    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> from fixedpoint_models import AugmentedDEQ
    >>> from fixedpoint_models.networks import MDEQDecoder
    >>> decoder = MDEQDecoder(latent=5, channels=(8, 8), side=4, out_side=8)
    >>> def loss(z, x, y, params):
    ...     return ((decoder.head(z, params) - y) ** 2).mean((1, 2,
    ...     3)) + 0.01 * (x**2).sum(-1)
    >>> model = AugmentedDEQ(decoder.f, loss, step_size=0.1)
    >>> params, images = decoder.params(), torch.rand(3, 1, 8, 8)
    >>> sol = model.iterate(decoder.zero_state(3), torch.zeros(3, 5), params=params,
    ...                     y=images,
    ...                     max_steps=10, on_failure="return")
    >>> sol.value["x"].shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        latent: int,
        channels: Sequence[int],
        side: int,
        out_channels: int = 1,
        out_side: int = 64,
        *,
        groups: int = 4,
        activation: str = "relu",
        expansion: int = 1,
        gain: float = 0.15,
        upsampling: str = "nearest",
        weight_norm: bool = True,
        fixed_lengths: bool = False,
        sigmoid: bool = False,
    ) -> None:
        sides = check_sides(side, len(check_channels(channels)))
        cell = MDEQCell(
            channels,
            side,
            LatentInjection(latent, channels, sides),
            groups=groups,
            activation=activation,
            expansion=expansion,
            gain=gain,
            upsampling=upsampling,
            weight_norm=weight_norm,
            fixed_lengths=fixed_lengths,
        )
        head = ImageHead(
            channels,
            side,
            out_channels,
            out_side,
            activation=activation,
            sigmoid=sigmoid,
            weight_norm=weight_norm,
        )
        super().__init__(cell, head)

    def params(self) -> Params:
        """What ``f`` and ``head`` take: ``{"weights": the parameters by name}``."""
        return {"weights": dict(self.named_parameters())}

    def _inputs(self, x: Tensor, params: Params, batch: torch.Size) -> Tensor:
        del params, batch
        return x.reshape(-1, x.shape[-1])


class MDEQClassifier(_MDEQ):
    """An image to a score for each class, by a multiscale equilibrium.

    The input x that an augmented system solves for is a perturbation added to the
    image, as in adversarial attacks and training; or with `task` positive a vector that
    modulates the features of the image by :class:`FiLM`, as in meta-learning, where it
    is what is adapted.

    The image itself is part of the parameters: an augmented system hands its data y to
    the loss alone, and what f depends on besides z and x has to be passed to it, or the
    derivative with respect to it would be lost.

    Parameters
    ----------
    in_channels, side_in : int
        Of the image.
    channels : sequence of int
        Of one to four branches.
    classes : int
        How many.
    task : int, optional
        Entries of the task's vector, or zero for a perturbation.
    side : int, optional
        Of the first branch, a divisor of `side_in`; the same by default.
    groups : int, optional
        Of the norms; divides all channels and is less than each, since the average of a
        channel that is normalized by itself says nothing.
    activation, expansion, gain, upsampling, weight_norm, fixed_lengths
        As for :class:`MDEQCell`.
    grid : int, optional
        As for :class:`ClassHead`.

    References
    ----------
    Bai, Koltun and Kolter, "Multiscale deep equilibrium models", NeurIPS 2020,
    arXiv:2006.08656.

    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> from fixedpoint_models.networks import MDEQClassifier
    >>> model = MDEQClassifier(1, 8, channels=(8, 8), classes=10)
    >>> perturbation = torch.zeros(3, 1, 8, 8)
    >>> params = model.params(torch.rand(3, 1, 8, 8))
    >>> sol = fp.fixed_point(model.f, model.zero_state(3), (perturbation, params),
    ...                      batch_ndim=1, rtol=1e-4)
    >>> model.head(sol.value, params).shape
    torch.Size([3, 10])

    Two tasks of three images each. A sample is a task, its state that of all its
    images:

    >>> model = MDEQClassifier(1, 8, channels=(8, 8), classes=10, task=5)
    >>> params, v = model.params(torch.rand(2, 3, 1, 8, 8)), torch.zeros(2, 5)
    >>> sol = fp.fixed_point(model.f, model.zero_state(2, 3), (v, params), batch_ndim=1,
    ...                      rtol=1e-4)
    >>> sol.status.shape, model.head(sol.value, params).shape
    (torch.Size([2]), torch.Size([2, 3, 10]))
    """

    def __init__(
        self,
        in_channels: int,
        side_in: int,
        channels: Sequence[int],
        classes: int,
        task: int = 0,
        *,
        side: int | None = None,
        groups: int = 4,
        activation: str = "relu",
        expansion: int = 1,
        gain: float = 0.15,
        upsampling: str = "nearest",
        weight_norm: bool = True,
        fixed_lengths: bool = False,
        grid: int = 4,
    ) -> None:
        side = side_in if side is None else side
        check_count("task", task, 0)
        _check_classifier(side_in, side, groups, channels)
        injection: torch.nn.Module = ImageInjection(
            in_channels, channels, shrink=side_in // side, weight_norm=weight_norm
        )
        cell = MDEQCell(
            channels,
            side,
            FiLM(injection, task, channels) if task else injection,
            groups=groups,
            activation=activation,
            expansion=expansion,
            gain=gain,
            upsampling=upsampling,
            weight_norm=weight_norm,
            fixed_lengths=fixed_lengths,
        )
        super().__init__(cell, ClassHead(channels, side, classes, grid))
        self.task = task

    def params(self, image: Tensor) -> Params:
        """What ``f`` and ``head`` take.

        Parameters
        ----------
        image : tensor of shape (…, in_channels, side_in, side_in)
            What is classified, with the batch's axes of the state.

        Returns
        -------
        dict
            ``{"weights": the parameters by name, "image": image}``; the head needs no
            image.
        """
        return {"weights": dict(self.named_parameters()), "image": image}

    def _inputs(self, x: Tensor, params: Params, batch: torch.Size) -> Any:
        image = params["image"]
        if not self.task:
            return (image + x).reshape(-1, *image.shape[-3:])
        # A vector may be one for several images: what axes it lacks come after its own.
        own = x.shape[:-1]
        vector = x.reshape(*own, *(1,) * (len(batch) - len(own)), self.task)
        vector = vector.expand(*batch, self.task).reshape(-1, self.task)
        return image.reshape(-1, *image.shape[-3:]), vector


def _check_classifier(
    side_in: int, side: int, groups: int, channels: Sequence[int]
) -> None:
    check_count("side_in", side_in, 1)
    check_count("side", side, 1)
    if side_in % side:
        raise ValueError(
            f"side_in must be a multiple of the side {side}, got {side_in}"
        )
    if groups >= min(check_channels(channels)):
        raise ValueError(
            f"groups must be fewer than the channels {channels!r}, got {groups}"
        )


def _merged(z: State) -> State:
    """The state with one axis for the batch."""
    return tuple(leaf.reshape(-1, *leaf.shape[-3:]) for leaf in z)


def _part(params: Params, prefix: str) -> dict[str, Tensor]:
    """The weights of one submodule, by its own names."""
    return {
        name.removeprefix(prefix): weight
        for name, weight in params["weights"].items()
        if name.startswith(prefix)
    }
