"""How an equilibrium moves with its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fixedpoint import tree
from fixedpoint.adapters import backend_of
from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.operators.augmented import Lagrangian
from fixedpoint.space import Space
from fixedpoint.spaces import space_of

# Entries of a state of which the whole Jacobian is formed, at most.
_SMALL = 256


class Tangents(NamedTuple):
    """How an equilibrium moves with its input, at one point that stands for all
    samples.

    Attributes
    ----------
    state : tuple of arrays (inputs, entries)
        dz/dx, a row for each entry of x and an array for each leaf of z.
    output : tuple of arrays (inputs, entries)
        do/dx, where o is what the loss reads of z.
    products : int
        Products with ∂f/∂z that they took, each for as many samples as x has entries.
    """

    state: Vec
    output: Vec
    products: int


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

    Of a state of few entries the Jacobian J = ∂f/∂z is formed, by one product with its
    transpose, and (I − J)S = ∂f/∂x solved for S = dz/dx. Otherwise block GCR solves for
    all columns of S at once: what slows the iteration z ← f(z, x) down is in its first
    directions.

    Parameters
    ----------
    lagrangian : Lagrangian
        Brings f and the output.
    z, x : array or container of arrays
        One equilibrium and its input, with a first axis of length one.
    params : array or container of arrays
        The parameters of f, the same for all samples.
    blocks : int, optional
        Steps of GCR at most; and in a trace, where nothing can be told of the residual,
        exactly.
    rtol : float, optional
        It ends when a step changes dz/dx by no more than this part of it. (The residual
        is of no use for this: it hardly shows what the slow directions lack.)

    References
    ----------
    Eisenstat, Elman and Schultz, "Variational iterative methods for nonsymmetric
    systems of linear equations", SIAM J. Numer. Anal. 20, 1983.
    """
    copies = _Copies.of(z, x)
    if copies.is_small:
        sensitivity, products = _dense(lagrangian.f, z, x, params), 0
    else:
        product, drive = copies.linearized(lagrangian.f, params)
        sensitivity, products = _krylov(copies.states, product, drive, blocks, rtol)
    moved = copies.output(lagrangian.output, copies.split(sensitivity), params)
    return Tangents(copies.split(sensitivity), moved, products)


def _dense(f: Callable[..., Any], z: Any, x: Any, params: Any) -> Array:
    """The rows of dz/dx, by the whole Jacobian."""
    (backend, state), (_, given) = leaves_of(z, "z"), leaves_of(x, "x")
    size = space_of(backend, state, 1).real_size
    many = [backend.namespace(a).concat([a] * size) for a in (*state, *given)]
    z = tree.flatten(z)[1].rebuild(many[: len(state)])
    x = tree.flatten(x)[1].rebuild(many[len(state) :])
    image, pull = backend.vjp(lambda z, x: f(z, x, params), z, x)
    alike(backend.flatten(image)[0], tuple(many[: len(state)]))
    states = space_of(backend, tuple(many[: len(state)]), 1)
    inputs = space_of(backend, tuple(many[len(state) :]), 1)
    unit = states.xp.eye(size, dtype=states.dtype, **states.place)
    by_state, by_input = pull(tree.flatten(z)[1].rebuild(states.unravel(unit)))
    jacobian = states.ravel(tuple(tree.flatten(by_state)[0]))
    drive = inputs.ravel(tuple(tree.flatten(by_input)[0]))
    return states.xp.linalg.solve(unit - jacobian, drive).T


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
        size, xp = space_of(backend, given, 1).real_size, backend.namespace(given[0])
        state, given = (
            tuple([xp.concat([a] * size) for a in part]) for part in (state, given)
        )
        spaces = space_of(backend, state, 1), space_of(backend, given, 1)
        return cls(state, given, *spaces, (tree.flatten(z)[1], tree.flatten(x)[1]))

    @property
    def is_small(self) -> bool:
        """Whether the whole Jacobian costs less than some products."""
        real = not any((*self.states.complex_leaves, *self.inputs.complex_leaves))
        return real and self.states.real_size <= _SMALL

    def linearized(self, f: Any, params: Any) -> tuple[Callable[[Array], Array], Array]:
        """The product with ∂f/∂z of rows of states, and the rows of ∂f/∂x."""
        backend, xp, split = self.states.backend, self.states.xp, len(self.state)

        def image(vec: Vec) -> Vec:
            z = self.structures[0].rebuild(vec[:split])
            x = self.structures[1].rebuild(vec[split:])
            return alike(backend.flatten(f(z, x, params))[0], self.state)

        product = backend.linearize(image, (*self.state, *self.given))
        rest = tuple(map(xp.zeros_like, self.given))
        still = tuple(map(xp.zeros_like, self.state))

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
        return space_of(backend, moved, 1).rows(moved)


def _krylov(
    space: Space,
    product: Callable[[Array], Array],
    drive: Array,
    blocks: int,
    rtol: float,
) -> tuple[Array, int]:
    """The S of (I − J)S = `drive` by block GCR, in rows, and the products it took."""
    xp, residual, sensitivity = space.xp, drive, space.xp.zeros_like(drive)
    solutions = images = xp.zeros(
        (0, drive.shape[-1]), dtype=drive.dtype, **space.place
    )
    count = 0
    while count < blocks:
        count += 1
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
    return sensitivity, count + 1


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


def alike(image: list[Array], state: Vec) -> Vec:
    """The leaves of f(z, x), which have the shapes of those of z."""
    for new, old in zip(image, state, strict=True):
        if new.shape != old.shape:
            raise ValueError(
                "f must be the same map for all samples, its data apart from z and x "
                f"in params: for a state of shape {tuple(old.shape)} it returned "
                f"{tuple(new.shape)}"
            )
    return tuple(image)
