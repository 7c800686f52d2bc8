"""Generative modeling: an equilibrium decoder, trained while its latent codes are
optimized.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from skimage.metrics import structural_similarity
from sklearn.mixture import GaussianMixture

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.operators.base import leafwise
from fixedpoint.regularization import jacobian_penalty
from fixedpoint_models import data as sets
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.config import ConfigError, setting
from fixedpoint_models.data import DataError
from fixedpoint_models.decoder import DenseDecoder, decode, equilibrium_map
from fixedpoint_models.networks import MDEQDecoder
from fixedpoint_models.plots import draw_recovered
from fixedpoint_models.principal import PrincipalImages
from fixedpoint_models.tasks.base import LOOSE, Experiment
from fixedpoint_models.tracked import TrackedNewton
from fixedpoint_models.training import fingerprint

Tensor = torch.Tensor
Loss = Callable[[Any, Any, Any, Any], Any]
SHOWN = 10
ENCODED = 1e-2
"""The relative tolerance of the equilibria, and adjoints, of codes that are known."""
KKT_RTOL = 1e-4
"""The part of each block that its residual has to fall to on held-out images."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images.

    Parameters
    ----------
    name : {"digits", "photographs", "mnist", "cifar10", "celeba"}
        The set.
    folder : str, optional
        Where the files of the last three are; or photographs of any size, in place of
        those that come along.
    test_folder : str, optional
        Photographs to test with; without it a tenth of those in `folder`.
    train, test : str
        Of MNIST and CIFAR-10, what to read: as "train" and "test[:2000]".
    size : int
        The side of the patches of photographs, or of faces.
    stride : int, optional
        From one patch of photographs to the next.
    limit, held_out : int, optional
        How many to train on, and to test with; all by default. Digits and faces, which
        come in one piece, are divided: a quarter of the digits and a tenth of the faces
        are for testing.
    """

    name: Literal["digits", "photographs", "mnist", "cifar10", "celeba"]
    folder: str | None = None
    test_folder: str | None = None
    train: str = "train"
    test: str = "test"
    size: int = setting(64, least=8)
    stride: int | None = setting(None, least=1)
    limit: int | None = setting(None, least=1)
    held_out: int | None = setting(None, least=1)

    def __post_init__(self) -> None:
        if self.folder is None and self.name in ("mnist", "cifar10", "celeba"):
            raise ValueError(f"folder: missing, {self.name} is read from files")
        if self.test_folder and not (self.folder and self.name == "photographs"):
            raise ValueError("test_folder: expected with a folder of photographs")


@dataclass(frozen=True, kw_only=True)
class Network:
    """The decoder.

    Parameters
    ----------
    kind : {"dense", "principal", "mdeq"}
        :class:`DenseDecoder`, :class:`PrincipalImages` or :class:`MDEQDecoder`.
    latent : int
        Entries of a code.
    width, bound
        Of the dense decoders: entries of their state, and the bound of ‖W‖₂.
    basis : int
        Of the second: the principal axes that its images are made of.
    head_gain : float
        Of the third: what the weights of its last convolution are multiplied by at
        first. Where images move little with the state, codes are driven far out to
        explain anything, to where the state no longer follows them, as its norms allow
        it a certain size only.
    channels, side, groups, activation, gain, weight_norm, sigmoid
        Of the third. The activation is "softplus" where Newton's method solves: with
        "relu" the derivative jumps from step to step, and solves have been seen to
        fail, or to succeed at the code zero because no unit of the head was active.
    """

    kind: Literal["dense", "principal", "mdeq"]
    latent: int = setting(16, least=1)
    width: int = setting(128, least=1)
    bound: float = setting(0.9, above=0.0, below=1.0)
    basis: int = setting(512, least=1)
    channels: tuple[int, ...] = setting((16, 16), least=1)
    side: int = setting(16, least=1)
    groups: int = setting(4, least=1)
    activation: Literal["relu", "softplus"] = "softplus"
    gain: float = setting(0.15, above=0.0)
    weight_norm: bool = True
    sigmoid: bool = False
    head_gain: float = setting(1.0, above=0.0)


@dataclass(frozen=True, kw_only=True)
class Solve:
    """How the augmented system is solved for a batch.

    Parameters
    ----------
    method : {"newton", "recipe"}
        :class:`TrackedNewton`; or the published recipe, Anderson's method on the joint
        map.
    steps : int
        At most, in training.
    rtol : float
        Of every block, in training.
    blocks : int
        Of Newton's method.
    damping : float
        Of Newton's method at first. With more it is less daring far from a solution.
    memory : int
        Of Anderson's.
    step_size, final_step_size : float
        The step α of the recipe in x, and that of its second part.
    drop : float
        Where the second part begins, in parts of the steps.
    state_damping, adjoint_damping : float
        Of the recipe.
    warm : {"none", "code", "all"}
        What the recipe begins with: zeros, or what it found an epoch ago of x alone, or
        of z and μ as well, which takes memory. Newton's method is fastest from zeros.
    """

    method: Literal["newton", "recipe"] = "newton"
    steps: int = setting(20, least=1)
    rtol: float = setting(1e-3, above=0.0)
    blocks: int = setting(4, least=1)
    damping: float = setting(0.1, above=0.0)
    memory: int = setting(40, least=1)
    step_size: float = setting(0.01, above=0.0)
    final_step_size: float = setting(0.003, above=0.0)
    drop: float = setting(0.5, least=0.0, most=1.0)
    state_damping: float = setting(0.8, above=0.0, most=1.0)
    adjoint_damping: float = setting(0.6, above=0.0, most=1.0)
    warm: Literal["none", "code", "all"] = "none"

    def __post_init__(self) -> None:
        if self.method == "newton" and self.warm != "none":
            raise ValueError("warm: expected none with the method newton")


@dataclass(frozen=True, kw_only=True)
class Regularization:
    """The penalty on the Jacobian ∂f/∂z.

    Parameters
    ----------
    weight : float
        Of the estimate of ‖J‖²/d.
    where : {"end", "trajectory"}
        At the solution; or at the state after a random number of steps, for which the
        solve is repeated up to there.
    probes : int
        Of the estimate.
    """

    weight: float = setting(0.0, least=0.0)
    where: Literal["end", "trajectory"] = "end"
    probes: int = setting(2, least=1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the task.

    Parameters
    ----------
    images, network, solve, jacobian
        The parts.
    prior : float
        The weight of ‖x‖² in the loss; with principal components, of that of x in parts
        of its standard deviations.
    codes : {"solved", "encoded"}
        Whether codes are solved for in training; or are those of the principal
        components, which a step can do with an equilibrium and its adjoint alone. Codes
        of held-out images are always solved for.
    batch_size : int
        Images of a step.
    test_steps : int
        Steps at most for held-out images.
    components : int
        Of the mixture that new codes are drawn from.
    seed : int
        Of everything random.
    """

    images: Images
    network: Network
    solve: Solve = field(default_factory=Solve)
    jacobian: Regularization = field(default_factory=Regularization)
    prior: float = setting(0.03, least=0.0)
    codes: Literal["solved", "encoded"] = "solved"
    batch_size: int = setting(64, least=1)
    test_steps: int = setting(200, least=1)
    components: int = setting(8, least=1)
    seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        if self.codes == "encoded" and self.network.kind != "principal":
            raise ValueError("codes: encoded needs a network of the kind principal")


class Batch(NamedTuple):
    """Images, or their coefficients in a basis; their numbers among all, and the
    batch's number among all of training.
    """

    images: Tensor
    rows: Tensor
    number: Tensor


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
    >>> from fixedpoint_models.tasks.generative import DenseImages
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


def load(images: Images, seed: int) -> tuple[Tensor, Tensor]:
    """Images to train on and to test with, of shape (number, channels, height, width).

    Parameters
    ----------
    images : Images
        Which.
    seed : int
        Of their order.

    Raises
    ------
    DataError
        If they cannot be read.
    """
    train, test = _arrays(images, seed)
    pair = (torch.as_tensor(np.asarray(part, np.float32)) for part in (train, test))
    train, test = (part if part.ndim == 4 else part[:, None] for part in pair)
    train, test = train[: images.limit], test[: images.held_out]
    if min(len(train), len(test)) == 0:
        raise DataError(
            f"{images.name}: there are {len(train)} images to train on, {len(test)} "
            "to test with"
        )
    return train, test


def _arrays(images: Images, seed: int) -> tuple[Any, Any]:
    folder = str(images.folder)
    if images.name == "photographs" and images.folder:
        return _cut(images, seed)
    if images.name == "photographs":
        return sets.photographs(images.size, images.stride, seed=seed)
    if images.name in ("mnist", "cifar10"):
        read: Any = sets.mnist if images.name == "mnist" else sets.cifar10
        return read(folder, images.train)[0], read(folder, images.test)[0]
    if images.name == "celeba":
        asked = (images.limit, images.held_out)
        faces = sets.celeba(folder, images.size, None if None in asked else sum(asked))  # type: ignore[arg-type]
        return _divided(faces, 0.1, images.held_out, seed)
    return _divided(sets.digits(), 0.25, images.held_out, seed)


def _cut(images: Images, seed: int) -> tuple[Any, Any]:
    """Patches of the photographs of a folder, in random order."""
    train = sets.gray_images(str(images.folder))
    if images.test_folder:
        test = sets.gray_images(images.test_folder)
    else:
        number = max(1, len(train) // 10)
        train, test = train[number:], train[:number]
    generator = np.random.default_rng(seed)
    cut, kept = (
        generator.permutation(sets.patches_of(part, images.size, images.stride))
        for part in (train, test)
    )
    return cut, kept


def _divided(
    images: Any, part: float, held_out: int | None, seed: int
) -> tuple[Any, Any]:
    """All but some, and those, in random order."""
    number = min(held_out or round(part * len(images)), len(images) - 1)
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order[number:]], images[order[:number]]


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
            shape[0],
            shape[1],
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
    control: dict[str, Any] = {
        "params": params,
        "y": y,
        "rtol": rtol,
        "on_failure": "return",
    }
    # A block of zeros, as that of codes without a gradient, converges by this alone.
    control["atol"] = 1e-8
    z, mu, x = (start[name] for name in ("z", "mu", "x"))
    with torch.no_grad():
        if solve.method == "newton":
            method = TrackedNewton(blocks=solve.blocks, damping=solve.damping)
            found = model.iterate(z, x, max_steps=steps, method=method, **control)
            return Inferred(found.value, found.converged, found.steps)
        first = round(solve.drop * steps)
        value, taken = {"z": z, "mu": mu, "x": x}, torch.zeros(len(x), device=x.device)
        parts = ((solve.step_size, first), (solve.final_step_size, steps - first))
        for size, number in (part for part in parts if part[1]):
            found = replace(model, step_size=size).iterate(
                value["z"],
                value["x"],
                mu0=value["mu"],
                max_steps=number,
                solver=fp.Anderson(memory=solve.memory),
                **control,
            )
            value, taken = found.value, taken + found.steps
    return Inferred(value, found.converged, taken)


def mean_of_known(values: Any) -> float:
    """The mean of the entries of an array that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def quality(
    decoded: Tensor, images: Tensor, masks: Tensor | None = None
) -> dict[str, list[float]]:
    """Mean squared error, PSNR and SSIM of each image.

    Parameters
    ----------
    decoded, images : tensor of shape (number, channels, height, width)
        Values from 0 to 1.
    masks : tensor of shape (number, 1, height, width), optional
        Zero at the pixels that count; all of them by default.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.tasks.generative import quality
    >>> image = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    >>> {name: round(value, 3) for name,
    ...  (value,) in quality(image, 0.9 * image).items()}
    {'mse': 0.003, 'psnr': 24.737, 'ssim': 0.989}
    """
    masks = torch.zeros_like(images[:, :1]) if masks is None else masks
    counts = (masks == 0.0).expand_as(images).cpu().numpy()
    arrays = (tensor.cpu().double().numpy() for tensor in (decoded, images))
    triples = list(zip(*arrays, counts, strict=True))
    errors = np.array([((a - b) ** 2)[count].mean() for a, b, count in triples])
    return {
        "mse": errors.tolist(),
        "psnr": (-10.0 * np.log10(np.maximum(errors, 1e-12))).tolist(),
        "ssim": [_similarity(*triple) for triple in triples],
    }


def _similarity(a: Any, b: Any, counts: Any) -> float:
    """The mean of the structural similarity of windows about the pixels that count."""
    similarity: Callable[..., Any] = structural_similarity
    mean, maps = similarity(a, b, data_range=1.0, channel_axis=0, full=True)
    # The mean leaves the margin out, where windows do not fit.
    return float(mean if counts.all() else maps[counts].mean())


def shown(images: Tensor) -> Any:
    """Images as Matplotlib takes them: gray without, colors with a last axis."""
    arrays = images.detach().cpu().numpy()
    return arrays[:, 0] if arrays.shape[1] == 1 else np.moveaxis(arrays, 1, -1)


class Generative(Experiment):
    """A decoder whose codes are optimized along with its equilibria and their adjoints.

    Every step solves the augmented system for a batch, for states, adjoints and codes,
    and moves the parameters along the gradient that the envelope theorem gives of what
    it found.

    Parameters
    ----------
    settings : Settings
        The settings.
    device : torch.device
        The device.

    References
    ----------
    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236.
    """

    mixed = True

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        train, test = load(settings.images, settings.seed)
        self.held_out, self.fingerprint = test.to(device), fingerprint(train)
        self.decoder = Decoder(
            settings.network, tuple(train.shape[1:]), settings.seed, device
        )
        self.module: Any = self.decoder.module
        if isinstance(self.module, PrincipalImages):
            _fit(self.module, train)
        self.images = self.decoder.compared(train.to(device))
        if settings.network.kind == "mdeq" and not settings.network.sigmoid:
            torch.nn.init.constant_(self.module.readout.conv2.bias, float(train.mean()))
        self.model = self.posed(squared_error, self.decoder.output)
        z, x = self.decoder.start(len(train))
        kept = {"z": z, "mu": z, "x": x} if settings.solve.warm == "all" else {"x": x}
        self.stored = leafwise(torch.clone, kept)
        self.written = torch.zeros(len(train), device=device)

    def posed(self, loss: Loss, output: Callable[..., Any]) -> AugmentedDEQ:
        """The augmented system of this decoder and a loss of an output."""
        solve = self.settings.solve
        return AugmentedDEQ(
            self.network(self.module.f),
            loss,
            self.network(output),
            state_damping=solve.state_damping,
            adjoint_damping=solve.adjoint_damping,
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        """All images in random order."""
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, epoch))
        order = torch.randperm(len(self.images), generator=generator)
        parts = torch.split(order, self.settings.batch_size)
        for number, rows in enumerate(parts, epoch * len(parts)):
            yield Batch(self.images[rows], rows.to(self.device), torch.tensor(number))

    def step(self, batch: Batch) -> dict[str, float]:
        """The joint solve, and the gradient of the Lagrangian at what it found.

        The gradient is that of solutions; at fixed codes, it is right if states and
        adjoints are. Where they are not, to a tenth of their size, or where the
        Lagrangian is more than the loss at the code zero, which is always to be had, or
        less than nothing, the solve has failed, and the sample is `left_out`. In the
        mean loss it counts with the loss at zero.
        """
        settings = self.settings
        if settings.codes == "encoded":
            return self._encoded_step(batch)
        params = self.decoder.params(settings.prior)
        found = self._infer(batch, settings.solve.steps)
        sound, losses = self._judged(batch, found)
        total, metrics = self._surrogate(batch, found, sound, params)
        if total is not None:
            torch.autograd.backward(total)
        # What failed is a bad start for the next epoch.
        value = leafwise(lambda leaf: leaf[sound], found.value)
        self._store(batch.rows[sound], value)
        shares = {
            "converged": found.converged,
            "steps": found.steps,
            "left_out": ~sound,
        }
        means = {name: float(values.double().mean()) for name, values in shares.items()}
        return {"loss": float(losses.mean()), **metrics, **means}

    def _encoded_step(self, batch: Batch) -> dict[str, float]:
        """The gradient of the loss at the codes of the principal components."""
        params = self.decoder.params(self.settings.prior)
        z, x = self.decoder.first(batch.images)
        found = fp.fixed_point(
            self.model.f,
            z,
            (x, params),
            solver=fp.Anderson(),
            batch_ndim=1,
            rtol=ENCODED,
            test="residual",
            adjoint=fp.ImplicitAdjoint(rtol=ENCODED, on_failure="return"),
            on_failure="return",
        )
        output = self.decoder.output(found.value, params)
        loss = squared_error(output, x, batch.images, params).mean()
        torch.autograd.backward(loss)
        self._store(batch.rows, {"x": x})
        failed = 1.0 - float(found.converged.double().mean())
        return {"loss": float(loss.detach()), "failed": failed}

    def _judged(self, batch: Batch, found: Inferred) -> tuple[Tensor, Tensor]:
        """Which samples are solved well enough, and what they, or else the code zero,
        cost.
        """
        params, images = self.decoder.frozen(self.settings.prior), batch.images
        zero = self.decoder.start(1)[1]
        with torch.no_grad():
            state = self.decoder.equilibrium(zero, params).value
            most = self.model.problem.loss_at(state, zero, images, params)
            reached = self.model.lagrangian(**found.value, params=params, y=images)
            kkt = self.model.kkt(**found.value, params=params, y=images)
        sound = (reached >= 0.0) & (reached <= most)
        for name in ("z", "mu"):
            sound &= kkt[name] <= LOOSE * _norm(found.value[name])
        return sound, torch.where(sound, reached, most)

    def _surrogate(
        self, batch: Batch, found: Inferred, sound: Tensor, params: Any
    ) -> tuple[Tensor | None, dict[str, float]]:
        """What is differentiated, the mean over all samples, and the penalty that it
        contains.
        """
        weight = self.settings.jacobian.weight
        if not sound.any():
            return None, {"jacobian": 0.0} if weight else {}
        part = Batch(batch.images[sound], batch.rows[sound], batch.number)
        value = leafwise(lambda leaf: leaf[sound], found.value)
        loss = self.model.lagrangian(**value, params=params, y=part.images)
        if not weight:
            return loss.sum() / len(sound), {}
        penalty = self._penalty(part, value, params)
        total = (loss + weight * penalty).sum() / len(sound)
        return total, {"jacobian": float(penalty.detach().sum()) / len(sound)}

    def _infer(self, batch: Batch, steps: int) -> Inferred:
        solve = self.settings.solve
        z, x = self.decoder.first(batch.images)
        start = {"z": z, "mu": z, "x": x}
        if solve.warm != "none":
            start.update(leafwise(lambda leaf: leaf[batch.rows], self.stored))
        params = self.decoder.frozen(self.settings.prior)
        return infer(
            self.model,
            solve,
            start,
            params=params,
            y=batch.images,
            steps=steps,
            rtol=solve.rtol,
        )

    def _store(self, rows: Tensor, value: dict[str, Any]) -> None:
        found = {name: value[name] for name in self.stored}
        pairs = zip(tree.flatten(self.stored)[0], tree.flatten(found)[0], strict=True)
        for stored, leaf in pairs:
            stored[rows] = leaf
        self.written[rows] = 1.0

    def _penalty(self, batch: Batch, value: dict[str, Any], params: Any) -> Tensor:
        """An estimate of ‖J‖²/d for each sample, at the solution or on the way
        there.
        """
        jacobian, number = self.settings.jacobian, int(batch.number)
        if jacobian.where == "trajectory":
            generator = np.random.default_rng((self.settings.seed, number))
            steps = int(generator.integers(1, self.settings.solve.steps + 1))
            value = self._infer(batch, steps).value
        probes = [
            self._probe(value["z"], batch, probe) for probe in range(jacobian.probes)
        ]
        args = (value["x"], params)
        estimates: Tensor = jacobian_penalty(self.model.f, value["z"], args, probes, 1)
        return estimates

    def _probe(self, z: Any, batch: Batch, probe: int) -> Any:
        """Normal numbers, for each sample its own, whichever process it is with."""
        leaves, structure = tree.flatten(z)
        generator = torch.Generator()
        drawn: list[list[Tensor]] = []
        for row in batch.rows.tolist():
            generator.manual_seed(
                _seed(self.settings.seed, int(batch.number), row, probe)
            )
            drawn.append(
                [torch.randn(leaf.shape[1:], generator=generator) for leaf in leaves]
            )
        columns = (torch.stack(column) for column in zip(*drawn, strict=True))
        return structure.rebuild([column.to(self.device) for column in columns])

    def evaluate(self) -> dict[str, float]:
        """How well the codes of held-out images are found, and how good the decoded
        images are.

        `objective` is the loss of the codes found, with equilibria solved for afresh;
        `mse` is the mean squared error of the images decoded from them, `psnr` the same
        as a signal-to-noise ratio in dB, and `ssim` their structural similarity, 1 for
        equal images. `kkt_fraction` is the share of samples whose residuals fell to
        1e-4 in each block within `test_steps`, after `steps` on average; `failed` is
        the share without an equilibrium. `radius_median` and `radius_most` are spectral
        radii of the Jacobian: near 1, equilibria are hard to find.
        """
        rows = [
            self._evaluated(part)
            for part in torch.split(self.held_out, self.settings.batch_size)
        ]
        merged = {
            k: np.array(list(itertools.chain(*(row[k] for row in rows))))
            for k in rows[0]
        }
        radii = merged.pop("radius")
        failed = float(np.isnan(merged["objective"]).mean())
        means = {name: mean_of_known(values) for name, values in merged.items()}
        return {
            **means,
            "failed": failed,
            "radius_median": float(np.median(radii)),
            "radius_most": float(np.max(radii)),
        }

    def _evaluated(self, images: Tensor) -> dict[str, list[float]]:
        params = self.decoder.frozen(self.settings.prior)
        found = self.reconstruct(images)
        x = found.value["x"]
        z0 = self.decoder.start(len(images))[0]
        y = self.decoder.compared(images)
        objective = self.model.objective(z0, x, params=params, y=y)
        figures = quality(self.decoder.images(x, params), images)
        return {
            "objective": objective.tolist(),
            **figures,
            "kkt_fraction": self._settled(found, images, params).double().tolist(),
            "steps": found.steps.double().tolist(),
            "radius": self._radii(x, params).tolist(),
        }

    def _settled(self, found: Inferred, images: Tensor, params: Any) -> Tensor:
        """The samples whose residuals are small parts of their blocks."""
        y = self.decoder.compared(images)
        kkt = self.model.kkt(**found.value, params=params, y=y)
        small = [kkt[k] <= KKT_RTOL * _norm(found.value[k]) for k in kkt]
        return torch.stack(small).all(dim=0)

    def reconstruct(self, images: Tensor) -> Inferred:
        """The codes of images, from a cold start."""
        solve = replace(self.settings.solve, warm="none")
        y = self.decoder.compared(images)
        z, x = self.decoder.first(y)
        return infer(
            self.model,
            solve,
            {"z": z, "mu": z, "x": x},
            y=y,
            rtol=KKT_RTOL,
            params=self.decoder.frozen(self.settings.prior),
            steps=self.settings.test_steps,
        )

    def _radii(self, x: Tensor, params: Any) -> Tensor:
        """The spectral radius of ∂f/∂z at the equilibrium of each code."""
        solution = self.decoder.equilibrium(x, params)
        generator = torch.Generator().manual_seed(self.settings.seed)

        def normal(leaf: Tensor) -> Tensor:
            return torch.randn(leaf.shape, generator=generator).to(self.device)

        with torch.no_grad():
            start = leafwise(normal, solution.value)
            radii: Tensor = fp.spectral_radius(
                solution.linearize(), start, steps=20, batch_ndim=1
            )
        return radii

    def draw(self, folder: Path) -> list[Path]:
        """New images, at the equilibria of codes from a Gaussian mixture; and held-out
        ones.
        """
        params = self.decoder.frozen(self.settings.prior)
        codes = self.sample(8 * SHOWN)
        drawn = shown(self.decoder.images(codes, params))
        grid = {" " * row: drawn[row * SHOWN : (row + 1) * SHOWN] for row in range(8)}
        originals = self.held_out[:SHOWN]
        again = self.decoder.images(self.reconstruct(originals).value["x"], params)
        pairs = {"held out": shown(originals), "decoded": shown(again)}
        files = {"samples.png": grid, "reconstructions.png": pairs}
        for name, rows in files.items():
            draw_recovered(rows, folder / name)
        return [folder / name for name in files]

    def sample(self, number: int) -> Tensor:
        """Codes, drawn from a Gaussian mixture of those of the training images."""
        codes = self.stored["x"].cpu().double().numpy()
        components = min(self.settings.components, len(codes))
        mixture = GaussianMixture(components, random_state=self.settings.seed).fit(
            codes
        )
        drawn = mixture.sample(number)[0]
        # They come component by component.
        order = np.random.default_rng(self.settings.seed).permutation(number)
        return torch.as_tensor(drawn[order], dtype=torch.float32, device=self.device)

    def merge(self, total: Callable[[Tensor], Tensor]) -> None:
        """Collect the codes, and what else is stored, from the processes that found
        them.
        """
        count = total(self.written)
        for leaf in tree.flatten(self.stored)[0]:
            shape = (-1, *(1,) * (leaf.ndim - 1))
            found = total(leaf * self.written.reshape(shape)) / count.clamp(
                min=1.0
            ).reshape(shape)
            leaf.copy_(torch.where(count.reshape(shape) > 0.0, found, leaf))
        self.written.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The codes, and what else the next epoch begins with."""
        return {
            "stored": tree.flatten(self.stored)[0],
            "images": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        if state["images"] != self.fingerprint:
            raise ValueError("written for other images")
        for leaf, stored in zip(
            tree.flatten(self.stored)[0], state["stored"], strict=True
        ):
            leaf.copy_(stored)


def _fit(module: PrincipalImages, images: Tensor) -> None:
    try:
        module.fit(images)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from None


def _norm(z: Any) -> Tensor:
    """The norm of each sample."""
    squares = [(leaf**2).flatten(1).sum(1) for leaf in tree.flatten(z)[0]]
    return torch.stack(squares).sum(0).sqrt()


def _seed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
