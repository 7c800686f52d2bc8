"""Convergence plots; they need matplotlib."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np


def plot_trace(residual_norm: Any, evaluations: Any, ax: Any = None) -> Any:
    """Draw a line per sample: the residual norm against the evaluations so far."""
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415  optional

        ax = plt.gca()
    norms, works = (
        np.atleast_2d(a.reshape(-1, a.shape[-1])) for a in (residual_norm, evaluations)
    )
    for norm, work in zip(norms, works, strict=True):
        ax.semilogy(work, norm, marker=".", linewidth=1.0)
    ax.set_xlabel("evaluations")
    ax.set_ylabel("residual norm")
    ax.grid(alpha=0.3)
    return ax


def as_image(residual_norm: Any, evaluations: Any) -> str:
    """The same plot as an element of HTML, without touching the figures of pyplot."""
    from matplotlib.figure import Figure  # noqa: PLC0415  optional

    figure, file = Figure(figsize=(5, 3), layout="constrained"), io.BytesIO()
    plot_trace(residual_norm, evaluations, figure.subplots())
    figure.savefig(file, format="png", dpi=90)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    source = f"data:image/png;base64,{data}"
    return f'<img alt="residual norm against evaluations" src="{source}">'
