"""The settings of meta-learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fixedpoint_models.config import setting


@dataclass(frozen=True, kw_only=True)
class MetaSettings:
    """Settings of :class:`Meta`.

    Parameters
    ----------
    omniglot : tuple of str
        Folders and archives of Omniglot, see :func:`fixedpoint_models.data.omniglot`;
        without any, glyphs are rendered.
    held_out : tuple of str
        Alphabets to test on; without any, a fifth of all characters.
    turns : bool
        Whether characters to train on, turned by 90, 180 and 270 degrees, make further
        ones.
    runs : str, optional
        The folder or archive of the official one-shot runs, to evaluate on as well.
    side : int
        Of the images, a multiple of four.
    ways, shots, queries : int
        Classes of a task, images of each in the support and in the query.
    tasks, batches : int
        Tasks of a batch, and batches of an epoch.
    channels, features, context : int
        Of the network.
    penalty : float
        λ of the inner loss.
    method : {"recipe", "descent", "quasi-newton", "nested"}
        How tasks are adapted: by the published recipe, Anderson's method on the joint
        map; by :class:`TrackedDescent` with the steps of Barzilai and Borwein; by
        :class:`TrackedLBFGS`; or, to compare, by :class:`Nested` with Nesterov's
        momentum, all of the `steps`.
    steps : int
        Of adaptation, at most.
    step_size : float
        The step α, of descent the first one.
    memory : int
        Of Anderson's method.
    momentum : float
        Of the nested method.
    sweeps : int
        Of descent.
    rtol : float
        Tolerance of all solves.
    jacobian : float
        The weight of the penalty on the Jacobian.
    test_tasks, test_queries : int
        Tasks that are evaluated, and query images of each of their classes.
    test_ways : int, optional
        Classes of a task that is evaluated, by default as in training.
    test_warp : bool
        Whether the images of tasks that are evaluated are warped, as in training.
    seed : int
        Of everything random.
    """

    omniglot: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    turns: bool = False
    runs: str | None = None
    side: int = setting(16, least=12)
    ways: int = setting(5, least=2)
    shots: int = setting(1, least=1)
    queries: int = setting(5, least=1)
    tasks: int = setting(16, least=1)
    batches: int = setting(20, least=1)
    channels: int = setting(32, least=1)
    features: int = setting(32, least=1)
    context: int = setting(8, least=1)
    penalty: float = setting(0.01, above=0.0)
    method: Literal["recipe", "descent", "quasi-newton", "nested"] = "recipe"
    steps: int = setting(40, least=1)
    step_size: float = setting(1.0, above=0.0)
    memory: int = setting(5, least=1)
    momentum: float = setting(0.5, least=0.0, below=1.0)
    sweeps: int = setting(2, least=1)
    rtol: float = setting(1e-2, above=0.0)
    jacobian: float = setting(0.1, least=0.0)
    test_tasks: int = setting(200, least=1)
    test_queries: int = setting(5, least=1)
    test_ways: int | None = setting(None, least=2)
    test_warp: bool = True
    seed: int = setting(0, least=0)
