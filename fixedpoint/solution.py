"""What a solve returns."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator
from copy import copy, deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from fixedpoint.adapters import backend_of, backend_of_state
from fixedpoint.backend import Array
from fixedpoint.shown import brief, glimpse, represented
from fixedpoint.status import MEANING, Status

# The container of a state.
T = TypeVar("T")


class Work(NamedTuple):
    """Evaluations that a solve cost.

    Attributes
    ----------
    f : int
        Evaluations of the map, for the whole batch, those for difference quotients
        included.
    vjp, jvp : int
        Vector-Jacobian and Jacobian-vector products.
    """

    f: Any = 0
    vjp: Any = 0
    jvp: Any = 0

    def __str__(self) -> str:
        f, vjp, jvp = map(_ranged, self)
        return f"{f} evaluations, {vjp} vjp, {jvp} jvp"

    def plus(self, other: Work) -> Work:
        """The sum of two accounts."""
        return Work(self.f + other.f, self.vjp + other.vjp, self.jvp + other.jvp)


class Trace(NamedTuple):
    """The course of a solve, recorded with ``record=True``.

    In a batch, rows are NaN after the last step of their sample. In a JAX trace, where
    the number of steps is not known, there are ``max_steps + 1`` columns.

    Attributes
    ----------
    residual_norm : array of shape (batch, steps + 1)
        The residual norm at the start and after each step, until the last sample
        stopped.
    evaluations : array of shape (batch, steps + 1)
        Evaluations and products up to then.
    """

    residual_norm: Array
    evaluations: Array

    def __repr__(self) -> str:
        parts = [f"{name}={brief(part)}" for name, part in self._asdict().items()]
        return f"Trace({', '.join(parts)})"


@dataclass(eq=False)
class BackwardReport:
    """The outcome of the latest linear solve of a derivative; None before it ran.

    Attributes
    ----------
    value : container of arrays
        The solution u of (I − Jᵀ)u = v, a warm start for the next solve.
    status : array of int, of the batch's shape
        A :class:`Status` per sample.
    residual_norm : array of the batch's shape
        ‖Jᵀu + v − u‖ per sample; not a number where the adjoint does not measure it.
    steps : array of int, of the batch's shape
        Steps of each sample.
    products : int
        Products with Jᵀ, or with J for tangents.
    """

    value: Any = None
    status: Array | None = None
    residual_norm: Array | None = None
    steps: Array | None = None
    products: int = 0

    __repr__ = represented

    def note(self, value: Any, end: Any) -> None:
        """Fill in how a linear solve ended."""
        self.value, self.status = value, end.status
        self.residual_norm = end.residual_norm
        self.steps, self.products = end.steps, sum(end.work)


@dataclass(eq=False)
class Solution(Generic[T]):
    """The result of :func:`fixedpoint.fixed_point` and :func:`fixedpoint.root`.

    Attributes
    ----------
    value : array or container of arrays
        The iterate that satisfied the test, or else the one with the smallest residual,
        in the structure of the start.
    status : array of int, of the batch's shape
        A :class:`Status` per sample.
    residual_norm : array of the batch's shape
        ‖f(z) − z‖, or ‖F(x)‖, at `value`.
    error : array of the batch's shape
        The estimate of ‖z − z*‖ at `value`; infinite where the method has none.
    precise : array of bool of the batch's shape
        Whether the sample counts as converged because its arithmetic cannot do better,
        whatever the tolerance.
    steps : array of int, of the batch's shape
        Steps that each sample took, summed over the solvers of a fallback.
    work : Work
        Evaluations, counted over the whole batch.
    method : array of int, of the batch's shape
        Which of `methods` found `value`.
    methods : tuple of str
        The solvers in the order they were tried.
    trace : Trace or None
        The course of the solve, where ``record=True``.
    state : object or None
        What the solver remembers, for a warm start of another call.
    backward : BackwardReport or None
        Where derivatives are recorded outside a trace, the report of the adjoint solve,
        filled in by it.
    aux : object
        The auxiliary output of the map at `value`, with ``has_aux=True``.
    linearization : callable or None
        What :meth:`linearize` calls.
    bracket : pair of arrays, or None
        The lower and the upper ends of the last brackets, of
        :func:`fixedpoint.bracketed_root`.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> fp.fixed_point(lambda z: 0.5 * z + 1.0, np.zeros(3), solver=fp.Broyden())
    Solution
        value: 2, 2, 2 (numpy.ndarray of shape (3,), float64)
        message: converged (Broyden); largest error 0, residual norm 0 after 2 steps
        work: 3 evaluations, 0 vjp, 0 jvp

    SciPy's names ``sol.x``, ``sol.success`` and ``sol.nfev`` work as well.
    """

    value: T
    status: Array
    residual_norm: Array
    steps: Array
    work: Work
    error: Array = None
    precise: Array = None
    method: Array = None
    methods: tuple[str, ...] = ()
    trace: Trace | None = None
    state: Any = field(default=None, repr=False)
    backward: BackwardReport | None = None
    linearization: Callable[[Any], Callable[[Any], Any]] | None = field(
        default=None, repr=False
    )
    aux: Any = None
    bracket: tuple[Array, Array] | None = None

    @property
    def x(self) -> Any:
        """What SciPy calls `value`."""
        return self.value

    @property
    def success(self) -> Array:
        """What SciPy calls `converged`; here one for each sample."""
        return self.converged

    @property
    def nfev(self) -> Any:
        """What SciPy calls ``work.f``."""
        return self.work.f

    @property
    def converged(self) -> Array:
        """Per sample, whether the iteration converged."""
        return self.status == int(Status.CONVERGED)

    @property
    def message(self) -> str:
        """What became of the samples, in words.

        Examples
        --------
        >>> import fixedpoint as fp
        >>> sol = fp.fixed_point(lambda z: 0.5 * z + 1.0, 0.0, solver=fp.Picard())
        >>> for part in sol.message.split("; "):
        ...     print(part)
        converged (Picard)
        largest error 1.9e-06, residual norm 9.5e-07 after 20 steps
        """
        if self._is_traced():
            return "not known while the solve is being traced"
        outcomes = list(self._outcomes())
        if not outcomes:
            return "no samples"
        one = len(outcomes) == 1
        counts = [
            word if one else f"{word}: {number} samples" for word, number in outcomes
        ]
        norm, steps = _numpy(self.residual_norm).max(), _numpy(self.steps).max()
        # An infinite error is one that the method does not estimate.
        most = math.inf if self.error is None else float(_numpy(self.error).max())
        error = f"error {most:.2g}, " if most < math.inf else ""
        size = f"largest {error}residual norm {norm:.2g}"
        return f"{'; '.join(counts)}; {size} after {steps} steps"

    def _outcomes(self) -> Iterator[tuple[str, int]]:
        statuses, methods = _numpy(self.status), _numpy(self.method)
        precise = 0 * statuses if self.precise is None else _numpy(self.precise)
        for status, meaning in MEANING.items():
            for limited, addition in ((0, ""), (1, ", to the limit of the arithmetic")):
                chosen = (statuses == status) & (precise == limited)
                number = int(chosen.sum())
                if number:
                    yield f"{meaning}{addition}{self._by(methods[chosen])}", number

    def _by(self, methods: Any) -> str:
        if not self.methods:
            return ""
        names = dict.fromkeys(self.methods[k] for k in sorted(set(methods.tolist())))
        return f" ({', '.join(names)})"

    def linearize(self) -> Callable[[Any], Any]:
        """The Jacobian-vector products at the solution, v ↦ f′(z)v or v ↦ F′(x)v.

        Exact where the array library differentiates or the call was given ``jvp``, by
        difference quotients elsewhere. The vector and its image are containers like
        `value`.

        Examples
        --------
        >>> import numpy as np, fixedpoint as fp
        >>> sol = fp.fixed_point(np.cos, 1.0)
        >>> round(float(sol.linearize()(1.0)), 6)  # −sin z
        -0.673612
        """
        if self.linearization is None:
            raise ValueError(
                "this solution has no map to linearize: it came out of a trace, or is "
                "that of the linear system of a derivative"
            )
        return self.linearization(self.value)

    def plot(self, ax: Any = None) -> Any:
        """Draw the residual norm against the evaluations; needs ``record=True``.

        Parameters
        ----------
        ax : matplotlib axes, optional
            Where to draw, by default the current axes.

        Returns
        -------
        matplotlib axes
        """
        from fixedpoint.plotting import plot_trace  # noqa: PLC0415  matplotlib is optional

        if self.trace is None:
            raise ValueError("there is no trace to plot: solve with record=True")
        return plot_trace(
            _numpy(self.trace.residual_norm), _numpy(self.trace.evaluations), ax
        )

    def __copy__(self) -> Solution[T]:
        """A copy with the same map."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Solution[T]:
        """A copy of all but the map, which it shares, as functions are."""
        memo[id(self.linearization)] = self.linearization
        new = copy(self)
        new.__dict__ = deepcopy(self.__dict__, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        """All but the map, and nothing that is recorded of derivatives: solutions are
        pickled, and neither of these need be.
        """
        names = "value", "residual_norm", "error"
        constants = {name: _constant(getattr(self, name)) for name in names}
        lost = self.linearization and _lost_in_pickling
        return {**self.__dict__, **constants, "linearization": lost}

    def __repr__(self) -> str:
        """The value, if it is short, and what is known of it."""
        try:
            found = self._summary()
        except (AttributeError, TypeError, ValueError):
            return represented(self)  # JAX put something in place of the arrays
        lines = [f"    {name}: {text}" for name, text in found.items()]
        return "\n".join(["Solution", *lines])

    def _repr_html_(self) -> str:
        """The same for notebooks, with a picture of the trace if there is one."""
        rows = "".join(
            f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._summary().items()
        )
        return f"<table>{rows}</table>{self._picture()}"

    def _summary(self) -> dict[str, str]:
        """What a representation says, line by line."""
        found = {"value": glimpse(self.value), "message": self.message}
        if self.trace is not None and not self._is_traced():
            found["trace"] = f"{_numpy(self.steps).max(initial=0)} steps"
        return found | {"work": str(self.work)}

    def _picture(self) -> str:
        """The trace as an image in HTML, or nothing where it cannot be drawn."""
        if self.trace is None or self._is_traced() or find_spec("matplotlib") is None:
            return ""
        from fixedpoint.plotting import as_image  # noqa: PLC0415  matplotlib is optional

        return as_image(*map(_numpy, self.trace))

    def _is_traced(self) -> bool:
        """Whether the outcome is not known yet."""
        backend = backend_of([self.status], ["status"])
        known = (self.status, self.residual_norm, self.error)
        return backend.is_traced(backend.stop(known))


class ConvergenceError(ArithmeticError):
    """A solve failed. The attribute ``solution`` holds what it reached."""

    def __init__(self, message: str, solution: Any) -> None:
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[Any, ...]:
        """What makes it again in another process: `args` has the message alone."""
        return type(self), (*self.args, self.solution), self.__dict__


class ConvergenceWarning(UserWarning):
    """A solve failed, and ``on_failure="warn"`` was asked for."""


class DomainError(ArithmeticError):
    """Raised by a map where it is not defined: a trial point is then not finite."""


def _constant(container: Any) -> Any:
    """The same arrays, of which no derivatives are recorded."""
    if container is None:
        return None
    backend = backend_of_state(container, "value")
    leaves, structure = backend.flatten(container)
    return structure.rebuild(backend.stop(tuple(leaves)))


def _lost_in_pickling(value: Any) -> NoReturn:
    """What linearizes a solution that came out of a pickle."""
    del value
    raise ValueError(
        "a pickled solution does not hold its map, and cannot be linearized: solve "
        "again, from its value"
    )


def _ranged(count: Any) -> str:
    """A count, or the range of those under a ``vmap``."""
    if not getattr(count, "shape", ()):
        return str(count)
    least, most = _numpy(count).min(), _numpy(count).max()
    return str(most) if least == most else f"{least} to {most}"


def _numpy(array: Array) -> Any:
    return backend_of([array], ["array"]).numpy(array)
