"""The augmented system by L-BFGS in the input, state and adjoint tracked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from array_api_compat import array_namespace

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.backend import Array, Vec
from fixedpoint.border import Border
from fixedpoint.checks import check_count, check_positive
from fixedpoint.keywords import by_name
from fixedpoint.operators.base import leafwise
from fixedpoint.point import Point
from fixedpoint.problem import Problem
from fixedpoint.solution import Work
from fixedpoint.solvers.base import Step
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint_models.methods import beside
from fixedpoint_models.objective_solver import ObjectiveSolver
from fixedpoint_models.searching import Searching
from fixedpoint_models.secants import Curvature
from fixedpoint_models.sweeping import (
    Tracked,
    is_sound,
    linearized,
    near,
)

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ


# Values that a new one is compared with.
_VALUES = 8

# The part of the slope that a value has to fall by, and how far it may be off, as a
# part of what is not finished of it.
_SUFFICIENT, _DOUBT = 1e-4, 0.5

# A rejected trial is shortened to between these parts of itself; where less than the
# last one is left of a step, it is the value at its beginning that is wrong.
_LEAST, _MOST, _SHORTEST = 0.1, 0.5, 1e-2

# The spectral step grows at most by this factor.
_GROWTH = 10.0

# The first equilibrium is as good as this.
_ROUGH = 1e-3


class SearchState(NamedTuple):
    """What :class:`TrackedLBFGS` remembers.

    Attributes
    ----------
    x, gradient : Vec
        The last input that was accepted, and φ's gradient there.
    state, adjoint : Vec
        z and μ there.
    direction : Vec
        What the trial is a part of.
    curvature : Curvature
        What is known of φ's Hessian.
    values : array (samples, 8)
        φ + h at the last inputs that were accepted, the newest first; infinite before.
    slope : array
        What φ is expected to change by along the direction.
    length : array
        The spectral step.
    part : array
        How much of the direction the trial is.
    count : int
        Steps so far.
    """

    x: Vec
    gradient: Vec
    state: Vec
    adjoint: Vec
    direction: Vec
    curvature: Curvature
    values: Array
    slope: Array
    length: Array
    part: Array
    count: Any = 0


@by_name
@dataclass(frozen=True, kw_only=True)
class TrackedLBFGS(ObjectiveSolver):
    """L-BFGS in the input, with state and adjoint tracked: a single loop.

    Right for inputs of many entries, free or in a convex set that is known by its
    projection Π: a box, a ball, a simplex. From an input x,

        d = Π(x − HG) − x ,    x ← x + α d ,    G = [x − Π(x − λg)]/λ ,

    where g is the gradient of the reduced objective φ(x) = ℓ(z*(x), x), λ = ⟨s, s⟩/⟨s,
    y⟩ the spectral step, s and y being what x and g changed by, and H the matrix of
    limited-memory BFGS for G: it learns from what G changed by, both with the last λ.
    Of free inputs G is g. Entries that the spectral step −λG leaves where they are stay
    there, and where −HG does not lead downhill, it is taken instead. State and adjoint
    follow x by a few sweeps z ← f(z, x) and μ ← (∂f/∂z)ᵀμ + ∂ℓ/∂z, from where they
    were, accelerated by Anderson's method. The value of φ is taken to be

        φ ≈ L = ℓ + μᵀ[f(z, x) − z] ,

    with an error that is a product of two small ones. A step is accepted if φ fell
    below the largest of its last values, else it is shortened: α = 1 at almost every
    step.

    With a regularizer h, φ + h is what has to fall, and the proximal operator of λh
    stands in the place of Π. Entries that the spectral step takes to zero go there, and
    none changes its sign in a step.

    Parameters
    ----------
    memory : int, optional
        How many steps tell of the curvature.
    forcing : float, optional
        The part that sweeps leave of what a step makes of z − f(z, x), and of the same
        for μ.

    References
    ----------
    Byrd, Nocedal and Schnabel, "Representations of quasi-Newton matrices and their use
    in limited memory methods", Math. Program. 63, 1994. Birgin, Martínez and Raydan,
    "Nonmonotone spectral projected gradient methods on convex sets", SIAM J. Optim. 10,
    2000. Bertsekas, "Projected Newton methods for optimization problems with simple
    constraints", SIAM J. Control Optim. 20, 1982. Stella, Themelis and Patrinos,
    "Forward-backward quasi-Newton methods for nonsmooth optimization problems", Comput.
    Optim. Appl. 67, 2017.

    Examples
    --------
    The least ‖z − y‖² with z = z/2 + x, where no entry of x exceeds 1, is at min(y/2,
    1):

    >>> import torch
    >>> from fixedpoint_models import AugmentedDEQ, TrackedLBFGS
    >>> model = AugmentedDEQ(
    ...     lambda z, x, params: 0.5 * z + x,
    ...     lambda z, x, y, params: ((z - y) ** 2).sum(-1),
    ...     project=lambda x: x.clamp(max=1.0))
    >>> zero, y = torch.zeros(1, 2), torch.tensor([[1.0, 4.0]])
    >>> sol = model.solve(zero, zero, params=None, y=y, method=TrackedLBFGS())
    >>> [round(v, 3) for v in sol.x[0].tolist()]
    [0.5, 1.0]
    """

    memory: int = 8
    forcing: float = 0.1

    def __post_init__(self) -> None:
        check_count("memory", self.memory, 1)
        check_positive("forcing", self.forcing, 1.0)

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

        The adjoint starts from ∂ℓ/∂z, if no `mu0` is given.
        """
        x = _inside(model, x0)
        first = _rough_equilibrium(model, z0, x, params)
        if mu0 is None:
            mu0 = model.problem.loss_and_gradient(first.value, x, params, y)[1]
        start, system = {"z": first.value, "mu": mu0, "x": x}, model.system
        control |= {
            "solver": self,
            # Not the matrix of the joint map, but what step() asks for in its place.
            "jacobian": partial(Searching, model.problem, model=model),
            "batch_ndim": model.batch_ndim,
        }
        found = fp.fixed_point(system, start, (params, y), **control)
        # The first evaluation of the joint map takes a product.
        work = found.work.plus(first.work).plus(Work(vjp=1))
        products = linearized(system, (params, y), model.batch_ndim)
        return replace(found, work=work, linearization=products)

    def init(self, problem: Problem, point: Point) -> SearchState:
        """Nothing is known: whatever the first sweeps find is accepted."""
        space, searching = problem.space, near(problem, point)
        mu, x, z = searching.parts(point.value)
        inputs, zero = searching.inputs(space, x), space.full(0.0)
        curvature = Curvature.unknown(inputs, self.memory)
        values = space.full(float("inf"), (_VALUES,))
        zeros = space.zeros(x)
        return SearchState(x, zeros, z, mu, zeros, curvature, values, zero, zero, zero)

    def step(self, problem: Problem, point: Point, state: SearchState) -> Step:
        """Sweep, judge the input, and move on."""
        space, searching = problem.space, near(problem, point)
        x = searching.parts(point.value)[1]
        found, work = searching.followed(space, point, self.forcing)
        after = self._remembered(searching.inputs(space, x), searching, state, x, found)
        if problem.active is not None:  # no step tells what to do after the last
            length = space.xp.where(problem.active, after.length, state.length)
            after = after._replace(length=length)
        ahead = space.axpy(after.part, after.direction, after.x)
        new = problem.trial((*after.adjoint, *ahead, *after.state), point)
        sound = is_sound(problem, point, new)
        if not space.backend.known_all(sound):
            home = (*after.adjoint, *after.x, *after.state)
            new = problem.trial(space.where(sound, new.value, home), point)
            part = space.xp.where(sound, after.part, space.zero)
            length = space.xp.where(sound, after.length, _LEAST * after.length)
            after = after._replace(part=part, length=length)
            work = work.plus(Work(f=1, vjp=1))
        return Step(new, after, work)

    def _remembered(
        self,
        space: Space,
        searching: Searching,
        state: SearchState,
        x: Vec,
        found: Tracked,
    ) -> SearchState:
        """What is remembered after a trial x, at which the sweeps found so much."""
        where, g, slot = space.xp.where, found.gradient, state.count % self.memory
        states = space_of(space.backend, found.state, space.batch_ndim)
        value, doubt = (space.cast(a, space.dtype) for a in found.value(states))
        penalty = searching.penalty(space, x)
        value = value + penalty
        accepted = _accepted(space, state, found, value, doubt)
        chosen = partial(space.either, accepted)
        s = space.subtract(x, state.x)
        changed, square = space.dots((s, space.subtract(g, state.gradient)), (s, s))
        length = _length(space, state, changed, square)
        if not space.backend.known_here(length > 0.0):
            length = where(length > 0.0, length, _first(space, x, g, value))
        at = x, *searching.mapping(space, x, g, length)
        before = searching.mapping(space, state.x, state.gradient, length)[1]
        step = s, space.subtract(at[2], before), square
        curvature = _bent(space, state, slot, *step)
        direction = searching.direction(space, at, length, curvature, slot)
        ahead = searching.penalty(space, space.add(x, direction))
        slope = space.dot(g, direction) + ahead - penalty
        return SearchState(
            x=chosen(x, state.x),
            gradient=chosen(g, state.gradient),
            state=chosen(found.state, state.state),
            adjoint=chosen(found.adjoint, state.adjoint),
            direction=chosen(direction, state.direction),
            curvature=curvature,
            values=_noted(space, state.values, accepted, value),
            slope=where(accepted, slope, state.slope),
            length=where(accepted, length, state.length),
            part=where(accepted, space.one, _shorter(space, state, value)),
            count=state.count + 1,
        )


def _rough_equilibrium(
    model: AugmentedDEQ, z: Any, x: Any, params: Any
) -> fp.Solution[Any]:
    """That of an input, from a state."""
    return fp.fixed_point(
        model.f,
        z,
        (x, params),
        solver=fp.Anderson(),
        rtol=_ROUGH,
        test="residual",
        batch_ndim=model.batch_ndim,
        on_failure="return",
    )


def _bent(
    space: Space, state: SearchState, slot: Any, s: Vec, y: Vec, square: Array
) -> Curvature:
    """The curvature after a step s, of this square, over which G changed by y."""
    curved, size = space.dots((s, y), (y, y))
    found = state.curvature.noted(space, slot, (s, y), [curved, square, size])
    # What led to where an input had to be looked at again is not tried again.
    scale = space.xp.where(state.part == 0.0, space.zero, found.scale)
    return found._replace(scale=scale)


def _inside(model: AugmentedDEQ, x: Any) -> Any:
    """The start x in the set, or where the regularizer is finite."""
    if model.prox is None:
        return x
    leaves = tree.flatten(x)[0]
    xp = array_namespace(*leaves)
    near = model.prox(x, float(xp.finfo(leaves[0].dtype).eps))
    border, given = Border.of(x, "x0", batch_ndim=model.batch_ndim)
    name = "project" if model.regularizer is None else "prox of regularizer"
    border.pack(near, given, name)  # raises unless it is an input, too
    if model.regularizer is None:
        return near
    finite = model.regularizer(x) < xp.inf
    return leafwise(lambda a, b: xp.where(beside(finite, a), a, b), x, near)


def _accepted(
    space: Space, state: SearchState, found: Tracked, value: Array, doubt: Array
) -> Array:
    """Whether a trial is no worse than the last inputs, as far as that is known.

    What is found at an input that is looked at again is accepted.
    """
    xp = space.xp
    sound = value + space.dot(found.gradient, found.gradient) < xp.inf
    expected = state.part * state.slope
    doubt = _DOUBT * xp.minimum(doubt, xp.abs(expected))
    rounding = 100 * space.precision * xp.abs(value)
    limit = xp.max(state.values, axis=-1) + _SUFFICIENT * expected + doubt + rounding
    return sound & ((value <= limit) | (state.part == 0.0))


def _noted(space: Space, values: Array, accepted: Array, value: Array) -> Array:
    """The last values with a new one in front, which at first stands for all."""
    xp = space.xp
    older = xp.concat([value[..., None], values[..., :-1]], axis=-1)
    older = xp.where(values[..., :1] < xp.inf, older, value[..., None])
    return xp.where(accepted[..., None], older, values)


def _length(space: Space, state: SearchState, curvature: Array, square: Array) -> Array:
    """The spectral step λ = ⟨s, s⟩/⟨s, y⟩; shorter where an input was looked at again,
    zero at first.
    """
    xp, most = space.xp, _GROWTH * state.length
    length = xp.minimum(space.ratio(square, curvature), most)
    length = xp.where(curvature > 0.0, length, most)
    return xp.where(square > 0.0, length, _LEAST * state.length)


def _first(space: Space, x: Vec, g: Vec, value: Array) -> Array:
    """The first step λ, which would take a linear φ to zero; where it is that, one as
    long as x, or as 1.
    """
    xp, size, slope = space.xp, space.norm(x), space.norm(g)
    size = xp.where(size > 0.0, size, space.one)
    reach = xp.where(value == 0.0, size, space.ratio(xp.abs(value), slope))
    return space.ratio(reach, slope)


def _shorter(space: Space, state: SearchState, value: Array) -> Array:
    """The minimizer of the parabola through what is known along the direction.

    Zero where little is left of it: what is wrong is found out where it begins.
    """
    xp, part = space.xp, state.part
    rise = value - state.values[..., 0] - part * state.slope
    least = space.ratio(-0.5 * state.slope * part * part, rise)
    least = xp.where(rise < xp.inf, least, space.zero)
    shorter = xp.minimum(xp.maximum(least, _LEAST * part), _MOST * part)
    return xp.where(shorter < _SHORTEST, space.zero, shorter)
