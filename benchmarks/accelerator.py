"""Solves on a GPU beside those of peers: ``make gpu``, or ``python
benchmarks/accelerator.py``.

Layers of PyTorch: the multiscale cell at growing sides and batches, and a dense one, in
float32, bfloat16 and under autocast, forward alone and with a gradient; torchdeq's
solvers with the same cell, start, tolerance and number of states kept. Then a compiled
dense layer on JAX beside jaxopt, and Newton-Krylov on a grid of 10⁸ unknowns. All run
in turn in one process. The residual of each answer is evaluated afterwards, in the
arithmetic of the cell. Overhead is time divided by evaluations, those of the backward
pass left out, times the time of one; and a synchronization is a wait of the host for
the device.

Sections stop when their share of ``--seconds`` is used up. The table goes to the
terminal and, as JSON, to ``benchmarks/accelerator.json``. ``--device cpu`` runs small
cases, to try the script out.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import fixedpoint as fp
import fixedpoint_torch as ft

ROUNDS, TOLERANCE, MEMORY, MAX_STEPS = 5, 1e-3, 5, 60


@dataclass(frozen=True)
class Row:
    """A line: milliseconds of a solve, and of one with a gradient; of one evaluation;
    what came.
    """

    case: str
    method: str
    forward: float
    gradient: float
    evaluation: float
    evaluations: int
    overhead: float
    synchronizations: int
    residual: float
    mebibytes: float


@dataclass(frozen=True)
class Case:
    """A cell ``f(z, x)``, its input, start and surroundings."""

    name: str
    cell: torch.nn.Module
    x: torch.Tensor
    z0: Any
    autocast: bool = False

    def surroundings(self) -> AbstractContextManager[Any]:
        """Autocast, or nothing."""
        device = self.x.device.type
        return (
            torch.autocast(device, torch.bfloat16) if self.autocast else nullcontext()
        )


def multiscale(
    device: str, side: int, batch: int, dtype: torch.dtype, autocast: bool
) -> Case:
    """A cell of three branches of 64, 32 and 32 channels, driven by images."""
    from fixedpoint_models.networks import ImageInjection, MDEQCell

    torch.manual_seed(0)
    channels = (64, 32, 32)
    cell = MDEQCell(
        channels, side=side, injection=ImageInjection(3, channels), weight_norm=False
    )
    cell = cell.to(device, dtype)
    x = torch.rand(batch, 3, side, side, device=device, dtype=dtype)
    name = f"multiscale {side}×{side}, batch {batch}, {_arithmetic(dtype, autocast)}"
    return Case(name, cell, x, cell.zero_state(batch), autocast)


class Dense(torch.nn.Module):
    """The map z ↦ tanh(zW + x), W symmetric, of spectral radius 0.9."""

    def __init__(self, width: int) -> None:
        super().__init__()
        square = torch.randn(width, width, dtype=torch.float64)
        symmetric = square + square.T
        radius = torch.linalg.eigvalsh(symmetric).abs().max()
        self.weight = torch.nn.Parameter((0.9 * symmetric / radius).float())

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The next state."""
        return torch.tanh(z @ self.weight + x)


def dense(
    device: str, width: int, batch: int, dtype: torch.dtype, autocast: bool
) -> Case:
    """The dense cell."""
    torch.manual_seed(0)
    cell = Dense(width).to(device, dtype)
    x = torch.randn(batch, width, device=device, dtype=dtype)
    name = f"dense {batch}×{width}, {_arithmetic(dtype, autocast)}"
    return Case(name, cell, x, torch.zeros_like(x), autocast)


def _arithmetic(dtype: torch.dtype, autocast: bool) -> str:
    return "autocast" if autocast else str(dtype).removeprefix("torch.")


def layer_cases(device: str) -> Iterator[Callable[[], Case]]:
    """The cases, each made when its turn comes."""
    single, half = torch.float32, torch.bfloat16
    if device == "cpu":
        yield lambda: multiscale(device, 16, 2, single, False)
        yield lambda: dense(device, 64, 8, half, False)
        return
    for batch, width in ((64, 256), (4096, 1024)):
        for dtype, autocast in ((single, False), (half, False), (single, True)):
            yield lambda b=batch, w=width, t=dtype, a=autocast: dense(
                device, w, b, t, a
            )
    for side, batch in ((64, 8), (64, 128), (128, 32), (256, 8)):
        for dtype, autocast in ((single, False), (half, False), (single, True)):
            yield lambda s=side, b=batch, t=dtype, a=autocast: multiscale(
                device, s, b, t, a
            )


class Counted(torch.nn.Module):
    """A cell that counts its calls."""

    def __init__(self, cell: torch.nn.Module) -> None:
        super().__init__()
        self.cell, self.calls = cell, 0

    def forward(self, z: Any, x: torch.Tensor) -> Any:
        """The next state."""
        self.calls += 1
        return self.cell(z, x)


def contenders(case: Case) -> dict[str, Callable[[Counted], Any]]:
    """The layers, each a function of the cell to the solution."""
    from torchdeq.core import get_deq

    def ours(solver: fp.solvers.Solver | None) -> Callable[[Counted], Any]:
        def solve(cell: Counted) -> Any:
            layer = ft.DEQ(
                cell,
                solver=solver,
                rtol=_tolerance(case),
                test="residual",
                max_steps=MAX_STEPS,
                on_failure="return",
                start=lambda _: case.z0,
            )
            return layer(case.x)

        return solve

    def theirs(solver: str) -> Callable[[Counted], Any]:
        peer = get_deq(
            f_solver=solver,
            f_max_iter=MAX_STEPS,
            f_tol=_tolerance(case),
            f_stop_mode="rel",
            b_solver=solver,
            b_max_iter=MAX_STEPS,
            b_tol=_tolerance(case),
            b_stop_mode="rel",
            ift=True,
        )

        def solve(cell: Counted) -> Any:
            if isinstance(case.z0, tuple):  # torchdeq's cells take and return lists
                end = peer(lambda *z: cell(z, case.x), case.z0)[0][-1]
                return tuple(end)
            return peer(lambda z: cell(z, case.x), case.z0)[0][-1]

        return solve

    return {
        "fixedpoint, default": ours(None),
        f"fixedpoint Anderson({MEMORY})": ours(fp.Anderson(memory=MEMORY)),
        f"torchdeq anderson({MEMORY + 1})": theirs("anderson"),
        "torchdeq plain iteration": theirs("fixed_point_iter"),
    }


def _tolerance(case: Case) -> float:
    """What the arithmetic can reach."""
    rounding = torch.finfo(torch.bfloat16 if case.autocast else case.x.dtype).eps
    return max(TOLERANCE, 4 * rounding)


def measure_layer(case: Case) -> list[Row]:
    """A line for each layer on a case."""
    cell, rows = Counted(case.cell), []
    single = _median(lambda: _forward(case, lambda cell: cell(case.z0, case.x), cell))
    for name, solve in contenders(case).items():
        try:
            rows.append(_layer_row(case, name, solve, cell, single))
        except (RuntimeError, fp.ConvergenceError) as error:
            print(
                f"{case.name}: {name}: {type(error).__name__}: {str(error)[:200]}",
                flush=True,
            )
    return rows


def _layer_row(
    case: Case, name: str, solve: Callable[[Counted], Any], cell: Counted, single: float
) -> Row:
    cell.calls = 0
    end = _forward(case, solve, cell)  # warms up, too
    calls = cell.calls
    with _waits() as waits:
        _forward(case, solve, cell)
    forward = _median(lambda: _forward(case, solve, cell))
    if case.x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    gradient = _median(lambda: _gradient(case, solve, cell))
    peak = torch.cuda.max_memory_allocated() / 2**20 if case.x.is_cuda else 0.0
    overhead = forward / (calls * single)
    residual = _residual(case, end)
    ms = 1e3
    return Row(
        case=case.name,
        method=name,
        forward=ms * forward,
        gradient=ms * gradient,
        evaluation=ms * single,
        evaluations=calls,
        overhead=overhead,
        synchronizations=waits[0],
        residual=residual,
        mebibytes=peak,
    )


def _forward(case: Case, solve: Callable[[Counted], Any], cell: Counted) -> Any:
    with torch.no_grad(), case.surroundings():
        return solve(cell)


def _gradient(case: Case, solve: Callable[[Counted], Any], cell: Counted) -> None:
    cell.zero_grad()
    with case.surroundings():
        end = solve(cell)
    _leaves(end)[0].float().square().mean().backward()


def _leaves(end: Any) -> tuple[torch.Tensor, ...]:
    return tuple(end) if isinstance(end, (tuple, list)) else (end,)


def _residual(case: Case, end: Any) -> float:
    """The largest relative residual of a sample."""
    image = _forward(case, lambda cell: cell(end, case.x), Counted(case.cell))
    pairs = zip(_leaves(image), _leaves(end), strict=True)
    squares = [
        (
            (a.float() - b.float()).flatten(1).square().sum(1),
            a.float().flatten(1).square().sum(1),
        )
        for a, b in pairs
    ]
    wrong, size = (sum(part) for part in zip(*squares, strict=True))
    return float((wrong / size).sqrt().max())


@contextmanager
def _waits() -> Iterator[list[int]]:
    """How often the host waits for the device."""
    count = [0]
    if not torch.cuda.is_available():
        yield count
        return
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield count
    torch.cuda.set_sync_debug_mode("default")
    count[0] = sum("synchroniz" in str(w.message) for w in caught)


def _median(work: Callable[[], Any]) -> float:
    """The median seconds of a few runs, after one that does not count."""
    times = []
    for _ in range(ROUNDS + 1):
        _synchronize()
        begin = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class CompiledRow:
    """A line on JAX: milliseconds of a solve, and with a gradient, and of compiling
    it.
    """

    case: str
    method: str
    forward: float
    gradient: float
    compilation: float
    evaluations: int
    residual: float


def measure_jax() -> list[CompiledRow]:
    """The dense cell on JAX, compiled."""
    import jax
    import jax.numpy as jnp
    import jaxopt
    import numpy as np

    rows, width = [], 1024 if jax.default_backend() == "gpu" else 64
    square = np.random.default_rng(0).standard_normal((width, width))
    W = 0.9 * (square + square.T) / np.abs(np.linalg.eigvalsh(square + square.T)).max()
    W, x = jnp.asarray(W, jnp.float32), jnp.asarray(square[:, :width], jnp.float32)
    z0 = jnp.zeros_like(x)

    def f(z: Any, W: Any, x: Any) -> Any:
        return jnp.tanh(z @ W + x)

    def ours(solver: Any) -> Callable[..., Any]:
        def solve(W: Any, x: Any) -> Any:
            sol = fp.fixed_point(
                f,
                z0,
                (W, x),
                solver=solver,
                batch_ndim=1,
                rtol=TOLERANCE,
                test="residual",
                on_failure="return",
            )
            return sol.value, sol.work.f

        return solve

    tol = TOLERANCE * float(jnp.linalg.norm(x))
    peer = jaxopt.AndersonAcceleration(
        f, history_size=MEMORY, tol=tol, ridge=1e-5, maxiter=MAX_STEPS
    )

    def theirs(W: Any, x: Any) -> Any:
        value, state = peer.run(z0, W, x)
        return value, state.iter_num + 1

    methods = {
        "fixedpoint, default": ours(None),
        f"fixedpoint Anderson({MEMORY})": ours(fp.Anderson(memory=MEMORY)),
        f"jaxopt AndersonAcceleration({MEMORY}), whole batch": theirs,
    }
    for name, solve in methods.items():
        forward = jax.jit(solve)
        gradient = jax.jit(
            jax.grad(lambda W, x, solve=solve: (solve(W, x)[0] ** 2).mean())
        )
        begin = time.perf_counter()
        value, count = jax.block_until_ready(forward(W, x))
        jax.block_until_ready(gradient(W, x))
        compilation = time.perf_counter() - begin
        image = f(value, W, x)
        residual = jnp.linalg.norm(image - value, axis=1) / jnp.linalg.norm(
            image, axis=1
        )
        seconds = [
            _median(lambda run=run: jax.block_until_ready(run(W, x)))
            for run in (forward, gradient)
        ]
        rows.append(
            CompiledRow(
                f"dense {width}×{width}, float32",
                name,
                1e3 * seconds[0],
                1e3 * seconds[1],
                1e3 * compilation,
                int(count),
                float(residual.max()),
            )
        )
    return rows


@dataclass(frozen=True)
class LargeRow:
    """A line on a large system."""

    case: str
    method: str
    unknowns: int
    seconds: float
    evaluations: int
    products: int
    residual: float
    gibibytes: float


def measure_large(device: str) -> list[LargeRow]:
    """A time step of the Allen-Cahn equation, implicit: u − τΔu + τ(u³ − u) = b,
    periodic.
    """
    side = 10_000 if device == "cuda" else 100
    torch.manual_seed(0)
    b = torch.rand(side, side, device=device) - 0.5
    diffusion, step = 10.0, 0.5  # τ/h², τ

    def F(u: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        laplacian = -4.0 * u
        for axis in (0, 1):
            for shift in (1, -1):
                laplacian = laplacian + torch.roll(u, shift, axis)
        return u - diffusion * laplacian + step * (u**3 - u) - b

    rows = []
    solvers = {
        "NewtonKrylov(GMRES(20))": fp.NewtonKrylov(linear=fp.GMRES(restart=20)),
        "NewtonKrylov(ConjugateGradient())": fp.NewtonKrylov(
            linear=fp.ConjugateGradient()
        ),
    }
    for name, solver in solvers.items():
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _synchronize()
        begin = time.perf_counter()
        with torch.no_grad():
            settings = {"solver": solver, "test": "residual", "on_failure": "return"}
            sol = fp.root(F, torch.zeros_like(b), (b,), **settings)
            _synchronize()
            seconds = time.perf_counter() - begin
            residual = float(torch.linalg.norm(F(sol.value, b)) / torch.linalg.norm(b))
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        rows.append(
            LargeRow(
                "Allen-Cahn step, float32",
                name,
                side * side,
                seconds,
                int(sol.work.f),
                int(sol.work.jvp),
                residual,
                peak,
            )
        )
        del sol
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def _print(row: Any) -> None:
    cells = (
        f"{v:.4g}" if isinstance(v, float) else str(v) for v in asdict(row).values()
    )
    print(" | ".join(cells), flush=True)


def _section(
    content: dict[str, Any], name: str, rows: Iterator[Any], deadline: float
) -> None:
    content[name] = []
    for row in rows:
        _print(row)
        content[name].append(asdict(row))
        if time.monotonic() > deadline:
            print(f"{name}: out of time", flush=True)
            break


def main() -> None:
    """Run the sections, print the lines and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).with_suffix(".json")
    )
    options = parser.parse_args()
    begin = time.monotonic()
    device, seconds = options.device, options.seconds
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    content: dict[str, Any] = {
        "machine": f"{name}, Python {platform.python_version()}, "
        f"Torch {torch.__version__}",
    }

    def layers() -> Iterator[Row]:
        for make in layer_cases(device):
            yield from measure_layer(make())
            gc.collect()

    _section(content, "large", iter(measure_large(device)), begin + 0.25 * seconds)
    _section(content, "jax", iter(measure_jax()), begin + 0.4 * seconds)
    _section(content, "layers", layers(), begin + seconds)
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
