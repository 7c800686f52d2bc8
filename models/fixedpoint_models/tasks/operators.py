"""Measurements of images that can be inverted: examples for the key ``operator``.

Each takes images of shape (number, channels, height, width) to measurements of any
shape with the same first axis, sample by sample, differentiably.
"""

from __future__ import annotations

import torch
from torch.nn import functional

Tensor = torch.Tensor


def blurred(images: Tensor) -> Tensor:
    """Images convolved with the binomial kernel (1, 4, 6, 4, 1)/16 along both axes.

    Parameters
    ----------
    images : tensor of shape (number, channels, height, width)
        The images.

    Returns
    -------
    tensor of the same shape
        Beyond its edge an image counts as constant.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.tasks.operators import blurred
    >>> bool(torch.allclose(blurred(torch.ones(2, 1, 8, 8)), torch.ones(2, 1, 8, 8)))
    True
    """
    channels = images.shape[1]
    kernel = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
    filters = torch.outer(kernel, kernel).expand(channels, 1, 5, 5)
    padded = functional.pad(images, (2, 2, 2, 2), mode="replicate")
    return functional.conv2d(padded, filters, groups=channels)


def downsampled(images: Tensor) -> Tensor:
    """The averages of squares of 4×4 pixels.

    Parameters
    ----------
    images : tensor of shape (number, channels, height, width)
        The images; both sides are multiples of four.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models.tasks.operators import downsampled
    >>> downsampled(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 1, 2, 2])
    """
    return functional.avg_pool2d(images, 4)
