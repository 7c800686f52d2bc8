"""CelebA and Omniglot, from folders of image files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fixedpoint.checks import check_count
from fixedpoint_models.data.few_shot import FewShot
from fixedpoint_models.data.images import SUFFIXES, DataError


def celeba(
    folder: Path | str, size: int = 64, limit: int | None = None
) -> NDArray[np.float32]:
    """Faces, from the folder ``img_align_celeba`` of CelebA [1]_, or any folder of
    photographs.

    The largest square in the middle of each image is resized.

    Parameters
    ----------
    folder : Path or str
        The folder of image files, or what holds the folder ``img_align_celeba``.
    size : int
        The side of the images returned, in pixels.
    limit : int, optional
        Read only so many files, the first by name.

    Returns
    -------
    float32 array of shape (number, 3, size, size)
        Values from 0 to 1; red, green and blue.

    Raises
    ------
    DataError
        If there are no images, or one of them cannot be read.

    References
    ----------
    .. [1] Z. Liu, P. Luo, X. Wang, X. Tang, "Deep learning face attributes in the
       wild", International Conference on Computer Vision (2015).

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from fixedpoint_models.data import celeba
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (178, 218), (255, 0, 0)).save(Path(folder, "000001.png"))
    ...     faces = celeba(folder, size=32)
    >>> faces.shape, faces[0, :, 16, 16].tolist()
    ((1, 3, 32, 32), [1.0, 0.0, 0.0])
    """
    check_count("size", size, 1)
    if limit is not None:
        check_count("limit", limit, 1)
    files = _image_files(_inner(Path(folder), "img_align_celeba"))[:limit]
    faces = np.empty((len(files), 3, size, size), np.float32)
    for face, file in zip(faces, files, strict=True):
        pixels = _pixels(file, lambda image: _square(image.convert("RGB"), size))
        face[:] = np.moveaxis(pixels, -1, 0)
    return faces


def _inner(folder: Path, name: str) -> Path:
    """The folder of this name inside `folder`, or `folder` itself where there is
    none.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return folder / name if (folder / name).is_dir() else folder


def _image_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            f"{folder}: no image files ({', '.join(SUFFIXES)}) in this folder"
        )
    return files


def _pixels(
    file: Path, change: Callable[[Image.Image], Image.Image]
) -> NDArray[np.float32]:
    """The pixels of an image after a change, from 0 to 1."""
    try:
        with Image.open(file) as image:
            return np.asarray(change(image), np.float32) / np.float32(255.0)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file}: not an image that can be read ({type(error).__name__})"
        ) from None


def _square(image: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def omniglot(folder: Path | str, side: int = 28) -> FewShot:
    """Handwritten characters of many alphabets, from the folders of Omniglot [1]_.

    Parameters
    ----------
    folder : Path or str
        What holds the folder ``images_background``; or a folder of alphabets itself, as
        ``images_evaluation``, in which the files are ``Alphabet/characterNN/*.png``.
    side : int
        The side of the images returned, in pixels.

    Returns
    -------
    FewShot
        Ink is 1 and paper is 0. The classes are named ``Alphabet/characterNN``.

    Raises
    ------
    DataError
        If there are no characters, if one has more examples than another, or if an
        image cannot be read.

    References
    ----------
    .. [1] B. M. Lake, R. Salakhutdinov, J. B. Tenenbaum, "Human-level concept learning
       through probabilistic program induction", Science 350 (2015) 1332-1338.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from fixedpoint_models.data import omniglot
    >>> with TemporaryDirectory() as folder:
    ...     character = Path(folder, "images_background", "Korean", "character01")
    ...     character.mkdir(parents=True)
    ...     for number in range(2):
    ...         Image.new("1", (105, 105), 1).save(character / f"0001_{number}.png")
    ...     characters = omniglot(folder)
    >>> characters.images.shape, characters.names, float(characters.images.max())
    ((1, 2, 28, 28), ('Korean/character01',), 0.0)
    """
    check_count("side", side, 1)
    home = _inner(Path(folder), "images_background")
    characters = sorted(path for path in home.glob("*/character*") if path.is_dir())
    if not characters:
        raise DataError(f"{home}: no folders Alphabet/characterNN in this folder")
    files = [_image_files(character) for character in characters]
    for character, examples in zip(characters, files, strict=True):
        if len(examples) != len(files[0]):
            raise DataError(
                f"{character}: expected {len(files[0])} examples, as of "
                f"{characters[0].relative_to(home)}, got {len(examples)}"
            )
    images = np.stack([[_ink(file, side) for file in examples] for examples in files])
    return FewShot(
        images, tuple(path.relative_to(home).as_posix() for path in characters)
    )


def _ink(file: Path, side: int) -> NDArray[np.float32]:
    """One where ink is; an image in between after resizing."""
    return np.float32(1.0) - _pixels(
        file, lambda image: _square(image.convert("L"), side)
    )
