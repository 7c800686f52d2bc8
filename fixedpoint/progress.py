"""A bar that follows a solve."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np

from fixedpoint.adapters import backend_of
from fixedpoint.backend import Array


class Progress:
    """A progress bar: a callback that shows steps and the largest residual norm.

    It is drawn by tqdm, ten times a second at most, and reads the residual, for which
    it waits for a device, only when it draws. Used in a ``with`` statement it ends its
    line there.

    Parameters
    ----------
    **settings
        Passed on to ``tqdm``: ``desc`` is written in front, ``total`` is the expected
        number of steps, ``file`` is where to write, ``disable=True`` draws nothing.

    Raises
    ------
    ModuleNotFoundError
        If tqdm is not installed.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> with fp.Progress(desc="cosine", disable=True) as progress:
    ...     sol = fp.fixed_point(np.cos, 1.0, callback=progress)
    """

    def __init__(self, **settings: Any) -> None:
        try:
            from tqdm.auto import tqdm  # noqa: PLC0415  tqdm is optional
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "Progress draws its bar by tqdm, which is not installed: "
                "pip install tqdm"
            ) from None
        self.bar = tqdm(**{"unit": " steps"} | settings)
        self.latest: Array = None

    def __call__(self, step: int, value: Any, residual_norm: Array) -> bool:
        """Move to a step; the solve goes on."""
        del value
        if step <= self.bar.n:  # of another solve
            self.bar.reset(self.bar.total)
        self.latest = residual_norm
        if self.bar.update(step - self.bar.n):
            self._write_residual()
        return False

    def close(self) -> None:
        """Draw the last step, and end the line."""
        if self.latest is not None:
            self._write_residual()
        self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write_residual(self) -> None:
        backend = backend_of([self.latest], ["residual_norm"])
        largest = np.max(backend.numpy(self.latest), initial=0.0)
        self.bar.set_postfix_str(f"residual {largest:.1e}")
