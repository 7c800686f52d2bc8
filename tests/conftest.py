"""One test, every array library."""

import gc
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import version
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
    # Torch's own, at its first dual number.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp

jax.config.update("jax_enable_x64", True)
# A test's program runs for milliseconds, and would be optimized for seconds. A release
# that does not know a flag aborts on it.
jax.config.update("jax_disable_most_optimizations", True)
if version("jaxlib").startswith("0.10."):
    passes = (  # which cost a third of the time of compiling, and change no result
        "simplify-while-loops",
        "while-loop-invariant-code-motion",
        "while-loop-constant-sinking",
        "while-loop-trip-count-annotator",
        "simplify-conditional",
        "reshape-mover",
        "tree_reduction_rewriter",
        "cse",
    )
    flags = (
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        f"--xla_disable_hlo_passes={','.join(passes)}",
    )
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
if version("array-api-strict").startswith("2.6."):
    # A quarter of its time went to looking up dtypes in tuples.
    kinds = array_api_strict._dtypes._dtype_categories
    kinds.update({kind: frozenset(dtypes) for kind, dtypes in kinds.items()})
    array_api_strict._array_object._all_dtypes = kinds["all"]
torch.set_num_threads(1)
# JAX keeps what it traced, in millions of objects, among which garbage is rare.
gc.set_threshold(50_000, 20, 100)
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
        return (
            array.detach().numpy()
            if isinstance(array, torch.Tensor)
            else np.asarray(array)
        )

    def tree(self, container: Any) -> Any:
        """The NumPy arrays of a container as arrays of this library."""
        return jax.tree.map(self.asarray, container)

    def solve(
        self,
        f: Any,
        z0: Any,
        args: tuple = (),
        by: Any = fp.fixed_point,
        **settings: Any,
    ) -> fp.Solution:
        """Solve on NumPy input, under jit if this case says so; failures are
        returned.
        """
        settings = {"on_failure": "return"} | settings
        if self.name == "jax-jit":
            run = compiled(by, f, z0, settings)
        else:
            run = partial(by, f, **settings)
        with np.errstate(all="ignore"):
            return run(self.tree(z0), args=self.tree(args))

    def bracketed(
        self, F: Any, lower: Any, upper: Any, args: Any = (), **settings: Any
    ) -> fp.Solution:
        """A root in a bracket, given as :meth:`solve` is."""
        settings = {"on_failure": "return"} | settings

        def call(lower: Any, upper: Any, args: Any) -> fp.Solution:
            return fp.bracketed_root(F, lower, upper, args, **settings)

        run = jax.jit(call) if self.name == "jax-jit" else call
        with np.errstate(all="ignore"):
            return run(self.tree(lower), self.tree(upper), self.tree(args))

    def statuses(self, sol: fp.Solution) -> list[str]:
        """The names of the statuses, in one list."""
        found = self.to_numpy(sol.status).ravel()
        return [fp.Status(int(status)).name for status in found]

    def iterates(self, f: Any, z0: Any, args: tuple = (), **settings: Any) -> list[Any]:
        """All iterates but the start, in NumPy, of a solve that only `max_steps`
        ends.
        """
        values = []
        settings = {"rtol": 0.0, "atol": 0.0, "max_steps": 10} | settings

        def note(step: int, value: Any, norm: Any) -> None:
            values.append(jax.tree.map(lambda leaf: self.to_numpy(leaf).copy(), value))

        self.solve(f, z0, args, callback=note, **settings)
        return values

    def exact(self, layer: "Layer") -> dict[str, Any]:
        """What a call needs for exact products, where the library does not
        differentiate.
        """
        return {"jvp": layer.jvp} if self.name in ("numpy", "strict") else {}


def compiled(by: Any, f: Any, z0: Any, settings: dict[str, Any]) -> Any:
    """A call of JAX's under jit: another one like it finds the same program.

    Where no solver is named, the first of the default sequence stands for all, of which
    each is compiled.
    """
    if by in (fp.fixed_point, fp.root) and "solver" not in settings:
        batch_ndim = settings.get("batch_ndim", 0)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(z0)]
        size = sum(math.prod(leaf.shape[batch_ndim:]) for leaf in leaves)
        samples = math.prod(leaves[0].shape[:batch_ndim])
        kind = size, by is fp.root, "jacobian" in settings, samples
        default = fp.default_solver(*kind)
        settings = settings | {"solver": default.sequence[0]}
    try:
        return _compiled(by, f, tuple(sorted(settings.items())))
    except TypeError:  # something that has no hash
        return jax.jit(partial(by, f, **settings))


@lru_cache(maxsize=8, typed=True)
def _compiled(by: Any, f: Any, settings: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(by, f, **dict(settings)))


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


@pytest.fixture(scope="session", params=["numpy", "strict", "torch"])
def eager_case(request: pytest.FixtureRequest) -> Case:
    """Each eager array library but JAX, which compiles every operation for every
    shape.
    """
    return CASES[request.param]


@pytest.fixture(scope="session", params=list(CASES))
def jit_case(request: pytest.FixtureRequest) -> Case:
    """Each eager array library in turn, then JAX under jit."""
    return CASES[request.param]


@pytest.fixture(scope="session", params=[name for name in CASES if name != "jax"])
def compiled_case(request: pytest.FixtureRequest) -> Case:
    """Each array library, JAX under jit alone: for what its eager arrays do no
    otherwise.
    """
    return CASES[request.param]


@pytest.fixture(scope="session")
def numpy_case() -> Case:
    """NumPy, to compare with."""
    return CASES["numpy"]


# Every solver, and its variants that take other paths through the code.
SOLVERS = {
    "picard": fp.Picard(damping=0.9),
    "anderson": fp.Anderson(memory=3),
    "anderson-1": fp.Anderson(memory=2, type=1, delay=1, damping=0.7),
    "broyden": fp.Broyden(memory=5),
    "broyden-bad": fp.Broyden(update="bad", line_search=True),
    "squarem": fp.SQUAREM(),
    "newton": fp.Newton(),
    "newton-bounded": fp.Newton(line_search=False, step_bound=0.5),
    "levenberg": fp.LevenbergMarquardt(),
    "krylov": fp.NewtonKrylov(),
    "krylov-bicgstab": fp.NewtonKrylov(
        linear=fp.BiCGStab(), line_search=False, step_bound=1.0
    ),
    "krylov-cg": fp.NewtonKrylov(linear=fp.ConjugateGradient()),
    "pseudo": fp.PseudoTransient(),
    "fallback": fp.Fallback([fp.Picard(damping=0.05), fp.Newton()]),
}


@pytest.fixture(scope="session", params=list(SOLVERS))
def solver(request: pytest.FixtureRequest) -> fp.solvers.Solver:
    """Each solver in turn."""
    return SOLVERS[request.param]


@pytest.fixture(
    scope="session",
    params=[
        fp.Picard(),
        fp.Anderson(memory=4),
        fp.Broyden(),
        fp.SQUAREM(),
        fp.Newton(),
        fp.NewtonKrylov(),
        fp.LevenbergMarquardt(),
        fp.PseudoTransient(),
    ],
    ids=lambda solver: solver.name,
)
def each_solver(request: pytest.FixtureRequest) -> fp.solvers.Solver:
    """Each solver in turn, with hardly a setting."""
    return request.param


@dataclass(frozen=True)
class Layer:
    """The map z ↦ b + Aᵀ tanh(A z), or z less that, whose root is the fixed point.

    Its derivative is symmetric, and that of the residual definite if ‖A‖ < 1, so that
    every solver applies. All sums are taken in one order, whatever else is in the
    batch.
    """

    xp: ModuleType
    is_root: bool = False

    def __call__(self, z: Any, A: Any, b: Any) -> Any:
        """The image of z, or the residual."""
        image = b + self._transposed_times(A, self.xp.tanh(self._times(A, z)))
        return z - image if self.is_root else image

    def jvp(self, z: Any, v: Any, A: Any, b: Any) -> Any:
        """The product of the derivative with v."""
        slope = 1.0 - self.xp.tanh(self._times(A, z)) ** 2
        product = self._transposed_times(A, slope * self._times(A, v))
        return v - product if self.is_root else product

    def _times(self, A: Any, z: Any) -> Any:
        return self.xp.sum(A * z[..., None, :], axis=-1)

    def _transposed_times(self, A: Any, u: Any) -> Any:
        return self.xp.sum(A * u[..., :, None], axis=-2)


@pytest.fixture(scope="session")
def layer() -> type[Layer]:
    """A problem that every solver solves."""
    return Layer


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


@pytest.fixture
def young_heap() -> Iterator[None]:
    """A collection of garbage does not look through what other tests have left."""
    gc.freeze()
    yield
    gc.unfreeze()


def calls_of(call):
    """Calls of functions, Python's and compiled ones, that a call makes."""
    count = [0]

    def noted(frame, event, argument):
        count[0] += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(noted)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count[0]


@pytest.fixture
def python_calls():
    """What counts the calls of functions that a call makes."""
    return calls_of
