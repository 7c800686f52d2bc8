"""The PyTorch adapter: Torch tensors in :func:`fixedpoint.fixed_point`, with
derivatives.

Nothing here needs to be called: the core finds the adapter when it is given tensors.
"""

from fixedpoint_torch.backend import TorchBackend
from fixedpoint_torch.layer import DEQ, Statistics
from fixedpoint_torch.maps import HiddenTensorError
from fixedpoint_torch.processes import Processes
from fixedpoint_torch.regularization import (
    VariationalDropout,
    correction_loss,
    jacobian_penalty,
)

__all__ = [
    "DEQ",
    "HiddenTensorError",
    "Processes",
    "Statistics",
    "TorchBackend",
    "VariationalDropout",
    "correction_loss",
    "jacobian_penalty",
]
