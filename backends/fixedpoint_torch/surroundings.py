"""What surrounds an evaluation of f besides its arguments: autocast, and random
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

States = list[torch.Tensor]

_NOTHING = nullcontext()


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

    @classmethod
    def of_now(cls, device: torch.device) -> Surroundings:
        """Those with the random numbers that come next now."""
        surroundings = cls(device)
        surroundings.before, surroundings.evaluated = surroundings._states(), True
        return surroundings

    def around(self) -> AbstractContextManager[Any]:
        """What to evaluate f in."""
        if self.evaluated and self.before is None and not self.autocast:
            return _NOTHING
        return self._same()

    @contextmanager
    def _same(self) -> Iterator[None]:
        with self._cast(), self._repeated():
            yield

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


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return not torch.equal(a, b)


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off, for the algebra of a solver."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
