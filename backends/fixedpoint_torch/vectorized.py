"""What ``torch.autograd`` maps over: ``is_grads_batched``, or ``vectorize=True``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch

_LEVELS = range(1, 65)


def vectorizable(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule of an autograd function, also for what ``torch.autograd`` maps over.

    It calls no rule for that, unlike ``torch.func``, and few operations take it: here
    it is a mapping of ``torch.func`` instead.
    """

    @wraps(rule)
    def either(ctx: Any, *given: Any) -> Any:
        level = next((found for x in given if (found := _level(x))), None)
        if level is None:
            return rule(ctx, *given)
        _ = ctx.saved_tensors  # made anew by a checkpoint, if so, outside of torch.func
        mapped = [_level(x) == level for x in given]
        pairs = zip(given, mapped, strict=True)
        whole = [torch._remove_batch_dim(x, level, 1, 0) if m else x for x, m in pairs]
        return _mapped_rule(partial(rule, ctx), whole, mapped, level)

    return either


def _mapped_rule(
    rule: Callable[..., Any], whole: list[Any], mapped: list[bool], level: int
) -> Any:
    """What `rule` returns, for ``torch.autograd`` to map over; it may have Nones."""
    places: list[int] = []

    def present(*given: Any) -> Any:
        found = rule(*given)
        found = found if isinstance(found, tuple) else (found,)
        places[:] = [len(found), *(i for i, x in enumerate(found) if x is not None)]
        return tuple([x for x in found if x is not None])

    in_dims = tuple([0 if over else None for over in mapped])
    outputs = torch.func.vmap(present, in_dims=in_dims)(*whole)
    returned: list[Any] = [None] * places[0]
    for place, x in zip(places[1:], outputs, strict=True):
        returned[place] = torch._add_batch_dim(x, 0, level)
    return returned[0] if len(returned) == 1 else tuple(returned)


def _level(given: Any) -> int | None:
    """Where `given` is mapped over, if it is."""
    if not _is_mapped(given):
        return None
    whole = (k for k in _LEVELS if not _is_mapped(_unmapped(given, k)))
    return next(whole, None)


def _unmapped(tensor: torch.Tensor, level: int) -> torch.Tensor:
    whole: torch.Tensor = torch._remove_batch_dim(tensor, level, 1, 0)
    return whole


def _is_mapped(given: Any) -> bool:
    keys = torch._C._dispatch_keys
    return isinstance(given, torch.Tensor) and keys(given).has("Batched")
