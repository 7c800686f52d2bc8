"""Time to an objective: the joint solve of state, adjoint and input against nested
optimization.

Every objective is re-solved from a cold start at x. Times are processor time on one
thread, all methods in one process. The nested methods, and the published recipe, are
tuned for each target over their grids; the tracked methods run with their defaults.

    python benchmarks/input_optimization.py [TASK ...] [--output FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import fixedpoint as fp
from fixedpoint.operators.base import leafwise
from fixedpoint_models import (
    AugmentedDEQ,
    ConditionalGradient,
    DenseClassifier,
    DenseDecoder,
    JointIteration,
    Nested,
    TrackedDescent,
    TrackedNewton,
    Training,
    attack_loss,
    ball,
    cross_entropy,
    decode,
    equilibrium_map,
    linear_minimizer,
    masked_loss,
    perturbed_map,
    scores,
    train,
)
from fixedpoint_models.comparison import (
    FACTORS,
    Task,
    Trace,
    nested_methods,
    one_thread,
    recipes,
    recovery,
    trace_joint,
    trace_nested,
)
from fixedpoint_models.config import load_config
from fixedpoint_models.data import photographs, square_masks
from fixedpoint_models.devices import processes
from fixedpoint_models.runner import Run, begin
from fixedpoint_models.tasks.generative import Generative
from fixedpoint_models.training import Trained

HELD_OUT = 100
SEED = 0
# An attack maximizes: what it minimizes is negative, and these parts of it are easier
# targets.
ATTACK_FACTORS = (0.99, 0.95, 0.9, 0.8, 0.5)
# The tasks that run where none is named.
TASKS = (
    "digits, inpainting",
    "digits, denoising 0.2",
    "digits, reconstruction",
    "hard digits, inpainting",
    "hard digits, reconstruction",
    "wide hard digits, inpainting",
    "patches, inpainting",
    "patches, denoising 0.2",
    "patches, reconstruction",
    "multiscale patches, reconstruction",
    "attack",
)
# What the multiscale decoder reconstructs, which takes longer.
FEWER = 32
# A dense decoder of 64×64 pixels.
OF_PATCHES = {"width": 256, "latent": 32, "epochs": 20}
STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 80)
KKT_STEPS, KKT_RTOL = 200, 1e-4
# A nested method runs this many times as long as the tracked one takes for its first
# step.
AS_LONG = 40
# And a run of the recipe no more than this.
NO_LONGER = 10
# How often the fastest run in turn.
ROUNDS = 7
TIGHTER = ", 1e-4"


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits, shuffled, and their classes, one-hot."""
    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(images))
    one_hot = np.eye(10)[classes[order]]
    return torch.as_tensor(images[order] / 16.0), torch.as_tensor(one_hot)


def easy_decoder(images: torch.Tensor, **settings: Any) -> dict[str, Any]:
    """The decoder of the demo: a spectral radius of about a half."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.pt"
        trained = train(images, Training(seed=SEED, **settings), file, progress=False)
    return trained.params()


def hard_decoder(
    images: torch.Tensor, width: int = 128, epochs: int = 20
) -> dict[str, Any]:
    """A decoder with symmetric W, whose Jacobians have spectral radii of 0.95 and more.

    Its read-out is large at the start, so that small states will do, at which tanh is
    steep.
    """
    torch.manual_seed(SEED)
    decoder = DenseDecoder(images.shape[1], width, bound=0.995, seed=SEED)
    with torch.no_grad():
        decoder.V.copy_((decoder.V + decoder.V.T) / 2)
        decoder.C.mul_(6.0)
        decoder.U.mul_(0.3)
    codes = torch.nn.Parameter(
        0.1 * torch.randn(len(images), decoder.latent, dtype=images.dtype)
    )
    optimizer = torch.optim.Adam([*decoder.parameters(), codes], lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(100):
            params = symmetric(decoder.params())
            start = torch.zeros(len(batch), decoder.width, dtype=images.dtype)
            state = fp.fixed_point(
                equilibrium_map,
                start,
                (codes[batch], params),
                batch_ndim=1,
                rtol=1e-4,
                on_failure="return",
                adjoint=fp.ImplicitAdjoint(on_failure="return", rtol=1e-3),
            ).value
            y = images[batch], torch.ones_like(images[batch])
            loss = masked_loss(decode(state, params), codes[batch], y, params).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return symmetric(Trained(decoder, codes.detach()).params())


def symmetric(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the symmetric part of W."""
    return {**params, "W": (params["W"] + params["W"].T) / 2}


def recoveries() -> dict[str, Callable[[], Task]]:
    """The inverse problems, by their names."""
    (images, _), patches = digits(), partial(photographs, stride=32, limit=1024)
    of_digits = lambda: (images[HELD_OUT:], images[:HELD_OUT])
    decoders: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "digits": (of_digits, easy_decoder),
        "patches": (lambda: map(flat, patches()), partial(easy_decoder, **OF_PATCHES)),
        "hard digits": (of_digits, hard_decoder),
        "wide hard digits": (of_digits, partial(hard_decoder, width=512, epochs=10)),
    }

    @cache
    def trained(kind: str) -> tuple[dict[str, Any], torch.Tensor]:
        load, make = decoders[kind]
        rest, held_out = load()
        return make(rest), held_out[:HELD_OUT]

    def task(kind: str, problem: str) -> Task:
        params, held_out = trained(kind)
        return recovery(params, *measured(held_out, problem))

    problems = ("inpainting", "denoising 0.2", "denoising 0.4", "reconstruction")
    pairs = itertools.product(decoders, problems)
    return {
        f"{kind}, {problem}": partial(task, kind, problem) for kind, problem in pairs
    }


def multiscale(folder: Path | None) -> Task:
    """Reconstruction by the multiscale decoder of 64×64 pixels whose settings come
    along.
    """
    config = load_config("generative_patches", "generative", Generative.settings_type())
    with processes("cpu") as (team, device), tempfile.TemporaryDirectory() as temporary:
        experiment = begin(Generative, config.settings, device)
        place = folder or Path(temporary)
        Run("generative", experiment, config, place, team).train(progress=False)
    images, params = (
        experiment.held_out[:FEWER],
        experiment.decoder.frozen(config.settings.prior),
    )
    return Task(experiment.model, params, images, *experiment.decoder.start(FEWER))


def flat(images: Any) -> torch.Tensor:
    """Images as rows, in double precision."""
    return torch.as_tensor(images.reshape(len(images), -1), dtype=torch.float64)


def measured(images: torch.Tensor, problem: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What is known of images, and where: a square of 4×4 or 20×20 pixels is hidden."""
    side = math.isqrt(images.shape[1])
    masks = square_masks(len(images), side, side, SEED, 4 if side == 8 else 20)
    masks = torch.as_tensor(masks).reshape(images.shape)
    if problem == "inpainting":
        return images, masks
    sigma = float(problem.partition("denoising")[2] or 0.0)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(images.shape, generator=generator).to(images.dtype)
    return images + sigma * noise, torch.ones_like(masks)


def attack() -> Task:
    """An attack on a classifier of digits, perturbations of Euclidean norm 1 at
    most.
    """
    images, classes = digits()
    net = DenseClassifier(images.shape[1], seed=SEED)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(15):
        for batch in range(HELD_OUT, len(images), 100):
            x, y = images[batch : batch + 100], classes[batch : batch + 100]
            params, start = net.params(x), torch.zeros(len(x), net.width, dtype=x.dtype)
            state = fp.fixed_point(
                perturbed_map,
                start,
                (torch.zeros_like(x), params),
                batch_ndim=1,
                rtol=1e-4,
            ).value
            loss = cross_entropy(scores(state, params), y).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        params = {
            name: leaf.detach() for name, leaf in net.params(images[:HELD_OUT]).items()
        }
    model = AugmentedDEQ(perturbed_map, attack_loss, scores, project=ball(1.0))
    start = torch.zeros(HELD_OUT, net.width, dtype=images.dtype)
    return Task(
        model, params, classes[:HELD_OUT], start, torch.zeros_like(images[:HELD_OUT])
    )


def attack_methods(task: Task) -> dict[str, Nested]:
    """Nested attacks: projected gradient steps, plain, normalized, and by Adam."""
    problem, project, inner = task.model.problem, task.model.project, fp.Picard()
    methods: dict[str, Nested] = {}
    for rate, momentum in itertools.product(
        (0.2, 0.4, 0.8, 1.6, 3.2, 10.0), (0.0, 0.5, 0.8)
    ):
        make: Any = partial(
            torch.optim.SGD, lr=rate, momentum=momentum, nesterov=momentum > 0
        )
        for name, normalized in (("PGD", False), ("normalized PGD", True)):
            methods[f"{name} {rate}, momentum {momentum}"] = Nested(
                problem, make, inner, project=project, normalized=normalized
            )
    for rate in (0.05, 0.1, 0.2, 0.4):
        make = partial(torch.optim.Adam, lr=rate)
        methods[f"Adam {rate}"] = Nested(problem, make, inner, project=project)
    return methods


def run(name: str, task: Task, seconds: float) -> dict[str, Any]:
    """All methods on a task: once each to find the fastest, and those in turn with
    ours.
    """
    is_attack = task.model.project is not None
    factors = ATTACK_FACTORS if is_attack else FACTORS
    method: Any = TrackedNewton()
    methods = nested_methods(task.model.problem)
    if is_attack:
        method = TrackedDescent(
            rule=ConditionalGradient(oracle=linear_minimizer(1.0)), sweeps=1
        )
        methods = attack_methods(task)
    settings: dict[str, Any] = {
        "settings": {"method": method},
        "steps": STEPS[is_attack:],
    }
    with one_thread():
        trace_joint(task, "", {"method": method}, steps=(2,))  # warms caches
        ours = trace_joint(task, "tracked", **settings)
        first = ours.seconds[0]
        budget, seconds = max(seconds, NO_LONGER * first), max(seconds, AS_LONG * first)
        nested = [trace_nested(task, key, one, seconds) for key, one in methods.items()]
        recipe = [
            trace_joint(task, key, seconds=budget, **one)
            for key, one in recipes().items()
        ]
        published = [] if is_attack else [as_published(task)]
        lowest = min(min(t.objectives) for t in (ours, *nested, *recipe, *published))
        targets = [factor * lowest for factor in factors]
        methods |= tightened({n: methods[n] for n in finalists(nested, targets, 1)})
        nested += [
            trace_nested(task, n, methods[n], seconds) for n in methods if TIGHTER in n
        ]
        ours, best = in_turn(task, settings, methods, nested, targets)
    # A target that the start meets is no target.
    factors = [f for f in factors if task.objective(task.x) > f * lowest]
    targets = [factor * lowest for factor in factors]
    groups = {"nested": best, "recipe": recipe, "published": published}
    rows = [row(f, f * lowest, ours, groups) for f in factors]
    baseline = [trace for trace in best if is_baseline(trace.name)]
    against = [
        fastest(baseline, target)[0] / ours.time_to(target) for target in targets
    ]
    return {
        "task": name,
        "lowest": lowest,
        "targets": rows,
        "geometric mean": mean([r["nested"] / r["tracked"] for r in rows]),
        "against Adam or PGD": mean(against),
        "kkt": kkt(task, method),
        "radius": radius(task, ours.final["x"]),
        "frontier": frontier(ours, nested, recipe),
    }


def tightened(methods: dict[str, Nested]) -> dict[str, Nested]:
    """The methods with ten times tighter inner solves."""
    return {f"{n}{TIGHTER}": replace(m, tolerance=1e-4) for n, m in methods.items()}


def finalists(traces: list[Trace], targets: list[float], number: int) -> set[str]:
    """The names of the methods that are the fastest to some target, so many for
    each.
    """
    ranked = [
        sorted(traces, key=lambda trace: trace.time_to(target)) for target in targets
    ]
    return {trace.name for order in ranked for trace in order[:number]}


def in_turn(
    task: Task,
    settings: dict[str, Any],
    methods: dict[str, Nested],
    nested: list[Trace],
    targets: list[float],
) -> tuple[Trace, list[Trace]]:
    """Ours and the fastest nested methods, run in turn: the medians of their times.

    The least of many noisy times is too low, and noise comes and goes.
    """
    baseline = [trace for trace in nested if is_baseline(trace.name)]
    names = finalists(nested, targets, 2) | finalists(baseline, targets, 1)
    times = [t.time_to(target) for t in nested if t.name in names for target in targets]
    seconds = 1.5 * max(time for time in times if time < math.inf)
    ours: list[Trace] = []
    theirs: dict[str, list[Trace]] = {name: [] for name in sorted(names)}
    for _ in range(ROUNDS):
        ours.append(trace_joint(task, "tracked", repeats=1, **settings))
        for name, runs in theirs.items():
            runs.append(trace_nested(task, name, methods[name], seconds))
    return steadied(ours), [steadied(runs) for runs in theirs.values()]


def steadied(runs: list[Trace]) -> Trace:
    """A trace with the medians of the times of several runs, as far as all of them
    went.
    """
    points = min(len(trace.seconds) for trace in runs)
    seconds = [
        statistics.median(trace.seconds[k] for trace in runs) for k in range(points)
    ]
    return runs[0]._replace(seconds=seconds, objectives=runs[0].objectives[:points])


def is_baseline(name: str) -> bool:
    """Whether a nested method is one of those that the published speeds refer to."""
    return "Adam" in name or name.startswith("PGD")


def as_published(task: Task) -> Trace:
    """The recipe with the settings of the paper, for some numbers of steps."""
    settings = {"method": JointIteration()}
    return trace_joint(
        task, "as published", settings, steps=(25, 50, 100, 200), repeats=1
    )


def row(
    factor: float, target: float, ours: Trace, groups: dict[str, list[Trace]]
) -> dict[str, Any]:
    """The race to one target: the time of the tracked method, and the least of each
    group.
    """
    best = {name: fastest(traces, target) for name, traces in groups.items()}
    times = {name: time for name, (time, _) in best.items()}
    return {
        "factor": factor,
        "tracked": ours.time_to(target),
        **times,
        "by": best["nested"][1],
        "with": best["recipe"][1],
    }


def fastest(traces: list[Trace], target: float) -> tuple[float, str]:
    """The least time to a target, and whose."""
    if not traces:
        return math.inf, ""
    best = min(traces, key=lambda trace: trace.time_to(target))
    return best.time_to(target), best.name


def mean(ratios: list[float]) -> float:
    """The geometric mean of the ratios to methods that arrived at all."""
    finite = [ratio for ratio in ratios if ratio < float("inf")]
    return statistics.geometric_mean(finite) if finite else float("nan")


def frontier(ours: Trace, nested: list[Trace], recipe: list[Trace]) -> dict[str, Any]:
    """What each group of methods had reached at each time: pairs of seconds and
    objective.
    """
    groups = {"tracked": [ours], "nested": nested, "recipe": recipe}
    return {name: lower_hull(traces) for name, traces in groups.items()}


def lower_hull(traces: list[Trace]) -> list[tuple[float, float]]:
    """The points that no other one beats in both time and objective."""
    points = sorted(
        p for t in traces for p in zip(t.seconds, t.objectives, strict=True)
    )
    hull, lowest = [], float("inf")
    for seconds, objective in points:
        if objective < lowest:
            hull.append((round(seconds, 5), objective))
            lowest = objective
    return hull


def kkt(task: Task, method: Any) -> float:
    """The part of the samples that meet the tolerance in every block within 200
    iterations.
    """
    with torch.no_grad():
        solution = task.model.iterate(
            task.z,
            task.x,
            params=task.params,
            y=task.y,
            method=method,
            max_steps=KKT_STEPS,
            rtol=KKT_RTOL,
            atol=0.0,
            on_failure="return",
        )
    return float(solution.converged.double().mean())


def radius(task: Task, x: torch.Tensor) -> tuple[float, float]:
    """The least and the median spectral radius of ∂f/∂z at the solutions."""
    with torch.no_grad():
        found = fp.fixed_point(
            task.model.f, task.z, (x, task.params), batch_ndim=1, on_failure="return"
        )
        start = leafwise(torch.randn_like, task.z)
        radii = fp.spectral_radius(found.linearize(), start, steps=60, batch_ndim=1)
    return float(radii.min()), float(radii.median())


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(
        f"\n{result['task']}: lowest {result['lowest']:.4f}, spectral radius "
        f"{result['radius'][1]:.2f}, KKT {100 * result['kkt']:.0f} %"
    )
    for r in result["targets"]:
        print(
            f"  {r['factor']:>5} ×  tracked {1e3 * r['tracked']:7.1f} ms   nested "
            f"{1e3 * r['nested']:7.1f}   ratio {r['nested'] / r['tracked']:5.1f}   "
            "recipe "
            f"{1e3 * r['recipe']:7.1f}   ({r['by']}; {r['with']})"
        )
    print(
        f"  geometric mean {result['geometric mean']:.1f}, against Adam or PGD "
        f"{result['against Adam or PGD']:.1f}",
        flush=True,
    )


def main() -> None:
    """Run the tasks named, or `TASKS`, and write each down when it is done; those that
    were not run stay as they are.
    """
    tasks = {
        **recoveries(),
        "multiscale patches, reconstruction": lambda: multiscale(options.folder),
        "attack": attack,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", help=f"among: {'; '.join(tasks)}")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json")
    )
    parser.add_argument(
        "--folder", type=Path, help="where to keep the multiscale decoder"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.6, help="of each nested method, at least"
    )
    options = parser.parse_args()
    file = options.output
    old = json.loads(file.read_text())["tasks"] if file.exists() else []
    done = {result["task"]: result for result in old}
    for name in options.tasks or TASKS:
        done[name] = run(name, tasks[name](), options.seconds)
        show(done[name])
        order = dict.fromkeys((*TASKS, *tasks))
        results = [done[task] for task in order if task in done]
        content = {"machine": machine(), "tasks": finite(results)}
        file.write_text(json.dumps(content, indent=1) + "\n")
        draw(results, file.with_suffix(".png"))


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """The lowest objectives that each group of methods had reached by each time."""
    rows = math.ceil(len(results) / 3)
    figure = Figure(figsize=(11.0, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, result in zip(axes.flat, results, strict=False):
        for name, points in result["frontier"].items():
            seconds, objectives = zip(*points, strict=True)
            above = [objective / abs(result["lowest"]) for objective in objectives]
            axis.step(seconds, above, where="post", label=name)
        axis.set(title=result["task"], xscale="log", xlabel="processor time [s]")
        if result["lowest"] > 0.0:
            axis.set(yscale="log", ylim=(0.98, 8.0))
    axes[0, 0].set_ylabel("objective / lowest")
    axes[0, 0].legend()
    figure.savefig(file, dpi=110)


def machine() -> str:
    """What the figures were measured on."""
    system = (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, one thread"
    )
    return f"{system}; Python {platform.python_version()}, torch {torch.__version__}"


def finite(value: Any) -> Any:
    """A copy in which numbers that JSON does not know are None."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
