"""Products with a Jacobian, by reverse mode alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from fixedpoint.backend import Vec


def products(
    image: Callable[[Vec, Vec], Vec],
    value: Vec,
    rest: Vec,
    transposed: bool,
    rhs_axes: int = 0,
) -> Callable[[Vec], Vec]:
    """The products with Jᵀ or J at (value, rest), from one linearization.

    Jᵀw is linear in w, so that J is the transpose of its derivative: a second reverse
    pass, which asks no more of f than that it can be differentiated twice.
    """
    with recording_on():
        z = tuple(constant(leaf).requires_grad_() for leaf in value)
        outputs = image(z, tuple(map(constant, rest)))
    if not any(leaf.requires_grad for leaf in outputs):
        return lambda u: tuple(map(torch.zeros_like, u))
    if transposed:
        return lambda u: gradients(outputs, z, u, rhs_axes)
    with recording_on():
        w = tuple(torch.zeros_like(leaf).requires_grad_() for leaf in outputs)
        pulled = gradients(outputs, z, w, create_graph=True)
    return lambda u: gradients(pulled, w, u, rhs_axes)


def recording_on() -> AbstractContextManager[Any]:
    """Derivatives are recorded, in inference mode too."""
    inside = torch.is_inference_mode_enabled()
    return _outside_of_inference() if inside else torch.enable_grad()


@contextmanager
def _outside_of_inference() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def constant(leaf: torch.Tensor) -> torch.Tensor:
    """The same tensor, of which nothing is recorded, but may be."""
    return leaf.clone() if leaf.is_inference() else leaf.detach()


def recorded(f: Callable[[Vec], Vec], value: Vec) -> Callable[[Vec], Vec]:
    """The products with J, recorded by autograd, from one evaluation of f."""
    z = tuple(
        x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in value
    )
    outputs = f(z)
    w = tuple(torch.zeros_like(leaf).requires_grad_() for leaf in outputs)
    pulled = gradients(outputs, z, w, create_graph=True)
    return lambda v: gradients(pulled, w, v, create_graph=True)


def gradients(
    outputs: Vec,
    inputs: Vec,
    cotangents: Vec,
    rhs_axes: int = 0,
    create_graph: bool = False,
) -> Vec:
    """The pullback of `cotangents`, with `rhs_axes` axes more than `outputs`."""
    if rhs_axes:
        pull = lambda seeds: gradients(outputs, inputs, seeds, rhs_axes - 1)
        pulled: Vec = torch.func.vmap(pull)(cotangents)
        return pulled
    tracked = [
        (o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad
    ]
    if not tracked:
        return tuple(map(torch.zeros_like, inputs))
    heads, seeds = zip(*tracked, strict=True)
    found: Any = torch.autograd.grad(
        heads,
        inputs,
        seeds,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
    )
    # The zeros that old releases of Torch put there by themselves require a gradient.
    pairs = zip(found, inputs, strict=True)
    return tuple([torch.zeros_like(z) if x is None else x for x, z in pairs])
