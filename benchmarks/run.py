"""Overhead of the solvers beside their peers: ``make bench``.

All run interleaved in one process on one thread, to the same tolerance on the residual,
and that of each answer is evaluated afterwards. Overhead is CPU time / (evaluations ×
that of one evaluation of f). The table goes to the terminal and, as JSON, to
``benchmarks/results.json``. With ``--quick`` there are few rounds and nothing is
written; each row ends with its overhead over the recorded one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from parts import keep_jax_to_one_thread
from threadpoolctl import threadpool_limits

ROUNDS, QUICK = 60, 6
RECORD = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Contender:
    """A method on a problem: ``solve()`` returns the value and the evaluations of f it
    took.
    """

    name: str
    solve: Callable[[], tuple[Any, int]]


@dataclass(frozen=True)
class Case:
    """A problem: ``evaluate()`` runs f once, ``residual(value)`` is the largest
    relative one; large ones are timed in fewer rounds.
    """

    name: str
    evaluate: Callable[[], Any]
    residual: Callable[[Any], float]
    contenders: list[Contender]
    share_of_rounds: float = 1.0


@dataclass(frozen=True)
class Row:
    """A line of the table: times in microseconds, `ratio` of time to that of the first
    method.
    """

    case: str
    method: str
    microseconds: float
    evaluations: int
    per_evaluation: float
    overhead: float
    residual: float
    ratio: float


def measure(case: Case, rounds: int) -> list[Row]:
    """Time the contenders in turn, and f between them."""
    answers = {c.name: c.solve() for c in case.contenders}  # also warms up
    times: dict[str, list[float]] = {c.name: [] for c in case.contenders}
    single: list[float] = []
    for _ in range(max(3, round(rounds * case.share_of_rounds))):
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
            Row(
                case.name,
                name,
                total,
                evaluations,
                one,
                overhead,
                residual,
                total / first,
            )
        )
    return rows


def _seconds(work: Callable[[], Any]) -> float:
    """Those of the processor: others on the machine count for less."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


# Marks rows of the core alone, beside those with the compiled steps.
NEUTRAL = ", none compiled"


def neutral(
    solve: Callable[[], tuple[Any, int]],
) -> Callable[[], tuple[Any, int]]:
    """`solve` without compiled steps."""
    from fixedpoint import kernels

    def run() -> tuple[Any, int]:
        with kernels.disabled():
            return solve()

    return run


def _torch_case(
    name: str, f: Callable[..., Any], z0: Any, probe: Any, rtol: float
) -> Case:
    """Ours and torchdeq's solvers on a cell in Torch, each sample with its own
    status.
    """
    from torchdeq.core import get_deq

    import fixedpoint as fp

    calls = [0]

    def counting(z: Any) -> Any:
        calls[0] += 1
        return f(z)

    def counted(solve: Callable[[], Any]) -> Callable[[], tuple[Any, int]]:
        def run() -> tuple[Any, int]:
            calls[0] = 0
            return solve(), calls[0]

        return run

    def residual(z: Any) -> float:
        image = f(z)
        norms = (image - z).flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)
        return float(norms.max())

    def ours(solver: Any) -> Callable[[], Any]:
        settings = {"solver": solver, "batch_ndim": 1, "rtol": rtol, "test": "residual"}
        return lambda: fp.fixed_point(counting, z0, **settings).value

    def theirs(solver: str) -> Callable[[], Any]:
        peer = get_deq(f_solver=solver, f_max_iter=100, f_tol=rtol, f_stop_mode="rel")
        return lambda: peer(counting, z0)[0][-1]

    contenders = [
        Contender("fixedpoint Anderson(5)", counted(ours(fp.Anderson(memory=5)))),
        Contender(
            f"fixedpoint Anderson(5){NEUTRAL}",
            neutral(counted(ours(fp.Anderson(memory=5)))),
        ),
        Contender("fixedpoint Broyden(20)", counted(ours(fp.Broyden(memory=20)))),
        Contender(
            f"fixedpoint Broyden(20){NEUTRAL}",
            neutral(counted(ours(fp.Broyden(memory=20)))),
        ),
        Contender("fixedpoint Picard", counted(ours(fp.Picard()))),
        Contender(f"fixedpoint Picard{NEUTRAL}", neutral(counted(ours(fp.Picard())))),
        Contender("torchdeq anderson (6 states)", counted(theirs("anderson"))),
        Contender("torchdeq broyden", counted(theirs("broyden"))),
    ]
    return Case(name, lambda: f(probe), residual, contenders)


def torch_dense() -> Case:
    """64 problems z = tanh(zW + b), n = 256, W symmetric of spectral radius 0.9,
    float32.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    square = torch.randn(256, 256)
    symmetric = square + square.T
    W = 0.9 * symmetric / torch.linalg.eigvalsh(symmetric).abs().max()
    b, z0 = torch.randn(64, 256), torch.zeros(64, 256)
    name = "Torch, 64×256 dense, float32"
    return _torch_case(name, lambda z: torch.tanh(z @ W + b), z0, b, 1e-4)


def torch_conv() -> Case:
    """16 problems with a residual cell of two 3×3 convolutions, 48 channels of 16×16,
    float32.
    """
    import torch
    from torch.nn.functional import conv2d, group_norm

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    first, second = (0.02 * torch.randn(48, 48, 3, 3) for _ in range(2))
    x, z0 = torch.randn(16, 48, 16, 16), torch.zeros(16, 48, 16, 16)

    def f(z: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(group_norm(conv2d(z, first, padding=1), 8))
        return group_norm(
            torch.relu(z + group_norm(x + conv2d(inner, second, padding=1), 8)), 8
        )

    return _torch_case("Torch, 16×48×16×16 convolutions", f, z0, x, 1e-3)


def torch_wide() -> Case:
    """64 problems z = tanh(cz) + b of 65,536 entries each, float32: states that no
    cache holds.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    c, b = 1.8 * torch.rand(64, 65536) - 0.9, torch.randn(64, 65536)
    name, z0 = "Torch, 64×65,536 entrywise, float32", torch.zeros(64, 65536)
    case = _torch_case(name, lambda z: torch.tanh(c * z) + b, z0, b, 1e-4)
    return replace(case, share_of_rounds=0.1)


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

    def ours(solver: Any) -> Callable[..., Any]:
        def solve(W: Any, b: Any) -> Any:
            settings = {
                "solver": solver,
                "batch_ndim": 1,
                "rtol": 1e-4,
                "test": "residual",
            }
            sol = fp.fixed_point(f, z0, (W, b), **settings)
            return sol.value, sol.work.f

        return solve

    tol = 1e-4 * float(jnp.linalg.norm(b))
    accelerated = jaxopt.AndersonAcceleration(
        f, history_size=5, tol=tol, ridge=1e-5, maxiter=100
    )
    broyden = jaxopt.Broyden(lambda z, W, b: f(z, W, b) - z, tol=tol, maxiter=100)

    def theirs(peer: Any) -> Callable[..., Any]:
        def solve(W: Any, b: Any) -> Any:
            value, state = peer.run(z0, W, b)
            return value, state.iter_num + 1

        return solve

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
        Contender("fixedpoint Anderson(5)", runner(ours(fp.Anderson(memory=5)))),
        Contender("fixedpoint Broyden(20)", runner(ours(fp.Broyden(memory=20)))),
        Contender(
            "jaxopt AndersonAcceleration(5), whole batch", runner(theirs(accelerated))
        ),
        Contender("jaxopt Broyden, whole batch", runner(theirs(broyden))),
    ]

    def evaluate() -> Any:
        return jax.block_until_ready(single(b, W, b))

    return Case("JAX jitted, 64×256 dense, float32", evaluate, residual, contenders)


def numpy_chandrasekhar() -> Case:
    """Chandrasekhar's H equation, n = 1000, c = 0.999, to a residual of 1e-9 (max
    norm).
    """
    import numpy as np
    from scipy.optimize import anderson

    import fixedpoint as fp

    nodes = (np.arange(1000) + 0.5) / 1000
    kernel = 0.999 / 2000 * nodes[:, None] / (nodes[:, None] + nodes)
    calls = [0]

    def f(h: Any) -> Any:
        calls[0] += 1
        return 1.0 / (1.0 - kernel @ h)

    def ours(solver: Any) -> Callable[[], tuple[Any, int]]:
        def run() -> tuple[Any, int]:
            calls[0] = 0
            asked = {"rtol": 0.0, "atol": 1e-9, "norm": "max", "test": "residual"}
            sol = fp.fixed_point(f, np.ones(1000), solver=solver, **asked)
            return sol.value, calls[0]

        return run

    def theirs() -> tuple[Any, int]:
        calls[0] = 0
        value = anderson(
            lambda h: f(h) - h,
            np.ones(1000),
            alpha=1.0,
            M=10,
            f_tol=1e-9,
            line_search=None,
        )
        return value, calls[0]

    contenders = [
        Contender("fixedpoint Anderson(10)", ours(fp.Anderson(memory=10))),
        Contender(
            f"fixedpoint Anderson(10){NEUTRAL}", neutral(ours(fp.Anderson(memory=10)))
        ),
        Contender("fixedpoint Anderson(3)", ours(fp.Anderson(memory=3))),
        Contender("fixedpoint Broyden(20)", ours(fp.Broyden(memory=20))),
        Contender("scipy anderson(10)", theirs),
    ]

    def residual(h: Any) -> float:
        return float(np.abs(f(h) - h).max())

    return Case(
        "NumPy, Chandrasekhar H, n = 1000", lambda: f(nodes), residual, contenders
    )


def numpy_batch() -> Case:
    """100,000 problems z = a cos z of 8 unknowns each, every entry to 1e-6."""
    import numpy as np

    import fixedpoint as fp

    a = np.random.default_rng(0).uniform(0.0, 0.9, (100_000, 8))
    calls = [0]

    def f(z: Any) -> Any:
        calls[0] += 1
        return a * np.cos(z)

    def ours(solver: Any) -> Callable[[], tuple[Any, int]]:
        def run() -> tuple[Any, int]:
            calls[0] = 0
            sol = fp.fixed_point(f, np.zeros_like(a), solver=solver, batch_ndim=1)
            return sol.value, calls[0]

        return run

    contenders = [
        Contender("fixedpoint Anderson(5)", ours(fp.Anderson(memory=5))),
        Contender(
            f"fixedpoint Anderson(5){NEUTRAL}", neutral(ours(fp.Anderson(memory=5)))
        ),
        Contender("fixedpoint Broyden(5)", ours(fp.Broyden(memory=5))),
        Contender(
            f"fixedpoint Broyden(5){NEUTRAL}", neutral(ours(fp.Broyden(memory=5)))
        ),
    ]

    def residual(z: Any) -> float:
        image = f(z)
        return float(np.max(np.abs(image - z) / np.abs(image)))

    name = "NumPy, 100,000 problems of 8"
    return Case(name, lambda: f(a), residual, contenders, share_of_rounds=0.1)


def numpy_bratu(n: int) -> Case:
    """Bratu's problem −Δu = 6 exp(u) on n×n points, to 1e-8 of its first residual; no
    derivative is given.
    """
    import numpy as np
    from scipy.optimize import newton_krylov

    import fixedpoint as fp

    start, calls, rtol = np.zeros((n, n)), [0], 1e-8

    def F(u: Any) -> Any:
        calls[0] += 1
        image = 4.0 * u
        image[1:] -= u[:-1]
        image[:-1] -= u[1:]
        image[:, 1:] -= u[:, :-1]
        image[:, :-1] -= u[:, 1:]
        image *= (n + 1.0) ** 2
        image -= 6.0 * np.exp(u)
        return image

    first = float(np.linalg.norm(F(start)))

    def counted(solve: Callable[[], Any]) -> Callable[[], tuple[Any, int]]:
        def run() -> tuple[Any, int]:
            calls[0] = 0
            return solve(), calls[0]

        return run

    def ours(solver: Any = None) -> Callable[[], tuple[Any, int]]:
        asked = {"rtol": rtol, "test": "residual", "solver": solver}
        return counted(lambda: fp.root(F, start, **asked).value)

    def theirs() -> Any:
        norm = np.linalg.norm
        return newton_krylov(F, start, f_tol=rtol * first, tol_norm=norm)

    plain = fp.NewtonKrylov(linear=fp.ConjugateGradient())
    recycling = fp.NewtonKrylov(linear=fp.ConjugateGradient(recycle=8), forcing=1e-3)
    contenders = [
        Contender("fixedpoint, no solver named", ours()),
        Contender("fixedpoint, conjugate gradients", ours(plain)),
        Contender("fixedpoint, recycled gradients", ours(recycling)),
        Contender("scipy newton_krylov(lgmres)", counted(theirs)),
    ]

    def residual(u: Any) -> float:
        return float(np.linalg.norm(F(u))) / first

    name = f"NumPy, Bratu {n}×{n}, no derivative"
    return Case(name, lambda: F(start), residual, contenders, share_of_rounds=0.5)


CASES = (
    torch_dense,
    torch_conv,
    torch_wide,
    jax_dense,
    numpy_chandrasekhar,
    partial(numpy_bratu, 64),
    partial(numpy_bratu, 128),
    numpy_batch,
)


def printed(row: Row, recorded: dict[tuple[str, str], float] | None) -> None:
    """Print a line of the table, with what was recorded if that is to be compared."""
    line = (
        f"{row.case:36}{row.method:46}{row.microseconds:9.0f}{row.evaluations:5}"
        f"{row.per_evaluation:8.1f}{row.overhead:10.2f}{row.residual:11.1e}"
        f"{row.ratio:7.2f}"
    )
    before = (recorded or {}).get((row.case, row.method))
    print(line if before is None else f"{line}{row.overhead / before:10.2f}")


def main() -> None:
    """Run all cases, print the table, and write it down unless it is the quick one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, no record")
    quick = parser.parse_args().quick
    recorded = None
    if quick:
        known = json.loads(RECORD.read_text())["rows"]
        recorded = {(row["case"], row["method"]): row["overhead"] for row in known}
    heads = f"{'case':36}{'method':46}{'µs':>9}{'f':>5}{'µs/f':>8}{'overhead':>10}"
    print(f"{heads}{'residual':>11}{'ratio':>7}{'  recorded' if quick else ''}")
    rows: list[Row] = []
    keep_jax_to_one_thread()
    with threadpool_limits(limits=1):
        for case in CASES:
            for row in measure(case(), QUICK if quick else ROUNDS):
                rows.append(row)
                printed(row, recorded)
    if not quick:
        machine = f"{platform.machine()}, Python {platform.python_version()}"
        content = {"machine": machine, "rows": [asdict(r) for r in rows]}
        RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
