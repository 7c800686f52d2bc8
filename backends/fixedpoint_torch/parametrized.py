"""Parametrized weights, computed once a solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.utils import parametrize


def with_weights_computed(
    cell: Callable[..., Any], inputs: tuple[Any, ...]
) -> tuple[Any, tuple[Any, ...]]:
    """A map and its arguments that stand for `cell` and `inputs` during one solve.

    Weights under ``torch.nn.utils.parametrize``, such as those of ``weight_norm`` and
    ``spectral_norm``, are computed here, once, and are arguments of the map from then
    on: through these they are differentiated. Computed at every evaluation they would
    cost more, and those of ``spectral_norm`` in training, which makes a step of power
    iteration each time, change.

    Parameters
    ----------
    cell : callable
        A module, a method of one, or a function, which has no such weights.
    inputs : tuple
        What it takes beside the state.
    """
    owner = getattr(cell, "__self__", cell)
    if not isinstance(owner, torch.nn.Module):
        return cell, inputs
    kind = parametrize.ParametrizationList
    lists = [part for part in owner.modules() if isinstance(part, kind)]
    if not lists:
        return cell, inputs
    weights = tuple(of_list() for of_list in lists)
    return WithWeights(cell, owner, lists), (weights, *inputs)


class WithWeights(torch.nn.Module):
    """A cell that takes the values of its parametrized weights beside the state."""

    def __init__(
        self,
        cell: Callable[..., Any],
        owner: torch.nn.Module,
        lists: Sequence[parametrize.ParametrizationList],
    ) -> None:
        super().__init__()
        self.owner, self.lists = owner, tuple(lists)
        # No module, that would be registered by a second name.
        self.evaluate = partial(cell)

    def forward(self, z: Any, weights: tuple[torch.Tensor, ...], *inputs: Any) -> Any:
        """Evaluate the cell with these weights."""
        with _in_place_of(self.lists, weights):
            return self.evaluate(z, *inputs)


@contextmanager
def _in_place_of(
    lists: Sequence[parametrize.ParametrizationList], values: Sequence[torch.Tensor]
) -> Iterator[None]:
    """Let each of `lists` return its value, uncached."""
    before = [part.__dict__.get("forward") for part in lists]
    caching, parametrize._cache_enabled = parametrize._cache_enabled, 0
    for part, value in zip(lists, values, strict=True):
        part.__dict__["forward"] = lambda value=value: value
    try:
        yield
    finally:
        parametrize._cache_enabled = caching
        for part, forward in zip(lists, before, strict=True):
            if forward is None:
                del part.__dict__["forward"]
            else:
                part.__dict__["forward"] = forward
