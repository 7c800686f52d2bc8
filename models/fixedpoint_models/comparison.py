"""The joint solve against nested optimization: time to reach an objective."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

import fixedpoint as fp
from fixedpoint.operators import Lagrangian
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.decoder import Params, decode, equilibrium_map, masked_loss
from fixedpoint_models.nested import Nested, Optimizer
from fixedpoint_models.tracked import TrackedNewton

FACTORS = (1.05, 1.2, 1.5, 2.0, 4.0)
JOINT_STEPS = (*range(1, 9), 10, 12, 15, 18, 22, 27, 33, 40, 48, 58, 70, 84)
JOINT_STEPS += (100, 150, 200)
_ENOUGH = 0.5
"""Seconds after which a run is not repeated."""
NEWTON_STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)


@dataclass(frozen=True, eq=False)
class Task:
    """An input to optimize: min over x of ℓ(z, x, y), z = f(z, x), from a common start.

    Parameters
    ----------
    model : AugmentedDEQ
        f, ℓ and the output.
    params, y
        What they take.
    z, x : tensor or container of tensors
        The start.
    """

    model: AugmentedDEQ
    params: Any
    y: Any
    z: Any
    x: torch.Tensor

    def objective(self, x: torch.Tensor) -> float:
        """The mean objective at x, its equilibrium solved for afresh."""
        return float(
            self.model.objective(self.z, x, params=self.params, y=self.y).mean()
        )


def recovery(params: Params, images: torch.Tensor, masks: torch.Tensor) -> Task:
    """Images to recover: min over x of ‖m ∘ (D(z) − image)‖² + λ‖x‖², z = f(z, x).

    Parameters
    ----------
    params : dict
        Those of a :class:`DenseDecoder`, without derivatives.
    images, masks : tensor of shape (number, pixels)
        The data, and 1 where it is seen.
    """
    width, latent = params["U"].shape
    zeros = partial(torch.zeros, dtype=images.dtype)
    model = AugmentedDEQ(equilibrium_map, masked_loss, decode)
    return Task(
        model,
        params,
        (images, masks),
        zeros(len(images), width),
        zeros(len(images), latent),
    )


class Trace(NamedTuple):
    """What one method reached, and when.

    Attributes
    ----------
    name : str
        The method and its settings.
    seconds, objectives, evaluations, products : list
        At each point of measurement: processor time, re-solved objective, and work
        spent.
    final : dict of str to tensor
        z, mu and x at the point with the lowest objective, and the input ``at`` which z
        and mu were computed.
    """

    name: str
    seconds: list[float]
    objectives: list[float]
    evaluations: list[int]
    products: list[int]
    final: dict[str, Any]

    def time_to(self, target: float) -> float:
        """Seconds until the objective was first at or below `target`, infinity if it
        never was.
        """
        reached = zip(self.seconds, self.objectives, strict=True)
        return min(
            (s for s, objective in reached if objective <= target), default=float("inf")
        )

    @property
    def best(self) -> int:
        """The point of measurement with the lowest objective."""
        return min(range(len(self.objectives)), key=self.objectives.__getitem__)


def trace_joint(
    task: Task,
    name: str,
    settings: dict[str, Any],
    *,
    step_size: float | None = None,
    steps: Iterable[int] = JOINT_STEPS,
    repeats: int = 3,
    seconds: float = math.inf,
) -> Trace:
    """Run the joint solve from the start for each number of steps; the time is a
    median.

    `settings` go to :meth:`AugmentedDEQ.iterate`: a `solver` or a `method`. It ends
    with the run that takes `seconds`.
    """
    model = (
        task.model if step_size is None else replace(task.model, step_size=step_size)
    )
    trace, lowest = Trace(name, [], [], [], [], {}), float("inf")
    given = {"params": task.params, "y": task.y, "on_failure": "return"} | settings
    solve = partial(model.iterate, task.z, task.x, **given)
    for number in steps:
        solution, took = _timed(partial(solve, max_steps=number), repeats)
        objective = task.objective(solution.value["x"])
        work = solution.work
        _append(trace, took, objective, work.f, work.f + work.vjp)
        if objective < lowest:
            lowest = objective
            trace.final.update(solution.value, at=solution.value["x"])
        if bool(solution.converged.all()) or trace.seconds[-1] > seconds:
            break
    return trace


def _timed(solve: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What a solve gives, and the median of the seconds of some."""
    times: list[float] = []
    while len(times) < repeats and sum(times) < _ENOUGH:
        begin = time.process_time()
        with torch.no_grad():
            found = solve()
        times.append(time.process_time() - begin)
    return found, statistics.median(times)


def trace_nested(task: Task, name: str, method: Nested, seconds: float) -> Trace:
    """Run a nested method for `seconds`, and measure it ever more rarely."""
    trace = Trace(name, [], [], [], [], {})
    lowest, due = float("inf"), 1.0
    steps = method.steps(task.z, task.x, params=task.params, y=task.y)
    for number, now in enumerate(steps, start=1):
        if number >= due or now.seconds > seconds:
            due = max(due + 1, due * 1.1)
            objective = task.objective(now.x)
            _append(trace, now.seconds, objective, now.evaluations, now.products)
            if objective < lowest:
                lowest = objective
                trace.final.update(z=now.z, mu=now.mu, x=now.x, at=now.at)
        if now.seconds > seconds or not torch.isfinite(now.x).all():
            return trace
    return trace


def _append(trace: Trace, seconds: float, objective: float, f: int, vjp: int) -> None:
    trace.seconds.append(seconds)
    trace.objectives.append(float("inf") if math.isnan(objective) else objective)
    trace.evaluations.append(f)
    trace.products.append(vjp)


def optimizers() -> dict[str, Optimizer]:
    """The optimizers of the nested methods, over a grid of step sizes."""
    sgd, adam, lbfgs = torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS
    grid: dict[str, Any] = {}
    for rate, momentum in itertools.product((0.05, 0.1, 0.2, 0.4), (0.5, 0.7, 0.9)):
        make: Any = partial(sgd, lr=rate, momentum=momentum, nesterov=True)
        grid[f"Nesterov {rate}, momentum {momentum}"] = make
    for rate in (0.1, 0.2, 0.4, 0.8):
        grid[f"Adam {rate}"] = partial(adam, lr=rate)
    for rate in (0.3, 1.0):
        grid[f"L-BFGS {rate}"] = partial(lbfgs, lr=rate, max_iter=1, history_size=10)
    return grid


def nested_methods(problem: Lagrangian) -> dict[str, Nested]:
    """The grid of nested methods: optimizer and step size, inner solver."""
    inner = {"Picard": fp.Picard(), "Anderson(5)": fp.Anderson(memory=5)}
    return {
        f"nested, {name}, {solver}": Nested(problem, optimizer, settings)
        for (name, optimizer), (solver, settings) in itertools.product(
            optimizers().items(), inner.items()
        )
    }


def recipes() -> dict[str, dict[str, Any]]:
    """The published recipe over a grid: Anderson of type I and II, memory, step
    size.
    """
    grid = itertools.product((0.1, 0.2, 0.4, 0.8), (5, 10, 20), (1, 2))
    return {
        f"recipe, Anderson({memory}) of type {kind}, α={step}": {
            "settings": {"solver": fp.Anderson(memory=memory, type=kind)},
            "step_size": step,
        }
        for step, memory, kind in grid
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread, as processor time counts all of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Comparison(NamedTuple):
    """The traces of all methods: the tracked Newton method, the published recipe,
    nested ones.
    """

    newton: list[Trace]
    recipe: list[Trace]
    nested: list[Trace]

    @property
    def lowest(self) -> float:
        """The lowest objective that any method reached."""
        return min(min(trace.objectives) for traces in self for trace in traces)

    @property
    def mean_ratio(self) -> float:
        """The geometric mean of the ratios to the best nested method over all
        targets.
        """
        return statistics.geometric_mean(max(ratio, 1e-9) for ratio in self._ratios())

    @property
    def worst_ratio(self) -> float:
        """The smallest of them."""
        return min(self._ratios())

    def _ratios(self) -> list[float]:
        return [race.ratio for race in races(self.newton, self.nested, self.lowest)]


def compare(
    task: Task,
    *,
    seconds: float = 0.7,
    progress: bool = True,
    keep: Callable[[str], bool] = bool,
) -> Comparison:
    """The traces of every joint and every nested method of the grids, in turn on one
    thread.

    Parameters
    ----------
    task : Task
        The task.
    seconds : float, optional
        How long each nested method runs, and the longest run of the recipe.
    progress : bool, optional
        Whether to show progress bars.
    keep : callable, optional
        Takes the name of a method to whether it runs.
    """
    bar = partial(tqdm, disable=not progress, unit="run")
    newton = {"method": TrackedNewton()}
    recipe = {name: grid for name, grid in recipes().items() if keep(name)}
    methods = nested_methods(task.model.problem)
    methods = {name: one for name, one in methods.items() if keep(name)}
    with one_thread():
        trace_joint(task, "", newton, steps=(2,))  # warms caches, counts for nobody
        ours = [trace_joint(task, "tracked Newton", newton, steps=NEWTON_STEPS)]
        theirs = [
            trace_joint(task, name, **grid, seconds=seconds)
            for name, grid in bar(recipe.items(), desc="recipe")
        ]
        others = [
            trace_nested(task, name, one, seconds)
            for name, one in bar(methods.items(), desc="nested")
        ]
    return Comparison(ours, theirs, others)


class Race(NamedTuple):
    """The fastest joint and the fastest nested method to one target."""

    factor: float
    joint: Trace
    nested: Trace
    target: float

    @property
    def ratio(self) -> float:
        """How many times faster the joint solve is: below 1 it loses, 0 if it never
        arrives.
        """
        joint = self.joint.time_to(self.target)
        return self.nested.time_to(self.target) / joint if joint < math.inf else 0.0


def races(joint: Sequence[Trace], nested: Sequence[Trace], lowest: float) -> list[Race]:
    """The race to each of FACTORS times the lowest objective."""
    targets = [(factor, factor * lowest) for factor in FACTORS]
    return [Race(f, _fastest(joint, t), _fastest(nested, t), t) for f, t in targets]


def _fastest(traces: Sequence[Trace], target: float) -> Trace:
    return min(traces, key=lambda trace: (trace.time_to(target), min(trace.objectives)))
