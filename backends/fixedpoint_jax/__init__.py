"""The JAX adapter: JAX arrays in :func:`fixedpoint.fixed_point`, eager, under ``jit`` and ``vmap``.

Nothing here needs to be called: the core finds the adapter when it is given JAX arrays.
"""

from fixedpoint_jax.backend import JaxBackend

__all__ = ["JaxBackend"]
