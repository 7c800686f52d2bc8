"""Training an equilibrium decoder by the envelope theorem."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import fixedpoint as fp
from fixedpoint_models.augmented import AugmentedDEQ
from fixedpoint_models.decoder import (
    DenseDecoder,
    Params,
    decode,
    equilibrium_map,
    masked_loss,
)

# What a checkpoint holds.
_KEYS = {"settings", "images", "decoder", "optimizer", "generator", "joint", "epoch"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of a training run.

    Parameters
    ----------
    epochs, batch_size : int
        Passes over the images, and images of a step.
    learning_rate : float
        Of Adam, at the start; it falls to a tenth along a half cosine.
    joint_steps, memory : int
        Steps of the joint solve for a batch, and the memory of its Anderson iteration.
    step_size : float
        The step α of the joint solve.
    width, latent, seed : int
        Of the decoder; the seed also orders the batches.
    """

    epochs: int = 60
    batch_size: int = 100
    learning_rate: float = 2e-3
    joint_steps: int = 15
    memory: int = 5
    step_size: float = 0.02
    width: int = 128
    latent: int = 16
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Trained:
    """A decoder and the latent codes of the images it was trained on.

    Attributes
    ----------
    decoder : DenseDecoder
        The decoder.
    codes : tensor of shape (number, latent)
        The codes.
    """

    decoder: DenseDecoder
    codes: torch.Tensor

    def params(self, prior: float = 0.03) -> Params:
        """The decoder's parameters without derivatives, for codes of unit second
        moment.

        With S the second moment of the codes, U S^(1/2) in place of U makes the second
        moment of S^(-1/2)x the identity, so that λ‖x‖² is the prior under which the
        codes were drawn, and one step size suits all entries.

        Parameters
        ----------
        prior : float, optional
            λ, about the variance of a pixel that the decoder leaves unexplained, or
            somewhat more.
        """
        with torch.no_grad():
            params = self.decoder.params()
            variances, axes = torch.linalg.eigh(
                self.codes.T @ self.codes / len(self.codes)
            )
            root = (axes * torch.sqrt(torch.clamp(variances, min=0.0))) @ axes.T
        frozen = {
            k: p.detach() if isinstance(p, torch.Tensor) else p
            for k, p in params.items()
        }
        return {**frozen, "U": frozen["U"] @ root, "prior": prior}


@dataclass
class _Run:
    """All that changes during training, and all that a checkpoint holds."""

    decoder: DenseDecoder
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    joint: dict[str, torch.Tensor]
    epoch: int = 0


class TrainingError(ArithmeticError):
    """The training diverged."""


class CheckpointError(ValueError):
    """A checkpoint that this run cannot go on from."""


def train(
    images: torch.Tensor, settings: Training, checkpoint: Path, *, progress: bool = True
) -> Trained:
    """Train a decoder and a latent code per image, going on from `checkpoint` if it is
    there.

    Each step takes the joint iteration for z, μ and x of a batch a few steps further
    from where it stood an epoch ago, and then the parameters one step of Adam along the
    gradient that the envelope theorem gives, μᵀ∂f/∂θ + ∂ℓ/∂θ: there is no backward
    solve.

    Parameters
    ----------
    images : tensor of shape (number, pixels)
        Values from 0 to 1.
    settings : Training
        How to train.
    checkpoint : Path
        Written after each epoch. A run that was interrupted goes on from there and ends
        as it would have without the interruption.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    Trained
        The decoder, and the code of each image.

    Raises
    ------
    CheckpointError
        If the checkpoint is of other settings or other data.
    """
    run = _begin(images, settings)
    if checkpoint.exists():
        _restore(run, images, settings, checkpoint)
    bar = tqdm(
        range(run.epoch, settings.epochs),
        initial=run.epoch,
        total=settings.epochs,
        desc="training",
        unit="epoch",
        disable=not progress,
    )
    for _ in bar:
        bar.set_postfix(loss=f"{_epoch(run, images, settings):.3f}")
        run.epoch += 1
        _save(run, images, settings, checkpoint)
    return Trained(run.decoder, run.joint["x"])


def _begin(images: torch.Tensor, settings: Training) -> _Run:
    decoder = DenseDecoder(
        images.shape[1], settings.width, settings.latent, seed=settings.seed
    )
    generator = torch.Generator().manual_seed(settings.seed)
    number = images.shape[0]
    joint = {
        "z": torch.zeros(number, settings.width, dtype=torch.float64),
        "mu": torch.zeros(number, settings.width, dtype=torch.float64),
        "x": 0.01
        * torch.randn(
            number, settings.latent, generator=generator, dtype=torch.float64
        ),
    }
    optimizer = torch.optim.Adam(decoder.parameters(), lr=settings.learning_rate)
    return _Run(decoder, optimizer, generator, joint)


def _epoch(run: _Run, images: torch.Tensor, settings: Training) -> float:
    """One pass; the mean loss at the joint iterates."""
    total = 0.0
    rate = 0.55 + 0.45 * torch.cos(torch.tensor(torch.pi * run.epoch / settings.epochs))
    for group in run.optimizer.param_groups:
        group["lr"] = settings.learning_rate * float(rate)
    order = torch.randperm(len(images), generator=run.generator)
    for begin in range(0, len(images), settings.batch_size):
        rows = order[begin : begin + settings.batch_size]
        total += _step(run, images[rows], rows, settings) * len(rows)
    return total / len(images)


def _step(
    run: _Run, batch: torch.Tensor, rows: torch.Tensor, settings: Training
) -> float:
    """The joint solve for one batch, and one step of Adam."""
    model = AugmentedDEQ(
        equilibrium_map, masked_loss, decode, step_size=settings.step_size
    )
    params, y = run.decoder.params(), (batch, torch.ones_like(batch))
    z, mu, x = (run.joint[name][rows] for name in ("z", "mu", "x"))
    solution = model.iterate(
        z,
        x,
        mu0=mu,
        params=params,
        y=y,
        max_steps=settings.joint_steps,
        on_failure="return",
        solver=fp.Anderson(memory=settings.memory),
    )
    for name, block in solution.value.items():
        run.joint[name][rows] = block
    loss = model.lagrangian(**solution.value, params=params, y=y).mean()
    if not bool(torch.isfinite(loss)):
        raise TrainingError(
            f"the loss is not finite at epoch {run.epoch}: lower the learning rate"
        )
    run.optimizer.zero_grad()
    loss.backward()
    run.optimizer.step()
    return float(loss.detach())


def fingerprint(images: torch.Tensor) -> str:
    """What tells images from others: of their bytes, as sums depend on the number of
    threads.
    """
    array = images.detach().cpu().contiguous().numpy()
    content = f"{array.dtype} {array.shape}".encode() + array.tobytes()
    return hashlib.sha256(content).hexdigest()


def _save(
    run: _Run, images: torch.Tensor, settings: Training, checkpoint: Path
) -> None:
    """Write beside the file and rename, so that a checkpoint is whole or the one before
    it.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "settings": asdict(settings),
        "images": fingerprint(images),
        "decoder": run.decoder.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "generator": run.generator.get_state(),
        "joint": run.joint,
        "epoch": run.epoch,
    }
    write_whole(content, checkpoint)


def write_whole(content: dict[str, Any], checkpoint: Path) -> None:
    """Write beside the file and rename."""
    partial = checkpoint.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(checkpoint)


def _restore(
    run: _Run, images: torch.Tensor, settings: Training, checkpoint: Path
) -> None:
    content = load_whole(checkpoint, _KEYS)
    if content["settings"] != asdict(settings):
        raise CheckpointError(
            f"{checkpoint}: written with other settings; move it away to start anew"
        )
    if content["images"] != fingerprint(images):
        raise CheckpointError(
            f"{checkpoint}: written for other images; move it away to start anew"
        )
    run.decoder.load_state_dict(content["decoder"])
    run.optimizer.load_state_dict(content["optimizer"])
    run.generator.set_state(content["generator"])
    run.joint, run.epoch = content["joint"], content["epoch"]


def load_whole(checkpoint: Path, keys: set[str], **where: Any) -> dict[str, Any]:
    """What a checkpoint with these keys holds; `where` goes to :func:`torch.load`."""
    try:
        content: Any = torch.load(checkpoint, weights_only=True, **where)
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint ({type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or not set(content) >= keys:
        raise CheckpointError(f"{checkpoint}: not a checkpoint of this program")
    return content
