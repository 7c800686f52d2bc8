"""The pictures of the page *Reproducing the paper*: ``python benchmarks/pictures.py``.

Digits and characters that were not trained on, by the decoders that come along; and
patches of photographs, by a decoder that is trained in two minutes. All are of sets
whose terms allow to show them: the digits of scikit-learn, characters of Matplotlib's
fonts, and photographs that come with scikit-image and scikit-learn. The files go to
``--output``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

import fixedpoint as fp
from fixedpoint_models import TrackedNewton, decode, equilibrium_map, pretrained
from fixedpoint_models.comparison import recovery
from fixedpoint_models.config import load_config
from fixedpoint_models.data import digits, glyphs, split_classes, square_masks
from fixedpoint_models.demo import split
from fixedpoint_models.devices import Processes
from fixedpoint_models.plots import draw_recovered
from fixedpoint_models.runner import Run, begin
from fixedpoint_models.tasks.generative import Generative
from fixedpoint_models.tasks.inverse import Inverse

CPU = torch.device("cpu")
OUTPUT = Path(__file__).parents[1] / "docs" / "gallery"
SHOWN, FONT = 12, 3
# Of photographs: how many are shown, and in how many colors, so that files are small.
FEWER, COLORS = 8, 48
# In the place of files that do not come along: photographs that do.
PHOTOGRAPHS = (
    *("images.folder=null", "images.test_folder=null"),
    *("images.stride=24", "network.basis=128", "training.epochs=8"),
)


def characters() -> torch.Tensor:
    """Characters that were held out, of one font."""
    held_out = split_classes(glyphs(16), 0.9, 0)[1].images[:, FONT]
    return torch.as_tensor(held_out.reshape(len(held_out), -1), dtype=torch.float64)


def draw(name: str, images: torch.Tensor, file: Path) -> None:
    """Images, what is seen of them, and what a decoder recovers."""
    images, params = images[:SHOWN], pretrained(name)
    side = math.isqrt(images.shape[1])
    masks = torch.as_tensor(square_masks(len(images), side, side, 0, side // 4))
    masks = masks.reshape(images.shape)
    task = recovery(params, images, masks)
    found = task.model.iterate(
        task.z, task.x, params=params, y=task.y, method=TrackedNewton()
    )
    args = found.value["x"], params
    state = fp.fixed_point(equilibrium_map, task.z, args, batch_ndim=1).value
    recovered = torch.where(masks > 0.0, images, decode(state, params))
    seen = torch.where(masks > 0.0, images, torch.nan)
    rows = {"original": images, "seen": seen, "recovered": recovered}
    shape = -1, side, side
    draw_recovered({k: row.reshape(shape).numpy() for k, row in rows.items()}, file)


def photographs(output: Path) -> None:
    """Patches from measurements, by a decoder that started as principal components."""
    config = load_config(
        "generative_bsd", "generative", Generative.settings_type(), PHOTOGRAPHS
    )
    with tempfile.TemporaryDirectory() as folder:
        experiment = begin(Generative, config.settings, CPU)
        Run("generative", experiment, config, Path(folder), Processes()).train()
        asked = (f"checkpoint={folder}/checkpoint.pt",)
        inverse = load_config(
            "inverse_bsd", "inverse", Inverse.settings_type(), asked
        ).settings
        shown = ("denoising-0.2", "inpainting")
        problems = tuple(p for p in inverse.problems if p.name in shown)
        task = Inverse(replace(inverse, problems=problems, number=FEWER), CPU)
        for file in task.draw(Path(folder)):
            with Image.open(file) as picture:
                small = picture.convert("RGB").quantize(COLORS)
            small.save(output / f"reproduced_{file.stem}.png", optimize=True)


def main() -> None:
    """Draw all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    sets = {"digits": split(digits(), 0).held_out, "glyphs": characters()}
    for name, images in sets.items():
        draw(f"{name}-decoder", images, output / f"reproduced_{name}.png")
    photographs(output)


if __name__ == "__main__":
    main()
