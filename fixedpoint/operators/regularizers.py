"""Convex functions of an input, by their proximal operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol

from fixedpoint.adapters import backend_of_state
from fixedpoint.backend import Array
from fixedpoint.checks import check_count, check_positive
from fixedpoint.operators.splitting import SoftThreshold


class Regularizer(Protocol):
    """A convex function h of the input, by its values and its proximal operator."""

    def __call__(self, x: Any) -> Any:
        """h(x), one number per sample."""

    def prox(self, v: Any, alpha: Any) -> Any:
        """The x of the least αh(x) + ½‖x − v‖², where α is a number, or a container
        like v of arrays that broadcast against its leaves.
        """


@dataclass(frozen=True)
class L1Norm:
    """The regularizer h(x) = w‖x‖₁, which makes inputs sparse.

    Parameters
    ----------
    weight : float
        The weight w.
    batch_ndim : int, optional
        How many axes of x index samples.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> h, x = fp.operators.L1Norm(0.5), np.array([[3.0, -0.2]])
    >>> h(x), h.prox(x, 2.0)
    (array([1.6]), array([[2., 0.]]))
    """

    weight: float
    batch_ndim: int = 1

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)
        check_count("batch_ndim", self.batch_ndim, 0)

    def __call__(self, x: Any) -> Any:
        """h(x), one number per sample."""
        leaves = backend_of_state(x, "x").flatten(x)[0]
        return self.weight * reduce(add, map(self._sum, leaves))

    def _sum(self, leaf: Array) -> Array:
        axes = tuple(range(self.batch_ndim, leaf.ndim))
        return backend_of_state(leaf, "x").namespace(leaf).sum(abs(leaf), axis=axes)

    def prox(self, v: Any, alpha: Any) -> Any:
        """Soft thresholding."""
        return SoftThreshold(self.weight)(v, alpha)


@dataclass(frozen=True)
class _Onto:
    """A projection Π onto a convex set as a proximal operator, the same for every α."""

    project: Callable[[Any], Any]

    def __call__(self, v: Any, alpha: Any) -> Any:
        del alpha
        return self.project(v)


def prox_of(
    project: Callable[[Any], Any] | None, regularizer: Regularizer | None
) -> Callable[[Any, Any], Any] | None:
    """The proximal operator of inputs in a set, or with a regularizer, or free."""
    if project is not None and regularizer is not None:
        raise ValueError(
            "project and regularizer must not be given together: the regularizer's "
            "prox may project too"
        )
    if regularizer is not None:
        return regularizer.prox
    return project and _Onto(project)
