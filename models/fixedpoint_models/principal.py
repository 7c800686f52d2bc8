"""An equilibrium decoder that is principal component analysis before it is trained."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from sklearn.decomposition import PCA

from fixedpoint_models.decoder import DenseNetwork, Params, equilibrium_map

Tensor = torch.Tensor


class Components(NamedTuple):
    """Principal components of images.

    Attributes
    ----------
    mean : tensor of shape (pixels,)
        Of the images.
    axes : tensor of shape (pixels, number)
        Orthonormal, that of the largest variance first.
    deviations : tensor of shape (number,)
        The standard deviations along them.
    """

    mean: Tensor
    axes: Tensor
    deviations: Tensor


def principal_components(images: Tensor, number: int, seed: int = 0) -> Components:
    """The first principal components of images.

    Parameters
    ----------
    images : tensor of shape (images, ...)
        The images.
    number : int
        How many components.
    seed : int, optional
        Of the random subspaces that find them, where they are few of many.

    Raises
    ------
    ValueError
        If there are not as many.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.principal import principal_components
    >>> images = torch.outer(torch.arange(5.0), torch.tensor([3.0, 4.0]))
    >>> mean, axes, deviations = principal_components(images, 1)
    >>> mean.tolist(), [round(float(value), 3) for value in axes.abs()[:, 0]]
    ([6.0, 8.0], [0.6, 0.8])
    """
    rows = images.flatten(1).cpu().numpy()
    if not 1 <= number <= min(rows.shape):
        raise ValueError(
            f"number: expected from 1 to {min(rows.shape)}, the lesser of the images "
            f"and their pixels, got {number}"
        )
    solver = "randomized" if number < 0.5 * min(rows.shape) else "full"
    found = PCA(number, svd_solver=solver, random_state=seed).fit(rows)
    pair = found.mean_, found.components_.T.copy()
    mean, axes = (torch.as_tensor(part).to(images) for part in pair)
    return Components(
        mean,
        axes,
        torch.as_tensor(found.singular_values_).to(images) / (len(rows) - 1) ** 0.5,
    )


class PrincipalImages(DenseNetwork):
    """Images m + A(x, 0) + A S C h, with h = tanh(Wh + U S₁⁻¹x + b): principal
    components and an equilibrium on top, of which C is zero at first.

    The columns of A are the principal axes of the images that :meth:`fit` is given, and
    S holds the standard deviations along them, S₁ those of the first, which the code x
    is of. The state is z = (x, h): what the code says by itself is a part of it.

    Parameters
    ----------
    shape : tuple of int
        Of an image.
    width, latent : int
        Entries of h, and of x.
    basis : int
        Columns of A, at least `latent`.
    bound : float
        That of ‖W‖₂, less than one.
    seed : int
        Of the initial weights, and of the random subspaces that find the axes.

    Notes
    -----
    As A has orthonormal columns, ‖A v − image‖² is ‖v − Aᵀ image‖² and what no v
    explains: :meth:`read` and :meth:`measured` give v and Aᵀ(image − m), which training
    compares in the place of all pixels.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.principal import PrincipalImages
    >>> images = torch.rand(50, 1, 4, 4)
    >>> decoder = PrincipalImages((1, 4, 4), width=8, latent=3, basis=6, bound=0.9,
    ...                           seed=0)
    >>> decoder.fit(images)
    >>> x = decoder.encode(decoder.measured(images))
    >>> z = decoder.f(decoder.zero_state(50), x, decoder.params())
    >>> decoder.head(z, decoder.params()).shape
    torch.Size([50, 1, 4, 4])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int,
        latent: int,
        basis: int,
        bound: float,
        seed: int,
    ) -> None:
        super().__init__(width, latent, basis, bound, seed, torch.float32)
        self.shape, self.latent, self.basis, self.seed = shape, latent, basis, seed
        torch.nn.init.zeros_(self.C)
        pixels = math.prod(shape)
        self.mean: Tensor
        self.axes: Tensor
        self.deviations: Tensor
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("axes", torch.zeros(pixels, basis))
        self.register_buffer("deviations", torch.zeros(basis))

    def fit(self, images: Tensor) -> None:
        """Take the mean and the principal axes of images, numbered by the first axis.

        Raises
        ------
        ValueError
            If there are not as many axes among them as asked for, or fewer than entries
            of a code.
        """
        if self.basis < self.latent:
            raise ValueError(
                f"basis: expected at least {self.latent}, the entries of a code, got "
                f"{self.basis}"
            )
        found = principal_components(images, self.basis, self.seed)
        for name, tensor in found._asdict().items():
            getattr(self, name).copy_(tensor)

    def params(self) -> Params:
        """What the maps take."""
        buffers = {name: getattr(self, name) for name in ("mean", "axes", "deviations")}
        return {"weights": {**self.weights(), **buffers}}

    def zero_state(self, *batch: int) -> Tensor:
        """A state of zeros."""
        return self.b.new_zeros(*batch, self.latent + self.width)

    def f(self, z: Tensor, x: Tensor, params: Params) -> Tensor:
        """The equilibrium map, (x, tanh(Wh + Ux + b)) of (·, h)."""
        white = x / params["weights"]["deviations"][: self.latent]
        hidden = equilibrium_map(z[..., self.latent :], white, params["weights"])
        return torch.cat([x, hidden], dim=-1)

    def read(self, z: Tensor, params: Params) -> Tensor:
        """The coefficients of a state's image in the basis."""
        weights, rest = params["weights"], self.basis - self.latent
        code, hidden = z[..., : self.latent], z[..., self.latent :]
        # All steps of Adam are of one size, and would add up without the root.
        moved = hidden @ weights["C"].T / self.width**0.5 + weights["c"]
        correction = weights["deviations"] * moved
        coefficients: Tensor = torch.nn.functional.pad(code, (0, rest)) + correction
        return coefficients

    def head(self, z: Tensor, params: Params) -> Tensor:
        """The image of a state."""
        weights = params["weights"]
        image: Tensor = weights["mean"] + self.read(z, params) @ weights["axes"].T
        return image.reshape(*image.shape[:-1], *self.shape)

    def measured(self, images: Tensor) -> Tensor:
        """The coefficients of images in the basis."""
        return (images.flatten(1) - self.mean) @ self.axes

    def encode(self, coefficients: Tensor) -> Tensor:
        """The codes of images by principal component analysis: where to start."""
        return coefficients[:, : self.latent]

    def precision(self) -> Tensor:
        """The inverse of the variance of each entry of a code."""
        return self.deviations[: self.latent] ** -2.0
