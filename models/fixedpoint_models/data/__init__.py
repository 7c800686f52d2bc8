"""Images to train and test on: published sets, photographs, glyphs, and few-shot
episodes.

All is read from local files, or from files that come with installed packages; nothing
is downloaded, and nothing is unpickled. Everything is NumPy.
"""

from fixedpoint_models.data.few_shot import (
    Episode,
    Episodes,
    FewShot,
    affine_warps,
    episode,
    split_alphabets,
    split_classes,
    turned,
)
from fixedpoint_models.data.folders import celeba, official_runs, omniglot
from fixedpoint_models.data.fonts import glyphs
from fixedpoint_models.data.images import (
    DataError,
    digits,
    load_images,
    located,
    square_masks,
)
from fixedpoint_models.data.patches import (
    TEST_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    gray_images,
    patches_of,
    photographs,
)
from fixedpoint_models.data.records import cifar10, mnist

__all__ = [
    "TEST_PHOTOGRAPHS",
    "TRAIN_PHOTOGRAPHS",
    "DataError",
    "Episode",
    "Episodes",
    "FewShot",
    "affine_warps",
    "celeba",
    "cifar10",
    "digits",
    "episode",
    "glyphs",
    "gray_images",
    "load_images",
    "located",
    "mnist",
    "official_runs",
    "omniglot",
    "patches_of",
    "photographs",
    "split_alphabets",
    "split_classes",
    "square_masks",
    "turned",
]
