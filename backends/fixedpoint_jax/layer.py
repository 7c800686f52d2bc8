"""A layer whose output is an equilibrium."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import fixedpoint as fp
from fixedpoint.checks import check_cell, checked_steps
from fixedpoint.failure import Policy
from fixedpoint.keywords import by_name, by_position
from fixedpoint.question import check_layer, methods_of
from fixedpoint.shown import brief, changed_settings
from fixedpoint.solvers import Solver
from fixedpoint.spectrum import spectral_radius
from fixedpoint.starting import first_state, starting
from fixedpoint.tolerance import Norm, Test


@by_name
@dataclasses.dataclass(frozen=True, eq=False)
class DEQ:
    """A deep equilibrium layer: z with z = cell(z, x), differentiated implicitly.

    A layer is a pytree. Its leaves are those of the cell, if that is a pytree: a module
    of Equinox, of Flax NNX, or of any other library that registers its modules, or a
    ``jax.tree_util.Partial``. A plain function is a static part of the layer, and is
    passed what is to be differentiated: ``layer(x, params)`` for ``cell(z, x,
    params)``. A layer never changes its cell: what that writes to itself while it is
    evaluated, such as running statistics, is lost.

    Parameters
    ----------
    cell : callable
        ``cell(z, *inputs)`` returns what is like z.
    solver, adjoint, rtol, atol, norm, test, max_steps, batch_ndim, on_failure
        As in :func:`fixedpoint.fixed_point`, except that leaves are tested, not
        entries. All are static; inside a trace "warn" means "nan". Samples where the
        cell is not finite are NaN.
    start : callable, optional
        ``start(*inputs)`` is where to start, an array or a pytree of arrays. By default
        zeros like the first input.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, fixedpoint as fp, fixedpoint_jax
    >>> def cell(z, x, params):
    ...     return jnp.tanh(z @ params["W"] + x)
    >>> layer = fixedpoint_jax.DEQ(cell, solver=fp.Anderson())
    >>> params, x = {"W": 0.1 * jnp.ones((4, 4))}, jnp.ones((3, 4))
    >>> gradient = jax.jit(jax.grad(lambda params: layer(x, params).sum()))(params)
    >>> gradient["W"].shape
    (4, 4)

    What is known of a solve:

    >>> jax.jit(layer.solve)(x, params).status.tolist()
    [1, 1, 1]
    """

    cell: Callable[..., Any]
    _: dataclasses.KW_ONLY
    solver: Solver | str | None = None
    adjoint: fp.Adjoint | str | None = None
    rtol: float | None = None
    atol: float = 0.0
    norm: Norm | None = "leaves"
    test: Test = "error"
    max_steps: int = 1000
    batch_ndim: int = 1
    on_failure: Policy = "warn"
    start: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_cell(self.cell)
        check_layer(self)
        methods = methods_of(self.solver, self.adjoint)
        for name, method in zip(("solver", "adjoint"), methods, strict=True):
            object.__setattr__(self, name, method)

    def __repr__(self) -> str:
        """The cell, and the settings that are not the defaults."""
        parts = [_shown(self.cell), *changed_settings(DEQ, vars(self))]
        return f"DEQ({', '.join(parts)})"

    @by_position
    def __call__(self, *inputs: Any, z0: Any = None) -> Any:
        """The equilibrium.

        Parameters
        ----------
        *inputs : object
            What the cell takes beside the state; arrays in it are differentiated.
        z0 : array or pytree of arrays, optional
            Where to start this time.
        """
        return self.solve(*inputs, z0=z0).value

    @by_position
    def solve(self, *inputs: Any, z0: Any = None) -> fp.Solution[Any]:
        """The equilibrium with all that is known of its solve; see :meth:`__call__`."""
        first = self._first(inputs, z0)
        with starting(self, z0, first):
            return self._solved(inputs, first)

    def trajectory(
        self, *inputs: Any, steps: Sequence[int], z0: Any = None
    ) -> list[Any]:
        """The states after some steps of a solve, and the equilibrium.

        The solve pauses there, and goes on from the best state so far with what the
        solver remembers, for one evaluation more.

        Parameters
        ----------
        *inputs, z0
            As in :meth:`__call__`.
        steps : sequence of int
            After which steps, in ascending order; step 0 has the start.

        Returns
        -------
        list
            cell(zₖ, \\*inputs) for the best state zₖ of the first steps, in the order
            of `steps`, and the equilibrium itself, for :func:`correction_loss`. Its
            derivatives are those of the layer. Those of the others are of the one
            application of the cell, zₖ a constant.
        """
        method = self._method()
        z, memory, done, states = self._first(inputs, z0), None, 0, []
        for step in checked_steps(steps):
            part = {"max_steps": step - done, "on_failure": "return", "solver": method}
            solution = self._solved(inputs, z, state=memory, **part)
            z, memory = jax.lax.stop_gradient((solution.value, solution.state))
            done = step
            states.append(_apply(z, self.cell, *inputs))
        end = self._solved(
            inputs, z, state=memory, max_steps=max(self.max_steps - done, 0)
        )
        return [*states, end.value]

    def spectral_radius(
        self, *inputs: Any, z0: Any = None, steps: int = 30
    ) -> jax.Array:
        """The spectral radius of ∂cell/∂z at the equilibrium, per sample.

        Picard's method converges where it is below one. See
        :func:`fixedpoint.spectral_radius`, which starts here from a vector that is the
        same in each call.

        Parameters
        ----------
        *inputs, z0
            As in :meth:`__call__`.
        steps : int, optional
            Products at most.
        """
        z = self.solve(*inputs, z0=z0).value
        pullback = jax.vjp(lambda z: _apply(z, self.cell, *inputs), z)[1]
        radius: jax.Array = spectral_radius(
            # Of the transpose, whose eigenvalues are the same.
            lambda v: pullback(v)[0],
            jax.tree.map(self._direction, z),
            steps=steps,
            batch_ndim=self.batch_ndim,
        )
        return radius

    def _direction(self, leaf: jax.Array) -> jax.Array:
        """A random vector, the same for every sample and in every call."""
        vector = jax.random.normal(
            jax.random.key(0), leaf.shape[self.batch_ndim :], leaf.dtype
        )
        return jnp.broadcast_to(vector, leaf.shape)

    def _first(self, inputs: tuple[Any, ...], z0: Any) -> Any:
        """Where to start."""
        return first_state(self, inputs, z0, partial(jax.tree.map, jnp.zeros_like))

    def _method(self) -> Solver:
        """The solver that goes first."""
        solver, adjoint = methods_of(self.solver, self.adjoint)
        if solver is None:
            needed = None if adjoint is None else adjoint.forward_solver
            solver = needed or fp.default_solver(1, is_root=False)
        return solver.sequence[0]

    def _solved(
        self, inputs: tuple[Any, ...], z0: Any, **changed: Any
    ) -> fp.Solution[Any]:
        """Solve, by the settings and what is changed of them."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        solution = fp.fixed_point(
            _apply, z0, (self.cell, *inputs), **settings | changed
        )
        lost = solution.status == int(fp.Status.NON_FINITE)
        solution.value = jax.tree.map(lambda leaf: _without(lost, leaf), solution.value)
        return solution


def _without(lost: jax.Array, leaf: jax.Array) -> jax.Array:
    """The leaf, not a number in the samples that were lost."""
    mask = jnp.reshape(lost, (*lost.shape, *(1,) * (leaf.ndim - lost.ndim)))
    return jnp.where(mask, jnp.asarray(jnp.nan, leaf.dtype), leaf)


def _shown(cell: Any) -> str:
    """A cell; modules represent themselves, and of JAX's own the parts are arrays."""
    if not isinstance(cell, jax.tree_util.Partial):
        return repr(cell)
    named = [f"{name}={brief(value)}" for name, value in cell.keywords.items()]
    return f"Partial({', '.join([repr(cell.func), *map(brief, cell.args), *named])})"


def _apply(z: Any, cell: Any, *inputs: Any) -> Any:
    """A cell as a function of its leaves too: what it writes to itself is lost."""
    return jax.tree.map(lambda leaf: leaf, cell)(z, *inputs)


_SETTINGS = tuple(
    field.name
    for field in dataclasses.fields(DEQ)
    if field.name not in {"cell", "start"}
)


def _flattened(layer: DEQ) -> tuple[Any, Any]:
    """The cell, if it is a pytree, and what is static."""
    settings = tuple(getattr(layer, name) for name in (*_SETTINGS, "start"))
    if jax.tree_util.all_leaves([layer.cell]) and callable(layer.cell):
        return (), (layer.cell, settings)
    return ((jax.tree_util.GetAttrKey("cell"), layer.cell),), (None, settings)


def _unflattened(static: Any, children: Any) -> DEQ:
    """A layer as it was; in place of the cell there may be anything, as JAX puts it."""
    cell, settings = static
    (cell,) = children or (cell,)
    layer, names = object.__new__(DEQ), ("cell", *_SETTINGS, "start")
    for name, value in zip(names, (cell, *settings), strict=True):
        object.__setattr__(layer, name, value)
    return layer


jax.tree_util.register_pytree_with_keys(DEQ, _flattened, _unflattened)
