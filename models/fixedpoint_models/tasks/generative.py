"""Generative modeling: an equilibrium decoder, trained while its latent codes are
optimized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.operators.base import leafwise
from fixedpoint.regularization import jacobian_penalty
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.config import ConfigError
from fixedpoint_models.plots import draw_recovered
from fixedpoint_models.principal import PrincipalImages
from fixedpoint_models.tasks.base import LOOSE, Experiment, norms
from fixedpoint_models.tasks.decoding import Decoder, Inferred, infer, squared_error
from fixedpoint_models.tasks.images import load, mean_of_known, quality, shown, together
from fixedpoint_models.tasks.settings import Settings
from fixedpoint_models.training import fingerprint

Tensor = torch.Tensor
Loss = Callable[[Any, Any, Any, Any], Any]
SHOWN = 10
ENCODED = 1e-2
"""The relative tolerance of the equilibria, and adjoints, of codes that are known."""
KKT_RTOL = 1e-4
"""What residuals have to fall to on held-out images, relative to their blocks."""


class Batch(NamedTuple):
    """Images, or their coefficients in a basis; their numbers among all, and the
    batch's number among all of training.
    """

    images: Tensor
    rows: Tensor
    number: Tensor


class Generative(Experiment):
    """A decoder whose codes are optimized along with its equilibria and their adjoints.

    Every step solves the augmented system for a batch, for states, adjoints and codes,
    and moves the parameters along the gradient that the envelope theorem gives of what
    it found.

    Parameters
    ----------
    settings : Settings
        The settings.
    device : torch.device
        The device.

    References
    ----------
    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236.
    """

    mixed = True

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        train, test = load(settings.images, settings.seed)
        self.held_out, self.fingerprint = test.to(device), fingerprint(train)
        self.decoder = Decoder(
            settings.network, tuple(train.shape[1:]), settings.seed, device
        )
        self.module: Any = self.decoder.module
        if isinstance(self.module, PrincipalImages):
            _fit(self.module, train)
        self.images = self.decoder.compared(train.to(device))
        if settings.network.kind == "mdeq" and not settings.network.sigmoid:
            torch.nn.init.constant_(self.module.readout.conv2.bias, float(train.mean()))
        self.model = self.posed(squared_error, self.decoder.output)
        z, x = self.decoder.start(len(train))
        kept = {"z": z, "mu": z, "x": x} if settings.solve.warm == "all" else {"x": x}
        self.stored = leafwise(torch.clone, kept)
        self.written = torch.zeros(len(train), device=device)

    def posed(self, loss: Loss, output: Callable[..., Any]) -> AugmentedDEQ:
        """The augmented system of this decoder and a loss of an output."""
        solve = self.settings.solve
        return AugmentedDEQ(
            self.network(self.module.f),
            loss,
            self.network(output),
            state_damping=solve.state_damping,
            adjoint_damping=solve.adjoint_damping,
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        """All images in random order."""
        generator = torch.Generator().manual_seed(_seed(self.settings.seed, epoch))
        order = torch.randperm(len(self.images), generator=generator)
        parts = torch.split(order, self.settings.batch_size)
        for number, rows in enumerate(parts, epoch * len(parts)):
            yield Batch(self.images[rows], rows.to(self.device), torch.tensor(number))

    def step(self, batch: Batch) -> dict[str, float]:
        """The joint solve, and the gradient of the Lagrangian at what it found.

        The gradient is that of solutions; at fixed codes, it is right if states and
        adjoints are. Where they are not, to a tenth of their size, or where the
        Lagrangian is more than the loss at the code zero, which is always to be had, or
        less than nothing, the solve has failed, and the sample is `left_out`. In the
        mean loss it counts with the loss at zero.
        """
        settings = self.settings
        if settings.codes == "encoded":
            return self._encoded_step(batch)
        params = self.decoder.params(settings.prior)
        found = self._infer(batch, settings.solve.steps)
        sound, losses = self._losses(batch, found)
        total, metrics = self._surrogate(batch, found, sound, params)
        if total is not None:
            torch.autograd.backward(total)
        # What failed is a bad start for the next epoch.
        value = leafwise(lambda leaf: leaf[sound], found.value)
        self._store(batch.rows[sound], value)
        shares = {
            "converged": found.converged,
            "steps": found.steps,
            "left_out": ~sound,
        }
        means = {name: float(values.double().mean()) for name, values in shares.items()}
        return {"loss": float(losses.mean()), **metrics, **means}

    def _encoded_step(self, batch: Batch) -> dict[str, float]:
        """The gradient of the loss at the codes of the principal components."""
        params = self.decoder.params(self.settings.prior)
        z, x = self.decoder.first(batch.images)
        found = fp.fixed_point(
            self.model.f,
            z,
            (x, params),
            solver=fp.Anderson(),
            batch_ndim=1,
            rtol=ENCODED,
            test="residual",
            adjoint=fp.ImplicitAdjoint(rtol=ENCODED, on_failure="return"),
            on_failure="return",
        )
        output = self.decoder.output(found.value, params)
        loss = squared_error(output, x, batch.images, params).mean()
        torch.autograd.backward(loss)
        self._store(batch.rows, {"x": x})
        failed = 1.0 - float(found.converged.double().mean())
        return {"loss": float(loss.detach()), "failed": failed}

    def _losses(self, batch: Batch, found: Inferred) -> tuple[Tensor, Tensor]:
        """Which samples are solved well enough, and what they, or else the code zero,
        cost.
        """
        params, images = self.decoder.frozen(self.settings.prior), batch.images
        zero = self.decoder.start(1)[1]
        with torch.no_grad():
            state = self.decoder.equilibrium(zero, params).value
            most = self.model.problem.loss_at(state, zero, images, params)
            reached = self.model.lagrangian(**found.value, params=params, y=images)
            kkt = self.model.kkt(**found.value, params=params, y=images)
        sound = (reached >= 0.0) & (reached <= most)
        for name in ("z", "mu"):
            sound &= kkt[name] <= LOOSE * norms(found.value[name])
        return sound, torch.where(sound, reached, most)

    def _surrogate(
        self, batch: Batch, found: Inferred, sound: Tensor, params: Any
    ) -> tuple[Tensor | None, dict[str, float]]:
        """What is differentiated, the mean over all samples, and the penalty that it
        contains.
        """
        weight = self.settings.jacobian.weight
        if not sound.any():
            return None, {"jacobian": 0.0} if weight else {}
        part = Batch(batch.images[sound], batch.rows[sound], batch.number)
        value = leafwise(lambda leaf: leaf[sound], found.value)
        loss = self.model.lagrangian(**value, params=params, y=part.images)
        if not weight:
            return loss.sum() / len(sound), {}
        penalty = self._penalty(part, value, params)
        total = (loss + weight * penalty).sum() / len(sound)
        return total, {"jacobian": float(penalty.detach().sum()) / len(sound)}

    def _infer(self, batch: Batch, steps: int) -> Inferred:
        solve = self.settings.solve
        z, x = self.decoder.first(batch.images)
        start = {"z": z, "mu": z, "x": x}
        if solve.warm != "none":
            start.update(leafwise(lambda leaf: leaf[batch.rows], self.stored))
        params = self.decoder.frozen(self.settings.prior)
        return infer(
            self.model,
            solve,
            start,
            params=params,
            y=batch.images,
            steps=steps,
            rtol=solve.rtol,
        )

    def _store(self, rows: Tensor, value: dict[str, Any]) -> None:
        found = {name: value[name] for name in self.stored}
        pairs = zip(tree.flatten(self.stored)[0], tree.flatten(found)[0], strict=True)
        for stored, leaf in pairs:
            stored[rows] = leaf
        self.written[rows] = 1.0

    def _penalty(self, batch: Batch, value: dict[str, Any], params: Any) -> Tensor:
        """An estimate of ‖J‖²/d for each sample, at the solution or on the way
        there.
        """
        jacobian, number = self.settings.jacobian, int(batch.number)
        if jacobian.where == "trajectory":
            generator = np.random.default_rng((self.settings.seed, number))
            steps = int(generator.integers(1, self.settings.solve.steps + 1))
            value = self._infer(batch, steps).value
        probes = [
            self._probe(value["z"], batch, probe) for probe in range(jacobian.probes)
        ]
        args = (value["x"], params)
        estimates: Tensor = jacobian_penalty(self.model.f, value["z"], args, probes, 1)
        return estimates

    def _probe(self, z: Any, batch: Batch, probe: int) -> Any:
        """Normal numbers, for each sample its own, whichever process it is with."""
        leaves, structure = tree.flatten(z)
        generator = torch.Generator()
        drawn: list[list[Tensor]] = []
        for row in batch.rows.tolist():
            generator.manual_seed(
                _seed(self.settings.seed, int(batch.number), row, probe)
            )
            drawn.append(
                [torch.randn(leaf.shape[1:], generator=generator) for leaf in leaves]
            )
        columns = (torch.stack(column) for column in zip(*drawn, strict=True))
        return structure.rebuild([column.to(self.device) for column in columns])

    def evaluate(self) -> dict[str, float]:
        """How well the codes of held-out images are found, and how good the decoded
        images are.

        `objective` is the loss of the codes found, with equilibria solved for afresh;
        `mse` is the mean squared error of the images decoded from them, `psnr` the same
        as a signal-to-noise ratio in dB, and `ssim` their structural similarity, 1 for
        equal images. `kkt_fraction` is the share of samples whose residuals fell
        within `test_steps`, after `steps` on average, to 1e-4 of what each block's is
        compared with, see :doc:`/augmented_deq`; `failed` is
        the share without an equilibrium. `radius_median` and `radius_most` are spectral
        radii of the Jacobian: near 1, equilibria are hard to find.
        """
        parts = torch.split(self.held_out, self.settings.batch_size)
        merged = together([self._evaluated(part) for part in parts])
        radii = merged.pop("radius")
        failed = float(np.isnan(merged["objective"]).mean())
        means = {name: mean_of_known(values) for name, values in merged.items()}
        return {
            **means,
            "failed": failed,
            "radius_median": float(np.median(radii)),
            "radius_most": float(np.max(radii)),
        }

    def _evaluated(self, images: Tensor) -> dict[str, list[float]]:
        params = self.decoder.frozen(self.settings.prior)
        found = self.reconstruct(images)
        x = found.value["x"]
        z0 = self.decoder.start(len(images))[0]
        y = self.decoder.compared(images)
        objective = self.model.objective(z0, x, params=params, y=y)
        figures = quality(self.decoder.images(x, params), images)
        return {
            "objective": objective.tolist(),
            **figures,
            "kkt_fraction": found.converged.double().tolist(),
            "steps": found.steps.double().tolist(),
            "radius": self._radii(x, params).tolist(),
        }

    def reconstruct(self, images: Tensor) -> Inferred:
        """The codes of images, from a cold start."""
        solve = replace(self.settings.solve, warm="none")
        y = self.decoder.compared(images)
        z, x = self.decoder.first(y)
        return infer(
            self.model,
            solve,
            {"z": z, "mu": z, "x": x},
            y=y,
            rtol=KKT_RTOL,
            params=self.decoder.frozen(self.settings.prior),
            steps=self.settings.test_steps,
        )

    def _radii(self, x: Tensor, params: Any) -> Tensor:
        """The spectral radius of ∂f/∂z at the equilibrium of each code."""
        solution = self.decoder.equilibrium(x, params)
        generator = torch.Generator().manual_seed(self.settings.seed)

        def normal(leaf: Tensor) -> Tensor:
            return torch.randn(leaf.shape, generator=generator).to(self.device)

        with torch.no_grad():
            start = leafwise(normal, solution.value)
            radii: Tensor = fp.spectral_radius(
                solution.linearize(), start, steps=20, batch_ndim=1
            )
        return radii

    def draw(self, folder: Path) -> list[Path]:
        """New images, at the equilibria of codes from a Gaussian mixture; and held-out
        ones.
        """
        params = self.decoder.frozen(self.settings.prior)
        codes = self.sample(8 * SHOWN)
        drawn = shown(self.decoder.images(codes, params))
        grid = {" " * row: drawn[row * SHOWN : (row + 1) * SHOWN] for row in range(8)}
        originals = self.held_out[:SHOWN]
        again = self.decoder.images(self.reconstruct(originals).value["x"], params)
        pairs = {"held out": shown(originals), "decoded": shown(again)}
        files = {"samples.png": grid, "reconstructions.png": pairs}
        for name, rows in files.items():
            draw_recovered(rows, folder / name)
        return [folder / name for name in files]

    def sample(self, number: int) -> Tensor:
        """Codes, drawn from a Gaussian mixture of those of the training images."""
        codes = self.stored["x"].cpu().double().numpy()
        components = min(self.settings.components, len(codes))
        mixture = GaussianMixture(components, random_state=self.settings.seed).fit(
            codes
        )
        drawn = mixture.sample(number)[0]
        # They come component by component.
        order = np.random.default_rng(self.settings.seed).permutation(number)
        return torch.as_tensor(drawn[order], dtype=torch.float32, device=self.device)

    def merge(self, total: Callable[[Tensor], Tensor]) -> None:
        """Collect the codes, and what else is stored, from the processes that found
        them.
        """
        count = total(self.written)
        for leaf in tree.flatten(self.stored)[0]:
            shape = (-1, *(1,) * (leaf.ndim - 1))
            found = total(leaf * self.written.reshape(shape)) / count.clamp(
                min=1.0
            ).reshape(shape)
            leaf.copy_(torch.where(count.reshape(shape) > 0.0, found, leaf))
        self.written.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The codes, and what else the next epoch begins with."""
        return {"stored": tree.flatten(self.stored)[0], "images": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        if state["images"] != self.fingerprint:
            raise ValueError("written for other images")
        for leaf, stored in zip(
            tree.flatten(self.stored)[0], state["stored"], strict=True
        ):
            leaf.copy_(stored)


def _fit(module: PrincipalImages, images: Tensor) -> None:
    try:
        module.fit(images)
    except ValueError as error:
        raise ConfigError(f"network: {error}") from None


def _seed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
