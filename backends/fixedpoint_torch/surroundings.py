"""What surrounds an evaluation of f besides its arguments: autocast, and random
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

States = list[torch.Tensor]


class Surroundings:
    """The same surroundings for every evaluation of f, in a solve and in its
    derivatives.

    A map that draws random numbers is a map only if it draws the same ones each time:
    the state of the generators before the first evaluation is restored for every other
    one. Autocast, which the caller may have switched on, holds inside f alone: it would
    round the solver's algebra.

    Parameters
    ----------
    device : torch.device
        The device of the state.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type) if self.autocast else None
        self.before: States | None = None
        self.evaluated = False

    def __call__(self, f: Callable[..., Any], *leaves: Any) -> Any:
        """Evaluate f at the `leaves`."""
        if self.evaluated and self.before is None and not self.autocast:
            return f(*leaves)
        with self._cast(), self._repeated():
            return f(*leaves)

    def _cast(self) -> AbstractContextManager[Any]:
        """Autocast as the caller has it.

        Casts are not cached: those of a solve, which records nothing, would be found by
        the caller's own operations, for which derivatives are recorded.
        """
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)

    @contextmanager
    def _repeated(self) -> Iterator[None]:
        """Random numbers as in the first evaluation."""
        now = self._states()
        if not self.evaluated:
            yield
            self.evaluated = True
            drawn = any(map(_differ, now, self._states()))
            self.before = now if drawn else None
        elif self.before is None:
            yield
        else:
            self._restore(self.before)
            try:
                yield
            finally:
                self._restore(now)

    def _states(self) -> States:
        """The states of the generators that f may draw from."""
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _restore(self, states: States) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


class Untouched:
    """Calls functions so that none writes into the state that it is given.

    The first call is given copies. If it wrote into them, as an activation in place
    does, so are all others; if not, none may.
    """

    def __init__(self) -> None:
        self.copies: bool | None = None

    def __call__(
        self, function: Callable[..., Any], leaves: tuple[torch.Tensor, ...]
    ) -> Any:
        """``function(*leaves)``."""
        given = (
            leaves if self.copies is False else tuple(leaf.clone() for leaf in leaves)
        )
        before = _versions(given)
        output = function(*given)
        written = before != _versions(given)
        if self.copies is None:
            self.copies = written
        elif written and not self.copies:
            raise RuntimeError(
                "f wrote into its argument, which it had not done in its first "
                "evaluation: let it "
                "return a new tensor"
            )
        return output


def _versions(leaves: tuple[torch.Tensor, ...]) -> tuple[int, ...]:
    """How often each tensor was written into, as far as Torch keeps count."""
    return tuple(0 if leaf.is_inference() else leaf._version for leaf in leaves)


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return not torch.equal(a, b)


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off, for the algebra of a solver."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
