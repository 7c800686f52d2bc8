"""The conductivity of a rod, inferred through the root of its heat equation, in JAX.

A rod with a source of heat q, whose ends are kept cold, has in equilibrium the
temperatures u with

    −(k(u) u′)′ = q ,    u = 0 at both ends ,    k(u) = κ (1 + βu) ,

on a grid a system of equations F(u, κ, β) = 0. A few thermometers measure u, with
noise. The temperatures that given κ and β lead to are a root, and its derivatives with
respect to both, in forward mode, are all that the Gauss-Newton method needs to fit the
measurements. All of it is one function under ``jit``.

What to look at, in ``physics_root.png``: the temperatures before and after the fit,
beside the measurements; and the parameters by step, which go to the true ones as far as
the noise lets them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import typer
from matplotlib.figure import Figure

import fixedpoint as fp

TRUTH = np.log([0.7, 1.5])  # of κ and β, which are positive
GUESS = np.log([1.5, 0.2])
NOISE = 2e-3
Array = Any


def balance(u: Array, parameters: Array, source: Array) -> Array:
    """What flows into each cell of the rod less what flows out, zero in equilibrium."""
    kappa, beta = jnp.exp(parameters)
    width = 1.0 / (u.shape[0] + 1)
    full = jnp.pad(u, 1)
    between = kappa * (1.0 + beta * 0.5 * (full[1:] + full[:-1]))
    flow = -between * jnp.diff(full) / width
    return jnp.diff(flow) - width * source


@jax.jit
def temperatures(parameters: Array, source: Array) -> Array:
    """The equilibrium for these parameters."""
    cold = jnp.zeros_like(source)
    sol = fp.root(
        balance,
        cold,
        (parameters, source),
        solver=fp.Newton(),
        rtol=0.0,
        atol=1e-11,
        adjoint=fp.ImplicitAdjoint(rtol=1e-10),
    )
    return sol.value


@jax.jit
def gauss_newton(
    parameters: Array, source: Array, where: Array, measured: Array
) -> Any:
    """A step toward the least squares, at most 1 in each logarithm, and the misfit
    before it.
    """

    def misfit(parameters: Array) -> Array:
        return temperatures(parameters, source)[where] - measured

    left, sensitivity = misfit(parameters), jax.jacfwd(misfit)(parameters)
    step = jnp.linalg.lstsq(sensitivity, -left)[0]
    return parameters + jnp.clip(step, -1.0, 1.0), jnp.linalg.norm(left)


def infer(
    source: Array, where: Array, measured: Array, steps: int
) -> tuple[list[np.ndarray], list[float]]:
    """The parameters and the misfit at each step."""
    path, misfits = [GUESS], []
    for _ in range(steps):
        parameters, misfit = gauss_newton(
            jnp.asarray(path[-1]), source, where, measured
        )
        path.append(np.asarray(parameters))
        misfits.append(float(misfit))
    return path, misfits


def gradient_error(source: Array, where: Array, measured: Array) -> float:
    """How far the gradient of the squared misfit is from difference quotients,
    relative.
    """

    @jax.jit
    def loss(parameters: Array) -> Array:
        return jnp.sum((temperatures(parameters, source)[where] - measured) ** 2)

    h, unit = 1e-5, np.eye(2)
    quotients = [
        float(loss(GUESS + h * e) - loss(GUESS - h * e)) / (2 * h) for e in unit
    ]
    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(GUESS)))
    return float(np.linalg.norm(gradient - quotients) / np.linalg.norm(quotients))


def draw(
    path: list[np.ndarray], source: Array, where: Array, measured: Array, file: Path
) -> None:
    """The temperatures before and after, and the parameters by step."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.linspace(0.0, 1.0, source.shape[0] + 2)[1:-1]
    for name, parameters in {"first guess": path[0], "fit": path[-1]}.items():
        left.plot(places, temperatures(jnp.asarray(parameters), source), label=name)
    left.plot(places[np.asarray(where)], measured, "k.", label="measured")
    left.set(xlabel="place on the rod", ylabel="temperature")
    left.legend()
    for name, values, true in zip("κβ", np.exp(path).T, np.exp(TRUTH), strict=True):
        (line,) = right.plot(values, "o-", label=name)
        right.axhline(true, color=line.get_color(), ls=":")
    right.set(xlabel="step", title="parameters, and the true ones (dotted)")
    right.legend()
    figure.savefig(file, dpi=120)


def main(
    steps: Annotated[int, typer.Option(help="Of Gauss and Newton.")] = 8,
    size: Annotated[int, typer.Option(help="Cells of the rod.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path(
        "examples-output"
    ),
) -> dict[str, float]:
    """Infer the conductivity, check the gradient, and draw both."""
    jax.config.update("jax_enable_x64", True)
    source = 20.0 * jnp.exp(-(((jnp.linspace(0.0, 1.0, size) - 0.3) / 0.2) ** 2))
    where = jnp.arange(2, size, 5)
    noise = NOISE * np.random.default_rng(seed).standard_normal(where.shape)
    measured = temperatures(jnp.asarray(TRUTH), source)[where] + noise
    path, misfits = infer(source, where, measured, steps)
    error = gradient_error(source, where, measured)
    output.mkdir(parents=True, exist_ok=True)
    draw(path, source, where, measured, output / "physics_root.png")
    (kappa, beta), true = np.exp(path[-1]), np.exp(TRUTH)
    off = float(np.abs(path[-1] - TRUTH).max())
    print(f"κ = {kappa:.4f}, β = {beta:.4f}; in truth {true[0]:.1f} and {true[1]:.1f}")
    print(f"misfit {misfits[0]:.3g} at first, {misfits[-1]:.3g} at last")
    print(f"the gradient differs from difference quotients by {error:.1e}, relative")
    return {"first": misfits[0], "last": misfits[-1], "off": off, "error": error}


if __name__ == "__main__":
    typer.run(main)
