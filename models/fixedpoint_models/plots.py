"""Pictures of what was recovered, and of how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure, FigureBase

from fixedpoint_models.comparison import Trace

_COLORS = ("tab:red", "tab:orange", "tab:blue", "tab:green")


def draw_recovered(rows: Mapping[str, Any], file: Path) -> None:
    """Write a grid of images, a labeled row for each entry of `rows`.

    Parameters
    ----------
    rows : mapping of str to array of shape (number, height, width)
        Images with values from 0 to 1; NaN is drawn in color.
    file : Path
        The PNG to write.
    """
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(0.8 * columns + 1, 0.9 * len(rows)), layout="constrained")
    fill_with_images(figure, rows)
    figure.savefig(file, dpi=120)


def fill_with_images(figure: FigureBase, rows: Mapping[str, Any]) -> None:
    """Draw a grid of images in a figure, or a part of one; rows as for
    `draw_recovered`.
    """
    columns = len(next(iter(rows.values())))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images, strict=True):
            axis.set_facecolor("tab:blue")
            axis.imshow(image, cmap="gray", vmin=0.0, vmax=1.0)
            axis.set_xticks([])
            axis.set_yticks([])


def draw_race(groups: Mapping[str, Sequence[Trace]], lowest: float, file: Path) -> None:
    """Plot what each method of each group reached against time.

    Parameters
    ----------
    groups : mapping of str to sequence of Trace
        The tuned methods, under the label of their group.
    lowest : float
        The lowest objective of all, which the vertical axis is relative to.
    file : Path
        The PNG to write.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for color, (label, traces) in zip(_COLORS, groups.items(), strict=False):
        for trace in traces:
            relative = [objective / lowest for objective in trace.objectives]
            axis.plot(trace.seconds, relative, color=color, alpha=0.15)
        seconds = sorted({s for trace in traces for s in trace.seconds})
        axis.plot(
            seconds,
            [_reached(traces, s) / lowest for s in seconds],
            color=color,
            lw=2,
            label=label,
        )
    axis.set(xscale="log", yscale="log", xlabel="seconds")
    axis.set_ylabel("re-solved objective / lowest reached")
    axis.set_ylim(0.98, 50)
    axis.legend(title="bold: best of its grid at each time")
    figure.savefig(file, dpi=120)


def _reached(traces: Sequence[Trace], seconds: float) -> float:
    """The lowest objective of any trace until then."""
    points = (
        pair for t in traces for pair in zip(t.seconds, t.objectives, strict=True)
    )
    return min(
        (objective for s, objective in points if s <= seconds), default=float("inf")
    )
