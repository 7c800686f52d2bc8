"""One test, every array library."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import settings

import fixedpoint as fp

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Torch's own, at its first dual number
    import torch._decomp.decompositions_for_jvp

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)
settings.register_profile("local", deadline=None, max_examples=20)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.load_profile("ci" if "CI" in os.environ else "local")


@dataclass(frozen=True)
class Case:
    """An array library, and how to solve on it."""

    name: str
    xp: ModuleType
    asarray: Callable[..., Any]

    def to_numpy(self, array: Any) -> np.ndarray:
        return array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)

    def tree(self, container: Any) -> Any:
        """The NumPy arrays of a container as arrays of this library."""
        return jax.tree.map(self.asarray, container)

    def solve(self, f: Any, z0: Any, args: tuple = (), **settings: Any) -> fp.Solution:
        """Solve on NumPy input, under jit if this case says so; failures are returned."""
        settings = {"on_failure": "return"} | settings

        def call(z0: Any, args: tuple) -> fp.Solution:
            return fp.fixed_point(f, z0, args, **settings)

        run = jax.jit(call) if self.name == "jax-jit" else call
        with np.errstate(all="ignore"):
            return run(self.tree(z0), self.tree(args))


CASES = {
    "numpy": Case("numpy", np, np.asarray),
    "strict": Case("strict", array_api_strict, array_api_strict.asarray),
    "torch": Case("torch", torch, torch.as_tensor),
    "jax": Case("jax", jnp, jnp.asarray),
    "jax-jit": Case("jax-jit", jnp, jnp.asarray),
}


@pytest.fixture(scope="session", params=[name for name in CASES if name != "jax-jit"])
def xp_case(request: pytest.FixtureRequest) -> Case:
    """Each eager array library in turn."""
    return CASES[request.param]


@pytest.fixture(scope="session", params=list(CASES))
def jit_case(request: pytest.FixtureRequest) -> Case:
    """Each eager array library in turn, then JAX under jit."""
    return CASES[request.param]


@pytest.fixture(scope="session")
def numpy_case() -> Case:
    """NumPy, to compare with."""
    return CASES["numpy"]


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls = 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


@pytest.fixture(scope="session")
def counted() -> type[Counted]:
    """A wrapper that counts calls."""
    return Counted


@pytest.fixture(scope="session")
def contraction() -> Callable[..., np.ndarray]:
    """A random matrix of a given 2-norm."""

    def build(n: int, norm: float, seed: int = 0) -> np.ndarray:
        matrix = np.random.default_rng(seed).standard_normal((n, n))
        return norm * matrix / np.linalg.norm(matrix, 2)

    return build
