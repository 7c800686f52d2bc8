"""What an augmented solve is given: checks, and the method for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint.border import Border
from fixedpoint.operators.base import leafwise
from fixedpoint.shown import brief
from fixedpoint.solution import Work
from fixedpoint_models.limited_memory import TrackedLBFGS
from fixedpoint_models.methods import Method
from fixedpoint_models.sweeping import space_of_samples
from fixedpoint_models.tracked import TrackedNewton, is_of_one_real_dtype

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from fixedpoint import tree
from fixedpoint.adapters import type_name
from fixedpoint.remedies import note_mixture

P = ParamSpec("P")

R = TypeVar("R")

# Entries of an input for which a matrix of their square is cheap.
_FEW_INPUTS = 128


def naming_data(method: Callable[P, R]) -> Callable[P, R]:
    """A method whose errors say which of `params` and `y` are None, or of another
    library: f and ℓ are the user's, and what they make of that tells nobody so.
    """

    @wraps(method)
    def noted(*args: P.args, **given: P.kwargs) -> R:
        try:
            return method(*args, **given)
        except (AttributeError, RuntimeError, TypeError) as error:
            z0 = args[1] if len(args) > 1 else given.get("z0", 0.0)
            state = tuple(tree.flatten(z0)[0])
            for name, reader in (("params", "f or loss reads"), ("y", "loss reads")):
                note_mixture(error, state, given.get(name), "z0", name)
                missing = given.get(name, ()) is None
                if missing and not isinstance(error, RuntimeError):
                    error.add_note(f"{name} is None: if {reader} it, give {name}=...")
            raise

    return noted


@dataclass(frozen=True)
class PerSample:
    """A loss that is known to return one number for each sample."""

    loss: Callable[..., Any]
    batch_ndim: int

    def __call__(self, o: Any, x: Any, y: Any, params: Any) -> Any:
        """ℓ, one number for each sample."""
        found = self.loss(o, x, y, params)
        shape = getattr(found, "shape", None)
        if shape is None or len(shape) != self.batch_ndim:
            got = type_name(found) if shape is None else f"the shape {tuple(shape)}"
            raise ValueError(
                "loss must return one number for each sample, an array of "
                f"{self.batch_ndim} axes, got {got}"
            )
        return found


def detached(state: Any) -> Any:
    """`state` without derivatives, where it is Torch's; anything else passes."""
    leaves, structure = tree.flatten(state)
    return structure.rebuild(
        [x.detach() if hasattr(x, "detach") else x for x in leaves]
    )


def check_start(z0: Any, x0: Any, batch_ndim: int) -> None:
    """Raise unless a solve can start there."""
    batches = {}
    for name, start in (("z0", z0), ("x0", x0)):
        border, leaves = Border.of(start, name, batch_ndim=batch_ndim)
        border.check(leaves, batch_ndim)
        batches[name] = tuple(leaves[0].shape[:batch_ndim])
    if batches["z0"] != batches["x0"]:
        raise ValueError(
            "z0 and x0 must begin with the same batch axes, got "
            f"{batches['z0']} and {batches['x0']}"
        )


def check_method(method: Any) -> None:
    """Raise TypeError unless this can solve the augmented system, or is None."""
    is_method = hasattr(method, "solve") and not isinstance(method, type)
    if method is not None and not is_method:
        raise TypeError(
            "method must be TrackedNewton(), TrackedLBFGS(), TrackedDescent(...) "
            f"or JointIteration(...), got {method!r}"
        )


def check_alone(method: Any, solver: Any) -> None:
    """Raise ValueError if both a method and a solver are given."""
    if solver is not None and method is not None:
        raise ValueError(
            "solver and method must not be given together: a method has its own "
            f"steps, got {brief(solver)} and {brief(method)}"
        )


def default_method(
    model: AugmentedDEQ, z: Any, x: Any, params: Any
) -> tuple[Method, Work]:
    """The method where none is named, and what it took to see whether it serves."""
    if _serves_newton(model, z, x, params):
        return TrackedNewton(), Work(f=1)
    return TrackedLBFGS(), Work()


def _serves_newton(model: AugmentedDEQ, z: Any, x: Any, params: Any) -> bool:
    """Whether inputs are few and free, and f can be evaluated for another number of
    samples.

    Where data of the samples are in params it can not.
    """
    if model.prox is not None or model.vjp is not None or model.batch_ndim != 1:
        return False
    space, leaves = space_of_samples(x), tree.flatten(z)[0]
    traced = space.backend.is_traced((*tree.flatten(x)[0], *leaves))
    if traced or not space.backend.differentiates or space.real_size > _FEW_INPUTS:
        return False
    # Without a sample there is nothing to try it with.
    if space.batch_shape[0] == 0 or not is_of_one_real_dtype(z, x):
        return False
    rows, xp = (0, 0) if space.batch_shape[0] == 1 else (0,), space.xp
    taken = xp.asarray(rows, dtype=xp.int32, **space.place)
    few = [leafwise(lambda a: xp.take(a, taken, axis=0), part) for part in (z, x)]
    try:
        image = tree.flatten(model.f(*detached((*few, params))))[0]
    except (RuntimeError, TypeError, ValueError):
        return False
    return [a.shape[0] for a in image] == [len(rows)] * len(leaves)
