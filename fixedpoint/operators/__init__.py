"""Operators whose fixed points are sought: small objects that compose.

Every operator takes a state to its image, and knows the residual that vanishes at its
fixed points, free of the damping and step sizes that it contains:
``fixed_point(operator, z0, args)`` iterates the image and stops on the residual.
"""

from fixedpoint.operators.augmented import (
    AdjointMap,
    InputStep,
    Lagrangian,
    Local,
    LocalGradients,
    StateMap,
    augmented,
)
from fixedpoint.operators.base import (
    Compose,
    Damp,
    Evaluation,
    Joint,
    Map,
    Operator,
    Project,
)
from fixedpoint.operators.regularizers import L1Norm, Regularizer
from fixedpoint.operators.splitting import (
    ForwardBackward,
    PeacemanRachford,
    SoftThreshold,
    largest_step,
    rectify,
    resolvent_matrix,
)

__all__ = [
    "AdjointMap",
    "Compose",
    "Damp",
    "Evaluation",
    "ForwardBackward",
    "InputStep",
    "Joint",
    "L1Norm",
    "Lagrangian",
    "Local",
    "LocalGradients",
    "Map",
    "Operator",
    "PeacemanRachford",
    "Project",
    "Regularizer",
    "SoftThreshold",
    "StateMap",
    "augmented",
    "largest_step",
    "rectify",
    "resolvent_matrix",
]
