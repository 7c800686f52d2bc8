"""The joint solve against nested optimisation: time to reach an objective."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import fixedpoint as fp
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.decoder import Params, equilibrium_map, masked_loss
from fixedpoint_models.nested import Nested

FACTORS = (1.05, 1.2, 1.5, 2.0, 4.0)
JOINT_STEPS = (
    1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27, 33, 40, 48, 58, 70, 84, 100, 150, 200,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Task:
    """Images to recover: min over x of ‖m ∘ (D(z) − image)‖² + λ‖x‖², z = f(z, x).

    Parameters
    ----------
    params : dict
        The decoder's, without derivatives.
    images, masks : tensor of shape (number, pixels)
        The data, and 1 where it is seen.
    """

    params: Params
    images: torch.Tensor
    masks: torch.Tensor

    @property
    def y(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The data of the loss."""
        return self.images, self.masks

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first z and x."""
        number, (width, latent) = len(self.images), self.params["U"].shape
        zeros = partial(torch.zeros, dtype=self.images.dtype)
        return zeros(number, width), zeros(number, latent)

    def objective(self, x: torch.Tensor) -> float:
        """The mean objective at x, its equilibrium solved for afresh."""
        model = AugmentedDEQ(equilibrium_map, masked_loss)
        return float(model.objective(self.start()[0], x, params=self.params, y=self.y).mean())


class Trace(NamedTuple):
    """What one method reached, and when.

    Attributes
    ----------
    name : str
        The method and its settings.
    seconds, objectives, evaluations, products : list
        At each point of measurement: time, re-solved objective, and work spent.
    final : dict of str to tensor
        z, mu and x at the point with the lowest objective, and the input ``at`` which z and mu
        were computed.
    """

    name: str
    seconds: list[float]
    objectives: list[float]
    evaluations: list[int]
    products: list[int]
    final: dict[str, torch.Tensor]

    def time_to(self, target: float) -> float:
        """Seconds until the objective was first at or below `target`, infinity if it never was."""
        reached = zip(self.seconds, self.objectives, strict=True)
        return min((s for s, objective in reached if objective <= target), default=float("inf"))

    @property
    def best(self) -> int:
        """The point of measurement with the lowest objective."""
        return min(range(len(self.objectives)), key=self.objectives.__getitem__)


def trace_joint(
    task: Task, step_size: float, memory: int, steps: Iterable[int] = JOINT_STEPS, repeats: int = 3
) -> Trace:
    """Run the joint solve from the start for each number of steps; the time is a median."""
    model = AugmentedDEQ(equilibrium_map, masked_loss, step_size=step_size)
    z, x = task.start()
    trace = Trace(f"joint, Anderson({memory}), α={step_size}", [], [], [], [], {})
    lowest = float("inf")
    for number in steps:
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            with torch.no_grad():
                solution = model.iterate(
                    z, x, params=task.params, y=task.y, max_steps=number, on_failure="return",
                    solver=fp.Anderson(memory=memory),
                )  # fmt: skip
            times.append(time.perf_counter() - begin)
        objective = task.objective(solution.value["x"])
        _append(trace, statistics.median(times), objective, solution.work.f, solution.work.f)
        if objective < lowest:
            lowest = objective
            trace.final.update(solution.value, at=solution.value["x"])
        if bool(solution.converged.all()):
            break
    return trace


def trace_nested(task: Task, name: str, method: Nested, seconds: float) -> Trace:
    """Run a nested method for `seconds`, and measure it ever more rarely."""
    trace = Trace(name, [], [], [], [], {})
    z, x = task.start()
    lowest, due = float("inf"), 1.0
    for number, now in enumerate(method.steps(z, x, params=task.params, y=task.y), start=1):
        if number >= due or now.seconds > seconds:
            due = max(due + 1, due * 1.1)
            objective = task.objective(now.x)
            _append(trace, now.seconds, objective, now.evaluations, now.products)
            if objective < lowest:
                lowest = objective
                trace.final.update(z=now.z, mu=now.mu, x=now.x, at=now.at)
        if now.seconds > seconds:
            return trace
    return trace


def _append(trace: Trace, seconds: float, objective: float, f: int, vjp: int) -> None:
    trace.seconds.append(seconds)
    trace.objectives.append(objective)
    trace.evaluations.append(f)
    trace.products.append(vjp)


def nested_methods() -> dict[str, Nested]:
    """The grid of nested methods: optimiser and step size, inner solver."""
    inner = {"Picard": fp.Picard(), "Anderson(5)": fp.Anderson(memory=5)}
    grid: dict[str, Any] = {}
    for rate, momentum in itertools.product((0.05, 0.1, 0.2, 0.4), (0.5, 0.7, 0.9)):
        make: Any = partial(torch.optim.SGD, lr=rate, momentum=momentum, nesterov=True)
        grid[f"Nesterov {rate}, momentum {momentum}"] = make
    for rate in (0.1, 0.2, 0.4, 0.8):
        grid[f"Adam {rate}"] = partial(torch.optim.Adam, lr=rate)
    pairs = itertools.product(grid.items(), inner.items())
    return {
        f"nested, {name}, {solver}": Nested(equilibrium_map, masked_loss, optimizer, settings)
        for (name, optimizer), (solver, settings) in pairs
    }


def joint_grid() -> list[tuple[float, int]]:
    """The grid of joint solves: step size and memory."""
    return list(itertools.product((0.1, 0.2, 0.4, 0.8), (3, 5, 10, 20)))


def compare(
    task: Task, *, seconds: float = 0.7, progress: bool = True
) -> tuple[list[Trace], list[Trace]]:
    """The traces of every joint and every nested method of the grids, in turn on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trace_joint(task, 0.02, 5, steps=(20,))  # warms caches, counts for nobody
        bar = partial(tqdm, disable=not progress, unit="run")
        joint = [trace_joint(task, *pair) for pair in bar(joint_grid(), desc="joint")]
        methods = bar(nested_methods().items(), desc="nested")
        nested = [trace_nested(task, name, method, seconds) for name, method in methods]
    finally:
        torch.set_num_threads(threads)
    return joint, nested


class Race(NamedTuple):
    """The fastest joint and the fastest nested method to one target."""

    factor: float
    joint: Trace
    nested: Trace
    target: float

    @property
    def ratio(self) -> float:
        """How many times faster the joint solve is: below 1 it loses, 0 if it never arrives."""
        joint, nested = self.joint.time_to(self.target), self.nested.time_to(self.target)
        return 0.0 if joint == float("inf") else nested / joint


def races(joint: Sequence[Trace], nested: Sequence[Trace]) -> list[Race]:
    """The race to each of FACTORS times the lowest objective that any method reached."""
    lowest = min(min(trace.objectives) for trace in (*joint, *nested))
    targets = [(factor, factor * lowest) for factor in FACTORS]
    return [Race(f, _fastest(joint, t), _fastest(nested, t), t) for f, t in targets]


def _fastest(traces: Sequence[Trace], target: float) -> Trace:
    return min(traces, key=lambda trace: (trace.time_to(target), min(trace.objectives)))
