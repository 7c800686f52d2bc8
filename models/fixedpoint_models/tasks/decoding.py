"""Decoders of images, and codes inferred by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

import fixedpoint as fp
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.config import ConfigError
from fixedpoint_models.decoder import DenseDecoder, decode, equilibrium_map
from fixedpoint_models.networks import MDEQDecoder
from fixedpoint_models.principal import PrincipalImages
from fixedpoint_models.tasks.settings import Network, Solve
from fixedpoint_models.tracked import TrackedNewton

Tensor = torch.Tensor


class DenseImages(torch.nn.Module):
    """A :class:`DenseDecoder` for images of any shape, with the methods of
    :class:`MDEQDecoder`.

    Parameters
    ----------
    shape : tuple of int
        Of an image.
    width, latent : int
        As for the decoder.
    bound : float
        As for the decoder.
    seed : int
        Of the initial weights.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.tasks.decoding import DenseImages
    >>> decoder = DenseImages((1, 8, 8), width=32, latent=4, bound=0.9, seed=0)
    >>> decoder.head(decoder.zero_state(3), decoder.params()).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self, shape: tuple[int, ...], width: int, latent: int, bound: float, seed: int
    ) -> None:
        super().__init__()
        self.shape = shape
        self.decoder = DenseDecoder(
            math.prod(shape), width, latent, bound, seed=seed
        ).float()

    def params(self) -> Any:
        """What the maps take."""
        weights = self.decoder.params()
        return {"weights": {k: v for k, v in weights.items() if isinstance(v, Tensor)}}

    def zero_state(self, *batch: int) -> Tensor:
        """A state of zeros."""
        return self.decoder.b.new_zeros(*batch, self.decoder.width)

    def f(self, z: Tensor, x: Tensor, params: Any) -> Tensor:
        """The equilibrium map."""
        image: Tensor = equilibrium_map(z, x, params["weights"])
        return image

    def head(self, z: Tensor, params: Any) -> Tensor:
        """The image of a state."""
        image: Tensor = decode(z, params["weights"]).unflatten(-1, self.shape)
        return image


def squared_error(decoded: Any, x: Any, y: Any, params: Any) -> Any:
    """s‖D(z) − image‖² + λ‖x‖² per sample; s = 64/pixels, as in :func:`masked_loss`."""
    misfit = ((decoded - y) ** 2).flatten(1).sum(-1)
    return params["scale"] * misfit + (params["prior"] * x**2).sum(-1)


class Decoder:
    """A decoder, its parameters with or without derivatives, and its equilibria.

    Parameters
    ----------
    network : Network
        Its settings.
    shape : tuple of int
        Of an image: channels, height, width.
    seed : int
        Of the weights of a dense one; those of the other are drawn from Torch's
        generator.
    device : torch.device
        Where it is.
    """

    def __init__(
        self, network: Network, shape: tuple[int, ...], seed: int, device: torch.device
    ) -> None:
        self.latent, self.shape, self.device = network.latent, shape, device
        self.module: Any = _module(network, shape, seed).to(device)

    def params(self, prior: float) -> Any:
        """What the maps and the loss take."""
        module = self.module
        is_scaled = isinstance(module, PrincipalImages)
        return {
            **module.params(),
            "prior": prior * module.precision() if is_scaled else prior,
            "scale": 64.0 / math.prod(self.shape),
        }

    def frozen(self, prior: float) -> Any:
        """The same without derivatives."""
        params = self.params(prior)
        weights = {name: weight.detach() for name, weight in params["weights"].items()}
        return {**params, "weights": weights}

    @property
    def output(self) -> Callable[..., Any]:
        """What training compares: an image, or its coefficients in a basis."""
        module = self.module
        output: Callable[..., Any] = module.head
        return module.read if isinstance(module, PrincipalImages) else output

    def compared(self, images: Tensor) -> Tensor:
        """What the output of images is compared with."""
        module = self.module
        return (
            module.measured(images) if isinstance(module, PrincipalImages) else images
        )

    def start(self, number: int) -> tuple[Any, Tensor]:
        """States and codes of zero."""
        zeros = torch.zeros(number, self.latent, device=self.device)
        return self.module.zero_state(number), zeros

    def first(self, y: Tensor) -> tuple[Any, Tensor]:
        """States and codes to start from, for what the output is compared with."""
        z, x = self.start(len(y))
        module = self.module
        return z, module.encode(y) if isinstance(module, PrincipalImages) else x

    def equilibrium(self, x: Tensor, params: Any) -> fp.Solution[Any]:
        """The states of codes, from a cold start."""
        with torch.no_grad():
            return fp.fixed_point(
                self.module.f,
                self.start(len(x))[0],
                (x, params),
                batch_ndim=1,
                rtol=1e-5,
                atol=1e-9,
                test="residual",
                on_failure="return",
            )

    def images(self, x: Tensor, params: Any) -> Tensor:
        """The images at the equilibria of codes, their values cut to those of
        images.
        """
        decoded: Tensor = self.module.head(self.equilibrium(x, params).value, params)
        return decoded.detach().clamp(0.0, 1.0)


def _module(network: Network, shape: tuple[int, ...], seed: int) -> torch.nn.Module:
    if network.kind == "dense":
        return DenseImages(shape, network.width, network.latent, network.bound, seed)
    if network.kind == "principal":
        sizes = network.width, network.latent, network.basis
        return PrincipalImages(shape, *sizes, network.bound, seed)
    return _multiscale(network, shape)


def _multiscale(network: Network, shape: tuple[int, ...]) -> MDEQDecoder:
    """A multiscale decoder, its last layer scaled."""
    if shape[1] != shape[2] or shape[1] % network.side:
        raise ConfigError(
            f"network.side: expected a divisor of the images' side {shape[1]}, got "
            f"{network.side}"
        )
    try:
        decoder = MDEQDecoder(
            network.latent,
            network.channels,
            network.side,
            *shape[:2],
            groups=network.groups,
            activation=network.activation,
            gain=network.gain,
            weight_norm=network.weight_norm,
            sigmoid=network.sigmoid,
        )
    except ValueError as error:
        raise ConfigError(f"network: {error}") from None
    # A weight-normalized filter has a length of its own, which comes first of two
    # tensors.
    last: Any = decoder.readout.conv2
    weight = (
        last.parametrizations.weight.original0 if network.weight_norm else last.weight
    )
    weight.data.mul_(network.head_gain)
    return decoder


class Inferred(NamedTuple):
    """What a solve found: ``{"z", "mu", "x"}``, and per sample whether it converged,
    and steps.
    """

    value: dict[str, Any]
    converged: Tensor
    steps: Tensor


def infer(
    model: AugmentedDEQ,
    solve: Solve,
    start: dict[str, Any],
    *,
    params: Any,
    y: Any,
    steps: int,
    rtol: float,
) -> Inferred:
    """Solve the augmented system as the settings say.

    Parameters
    ----------
    model : AugmentedDEQ
        The problem.
    solve : Solve
        The settings, but for the next two.
    start : dict
        z, mu and x; Newton's method takes no mu.
    params, y
        As for :meth:`AugmentedDEQ.iterate`.
    steps : int
        At most.
    rtol : float
        Of every block.
    """
    # A block of zeros, as that of codes without a gradient, converges by atol alone.
    control: dict[str, Any] = {"rtol": rtol, "atol": 1e-8, "on_failure": "return"}
    control |= {"params": params, "y": y}
    with torch.no_grad():
        if solve.method != "newton":
            return _by_published_iteration(model, solve, start, steps, control)
        method = TrackedNewton(blocks=solve.blocks, damping=solve.damping)
        control |= {"max_steps": steps, "method": method}
        found = model.iterate(start["z"], start["x"], **control)
    return Inferred(found.value, found.converged, found.steps)


def _by_published_iteration(
    model: AugmentedDEQ,
    solve: Solve,
    value: dict[str, Any],
    steps: int,
    control: dict[str, Any],
) -> Inferred:
    """The published iteration, with a smaller step after a part of the steps."""
    first, taken = round(solve.drop * steps), torch.zeros_like(value["x"][:, 0])
    parts = ((solve.step_size, first), (solve.final_step_size, steps - first))
    control |= {"solver": fp.Anderson(memory=solve.memory)}
    for size, number in (part for part in parts if part[1]):
        control |= {"mu0": value["mu"], "max_steps": number}
        sized = replace(model, step_size=size)
        found = sized.iterate(value["z"], value["x"], **control)
        value, taken = found.value, taken + found.steps
    return Inferred(value, found.converged, taken)
