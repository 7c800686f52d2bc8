"""Compiled steps for ``fixedpoint``, on arrays in the CPU's memory.

Nothing of it is called by name: where the package is installed, :mod:`fixedpoint` takes
the steps that it offers.
"""

from fixedpoint_native.anderson import anderson_kernel
from fixedpoint_native.broyden import broyden_kernel
from fixedpoint_native.picard import picard_kernel

__all__ = ["anderson_kernel", "broyden_kernel", "picard_kernel"]
