"""The Dask adapter: ``dask.array`` in :func:`fixedpoint.fixed_point`.

Nothing here needs to be called: the core finds the adapter when it is given Dask's
arrays.
"""

from fixedpoint_dask.backend import DaskBackend

__all__ = ["DaskBackend"]
