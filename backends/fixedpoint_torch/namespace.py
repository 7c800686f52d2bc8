"""Torch as an array-API namespace."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch
import torch
from array_api_compat.torch import linalg as compat_linalg


class _Linalg:
    @staticmethod
    def solve(matrices: torch.Tensor, rights: torch.Tensor) -> torch.Tensor:
        """X with AX = B, not finite where A is singular."""
        solution: torch.Tensor = torch.linalg.solve_ex(matrices, rights)[0]
        return solution

    @staticmethod
    def vector_norm(
        array: torch.Tensor, *, axis: int, keepdims: bool = False
    ) -> torch.Tensor:
        norm: torch.Tensor = torch.linalg.vector_norm(array, 2.0, axis, keepdims)
        return norm

    def __getattr__(self, name: str) -> Any:
        """All else is the array API's."""
        return getattr(compat_linalg, name)


class Namespace:
    """``array_api_compat.torch``, without its type promotion in the functions that
    dominate.

    The core never mixes dtypes, and what promotion costs is as much as the operation
    itself at the sizes of one iteration.
    """

    linalg = _Linalg()
    where = staticmethod(torch.where)

    @staticmethod
    def matrix_transpose(array: torch.Tensor) -> torch.Tensor:
        """The transpose of each matrix of a stack."""
        return array.mT

    @staticmethod
    def astype(array: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`array` in another dtype."""
        return array.to(dtype)

    @staticmethod
    def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The product of two stacks of matrices, by the faster of two equal ways."""
        return torch.bmm(a, b) if a.ndim == 3 == b.ndim else torch.matmul(a, b)

    @staticmethod
    def vecdot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The inner products along the last axis.

        That of the array API moves axes, which not every transform has a rule for.
        """
        products = a.conj()[..., None, :] @ b[..., None]
        return products[..., 0, 0]

    def __getattr__(self, name: str) -> Any:
        """All else is the array API's."""
        return getattr(array_api_compat.torch, name)


NAMESPACE = Namespace()
