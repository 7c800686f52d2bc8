"""Meta-learning: a task's vector adapted to a few labeled images, on an equilibrium
network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

import fixedpoint as fp
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.comparison import Task
from fixedpoint_models.config import ConfigError
from fixedpoint_models.data import (
    Episodes,
    FewShot,
    glyphs,
    official_runs,
    omniglot,
    split_alphabets,
    split_classes,
    turned,
)
from fixedpoint_models.descent import TrackedDescent
from fixedpoint_models.descent_rules import BarzilaiBorwein
from fixedpoint_models.limited_memory import TrackedLBFGS
from fixedpoint_models.nested import Nested
from fixedpoint_models.tasks.base import Experiment
from fixedpoint_models.tasks.episodes import Batch, picture
from fixedpoint_models.tasks.meta_settings import MetaSettings
from fixedpoint_models.tasks.task_network import (
    Params,
    State,
    TaskNetwork,
    cross_entropy,
)
from fixedpoint_torch import jacobian_penalty

Tensor = torch.Tensor

TRAINING_CLASSES = 0.8
TEST_BATCH = 50
NESTED_TOLERANCE = 1e-2
"""Of the equilibria and adjoints: tighter ones take longer and find nothing better."""


class Meta(Experiment):
    """Learn to learn characters: tasks of a few labeled images of classes never seen.

    A task's vector v is adapted to the support, the least cross-entropy of its scores
    plus λ‖v‖² over v, subject to z = f(z, v): an augmented system, of which a sample is
    a task, with the states of all its support images. The outer loss is the
    cross-entropy of the query at the adapted v, with equilibria of its own. Its
    derivative passes through these and, by the implicit function theorem for the
    augmented system as a whole, through the adaptation.

    Parameters
    ----------
    settings : MetaSettings
        All settings.
    device : torch.device or str, optional
        Where to compute.

    References
    ----------
    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236. Rajeswaran, Finn, Kakade and
    Levine, "Meta-learning with implicit gradients", NeurIPS 2019, arXiv:1909.04630.

    Examples
    --------
    >>> from fixedpoint_models.tasks.meta import Meta, MetaSettings
    >>> task = Meta(MetaSettings(ways=3, channels=8, features=8, tasks=2))
    >>> batch = next(task.batches(epoch=0))
    >>> sol = task.adapt(batch.support, batch.support_labels)
    >>> sol.value["x"].shape, task.query_scores(sol.value["x"], batch.query).shape
    (torch.Size([2, 32]), torch.Size([2, 15, 3]))
    """

    module: TaskNetwork

    def __init__(
        self, settings: MetaSettings, device: torch.device | str = "cpu"
    ) -> None:
        self.settings, self.device = settings, torch.device(device)
        train, self.test = self._classes()
        self.train = turned(train) if settings.turns else train
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = TaskNetwork(
                settings.ways,
                settings.side,
                channels=settings.channels,
                features=settings.features,
                context=settings.context,
            )
        self.module = network.to(self.device)

    def _classes(self) -> tuple[FewShot, FewShot]:
        """Classes to train on, and others to test on."""
        settings = self.settings
        if settings.omniglot:
            every = omniglot(settings.omniglot, settings.side)
        else:
            every = glyphs(settings.side, settings.seed)
        if not settings.held_out:
            return split_classes(every, TRAINING_CLASSES, settings.seed)
        try:
            return split_alphabets(every, settings.held_out)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def model(self) -> AugmentedDEQ:
        """The inner problem; params are those of the support, y its labels."""
        return AugmentedDEQ(
            self._map(), self.inner_loss, step_size=self.settings.step_size
        )

    def _map(self) -> Callable[..., State]:
        """The equilibrium map as a function of its arguments alone.

        A method of a module would have its parameters differentiated as well, for
        nothing: they are among the arguments.
        """
        return partial(TaskNetwork.f, self.module)

    def inner_loss(self, z: State, v: Tensor, labels: Tensor, params: Params) -> Tensor:
        """The cross-entropy of each task, and λ‖v‖²."""
        fit = cross_entropy(self.module.scores(z, v, params), labels)
        return fit + self.settings.penalty * v.square().sum(-1)

    def inner(self, batch: Batch) -> Task:
        """The inner problem of a batch, without derivatives, to compare methods on."""
        with torch.no_grad():
            params = self.module.params(batch.support)
        frozen = tree_map(torch.Tensor.detach, params)
        return Task(
            self.model, frozen, batch.support_labels, *self._start(batch.support)
        )

    def _start(self, images: Tensor, ways: int | None = None) -> tuple[State, Tensor]:
        tasks, number = images.shape[:2]
        v = images.new_zeros(tasks, self.module.entries(ways))
        return self.module.zero_state(tasks, number), v

    def _method(self) -> dict[str, Any]:
        settings = self.settings
        if settings.method == "recipe":
            return {"solver": fp.Anderson(memory=settings.memory)}
        if settings.method == "nested":
            # The joint map is only evaluated, and differentiated, where the descent has
            # ended.
            return {"solver": fp.Anderson(memory=settings.memory), "max_steps": 0}
        if settings.method == "quasi-newton":
            return {"method": TrackedLBFGS()}
        rule = BarzilaiBorwein(step_size=settings.step_size)
        return {"method": TrackedDescent(rule=rule, sweeps=settings.sweeps)}

    def _nested(
        self, z: State, v: Tensor, params: Params, labels: Tensor
    ) -> dict[str, Any]:
        """Where the nested method ends: ``z0``, ``mu0`` and ``x0`` for the augmented
        system.
        """
        settings = self.settings
        method = Nested(
            self.model.problem,
            partial(
                torch.optim.SGD,
                lr=settings.step_size,
                momentum=settings.momentum,
                nesterov=settings.momentum > 0.0,
            ),
            fp.Picard(),
            tolerance=NESTED_TOLERANCE,
        )
        frozen = tree_map(torch.Tensor.detach, params)
        steps = islice(method.steps(z, v, params=frozen, y=labels), settings.steps + 1)
        *_, end = steps
        return {"z0": end.z, "mu0": end.mu, "x0": end.at}

    def adapt(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        ways: int | None = None,
        adjoint: fp.Adjoint | None = None,
        **control: Any,
    ) -> fp.Solution[Any]:
        """The task's vectors, adapted: ``"x"`` of the value, along with ``"z"`` and
        ``"mu"``.

        Parameters
        ----------
        images : tensor of shape (tasks, images, 1, side, side)
            Of the support.
        labels : tensor of shape (tasks, images)
            Theirs.
        ways : int, optional
            Classes of a task, by default as in training.
        adjoint : Adjoint, optional
            How the value is differentiated; by default it is constant.
        **control
            For :meth:`AugmentedDEQ.iterate`, in place of the settings.
        """
        settings, (z, v) = self.settings, self._start(images, ways)
        given = {
            "max_steps": settings.steps,
            "rtol": settings.rtol,
            # The gradient in v is a sum over samples, whose parts are about 1: they
            # cancel in what a relative tolerance is compared with.
            "atol": settings.rtol,
            "on_failure": "return",
        }
        with torch.set_grad_enabled(adjoint is not None):
            params = self.module.params(images)
            start: dict[str, Any] = {"z0": z, "x0": v}
            if settings.method == "nested":
                start = self._nested(z, v, params, labels)
            return self.model.iterate(
                **start,
                params=params,
                y=labels,
                adjoint=adjoint,
                **{**given, **self._method(), **control},
            )

    def query_scores(self, v: Tensor, images: Tensor, **control: Any) -> Tensor:
        """The scores of images at vectors `v`, from equilibria of their own.

        Parameters
        ----------
        v : tensor of shape (tasks, entries)
            Task's vectors.
        images : tensor of shape (tasks, images, 1, side, side)
            Of the query.
        **control
            For :func:`fixedpoint.fixed_point`, in place of the settings.
        """
        params, start = self.module.params(images), self._start(images)[0]
        given: dict[str, Any] = {
            "solver": fp.Anderson(memory=5),
            "rtol": self.settings.rtol,
            "max_steps": 50,
            "test": "residual",
            "on_failure": "return",
            "adjoint": self._adjoint(),
        } | control
        z = fp.fixed_point(self._map(), start, (v, params), batch_ndim=1, **given).value
        return self.module.scores(z, v, params)

    def _adjoint(self) -> fp.ImplicitAdjoint:
        return fp.ImplicitAdjoint(
            rtol=self.settings.rtol, max_steps=80, on_failure="return"
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, the same ones for the same epoch."""
        settings = self.settings
        seed = (settings.seed << 32) + epoch  # no epoch of one seed is that of another
        episodes = iter(
            Episodes(self.train, settings.ways, settings.shots, settings.queries, seed)
        )
        for _ in range(settings.batches):
            yield Batch.of(list(islice(episodes, settings.tasks)), self.device)

    def outer_loss(
        self, batch: Batch, **control: Any
    ) -> tuple[Tensor, Tensor, fp.Solution[Any]]:
        """The loss of the query per task, the scores, and the adaptation.

        Parameters
        ----------
        batch : Batch
            The tasks.
        **control
            For :meth:`adapt`.
        """
        control = {"adjoint": self._adjoint(), **control}
        adapted = self.adapt(batch.support, batch.support_labels, **control)
        scores = self.query_scores(adapted.value["x"], batch.query)
        return cross_entropy(scores, batch.query_labels), scores, adapted

    def step(self, batch: Batch) -> dict[str, float]:
        """Add the gradient of the batch's loss to the parameters; return what to write
        down.
        """
        losses, scores, adapted = self.outer_loss(batch)
        z, v = (
            tree_map(torch.Tensor.detach, adapted.value[name]) for name in ("z", "x")
        )
        params = self.module.params(batch.support)
        stiffness = jacobian_penalty(self._map(), z, (v, params)).mean()
        total: Any = losses.mean() + self.settings.jacobian * stiffness
        total.backward()
        right = (scores.argmax(-1) == batch.query_labels).float()
        return {
            "loss": float(losses.mean().detach()),
            "accuracy": float(right.mean()),
            "jacobian": float(stiffness.detach()),
            "steps": float(adapted.steps.float().mean()),
            "converged": float(adapted.converged.float().mean()),
        }

    def held_out(self) -> Iterator[Batch]:
        """The tasks that are evaluated, of classes that training has not seen."""
        settings, left = self.settings, self.settings.test_tasks
        episodes = iter(
            Episodes(
                self.test,
                settings.test_ways or settings.ways,
                settings.shots,
                settings.test_queries,
                settings.seed + 1,
                settings.test_warp,
            )
        )
        while left > 0:
            yield Batch.of(list(islice(episodes, min(left, TEST_BATCH))), self.device)
            left -= TEST_BATCH

    def official(self) -> Iterator[Batch]:
        """The official one-shot runs, all at once."""
        runs = official_runs(str(self.settings.runs), self.settings.side)
        yield Batch.of(runs, self.device)

    def accuracy(self, v: Tensor, batch: Batch) -> Tensor:
        """The share of the query that is labeled rightly at vectors `v`, per task."""
        with torch.no_grad():
            scores = self.query_scores(v, batch.query)
        return (scores.argmax(-1) == batch.query_labels).double().mean(1)

    def evaluate(self) -> dict[str, float]:
        """On unseen classes: the share of query images labeled correctly, half the
        width of its 95 % confidence interval, and the cost of adaptation; and the same
        for the official runs, if they are given.
        """
        figures = self.measured(self.held_out())
        if self.settings.runs is None:
            return figures
        official = self.measured(self.official())
        return figures | {f"official_{name}": x for name, x in official.items()}

    def measured(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The figures of :meth:`evaluate` of some tasks."""
        right, solved, work = [], [], []
        for batch in batches:
            ways = int(batch.support_labels.max()) + 1
            adapted = self.adapt(batch.support, batch.support_labels, ways=ways)
            right.append(self.accuracy(adapted.value["x"], batch))
            solved.append(adapted.converged.double())
            work.append(torch.full_like(right[-1], float(adapted.work.f)))
        shares, converged, evaluations = map(torch.cat, (right, solved, work))
        spread = float(shares.std()) if len(shares) > 1 else math.nan
        return {
            "accuracy": float(shares.mean()),
            "interval": 1.96 * spread / math.sqrt(len(shares)),
            "converged": float(converged.mean()),
            "evaluations": float(evaluations.mean()),
        }

    def draw(self, folder: Path) -> list[Path]:
        """A picture of one unseen task: its support, and its query as labeled."""
        batch = next(self.held_out())
        one = Batch(*(part[:1] for part in batch))
        ways = self.settings.test_ways or self.settings.ways
        v = self.adapt(one.support, one.support_labels, ways=ways).value["x"]
        with torch.no_grad():
            labels = [
                self.query_scores(u, one.query)[0].argmax(-1) for u in (0.0 * v, v)
            ]
        right = [
            float((given == one.query_labels[0]).float().mean()) for given in labels
        ]
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "meta.png"
        picture(one, labels[1].cpu(), right, self.settings).savefig(file, dpi=120)
        return [file]
