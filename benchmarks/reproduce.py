"""The tasks of the paper on real data: ``python benchmarks/reproduce.py [part ...]``.

The parts are those of `PARTS`; without one, all run, in two hours and a half on one
core. The data are looked for in ``--data``, by default the folder that FIXEDPOINT_DATA
names; without them nothing is measured. Of MNIST the test files are enough: the first
8,000 of their images are trained on, the others tested with. Times are processor time
on one thread. What was measured goes, as JSON, to ``--output``, where parts that were
not run stay as they are; the page *Reproducing the paper* is made from it.

Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
equilibrium networks", NeurIPS 2021, arXiv:2111.13236. Lecouat, Ponce and Mairal, "A
flexible framework for designing trainable priors with adaptive smoothing and game
encoding", NeurIPS 2020, arXiv:2006.14859.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fixedpoint_models.config import load_config
from fixedpoint_models.data import DataError
from fixedpoint_models.devices import Processes
from fixedpoint_models.runner import Run, begin
from fixedpoint_models.tasks import task_class

CPU = torch.device("cpu")
OUTPUT = Path(__file__).parent / "reproduction.json"
Row = dict[str, Any]

# Of MNIST only the smaller files are needed.
MNIST = ("train=t10k[:8000]", "test=t10k[8000:]")
ATTACKS = {
    "joint": ("attack.method=joint",),
    "nested, 5 steps": (
        "attack.method=nested",
        "attack.steps=5",
        "attack.step_size=0.5",
    ),
    "none": ("attack.method=none",),
}


def trained(
    name: str, changes: tuple[str, ...], folder: Path | None = None
) -> tuple[Any, Row]:
    """A task, trained by the settings of a file and some changes; what was read, and
    what training took. The checkpoint stays if there is a folder for it.
    """
    task = name.partition("_")[0]
    kind = task_class(task)
    config = load_config(name, task, kind.settings_type(), changes)
    with tempfile.TemporaryDirectory() as temporary:
        experiment = begin(kind, config.settings, CPU)
        run = Run(task, experiment, config, folder or Path(temporary), Processes())
        begun = time.process_time()
        run.train()
        seconds = time.process_time() - begun
    number = sum(p.numel() for p in experiment.module.parameters())
    settings = f"{name}: {', '.join(changes)}"
    return experiment, {
        "settings": settings,
        "parameters": number,
        "train seconds": round(seconds, 1),
    }


def timed(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What is measured, and the processor time that it takes."""
    begun = time.process_time()
    figures = measure()
    return {**figures, "test seconds": round(time.process_time() - begun, 1)}


def adversarial(name: str, attacks: tuple[str, ...], *changes: str) -> list[Row]:
    """Classifiers that are trained alike, but for how their attacks are found."""
    rows = []
    for attack in attacks:
        experiment, row = trained(name, (*MNIST, *changes, *ATTACKS[attack]))
        rows.append({"attack": attack, **row, **timed(experiment.evaluate)})
        print(rows[-1], flush=True)
    return rows


def mnist_dense() -> list[Row]:
    """The dense classifier."""
    return adversarial("adversarial_mnist_dense", tuple(ATTACKS), "training.epochs=6")


def mnist_mdeq() -> list[Row]:
    """The multiscale classifier."""
    attacks = ("joint", "nested, 5 steps")
    changes = ("held_out=1000",)
    return adversarial("adversarial_mnist", attacks, *changes)


def mnist_mdeq_epoch() -> list[Row]:
    """An epoch of the training of that classifier by each attack, for the times."""
    rows = []
    for attack in ("joint", "nested, 5 steps"):
        changes = (*MNIST, "training.epochs=1", *ATTACKS[attack])
        rows.append({"attack": attack, **trained("adversarial_mnist", changes)[1]})
        print(rows[-1], flush=True)
    return rows


def omniglot() -> list[Row]:
    """Five characters at a time, joint adaptation and nested; and the same network on
    twenty at a time, and on the official runs.
    """
    joint = {"method": "recipe", "steps": 40}
    nested = {"method": "nested", "steps": 20}
    return few_shot("meta_omniglot", {"joint": joint, "nested": nested})


def omniglot_large() -> list[Row]:
    """The same of a larger network, trained on ten characters at a time."""
    joint = {"method": "quasi-newton", "steps": 100}
    nested = {"method": "nested", "steps": 40, "step_size": 0.25}
    return few_shot("meta_omniglot_large", {"joint": joint, "nested": nested})


def few_shot(name: str, methods: dict[str, dict[str, Any]]) -> list[Row]:
    """Few-shot tasks by a network, adapted with the settings of each method."""
    rows = []
    experiment, row = trained(name, ())
    settings = experiment.settings
    for label, method in methods.items():
        for ways in (5, 20):
            experiment.settings = replace(
                settings,
                **method,
                test_ways=ways,
                test_tasks=200 if ways == 5 else 60,
                runs=settings.runs if ways == 20 else None,
            )
            figures = timed(experiment.evaluate)
            rows.append({"adaptation": label, "ways": ways, **row, **figures})
            print(rows[-1], flush=True)
    return rows


def bsd() -> list[Row]:
    """Dictionaries shared by three levels of noise."""
    experiment, row = trained("denoising_bsd", ())
    figures = timed(experiment.evaluate)
    return [
        {
            "level": level,
            **row,
            "images": len(experiment.test),
            **{
                name: figures[f"{name}_{level:g}"]
                for name in ("psnr_noisy", "psnr_tv", "psnr", "seconds")
            },
        }
        for level in experiment.settings.levels
    ]


def patches(*changes: str) -> list[Row]:
    """What a decoder that started as principal components recovers, and what is
    recovered without it: for each problem, PSNR and SSIM.
    """
    with tempfile.TemporaryDirectory() as folder:
        experiment, row = trained("generative_bsd", changes, Path(folder))
        row["latent"] = experiment.decoder.latent
        asked = (f"checkpoint={folder}/checkpoint.pt",)
        kind = task_class("inverse")
        config = load_config("inverse_bsd", "inverse", kind.settings_type(), asked)
        task = begin(kind, config.settings, CPU)
        figures = timed(task.evaluate)
    rows = []
    for problem in config.settings.problems:
        own = {
            key.removeprefix(f"{problem.name}/"): value
            for key, value in figures.items()
            if key.startswith(f"{problem.name}/")
        }
        rows.append({"problem": problem.name, **row, **own})
        print(rows[-1], flush=True)
    return rows


def patches_32() -> list[Row]:
    """Codes of 32 entries."""
    return patches()


def patches_128() -> list[Row]:
    """Codes of 128 entries."""
    return patches("network.latent=128", "network.basis=384")


PARTS: dict[str, Callable[[], list[Row]]] = {
    "mnist-dense": mnist_dense,
    "omniglot": omniglot,
    "omniglot-large": omniglot_large,
    "bsd": bsd,
    "mnist-mdeq": mnist_mdeq,
    "mnist-mdeq-epoch": mnist_mdeq_epoch,
    "patches-32": patches_32,
    "patches-128": patches_128,
}


def machine() -> str:
    """What the numbers were measured on."""
    python = f"{platform.machine()}, Python {platform.python_version()}"
    return f"{python}, PyTorch {torch.__version__}, one thread"


def main() -> None:
    """Run the parts that were asked for, and write each down when it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--data", default=os.environ.get("FIXEDPOINT_DATA"))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if not asked.data or not Path(asked.data).is_dir():
        sys.exit(f"skipped: no data in --data or FIXEDPOINT_DATA, got {asked.data!r}")
    os.environ["FIXEDPOINT_DATA"] = asked.data
    torch.set_num_threads(1)
    for name in asked.parts or PARTS:
        print(name, flush=True)
        try:
            record(name, asked.output)
        except DataError as error:
            print(f"skipped: {error}", flush=True)


def record(name: str, output: Path) -> None:
    """Run a part, and write it down beside the others."""
    part = {"machine": machine(), "rows": PARTS[name]()}
    old = json.loads(output.read_text()) if output.exists() else {}
    content = json.dumps(old | {name: part}, indent=1, allow_nan=False)
    output.write_text(content + "\n")


if __name__ == "__main__":
    main()
