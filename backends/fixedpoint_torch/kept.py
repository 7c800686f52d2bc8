"""What a rule of an autograd function kept, as it is to be used later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

Tensors = tuple[torch.Tensor, ...]

_functorch = torch._C._functorch


def inside_transform() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return _functorch.peek_interpreter_stack() is not None


def kept(ctx: Any) -> Tensors:
    """What was kept, without the wrappers of transforms that have ended since.

    Torch sees through one of those, but not through two, which a solve inside a map
    would have: its rules are used after the transform of the solve around it.
    """
    return tuple(map(_alive, ctx.saved_tensors))


def _alive(tensor: torch.Tensor) -> torch.Tensor:
    while (inner := _functorch.unwrap_if_dead(tensor)) is not tensor:
        tensor = inner
    return tensor


@contextmanager
def primals(ctx: Any) -> Iterator[Tensors]:
    """What was kept, for a rule of forward mode, which another forward mode may be
    around.

    Torch switches forward mode off inside such a rule, since what was kept has tangents
    already: the other one's would be lost. Here it is on, and those tangents are taken
    off.
    """
    tensors = kept(ctx)
    top: Any = _functorch.peek_interpreter_stack()
    if top is None or top.key() != TransformType.Jvp:
        yield tensors
        return
    with forward_ad._set_fwd_grad_enabled(True):
        yield tuple(_without_tangent(tensor, top.level()) for tensor in tensors)


def _without_tangent(tensor: torch.Tensor, level: int) -> torch.Tensor:
    """`tensor` wrapped anew by the transform of a level."""
    inner = _functorch._unwrap_for_grad(tensor, level)
    wrapped: torch.Tensor = _functorch._wrap_for_grad(inner, level)
    return wrapped
