"""Gray-scale images for the demo: scikit-learn's digits, a folder, or an ``.npz``
file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")


class DataError(ValueError):
    """The data cannot be used; the message says which file and why, in one line."""


def located(path: Path | str) -> Path:
    """Where a file or folder of data is: as its path says, or, if there is nothing,
    inside of the folder that the environment variable ``FIXEDPOINT_DATA`` names.

    Parameters
    ----------
    path : Path or str
        The path; ``~`` stands for the user's own folder.

    Examples
    --------
    >>> from fixedpoint_models.data import located
    >>> located("/no/such/folder").as_posix()
    '/no/such/folder'
    """
    path, home = Path(path).expanduser(), os.environ.get("FIXEDPOINT_DATA")
    return Path(home) / path if home and not path.exists() else path


def check_folder(folder: Path) -> None:
    """Raise DataError where a path that :func:`located` returned is no folder."""
    if folder.is_dir():
        return
    unset = not folder.is_absolute() and "FIXEDPOINT_DATA" not in os.environ
    hint = " here, and FIXEDPOINT_DATA is not set to another place to look in"
    raise DataError(f"{folder}: no such folder{hint if unset else ''}")


def digits() -> Any:
    """The 1797 digits of scikit-learn.

    Returns
    -------
    array of shape (1797, 8, 8)
        Values from 0 to 1.
    """
    return load_digits().images / 16.0


def load_images(path: Path) -> Any:
    """The images of a folder, or of an ``.npz`` file.

    Parameters
    ----------
    path : Path
        A folder of image files of one size, read in the order of their names and turned
        gray; or an ``.npz`` file with one array of shape (number, height, width), of
        bytes or of floats from 0 to 1.

    Returns
    -------
    array of shape (number, height, width)
        Values from 0 to 1.

    Raises
    ------
    DataError
        If there is nothing there, or not what it should be.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_dir():
        return _from_folder(path)
    if path.suffix == ".npz":
        return _from_npz(path)
    raise DataError(f"{path}: expected a folder of images or an .npz file")


def _from_folder(folder: Path) -> Any:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            f"{folder}: no image files ({', '.join(SUFFIXES)}) in this folder"
        )
    images = [_read(file) for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"{file}: all images must have one size; this is {_size(image)}, "
                f"{files[0].name} is {_size(images[0])}"
            )
    return _checked(np.stack(images), folder)


def _read(file: Path) -> Any:
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L"), dtype=np.float64) / 255.0
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file}: not an image that can be read ({type(error).__name__})"
        ) from None


def _size(image: Any) -> str:
    return f"{image.shape[1]}×{image.shape[0]}"


def _from_npz(file: Path) -> Any:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{file}: not an .npz file of plain arrays ({error})") from None
    if len(arrays) != 1:
        raise DataError(
            f"{file}: expected one array, got {len(arrays)}: {', '.join(arrays)}"
        )
    images = next(iter(arrays.values()))
    if images.ndim != 3:
        raise DataError(
            f"{file}: expected the shape (number, height, width), got {images.shape}"
        )
    if images.dtype == np.uint8:
        images = images / 255.0
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{file}: expected bytes or floats, got {images.dtype}")
    return _checked(images.astype(np.float64), file)


def _checked(images: Any, path: Path) -> Any:
    number, height, width = images.shape
    if number < 40:
        raise DataError(
            f"{path}: at least 40 images are needed to train and test, got {number}"
        )
    if min(height, width) < 4 or height * width > 4096:
        raise DataError(
            f"{path}: images of 4×4 to 64×64 pixels are needed, got {width}×{height}"
        )
    if not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))[0])
        raise DataError(f"{path}: image {bad} holds NaN or infinite values")
    if images.min() < 0.0 or images.max() > 1.0:
        raise DataError(
            f"{path}: values must lie in [0, 1], got {images.min():.3g} to "
            f"{images.max():.3g}"
        )
    return images


def square_masks(
    number: int, height: int, width: int, seed: int, side: int | None = None
) -> Any:
    """Masks that hide one random square each, by default of half the height.

    Returns
    -------
    array of shape (number, height, width)
        0 where a pixel is hidden, 1 elsewhere.
    """
    generator = np.random.default_rng(seed)
    side = min(height, width) // 2 if side is None else side
    masks = np.ones((number, height, width))
    rows = generator.integers(0, height - side + 1, number)
    columns = generator.integers(0, width - side + 1, number)
    for mask, row, column in zip(masks, rows, columns, strict=True):
        mask[row : row + side, column : column + side] = 0.0
    return masks
