"""The small least-squares problem of Anderson's method."""

from __future__ import annotations

from fixedpoint.backend import Array
from fixedpoint.space import Space


def least_squares(space: Space, gram: Array, products: Array) -> Array:
    """The coefficients γ that minimize ‖g − Qγ‖² + λ‖Dγ‖², of every sample.

    Parameters
    ----------
    space : Space
        The space of the samples.
    gram : array of shape (batch, m, m)
        QᵀQ + λD², where D² is the diagonal of QᵀQ, 1 for a column that is zero: the
        matrix is never singular.
    products : array of shape (batch, m)
        Qᵀg.

    Returns
    -------
    array of shape (batch, m)
        γ = (QᵀQ + λD²)⁻¹ Qᵀg.

    Notes
    -----
    The normal equations square the condition number of Q. The iteration corrects
    itself: an error in γ costs a step some of its speed, never the truth of its
    residual.
    """
    if products.shape[-1] == 0:  # not every library solves a system of nothing
        return products
    return space.backend.solve(gram, products)
