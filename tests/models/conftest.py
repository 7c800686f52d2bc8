"""Sets that inputs may lie in."""

import pytest
import torch

from fixedpoint_models import ball


def _simplex(x):
    """The projection onto x ≥ 0 of sum 1."""
    high = x.sort(dim=-1, descending=True).values
    index = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    excess = (high.cumsum(-1) - 1.0) / index
    count = (high > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, count - 1)).clamp(min=0.0)


@pytest.fixture(scope="session")
def projection():
    """The projection onto a set by its kind: free inputs have none."""

    def onto(kind, low, high, radius):
        return {
            "free": None,
            "box": lambda x: x.clamp(low, high),
            "ball": ball(radius),
            "simplex": _simplex,
        }[kind]

    return onto
