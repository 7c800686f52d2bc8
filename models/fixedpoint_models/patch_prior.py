"""The dictionaries and penalties that a game between patches learns."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from fixedpoint.checks import check_count, check_positive
from fixedpoint_models.contrasts import Contrasts
from fixedpoint_models.patch_grid import cosines

Tensor = torch.Tensor


class PatchPrior(torch.nn.Module):
    """Two dictionaries, and a penalty for each atom, as they are before training.

    Parameters
    ----------
    size, atoms, weight, curvature, ridge
        See :class:`~fixedpoint_models.games.PatchGame`.
    """

    def __init__(
        self, size: int, atoms: int, weight: float, curvature: float, ridge: float
    ) -> None:
        super().__init__()
        check_count("size", size, 2)
        check_positive("ridge", ridge)
        self.ridge = ridge
        check_count("atoms", atoms, 1)
        basis = cosines(size, atoms + 1)[:, 1:]
        # What is far beyond 0 is scaled by the penalty, and scaled back here.
        scale = (1.0 + self.ridge + curvature) / torch.linalg.matrix_norm(basis, 2)
        self.atoms = torch.nn.Parameter(basis)
        self.synthesis = torch.nn.Parameter(scale * basis)
        self.raw_weights = torch.nn.Parameter(_raw("weight", weight, atoms))
        self.raw_curvatures = torch.nn.Parameter(_raw("curvature", curvature, atoms))
        self.seen: Contrasts | None = None

    def dictionary(self) -> Tensor:
        """D, of shape (pixels, atoms) and spectral norm 1."""
        scaled: Tensor = self.atoms / torch.linalg.matrix_norm(self.atoms, 2)
        return scaled

    def weights(self, seen: Tensor | None = None) -> Tensor:
        """The weights w, of shape (atoms, 1), or (batch, atoms, patches) where they
        depend on surroundings.
        """
        raw = self.raw_weights[:, None]
        if self.seen is not None and seen is not None:
            raw = raw + self.seen.shift(seen)
        return functional.softplus(raw)

    def curvatures(self) -> Tensor:
        """The curvatures c of the penalty, one for each atom."""
        return functional.softplus(self.raw_curvatures)


def _raw(name: str, value: float, number: int) -> Tensor:
    """What softplus makes a positive value of, `number` times."""
    check_positive(name, value)
    return torch.full((number,), value + math.log(-math.expm1(-value)))
