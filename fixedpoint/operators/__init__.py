"""Operators whose fixed points are sought: small objects that compose.

Every operator takes a state to its image, and knows the residual that vanishes at its
fixed points, free of the damping and step sizes that it contains:
``fixed_point(operator, z0, args)`` iterates the image and stops on the residual.
"""

from fixedpoint.operators.augmented import (
    AdjointMap,
    InputStep,
    Lagrangian,
    Linearization,
    Local,
    StateMap,
    augmented,
)
from fixedpoint.operators.base import Compose, Damp, Evaluation, Map, Operator, Project
from fixedpoint.operators.joint import Joint
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
    "Lagrangian",
    "Linearization",
    "Local",
    "Map",
    "Operator",
    "PeacemanRachford",
    "Project",
    "SoftThreshold",
    "StateMap",
    "augmented",
    "largest_step",
    "rectify",
    "resolvent_matrix",
]
