"""Weights that come along, by name; ``benchmarks/pretrain.py`` trained them."""

from __future__ import annotations

from importlib.resources import as_file, files

import numpy as np
import torch

from fixedpoint_models.decoder import Params

FOLDER = files("fixedpoint_models") / "weights"


def pretrained(name: str) -> Params:
    """The parameters of a small model that was trained.

    Parameters
    ----------
    name : str
        "digits-decoder", of 8×8 digits (scikit-learn's), for
        :func:`~fixedpoint_models.equilibrium_map`,
        :func:`~fixedpoint_models.decode` and :func:`~fixedpoint_models.masked_loss`; or
        "glyphs-decoder", for the same, of characters of 16×16 pixels from Matplotlib's
        fonts. Both have states of 128 and codes of 16 entries.

    Returns
    -------
    dict
        Tensors without derivatives, in double precision, and numbers.

    Raises
    ------
    ValueError
        If there are no weights of this name.

    Notes
    -----
    Of the digits, the first 48 in the order that NumPy's generator with the seed 0
    shuffles them into were held out, as ``fixedpoint_models.demo.split`` does; of
    the glyphs, all characters of the ``held_out`` classes of
    :func:`fixedpoint_models.data.split_classes`.

    Examples
    --------
    >>> import torch, fixedpoint as fp
    >>> from fixedpoint_models import decode, equilibrium_map, pretrained
    >>> params = pretrained("digits-decoder")
    >>> x, z0 = torch.zeros(1, 16).double(), torch.zeros(1, 128).double()
    >>> sol = fp.fixed_point(equilibrium_map, z0, (x, params), batch_ndim=1)
    >>> decode(sol.value, params).shape
    torch.Size([1, 64])
    """
    known = sorted(
        file.name.removesuffix(".npz")
        for file in FOLDER.iterdir()
        if file.name.endswith(".npz")
    )
    if name not in known:
        raise ValueError(f"name: expected one of {', '.join(known)}, got {name!r}")
    with (
        as_file(FOLDER / f"{name}.npz") as path,
        np.load(path, allow_pickle=False) as stored,
    ):
        return {key: _restored(stored[key]) for key in stored.files}


def _restored(array: np.ndarray) -> torch.Tensor | float:
    """A tensor, or the number that an array without axes is."""
    return torch.as_tensor(array.astype(np.float64)) if array.ndim else float(array)
