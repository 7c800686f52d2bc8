"""Images to train on and to test with, and how good others are beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity

from fixedpoint_models import data as sets
from fixedpoint_models.data import DataError
from fixedpoint_models.tasks.settings import Images

Tensor = torch.Tensor


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


def mean_of_known(values: Any) -> float:
    """The mean of the entries of an array that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def together(rows: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    """The figures of images, some at a time, as one array for each name."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


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
    >>> from fixedpoint_models.tasks.images import quality
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
