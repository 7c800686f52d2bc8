"""Train the small models that come along: ``python benchmarks/pretrain.py [NAME ...]``.

From seeds, on digits that come with scikit-learn and on glyphs of Matplotlib's fonts;
what is held out is said where :func:`fixedpoint_models.pretrained` is documented. The
weights go to ``models/fixedpoint_models/weights``, in single precision, as arrays
without pickles. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import fixedpoint_models
from fixedpoint_models import Training, train
from fixedpoint_models.data import digits, glyphs, split_classes
from fixedpoint_models.decoder import Params
from fixedpoint_models.demo import split

FOLDER = Path(fixedpoint_models.__file__).parent / "weights"
SEED = 0
# Of the glyphs: the side, the part of the characters that is trained on, and how many
# images of these.
SIDE, PART, NUMBER = 16, 0.9, 3000


def digits_decoder() -> Params:
    """All digits but those that the demonstration recovers."""
    return decoder(split(digits(), SEED).train, epochs=60)


def glyphs_decoder() -> Params:
    """Most characters, in some of the fonts each."""
    images = split_classes(glyphs(SIDE), PART, SEED)[0].images.reshape(-1, SIDE**2)
    chosen = np.random.default_rng(SEED).permutation(len(images))[:NUMBER]
    return decoder(torch.as_tensor(images[chosen], dtype=torch.float64), epochs=30)


def decoder(images: torch.Tensor, epochs: int) -> Params:
    """The parameters after so many passes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        return train(images, Training(seed=SEED, epochs=epochs), file).params()


MODELS: dict[str, Callable[[], Params]] = {
    "digits-decoder": digits_decoder,
    "glyphs-decoder": glyphs_decoder,
}


def main() -> None:
    """Train the models named, or all, and write their weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    asked = parser.parse_args().names
    if unknown := set(asked) - set(MODELS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in asked or MODELS:
        arrays = {
            key: np.asarray(value, np.float32) for key, value in MODELS[name]().items()
        }
        np.savez(FOLDER / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
