"""Overhead of the solvers beside their peers: ``make bench``.

All run interleaved in one process on one thread, to the same tolerance, and the residual of each
answer is evaluated afterwards. Overhead is time / (evaluations × time of one evaluation of f).
The table goes to the terminal and, as JSON, to ``benchmarks/results.json``.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

ROUNDS = 60


@dataclass(frozen=True)
class Contender:
    """A method on a problem: ``solve()`` returns the value and the evaluations of f it took."""

    name: str
    solve: Callable[[], tuple[Any, int]]


@dataclass(frozen=True)
class Case:
    """A problem: ``evaluate()`` runs f once, ``residual(value)`` is the largest relative one."""

    name: str
    evaluate: Callable[[], Any]
    residual: Callable[[Any], float]
    contenders: list[Contender]


@dataclass(frozen=True)
class Row:
    """A line of the table: times in microseconds, `ratio` of time to that of the first method."""

    case: str
    method: str
    microseconds: float
    evaluations: int
    per_evaluation: float
    overhead: float
    residual: float
    ratio: float


def measure(case: Case) -> list[Row]:
    """Time the contenders in turn, and f between them."""
    answers = {c.name: c.solve() for c in case.contenders}  # also warms up
    times: dict[str, list[float]] = {c.name: [] for c in case.contenders}
    single: list[float] = []
    for _ in range(ROUNDS):
        for contender in case.contenders:
            single.append(_seconds(lambda: [case.evaluate() for _ in range(10)]) / 10)
            times[contender.name].append(_seconds(contender.solve))
    one = statistics.median(single) * 1e6
    totals = {name: statistics.median(values) * 1e6 for name, values in times.items()}
    first = totals[case.contenders[0].name]
    rows = []
    for name, total in totals.items():
        value, evaluations = answers[name]
        overhead, residual = total / (evaluations * one), case.residual(value)
        rows.append(
            Row(case.name, name, total, evaluations, one, overhead, residual, total / first)
        )
    return rows


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def torch_dense() -> Case:
    """64 problems z = tanh(zW + b), n = 256, W symmetric of spectral radius 0.9, float32."""
    import torch
    from torchdeq.core import get_deq

    import fixedpoint as fp

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    square = torch.randn(256, 256)
    symmetric = square + square.T
    W = 0.9 * symmetric / torch.linalg.eigvalsh(symmetric).abs().max()
    b, z0, calls = torch.randn(64, 256), torch.zeros(64, 256), [0]

    def f(z: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return torch.tanh(z @ W + b)

    def counted(solve: Callable[[], torch.Tensor]) -> Callable[[], tuple[torch.Tensor, int]]:
        def run() -> tuple[torch.Tensor, int]:
            calls[0] = 0
            return solve(), calls[0]

        return run

    def residual(z: torch.Tensor) -> float:
        image = f(z)
        return float(((image - z).norm(dim=1) / image.norm(dim=1)).max())

    def ours(solver: Any) -> Callable[[], torch.Tensor]:
        return lambda: fp.fixed_point(f, z0, solver=solver, batch_ndim=1, rtol=1e-4, atol=0.0).value

    peer = get_deq(f_solver="anderson", f_max_iter=100, f_tol=1e-4, f_stop_mode="rel")
    contenders = [
        Contender("fixedpoint Anderson(5)", counted(ours(fp.Anderson(memory=5)))),
        Contender("fixedpoint Picard", counted(ours(fp.Picard()))),
        Contender("torchdeq anderson (6 states)", counted(lambda: peer(f, z0)[0][-1])),
    ]
    return Case("Torch, 64×256 dense, float32", lambda: f(b), residual, contenders)


def jax_dense() -> Case:
    """The same cell on JAX, each solve jitted."""
    import jax
    import jax.numpy as jnp
    import jaxopt
    import numpy as np

    import fixedpoint as fp

    generator = np.random.default_rng(0)
    square = generator.standard_normal((256, 256))
    symmetric = square + square.T
    W = 0.9 * symmetric / np.abs(np.linalg.eigvalsh(symmetric)).max()
    W, b = (
        jnp.asarray(W, jnp.float32),
        jnp.asarray(generator.standard_normal((64, 256)), jnp.float32),
    )
    z0 = jnp.zeros_like(b)

    def f(z: Any, W: Any, b: Any) -> Any:
        return jnp.tanh(z @ W + b)

    def ours(W: Any, b: Any) -> Any:
        sol = fp.fixed_point(
            f, z0, (W, b), solver=fp.Anderson(memory=5), batch_ndim=1, rtol=1e-4, atol=0.0
        )
        return sol.value, sol.work.f

    scale = float(jnp.linalg.norm(b))
    peer = jaxopt.AndersonAcceleration(f, history_size=5, tol=1e-4 * scale, ridge=1e-5, maxiter=100)

    def theirs(W: Any, b: Any) -> Any:
        value, state = peer.run(z0, W, b)
        return value, state.iter_num + 1

    def runner(solve: Callable[..., Any]) -> Callable[[], tuple[Any, int]]:
        compiled = jax.jit(solve)

        def run() -> tuple[Any, int]:
            value, evaluations = jax.block_until_ready(compiled(W, b))
            return value, int(evaluations)

        return run

    def residual(z: Any) -> float:
        image = f(z, W, b)
        norms = jnp.linalg.norm(image - z, axis=1) / jnp.linalg.norm(image, axis=1)
        return float(norms.max())

    single = jax.jit(f)
    contenders = [
        Contender("fixedpoint Anderson(5)", runner(ours)),
        Contender("jaxopt AndersonAcceleration(5), whole batch", runner(theirs)),
    ]

    def evaluate() -> Any:
        return jax.block_until_ready(single(b, W, b))

    return Case("JAX jitted, 64×256 dense, float32", evaluate, residual, contenders)


def numpy_chandrasekhar() -> Case:
    """Chandrasekhar's H equation, n = 1000, c = 0.999, to a residual of 1e-9 (max norm)."""
    import numpy as np
    from scipy.optimize import anderson

    import fixedpoint as fp

    nodes = (np.arange(1000) + 0.5) / 1000
    kernel = 0.999 / 2000 * nodes[:, None] / (nodes[:, None] + nodes)
    calls = [0]

    def f(h: Any) -> Any:
        calls[0] += 1
        return 1.0 / (1.0 - kernel @ h)

    def ours() -> tuple[Any, int]:
        calls[0] = 0
        solver = fp.Anderson(memory=10)
        sol = fp.fixed_point(f, np.ones(1000), solver=solver, rtol=0.0, atol=1e-9, norm="max")
        return sol.value, calls[0]

    def theirs() -> tuple[Any, int]:
        calls[0] = 0
        value = anderson(
            lambda h: f(h) - h, np.ones(1000), alpha=1.0, M=10, f_tol=1e-9, line_search=None
        )
        return value, calls[0]

    contenders = [
        Contender("fixedpoint Anderson(10)", ours),
        Contender("scipy anderson(10)", theirs),
    ]

    def residual(h: Any) -> float:
        return float(np.abs(f(h) - h).max())

    return Case("NumPy, Chandrasekhar H, n = 1000", lambda: f(nodes), residual, contenders)


def main() -> None:
    """Run all cases, print the table and write it down."""
    rows: list[Row] = []
    print(
        f"{'case':36}{'method':46}{'µs':>9}{'f':>5}{'µs/f':>8}{'overhead':>10}{'residual':>11}{'ratio':>7}"
    )
    with threadpool_limits(limits=1):
        for case in (torch_dense, jax_dense, numpy_chandrasekhar):
            for row in measure(case()):
                rows.append(row)
                print(
                    f"{row.case:36}{row.method:46}{row.microseconds:9.0f}{row.evaluations:5}"
                    f"{row.per_evaluation:8.1f}{row.overhead:10.2f}{row.residual:11.1e}"
                    f"{row.ratio:7.2f}"
                )
    content = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "rows": [asdict(r) for r in rows],
    }
    Path(__file__).with_name("results.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
