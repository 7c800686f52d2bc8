"""What ``torch.compile`` leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def disabled(function: Function) -> Function:
    """`function`, which ``torch.compile`` calls and does not trace.

    A solve is a loop that ends when its numbers say so, which a trace of it would break
    off at every step. The decorator of Torch imports the compiler, which takes as long
    as Torch itself: this is asked for only where the compiler is at work.
    """
    plain: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return plain


def eager(function: Function) -> Function:
    """`function`, which is :func:`disabled` where the compiler is at work."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return disabled(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return called  # type: ignore[return-value]
