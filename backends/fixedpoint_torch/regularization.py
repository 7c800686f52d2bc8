"""Regularization of equilibrium layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fixedpoint import regularization, tree
from fixedpoint.checks import check_count, check_number
from fixedpoint.regularization import correction_loss

__all__ = ["VariationalDropout", "correction_loss", "jacobian_penalty"]


def jacobian_penalty(
    f: Callable[..., Any],
    z: Any,
    args: tuple[Any, ...] = (),
    *,
    probes: int = 1,
    batch_ndim: int = 1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The penalty :func:`fixedpoint.regularization.jacobian_penalty` for normal probes.

    To leave the equilibrium out of its derivative, detach z.

    Parameters
    ----------
    f, z, args, batch_ndim
        As there; f may be an ``nn.Module``.
    probes : int, optional
        How many vectors are drawn.
    generator : torch.Generator, optional
        What draws them.

    Returns
    -------
    tensor of the batch's shape
        The mean over the probes.

    Examples
    --------
    >>> import torch, fixedpoint_torch
    >>> z = torch.ones(2, 3)
    >>> fixedpoint_torch.jacobian_penalty(lambda z: 0.0 * z, z)
    tensor([0., 0.])
    """
    check_count("probes", probes, 1)
    leaves, structure = tree.flatten(z)
    normal = [[_normal(leaf, generator) for leaf in leaves] for _ in range(probes)]
    drawn = list(map(structure.rebuild, normal))
    penalty: torch.Tensor = regularization.jacobian_penalty(
        f, z, args, drawn, batch_ndim
    )
    return penalty


def _normal(leaf: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.randn(
        leaf.shape, generator=generator, dtype=leaf.dtype, device=leaf.device
    )


class VariationalDropout(torch.nn.Module):
    """Dropout whose mask is constant along some axes, as along the time of a sequence.

    A map that is solved for draws the same mask in every evaluation of a solve and of
    its derivatives, and in each solve another.

    Parameters
    ----------
    p : float, optional
        The probability that an entry is dropped; the others are multiplied by 1/(1 −
        p).
    axes : tuple of int, optional
        The axes along which the mask is constant: by default the second, that of time
        in (batch, time, features).

    References
    ----------
    Gal and Ghahramani, "A theoretically grounded application of dropout in recurrent
    neural networks", NeurIPS 2016, arXiv:1512.05287.

    Examples
    --------
    >>> import torch, fixedpoint_torch
    >>> dropout = fixedpoint_torch.VariationalDropout(0.5)
    >>> y = dropout(torch.ones(2, 7, 3))
    >>> bool((y == y[:, :1]).all())
    True
    """

    def __init__(self, p: float = 0.5, axes: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        check_number("p", p)
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be in [0, 1), got {p!r}")
        is_tuple = isinstance(axes, (tuple, list))
        if not is_tuple or not all(type(axis) is int for axis in axes):
            raise TypeError(f"axes must be a tuple of integers, got {axes!r}")
        self.p, self.axes = p, axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop entries in training; otherwise pass."""
        if not self.training or self.p == 0.0:
            return x
        shape = list(x.shape)
        for axis in self.axes:
            if not -x.ndim <= axis < x.ndim:
                raise ValueError(
                    f"axes must be axes of x, which has {x.ndim}, got {self.axes}"
                )
            shape[axis] = 1
        keep = 1.0 - self.p
        return x * (x.new_empty(shape).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """The settings."""
        return f"p={self.p}, axes={self.axes}"
