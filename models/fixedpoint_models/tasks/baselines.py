"""What recovers images from measurements without a trained network, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle, inpaint_biharmonic
from torch.nn import functional

from fixedpoint_models.principal import Components

Tensor = torch.Tensor
_chambolle: Any = denoise_tv_chambolle
_biharmonic: Any = inpaint_biharmonic

LEAST = 1e-8


def by_components(
    values: Tensor, masks: Tensor, components: Components, ridge: float
) -> Tensor:
    """Images m + A c of which c minimizes the misfit where the mask is one, and
    ridge · Σ (cᵢ/σᵢ)².

    Parameters
    ----------
    values : tensor of shape (number, channels, height, width)
        What is measured; anything where the mask is zero.
    masks : tensor of shape (number, 1, height, width)
        One where it is.
    components : Components
        m, A and σ.
    ridge : float
        The variance of the noise makes this the mean of c after the measurement, for
        normal images; zero is the nearest image, the one of smallest c if there are
        several.
    """
    mean, axes, deviations = components
    rows = []
    for image, mask in zip(values, masks, strict=True):
        is_hidden = (mask == 0.0).expand_as(image).flatten()
        # The axes are orthonormal but for what is hidden.
        hidden = axes[is_hidden]
        gram = torch.eye(axes.shape[1]) - hidden.T @ hidden
        gram += torch.diag(max(ridge, LEAST) / deviations**2)
        misfit = torch.where(is_hidden, 0.0, image.flatten() - mean)
        rows.append(mean + axes @ torch.linalg.solve(gram, axes.T @ misfit))
    return torch.stack(rows).reshape(values.shape).clamp(0.0, 1.0)


def by_total_variation(noisy: Tensor, weight: float) -> Tensor:
    """Images that are close to noisy ones, and of little total variation.

    Parameters
    ----------
    noisy : tensor of shape (number, channels, height, width)
        Images with noise.
    weight : float
        Of the total variation beside ‖image − noisy‖²/2.
    """
    images = [_chambolle(one, weight, channel_axis=0) for one in noisy.cpu().numpy()]
    return torch.as_tensor(np.stack(images)).to(noisy).clamp(0.0, 1.0)


def filled_by_total_variation(
    values: Tensor, masks: Tensor, steps: int = 500
) -> Tensor:
    """Images of the least total variation that are what is known, where it is known.

    Parameters
    ----------
    values, masks
        As for :func:`by_components`.
    steps : int, optional
        Of the primal-dual method.

    References
    ----------
    Chambolle and Pock, "A first-order primal-dual algorithm for convex problems with
    applications to imaging", J. Math. Imaging Vis. 40, 2011.
    """
    size = 8.0**-0.5
    known = (values * masks).sum((-2, -1), True) / masks.sum((-2, -1), True)
    image = extrapolated = torch.where(masks > 0.0, values, known)
    dual = torch.zeros_like(torch.stack([image, image]))
    for _ in range(steps):
        dual = dual + size * _slopes(extrapolated)
        dual = dual / dual.square().sum(0).sqrt().clamp(min=1.0)
        moved = image - size * _transposed_slopes(dual)
        moved = torch.where(masks > 0.0, values, moved)
        image, extrapolated = moved, 2.0 * moved - image
    return image.clamp(0.0, 1.0)


def _slopes(image: Tensor) -> Tensor:
    """Differences to the pixels below and on the right."""
    below = functional.pad(image.diff(dim=-2), (0, 0, 0, 1))
    return torch.stack([below, functional.pad(image.diff(dim=-1), (0, 1))])


def _transposed_slopes(dual: Tensor) -> Tensor:
    below, right = dual
    rows: Tensor = functional.pad(below[..., :-1, :], (0, 0, 1, 0)) - below
    columns: Tensor = functional.pad(right[..., :-1], (1, 0)) - right
    return rows + columns


def by_biharmonic(values: Tensor, masks: Tensor) -> Tensor:
    """Images filled by a biharmonic function, where something is hidden.

    Parameters
    ----------
    values, masks
        As for :func:`by_components`.
    """
    pairs = zip(values.cpu().numpy(), masks.cpu().numpy(), strict=True)
    images = [_biharmonic(one, mask[0] == 0.0, channel_axis=0) for one, mask in pairs]
    return torch.as_tensor(np.stack(images)).to(values).clamp(0.0, 1.0)
