"""A dense equilibrium decoder: latent code to image."""

from __future__ import annotations

import math
from typing import Any

import torch
from array_api_compat import array_namespace

Params = dict[str, Any]


def equilibrium_map(z: Any, x: Any, params: Params) -> Any:
    """f(z, x) = tanh(Wz + Ux + b), a contraction as ‖W‖₂ < 1; z of shape (batch,
    width).
    """
    drive = z @ params["W"].T + x @ params["U"].T + params["b"]
    return array_namespace(z).tanh(drive)


def decode(z: Any, params: Params) -> Any:
    """The image D(z) = Cz + c of a state, of shape (batch, pixels)."""
    return z @ params["C"].T + params["c"]


def masked_loss(decoded: Any, x: Any, y: tuple[Any, Any], params: Params) -> Any:
    """s‖m ∘ (D(z) − image)‖² + λ‖x‖² per sample, of D(z) and y = (image, m).

    s = 64/pixels puts images of every size on the scale of 8×8, so that one step size
    serves them.
    """
    image, mask = y
    xp = array_namespace(decoded)
    misfit = xp.sum(mask * (decoded - image) ** 2, axis=-1)
    return params["scale"] * misfit + params["prior"] * xp.sum(x**2, axis=-1)


class DenseNetwork(torch.nn.Module):
    """The parameters of z = tanh(Wz + Ux + b) and of the read-out Cz + c, W = γV /
    max(1, ‖V‖₂).

    Parameters
    ----------
    width, inputs, outputs : int
        Entries of z, of x, and of what is read out.
    bound : float
        γ, less than one.
    seed : int
        Of the initial weights.
    dtype : torch.dtype
        Of the weights.
    """

    def __init__(
        self,
        width: int,
        inputs: int,
        outputs: int,
        bound: float,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        if not 0.0 < bound < 1.0:
            raise ValueError(f"bound must be in (0, 1), got {bound!r}")
        self.width, self.bound = width, bound
        generator = torch.Generator().manual_seed(seed)

        def normal(rows: int, columns: int) -> torch.nn.Parameter:
            weights = torch.randn(
                rows, columns, generator=generator, dtype=torch.float64
            )
            return torch.nn.Parameter((weights / math.sqrt(columns)).to(dtype))

        self.V = normal(width, width)
        self.U = normal(width, inputs)
        self.C = normal(outputs, width)
        self.b = torch.nn.Parameter(torch.zeros(width, dtype=dtype))
        self.c = torch.nn.Parameter(torch.zeros(outputs, dtype=dtype))

    def weights(self) -> Params:
        """W, U, b, C and c, a differentiable function of the parameters."""
        norm = torch.linalg.matrix_norm(self.V, ord=2)
        W = self.bound * self.V / torch.clamp(norm, min=1.0)
        return {"W": W, "U": self.U, "b": self.b, "C": self.C, "c": self.c}


class DenseDecoder(DenseNetwork):
    """The parameters of the decoder, W bounded by its parametrization.

    W = γV / max(1, ‖V‖₂), so that ‖W‖₂ ≤ γ < 1 whatever V is: the equilibrium exists,
    is unique, and Picard iteration finds it.

    Parameters
    ----------
    pixels : int
        Entries of an image.
    width : int, optional
        Entries of the state z.
    latent : int, optional
        Entries of the latent code x.
    bound : float, optional
        γ.
    prior : float, optional
        The weight λ of ‖x‖² in the loss.
    seed : int, optional
        Of the initial weights.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> from fixedpoint_models import DenseDecoder, decode, equilibrium_map
    >>> params = DenseDecoder(pixels=64).params()
    >>> x = torch.ones(3, 16, dtype=torch.float64)
    >>> z0 = torch.zeros(3, 128, dtype=torch.float64)
    >>> sol = fp.fixed_point(equilibrium_map, z0, (x, params), batch_ndim=1)
    >>> decode(sol.value, params).shape
    torch.Size([3, 64])
    """

    def __init__(
        self,
        pixels: int,
        width: int = 128,
        latent: int = 16,
        bound: float = 0.9,
        prior: float = 1e-2,
        seed: int = 0,
    ) -> None:
        super().__init__(width, latent, pixels, bound, seed, torch.float64)
        self.latent, self.prior = latent, prior

    def params(self) -> Params:
        """What the maps of this module take, a differentiable function of the
        parameters.
        """
        return {**self.weights(), "prior": self.prior, "scale": 64 / len(self.c)}
