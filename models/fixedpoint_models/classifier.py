"""A dense equilibrium classifier, and what an attack on it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from array_api_compat import array_namespace

from fixedpoint.adapters import backend_of
from fixedpoint.checks import check_positive
from fixedpoint_models.decoder import DenseNetwork, Params, decode, equilibrium_map

NORMS = ("l2", "linf")
# Passes of the secant method: three or four do for images of 784 pixels. Divisors are
# not smaller than the second.
_PASSES, _TINY = 5, 1e-9


def perturbed_map(z: Any, x: Any, params: Params) -> Any:
    """f(z, x) = tanh(Wz + U(image + x) + b), for a perturbation x of an image."""
    return equilibrium_map(z, params["image"] + x, params)


def scores(z: Any, params: Params) -> Any:
    """The scores Cz + c of the classes, of shape (batch, classes)."""
    return decode(z, params)


def cross_entropy(o: Any, classes: Any) -> Any:
    """−log softmax(o) of the right class, per sample; `classes` has a one in its
    place.
    """
    xp = array_namespace(o)
    top = xp.max(o, axis=-1, keepdims=True)
    normalizer = xp.log(xp.sum(xp.exp(o - top), axis=-1)) + top[..., 0]
    return normalizer - xp.sum(classes * o, axis=-1)


def attack_loss(o: Any, x: Any, y: Any, params: Params) -> Any:
    """What an attack minimizes, the negative of the cross-entropy."""
    del x, params
    return -cross_entropy(o, y)


def ball(radius: float, norm: str = "l2") -> Callable[[Any], Any]:
    """The projection of each sample onto the ball ‖x‖ ≤ radius.

    Parameters
    ----------
    radius : float
        The radius.
    norm : {"l2", "linf"}, optional
        Euclidean, or the largest entry.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import ball
    >>> ball(1.0)(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    tensor([[0.6000, 0.8000],
            [0.3000, 0.4000]])
    """
    _check(radius, norm)

    def project(x: Any) -> Any:
        xp = array_namespace(x)
        if norm == "linf":
            return xp.clip(x, -radius, radius)
        length = _length(x)
        return x * (
            radius / xp.where(length > radius, length, xp.full_like(length, radius))
        )

    return project


def linear_minimizer(radius: float, norm: str = "l2") -> Callable[[Any], Any]:
    """What takes a gradient g of each sample to the point x of the ball where ⟨g, x⟩ is
    least: the oracle of the conditional gradient method.

    Parameters
    ----------
    radius, norm
        As for :func:`ball`.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import linear_minimizer
    >>> linear_minimizer(0.5, "linf")(torch.tensor([[3.0, -4.0]]))
    tensor([[-0.5000,  0.5000]])
    """
    _check(radius, norm)

    def oracle(gradient: Any) -> Any:
        xp = array_namespace(gradient)
        if norm == "linf":
            return -radius * xp.sign(gradient)
        length = _length(gradient)
        return -radius * gradient / xp.where(length > 0.0, length, xp.ones_like(length))

    return oracle


def ball_in_box(image: Any, radius: float, norm: str = "l2") -> Callable[[Any], Any]:
    """The projection of perturbations x of images onto ‖x‖ ≤ radius, 0 ≤ image + x ≤ 1.

    Parameters
    ----------
    image : array of shape (batch, …)
        The images that are perturbed, of values from 0 to 1.
    radius, norm
        As for :func:`ball`.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import ball_in_box
    >>> image = torch.tensor([[0.9, 0.5]])
    >>> ball_in_box(image, 1.0)(torch.tensor([[3.0, 0.3]]))
    tensor([[0.1000, 0.3000]])
    """
    _check(radius, norm)
    box = -image, 1.0 - image

    def project(x: Any) -> Any:
        if norm == "linf":
            return _boxed(x, box, radius)
        return _scaled_in_box(x, box, radius, 1.0)

    return project


def linear_minimizer_in_box(
    image: Any, radius: float, norm: str = "l2"
) -> Callable[[Any], Any]:
    """As :func:`linear_minimizer`, over the perturbations of :func:`ball_in_box`.

    Parameters
    ----------
    image, radius, norm
        As for :func:`ball_in_box`.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import linear_minimizer_in_box
    >>> image = torch.tensor([[0.9, 0.5]])
    >>> oracle = linear_minimizer_in_box(image, 0.5, "linf")
    >>> oracle(torch.tensor([[-3.0, 4.0]]))
    tensor([[ 0.1000, -0.5000]])
    """
    _check(radius, norm)
    box = -image, 1.0 - image

    def oracle(gradient: Any) -> Any:
        xp = array_namespace(gradient)
        if norm == "linf":
            return _boxed(-radius * xp.sign(gradient), box, radius)
        return _scaled_in_box(-gradient, box, radius, math.inf)

    return oracle


def _boxed(x: Any, box: tuple[Any, Any], radius: float) -> Any:
    return _clipped(array_namespace(x).clip(x, -radius, radius), box)


def _clipped(x: Any, box: tuple[Any, Any]) -> Any:
    xp = array_namespace(x)
    return xp.minimum(xp.maximum(x, box[0]), box[1])


def _scaled_in_box(
    direction: Any, box: tuple[Any, Any], radius: float, largest: float
) -> Any:
    """Clip td to the box, with the largest t ≤ `largest` of norm ≤ `radius`.

    Both the nearest point of ball and box and the best one in a direction are of this
    form. The square of the norm is a function of t² that is concave and made of
    straight pieces: the secant method, started from the left, stays there, and ends
    at the root once two points are on its piece.
    """
    xp = array_namespace(direction)
    size = _length(direction)
    before = square = xp.zeros_like(size)
    now = (radius / xp.clip(size, _TINY, None)) ** 2
    # Where t = `largest` is allowed in all samples, no root is sought.
    known = backend_of((direction,), ["x"]).known_here
    for _ in range(0 if known(now >= largest**2) else _PASSES):
        reached = _square(_clipped(xp.sqrt(now) * direction, box))
        # Where rounding hides the rise, a small step is taken.
        rise = xp.clip(reached - square, 1e-3 * radius**2, None)
        step = xp.clip(radius**2 - reached, 0.0, None) * (now - before) / rise
        before, square, now = now, reached, now + step
    t = xp.clip(xp.sqrt(now), None, largest)
    x = _clipped(t * direction, box)
    return x * (radius / xp.clip(_length(x), radius, None))


def _length(x: Any) -> Any:
    """The Euclidean norm of each sample, with axes to divide by."""
    return array_namespace(x).sqrt(_square(x))


def _square(x: Any) -> Any:
    """Its square."""
    axes = tuple(range(1, x.ndim))
    return array_namespace(x).sum(x * x, axis=axes, keepdims=True)


def _check(radius: float, norm: str) -> None:
    check_positive("radius", radius)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


class DenseClassifier(DenseNetwork):
    """The parameters of the classifier, W bounded as that of :class:`DenseDecoder`.

    Parameters
    ----------
    pixels : int
        Entries of an image.
    classes : int, optional
        How many.
    width : int, optional
        Entries of the state z.
    bound : float, optional
        γ, what ‖W‖₂ does not exceed.
    seed : int, optional
        Of the initial weights.
    dtype : torch.dtype, optional
        Of the weights.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> from fixedpoint_models import DenseClassifier, perturbed_map, scores
    >>> images = torch.ones(3, 64, dtype=torch.float64)
    >>> params = DenseClassifier(pixels=64).params(images)
    >>> z0, x = torch.zeros(3, 128, dtype=torch.float64), 0.0 * images
    >>> sol = fp.fixed_point(perturbed_map, z0, (x, params), batch_ndim=1)
    >>> scores(sol.value, params).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        pixels: int,
        classes: int = 10,
        width: int = 128,
        bound: float = 0.9,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(width, pixels, classes, bound, seed, dtype)

    def params(self, image: torch.Tensor) -> Params:
        """What the maps of this module take, a differentiable function of the
        parameters.

        Parameters
        ----------
        image : tensor of shape (batch, pixels)
            What is classified.
        """
        return {**self.weights(), "image": image}
