"""What changes where a framework differentiates the operations of a solver."""

from __future__ import annotations

from typing import Any

from fixedpoint.backend import Array


class Recorded:
    """A namespace whose roots and norms have the derivative 0 at 0, and no infinite
    one.

    A sample that is solved has corrections of length zero, whose derivatives nothing
    depends on: but what is not finite stays so, multiplied by zero.

    Parameters
    ----------
    xp : module
        The array-API namespace that does all the work.
    """

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.linalg = _Linalg(self)

    def sqrt(self, array: Array) -> Array:
        """The square root."""
        zero = array == 0
        root = self.xp.sqrt(self.xp.where(zero, self.xp.ones_like(array), array))
        return self.xp.where(zero, array, root)

    def __getattr__(self, name: str) -> Any:
        """All else is the same."""
        return getattr(self.xp, name)


class _Linalg:
    def __init__(self, xp: Recorded) -> None:
        self.xp = xp

    def vector_norm(self, array: Array, *, axis: int, keepdims: bool = False) -> Array:
        """The Euclidean norm of what is real."""
        return self.xp.sqrt(self.xp.sum(array * array, axis=axis, keepdims=keepdims))

    def __getattr__(self, name: str) -> Any:
        """All else is the same."""
        return getattr(self.xp.xp.linalg, name)
