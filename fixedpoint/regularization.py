"""What is added to a loss so that an equilibrium model stays easy to solve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fixedpoint.backend import Array, Vec
from fixedpoint.border import posed
from fixedpoint.checks import check_bound, check_function


def jacobian_penalty(
    f: Callable[..., Any],
    z: Any,
    args: tuple[Any, ...],
    probes: Sequence[Any],
    batch_ndim: int,
) -> Array:
    """Hutchinson's estimate of ‖J‖²/d per sample, J = ∂f/∂z at (z, \\*args) with d
    rows: the mean of ‖εᵀJ‖²/d over the `probes` ε.

    The norm is Frobenius's, which bounds the spectral radius. For probes of independent
    entries with mean zero and unit variance the estimate is unbiased. It is
    differentiable with respect to z, args and what f holds. Added to a loss, with z an
    equilibrium, it keeps f easy to solve for; with a z that no derivative flows to the
    equilibrium is left out of its derivative, as in the reference. One evaluation of f
    serves all probes, each of which takes one product.

    Parameters
    ----------
    f : callable
        The map ``f(z, *args)``.
    z : array or container of arrays
        Where to take J.
    args : tuple
        What else f takes.
    probes : sequence
        Containers like `z`.
    batch_ndim : int
        The first `batch_ndim` axes of every leaf of z index samples.

    Returns
    -------
    array of the batch's shape
        The mean over the probes.

    References
    ----------
    Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization",
    ICML 2021, arXiv:2106.14342.
    """
    check_function("f", f, args)
    border, leaves, space = posed(z, "z", batch_ndim)

    def on_leaves(*value: Any) -> Vec:
        return border.pack(f(border.unpack(value), *args), value, "f")

    _, pullback = border.backend.vjp(on_leaves, *leaves)
    products = [pullback(border.leaves(probe)) for probe in probes]
    squares = sum(space.dot(product, product) for product in products)
    return squares / (len(probes) * space.size)


def correction_loss(
    loss: Callable[..., Any], states: Sequence[Any], *targets: Any, gamma: float = 0.8
) -> Any:
    """The loss of a trajectory of states: Σₖ γⁿ⁻ᵏ⁻¹ loss(zₖ, \\*targets), k = 0, …, n −
    1.

    Parameters
    ----------
    loss : callable
        ``loss(state, *targets)``.
    states : sequence
        The states, the solution last, as ``DEQ.trajectory`` returns them.
    *targets : object
        What else the loss takes.
    gamma : float, optional
        How much less each state counts than the one after it.

    Returns
    -------
    array
        What `loss` returns, summed.

    References
    ----------
    Bai, Geng, Savani and Kolter, "Deep equilibrium optical flow estimation", CVPR 2022,
    arXiv:2204.08442.

    Examples
    --------
    >>> from fixedpoint.regularization import correction_loss
    >>> correction_loss(lambda z, y: (z - y) ** 2, [3.0, 2.0, 1.0], 0.0, gamma=0.5)
    5.25
    """
    n = len(states)
    if n == 0:
        raise ValueError(f"states must hold a state or more, got {states!r}")
    if not hasattr(gamma, "shape"):
        check_bound("gamma", gamma)
    return sum(gamma ** (n - k - 1) * loss(z, *targets) for k, z in enumerate(states))
