"""What the steps of a solve tell, and what is made of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from fixedpoint.backend import Array


class Evidence(NamedTuple):
    """What the steps so far tell of how the error and the residual go together.

    Attributes
    ----------
    first, highest : array
        The first residual norm of each sample, and the largest, or what rounding may
        make it.
    scale : tuple of array
        The parts of the first residual; for roots of the first that is not zero; where
        residuals are tested part by part, the largest that each has been.
    largest : tuple of array
        The largest that each part of the state has been; of a root at least the largest
        entry of the first state that is not zero.
    sizes : array of shape (batch, 2)
        The sizes of the last two corrections, the newest first; infinite where there
        was none.
    amplification : array of shape (batch, window)
        ‖Δz‖/‖Δg‖ of the last steps.
    count : int
        Steps so far.
    initial : tuple of array or None
        Where residuals are tested part by part, the first that is not zero of what
        each was compared with.
    equations : tuple of array or None
        The largest that each equation has been, where a part holds several.
    coarse : array or None
        Whether the first residual of a root seems to come out of a shorter arithmetic
        than the state's; None where that was not asked.
    """

    first: Array
    highest: Array
    scale: tuple[Array, ...]
    largest: tuple[Array, ...]
    sizes: Array
    amplification: Array
    count: Any
    initial: tuple[Array, ...] | None = None
    equations: tuple[Array, ...] | None = None
    coarse: Array | None = None


class Verdict(NamedTuple):
    """What is known of a point.

    Attributes
    ----------
    satisfied : array of bool
        Whether each sample meets the tolerance.
    error : array
        The estimate of ‖z − z*‖; infinite where there is none.
    evidence : Evidence
        What is known now.
    hidden : array of bool
        Whether the residual tells nothing: one as large as the largest would be lost in
        the rounding of the state.
    by_zero : tuple of array of bool or None
        The parts that are within tolerance only if they count as zero; None where that
        was not asked.
    relative : array or None
        The largest part of a residual, as a share of what it is compared with, where
        residuals are tested part by part.
    vanished : array of bool or None
        Whether nothing is left of any part of the state, in samples of which there was
        something; None where that was not asked.
    state : tuple of array or None
        The parts of the state, if they are known.
    """

    satisfied: Array
    error: Array
    evidence: Evidence
    hidden: Array
    vanished: Array | None = None
    state: tuple[Array, ...] | None = None
    by_zero: tuple[Array, ...] | None = None
    relative: Array | None = None
