"""Solves of states that are spread over eight devices of the host: a line of JSON for
each.

With ``XLA_FLAGS=--xla_force_host_platform_device_count=8`` in the environment.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import fixedpoint as fp
from fixedpoint_jax import MeshAxes

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)

LINE, GRID = ("d",), ("x", "y")
SPECS = [
    (LINE, ("d",), (16, 3)),
    (LINE, (None, "d"), (3, 16)),
    (GRID, ("x", "y"), (8, 4)),
    (GRID, ("x", None, "y"), (4, 3, 2)),
]
SOLVERS = {
    "Picard": fp.Picard(),
    "Anderson": fp.Anderson(memory=4),
    "Broyden": fp.Broyden(memory=5),
    "NewtonKrylov": fp.NewtonKrylov(),
}


def mesh(names: tuple[str, ...], kind: str = "Auto") -> Mesh:
    """All devices in a line or in a grid, with axes of a kind."""
    shape = (4, 2) if len(names) == 2 else (8,)
    types = (getattr(AxisType, kind),) * len(names)
    return jax.make_mesh(shape, names, axis_types=types)


def coupled(z: Any, a: Any, xp: Any = jnp) -> Any:
    """A contraction that sees all entries."""
    return a * xp.cos(z) + 0.1 * z.mean()


def separate(z: Any, a: Any, xp: Any = jnp) -> Any:
    """One that sees no other entry."""
    return a * xp.cos(z)


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    """The factors a."""
    return np.random.default_rng(0).uniform(0.3, 0.9, shape)


def spec_of(array: Any) -> list[Any]:
    """How an array is spread: an entry for each axis."""
    return [*array.sharding.spec, *[None] * (array.ndim - len(array.sharding.spec))]


def count(compiled: Any, operation: str) -> int:
    """How often a compiled program has an operation."""
    return len(
        re.findall(rf"= \S+ {operation}\(|= \(.*\) {operation}\(", compiled.as_text())
    )


def compiled(
    name: str,
    names: Any,
    spec: Any,
    shape: Any,
    batch_ndim: int,
    kind: str = "Auto",
) -> dict[str, Any]:
    """A solve under ``jit``, where the compiler spreads what is computed."""
    place = NamedSharding(mesh(names, kind), PartitionSpec(*spec))
    a, z0 = (
        jax.device_put(array, place) for array in (numbers(shape), np.zeros(shape))
    )

    f = separate if batch_ndim else coupled
    settings = {"solver": SOLVERS[name], "batch_ndim": batch_ndim, "rtol": 1e-10}

    def square(a: Any) -> Any:
        sol = fp.fixed_point(f, z0, (a,), **settings)
        return jnp.sum(sol.value**2), (sol.value, sol.steps, sol.state.contents)

    program = jax.jit(jax.grad(square, has_aux=True)).lower(a).compile()
    slope, (value, steps, memory) = program(a)
    alone = solved_by_numpy(f, shape, **settings)
    histories = [
        x for x in jax.tree.leaves(memory) if getattr(x, "ndim", 0) == len(shape) + 1
    ]
    return {
        "gathers": count(program, "all-gather"),
        "reductions": count(program, "all-reduce"),
        "spec": spec_of(value),
        "slope_spec": spec_of(slope),
        "history_specs": [spec_of(x) for x in histories],
        "error": float(np.abs(np.asarray(value) - alone.value).max()),
        "steps": [np.asarray(steps).tolist(), alone.steps.tolist()],
    }


def solved_by_numpy(f: Any, shape: Any, **settings: Any) -> fp.Solution:
    """The same solve in one process, by another library."""
    f = partial(f, xp=np)
    return fp.fixed_point(f, np.zeros(shape), (numbers(shape),), **settings)


def eager(name: str, names: Any, spec: Any, shape: Any, kind: str) -> dict[str, Any]:
    """A solve outside of ``jit``."""
    place = NamedSharding(mesh(names, kind), PartitionSpec(*spec))
    a, z0 = (
        jax.device_put(array, place) for array in (numbers(shape), np.zeros(shape))
    )
    settings = {"solver": SOLVERS[name], "rtol": 1e-10}
    sol = fp.fixed_point(coupled, z0, (a,), **settings)
    alone = solved_by_numpy(coupled, shape, **settings)
    return {
        "spec": spec_of(sol.value),
        "error": float(np.abs(np.asarray(sol.value) - alone.value).max()),
        "steps": [int(sol.steps), int(alone.steps)],
    }


def manual(name: str, spread: str, *, check: bool) -> dict[str, Any]:
    """A solve inside ``shard_map``, of a state or a batch that is spread along x."""
    batch_ndim = int(spread == "samples")
    shape, axes = (8, 3) if batch_ndim else (16,), MeshAxes(**{spread: "x"})
    spec, scalars = PartitionSpec("x"), PartitionSpec(*("x",) * batch_ndim)
    # A small state that is whole would be differentiated by elimination.
    adjoint = fp.ImplicitAdjoint(solver="anderson")
    settings = {"solver": SOLVERS[name], "adjoint": adjoint, "norm": "leaves"}
    settings["batch_ndim"] = batch_ndim

    def mapped(z: Any, a: Any) -> Any:
        # Devices that evaluate f more often than others would wait for them for ever.
        mean = z.mean(-1, keepdims=True)
        mean = mean if batch_ndim else jax.lax.pmean(mean, "x")
        beside = 0.0 * jax.lax.psum(jnp.sum(a), "x")
        return a * jnp.cos(z) + 0.1 * mean + beside

    def run(z: Any, a: Any) -> Any:
        sol = fp.fixed_point(mapped, z, (a,), communicator=axes, **settings)
        return sol.value, sol.steps

    parts = jax.shard_map(
        run,
        mesh=mesh(GRID),
        in_specs=(spec, spec),
        out_specs=(spec, scalars),
        check_vma=check,
    )

    def square(a: Any) -> Any:
        value, steps = parts(jnp.zeros(shape), a)
        return jnp.sum(value**2), (value, steps)

    slope, (value, steps) = jax.jit(jax.grad(square, has_aux=True))(numbers(shape))
    known, known_slope = solved_by_torch(shape, **settings)
    return {
        "error": float(np.abs(np.asarray(value) - known.value.numpy()).max()),
        "slope_error": float(np.abs(np.asarray(slope) - known_slope.numpy()).max()),
        "steps": [int(np.abs(np.asarray(steps) - known.steps.numpy()).max()), 0],
    }


def solved_by_torch(shape: Any, **settings: Any) -> tuple[fp.Solution, torch.Tensor]:
    """The same solve in one process, by another library, and its gradient."""
    a = torch.tensor(numbers(shape), requires_grad=True)

    def whole(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return a * torch.cos(z) + 0.1 * z.mean(-1, keepdim=True)

    z0 = torch.zeros(shape, dtype=torch.float64)
    solution = fp.fixed_point(whole, z0, (a,), **settings)
    (slope,) = torch.autograd.grad((solution.value**2).sum(), a)
    return replace(solution, value=solution.value.detach()), slope


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """All of them, each with a name."""
    for place in SPECS:
        yield (
            f"jit-Anderson-{'-'.join(map(str, place[1]))}",
            compiled("Anderson", *place, 0),
        )
    for name in ("Picard", "Broyden", "NewtonKrylov"):
        yield f"jit-{name}", compiled(name, *SPECS[3], 0)
    yield "jit-Anderson-batch", compiled("Anderson", *SPECS[3], 1)
    for place in SPECS[0], SPECS[3]:
        case = f"explicit-Anderson-{'-'.join(map(str, place[1]))}"
        yield case, compiled("Anderson", *place, 0, "Explicit")
    yield "explicit-Broyden-batch", compiled("Broyden", *SPECS[3], 1, "Explicit")
    for name in ("Anderson", "NewtonKrylov"):
        yield f"eager-{name}", eager(name, *SPECS[2], "Auto")
    yield "eager-explicit", eager("Anderson", *SPECS[2], "Explicit")
    for name in ("Picard", "Broyden", "NewtonKrylov"):
        yield f"map-{name}-entries", manual(name, "entries", check=True)
    yield "map-Anderson-entries-unchecked", manual("Anderson", "entries", check=False)
    yield "map-Anderson-samples", manual("Anderson", "samples", check=False)


if __name__ == "__main__":
    for name, result in cases():
        print(json.dumps({"case": name, **result}), flush=True)
