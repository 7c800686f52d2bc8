"""The PyTorch adapter: Torch tensors in :func:`fixedpoint.fixed_point`, with derivatives.

Nothing here needs to be called: the core finds the adapter when it is given tensors.
"""

from fixedpoint_torch.backend import TorchBackend
from fixedpoint_torch.functions import BackwardReport
from fixedpoint_torch.maps import HiddenTensorError

__all__ = ["BackwardReport", "HiddenTensorError", "TorchBackend"]
