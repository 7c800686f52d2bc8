"""The curvature of a loss in the input, through what the tangents say of the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fixedpoint import tree
from fixedpoint.backend import Array, Vec
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint_models.sensitivity import Tangents

# A loss whose entries are coupled by no more than this part of its curvature counts as
# separable: its Hessian is a model.
_COUPLED = 1e-3

# Of the output so many entries for each of x stand for all, if in effect no sample sees
# less than this part of them.
_DRAWN, _SEEN = 32, 0.5

# As many of them at a time as stay in a cache, beside their products in pairs.
_SLICE = 512


@dataclass(frozen=True, eq=False)
class Loss:
    """ℓ to second order, as a function of the output o and of x, where o moves by
    do/dx.
    """

    space: Space
    loss: Callable[..., Any]
    params: Any
    tangents: Tangents

    def expanded(
        self, o: Any, x: Any, y: Any
    ) -> tuple[Array, Vec, Callable[[Vec], Vec]]:
        """ℓ, its derivatives with respect to the leaves of o and x, and the product
        with ∂²ℓ.
        """
        backend, (leaves, structure) = self.space.backend, tree.flatten((o, x))

        def slope(*vec: Array) -> Vec:
            value, pull = backend.vjp(
                lambda o, x: self.loss(o, x, y, self.params), *structure.rebuild(vec)
            )
            return (value, *tree.flatten(pull(self.space.xp.ones_like(value)))[0])

        (value, *gradient), pull = backend.vjp(slope, *leaves)
        zero = self.space.xp.zeros_like(value)
        # A second derivative is symmetric: the pullback of the gradient is its product.
        return value, tuple(gradient), lambda vec: tuple(pull((zero, *vec)))

    def reduced(self, covector: Vec) -> Array:
        """A covector of o and x, pulled back to x."""
        outputs, inputs = self._parts(covector)
        pairs = zip(outputs, self.tangents.output, strict=True)
        pulled: Any = sum(a @ rows.T for a, rows in pairs)
        return pulled + inputs

    def curvature(self, o: Any, x: Any, y: Any, product: Callable[[Vec], Vec]) -> Array:
        """[do/dx; I]ᵀ |∂²ℓ| [do/dx; I] per sample, positive semi-definite.

        Where ℓ bends downwards a step must be no longer than where it bends upwards as
        much, and must not lead uphill (Dauphin et al., NeurIPS 2014, arXiv:1406.2572).
        Of a loss that is not separable the absolute value is that of the whole.
        """
        diagonal = self._diagonal(tuple(tree.flatten((o, x))[0]), product)
        if diagonal is not None:
            hessian = self._separable(tuple(map(self.space.xp.abs, diagonal)))
            return 0.5 * (hessian + self.space.xp.matrix_transpose(hessian))
        hessian = self._columns(o, x, y)
        hessian = 0.5 * (hessian + self.space.xp.matrix_transpose(hessian))
        return _positive(self.space, hessian)

    def _diagonal(self, at: Vec, product: Callable[[Vec], Vec]) -> Vec | None:
        """∂²ℓ, if it is seen to be diagonal, as that of a separable loss is: two
        products tell.
        """
        space = space_of(self.space.backend, at, 1)
        if any(self.space.xp.isdtype(leaf.dtype, "complex floating") for leaf in at):
            return None
        probe = space.shaped(tuple(map(self._irregular, space.rows(at))))
        diagonal = product(tuple(map(self.space.xp.ones_like, at)))
        image = product(probe)
        foretold = tuple([d * v for d, v in zip(diagonal, probe, strict=True)])
        rest = space.subtract(image, foretold)
        # A sample that is not finite tells nothing, and spoils no other.
        separable = ~(space.norm(rest) > _COUPLED * space.norm(image))
        return diagonal if self.space.backend.known_all(separable) else None

    def _irregular(self, rows: Array) -> Array:
        """Numbers that no coupling between entries takes for multiples of one: cos
        k².
        """
        count = self.space.xp.arange(
            rows.shape[-1], dtype=rows.dtype, **self.space.place
        )
        return self.space.xp.cos(count**2) + self.space.xp.zeros_like(rows)

    def _separable(self, diagonal: Vec) -> Array:
        """The curvature of a loss with diagonal ∂²ℓ; one for all samples if they have
        the same.
        """
        first, backend = tuple([leaf[:1, ...] for leaf in diagonal]), self.space.backend
        pairs = zip(diagonal, first, strict=True)
        same = all(backend.known_all(leaf == row) for leaf, row in pairs)
        outputs, inputs = self._parts(first if same else diagonal)
        rows = list(zip(outputs, self.tangents.output, strict=True))
        direct = inputs[:, :, None] * self._units()
        if same:
            return direct + sum((d * s) @ s.T for d, s in rows)
        (a, b, place), take = self._upper(), self.space.xp.take
        # Σₖ dₖSₐₖSᵦₖ for a ≤ b: all samples in one product with a matrix, a part of it
        # at a time.
        upper: Any = sum(
            d[:, part] @ (take(s[:, part], a, axis=0) * take(s[:, part], b, axis=0)).T
            for d, s in (_drawn(self.space, d, s) for d, s in rows)
            for part in _slices(s.shape[1])
        )
        return direct + self.space.xp.reshape(take(upper, place, axis=1), direct.shape)

    def _upper(self) -> tuple[Array, Array, Array]:
        """The indices a ≤ b of a symmetric matrix, and where each of its entries is
        among them.
        """
        size, xp = self.space.real_size, self.space.xp
        a, b = np.triu_indices(size)
        place = np.empty((size, size), dtype=np.int64)
        place[a, b] = place[b, a] = np.arange(len(a))
        arrays = (a, b, place.reshape(-1))
        return tuple([xp.asarray(array, **self.space.place) for array in arrays])

    def _columns(self, o: Any, x: Any, y: Any) -> Array:
        """The curvature of any loss: all columns of all samples in one product."""
        space, xp = self.space, self.space.xp
        batch, size = space.batch_shape[0], space.real_size
        o, x, y = (_repeated(space, container, size) for container in (o, x, y))
        outputs = space_of(space.backend, tuple(tree.flatten(o)[0]), 1)
        inputs = space.of_rows(batch * size)
        moved = outputs.shaped(
            tuple(xp.concat([rows] * batch) for rows in self.tangents.output)
        )
        direct = inputs.unravel(xp.concat([self._units()] * batch))
        curved = self.expanded(o, x, y)[2]((*moved, *direct))
        return xp.reshape(self.reduced(curved), (batch, size, size))

    def _parts(self, covector: Vec) -> tuple[Vec, Array]:
        """The rows of the part that belongs to o, and the entries of the part that
        belongs to x.
        """
        split = len(self.tangents.output)
        inputs = self.space.of_rows(covector[0].shape[0])
        outputs = space_of(inputs.backend, covector[:split], 1).rows(covector[:split])
        return outputs, inputs.ravel(covector[split:])

    def _units(self) -> Array:
        space = self.space
        return space.xp.eye(space.real_size, dtype=space.dtype, **space.place)


def _drawn(space: Space, diagonal: Array, moved: Array) -> tuple[Array, Array]:
    """A few entries of dₖ and Sₖ, with weights, that stand for all of them in Σₖ
    dₖSₖSₖᵀ.

    They are drawn by their leverage in the mean over the samples (Drineas, Mahoney,
    Muthukrishnan, "Sampling algorithms for l2 regression and applications", SODA 2006),
    but evenly, by no chance. All of them are taken where there are few, or where some
    sample sees few.
    """
    xp, count = space.xp, _DRAWN * space.real_size
    if diagonal.shape[-1] <= count:
        return diagonal, moved
    mean = xp.mean(xp.abs(diagonal), axis=0)
    part = _leverage(space, mean, moved)
    chosen = _evenly(space, part, count)
    seen = xp.take(diagonal, chosen, axis=1)
    relative = xp.abs(space.ratio(seen, mean[chosen]))
    enough = xp.sum(relative, axis=1) ** 2 >= _SEEN * count * xp.sum(
        relative**2, axis=1
    )
    if not space.backend.known_all(enough):
        return diagonal, moved
    weight = space.ratio(xp.sum(part), count * part[chosen])
    return weight * seen, xp.take(moved, chosen, axis=1)


def _leverage(space: Space, weights: Array, rows: Array) -> Array:
    """The part dₖSₖᵀG⁻¹Sₖ of each entry in G = Σₖ dₖSₖSₖᵀ."""
    metric = ((weights * rows) @ rows.T)[None, ...]
    inverse = inverted(space, metric, space.precision**0.5)[0, ...]
    return weights * space.xp.sum(rows * (inverse @ rows), axis=0)


def _evenly(space: Space, parts: Array, count: int) -> Array:
    """The numbers of `count` entries, each as often as its part says.

    Multiples of the golden ratio, less their whole parts, lie evenly, and in step with
    no grid.
    """
    xp, reach = space.xp, space.xp.cumulative_sum(parts)
    even = (0.5 * 5**0.5 - 0.5) * np.arange(1, count + 1) % 1.0
    aims = reach[-1] * xp.asarray(even, dtype=reach.dtype, **space.place)
    return xp.clip(xp.searchsorted(reach, aims), 0, len(reach) - 1)


def _slices(entries: int) -> list[slice]:
    """All entries, a few hundred at a time."""
    return [slice(k, k + _SLICE) for k in range(0, entries, _SLICE)]


def _repeated(space: Space, container: Any, times: int) -> Any:
    """Every sample `times` in a row, in the leaves that have one entry per sample."""
    leaves, structure = space.backend.flatten(container)
    batch = space.batch_shape[0]
    many = [
        space.xp.repeat(leaf, times, axis=0)
        if space.backend.is_array(leaf) and leaf.shape[:1] == (batch,)
        else leaf
        for leaf in leaves
    ]
    return structure.rebuild(many)


def _positive(space: Space, hessian: Array) -> Array:
    """|H|, or a unit matrix where H is not finite."""
    xp = space.xp
    sound = xp.isfinite(xp.sum(hessian, axis=(1, 2)))[:, None, None]
    unit = space.of_rows(hessian.shape[0]).identity(hessian.shape[-1])
    values, vectors = xp.linalg.eigh(xp.where(sound, hessian, unit))
    return (vectors * xp.abs(values)[:, None, :]) @ xp.matrix_transpose(vectors)


def inverted(space: Space, hessian: Array, damping: float) -> Array:
    """(H + λm I)⁻¹, symmetric, with m the mean of the diagonal of H."""
    xp = space.xp
    mean = xp.mean(xp.linalg.diagonal(hessian), axis=-1)
    shift = damping * xp.where(mean > 0.0, mean, space.one)
    unit = xp.eye(space.real_size, dtype=space.dtype, **space.place)
    inverse = xp.linalg.inv(hessian + shift[:, None, None] * unit)
    return 0.5 * (inverse + xp.matrix_transpose(inverse))
