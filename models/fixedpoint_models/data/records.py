"""MNIST and CIFAR-10, from the binary files in which they are published."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Container
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fixedpoint_models.data.images import DataError, check_folder, located

CLASSES = 10
MNIST_PREFIXES = {"train": "train", "test": "t10k", "t10k": "t10k"}
CIFAR_FILES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
CIFAR_SHAPE = (3, 32, 32)


def mnist(
    folder: Path | str, split: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Handwritten digits, from the IDX files of MNIST [1]_.

    Sets published in the same files, as Fashion-MNIST and KMNIST, are read as well.

    Parameters
    ----------
    folder : Path or str
        Where ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and their
        ``t10k`` counterparts are, as they are or with ``.gz``.
    split : str
        Which images to read: "train" or "test", which "t10k" means too, or some of
        them, as "test[:8000]" or "train[-500:]".

    Returns
    -------
    images : float32 array of shape (number, 28, 28)
        Values from 0 to 1.
    labels : int64 array of shape (number,)
        Classes from 0 to 9.

    Raises
    ------
    DataError
        If a file is missing, or is not what it should be.

    References
    ----------
    .. [1] Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied
       to document recognition", Proceedings of the IEEE 86 (1998) 2278-2324.

    Examples
    --------
    >>> import struct
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from fixedpoint_models.data import mnist
    >>> with TemporaryDirectory() as folder:
    ...     images = struct.pack(">4I", 2051, 3, 28, 28) + bytes(3 * 28 * 28)
    ...     labels = struct.pack(">2I", 2049, 3) + bytes([7, 2, 1])
    ...     _ = Path(folder, "t10k-images-idx3-ubyte").write_bytes(images)
    ...     _ = Path(folder, "t10k-labels-idx1-ubyte").write_bytes(labels)
    ...     images, labels = mnist(folder, "test")
    >>> images.shape, labels
    ((3, 28, 28), array([7, 2, 1]))
    """
    name, part = _split(split, MNIST_PREFIXES)
    folder, prefix = located(folder), MNIST_PREFIXES[name]
    file = _plain_or_gzipped(folder, f"{prefix}-images-idx3-ubyte")
    images = _read_idx(file, 3)
    if images.shape[1:] != (28, 28):
        height, width = images.shape[1:]
        raise DataError(
            f"{file}: expected images of 28×28 pixels, got {width}×{height}"
        )
    file = _plain_or_gzipped(folder, f"{prefix}-labels-idx1-ubyte")
    labels = _read_idx(file, 1)
    if len(labels) != len(images):
        raise DataError(
            f"{file}: expected {len(images)} labels, one an image, got {len(labels)}"
        )
    return _some(_unit(images), _checked_labels(labels, file), split, part)


def _split(split: str, names: Container[str]) -> tuple[str, slice]:
    """The name and the slice in the name of a split."""
    found = re.fullmatch(r"(\w+)(?:\[(-?\d*):(-?\d*)\])?", split)
    if found is None or found[1] not in names:
        raise DataError(
            f"split must be 'train' or 'test', got {split!r}; some of the images are "
            "'test[:100]'"
        )
    first, last = (int(end) if end else None for end in found.groups()[1:])
    return found[1], slice(first, last)


def _some(
    images: NDArray[np.float32], labels: NDArray[np.int64], split: str, part: slice
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if len(labels[part]) == 0:
        raise DataError(f"{split}: there are {len(labels)} images, and none of these")
    return images[part], labels[part]


def _plain_or_gzipped(folder: Path, name: str) -> Path:
    check_folder(folder)
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(f"{folder / name}: no such file, nor with .gz")


def _read_idx(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The bytes of an IDX file, in the shape that its header says."""
    try:
        with _opened(file) as stream:
            shape = _read_header(stream, file, dimensions)
            # One byte more than there should be is asked for, to notice a file that is
            # too long.
            content = stream.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    if len(content) != math.prod(shape):
        got = "more" if len(content) > math.prod(shape) else f"{len(content)}"
        raise DataError(
            f"{file}: expected {math.prod(shape)} bytes after the header, for the "
            f"shape {shape}, got {got}"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _opened(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file)) if file.suffix == ".gz" else file.open("rb")


def _read_header(stream: BinaryIO, file: Path, dimensions: int) -> tuple[int, ...]:
    size = 4 * (1 + dimensions)
    header = stream.read(size)
    if len(header) != size:
        raise DataError(
            f"{file}: expected a header of {size} bytes, got {len(header)} in all"
        )
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    # Unsigned bytes are type 8; the last byte of the magic number counts the
    # dimensions.
    expected = 0x800 + dimensions
    if magic != expected:
        raise DataError(f"{file}: expected the magic number {expected}, got {magic}")
    if 0 in shape:
        raise DataError(
            f"{file}: expected sizes of 1 or more, got the shape {tuple(shape)}"
        )
    return tuple(shape)


def _checked_labels(labels: NDArray[np.uint8], file: Path) -> NDArray[np.int64]:
    if labels.max() >= CLASSES:
        raise DataError(f"{file}: expected labels from 0 to 9, got {labels.max()}")
    return labels.astype(np.int64)


def _unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255.0)


def cifar10(
    folder: Path | str, split: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Small color photographs of ten classes, from the binary version of CIFAR-10
    [1]_.

    The version for Python consists of pickles, which can run any code when they are
    read; they are not opened.

    Parameters
    ----------
    folder : Path or str
        Where ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` are;
        or what holds their folder, ``cifar-10-batches-bin``.
    split : str
        Which images to read: "train" or "test", or some of them, as "test[:8000]" or
        "train[-500:]".

    Returns
    -------
    images : float32 array of shape (number, 3, 32, 32)
        Values from 0 to 1; red, green and blue.
    labels : int64 array of shape (number,)
        Classes from 0 to 9.

    Raises
    ------
    DataError
        If a file is missing, or is not what it should be.

    References
    ----------
    .. [1] A. Krizhevsky, "Learning multiple layers of features from tiny images",
       technical report, University of Toronto (2009).

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from fixedpoint_models.data import cifar10
    >>> with TemporaryDirectory() as folder:
    ...     records = bytes([4]) + bytes(3072) + bytes([9]) + bytes(3072)
    ...     _ = Path(folder, "test_batch.bin").write_bytes(records)
    ...     images, labels = cifar10(folder, "test")
    >>> images.shape, labels
    ((2, 3, 32, 32), array([4, 9]))
    """
    name, part = _split(split, CIFAR_FILES)
    home = _cifar_home(located(folder))
    parts = [_read_cifar(home, file) for file in CIFAR_FILES[name]]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _some(images, labels, split, part)


def _cifar_home(folder: Path) -> Path:
    check_folder(folder)
    inner = folder / "cifar-10-batches-bin"
    return inner if inner.is_dir() else folder


def _read_cifar(home: Path, name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    file = home / f"{name}.bin"
    if not file.is_file():
        raise DataError(_why_missing(home, name))
    content = file.read_bytes()
    size = 1 + math.prod(CIFAR_SHAPE)
    if not content or len(content) % size:
        raise DataError(
            f"{file}: expected records of {size} bytes, got {len(content)} bytes"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return _unit(records[:, 1:]).reshape(-1, *CIFAR_SHAPE), _checked_labels(
        records[:, 0], file
    )


def _why_missing(home: Path, name: str) -> str:
    for pickled in (home / name, home / "cifar-10-batches-py" / name):
        if pickled.is_file():
            return (
                f"{pickled}: this is the version for Python, of pickles, which are not "
                f"opened; the binary version is needed ({name}.bin, from "
                "cifar-10-binary.tar.gz)"
            )
    return f"{home / name}.bin: no such file"
