"""Small linear systems whose derivatives are right in every mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fixedpoint_torch.kept import kept, primals
from fixedpoint_torch.vectorized import vectorizable


class SmallSolve(torch.autograd.Function):
    """X with AX = B, not finite or wrong where A is singular.

    ``torch.linalg.solve`` takes the factors of A as constant in its forward mode, whose
    derivative is therefore wrong.
    """

    @staticmethod
    def forward(matrices: torch.Tensor, rights: torch.Tensor) -> torch.Tensor:
        """The solution."""
        solution: torch.Tensor = torch.linalg.solve_ex(matrices, rights)[0]
        return solution

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the matrices and the solution."""
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    @vectorizable
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """U with AᴴU = V for B, and −UXᴴ for A."""
        matrices, solution = kept(ctx)
        pulled = small_solve(matrices.mH, cotangents[0])
        return -pulled @ solution.mH, pulled

    @staticmethod
    @vectorizable
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """The solution of A dX = dB − dA X."""
        of_matrices, of_rights = tangents
        with primals(ctx) as (matrices, solution):
            rights = torch.zeros_like(solution) if of_rights is None else of_rights
            if of_matrices is not None:
                rights = rights - of_matrices @ solution
            return small_solve(matrices, rights)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *systems: torch.Tensor) -> Any:
        """One more batch axis."""
        fronted = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(systems, in_dims, strict=True)
        ]
        return small_solve(*fronted), 0


# Torch leaves the type of this open.
small_solve: Callable[..., Any] = SmallSolve.apply
