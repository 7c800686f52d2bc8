"""Gray patches of photographs: of those that come with scikit-image and scikit-learn,
or of a folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from fixedpoint.checks import check_count
from fixedpoint_models.data.folders import image_files, pixels
from fixedpoint_models.data.images import DataError, check_folder, located

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
    """Gray patches of the photographs that come with scikit-image and scikit-learn.

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
    if limit is not None:
        check_count("limit", limit, 1)
    generator = np.random.default_rng(seed)
    train, test = (
        generator.permutation(patches_of(map(_photograph, names), size, stride))[:limit]
        for names in (TRAIN_PHOTOGRAPHS, TEST_PHOTOGRAPHS)
    )
    return train, test


def gray_images(folder: Path | str) -> list[NDArray[np.float32]]:
    """The image files of a folder, of any size, turned gray, in the order of their
    names.

    Parameters
    ----------
    folder : Path or str
        The folder.

    Returns
    -------
    list of float32 array of shape (height, width)
        Values from 0 to 1.

    Raises
    ------
    DataError
        If there are no images, or one of them cannot be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from fixedpoint_models.data import gray_images
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("L", (48, 32), 51).save(Path(folder, "a.png"))
    ...     images = gray_images(folder)
    >>> images[0].shape, float(images[0][0, 0])
    ((32, 48), 0.2...)
    """
    home = located(folder)
    check_folder(home)
    return [
        pixels(file, lambda image: image.convert("L")) for file in image_files(home)
    ]


def patches_of(
    images: Iterable[NDArray[np.float32]], size: int, stride: int | None = None
) -> NDArray[np.float32]:
    """The square patches of images of any size that are not nearly of one value.

    Parameters
    ----------
    images : iterable of float32 array of shape (height, width)
        The images; those smaller than a patch have none.
    size : int
        The side of a patch, in pixels.
    stride : int, optional
        From one patch to the next; `size` by default.

    Returns
    -------
    float32 array of shape (number, size, size)
        At least one.

    Raises
    ------
    DataError
        If there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint_models.data import patches_of
    >>> image = np.linspace(0.0, 1.0, 32 * 48, dtype=np.float32).reshape(32, 48)
    >>> patches_of([image], size=16).shape, patches_of([image], 16, stride=8).shape
    ((6, 16, 16), (15, 16, 16))
    """
    stride = size if stride is None else stride
    for name, value in (("size", size), ("stride", stride)):
        check_count(name, value, 1)
    found = np.concatenate([_patches(image, size, stride) for image in images])
    if len(found) == 0:
        raise DataError(
            f"size: expected patches that fit the photographs, got {size}×{size}"
        )
    return found


def _photograph(name: str) -> NDArray[np.float32]:
    """The gray values of a photograph, from 0 to 1."""
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
