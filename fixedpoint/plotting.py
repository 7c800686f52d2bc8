"""Convergence plots; they need matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np


def plot_trace(residual_norm: Any, evaluations: Any, ax: Any = None) -> Any:
    """Draw a line per sample: the residual norm against the evaluations so far."""
    import matplotlib.pyplot as plt  # noqa: PLC0415  optional

    ax = plt.gca() if ax is None else ax
    norms, works = (
        np.atleast_2d(a.reshape(-1, a.shape[-1])) for a in (residual_norm, evaluations)
    )
    for norm, work in zip(norms, works, strict=True):
        ax.semilogy(work, norm, marker=".", linewidth=1.0)
    ax.set_xlabel("evaluations")
    ax.set_ylabel("residual norm")
    ax.grid(alpha=0.3)
    return ax
