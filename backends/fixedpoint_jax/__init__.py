"""The JAX adapter: JAX arrays in :func:`fixedpoint.fixed_point`, eager, under ``jit``
and ``vmap``.

Nothing here needs to be called: the core finds the adapter when it is given JAX arrays.
"""

from fixedpoint_jax.axes import MeshAxes
from fixedpoint_jax.backend import JaxBackend
from fixedpoint_jax.layer import DEQ
from fixedpoint_jax.regularization import correction_loss, jacobian_penalty

__all__ = ["DEQ", "JaxBackend", "MeshAxes", "correction_loss", "jacobian_penalty"]
