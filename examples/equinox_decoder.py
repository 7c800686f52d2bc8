"""A generative model and inverse problems on JAX, with an Equinox module for a cell.

A decoder takes a code x to the equilibrium z = f(z, x) and that to an image D(z). It is
trained on digits without knowing their codes: those of a batch are found together with
the equilibria and their adjoints, and the adjoints give the gradient in the parameters
without a backward solve. Then digits of which a square is hidden are recovered, by the
codes that explain the rest, and new ones are drawn from codes like those of training.
The same compiled solve serves both.

What to look at, in ``equinox_decoder.png``: digits that no training has seen, what is
left of them, what is recovered, and new digits. The first step of training compiles for
about half a minute.

Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
equilibrium networks", NeurIPS 2021, arXiv:2111.13236.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from jax import Array
from matplotlib.figure import Figure
from tqdm import tqdm

import fixedpoint as fp
from fixedpoint_models import AugmentedDEQ, TrackedNewton
from fixedpoint_models.data import digits, square_masks
from fixedpoint_models.plots import fill_with_images

SIDE, BATCH, SHOWN = 8, 100, 10
Data = tuple[Array, Array]


class Decoder(eqx.Module):
    """z = tanh(Wz + Ux + b) and the image Cz + c, with ‖W‖₂ ≤ 0.9: equilibria exist."""

    state: eqx.nn.Linear
    code: eqx.nn.Linear
    image: eqx.nn.Linear

    def __init__(self, width: int, latent: int, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.state = eqx.nn.Linear(width, width, use_bias=False, key=keys[0])
        self.code = eqx.nn.Linear(latent, width, key=keys[1])
        self.image = eqx.nn.Linear(width, SIDE * SIDE, key=keys[2])

    def cell(self, z: Array, x: Array) -> Array:
        """The map f, for a batch."""
        W = self.state.weight
        W = 0.9 * W / jnp.maximum(1.0, jnp.linalg.norm(W, 2))
        return jnp.tanh(z @ W.T + jax.vmap(self.code)(x))

    def images(self, z: Array) -> Array:
        """The read-out D, for a batch."""
        return jax.vmap(self.image)(z)


def loss(images: Array, x: Array, y: Data, _: Decoder) -> Array:
    """The misfit where images are seen, and a prior of codes, per sample."""
    seen, mask = y
    return jnp.sum(mask * (images - seen) ** 2, axis=-1) + 0.01 * jnp.sum(x**2, axis=-1)


model = AugmentedDEQ(
    f=lambda z, x, decoder: decoder.cell(z, x),
    loss=loss,
    output=lambda z, decoder: decoder.images(z),
)


def start(decoder: Decoder, samples: int) -> tuple[Array, Array]:
    """States and codes of zero."""
    width, latent = decoder.code.weight.shape
    return jnp.zeros((samples, width)), jnp.zeros((samples, latent))


@eqx.filter_jit
def solve(decoder: Decoder, y: Data) -> tuple[dict[str, Array], Array]:
    """Equilibria, adjoints and codes of images, and which of them converged."""
    found = model.iterate(
        *start(decoder, len(y[0])),
        params=decoder,
        y=y,
        method=TrackedNewton(),
        max_steps=50,
        on_failure="return",
    )
    return found.value, found.converged


@eqx.filter_jit
@eqx.filter_value_and_grad
def objective(decoder: Decoder, point: dict[str, Array], y: Data) -> Array:
    """Its gradient is that of the optimal objective, by the envelope theorem."""
    return model.lagrangian(**point, params=decoder, y=y).mean()


@eqx.filter_jit
def decoded(decoder: Decoder, x: Array) -> Array:
    """The images at the equilibria of codes."""
    z, _ = start(decoder, len(x))
    return decoder.images(fp.fixed_point(decoder.cell, z, (x,), batch_ndim=1).value)


def train(decoder: Decoder, images: Array, epochs: int) -> tuple[Decoder, list[float]]:
    """The trained decoder, and the mean objective of each epoch."""
    optimizer = optax.adam(3e-3)
    state = optimizer.init(eqx.filter(decoder, eqx.is_array))
    curve = []
    for _ in tqdm(range(epochs), desc="epochs", disable=None):
        values = []
        for first in range(0, len(images) - BATCH + 1, BATCH):
            batch = images[first : first + BATCH]
            y = batch, jnp.ones_like(batch)
            point, _ = solve(decoder, y)
            value, gradient = objective(decoder, point, y)
            updates, state = optimizer.update(gradient, state)
            decoder = eqx.apply_updates(decoder, updates)
            values.append(float(value))
        curve.append(sum(values) / len(values))
    return decoder, curve


def new_codes(decoder: Decoder, images: Array, key: Array) -> Array:
    """Codes drawn from the normal distribution that those of images fit."""
    x = solve(decoder, (images, jnp.ones_like(images)))[0]["x"]
    return jax.random.multivariate_normal(key, x.mean(0), jnp.cov(x.T), (SHOWN,))


def draw(rows: dict[str, Any], file: Path) -> None:
    """The picture."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    fill_with_images(
        figure,
        {
            label: np.asarray(row[:SHOWN]).reshape(-1, SIDE, SIDE)
            for label, row in rows.items()
        },
    )
    figure.savefig(file, dpi=110)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(),
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 20,
    width: Annotated[int, typer.Option(help="Entries of the state.")] = 64,
) -> dict[str, Any]:
    """Train, recover, draw new digits, and show them."""
    jax.config.update("jax_enable_x64", True)
    images = jnp.asarray(digits().reshape(-1, SIDE * SIDE))
    held_out, images = images[:BATCH], images[BATCH:]
    decoder = Decoder(width, 12, jax.random.key(0))
    decoder, curve = train(decoder, images, epochs)

    masks = square_masks(BATCH, SIDE, SIDE, 0).reshape(BATCH, -1)
    point, converged = solve(decoder, (held_out, jnp.asarray(masks)))
    recovered = decoded(decoder, point["x"])
    new = decoded(decoder, new_codes(decoder, images[:BATCH], jax.random.key(1)))
    seen = jnp.where(masks > 0, held_out, jnp.nan)
    rows = {"held out": held_out, "seen": seen, "recovered": recovered, "new": new}
    draw(rows, output / "equinox_decoder.png")

    hidden = 1 - masks
    figures = {
        "first": curve[0],
        "last": curve[-1],
        "converged": float(converged.mean()),
        "error": float((hidden * (recovered - held_out) ** 2).sum() / hidden.sum()),
        "blank": float((hidden * held_out**2).sum() / hidden.sum()),
    }
    print({name: round(value, 4) for name, value in figures.items()})
    return figures


if __name__ == "__main__":
    typer.run(main)
