"""Time to an objective on decoders that the settings were not chosen on.

Equilibrium decoders of 8×8 digits, of several widths, latents, outputs and norms, are
trained from a seed; latent codes of images that they have not seen are optimized by the
joint solve with its defaults, and by a grid of nested methods, the best of which counts
at each target. The settings of the joint solve were chosen on seeds 0 and 10 to 14, and
the grid on seed 0: from a larger one, what was fastest to some target. Every objective
is re-solved from a cold start at x. Times are processor time on one thread.

    python benchmarks/decoder_families.py [--seeds 1 2] [--families NAME ...]

What was measured goes, as JSON, to ``--output``, where tasks that were not run stay as
they are.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from input_optimization import finite, machine
from sklearn.datasets import load_digits

from fixedpoint_models import AugmentedDEQ, TrackedNewton, equilibrium_map
from fixedpoint_models.comparison import (
    Task,
    Trace,
    nested_methods,
    one_thread,
    trace_joint,
    trace_nested,
)
from fixedpoint_models.data import square_masks

FACTORS = (1.01, 1.05, 1.2, 1.5, 2.0, 4.0)
STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 80, 130)
KKT_STEPS, KKT_RTOL = 200, 1e-4
HELD_OUT, PRIOR = 100, 0.01
OUTPUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "linear": lambda scores: scores,
    "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus,
}
# What the read-out starts from: dark images.
OFFSETS = {"linear": 0.3, "sigmoid": -1.0, "softplus": 0.3}


@dataclass(frozen=True)
class Family:
    """Decoders z = tanh(Wz + Ux + b), image = output(Cz + c), with ‖W‖₂ = `norm`."""

    width: int
    latent: int
    output: str
    norm: float
    is_symmetric: bool = False
    images: int = HELD_OUT
    problem: str = "reconstruction"
    dtype: torch.dtype = torch.float32


FAMILIES = {
    "small sigmoid": Family(32, 6, "sigmoid", 0.5),
    "small linear": Family(32, 6, "linear", 0.9, problem="inpainting"),
    "sigmoid": Family(64, 16, "sigmoid", 0.9),
    "sigmoid, one image": Family(64, 16, "sigmoid", 0.9, images=1),
    "expansive sigmoid": Family(64, 16, "sigmoid", 1.3),
    "expansive linear": Family(128, 16, "linear", 1.3, problem="inpainting"),
    "expansive linear, one image": Family(128, 16, "linear", 1.3, images=1),
    "softplus": Family(128, 32, "softplus", 0.9, problem="inpainting"),
    "symmetric linear": Family(128, 16, "linear", 0.97, True),
    "symmetric sigmoid": Family(128, 16, "sigmoid", 0.99, True, problem="inpainting"),
    "many latents": Family(256, 64, "sigmoid", 0.9),
    "wide softplus": Family(512, 16, "softplus", 1.1),
    "sigmoid, double": Family(64, 16, "sigmoid", 0.9, dtype=torch.float64),
}


class Plain(Task):
    """A task whose objective is re-solved by plain sweeps."""

    def objective(self, x: torch.Tensor) -> float:
        """The mean objective at x, infinite if it is not a number."""
        state, model = self.z, self.model
        with torch.no_grad():
            for count in range(3000):
                before, state = state, model.f(state, x, self.params)
                if count % 8 == 7 and (state - before).norm() <= 1e-5 * state.norm():
                    break
            losses = model.problem.loss_at(state, x, self.y, self.params)
        value = float(losses.mean())
        return math.inf if math.isnan(value) else value


def digits(seed: int) -> torch.Tensor:
    """The digits, shuffled: the first are held out."""
    images, _ = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    return torch.as_tensor(images[order] / 16.0, dtype=torch.float32)


def read_out(kind: str) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    """The image of a state."""
    activation = OUTPUTS[kind]
    return lambda z, params: activation(z @ params["C"].T + params["c"])


def misfit(o: torch.Tensor, x: torch.Tensor, y: Any, params: Any) -> torch.Tensor:
    """‖m ∘ (o − image)‖² + λ‖x‖² per sample, of y = (image, m)."""
    del params
    image, mask = y
    return (mask * (o - image) ** 2).sum(-1) + PRIOR * (x**2).sum(-1)


def trained(family: Family, seed: int, epochs: int = 12) -> dict[str, torch.Tensor]:
    """The parameters after some epochs with codes of their own for the images."""
    torch.manual_seed(seed)
    images, width = digits(seed)[HELD_OUT:], family.width
    steep = 6.0 if family.is_symmetric else 1.0
    weights = {
        "V": torch.randn(width, width) / width**0.5,
        "U": torch.randn(width, family.latent) / family.latent**0.5 / steep**0.7,
        "C": steep * torch.randn(64, width) / width**0.5,
        "b": torch.zeros(width),
        "c": torch.full((64,), OFFSETS[family.output]),
    }
    codes = (0.1 * torch.randn(len(images), family.latent)).requires_grad_()
    leaves = [leaf.requires_grad_() for leaf in weights.values()]
    groups = [{"params": leaves, "lr": 3e-3}, {"params": [codes], "lr": 2e-2}]
    optimizer, decode = torch.optim.Adam(groups), read_out(family.output)
    states = torch.zeros(len(images), width)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            params = bounded(weights, family)
            state = unrolled(states[batch], codes[batch], params, family)
            states[batch] = state.detach()
            y = images[batch], torch.ones_like(images[batch])
            loss = misfit(decode(state, params), codes[batch], y, params).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: leaf.detach() for name, leaf in bounded(weights, family).items()}


def bounded(weights: dict[str, torch.Tensor], family: Family) -> dict[str, Any]:
    """W of the norm of its family, in the place of V."""
    V = weights["V"]
    V = (V + V.T) / 2 if family.is_symmetric else V
    return {**weights, "W": V * (family.norm / torch.linalg.matrix_norm(V, 2))}


def unrolled(
    state: torch.Tensor, codes: torch.Tensor, params: Any, family: Family
) -> torch.Tensor:
    """Sweeps without derivatives, then a few that are recorded."""
    with torch.no_grad():
        for _ in range(40 if family.is_symmetric else 15):
            state = equilibrium_map(state, codes, params)
    for _ in range(8 if family.is_symmetric else 4):
        state = equilibrium_map(state, codes, params)
    return state


def task(family: Family, seed: int) -> Plain:
    """Codes of images that were held out."""
    params = {k: leaf.to(family.dtype) for k, leaf in trained(family, seed).items()}
    images = digits(seed)[: family.images].to(family.dtype)
    mask = torch.ones_like(images)
    if family.problem == "inpainting":
        hidden = square_masks(len(images), 8, 8, seed, 4)
        mask = torch.as_tensor(hidden, dtype=family.dtype).reshape(images.shape)
    model = AugmentedDEQ(equilibrium_map, misfit, read_out(family.output))
    zeros = [
        images.new_zeros(len(images), size) for size in (family.width, family.latent)
    ]
    return Plain(model, params, (images, mask), *zeros)


def race(of: Plain, seconds: float) -> dict[str, Any]:
    """The times to all targets, and the part of the samples that end at a KKT point."""
    settings = {"method": TrackedNewton()}
    with one_thread():
        trace_joint(of, "", settings, steps=(2,))  # warms caches
        ours = trace_joint(of, "joint", settings, steps=STEPS)
        methods = {
            name: one
            for name, one in nested_methods(of.model.problem).items()
            if is_likely(name)
        }
        nested = [trace_nested(of, k, one, seconds) for k, one in methods.items()]
        again = trace_joint(of, "joint", settings, steps=STEPS)
    lowest = min(min(trace.objectives) for trace in (ours, *nested))
    rows = list(targets(mean_of(ours, again), nested, lowest, of.objective(of.x)))
    return {"lowest": lowest, "targets": rows, "kkt": kkt(of)}


def is_likely(name: str) -> bool:
    """Whether a nested method was the fastest to some target on the first seed."""
    if "Anderson" in name:
        return "L-BFGS 1.0" in name or "Nesterov 0.1, momentum 0.7" in name
    return not any(rate in name for rate in ("Nesterov 0.4", "Adam 0.1", "Adam 0.8"))


def mean_of(first: Trace, second: Trace) -> Trace:
    """Our times before and after the nested methods ran, in the mean."""
    pairs = zip(first.seconds, second.seconds, strict=False)
    seconds = [0.5 * (a + b) for a, b in pairs]
    return first._replace(seconds=seconds, objectives=first.objectives[: len(seconds)])


def targets(
    ours: Trace, nested: list[Trace], lowest: float, start: float
) -> Iterator[dict[str, Any]]:
    """The race to each target that the start does not meet."""
    for factor in FACTORS:
        if start > factor * lowest:
            best = min(nested, key=lambda one: one.time_to(factor * lowest))
            joint, theirs = (one.time_to(factor * lowest) for one in (ours, best))
            ratio = 0.0 if math.isinf(joint) else theirs / joint
            yield {
                "factor": factor,
                "joint": joint,
                "nested": theirs,
                "ratio": ratio,
                "by": best.name,
            }


def kkt(of: Plain) -> float:
    """The part of the samples that meet the tolerance in every block."""
    with torch.no_grad():
        solution = of.model.iterate(
            of.z,
            of.x,
            params=of.params,
            y=of.y,
            method=TrackedNewton(),
            max_steps=KKT_STEPS,
            rtol=KKT_RTOL,
            atol=0.0,
            on_failure="return",
        )
    return float(solution.converged.double().mean())


def show(name: str, result: dict[str, Any]) -> None:
    """Print a line."""
    rows = result["targets"]
    ratios = "  ".join(f"{r['factor']}: {r['ratio']:.1f}" for r in rows)
    first = 1e3 * rows[-1]["joint"]
    print(f"{name:42s} KKT {100 * result['kkt']:3.0f} %  {first:6.1f} ms  {ratios}")


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean and the worst ratio, of targets that a nested method reached."""
    ratios = [r["ratio"] for result in results for r in result["targets"]]
    finite = [max(ratio, 1e-3) for ratio in ratios if ratio < math.inf]
    return {
        "targets": len(ratios),
        "never reached by nested methods": len(ratios) - len(finite),
        "geometric mean": statistics.geometric_mean(finite),
        "worst": min(ratios),
        "below one": sum(ratio < 1.0 for ratio in ratios),
        "least KKT": min(result["kkt"] for result in results),
    }


def main() -> None:
    """Race on all families, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json")
    )
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        for name in options.families:
            longer = 2.0 if FAMILIES[name].width > 128 else 1.0
            result = race(task(FAMILIES[name], seed), longer * options.seconds)
            results.append({"family": name, "seed": seed, **result})
            show(f"{name}, seed {seed}", results[-1])
            record(results[-1], options.output)
    print(summary(results))


def record(result: dict[str, Any], output: Path) -> None:
    """Write a task down beside the others."""
    old = json.loads(output.read_text())["tasks"] if output.exists() else []
    kept = [task for task in old if place(task) != place(result)]
    content = {"machine": machine(), "tasks": sorted([*kept, result], key=place)}
    output.write_text(json.dumps(finite(content), indent=1) + "\n")


def place(result: dict[str, Any]) -> tuple[int, int]:
    """Where a task stands among the others."""
    return list(FAMILIES).index(result["family"]), result["seed"]


if __name__ == "__main__":
    main()
