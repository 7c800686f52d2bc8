"""Proximal gradient steps of the agents of a convex game."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor
Params = dict[str, Any]


def proximal_step(codes: Tensor, own: Params, params: Params) -> Tensor:
    """One simultaneous proximal gradient step of all agents of a game.

    Parameters
    ----------
    codes : tensor of shape (batch, atoms, patches)
        The codes zᵢ, as columns.
    own : dict
        See :meth:`~fixedpoint_models.games.PatchGame.own`.
    params : dict
        See :meth:`~fixedpoint_models.games.PatchGame.params`.
    """
    dictionary = params["dictionary"]
    # The gradient of all but the penalty, with respect to own codes.
    gradient = dictionary.T @ (pull(dictionary @ codes, params) - own["target"])
    moved = torch.add(codes, gradient, alpha=-params["step"])
    return _proximal_map(moved, own, params["slopes"])


def pull(pieces: Tensor, params: Params) -> Tensor:
    """I + κ(I − B)(I − Π) times the pieces, as in the gradients of a game."""
    grid, shape = params["grid"], params["shape"]
    shared = params["share"] / params["count"] * grid.sum(pieces, shape)
    pulled: Tensor = params["own"] * pieces - grid.cut(shared)
    return pulled


def _proximal_map(moved: Tensor, own: Params, slopes: tuple[float, Tensor]) -> Tensor:
    """Of the penalty times the step: zero up to αw, and two slopes beyond."""
    near, far = slopes
    left = moved - torch.clamp(moved, *own["zero"])
    return torch.addcmul(far * left, near - far, torch.clamp(left, *own["knee"]))
