"""What ``torch.compile`` leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
# Torch 2.6 does not tell.
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def refuse_export() -> NoReturn:
    """Raise TypeError, with what to do instead."""
    raise TypeError(
        "a solve ends when its numbers say so, which no exported or traced program "
        "can: export a loop of a fixed number of plain steps, z = f(z, *args)"
    )


def is_compiling() -> bool:
    """Whether ``torch.compile`` traces; where a program is exported, TypeError."""
    if _is_tracing() or _is_exporting():
        refuse_export()
    return torch.compiler.is_compiling()


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
        if is_compiling():
            return disabled(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return called  # type: ignore[return-value]
