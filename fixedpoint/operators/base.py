"""Operators and the ways to combine them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import add, sub
from typing import Any, NamedTuple

from fixedpoint.adapters import backend_of_state
from fixedpoint.checks import (
    check_callable,
    check_given,
    check_positive,
    check_preconditioner,
)
from fixedpoint.shown import represented


class Evaluation(NamedTuple):
    """One evaluation of an operator T at a state z.

    Attributes
    ----------
    image : array or container of arrays
        T(z), which the iteration goes to.
    residual : array or container of arrays
        What vanishes if and only if z is a fixed point, undamped and free of step
        sizes.
    terms : array or container of arrays, optional
        Of a residual in units of its own, as a gradient is: the sum of the absolute
        values of its terms, with which it is compared, and not with the state. Blocks
        in the units of the state have None.
    """

    image: Any
    residual: Any
    terms: Any = None


def leafwise(function: Callable[..., Any], state: Any, *others: Any) -> Any:
    """Apply `function` to the leaves of containers of one structure."""
    if hasattr(state, "dtype"):  # an array by itself
        return function(state, *others)
    backend = backend_of_state(state, "state")
    leaves, structure = backend.flatten(state)
    columns = [backend.flatten(other)[0] for other in others]
    return structure.rebuild(list(map(function, leaves, *columns)))


class Operator(ABC):
    """A map whose fixed points are sought.

    Subclasses define :meth:`evaluate`. An operator is callable, so it can stand
    wherever a map ``f(z, *args)`` does.
    """

    @abstractmethod
    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """The image of `state` and its residual, at the cost of one evaluation."""

    def __call__(self, state: Any, *args: Any) -> Any:
        """The image of `state`."""
        return self.evaluate(state, *args).image

    def damped(self, damping: float) -> Damp:
        """This operator, damped."""
        return Damp(self, damping)

    def projected(self, project: Callable[[Any], Any]) -> Project:
        """This operator, followed by the projection onto a convex set."""
        return Project(self, project)

    def __matmul__(self, inner: Operator) -> Compose:
        """The composition z ↦ self(inner(z))."""
        return Compose(self, inner)


@dataclass(frozen=True, eq=False)
class Map(Operator):
    """A map and what is known about it: what belongs to the problem, not the method.

    It can be given wherever a map f can. As an operator it is T(z) = f(z, \\*args) with
    the residual f(z) − z; the fields other than f do not matter there.

    Parameters
    ----------
    f : callable
        The map ``f(z, *args)``, or of a root the residual ``F(x, *args)``.
    jvp : callable, optional
        The product ``jvp(z, v, *args)`` = f′(z)v, for solvers of Newton's type. By
        default Torch and JAX differentiate f, and elsewhere difference quotients stand
        in.
    jacobian : callable or matrix, optional
        ``jacobian(z, *args)`` is the matrix f′(z), or where f′ is the same everywhere
        the matrix itself: an array (batch, n, n), or (n, n) for all samples, where n
        counts the entries of all leaves of a sample, as raveled and one leaf after the
        other. Of one leaf each axis may be kept, as in ``jax.jacobian``, and of one
        unknown a number will do. Lists and other libraries' arrays count as arrays.
        Outside of a trace, and without a batch, also a sparse matrix, of SciPy or of
        the state's library, which is factored, or a linear operator of SciPy's. A
        complex state may have the complex matrix f′(z) of a holomorphic f, or the real
        one of order 2n, in which the real parts of a leaf stand before its imaginary
        ones.
    preconditioner : callable, optional
        ``preconditioner(z, *args)`` is an approximate inverse of the derivative of the
        residual, f′(z) − I, or for a root of F′(x): a function v ↦ Pv, in NumPy also a
        linear operator or an incomplete LU.
    project : callable, optional
        A projection z ↦ Π(z), applied to every iterate before f is evaluated there.
    has_aux : bool, optional
        Whether f returns a pair, the image and something more.

    Examples
    --------
    What is known of a map, said once:

    >>> import numpy as np, fixedpoint as fp
    >>> cosine = fp.Map(np.cos, jvp=lambda z, v: -np.sin(z) * v)
    >>> sol = fp.fixed_point(cosine, 1.0, solver=fp.Newton())
    >>> round(float(sol.value), 6), sol.work.jvp > 0
    (0.739085, True)

    As an operator:

    >>> clip = lambda z: np.clip(z, 0.0, 1.5)
    >>> halved = fp.Map(lambda z, b: 0.5 * z + b)
    >>> operator = halved.projected(clip).damped(0.8)
    >>> sol = fp.fixed_point(operator, np.zeros(2), (np.array([0.5, 1.0]),))
    >>> np.round(sol.value, 4)
    array([1. , 1.5])
    """

    f: Callable[..., Any]
    jvp: Callable[..., Any] | None = field(default=None, kw_only=True)
    jacobian: Any = field(default=None, kw_only=True)
    preconditioner: Callable[..., Any] | None = field(default=None, kw_only=True)
    project: Callable[[Any], Any] | None = field(default=None, kw_only=True)
    has_aux: bool = field(default=False, kw_only=True)

    __repr__ = represented

    def __post_init__(self) -> None:
        check_given("f", self.f)
        for name in ("jvp", "project"):
            check_callable(name, getattr(self, name))
        check_preconditioner(self.preconditioner)

    @property
    def is_operator(self) -> bool:
        """Whether f brings a residual of its own."""
        return isinstance(self.f, Operator)

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """One evaluation of f."""
        if isinstance(self.f, Operator):
            return self.f.evaluate(state, *args)
        image = self.f(state, *args)[0] if self.has_aux else self.f(state, *args)
        return Evaluation(image, leafwise(sub, image, state))


@dataclass(frozen=True)
class Wrapper(Operator):
    """An operator that changes the image of another one."""

    operator: Operator

    @property
    def blocks(self) -> Any:
        """The blocks of the operator, each of which is tested by itself; or None."""
        return getattr(self.operator, "blocks", None)


@dataclass(frozen=True)
class Damp(Wrapper):
    """The damped operator z + τ(T(z) − z), with the residual of T."""

    damping: float

    def __post_init__(self) -> None:
        check_positive("damping", self.damping, 2.0)

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """One evaluation of T."""
        found = self.operator.evaluate(state, *args)
        if self.damping == 1.0:
            return found
        damped = lambda old, new: old + self.damping * (new - old)
        return found._replace(image=leafwise(damped, state, found.image))


@dataclass(frozen=True)
class Project(Wrapper):
    """The operator Π(T(z)), with the residual Π(z + r) − z, r that of T."""

    project: Callable[[Any], Any]

    def __post_init__(self) -> None:
        check_given("project", self.project)

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """One evaluation of T."""
        image, residual, terms = self.operator.evaluate(state, *args)
        whole = self.project(leafwise(add, state, residual))
        return Evaluation(self.project(image), leafwise(sub, whole, state), terms)


@dataclass(frozen=True)
class Compose(Operator):
    """The composition z ↦ outer(inner(z)), with the residual outer(inner(z)) − z.

    Damping inside a composition moves its fixed points, and so belongs to the map; to
    damp the iteration, damp the composition.
    """

    outer: Operator
    inner: Operator

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """One evaluation of each."""
        image = self.outer(self.inner(state, *args), *args)
        return Evaluation(image, leafwise(sub, image, state))


@dataclass(frozen=True)
class Joint(Operator):
    """The joint operator of several blocks, which share one piece of work.

    The state is a dictionary with an entry for each block. ``shared(state, *args)``
    computes once what all blocks need; block k is then ``blocks[k].evaluate(state[k],
    shared)``. Every block reads the old state of all (a Jacobi sweep), and has
    converged by its own residual.

    Parameters
    ----------
    shared : callable
        Takes the state and args, returns what the blocks read.
    blocks : mapping of str to Operator
        The operator of each block.

    Examples
    --------
    Two coupled unknowns, u = v/2 + 1 and v = u/2:

    >>> import numpy as np, fixedpoint as fp
    >>> Map = fp.operators.Map
    >>> joint = fp.operators.Joint(
    ...     lambda state: state,
    ...     {"u": Map(lambda u, s: s["v"] / 2 + 1),
    ...      "v": Map(lambda v, s: s["u"] / 2).damped(0.9)},
    ... )
    >>> sol = fp.fixed_point(joint, {"u": np.zeros(1), "v": np.zeros(1)})
    >>> np.round(sol.value["u"], 5), np.round(sol.value["v"], 5)
    (array([1.33333]), array([0.66667]))
    """

    shared: Callable[..., Any]
    blocks: Mapping[str, Operator]

    def __post_init__(self) -> None:
        check_given("shared", self.shared)
        if not isinstance(self.blocks, Mapping):
            raise TypeError(f"blocks must be a mapping, got {self.blocks!r}")
        for name, block in self.blocks.items():
            if not isinstance(block, Operator):
                raise TypeError(
                    f"blocks[{name!r}] must be an operator, such as Map(f), got "
                    f"{type(block).__name__}"
                )

    def evaluate(self, state: Any, *args: Any) -> Evaluation:
        """One evaluation of what is shared, and one of each block."""
        check_blocks(self.blocks, state)
        shared = self.shared(state, *args)
        parts = {
            name: block.evaluate(state[name], shared)
            for name, block in self.blocks.items()
        }
        columns = zip(*parts.values(), strict=True)
        return Evaluation(*[dict(zip(parts, c, strict=True)) for c in columns])


def check_blocks(blocks: Mapping[str, Any], state: Any) -> None:
    """Raise unless a state is a dictionary with these blocks."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"the state must be a dictionary with the blocks {set(blocks)}, got "
            f"{type(state).__name__}"
        )
    if set(state) != set(blocks):
        raise ValueError(
            f"the state must have the blocks {set(blocks)}, got {set(state)}"
        )
