"""Derivatives of a solution from products that the caller supplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fixedpoint import tree
from fixedpoint.adjoints import AdjointSystem, ImplicitAdjoint
from fixedpoint.adjoints.base import LinearAdjoint
from fixedpoint.adjoints.system import units_of_unknowns
from fixedpoint.backend import Backend, Vec
from fixedpoint.border import posed
from fixedpoint.checks import check_function, check_given
from fixedpoint.functions import Product
from fixedpoint.space import Space

_IMPLICIT = ImplicitAdjoint()


def implicit_vjp(
    vjp: Callable[..., Callable[[Any], tuple[Any, ...]]],
    value: Any,
    cotangent: Any,
    args: tuple[Any, ...] = (),
    *,
    is_root: bool = False,
    batch_ndim: int = 0,
    adjoint: LinearAdjoint | None = None,
) -> tuple[Any, ...]:
    """Pull a cotangent of the solution back to the arguments, without automatic
    differentiation.

    At z* = f(z*, \\*args), the cotangent v of z* gives that of each argument θ as
    (∂f/∂θ)ᵀu, where (I − Jᵀ)u = v. At a root F(z*, \\*args) = 0 it is −(∂F/∂θ)ᵀu, where
    F′ᵀu = v.

    Parameters
    ----------
    vjp : callable
        ``vjp(z, *args)`` returns the pullback of f, or F, there: it takes a container w
        like z to the tuple ((∂f/∂z)ᵀw, (∂f/∂θ₁)ᵀw, …), an entry for z and one for each
        of `args`. It is called once, its pullback once for each product.
    value : array or container of arrays
        The solution z*.
    cotangent : array or container of arrays
        The cotangent v, shaped like `value`.
    args : tuple
        The arguments.
    is_root : bool, optional
        Whether `value` is a root, and the products are those of F. Nothing else tells:
        with the wrong answer the result is wrong, without an error.
    batch_ndim : int, optional
        The first `batch_ndim` axes of every leaf of z index independent problems.
    adjoint : LinearAdjoint, optional
        How to solve for u, by default :class:`ImplicitAdjoint`. Its tolerance is by
        default max(1e-6, 10·eps).

    Returns
    -------
    tuple
        The cotangents of `args`, each of the shape of its argument.

    Raises
    ------
    ConvergenceError
        If the solve fails, and ``adjoint.on_failure`` is "raise".

    Examples
    --------
    z = a cos z, and its derivative with respect to a, which is cos z / (1 + a sin z):

    >>> import numpy as np, fixedpoint as fp
    >>> a = 0.8
    >>> z = fp.fixed_point(lambda z, a: a * np.cos(z), 0.5, (a,), rtol=1e-12).value
    >>> def vjp(z, a):
    ...     return lambda w: (-a * np.sin(z) * w, np.cos(z) * w)
    >>> (gradient,) = fp.implicit_vjp(vjp, z, 1.0, (a,))
    >>> np.allclose(gradient, np.cos(z) / (1 + a * np.sin(z)))
    True
    """
    check_function("vjp", vjp, args)
    border, leaves, space = posed(value, "value", batch_ndim)
    pullback = vjp(value, *args)
    check_given("what vjp(z, *args) returns, the pullback,", pullback)
    rhs = border.pack(cotangent, leaves, "cotangent")

    def pulled(u: Vec) -> tuple[Any, ...]:
        return _as_tuple(pullback(border.unpack(u)))

    def product(u: Vec) -> Vec:
        return border.pack(pulled(u)[0], leaves, "vjp")

    u = _solved(adjoint, space, leaves, product, rhs, is_root, transposed=True)
    cotangents = pulled(u)[1:]
    _check_cotangents(cotangents, args)
    return cotangents


def _as_tuple(parts: Any) -> tuple[Any, ...]:
    """What a pullback returned, if it is a tuple or a list."""
    if isinstance(parts, (tuple, list)):
        return tuple(parts)
    raise TypeError(
        "the pullback of vjp must return a tuple, of a cotangent of z and one of "
        f"each of args, got {type(parts).__name__}"
    )


def implicit_jvp(
    jvp: Callable[..., Callable[..., Any]],
    value: Any,
    tangents: tuple[Any, ...],
    args: tuple[Any, ...],
    *,
    is_root: bool = False,
    batch_ndim: int = 0,
    adjoint: LinearAdjoint | None = None,
) -> Any:
    """Push tangents of the arguments forward to the solution, without automatic
    differentiation.

    At z* = f(z*, \\*args) the tangent of z* is (I − J)⁻¹ (∂f/∂θ) dθ, at a root −F′⁻¹
    (∂F/∂θ) dθ.

    Parameters
    ----------
    jvp : callable
        ``jvp(z, *args)`` returns the derivative of f, or F, there: a function that
        takes a tangent of z, and one of each of `args`, to that of f.
    value : array or container of arrays
        The solution z*.
    tangents : tuple
        The tangents of `args`, shaped like them.
    args : tuple
        The arguments.
    is_root, batch_ndim, adjoint
        As in :func:`implicit_vjp`.

    Returns
    -------
    array or container of arrays
        The tangent of z*.

    Raises
    ------
    ConvergenceError
        If the solve fails, and ``adjoint.on_failure`` is "raise".

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> a = 0.8
    >>> z = fp.fixed_point(lambda z, a: a * np.cos(z), 0.5, (a,), rtol=1e-12).value
    >>> def jvp(z, a):
    ...     return lambda dz, da: -a * np.sin(z) * dz + np.cos(z) * da
    >>> tangent = fp.implicit_jvp(jvp, z, (1.0,), (a,))
    >>> np.allclose(tangent, np.cos(z) / (1 + a * np.sin(z)))
    True
    """
    check_function("jvp", jvp, args)
    _check_tangents(tangents, args)
    border, leaves, space = posed(value, "value", batch_ndim)
    pushed = jvp(value, *args)
    check_given("what jvp(z, *args) returns, the derivative,", pushed)
    still = _zeros(border.backend, tangents)
    image = pushed(_zeros(border.backend, value), *tangents)
    rhs = border.pack(image, leaves, "jvp")

    def product(u: Vec) -> Vec:
        return border.pack(pushed(border.unpack(u), *still), leaves, "jvp")

    return border.returned(
        _solved(adjoint, space, leaves, product, rhs, is_root, transposed=False)
    )


def _check_cotangents(cotangents: tuple[Any, ...], args: tuple[Any, ...]) -> None:
    """Raise if there are too few, or one of an array or a number has another shape."""
    if len(cotangents) < len(args):  # of what f has inside there may be more
        raise ValueError(
            "the pullback of vjp must return a cotangent of z and one of each of the "
            f"{len(args)} args, got {len(cotangents) + 1} in all"
        )
    for place, (cotangent, arg) in enumerate(zip(cotangents, args, strict=False)):
        found, leaves = tree.flatten(cotangent)[0], tree.flatten(arg)[0]
        if len(found) != len(leaves):  # what only f and its products understand
            continue
        names = tree.paths(arg, f"args[{place}]")
        for new, leaf, name in zip(found, leaves, names, strict=True):
            got, expected = map(_shape, (new, leaf))
            if None not in (got, expected) and got != expected:
                raise ValueError(
                    f"the pullback of vjp must return a cotangent of the shape of "
                    f"{name}: expected {expected}, got {got}. Sum over the axes that "
                    "f broadcasts it over"
                )


def _shape(leaf: Any) -> tuple[int, ...] | None:
    """The shape of an array or of a number; None for all else."""
    if isinstance(leaf, (int, float, complex)):
        return ()
    shape = getattr(leaf, "shape", None)
    return None if shape is None else tuple(shape)


def _check_tangents(tangents: Any, args: tuple[Any, ...]) -> None:
    """Raise unless this is a tuple with an entry for each of `args`."""
    if not isinstance(tangents, tuple):
        raise TypeError(f"tangents must be a tuple, got {type(tangents).__name__}")
    if len(tangents) != len(args):
        raise ValueError(
            f"tangents must be {len(args)}, one for each of args, got {len(tangents)}"
        )


def _solved(
    adjoint: LinearAdjoint | None,
    space: Space,
    value: Vec,
    product: Product,
    rhs: Vec,
    is_root: bool,
    *,
    transposed: bool,
) -> Vec:
    """The solution of (I − A)u = v, or for roots of −Au = v, from products with A."""
    if adjoint is not None and not isinstance(adjoint, LinearAdjoint):
        raise TypeError(f"adjoint must solve a linear system, got {adjoint!r}")
    opposite = lambda u: space.negative(product(u))
    image = opposite if is_root else product
    rtol = space.default_rtol
    units = units_of_unknowns(space, value, is_root, transposed)
    system = AdjointSystem(space, image, rhs, rtol, is_root, transposed, units=units)
    u = (adjoint or _IMPLICIT).solved(system)[0]
    return space.negative(u) if is_root else u


def _zeros(backend: Backend, container: Any) -> Any:
    leaves, structure = backend.flatten(container)
    return structure.rebuild([0 * leaf for leaf in leaves])
