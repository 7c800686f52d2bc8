"""Where the solves of a layer start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fixedpoint import tree


def first_state(
    layer: Any, inputs: Sequence[Any], z0: Any, zeros: Callable[[Any], Any]
) -> Any:
    """A layer's start: z0, that of its own, or zeros like its first input."""
    if z0 is not None:
        return z0
    if layer.start is not None:
        return layer.start(*inputs)
    if not inputs:
        raise TypeError(
            "a layer without inputs cannot tell where to start: call it with an "
            "input or z0=, or make it with start="
        )
    return zeros(inputs[0])


@contextmanager
def starting(layer: Any, z0: Any, first: Any) -> Iterator[None]:
    """Notes on errors of shapes where the state `first` of a layer came from."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if re.search("shape|size|dim", str(error)):
            shapes = [tuple(leaf.shape) for leaf in tree.flatten(first)[0]]
            error.add_note(_origin(layer, z0, ", ".join(map(str, shapes))))
        raise


def _origin(layer: Any, z0: Any, shapes: str) -> str:
    """What a state of these shapes was made from."""
    if z0 is not None:
        return f"z0 has the shape {shapes}"
    if layer.start is not None:
        return f"What the layer's own start returned has the shape {shapes}"
    return (
        f"The layer starts from zeros like its first input, of the shape {shapes}. If "
        "the state has another, make the layer with start="
    )
