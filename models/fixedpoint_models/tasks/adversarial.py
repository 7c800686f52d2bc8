"""Adversarial training: attacks, states and adjoints solved for as one fixed point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import fixedpoint as fp
from fixedpoint.operators.base import leafwise
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.classifier import (
    DenseClassifier,
    attack_loss,
    perturbed_map,
    scores,
)
from fixedpoint_models.config import ConfigError
from fixedpoint_models.descent import TrackedDescent
from fixedpoint_models.descent_rules import ConditionalGradient
from fixedpoint_models.nested import Nested
from fixedpoint_models.networks import MDEQClassifier
from fixedpoint_models.plots import draw_recovered
from fixedpoint_models.tasks.attacks import CLASSES, Attack, Batch, Settings, load
from fixedpoint_models.tasks.base import LOOSE, Experiment, norms
from fixedpoint_torch import jacobian_penalty

Tensor = torch.Tensor
SHOWN = 10
TEST_STEPS = 100
"""Of a solve where images are classified, at most: a state that has not come to rest by
then is taken as it is.
"""


class Adversarial(Experiment):
    """A classifier trained on images perturbed against it.

    An attack minimizes −ℓ, ℓ the cross-entropy, over perturbations in a ball; the
    network minimizes ℓ at the perturbation. By the envelope theorem the parameters'
    gradient is the negative of that of the attack's Lagrangian: what the attack leaves
    is enough, and there is no backward solve.

    Parameters
    ----------
    settings : Settings
        The settings.
    device : torch.device
        The device.

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant
    to adversarial attacks", ICLR 2018, arXiv:1706.06083. Gurumurthy, Bai, Manchester
    and Kolter, "Joint inference and input optimization in equilibrium networks",
    NeurIPS 2021, arXiv:2111.13236.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        train, test = load(settings)
        self.train, self.test = (
            Batch(*(leaf.to(device) for leaf in part)) for part in (train, test)
        )
        self.module: Any = self._network().to(device)
        dense = settings.kind == "dense"
        f, head = (
            (perturbed_map, scores) if dense else (self.module.f, self.module.head)
        )
        self.model = AugmentedDEQ(self.network(f), attack_loss, self.network(head))

    def _network(self) -> Any:
        settings, (channels, side) = self.settings, self.train.images.shape[1:3]
        if settings.kind == "mdeq":
            try:
                return MDEQClassifier(
                    channels,
                    side,
                    settings.channels,
                    CLASSES,
                    side=settings.side,
                    weight_norm=settings.weight_norm,
                    fixed_lengths=settings.fixed_lengths,
                )
            except ValueError as error:
                raise ConfigError(str(error)) from None
        pixels = self.train.images[0].numel()
        return DenseClassifier(
            pixels, CLASSES, settings.width, seed=settings.seed, dtype=torch.float32
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        """All images in random order."""
        generator = torch.Generator().manual_seed(1000003 * self.settings.seed + epoch)
        order = torch.randperm(len(self.train.images), generator=generator)
        for rows in torch.split(order, self.settings.batch_size):
            yield Batch(self.train.images[rows], self.train.classes[rows])

    def step(self, batch: Batch) -> dict[str, float]:
        """The attack, and the gradient of its Lagrangian."""
        params, _, _ = self.posed(batch.images)
        z, mu, x = self.attacked(batch, self.settings.attack)
        lagrangian = self.model.lagrangian(z, mu, x, params=params, y=batch.classes)
        loss = -lagrangian.mean()
        total, weight = loss, self.settings.jacobian
        if weight:
            total = (
                loss + weight * jacobian_penalty(self.model.f, z, (x, params)).mean()
            )
        torch.autograd.backward(total)
        failed = self.failed(z, x, leafwise(torch.Tensor.detach, params))
        return {"loss": float(loss.detach()), "failed": float(failed.double().mean())}

    def failed(self, z: Any, x: Tensor, params: Any) -> Tensor:
        """Which states are so far from equilibria that gradients cannot be trusted."""
        with torch.no_grad():
            image = self.model.f(z, x, params)
            defect = leafwise(torch.sub, image, z)
            return norms(defect) > LOOSE * norms(image)

    def remedy(self) -> str:
        """More steps, where the attack alone ended before the states settled.

        Held-out images that are not attacked show whether there are equilibria.
        """
        params, z, x = leafwise(torch.Tensor.detach, self.posed(self.test.images))
        with torch.no_grad():
            found = fp.fixed_point(
                self.model.f,
                z,
                (x, params),
                batch_ndim=1,
                rtol=0.1 * LOOSE,
                test="residual",
                max_steps=TEST_STEPS,
                on_failure="return",
            )
        steps = self.settings.attack.steps
        if float(self.failed(found.value, x, params).double().mean()) > 0.5:
            return super().remedy()
        return (
            "the network has equilibria, but attacks end before their states have come "
            f"near them: attack.steps = {steps} is too few"
        )

    def posed(self, images: Tensor) -> tuple[Any, Any, Tensor]:
        """The parameters, the first state and the first perturbation."""
        if self.settings.kind == "mdeq":
            z = self.module.zero_state(len(images))
            return self.module.params(images), z, torch.zeros_like(images)
        flat = images.flatten(1)
        return (
            self.module.params(flat),
            flat.new_zeros(len(flat), self.module.width),
            0.0 * flat,
        )

    def posed_in_ball(self, attack: Attack, images: Tensor) -> AugmentedDEQ:
        """The augmented system of an attack on `images`, of the perturbation's
        shape.
        """
        return replace(
            self.model, project=attack.project(images), step_size=attack.step_size
        )

    def attacked(self, batch: Batch, attack: Attack) -> tuple[Any, ...]:
        """The state, its adjoint and the perturbation that an attack finds."""
        with torch.no_grad():
            params, z, x = leafwise(torch.Tensor.detach, self.posed(batch.images))
        if attack.method in ("nested", "none"):
            return self._nested(z, x, params, batch.classes, attack)
        how: dict[str, Any] = {"solver": fp.Anderson(memory=20)}
        if attack.method == "joint":
            rule = ConditionalGradient(oracle=attack.oracle(params["image"]))
            how = {"method": TrackedDescent(rule=rule, sweeps=attack.sweeps)}
        with torch.no_grad():
            found = self.posed_in_ball(attack, params["image"]).iterate(
                z,
                x,
                params=params,
                y=batch.classes,
                max_steps=attack.steps,
                rtol=1e-3,
                on_failure="return",
                **how,
            )
        return tuple(found.value[name] for name in ("z", "mu", "x"))

    def _nested(
        self, z: Any, x: Tensor, params: Any, classes: Tensor, attack: Attack
    ) -> tuple[Any, ...]:
        """Projected steps with full inner solves; the last ones at the perturbation
        returned.
        """
        rate = partial(torch.optim.SGD, lr=attack.step_size)
        method = Nested(
            self.model.problem,
            rate,
            fp.Anderson(memory=5),
            project=attack.project(params["image"]),
            normalized=True,
        )
        number = 0 if attack.method == "none" else attack.steps
        now = next(islice(method.steps(z, x, params=params, y=classes), number, None))
        return now.z, now.mu, now.at

    def logits(self, images: Tensor) -> Tensor:
        """The scores of images at their equilibria, a differentiable function of
        them.
        """
        params, z, x = self.posed(images)
        found = fp.fixed_point(
            self.model.f,
            z,
            (x, params),
            rtol=1e-4,
            atol=1e-6,
            batch_ndim=1,
            test="residual",
            max_steps=TEST_STEPS,
            on_failure="return",
            adjoint=fp.ImplicitAdjoint(
                on_failure="return", rtol=1e-3, max_steps=TEST_STEPS
            ),
        )
        assert self.model.output is not None
        seen: Tensor = self.model.output(found.value, params)
        return seen

    def evaluate(self) -> dict[str, float]:
        """The share of the test images that is classified correctly.

        `clean` is without an attack; `joint` and `nested` are under attacks by this
        library, with the joint solve and with full solves at every step; `foolbox` is
        under an attack by Foolbox, if it is installed.
        """
        figures = {"clean": self.accuracy(self.test.images)}
        trained = self.settings.attack
        strong = {
            "joint": replace(trained, method="joint", steps=50),
            "nested": replace(
                trained, method="nested", steps=20, step_size=0.4 * trained.radius
            ),
        }
        for name, attack in strong.items():
            figures[name] = self.accuracy(self.perturbed(attack))
        found = self.foolbox()
        return figures if found is None else {**figures, "foolbox": found}

    def tested(self) -> Iterator[Batch]:
        """The images to test with, some at a time."""
        parts = (torch.split(part, self.settings.test_batch) for part in self.test)
        return map(Batch, *parts)

    def perturbed(self, attack: Attack) -> Tensor:
        """The test images, attacked."""
        parts = [
            batch.images + self.attacked(batch, attack)[2].reshape(batch.images.shape)
            for batch in self.tested()
        ]
        return torch.cat(parts)

    def accuracy(self, images: Tensor) -> float:
        """The part of the test images that are classified rightly."""
        parts = torch.split(images, self.settings.test_batch)
        with torch.no_grad():
            labels = [self.logits(part).argmax(-1) for part in parts]
        right = torch.cat(labels) == self.test.classes.argmax(-1)
        return float(right.double().mean())

    def foolbox(self) -> float | None:
        """Accuracy under Foolbox's projected gradient attack of the same ball; None
        without it.
        """
        try:
            import foolbox  # noqa: PLC0415 - optional
        except ImportError:
            return None
        attack = self.settings.attack
        kind = foolbox.attacks.L2PGD if attack.norm == "l2" else foolbox.attacks.LinfPGD
        model = foolbox.PyTorchModel(  # type: ignore[attr-defined]
            _Logits(self).eval(), bounds=(0, 1), device=self.device
        )
        torch.manual_seed(self.settings.seed)
        broken = [
            kind()(
                model, batch.images, batch.classes.argmax(-1), epsilons=attack.radius
            )[2]
            for batch in self.tested()
        ]
        return 1.0 - float(torch.cat(broken).double().mean())

    def draw(self, folder: Path) -> list[Path]:
        """Images, what is added to them, and what comes of it."""
        attacked = self.perturbed(self.settings.attack)
        images = self.test.images
        rows = {
            "image": images,
            "perturbation": 0.5 + (attacked - images),
            "attacked": attacked,
        }
        file = folder / "attacks.png"
        draw_recovered(
            {k: v[:SHOWN].mean(1).clamp(0, 1).cpu().numpy() for k, v in rows.items()},
            file,
        )
        return [file]


class _Logits(torch.nn.Module):
    """The classifier as a module, for other people's attacks."""

    def __init__(self, experiment: Adversarial) -> None:
        super().__init__()
        self.network, self._logits = experiment.module, experiment.logits

    def forward(self, images: Tensor) -> Tensor:
        return self._logits(images)
