"""The augmented deep equilibrium model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import fixedpoint as fp
from fixedpoint import tree
from fixedpoint.adapters import backend_of, backend_of_state
from fixedpoint.backend import Array, Pullback, Vec
from fixedpoint.checks import (
    check_callable,
    check_count,
    check_given,
    check_positive,
    check_takes,
)
from fixedpoint.failure import Policy
from fixedpoint.keywords import known_by_name
from fixedpoint.operators.regularizers import prox_of
from fixedpoint.solution import Work
from fixedpoint.solvers import Solver
from fixedpoint.space import Space
from fixedpoint.spaces import space_of
from fixedpoint_models.augmented_solution import AugmentedSolution
from fixedpoint_models.augmented_start import (
    PerSample,
    check_alone,
    check_method,
    check_start,
    default_method,
    detached,
    naming_data,
)
from fixedpoint_models.methods import Method, zeros_like


@dataclass(frozen=True)
class AugmentedDEQ:
    """An equilibrium network whose input is optimized while it is evaluated.

    Solves min ℓ(z, x, y) over x in C, subject to z = f(z, x), as one fixed point in the
    state, its adjoint and the input; see :func:`fixedpoint.operators.augmented`.

    Parameters
    ----------
    f : callable
        ``f(z, x, params)``, the equilibrium map.
    loss : callable
        ``loss(o, x, y, params)``, one number per sample, where o is the output or else
        z.
    output : callable, optional
        ``output(z, params)``, what the loss reads of z.
    project : callable, optional
        The projection onto C.
    regularizer : Regularizer, optional
        A convex function h(x) that is added to ℓ in place of C, by its values and its
        proximal operator: :class:`fixedpoint.operators.L1Norm`, for one.
    step_size : float, optional
        The step α in x.
    state_damping, adjoint_damping : float, optional
        Damping of the other two blocks.
    batch_ndim : int, optional
        How many axes of z, x and the losses index samples.
    vjp, loss_gradient : callable, optional
        For NumPy, as in :class:`fixedpoint.operators.Lagrangian`.

    References
    ----------
    Gurumurthy, Bai, Manchester and Kolter, "Joint inference and input optimization in
    equilibrium networks", NeurIPS 2021, arXiv:2111.13236.

    Examples
    --------
    >>> import torch
    >>> from fixedpoint_models import AugmentedDEQ
    >>> model = AugmentedDEQ(
    ...     lambda z, x, params: params["w"] * z + x,
    ...     lambda z, x, y, params: ((z - y) ** 2 + x**2).sum(-1),
    ...     step_size=0.1,
    ... )
    >>> sol = model.solve(torch.zeros(2, 1), torch.zeros(2, 1),
    ...                   params={"w": torch.tensor(0.5)},
    ...                   y=torch.tensor([[2.0], [1.0]]))
    >>> [round(float(x), 4) for x in sol.x], [round(float(o), 4) for o in sol.objective]
    ([0.8, 0.4], [0.8, 0.2])
    """

    f: Callable[..., Any]
    loss: Callable[..., Any]
    output: Callable[..., Any] | None = None
    project: Callable[[Any], Any] | None = None
    regularizer: fp.operators.Regularizer | None = None
    step_size: float = 0.01
    state_damping: float = 0.8
    adjoint_damping: float = 0.6
    batch_ndim: int = 1
    vjp: Callable[..., tuple[Any, Pullback]] | None = None
    loss_gradient: Callable[..., tuple[Any, tuple[Any, Any]]] | None = None

    def __post_init__(self) -> None:
        check_given("f", self.f)
        check_given("loss", self.loss)
        check_takes("f", self.f, ("z", "x", "params"))
        check_takes("loss", self.loss, ("o", "x", "y", "params"))
        if callable(self.output):
            check_takes("output", self.output, ("z", "params"))
        for name in ("output", "project", "regularizer", "vjp", "loss_gradient"):
            check_callable(name, getattr(self, name))
        if self.regularizer is not None and not hasattr(self.regularizer, "prox"):
            raise TypeError(
                "regularizer must have a method prox(v, alpha), as "
                f"fixedpoint.operators.L1Norm has, got {self.regularizer!r}"
            )
        prox_of(self.project, self.regularizer)
        check_positive("step_size", self.step_size)
        check_count("batch_ndim", self.batch_ndim, 0)

    @property
    def _checked_loss(self) -> Callable[..., Any]:
        return PerSample(self.loss, self.batch_ndim)

    @property
    def operator(self) -> fp.operators.Joint:
        """The joint operator on states ``{"z", "mu", "x"}``, with the arguments
        ``(params, y)``.
        """
        return fp.operators.augmented(
            self.f,
            self._checked_loss,
            step_size=self.step_size,
            project=self.project,
            regularizer=self.regularizer,
            state_damping=self.state_damping,
            adjoint_damping=self.adjoint_damping,
            vjp=self.vjp,
            loss_gradient=self.loss_gradient,
            output=self.output,
        )

    @property
    def system(self) -> fp.operators.Joint:
        """The undamped operator, whose step in x is as long as x."""
        state, adjoint = fp.operators.StateMap(), fp.operators.AdjointMap()
        step = fp.operators.InputStep(prox=self.prox)
        return fp.operators.Joint(self.problem, {"z": state, "mu": adjoint, "x": step})

    @property
    def prox(self) -> Callable[[Any, Any], Any] | None:
        """The proximal operator of the inputs; None where they are free."""
        return prox_of(self.project, self.regularizer)

    @property
    def problem(self) -> fp.operators.Lagrangian:
        """The Lagrangian of the problem."""
        return fp.operators.Lagrangian(
            self.f, self._checked_loss, self.vjp, self.loss_gradient, self.output
        )

    @known_by_name
    @naming_data
    def iterate(
        self,
        z0: Any,
        x0: Any,
        *,
        params: Any,
        y: Any,
        mu0: Any = None,
        solver: Solver | None = None,
        max_steps: int = 100,
        rtol: float = 1e-4,
        atol: float = 0.0,
        on_failure: Policy = "raise",
        method: Method | None = None,
        adjoint: fp.Adjoint | None = None,
    ) -> fp.Solution[Any]:
        """The joint iteration alone, with no objective and no KKT residual at its end.

        Parameters are those of :meth:`solve`, and one more. The value is ``{"z", "mu",
        "x"}``.

        Parameters
        ----------
        adjoint : Adjoint, optional
            How the value is differentiated with respect to `params` and `y`, for
            another loss than ℓ at the solution: by the implicit function theorem for
            the three blocks as one, with :class:`fixedpoint.ImplicitAdjoint`. By
            default a value of Torch is constant, since for ℓ itself :meth:`lagrangian`
            needs no backward solve; JAX differentiates what it is asked to.

        Examples
        --------
        x minimizes (w x − 1)² + x², where z = w x, and so is w / (1 + w²):

        >>> import torch, fixedpoint as fp
        >>> from fixedpoint_models import AugmentedDEQ
        >>> model = AugmentedDEQ(
        ...     lambda z, x, w: w * x + 0.0 * z,
        ...     lambda z, x, y, w: ((z - y) ** 2 + x**2).sum(-1), step_size=0.1,
        ... )
        >>> w = torch.tensor(0.5, requires_grad=True)
        >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
        >>> sol = model.iterate(zero, zero, params=w, y=one,
        ...                     adjoint=fp.ImplicitAdjoint())
        >>> sol.value["x"].sum().backward()
        >>> round(float(w.grad), 3)  # (1 − w²) / (1 + w²)²
        0.48
        """
        check_start(z0, x0, self.batch_ndim)
        check_method(method)
        if adjoint is None:
            check_alone(method, solver)
        first = zeros_like(z0) if mu0 is None else mu0
        start, args = {"z": z0, "mu": first, "x": x0}, (params, y)
        control: dict[str, Any] = {"rtol": rtol, "atol": atol, "test": "residual"}
        control |= {"max_steps": max_steps, "on_failure": on_failure}
        work = Work()
        if method is None and solver is None:
            method, work = default_method(self, z0, x0, params)
        if method is not None:
            last = control if adjoint is None else control | {"on_failure": "return"}
            with self._underived(z0):
                found = method.solve(self, *detached((z0, mu0, x0, *args)), **last)
            if adjoint is None:
                return replace(found, work=found.work.plus(work))
            start = found.value
        with nullcontext() if adjoint else self._underived(z0):
            return fp.fixed_point(
                self.operator,
                detached(start),
                args if adjoint else detached(args),
                solver=solver or fp.Anderson(),
                batch_ndim=self.batch_ndim,
                adjoint=adjoint,
                **control,
            )

    @known_by_name
    def solve(
        self,
        z0: Any,
        x0: Any,
        *,
        params: Any,
        y: Any,
        mu0: Any = None,
        solver: Solver | None = None,
        max_steps: int = 100,
        rtol: float = 1e-4,
        atol: float = 0.0,
        on_failure: Policy = "raise",
        method: Method | None = None,
    ) -> AugmentedSolution:
        """Solve for z, μ and x together, and say how good the x is.

        In Torch all that is returned is constant. To train what f and ℓ hold, or read
        of `params`, differentiate :meth:`lagrangian` at the solution.

        Parameters
        ----------
        z0, x0 : array or container of arrays
            Where to start; also where the equilibrium is solved for afresh at the end.
        params : array or container of arrays
            The parameters of f and ℓ, or None if they read none.
        y : array or container of arrays
            The data of ℓ, or None if it reads none.
        mu0 : like z0, optional
            The first adjoint. By default zero for the joint fixed point, and ∂ℓ/∂z
            elsewhere; :class:`TrackedNewton` makes its own.
        solver : Solver, optional
            To solve by the joint fixed point with one step size.
        max_steps : int, optional
            Joint steps at most.
        rtol, atol : float, optional
            Every block has to meet this tolerance, by itself. `rtol` is relative to
            f(z, x), and for μ and x to the terms of their gradients, see
            :doc:`/augmented_deq`: neither the unit of the loss nor that of x matters.
            `atol` is in the units of z, and for μ and x in those of the gradients of
            the loss in z and in x: a loss that is about 1e-6 at all times meets an
            `atol` of 1e-6 with any x.
        on_failure : {"raise", "warn", "return", "nan"}, optional
            What to do when a sample's joint iteration fails.
        method : TrackedNewton, TrackedLBFGS, TrackedDescent or JointIteration, optional
            How to solve, if not by the joint fixed point with one step size; `solver`,
            the step size and the damping are then not used. If neither this nor
            `solver` is named, it is :class:`TrackedNewton` for free inputs of at most
            128 entries and an f that takes any number of samples, and otherwise
            :class:`TrackedLBFGS`.

        Returns
        -------
        AugmentedSolution
            The iterate, its KKT residuals, and the objective re-solved from a cold
            start at x.
        """
        joint = self.iterate(
            z0,
            x0,
            params=params,
            y=y,
            mu0=mu0,
            solver=solver,
            max_steps=max_steps,
            rtol=rtol,
            atol=atol,
            on_failure=on_failure,
            method=method,
        )
        z, mu, x = (joint.value[name] for name in ("z", "mu", "x"))
        objective = self.objective(z0, x, params=params, y=y)
        return AugmentedSolution(
            z, mu, x, objective, self.kkt(z, mu, x, params=params, y=y), joint
        )

    def objective(self, z0: Any, x: Any, *, params: Any, y: Any) -> Array:
        """ℓ(z*(x), x, y) + h(x) per sample, z*(x) solved for from `z0`; NaN where that
        fails.
        """
        x, params, y = detached((x, params, y))
        with self._underived(z0):
            equilibrium = fp.fixed_point(
                self.f,
                detached(z0),
                (x, params),
                batch_ndim=self.batch_ndim,
                on_failure="nan",
            )
            return self.objective_at(equilibrium.value, x, params=params, y=y)

    def objective_at(self, z: Any, x: Any, *, params: Any, y: Any) -> Array:
        """ℓ(z, x, y) + h(x) per sample."""
        loss = self.problem.loss_at(z, x, y, params)
        return loss if self.regularizer is None else loss + self.regularizer(x)

    def kkt(self, z: Any, mu: Any, x: Any, *, params: Any, y: Any) -> dict[str, Array]:
        """The norm of each block's residual, undamped and step-free, per sample.

        That of x is in units of ∇ₓL: of inputs in a set that of a step as long as x,
        see :class:`~fixedpoint.operators.InputStep`.
        """
        state, params, y = detached(({"z": z, "mu": mu, "x": x}, params, y))
        with self._underived(z):
            residuals = self.system.evaluate(state, params, y).residual
        parts = {name: self._vector(detached(r)) for name, r in residuals.items()}
        return {name: space.norm(vector) for name, (space, vector) in parts.items()}

    def lagrangian(self, z: Any, mu: Any, x: Any, *, params: Any, y: Any) -> Array:
        """ℓ + h + μᵀ(f(z, x) − z) per sample, at fixed z, μ and x: a function of params
        alone.

        By the envelope theorem its derivative with respect to params is, at a solution,
        that of the optimal objective: differentiate this, and no backward solve is
        needed.
        """
        z, mu, x = detached((z, mu, x))
        defect = fp.operators.Map(self.f).evaluate(z, x, params).residual
        (space, multiplier), (_, constraint) = self._vector(mu), self._vector(defect)
        objective = self.objective_at(z, x, params=params, y=y)
        return objective + space.dot(multiplier, constraint)

    def _vector(self, block: Any) -> tuple[Space, Vec]:
        """A block's leaves, and the space they lie in."""
        leaves = tuple(tree.flatten(block)[0])
        backend = backend_of(leaves, tree.paths(block, "block"))
        return space_of(backend, leaves, self.batch_ndim), leaves

    def _underived(self, z: Any) -> AbstractContextManager[Any]:
        """Where f and ℓ may hold parameters that are trained: :meth:`lagrangian` has
        the derivatives.
        """
        return backend_of_state(z, "z0").underived()
