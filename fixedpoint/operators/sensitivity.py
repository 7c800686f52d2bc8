"""How an equilibrium moves with its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint import tree
from fixedpoint.backend import Array, Backend, Vec, backend_of
from fixedpoint.operators.augmented import Lagrangian
from fixedpoint.space import Space


class Tangents(NamedTuple):
    """How an equilibrium moves with its input, at one point that stands for all
    samples.

    With J = ∂f/∂z there, (I − J)⁻¹ ≈ I + KQᵀ: exact on a Krylov space of J with ∂f/∂x.

    Attributes
    ----------
    state : tuple of arrays (inputs, entries)
        dz/dx, a row for each entry of x and an array for each leaf of z.
    left, right : tuple of arrays (vectors, entries)
        K and Q, in rows.
    output : tuple of arrays (inputs, entries)
        do/dx, where o is what the loss reads of z.
    metric : array (inputs, inputs)
        SᵀS with S = dz/dx, by which a step in x measures what it moves the equilibrium
        by.
    """

    state: Vec
    left: Vec
    right: Vec
    output: Vec
    metric: Array

    def corrected(self, f: Callable[..., Any], z: Any, x: Any, params: Any) -> Any:
        """States z of inputs x after a step of Newton's method, z + (I + KQᵀ)[f(z, x) −
        z].
        """
        (backend, leaves), image = (
            leaves_of(z, "z"),
            leaves_of(f(z, x, params), "f(z, x)")[1],
        )
        space = Space.of(backend, leaves, 1)
        defect = space.subtract(space.rows(image), space.rows(leaves))
        moved = space.add(
            space.rows(leaves), corrections(defect, self.left, self.right)
        )
        return tree.flatten(z)[1].rebuild(space.shaped(moved))


def corrections(v: Vec, left: Vec, right: Vec, trust: Array | float = 1.0) -> Vec:
    """The vector (I + θKQᵀ)v, of K and Q in rows and the trust θ."""
    coefficients: Any = sum(leaf @ rows.T for leaf, rows in zip(v, right, strict=True))
    coefficients = trust * coefficients
    return tuple(
        [leaf + coefficients @ rows for leaf, rows in zip(v, left, strict=True)]
    )


def tangents(
    lagrangian: Lagrangian,
    z: Any,
    x: Any,
    params: Any,
    blocks: int = 8,
    rtol: float = 0.03,
) -> Tangents:
    """The tangents at an equilibrium z of the input x, roughly solved for, both batches
    of one.

    Block GCR solves (I − J)S = ∂f/∂x for all columns of S = dz/dx at once. With the
    directions U and their orthonormal images Q = (I − J)U it has found, (I − J)⁻¹ ≈ I +
    (U − Q)Qᵀ for any right-hand side: what slows the iteration z ← f(z, x) down is in
    them.

    Parameters
    ----------
    lagrangian : Lagrangian
        Brings f and the output.
    z, x : array or container of arrays
        One equilibrium and its input, with a first axis of length one.
    params : array or container of arrays
        The parameters of f, the same for all samples.
    blocks : int, optional
        Steps at most; and in a trace, where nothing can be told of the residual,
        exactly.
    rtol : float, optional
        It ends when a step changes dz/dx by no more than this part of it. (The residual
        is of no use for this: it hardly shows what the slow directions lack.)

    Returns
    -------
    Tangents
        At the cost of one product with J a step and one more, each for as many samples
        as x has entries.

    References
    ----------
    Eisenstat, Elman and Schultz, "Variational iterative methods for nonsymmetric
    systems of linear equations", SIAM J. Numer. Anal. 20, 1983.
    """
    copies = _Copies.of(z, x)
    product, drive = copies.linearized(lagrangian.f, params)
    left, right, sensitivity = _inverse(copies.states, product, drive, blocks, rtol)
    split = copies.split
    moved = copies.output(lagrangian.output, split(sensitivity), params)
    metric = copies.states.xp.astype(sensitivity @ sensitivity.T, copies.inputs.dtype)
    return Tangents(split(sensitivity), split(left), split(right), moved, metric)


@dataclass(frozen=True, eq=False)
class _Copies:
    """One sample, as often as its input has entries: one product takes all columns
    along.
    """

    state: Vec
    given: Vec
    states: Space
    inputs: Space
    structures: tuple[Any, Any]

    @classmethod
    def of(cls, z: Any, x: Any) -> _Copies:
        (backend, state), (_, given) = leaves_of(z, "z"), leaves_of(x, "x")
        size, xp = Space.of(backend, given, 1).real_size, backend.namespace(given[0])
        state, given = (
            tuple([xp.concat([a] * size) for a in part]) for part in (state, given)
        )
        spaces = Space.of(backend, state, 1), Space.of(backend, given, 1)
        return cls(state, given, *spaces, (tree.flatten(z)[1], tree.flatten(x)[1]))

    def linearized(self, f: Any, params: Any) -> tuple[Callable[[Array], Array], Array]:
        """The product with ∂f/∂z of rows of states, and the rows of ∂f/∂x."""
        backend, xp, split = self.states.backend, self.states.xp, len(self.state)

        def image(vec: Vec) -> Vec:
            z, x = (
                self.structures[0].rebuild(vec[:split]),
                self.structures[1].rebuild(vec[split:]),
            )
            return _alike(backend.flatten(f(z, x, params))[0], self.state)

        product = backend.linearize(image, (*self.state, *self.given))
        rest, still = (
            tuple(map(xp.zeros_like, self.given)),
            tuple(map(xp.zeros_like, self.state)),
        )

        def pushed(state: Vec, given: Vec) -> Array:
            return self.states.ravel(product((*state, *given)))

        units = xp.eye(len(self.given[0]), dtype=self.inputs.dtype, **self.inputs.place)
        drive = pushed(still, self.inputs.unravel(units))
        return lambda rows: pushed(self.states.shaped(self.split(rows)), rest), drive

    def split(self, rows: Array) -> Vec:
        """Rows of whole states, leaf by leaf."""
        space = self.states.of_rows(rows.shape[0])
        return space.rows(space.unravel(rows))

    def output(self, output: Any, sensitivity: Vec, params: Any) -> Vec:
        """do/dx, from dz/dx."""
        if output is None:
            return sensitivity
        backend = self.states.backend

        def image(vec: Vec) -> Vec:
            return tuple(
                backend.flatten(output(self.structures[0].rebuild(vec), params))[0]
            )

        moved = backend.linearize(image, self.state)(self.states.shaped(sensitivity))
        return Space.of(backend, moved, 1).rows(moved)


def _inverse(
    space: Space,
    product: Callable[[Array], Array],
    drive: Array,
    blocks: int,
    rtol: float,
) -> tuple[Array, Array, Array]:
    """K and Q with (I − J)⁻¹ ≈ I + KQᵀ, by block GCR on (I − J)S = `drive`, and S; all
    in rows.
    """
    xp, residual, sensitivity = space.xp, drive, space.xp.zeros_like(drive)
    solutions = images = xp.zeros(
        (0, drive.shape[-1]), dtype=drive.dtype, **space.place
    )
    for _ in range(blocks):
        size = space.backend.norm(residual, "euclidean")[:, None]
        solution = space.ratio(residual, size + xp.zeros_like(residual))
        image = solution - product(solution)
        shared = image @ images.T
        image, triangle = _factored(xp, image - shared @ images, space.place)
        solution = xp.linalg.solve(triangle, solution - shared @ solutions)
        solutions, images = xp.concat([solutions, solution]), xp.concat([images, image])
        part = residual @ image.T
        change, residual = part @ solution, residual - part @ image
        sensitivity = sensitivity + change
        settled = xp.sum(change**2) <= rtol**2 * xp.sum(sensitivity**2)
        if space.backend.known_all(xp.reshape(settled, (1,))):
            break
    return solutions - images, images, sensitivity


def _factored(xp: Any, rows: Array, place: dict[str, Any]) -> tuple[Array, Array]:
    """Orthonormal rows Q and a lower triangle R with RQ = `rows`, what is left of unit
    ones.

    A row that has almost nothing of its own left is zero in Q, and taken for very large
    in R, and so for nothing in its inverse.
    """
    basis, triangle = xp.linalg.qr(rows.T, mode="reduced")
    eps = xp.finfo(rows.dtype).eps
    noise = xp.astype(xp.abs(xp.linalg.diagonal(triangle)) <= eps**0.5, rows.dtype)
    huge = xp.eye(*triangle.shape, dtype=rows.dtype, **place) * (noise / eps)
    return basis.T * (1.0 - noise)[:, None], (triangle + huge).T


def leaves_of(container: Any, name: str) -> tuple[Backend, Vec]:
    """The backend and the leaves of a container."""
    leaves = tree.flatten(container)[0]
    return backend_of(leaves, tree.paths(container, name)), tuple(leaves)


def _alike(image: list[Array], state: Vec) -> Vec:
    for new, old in zip(image, state, strict=True):
        if new.shape != old.shape:
            raise ValueError(
                "f must be the same map for all samples, its data apart from z and x "
                "in params: "
                f"for a state of shape {tuple(old.shape)} it returned "
                f"{tuple(new.shape)}"
            )
    return tuple(image)
