"""Augmented deep equilibrium models, built from the operators of :mod:`fixedpoint`.

The names below are imported when they are first used, so that the command line does
not load PyTorch to print its help.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixedpoint_models.augmented import AugmentedDEQ
    from fixedpoint_models.augmented_solution import AugmentedSolution
    from fixedpoint_models.classifier import (
        DenseClassifier,
        attack_loss,
        ball,
        ball_in_box,
        cross_entropy,
        linear_minimizer,
        linear_minimizer_in_box,
        perturbed_map,
        scores,
    )
    from fixedpoint_models.data import DataError, load_images
    from fixedpoint_models.decoder import (
        DenseDecoder,
        decode,
        equilibrium_map,
        masked_loss,
    )
    from fixedpoint_models.descent import TrackedDescent
    from fixedpoint_models.descent_rules import (
        BarzilaiBorwein,
        ConditionalGradient,
        DescentRule,
        Momentum,
    )
    from fixedpoint_models.limited_memory import TrackedLBFGS
    from fixedpoint_models.methods import JointIteration
    from fixedpoint_models.monotone import MonotoneDEQ, MonotoneLinear
    from fixedpoint_models.nested import Nested, Progress
    from fixedpoint_models.sensitivity import Tangents, tangents
    from fixedpoint_models.tracked import TrackedNewton
    from fixedpoint_models.trained_weights import pretrained
    from fixedpoint_models.training import (
        CheckpointError,
        Training,
        TrainingError,
        train,
    )

_MODULES = {
    "augmented": ("AugmentedDEQ",),
    "augmented_solution": ("AugmentedSolution",),
    "classifier": (
        "DenseClassifier",
        "attack_loss",
        "ball",
        "ball_in_box",
        "cross_entropy",
        "linear_minimizer",
        "linear_minimizer_in_box",
        "perturbed_map",
        "scores",
    ),
    "data": ("DataError", "load_images"),
    "decoder": ("DenseDecoder", "decode", "equilibrium_map", "masked_loss"),
    "descent": ("TrackedDescent",),
    "descent_rules": (
        "BarzilaiBorwein",
        "ConditionalGradient",
        "DescentRule",
        "Momentum",
    ),
    "methods": ("JointIteration",),
    "monotone": ("MonotoneDEQ", "MonotoneLinear"),
    "nested": ("Nested", "Progress"),
    "trained_weights": ("pretrained",),
    "sensitivity": ("Tangents", "tangents"),
    "limited_memory": ("TrackedLBFGS",),
    "tracked": ("TrackedNewton",),
    "training": ("CheckpointError", "Training", "TrainingError", "train"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AugmentedDEQ",
    "AugmentedSolution",
    "BarzilaiBorwein",
    "CheckpointError",
    "ConditionalGradient",
    "DataError",
    "DenseClassifier",
    "DenseDecoder",
    "DescentRule",
    "JointIteration",
    "Momentum",
    "MonotoneDEQ",
    "MonotoneLinear",
    "Nested",
    "Progress",
    "Tangents",
    "TrackedDescent",
    "TrackedLBFGS",
    "TrackedNewton",
    "Training",
    "TrainingError",
    "attack_loss",
    "ball",
    "ball_in_box",
    "cross_entropy",
    "decode",
    "equilibrium_map",
    "linear_minimizer",
    "linear_minimizer_in_box",
    "load_images",
    "masked_loss",
    "perturbed_map",
    "pretrained",
    "scores",
    "tangents",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What there is, imported or not."""
    return sorted({*globals(), *__all__})
