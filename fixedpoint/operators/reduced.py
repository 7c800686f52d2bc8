"""The augmented system by Newton's method in the input, state and adjoint tracked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fixedpoint import tree
from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.checks import check_positive
from fixedpoint.operators import steps
from fixedpoint.operators.augmented import Lagrangian, Linearisation
from fixedpoint.operators.base import Evaluation, Operator
from fixedpoint.operators.sensitivity import Tangents, corrections, leaves_of
from fixedpoint.space import Space

# A defect that is still more than this part of the last one has hardly fallen, and the tangents
# are trusted by this part of before.
_SLOW, _DISTRUST = 0.6, 0.25

# A loss whose entries are coupled by no more than this part of its curvature counts as separable:
# its Hessian is a model.
_COUPLED = 1e-3

# As many entries of an output at a time as stay in a cache, beside their products in pairs.
_SLICE = 512


@dataclass(frozen=True)
class ReducedNewton(Operator):
    """Newton's method in the input x, the state z and its adjoint μ tracked: a single loop.

    One application evaluates f and one vector-Jacobian product at (z, μ, x), and then

        z ← z + P[f(z, x) − z] + S Δx ,   μ ← μ + Pᵀ[(∂f/∂z)ᵀμ + ∂ℓ/∂z − μ] ,   x ← x + Δx ,

    where P ≈ (I − ∂f/∂z)⁻¹ and S ≈ dz/dx are :class:`Tangents` taken once, at one point for all
    samples. The gradient of the reduced objective φ(x) = ℓ(z*(x), x) is corrected for the adjoint
    that is not finished, and its value for the state that is not,

        g = ∇ₓL + Sᵀ[(∂f/∂z)ᵀμ + ∂ℓ/∂z − μ] ,      φ ≈ L = ℓ + μ⁺ᵀ[f(z, x) − z] ,

    μ⁺ the next adjoint, with errors that are products of two small ones. A sample's x stands still
    until its state and adjoint have caught up; then its last step is accepted if L fell, and the
    next one is

        Δx = −B g ,    B = (H + λ diag H)⁻¹ at first,

    H the Gauss-Newton matrix at the start, B kept up to date by damped BFGS, and Δx within a radius
    that depends on how well the fall of L was foretold. Where L rose, x goes back to the last
    accepted input, and stands there until the gradient has settled.

    States are ``{"z", "mu", "x", "memory"}``, made by :meth:`start`; args are
    ``(params, y, tangents)``. It is to be iterated plainly, by
    ``fixedpoint.Picard(keep_last=True)``.

    Parameters
    ----------
    lagrangian : Lagrangian
        f and ℓ, of arrays with automatic differentiation.
    forcing : float, optional
        The state has caught up when what is left to go is this part of what x moved it by.
    damping : float, optional
        The factor λ.

    References
    ----------
    Levenberg, "A method for the solution of certain non-linear problems in least squares",
    Quart. Appl. Math. 2, 1944. Powell, "A fast algorithm for nonlinearly constrained optimization
    calculations", in: Numerical Analysis, Springer 1978 (the damped update). Biegler, Ghattas,
    Heinkenschloss, van Bloemen Waanders (eds.), "Large-Scale PDE-Constrained Optimization",
    Springer 2003 (reduced-space methods).

    Examples
    --------
    The least (z − 2)² + x² subject to z = z/2 + x has x = 4/5:

    >>> import torch, fixedpoint as fp
    >>> from fixedpoint.operators import Lagrangian, ReducedNewton, tangents
    >>> lagrangian = Lagrangian(
    ...     lambda z, x, w: w * z + x, lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1))
    >>> newton, w, zero = ReducedNewton(lagrangian), torch.tensor(0.5), torch.zeros(1, 1)
    >>> with torch.no_grad():
    ...     local = tangents(lagrangian, zero, zero, w)
    ...     start = newton.start(zero, zero, w, torch.tensor([[2.0]]), local)
    ...     sol = fp.fixed_point(newton, start, (w, torch.tensor([[2.0]]), local),
    ...                          solver=fp.Picard(keep_last=True), batch_ndim=1)
    >>> round(float(sol.value["x"]), 4)
    0.8
    """

    lagrangian: Lagrangian
    forcing: float = 0.3
    damping: float = 0.05

    blocks = ("mu", "x", "z")

    def __post_init__(self) -> None:
        check_positive("forcing", self.forcing, 1.0)
        check_positive("damping", self.damping)

    def start(self, z: Any, x: Any, params: Any, y: Any, tangents: Tangents) -> dict[str, Any]:
        """The first state: a Gauss-Newton step from equilibria z of inputs x.

        At x where `tangents` were taken the gradient is exact; elsewhere, the step is rejected
        should it lead uphill.
        """
        frame = _Frame.of(z, x)
        one = frame.inputs.full(1.0, (1,))
        memory, pulled = self._expanded(frame, z, x, params, y, tangents)
        step = steps.first_step(frame.inputs, memory)
        mu = corrections(frame.state_rows(pulled), tangents.right, tangents.left)
        moved = frame.states.add(frame.state_rows(z), frame.push(step, tangents))
        columns = [one, 0.0 * one, memory.packed(frame.inputs)]
        return frame.packed(moved, mu, memory.x + step, frame.inputs.xp.concat(columns, axis=-1))

    def _expanded(
        self, frame: _Frame, z: Any, x: Any, params: Any, y: Any, tangents: Tangents
    ) -> tuple[steps.Memory, Any]:
        """ℓ, its gradient and its Gauss-Newton matrix in x; and ∂ℓ/∂z."""
        backend, given = frame.inputs.backend, self.lagrangian.output
        output, pull = (
            (z, lambda v: (v,)) if given is None else backend.vjp(lambda z: given(z, params), z)
        )
        loss = _Loss(frame.inputs, self.lagrangian.loss, params, tangents)
        value, slope, product = loss.expanded(output, x, y)
        hessian = loss.curvature(output, x, y, product)
        gradient = loss.reduced(slope)
        inverse = _inverted(frame.inputs, hessian, self.damping) + 0.0 * gradient[:, :, None]
        memory = steps.Memory.first(frame.inputs, frame.flat(x), gradient, value, inverse)
        return memory, pull(tree.flatten(output)[1].rebuild(slope))[0]

    def evaluate(self, state: Any, params: Any, y: Any, tangents: Tangents) -> Evaluation:
        """One evaluation of f, one of ℓ, and one reverse pass through both."""
        frame = _Frame.of(state["z"], state["x"])
        here = self.lagrangian(state, params, y)
        states, z, mu = frame.states, frame.state_rows(state["z"]), frame.state_rows(state["mu"])
        defect = states.subtract(frame.state_rows(here.value), z)
        adjoint_defect = states.subtract(frame.state_rows(here.state_gradient), mu)
        size, memory = states.norm(defect), state["memory"]
        trust = _trusted(frame, memory, size)
        ahead = corrections(defect, tangents.left, tangents.right, trust)
        adjoint_ahead = corrections(adjoint_defect, tangents.right, tangents.left, trust)
        correction, x = frame.pull(adjoint_defect, tangents), frame.flat(state["x"])
        further = states.dot(adjoint_ahead, defect)
        numbers = (here.objective + states.dot(mu, defect) + further, further, size)
        numbers = frame.inputs.xp.stack([*numbers, states.norm(ahead)], axis=-1)
        memory, aim = frame.inputs.backend.small(
            partial(_moved, self.forcing), memory, trust, x, frame.flat(here.input_gradient),
            correction, numbers, tangents.metric,
        )  # fmt: skip
        z = states.add(states.add(z, ahead), frame.push(aim - x, tangents))
        image = frame.packed(z, states.add(mu, adjoint_ahead), aim, memory)
        return Evaluation(image, frame.residual(state, here, defect, adjoint_defect))


def _trusted(frame: _Frame, memory: Array, size: Array) -> Array:
    """How far the tangents are trusted: less where the state's defect hardly fell.

    They belong to one point. Elsewhere (I − ∂f/∂z)⁻¹ may be so much smaller that corrections by
    them overshoot; without them what is left is the iteration z ← f(z, x) itself.
    """
    trust, before = memory[:, :1], memory[:, 1]
    slow = (before > 0.0) & (size > _SLOW * before)
    return frame.inputs.xp.where(slow[:, None], _DISTRUST * trust, trust)


def _moved(
    forcing: float, backend: Backend, memory: Array, trust: Array, x: Array, gradient: Array,
    correction: Array, numbers: Array, metric: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """What is remembered now, and the next input."""
    space = Space.of(backend, (x,), 1)
    value, further, size, ahead = (numbers[:, k] for k in range(4))
    left = backend.row_norm(correction, "euclidean")
    found = steps.Found(x, gradient + correction, value, space.xp.abs(further), ahead, left)
    before = steps.Memory.unpacked(space, memory[:, 2:])
    after, aim, moves = steps.moved(space, before, found, metric, forcing)
    # The next defect belongs to another input, and is not to be compared.
    size = space.xp.where(moves, space.zero, size)
    return space.xp.concat([trust, size[:, None], after.packed(space)], axis=-1), aim


@dataclass(frozen=True, eq=False)
class _Frame:
    """The spaces of z and of x, and the way between containers and rows."""

    states: Space
    inputs: Space
    rebuild_state: Callable[[Any], Any]
    rebuild_input: Callable[[Any], Any]

    @classmethod
    def of(cls, z: Any, x: Any) -> _Frame:
        (backend, state), (_, given) = leaves_of(z, "z"), leaves_of(x, "x")
        spaces = Space.of(backend, state, 1), Space.of(backend, given, 1)
        return cls(*spaces, tree.flatten(z)[1].rebuild, tree.flatten(x)[1].rebuild)

    def state_rows(self, z: Any) -> Vec:
        return self.states.rows(tuple(tree.flatten(z)[0]))

    def flat(self, x: Any) -> Array:
        return self.inputs.ravel(self.inputs.rows(tuple(tree.flatten(x)[0])))

    def input_of(self, flat: Array) -> Any:
        return self.rebuild_input(self.inputs.shaped(self.inputs.unravel(flat)))

    def push(self, step: Array, tangents: Tangents) -> Vec:
        """The vector S Δx."""
        return tuple([step @ rows for rows in tangents.state])

    def pull(self, v: Vec, tangents: Tangents) -> Array:
        """The covector Sᵀv."""
        return sum(leaf @ rows.T for leaf, rows in zip(v, tangents.state, strict=True))

    def packed(self, z: Vec, mu: Vec, x: Array, memory: Array) -> dict[str, Any]:
        """A state of the operator."""
        state, adjoint = (self.rebuild_state(self.states.shaped(v)) for v in (z, mu))
        return {"z": state, "mu": adjoint, "x": self.input_of(x), "memory": memory}

    def residual(
        self, state: Any, here: Linearisation, defect: Vec, adjoint_defect: Vec
    ) -> dict[str, Any]:
        """The blocks of the KKT residual; what is remembered is right by itself."""
        zeros = self.inputs.xp.zeros_like(state["memory"])
        return self.packed(defect, adjoint_defect, -self.flat(here.input_gradient), zeros)


@dataclass(frozen=True, eq=False)
class _Loss:
    """ℓ to second order, as a function of the output o and of x, where o moves by do/dx."""

    space: Space
    loss: Callable[..., Any]
    params: Any
    tangents: Tangents

    def expanded(self, o: Any, x: Any, y: Any) -> tuple[Array, Vec, Callable[[Vec], Vec]]:
        """ℓ, its derivatives with respect to the leaves of o and x, and the product with ∂²ℓ."""
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
        """[do/dx; I]ᵀ ∂²ℓ [do/dx; I] per sample."""
        diagonal = self._diagonal(tuple(tree.flatten((o, x))[0]), product)
        hessian = self._columns(o, x, y) if diagonal is None else self._separable(diagonal)
        return 0.5 * (hessian + self.space.xp.matrix_transpose(hessian))

    def _diagonal(self, at: Vec, product: Callable[[Vec], Vec]) -> Vec | None:
        """∂²ℓ, if it is seen to be diagonal, as that of a separable loss is: two products tell."""
        space = Space.of(self.space.backend, at, 1)
        if any(self.space.xp.isdtype(leaf.dtype, "complex floating") for leaf in at):
            return None
        probe = space.shaped(tuple(map(self._irregular, space.rows(at))))
        diagonal, image = product(tuple(map(self.space.xp.ones_like, at))), product(probe)
        foretold = tuple([d * v for d, v in zip(diagonal, probe, strict=True)])
        rest = space.subtract(space.rows(image), space.rows(foretold))
        separable = space.norm(rest) <= _COUPLED * space.norm(space.rows(image))
        return diagonal if self.space.backend.known_all(separable) else None

    def _irregular(self, rows: Array) -> Array:
        """Numbers that no coupling between entries takes for multiples of one: cos k²."""
        count = self.space.xp.arange(rows.shape[-1], dtype=rows.dtype, **self.space.place)
        return self.space.xp.cos(count**2) + self.space.xp.zeros_like(rows)

    def _separable(self, diagonal: Vec) -> Array:
        """The curvature of a loss with diagonal ∂²ℓ; one for all samples if they have the same."""
        first, backend = tuple([leaf[:1, ...] for leaf in diagonal]), self.space.backend
        pairs = zip(diagonal, first, strict=True)
        same = all(backend.known_all(leaf == row) for leaf, row in pairs)
        outputs, inputs = self._parts(first if same else diagonal)
        rows = list(zip(outputs, self.tangents.output, strict=True))
        direct = inputs[:, :, None] * self._units()
        if same:
            return direct + sum((d * s) @ s.T for d, s in rows)
        a, b, place = self._upper()
        take = self.space.xp.take
        # Σₖ dₖSₐₖSᵦₖ for a ≤ b: all samples in one product with a matrix, a part of it at a time.
        upper: Any = sum(
            d[:, part] @ (take(s[:, part], a, axis=0) * take(s[:, part], b, axis=0)).T
            for d, s in rows
            for part in _slices(s.shape[1])
        )
        return direct + self.space.xp.reshape(take(upper, place, axis=1), direct.shape)

    def _upper(self) -> tuple[Array, Array, Array]:
        """The indices a ≤ b of a symmetric matrix, and where each of its entries is among them."""
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
        outputs, inputs = (
            Space.of(space.backend, tuple(tree.flatten(o)[0]), 1),
            space.of_rows(batch * size),
        )
        moved = outputs.shaped(tuple(xp.concat([rows] * batch) for rows in self.tangents.output))
        direct = inputs.shaped(inputs.unravel(xp.concat([self._units()] * batch)))
        curved = self.expanded(o, x, y)[2]((*moved, *direct))
        return xp.reshape(self.reduced(curved), (batch, size, size))

    def _parts(self, covector: Vec) -> tuple[Vec, Array]:
        """The rows of the part that belongs to o, and the entries of the part that belongs to x."""
        split, inputs = len(self.tangents.output), self.space.of_rows(covector[0].shape[0])
        outputs = Space.of(inputs.backend, covector[:split], 1).rows(covector[:split])
        return outputs, inputs.ravel(inputs.rows(covector[split:]))

    def _units(self) -> Array:
        space = self.space
        return space.xp.eye(space.real_size, dtype=space.dtype, **space.place)


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


def _inverted(space: Space, hessian: Array, damping: float) -> Array:
    """(H + λ diag H)⁻¹, symmetric."""
    xp, diagonal = space.xp, space.xp.linalg.diagonal(hessian)
    least = space.precision * xp.max(xp.abs(diagonal), axis=-1, keepdims=True)
    scale = damping * xp.where(diagonal > least, diagonal, least)
    unit = xp.eye(space.real_size, dtype=space.dtype, **space.place)
    inverse = xp.linalg.inv(hessian + scale[:, :, None] * unit)
    return 0.5 * (inverse + xp.matrix_transpose(inverse))
