"""The augmented system by Newton's method in the input, state and adjoint tracked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from array_api_compat import array_namespace

from fixedpoint import tree
from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.checks import check_positive
from fixedpoint.operators import steps
from fixedpoint.operators.augmented import Lagrangian, Linearization
from fixedpoint.operators.base import Evaluation, Operator
from fixedpoint.operators.curvature import Loss, inverted
from fixedpoint.operators.sensitivity import Tangents, corrections, leaves_of
from fixedpoint.space import Space

# A defect that is still more than this part of the last one has hardly fallen, and the
# tangents are trusted by this part of before.
_SLOW, _DISTRUST = 0.6, 0.25


@dataclass(frozen=True)
class ReducedNewton(Operator):
    """Newton's method in the input x, the state z and its adjoint μ tracked: a single
    loop.

    One application evaluates f and one vector-Jacobian product at (z, μ, x), and then

        z ← z + P[f(z, x) − z] + S Δx ,   x ← x + Δx ,
        μ ← μ + Pᵀ[(∂f/∂z)ᵀμ + ∂ℓ/∂z − μ] ,

    where P ≈ (I − ∂f/∂z)⁻¹ and S ≈ dz/dx are :class:`Tangents` taken once, at one point
    for all samples. The gradient of the reduced objective φ(x) = ℓ(z*(x), x) is
    corrected for the adjoint that is not finished, and its value for the state that is
    not,

        g = ∇ₓL + Sᵀ[(∂f/∂z)ᵀμ + ∂ℓ/∂z − μ] ,      φ ≈ L = ℓ + μ⁺ᵀ[f(z, x) − z] ,

    μ⁺ the next adjoint, with errors that are products of two small ones. A sample's x
    stands still until its state and adjoint have caught up; then its last step is
    accepted if L fell, and the next one is

        Δx = −B g ,    B = (H + λ diag H)⁻¹ at first,

    H the Gauss-Newton matrix at the start, B kept up to date by damped BFGS, and Δx
    within a radius that depends on how well the fall of L was foretold. Where L rose, x
    goes back to the last accepted input, and stands there until the gradient has
    settled.

    States are ``{"z", "mu", "x", "memory"}``, made by :meth:`start`; args are
    ``(params, y, tangents)``. It is to be iterated plainly, by
    ``fixedpoint.Picard(keep_last=True)``.

    Parameters
    ----------
    lagrangian : Lagrangian
        f and ℓ, of arrays with automatic differentiation.
    forcing : float, optional
        The state has caught up when what is left to go is this part of what x moved it
        by.
    damping : float, optional
        The factor λ.

    References
    ----------
    Levenberg, "A method for the solution of certain non-linear problems in least
    squares", Quart. Appl. Math. 2, 1944. Powell, "A fast algorithm for nonlinearly
    constrained optimization calculations", in: Numerical Analysis, Springer 1978 (the
    damped update). Biegler, Ghattas, Heinkenschloss, van Bloemen Waanders (eds.),
    "Large-Scale PDE-Constrained Optimization", Springer 2003 (reduced-space methods).

    Examples
    --------
    The least (z − 2)² + x² subject to z = z/2 + x has x = 4/5:

    >>> import torch, fixedpoint as fp
    >>> from fixedpoint.operators import Lagrangian, ReducedNewton, tangents
    >>> lagrangian = Lagrangian(
    ...     lambda z, x, w: w * z + x, lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1))
    >>> newton = ReducedNewton(lagrangian)
    >>> w, zero = torch.tensor(0.5), torch.zeros(1, 1)
    >>> with torch.no_grad():
    ...     local = tangents(lagrangian, zero, zero, w)
    ...     start = newton.start(zero, zero, w, torch.tensor([[2.0]]), local)
    ...     sol = fp.fixed_point(newton, start, (w, torch.tensor([[2.0]]), local),
    ...                          solver=fp.Picard(keep_last=True), test="residual",
    ...                          batch_ndim=1)
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

    def start(
        self, z: Any, x: Any, params: Any, y: Any, tangents: Tangents
    ) -> dict[str, Any]:
        """The first state: a Gauss-Newton step from equilibria z of inputs x.

        At x where `tangents` were taken the gradient is exact; elsewhere, the step is
        rejected should it lead uphill. One z stands for the equilibria of all samples.
        The adjoint is zero: the first evaluation finds it where the step has led, and
        is not led astray by an older one.
        """
        rows = leaves_of(x, "x")[1][0].shape[0]
        given, state = self.lagrangian.output, _for_all(z, rows)
        output = state if given is None else _for_all(given(z, params), rows)
        frame = _Frame.of(state, x)
        memory = self._expanded(frame, output, x, params, y, tangents)
        step = steps.first_step(frame.inputs, memory)
        moved = frame.states.add(frame.state_rows(state), frame.push(step, tangents))
        one = frame.inputs.full(1.0, (1,))
        columns = [one, 0.0 * one, memory.packed(frame.inputs)]
        told = frame.inputs.xp.concat(columns, axis=-1)
        return frame.packed(
            moved, tuple([0.0 * leaf for leaf in moved]), memory.x + step, told
        )

    def _expanded(
        self,
        frame: _Frame,
        output: Any,
        x: Any,
        params: Any,
        y: Any,
        tangents: Tangents,
    ) -> steps.Memory:
        """ℓ, its gradient and its Gauss-Newton matrix in x."""
        loss = Loss(frame.inputs, self.lagrangian.loss, params, tangents)
        value, slope, product = loss.expanded(output, x, y)
        hessian, gradient = loss.curvature(output, x, y, product), loss.reduced(slope)
        inverse = (
            inverted(frame.inputs, hessian, self.damping) + 0.0 * gradient[:, :, None]
        )
        return steps.Memory.first(frame.inputs, frame.flat(x), gradient, value, inverse)

    def evaluate(
        self, state: Any, params: Any, y: Any, tangents: Tangents
    ) -> Evaluation:
        """One evaluation of f, one of ℓ, and one reverse pass through both."""
        frame = _Frame.of(state["z"], state["x"])
        here = self.lagrangian(state, params, y)
        states, z, mu = (
            frame.states,
            frame.state_rows(state["z"]),
            frame.state_rows(state["mu"]),
        )
        defect = states.subtract(frame.state_rows(here.value), z)
        adjoint_defect = states.subtract(frame.state_rows(here.state_gradient), mu)
        size, memory = states.norm(defect), state["memory"]
        trust = _trusted(frame, memory, size)
        ahead = corrections(defect, tangents.left, tangents.right, trust)
        adjoint_ahead = corrections(
            adjoint_defect, tangents.right, tangents.left, trust
        )
        correction, x = frame.pull(adjoint_defect, tangents), frame.flat(state["x"])
        further = states.dot(adjoint_ahead, defect)
        numbers = (here.objective + states.dot(mu, defect) + further, further, size)
        numbers = frame.inputs.xp.stack([*numbers, states.norm(ahead)], axis=-1)
        memory, aim = frame.inputs.backend.small(
            partial(_moved, self.forcing),
            frame.inputs.xp.concat([trust, memory[:, 1:]], axis=-1),
            x,
            frame.flat(here.input_gradient),
            correction,
            numbers,
            tangents.metric,
        )
        z = states.add(states.add(z, ahead), frame.push(aim - x, tangents))
        image = frame.packed(z, states.add(mu, adjoint_ahead), aim, memory)
        return Evaluation(image, frame.residual(state, here, defect, adjoint_defect))


def _trusted(frame: _Frame, memory: Array, size: Array) -> Array:
    """How far the tangents are trusted: less where the state's defect hardly fell.

    They belong to one point. Elsewhere (I − ∂f/∂z)⁻¹ may be so much smaller that
    corrections by them overshoot; without them what is left is the iteration z ← f(z,
    x) itself.
    """
    trust, before = memory[:, :1], memory[:, 1]
    slow = (before > 0.0) & (size > _SLOW * before)
    return frame.inputs.xp.where(slow[:, None], _DISTRUST * trust, trust)


def _moved(
    forcing: float,
    backend: Backend,
    memory: Array,
    x: Array,
    gradient: Array,
    correction: Array,
    numbers: Array,
    metric: Array,
) -> tuple[Array, Array]:
    """What is remembered now, and the next input."""
    space = Space.of(backend, (x,), 1)
    value, further, size, ahead = (numbers[:, k] for k in range(4))
    left = backend.norm(correction, "euclidean")
    found = steps.Found(
        x, gradient + correction, value, space.xp.abs(further), ahead, left
    )
    before = steps.Memory.unpacked(space, memory[:, 2:])
    after, aim, moves = steps.moved(space, before, found, metric, forcing)
    # The next defect belongs to another input, and is not to be compared.
    size = space.xp.where(moves, space.zero, size)
    columns = [memory[:, :1], size[:, None], after.packed(space)]
    return space.xp.concat(columns, axis=-1), aim


def _for_all(container: Any, rows: int) -> Any:
    """The container, its only row as often as there are samples, or its rows as they
    are.
    """
    leaves, structure = tree.flatten(container)
    xp = array_namespace(*leaves)
    many = [xp.broadcast_to(leaf, (rows, *leaf.shape[1:])) for leaf in leaves]
    return structure.rebuild(many)


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
        return self.inputs.ravel(tuple(tree.flatten(x)[0]))

    def input_of(self, flat: Array) -> Any:
        return self.rebuild_input(self.inputs.unravel(flat))

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
        self, state: Any, here: Linearization, defect: Vec, adjoint_defect: Vec
    ) -> dict[str, Any]:
        """The blocks of the KKT residual; what is remembered is right by itself."""
        zeros = self.inputs.xp.zeros_like(state["memory"])
        return self.packed(
            defect, adjoint_defect, -self.flat(here.input_gradient), zeros
        )
