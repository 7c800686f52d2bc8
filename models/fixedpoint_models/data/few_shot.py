"""Sets of many classes with few examples each, and the episodes drawn from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from fixedpoint.checks import check_count, check_positive

# How far an image is warped at most, either way.
ROTATION = np.deg2rad(15.0)
STRETCH = 0.15
"""Logarithm of the factor, of each axis by itself."""
SHEAR = 0.2
SHIFT = 0.08
"""In sides of the image."""


@dataclass(frozen=True, eq=False)
class FewShot:
    """Images of many classes, the same number of each.

    Parameters
    ----------
    images : array of shape (classes, examples, side, side)
        Values from 0 to 1; ink is 1.
    names : tuple of str
        A name for each class.

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint_models.data import FewShot
    >>> few_shot = FewShot(np.zeros((3, 20, 28, 28), np.float32), ("a", "b", "c"))
    >>> len(few_shot), few_shot.examples
    (3, 20)
    """

    images: NDArray[np.float32]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = self.images.shape
        if len(shape) != 4 or shape[2] != shape[3]:
            raise ValueError(
                f"images must be (classes, examples, side, side), got {shape}"
            )
        if len(self.names) != len(self.images):
            raise ValueError(f"names must be {len(self.images)}, got {len(self.names)}")

    def __len__(self) -> int:
        """The number of classes."""
        return len(self.images)

    @property
    def examples(self) -> int:
        """The number of examples of each class."""
        return int(self.images.shape[1])

    def take(self, classes: NDArray[np.int64]) -> FewShot:
        """The set of these classes alone, in this order."""
        return FewShot(
            self.images[classes], tuple(self.names[index] for index in classes)
        )


def split_classes(
    few_shot: FewShot, fraction: float, seed: int
) -> tuple[FewShot, FewShot]:
    """Split into classes for training and other classes for testing.

    Parameters
    ----------
    few_shot : FewShot
        The set to split.
    fraction : float
        The fraction of the classes that is for training, above 0 and below 1.
    seed : int
        Which classes.

    Returns
    -------
    train, test : FewShot
        At least one class each, none in both.

    Raises
    ------
    ValueError
        If there are fewer than two classes, or the fraction is not between 0 and 1.

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint_models.data import FewShot, split_classes
    >>> few_shot = FewShot(np.zeros((5, 2, 8, 8), np.float32), tuple("abcde"))
    >>> train, test = split_classes(few_shot, 0.6, seed=0)
    >>> len(train), len(test), set(train.names) & set(test.names)
    (3, 2, set())
    """
    check_positive("fraction", fraction, 1.0)
    if fraction == 1.0 or len(few_shot) < 2:
        raise ValueError("fraction must be below 1, and the classes 2 or more")
    order = np.random.default_rng(seed).permutation(len(few_shot))
    train = min(max(round(fraction * len(few_shot)), 1), len(few_shot) - 1)
    return few_shot.take(order[:train]), few_shot.take(order[train:])


def split_alphabets(
    few_shot: FewShot, held_out: Sequence[str]
) -> tuple[FewShot, FewShot]:
    """Split into classes for training and those of whole alphabets for testing.

    Parameters
    ----------
    few_shot : FewShot
        The set to split; its classes are named ``Alphabet/character``.
    held_out : sequence of str
        The alphabets for testing.

    Returns
    -------
    train, test : FewShot
        At least one class each.

    Raises
    ------
    ValueError
        If there is no such alphabet, or no other.

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint_models.data import FewShot, split_alphabets
    >>> images = np.zeros((3, 2, 8, 8), np.float32)
    >>> few_shot = FewShot(images, ("Greek/1", "Greek/2", "Latin/1"))
    >>> train, test = split_alphabets(few_shot, ["Greek"])
    >>> train.names, test.names
    (('Latin/1',), ('Greek/1', 'Greek/2'))
    """
    alphabets = [name.partition("/")[0] for name in few_shot.names]
    if unknown := set(held_out) - set(alphabets):
        raise ValueError(
            f"held_out must be of {sorted(set(alphabets))}, got {sorted(unknown)}"
        )
    tested = np.isin(alphabets, list(held_out))
    if tested.all() or not tested.any():
        raise ValueError("held_out must be some of the alphabets and not all")
    return few_shot.take(np.flatnonzero(~tested)), few_shot.take(np.flatnonzero(tested))


def turned(few_shot: FewShot) -> FewShot:
    """The classes and those that a quarter, a half and three quarters of a turn make of
    them, which count as other classes.

    Parameters
    ----------
    few_shot : FewShot
        The classes.

    Returns
    -------
    FewShot
        Four times as many; the new names end with the degrees.

    References
    ----------
    Santoro, Bartunov, Botvinick, Wierstra and Lillicrap, "Meta-learning with
    memory-augmented neural networks", ICML 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint_models.data import FewShot, turned
    >>> few_shot = turned(FewShot(np.zeros((1, 2, 8, 8), np.float32), ("a",)))
    >>> few_shot.names
    ('a', 'a/90', 'a/180', 'a/270')
    """
    quarters = [np.rot90(few_shot.images, k, axes=(2, 3)) for k in range(4)]
    endings = ("", "/90", "/180", "/270")
    names = tuple(name + ending for ending in endings for name in few_shot.names)
    return FewShot(np.concatenate(quarters), names)


class Episode(NamedTuple):
    """A few labeled images to learn from, the support, and others to label, the query.

    Parameters
    ----------
    support : float32 array of shape (ways * shots, side, side)
        Class after class.
    support_labels : int64 array of shape (ways * shots,)
        From 0 to ways - 1.
    query : float32 array of shape (ways * queries, side, side)
        Class after class.
    query_labels : int64 array of shape (ways * queries,)
        From 0 to ways - 1.
    """

    support: NDArray[np.float32]
    support_labels: NDArray[np.int64]
    query: NDArray[np.float32]
    query_labels: NDArray[np.int64]


def episode(
    few_shot: FewShot,
    ways: int,
    shots: int,
    queries: int,
    generator: np.random.Generator,
    warp: bool = True,
) -> Episode:
    """Draw an episode [1]_: classes at random, and examples of each.

    No example is in the support and in the query. With warps, an example can be several
    queries, each with a warp of its own, where a class has too few.

    Parameters
    ----------
    few_shot : FewShot
        What to draw from.
    ways, shots, queries : int
        The number of classes, of images of each in the support, and in the query.
    generator : numpy.random.Generator
        What to draw with; the episode is a function of its state.
    warp : bool
        Whether to warp each image at random, by `affine_warps`.

    Returns
    -------
    Episode
        The images and their labels.

    Raises
    ------
    ValueError
        If there are too few classes, or too few examples of each.

    References
    ----------
    .. [1] O. Vinyals, C. Blundell, T. Lillicrap, K. Kavukcuoglu, D. Wierstra, "Matching
       networks for one shot learning", Advances in Neural Information Processing
       Systems 29 (2016).

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint_models.data import FewShot, episode
    >>> images = np.random.default_rng(0).random((10, 6, 28, 28), np.float32)
    >>> few_shot = FewShot(images, tuple("abcdefghij"))
    >>> drawn = episode(few_shot, ways=5, shots=1, queries=2,
    ...                 generator=np.random.default_rng(1))
    >>> drawn.support.shape, drawn.query.shape
    ((5, 28, 28), (10, 28, 28))
    >>> drawn.query_labels
    array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    """
    _check_episode(few_shot, ways, shots, queries, warp)
    classes = generator.permutation(len(few_shot))[:ways]
    chosen = [_examples(few_shot.examples, shots, queries, generator) for _ in classes]
    parts = [
        np.concatenate(
            [
                few_shot.images[index, part]
                for index, part in zip(classes, p, strict=True)
            ]
        )
        for p in zip(*chosen, strict=True)
    ]
    support, query = (affine_warps(part, generator) if warp else part for part in parts)
    labels = np.arange(ways, dtype=np.int64)
    return Episode(support, labels.repeat(shots), query, labels.repeat(queries))


def _check_episode(
    few_shot: FewShot, ways: int, shots: int, queries: int, warp: bool
) -> None:
    for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
        check_count(name, value, 1)
    if ways > len(few_shot):
        raise ValueError(
            f"ways must be at most the {len(few_shot)} classes, got {ways}"
        )
    # With warps one example is enough for all queries.
    needed = shots + (1 if warp else queries)
    if needed > few_shot.examples:
        raise ValueError(
            f"{shots} shots and {queries} queries need {needed} examples or more of "
            f"each class, got {few_shot.examples}"
        )


def _examples(
    number: int, shots: int, queries: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which examples are support, and which of the others are queries, over again if
    too few.
    """
    order = generator.permutation(number)
    return order[:shots], np.resize(order[shots:], queries)


def affine_warps(
    images: NDArray[np.float32], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Rotate, stretch, shear and shift each image at random, about its middle.

    Parameters
    ----------
    images : float32 array of shape (number, side, side)
        Images on a background of 0.
    generator : numpy.random.Generator
        What to draw the warps with.

    Returns
    -------
    float32 array of shape (number, side, side)
        No value is outside the range of the image and 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fixedpoint_models.data import affine_warps
    >>> square = np.pad(np.ones((1, 10, 10), np.float32), ((0, 0), (9, 9), (9, 9)))
    >>> warped = affine_warps(square, np.random.default_rng(0))
    >>> warped.shape, bool(0.6 < warped.sum() / square.sum() < 1.6)
    ((1, 28, 28), True)
    """
    warped = np.empty_like(images)
    center = (np.array(images.shape[1:]) - 1.0) / 2.0
    draws = generator.uniform(-1.0, 1.0, (len(images), 6))
    for image, out, draw in zip(images, warped, draws, strict=True):
        matrix = _matrix(*draw[:4])
        # A pixel of the result is looked up at matrix @ pixel + offset in the image.
        offset = center - matrix @ (center + SHIFT * len(image) * draw[4:])
        affine_transform(image, matrix, offset, output=out, order=1)
    return warped


def _matrix(
    rotation: float, rows: float, columns: float, shear: float
) -> NDArray[np.float64]:
    """From four numbers between -1 and 1."""
    angle = ROTATION * rotation
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    skew = np.array([[1.0, 0.0], [SHEAR * shear, 1.0]])
    matrix: NDArray[np.float64] = (
        turn @ skew * np.exp(STRETCH * np.array([rows, columns]))
    )
    return matrix


@dataclass(frozen=True)
class Episodes:
    """Episodes without end; every iteration starts anew and is the same.

    Parameters
    ----------
    few_shot : FewShot
        What to draw from.
    ways, shots, queries : int
        The number of classes, of images of each in the support, and in the query.
    seed : int
        What the episodes depend on.
    warp : bool
        Whether to warp each image at random.

    Examples
    --------
    >>> from itertools import islice
    >>> import numpy as np
    >>> from fixedpoint_models.data import Episodes, FewShot
    >>> few_shot = FewShot(np.zeros((10, 6, 28, 28), np.float32), tuple("abcdefghij"))
    >>> for drawn in islice(Episodes(few_shot, ways=5, shots=1, queries=3, seed=1), 2):
    ...     print(drawn.support.shape, drawn.query.shape)
    (5, 28, 28) (15, 28, 28)
    (5, 28, 28) (15, 28, 28)
    """

    few_shot: FewShot
    ways: int
    shots: int
    queries: int
    seed: int = 0
    warp: bool = True

    def __post_init__(self) -> None:
        _check_episode(self.few_shot, self.ways, self.shots, self.queries, self.warp)

    def __iter__(self) -> Iterator[Episode]:
        generator = np.random.default_rng(self.seed)
        while True:
            yield episode(
                self.few_shot, self.ways, self.shots, self.queries, generator, self.warp
            )
