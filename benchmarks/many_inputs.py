"""Evaluations to an objective where inputs are images, free or in a box.

A convolutional equilibrium is to show a blurred image: x, of 10,000 entries, is
optimized by the joint solve with nothing named, and by L-BFGS-B of SciPy over nested
solves, the state and the adjoint each from where they were, at three tolerances of
which the best counts at each target. Evaluations of f and products are counted
together. The settings of the joint solve were chosen on seeds 0 to 5. A target is the
part of the first objective, above the lowest that any method found, that is left.

    python benchmarks/many_inputs.py [--seeds 6 7 8] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from input_optimization import finite, machine

import fixedpoint as fp
from fixedpoint_models import AugmentedDEQ, Nested
from fixedpoint_models.comparison import one_thread

SIDE = 100
TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
STEPS = sorted({round(1.1**k) for k in range(62)})
TOLERANCES, EVALUATIONS = (1e-3, 1e-4, 1e-6), 300
BOX, SMOOTH = (0.0, 1.0), 1e-4

# Averages over 5×5 pixels.
BLUR = torch.full((1, 1, 5, 5), 0.04, dtype=torch.float64)


def convolved(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The images, convolved and of the same size."""
    padding = kernel.shape[-1] // 2
    return torch.nn.functional.conv2d(image[:, None], kernel, padding=padding)[:, 0]


def squares(x: torch.Tensor) -> torch.Tensor:
    """½‖x‖² of each sample."""
    return 0.5 * (x**2).flatten(1).sum(1)


def variation(x: torch.Tensor) -> torch.Tensor:
    """The total variation of each sample, along both axes and smoothed."""
    parts = [(x.diff(dim=axis) ** 2 + SMOOTH).sqrt() for axis in (1, 2)]
    return sum(part.flatten(1).sum(1) for part in parts)


@dataclass(frozen=True)
class Problem:
    """An image z = f(Kz, x), blurred, is to be y, with a prior on x in a set.

    Parameters
    ----------
    cell : callable
        Kz, x ↦ z.
    prior : callable
        What is added to half the squared distance.
    box : bool
        Whether the entries of x are bounded.
    slow : bool
        Whether K has weights of one sign, so that sweeps contract at its gain.
    """

    cell: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    prior: Callable[[torch.Tensor], torch.Tensor]
    box: bool = False
    slow: bool = False

    def drawn(self, seed: int) -> tuple[AugmentedDEQ, torch.Tensor]:
        """The model, and the blurred image."""
        random = torch.Generator().manual_seed(seed)
        draw = torch.rand if self.slow else torch.randn
        kernel = draw(1, 1, 3, 3, generator=random, dtype=torch.float64)
        gain = (0.8, 0.9, 0.95)[seed % 3]
        kernel = gain * kernel / kernel.abs().sum()
        tiles = torch.rand(1, SIDE // 10, SIDE // 10, generator=random).double()
        image = tiles.repeat_interleave(10, 1).repeat_interleave(10, 2)
        noise = torch.randn(image.shape, generator=random, dtype=torch.float64)
        model = AugmentedDEQ(
            lambda z, x, _: self.cell(convolved(z, kernel), x),
            lambda o, x, y, _: squares(o - y) + self.prior(x),
            lambda z, _: convolved(z, BLUR),
            project=(lambda x: x.clamp(*BOX)) if self.box else None,
        )
        return model, convolved(image, BLUR) + 0.05 * noise


def bounded(mixed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A cell whose states are between −1 and 1."""
    return torch.tanh(mixed + x)


def positive(mixed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A cell whose states are positive."""
    return torch.nn.functional.softplus(mixed + x)


def linear(mixed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """An affine cell."""
    return mixed + x


PROBLEMS = {
    "deblurring": Problem(bounded, lambda x: 1e-2 * squares(x)),
    "deblurring in a box": Problem(linear, lambda x: 1e-3 * squares(x), box=True),
    "total variation": Problem(positive, lambda x: 2e-2 * variation(x)),
}
PROBLEMS |= {f"{name}, slow": replace(p, slow=True) for name, p in PROBLEMS.items()}

# What was spent, and the objective then.
Trace = list[tuple[int, float]]


def joint(model: AugmentedDEQ, y: torch.Tensor) -> tuple[Trace, int | None]:
    """The trace of the joint solve, and the steps until its residuals are met."""
    zero, trace = torch.zeros_like(y), []
    for steps in STEPS:
        settings: dict[str, Any] = {"max_steps": steps, "on_failure": "return"}
        found = model.iterate(zero, zero, params=None, y=y, **settings)
        objective = model.objective(zero, found.value["x"], params=None, y=y)
        trace.append((int(found.work.f) + int(found.work.vjp), float(objective)))
        if bool(found.converged):
            return trace, int(found.steps)
    return trace, None


def nested(model: AugmentedDEQ, y: torch.Tensor, tolerance: float) -> Trace:
    """The trace of L-BFGS-B over nested solves."""
    at, spent, trace = [torch.zeros_like(y)] * 2, [0], []
    inner = Nested(model.problem, torch.optim.SGD, fp.Anderson(), tolerance)

    def objective(entries: Any) -> tuple[float, Any]:
        x = torch.tensor(entries).reshape(y.shape)
        found = inner.reduced(*at, x, params=None, y=y)
        at[:] = found.z, found.mu
        spent[0] += found.evaluations + found.products
        trace.append((spent[0], found.loss))
        return found.loss, found.gradient.numpy().ravel()

    scipy.optimize.minimize(
        objective,
        np.zeros(y.numel()),
        method="L-BFGS-B",
        jac=True,
        bounds=None if model.project is None else [BOX] * y.numel(),
        options={"maxfun": EVALUATIONS, "maxiter": EVALUATIONS},
    )
    return trace


def spent_until(trace: Trace, target: float) -> int | None:
    """What was spent when the objective was first at the target."""
    return next((spent for spent, found in trace if found <= target), None)


def row(name: str, seed: int) -> dict[str, Any]:
    """What each method spent until each target."""
    model, y = PROBLEMS[name].drawn(seed)
    ours, steps = joint(model, y)
    theirs = [nested(model, y, tolerance) for tolerance in TOLERANCES]
    first, lowest = theirs[-1][0][1], min(f for t in [ours, *theirs] for _, f in t)
    targets = []
    for part in TARGETS:
        target = lowest + part * (first - lowest)
        reached = [spent_until(trace, target) for trace in theirs]
        best = min((spent for spent in reached if spent is not None), default=None)
        entry = {"joint": spent_until(ours, target), "nested": best}
        targets.append({"part": part} | entry)
    return {"problem": name, "seed": seed, "steps": steps, "targets": targets}


def rows(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """All rows, each printed when it is there."""
    for name in PROBLEMS:
        for seed in seeds:
            found = row(name, seed)
            counts = [(t["joint"], t["nested"]) for t in found["targets"]]
            print(f"{name:28}{seed:4}  steps {found['steps']}  {counts}", flush=True)
            yield found


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8])
    default = Path(__file__).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=default)
    given = parser.parse_args()
    with one_thread():
        found = {"machine": machine(), "problems": list(rows(given.seeds))}
    given.output.write_text(json.dumps(finite(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
