"""CelebA and Omniglot, from folders and archives of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from zipfile import BadZipFile
from zipfile import Path as ZipPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fixedpoint.checks import check_count
from fixedpoint_models.data.few_shot import Episode, FewShot
from fixedpoint_models.data.images import SUFFIXES, DataError, check_folder, located


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
    files = image_files(_inner(located(folder), "img_align_celeba"))[:limit]
    faces = np.empty((len(files), 3, size, size), np.float32)
    for face, file in zip(faces, files, strict=True):
        color = pixels(file, lambda image: _square(image.convert("RGB"), size))
        face[:] = np.moveaxis(color, -1, 0)
    return faces


def _inner(folder: Path, name: str) -> Path:
    """The folder of this name inside `folder`, or `folder` itself where there is
    none.
    """
    check_folder(folder)
    return folder / name if (folder / name).is_dir() else folder


def image_files(folder: Traversable) -> list[Traversable]:
    """The image files of a folder, in the order of their names; at least one."""
    files = sorted(
        (file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES)),
        key=_name,
    )
    if not files:
        raise DataError(
            f"{folder}: no image files ({', '.join(SUFFIXES)}) in this folder"
        )
    return files


def _name(path: Traversable) -> str:
    return path.name


def pixels(
    file: Traversable, change: Callable[[Image.Image], Image.Image]
) -> NDArray[np.float32]:
    """The pixels of an image after a change, from 0 to 1."""
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            return np.asarray(change(image), np.float32) / np.float32(255.0)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file}: not an image that can be read ({type(error).__name__})"
        ) from None


def _square(image: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def omniglot(sources: Path | str | Iterable[Path | str], side: int = 28) -> FewShot:
    """Handwritten characters of many alphabets, from Omniglot [1]_ as it is published
    or unzipped.

    Parameters
    ----------
    sources : Path, str, or several of them
        Archives such as ``images_background.zip`` and ``images_background_small1.zip``,
        or folders: what holds ``images_background``, or alphabets, or folders of these.
        The files in them are ``Alphabet/characterNN/*.png``. A character that is in
        several sources is taken from the first.
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
    if isinstance(sources, str | Path):
        sources = [sources]
    characters: dict[str, Traversable] = {}
    for home in map(_opened, sources):
        found = dict(_characters(home))
        if not found:
            raise DataError(f"{home}: no folders Alphabet/characterNN in there")
        characters = found | characters
    files = {name: image_files(characters[name]) for name in sorted(characters)}
    first = next(iter(files))
    for name, examples in files.items():
        if len(examples) != len(files[first]):
            raise DataError(
                f"{characters[name]}: expected {len(files[first])} examples, as of "
                f"{first}, got {len(examples)}"
            )
    images = [[_ink(file, side) for file in examples] for examples in files.values()]
    return FewShot(np.stack(images), tuple(files))


def _opened(source: Path | str) -> Traversable:
    """A folder, what holds the characters if it is there, or the inside of an
    archive.
    """
    path = located(source)
    if not path.is_file():
        return _inner(path, "images_background")
    try:
        return ZipPath(path)
    except BadZipFile:
        raise DataError(f"{path}: neither a folder nor a zip archive") from None


def _characters(home: Traversable) -> Iterator[tuple[str, Traversable]]:
    """The folders of characters with their names, where those of the alphabets are, or
    one folder further down.
    """
    for outer in _folders(home):
        for inner in _folders(outer):
            if inner.name.startswith("character"):
                yield f"{outer.name}/{inner.name}", inner
            else:
                for path in _folders(inner):
                    if path.name.startswith("character"):
                        yield f"{inner.name}/{path.name}", path


def _folders(home: Traversable) -> list[Traversable]:
    return sorted((path for path in home.iterdir() if path.is_dir()), key=_name)


def _ink(file: Traversable, side: int) -> NDArray[np.float32]:
    """One where ink is; an image in between after resizing."""
    return np.float32(1.0) - pixels(
        file, lambda image: _square(image.convert("L"), side)
    )


def official_runs(source: Path | str, side: int = 28) -> list[Episode]:
    """The one-shot classification runs that Omniglot is published with: for each, one
    drawing of every class, and one query of every class to label.

    Parameters
    ----------
    source : Path or str
        ``all_runs.zip``, or the folder it was unzipped to, with ``runNN/training``,
        ``runNN/test`` and ``runNN/class_labels.txt``.
    side : int
        The side of the images, in pixels.

    Returns
    -------
    list of Episode
        In the order of their names.

    Raises
    ------
    DataError
        If there are no runs, or a file of one is missing or not what it should be.

    References
    ----------
    See :func:`omniglot`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> from fixedpoint_models.data import official_runs
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("training/class01", "test/item01"):
    ...         file = Path(folder, "run01", f"{name}.png")
    ...         file.parent.mkdir(parents=True)
    ...         Image.new("1", (105, 105), 1).save(file)
    ...     labels = Path(folder, "run01", "class_labels.txt")
    ...     _ = labels.write_text("run01/test/item01.png run01/training/class01.png")
    ...     runs = official_runs(folder)
    >>> runs[0].support.shape, runs[0].query_labels
    ((1, 28, 28), array([0]))
    """
    check_count("side", side, 1)
    home = _opened(source)
    runs = [run for run in _folders(home) if run.name.startswith("run")]
    if not runs:
        raise DataError(f"{home}: no folders runNN in there")
    return [_run(home, run, side) for run in runs]


def _run(home: Traversable, run: Traversable, side: int) -> Episode:
    """The episode that the file of labels spells out, a line a query: its file, and
    that of the drawing of its class.
    """
    labels = run / "class_labels.txt"
    try:
        rows = [line.split() for line in labels.read_text("utf-8").splitlines()]
        drawn = sorted({support for _, support in rows})
        pictures = [
            np.stack([_ink(home / name, side) for name in names])
            for names in (drawn, [query for query, _ in rows])
        ]
    except (ValueError, OSError, KeyError) as error:
        raise DataError(f"{labels}: cannot be followed ({error})") from None
    own = np.arange(len(drawn), dtype=np.int64)
    asked = np.array([drawn.index(support) for _, support in rows], np.int64)
    return Episode(pictures[0], own, pictures[1], asked)
