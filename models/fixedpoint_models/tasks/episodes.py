"""Tasks of meta-learning: labeled images to learn from, and others to label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from fixedpoint_models.data import (
    Episode,
)
from fixedpoint_models.tasks.meta_settings import MetaSettings

Tensor = torch.Tensor


class Batch(NamedTuple):
    """Tasks of the same size.

    Parameters
    ----------
    support, query : tensor of shape (tasks, images, 1, side, side)
        Images.
    support_labels, query_labels : tensor of shape (tasks, images)
        From 0 to ways - 1.
    """

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor

    @classmethod
    def of(
        cls, episodes: Sequence[Episode], device: torch.device | str = "cpu"
    ) -> Batch:
        """Tasks made of episodes."""
        parts = [
            torch.stack([torch.as_tensor(a) for a in p])
            for p in zip(*episodes, strict=True)
        ]
        support, labels, query, query_labels = (part.to(device) for part in parts)
        return cls(support[:, :, None], labels, query[:, :, None], query_labels)


def picture(
    task: Batch, labels: Tensor, right: list[float], settings: MetaSettings
) -> Figure:
    """A row for each class: the support, a gap, the query; what is labeled wrongly has
    its label.

    `labels` are those of the query after adaptation, `right` what share was right
    before and after.
    """
    ways = settings.test_ways or settings.ways
    rows = (ways, -1, settings.side, settings.side)
    support, query = (part.reshape(rows).cpu() for part in (task.support, task.query))
    given = labels.reshape(ways, -1)
    columns = settings.shots + query.shape[1]
    figure = Figure(figsize=(0.9 * columns + 0.6, ways + 0.8), layout="constrained")
    axes = figure.subplots(ways, columns, squeeze=False)
    for way, line in enumerate(axes):
        line[0].set_ylabel(str(way), rotation=0, ha="right", va="center")
        for column, axis in enumerate(line):
            index = column - settings.shots
            image = support[way, column] if index < 0 else query[way, index]
            colors = "gray" if index >= 0 else "bone"
            axis.imshow(1.0 - image.numpy(), cmap=colors, vmin=0.0, vmax=1.0)
            axis.set(xticks=[], yticks=[])
            if index >= 0 and given[way, index] != way:
                axis.set_xlabel(f"taken for {int(given[way, index])}", color="tab:red")
    axes[0][0].set_title("support")
    axes[0][settings.shots].set_title("query")
    figure.suptitle(
        f"query right before adaptation {right[0]:.0%}, after {right[1]:.0%}"
    )
    return figure
