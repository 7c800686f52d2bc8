"""The augmented system by Newton's method in the input, state and adjoint tracked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from operator import add
from typing import TYPE_CHECKING, Any

from array_api_compat import array_namespace

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.backend import Array, Vec
from fixedpoint.checks import check_count, check_positive
from fixedpoint.keywords import by_name
from fixedpoint.operators.base import leafwise
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Step
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint_models import quasi_newton
from fixedpoint_models.objective_solver import ObjectiveSolver
from fixedpoint_models.quasi_newton import Memory
from fixedpoint_models.sensitivity import Tangents
from fixedpoint_models.sweeping import (
    Sweeping,
    Tracked,
    is_sound,
    linearized,
    near,
    taken,
)
from fixedpoint_models.tracked_start import (
    MOST_SWEEPS,
    Start,
    TrackedState,
    pushed,
    shrunk,
)

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ


# The sweeps of a step leave this part of a defect, and after some steps less from step
# to step: a model of the curvature is worth as much as the gradients it is made of.
_FIRST, _EARLY, _TIGHTER, _LAST = 0.15, 4, 0.6, 0.01

# Sweeps at least, at most in the first steps, and at most; and the part of the steps
# taken that they are at least.
_LEAST, _FEW, _MOST, _SLOWER = 3, 8, MOST_SWEEPS, 4


@dataclass(frozen=True, eq=False)
class Tracking(Sweeping):
    """The same, with what Newton's method needs besides.

    Parameters
    ----------
    rate : float
        The rate at which sweeps contract.
    tangents : Tangents
        How the equilibrium moves with the input, for all samples.
    first : TrackedState
        What is remembered before the first step.
    """

    rate: Any
    tangents: Tangents
    first: TrackedState

    def sweeps(self, count: Any) -> int:
        """The sweeps of a step, `count` steps before it.

        They depend on no sample, or one would depend on its neighbors.
        """
        if not isinstance(self.rate, float):  # in a trace nothing is known
            return _FEW
        wanted = max(_FIRST * _TIGHTER ** max(count - _EARLY, 0), _LAST)
        most = _FEW if count <= _EARLY else _MOST
        rate = min(max(self.rate, 0.05), 0.999)
        sweeps: int = min(
            max(math.ceil(math.log(wanted) / math.log(rate)), _LEAST), most
        )
        # What is left after so many steps contracts more slowly.
        return max(sweeps, int(count) // _SLOWER)

    def swept(self, xp: Any, z: Vec, mu: Vec, x: Vec, sweeps: int) -> Tracked:
        """Z and μ after so many sweeps, one of which came before; μ's are products at
        the last z.
        """
        given = self.given
        state, adjoint, at = given("z", z), given("mu", mu), given("x", x)
        for _ in range(sweeps - 2):
            state = self.lagrangian.f(state, at, self.params)
        here = self.lagrangian.at(state, at, self.params, self.y)
        for _ in range(sweeps - 2):
            adjoint = leafwise(add, here.pullback(adjoint)[0], here.slope)
        return self.told(xp, here, state, adjoint)


@by_name
@dataclass(frozen=True, kw_only=True)
class TrackedNewton(ObjectiveSolver):
    """Newton's method in the input, with state and adjoint tracked: a single loop.

    Right for inputs of few entries, up to a hundred or so, without constraints. At one
    point, the same for all samples, it computes how the equilibrium moves with the
    input, S ≈ dz/dx: where all rows of z0 and x0 agree, at their equilibrium, and
    otherwise at that of zero. A step from an input x at which state and adjoint have
    been found is

        Δx = −B g ,    x ← x + Δx ,    z ← z + S Δx ,

    then a few sweeps z ← f(z, x), and as many μ ← (∂f/∂z)ᵀμ + ∂ℓ/∂z by products of one
    linearization. The gradient of the reduced objective φ(x) = ℓ(z*(x), x) is corrected
    for the adjoint that is not finished, and its value for the state that is not,

        g = ∇ₓL + Sᵀ[(∂f/∂z)ᵀμ + ∂ℓ/∂z − μ] ,      φ ≈ L = ℓ + μᵀ[f(z, x) − z] ,

    with errors that are products of two small ones. B is the inverse of a Gauss-Newton
    matrix at first, made positive where ℓ is not convex, and kept up to date by damped
    BFGS; Δx stays within a trust region. A sample's step is accepted if L fell, by as
    much as L is known; otherwise the next one starts again from where it was.

    The sweeps of a step follow the rate at which f contracts. They become more from
    step to step, as the forcing terms of an inexact Newton method.

    Parameters
    ----------
    blocks, tangent_rtol : optional
        Steps at most, and tolerance, of :func:`tangents`.
    damping : float, optional
        What is added to the diagonal of the Gauss-Newton matrix, as a part of its mean.

    Notes
    -----
    A step evaluates f as often as it sweeps, and takes as many products. Samples that
    have converged leave the batch where all arrays of y have an entry for each.

    References
    ----------
    Levenberg, "A method for the solution of certain non-linear problems in least
    squares", Quart. Appl. Math. 2, 1944. Powell, "A fast algorithm for nonlinearly
    constrained optimization calculations", in: Numerical Analysis, Springer 1978 (the
    damped update). Dembo, Eisenstat and Steihaug, "Inexact Newton methods", SIAM J.
    Numer. Anal. 19, 1982. Biegler, Ghattas, Heinkenschloss, van Bloemen Waanders
    (eds.), "Large-Scale PDE-Constrained Optimization", Springer 2003 (reduced-space
    methods).

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import AugmentedDEQ, TrackedNewton
    >>> model = AugmentedDEQ(
    ...     lambda z, x, w: w * z + x, lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1))
    >>> sol = model.solve(torch.zeros(2, 1), torch.zeros(2, 1),
    ...                   params=torch.tensor(0.5),
    ...                   y=torch.tensor([[2.0], [1.0]]), method=TrackedNewton())
    >>> [round(float(x), 4) for x in sol.x]
    [0.8, 0.4]
    """

    blocks: int = 8
    tangent_rtol: float = 0.03
    damping: float = 0.1

    def __post_init__(self) -> None:
        check_count("blocks", self.blocks, 1)
        check_positive("damping", self.damping)

    def solve(
        self,
        model: AugmentedDEQ,
        z0: Any,
        mu0: Any,
        x0: Any,
        params: Any,
        y: Any,
        **control: Any,
    ) -> fp.Solution[Any]:
        """Solve for z, μ and x; `control` goes to :func:`fixedpoint.fixed_point`.

        The adjoint starts from ∂ℓ/∂z at the first equilibrium, not from `mu0`.
        """
        del mu0
        _check_served(model, z0, x0)
        lagrangian, system = model.problem, model.system
        settings = self.blocks, self.tangent_rtol, self.damping
        start, rest, work = Start(lagrangian, params, y, *settings).made(z0, x0)
        shared = lambda state, params, y, *_: lagrangian(state, params, y)
        if _per_sample(y, z0):
            control["batched_args"] = (False, True, False, False, True)
        found = fp.fixed_point(
            replace(system, shared=shared),
            start,
            (params, y, *rest),
            solver=self,
            # Not the matrix of the joint map, but what step() asks for in its place.
            jacobian=partial(Tracking, lagrangian),
            batch_ndim=1,
            **control,
        )
        products = linearized(system, (params, y), 1)
        return replace(found, work=found.work.plus(work), linearization=products)

    def init(self, problem: Problem, point: Point) -> TrackedState:
        """What was remembered before the first step, which led to `point`."""
        space = problem.space
        model, state, adjoint, count = near(problem, point).first
        own = partial(taken, space.xp)
        return TrackedState(Memory(*own(model)), own(state), own(adjoint), count)

    def step(self, problem: Problem, point: Point, state: TrackedState) -> Step:
        """Sweep, judge the input, and move on."""
        space = problem.space
        tracking, xp = near(problem, point), space.xp
        mu, _, z = tracking.parts(space.add(point.value, point.increment))
        x, sweeps = tracking.parts(point.value)[1], tracking.sweeps(state.count)
        found = tracking.swept(xp, z, mu, x, sweeps)
        states, inputs = (space_of(space.backend, part, 1) for part in (z, x))
        local = taken(xp, tracking.tangents.state)
        *model, step, accepted, waits = space.backend.small(
            quasi_newton.moved,
            inputs.ravel(x),
            *_known(states, inputs, found, local),
            *state.model,
        )
        after = TrackedState(
            Memory(*model),
            _chosen(states, accepted, states.rows(found.state), state.state),
            _chosen(states, accepted, states.rows(found.adjoint), state.adjoint),
            state.count + 1,
        )
        ahead = pushed(after.state, step, local), after.model.x + step, after.adjoint
        if not space.backend.known_none(waits):
            ahead = _waiting(states, waits, found, ahead)
        new, work = problem.trial(_leaves(states, inputs, *ahead), point), Work()
        sound = is_sound(problem, point, new)
        if not space.backend.known_all(sound):
            home = _leaves(states, inputs, after.state, after.model.x, after.adjoint)
            new = problem.trial(space.where(sound, new.value, home))
            after = after._replace(model=shrunk(inputs, after.model, sound))
            work = Work(f=1, vjp=1)
        return Step(new, after, work.plus(Work(f=sweeps, vjp=sweeps)))


def _check_served(model: AugmentedDEQ, z0: Any, x0: Any) -> None:
    """Raise ValueError unless the method is for such inputs."""
    if model.prox is not None or model.batch_ndim != 1:
        raise ValueError(
            "TrackedNewton is for one axis of samples and inputs without "
            "constraints or regularizer: use TrackedLBFGS"
        )
    if not is_of_one_real_dtype(z0, x0):
        raise ValueError(
            "TrackedNewton is for real states and inputs of one dtype: use TrackedLBFGS"
        )


def _leaves(states: Space, inputs: Space, z: Vec, x: Array, mu: Vec) -> Vec:
    """The leaves of a trial, of the rows of z, x and μ."""
    return (*states.shaped(mu), *inputs.unravel(x), *states.shaped(z))


def _waiting(
    states: Space, waits: Array, found: Tracked, ahead: tuple[Vec, Array, Vec]
) -> tuple[Vec, Array, Vec]:
    """The rows of a trial, of what sweeps found beside an input that waits."""
    z = states.where(waits, states.rows(found.state), ahead[0])
    mu = states.where(waits, states.rows(found.adjoint), ahead[2])
    return z, ahead[1], mu


def _known(
    states: Space, inputs: Space, found: Tracked, local: Vec
) -> tuple[Array, ...]:
    """φ's gradient and value, corrected, and how much is in doubt of both."""
    left = states.rows(found.adjoint_defect)
    correction: Any = sum(v @ rows.T for v, rows in zip(left, local, strict=True))
    value, doubt = found.value(states)
    gradient = inputs.ravel(found.gradient) + correction
    length = inputs.backend.norm(correction, "euclidean")
    return gradient, value, doubt, length


def _chosen(space: Space, mask: Array, new: Vec, old: Vec) -> Vec:
    return new if space.backend.known_all(mask) else space.where(mask, new, old)


def is_of_one_real_dtype(z: Any, x: Any) -> bool:
    """Whether matrices can take one into the other."""
    leaves = tree.flatten((z, x))[0]
    xp, dtype = array_namespace(*leaves), leaves[0].dtype
    alike = all(leaf.dtype == dtype for leaf in leaves)
    return alike and bool(xp.isdtype(dtype, "real floating"))


def _per_sample(y: Any, z: Any) -> bool:
    """Whether all arrays of y have an entry for each sample of z, so that samples may
    leave.
    """
    number = tree.flatten(z)[0][0].shape[:1]
    arrays = [leaf for leaf in tree.flatten(y)[0] if hasattr(leaf, "shape")]
    return bool(arrays) and all(leaf.shape[:1] == number for leaf in arrays)
