"""Grey patches of the photographs that come with scikit-image and scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import as_file, files

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from fixedpoint.checks import check_count
from fixedpoint_models.data.images import DataError

# Package and file of each. Only what the wheels hold is listed, as nothing is to be
# downloaded. Left out are drawings, silhouettes, the second of a stereo pair, and
# images of one tone nearly everywhere (cell, clock_motion, hubble_deep_field,
# microaneurysms, retina).
_SKIMAGE, _SKLEARN = "skimage.data", "sklearn.datasets.images"
_FILES = {
    "astronaut": (_SKIMAGE, "astronaut.png"),
    "brick": (_SKIMAGE, "brick.png"),
    "camera": (_SKIMAGE, "camera.png"),
    "chelsea": (_SKIMAGE, "chelsea.png"),
    "china": (_SKLEARN, "china.jpg"),
    "coffee": (_SKIMAGE, "coffee.png"),
    "coins": (_SKIMAGE, "coins.png"),
    "flower": (_SKLEARN, "flower.jpg"),
    "grass": (_SKIMAGE, "grass.png"),
    "gravel": (_SKIMAGE, "gravel.png"),
    "immunohistochemistry": (_SKIMAGE, "ihc.png"),
    "moon": (_SKIMAGE, "moon.png"),
    "motorcycle": (_SKIMAGE, "motorcycle_left.png"),
    "page": (_SKIMAGE, "page.png"),
    "rocket": (_SKIMAGE, "rocket.jpg"),
    "text": (_SKIMAGE, "text.png"),
}
# Always the same, whatever the seed: what is trained with one seed can be tested with
# another.
TEST_PHOTOGRAPHS = ("camera", "chelsea", "china", "gravel", "page")
TRAIN_PHOTOGRAPHS = tuple(name for name in _FILES if name not in TEST_PHOTOGRAPHS)

SMOOTH = 0.03
"""Patches whose values have a smaller standard deviation are left out."""


def photographs(
    size: int = 64, stride: int | None = None, limit: int | None = None, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Grey patches of the photographs that come with scikit-image and scikit-learn.

    The photographs of `TEST_PHOTOGRAPHS` are cut for testing, those of
    `TRAIN_PHOTOGRAPHS` for training, so that no patch for testing shares its photograph
    with one for training. Patches with nearly no variance are left out.

    Parameters
    ----------
    size : int
        The side of a patch, in pixels.
    stride : int, optional
        Pixels from one patch to the next; `size` by default, and patches overlap if it
        is less.
    limit : int, optional
        Return only so many patches for training, and for testing.
    seed : int
        The order of the patches.

    Returns
    -------
    train, test : float32 array of shape (number, size, size)
        Values from 0 to 1.

    Raises
    ------
    DataError
        If scikit-image is not installed or lacks a photograph, or if `size` leaves no
        patches.

    Examples
    --------
    >>> from fixedpoint_models.data import photographs
    >>> train, test = photographs(size=64, limit=50)
    >>> train.shape, test.shape
    ((50, 64, 64), (50, 64, 64))
    """
    stride = size if stride is None else stride
    for name, value in (("size", size), ("stride", stride), ("limit", limit)):
        if value is not None:
            check_count(name, value, 1)
    generator = np.random.default_rng(seed)
    train, test = (
        generator.permutation(_patches_of(names, size, stride))[:limit]
        for names in (TRAIN_PHOTOGRAPHS, TEST_PHOTOGRAPHS)
    )
    return train, test


def _patches_of(names: Iterable[str], size: int, stride: int) -> NDArray[np.float32]:
    patches = np.concatenate(
        [_patches(_photograph(name), size, stride) for name in names]
    )
    if len(patches) == 0:
        raise DataError(
            f"size: expected patches that fit the photographs, got {size}×{size}"
        )
    return patches


def _photograph(name: str) -> NDArray[np.float32]:
    """The grey values of a photograph, from 0 to 1."""
    package, file = _FILES[name]
    try:
        with as_file(files(package) / file) as path, Image.open(path) as image:
            return np.asarray(image.convert("L"), np.float32) / np.float32(255.0)
    except ModuleNotFoundError:
        raise DataError(
            f"{file}: {package.partition('.')[0]} is not installed"
        ) from None
    except OSError as error:
        raise DataError(
            f"{file}: not in {package}, or damaged ({type(error).__name__})"
        ) from None


def _patches(
    photograph: NDArray[np.float32], size: int, stride: int
) -> NDArray[np.float32]:
    """The patches that are not nearly of one value."""
    if min(photograph.shape) < size:
        return np.empty((0, size, size), np.float32)
    windows = sliding_window_view(photograph, (size, size))[::stride, ::stride]
    patches = windows.reshape(-1, size, size)
    varied: NDArray[np.float32] = patches[patches.std(axis=(1, 2)) > SMOOTH]
    return varied
