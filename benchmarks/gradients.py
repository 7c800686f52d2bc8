"""Derivatives beside those of peers: ``python benchmarks/gradients.py [torch jax memory
shine]``.

``torch`` and ``jax`` time a solve together with the gradient of a loss. All methods run
in turn in one process; each peer has the loosest tolerances and the fastest settings
with which its residual and the error of its gradient, both evaluated afterwards, are no
larger than those of the first method. Gradients are compared with a double-precision
one by plain iteration to 1e-12. On one thread the clock is that of the processor, which
other processes disturb less.

``memory`` measures what a gradient takes after few and many steps; ``shine`` the
products that gradients of an equilibrium network need with the inverse estimate of the
forward solve. The tables go to the terminal and, section by section, to
``benchmarks/gradients.json``.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from parts import keep_jax_to_one_thread
from threadpoolctl import threadpool_limits

ROUNDS, COMPILATIONS = 25, 5

# Factors of the tolerance that peers may use, the tightest first.
FACTORS = tuple(2.0**k for k in range(-6, 5))

# Errors of gradients to reach, and products at most, in the section on shared inverses.
LEVELS, MOST = (1e-1, 1e-2, 1e-4), 50

Clock = Callable[[], float]


class Answer(NamedTuple):
    """The solution, the gradients of the loss, and when the solution was there."""

    value: Any
    gradients: tuple[Any, ...]
    midway: float = math.nan


class Quality(NamedTuple):
    """The largest relative residual of a sample, and the relative error of the
    gradients.
    """

    residual: float
    error: float

    def meets(self, bar: Quality) -> bool:
        """Whether neither is larger than that of `bar`."""
        return self.residual <= bar.residual and self.error <= bar.error


@dataclass(frozen=True)
class Contender:
    """A method: ``make(f)`` returns what solves and differentiates, given the clock."""

    name: str
    make: Callable[[Any], Callable[[Clock], Answer]]


@dataclass(frozen=True)
class Row:
    """A line on time, in microseconds; `ratio` is total time to that of the first
    method.
    """

    case: str
    method: str
    forward: float
    backward: float
    total: float
    ratio: float
    evaluations: int
    products: int
    residual: float
    error: float


@dataclass(frozen=True)
class CompiledRow:
    """A line on compiled methods: microseconds of a call, seconds of compilation."""

    case: str
    method: str
    total: float
    ratio: float
    compilation: float
    compilation_ratio: float
    residual: float
    error: float


@dataclass(frozen=True)
class MemoryRow:
    """A line on memory, in MiB: what is kept for the gradient, and the peak while it is
    formed.
    """

    case: str
    method: str
    steps: int
    kept: float
    peak: float


@dataclass(frozen=True)
class SharedRow:
    """A line on products: the median and largest number over batches to reach each
    level.
    """

    method: str
    error_without: float
    median: tuple[float, ...]
    largest: tuple[float, ...]


def relative_error(gradients: Iterable[Any], exact: Iterable[Any]) -> float:
    """‖g − g*‖ / ‖g*‖ over all arrays."""
    import numpy as np

    pairs = [
        (np.asarray(a, dtype=float), np.asarray(b))
        for a, b in zip(gradients, exact, strict=False)
    ]
    wrong = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return math.sqrt(wrong / sum(float((b**2).sum()) for _, b in pairs))


def loosest(passes: Callable[[float], bool], rtol: float) -> float | None:
    """The loosest tolerance that passes, by bisection: tighter ones pass too."""
    tolerances = [rtol * factor for factor in FACTORS]
    first = bisect_left(tolerances, True, key=lambda t: not passes(t))
    return tolerances[first - 1] if first else None


def tuned(
    quality: Callable[[float, float], Quality], bar: Quality, rtol: float
) -> tuple[float, float] | None:
    """The loosest tolerances, forward and backward, that meet `bar`; None if there are
    none.
    """
    tight = rtol * FACTORS[0]
    forward = loosest(lambda t: quality(t, tight).meets(bar), rtol)
    backward = forward and loosest(lambda t: quality(forward, t).meets(bar), rtol)
    return None if forward is None or backward is None else (forward, backward)


@dataclass(frozen=True)
class Equilibrium:
    """An equilibrium z = f(z, *args), the loss ⟨c, z⟩, and the tolerance to solve
    to.
    """

    name: str
    f: Callable[..., Any]
    z0: Any
    args: tuple[Any, ...]
    cotangent: Any
    rtol: float


# Torch.


class Cell(Equilibrium):
    """An equilibrium in Torch."""

    def residual(self, z: Any) -> float:
        """The largest relative residual of a sample."""
        import torch

        with torch.no_grad():
            image = self.f(z, *self.args)
        norms = (image - z).flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)
        return float(norms.max())

    def exact(self) -> list[Any]:
        """The gradients, by plain iteration for z and for u, in double precision."""
        import torch

        args = [a.detach().double().requires_grad_() for a in self.args]
        with torch.no_grad():
            z = _iterated(lambda z: self.f(z, *args), self.z0.double())
        z.requires_grad_()
        image, v = self.f(z, *args), self.cotangent.double()
        product = partial(torch.autograd.grad, image, z, retain_graph=True)
        u = _iterated(lambda u: product(u)[0] + v, v)
        return [g.numpy() for g in torch.autograd.grad(image, args, u)]


def _iterated(f: Callable[[Any], Any], z: Any) -> Any:
    for _ in range(10_000):
        new = f(z)
        if (new - z).norm() <= 1e-13 * new.norm():
            return new
        z = new
    raise RuntimeError("plain iteration did not converge")


def dense_cell() -> Cell:
    """64 problems z = tanh(zWᵀ + b), n = 256, W symmetric of spectral radius 0.9,
    float32.
    """
    import torch

    torch.manual_seed(0)
    square = torch.randn(256, 256)
    symmetric = square + square.T
    W = 0.9 * symmetric / torch.linalg.eigvalsh(symmetric).abs().max()
    args = W.requires_grad_(), torch.randn(64, 256, requires_grad=True)

    def f(z: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.tanh(z @ W.T + b)

    z0, cotangent = torch.zeros(64, 256), torch.randn(64, 256)
    return Cell("Torch, 64×256 dense, float32", f, z0, args, cotangent, 1e-4)


def convolutional_cell() -> Cell:
    """16 problems with a residual cell of two 3×3 convolutions, 48 channels of 16×16,
    float32.
    """
    import torch
    from torch.nn.functional import conv2d, group_norm

    torch.manual_seed(0)
    first, second = (
        (0.02 * torch.randn(48, 48, 3, 3)).requires_grad_() for _ in range(2)
    )
    x = torch.randn(16, 48, 16, 16, requires_grad=True)

    def f(
        z: torch.Tensor, first: torch.Tensor, second: torch.Tensor, x: torch.Tensor
    ) -> torch.Tensor:
        inner = torch.relu(group_norm(conv2d(z, first, padding=1), 8))
        return group_norm(
            torch.relu(z + group_norm(x + conv2d(inner, second, padding=1), 8)), 8
        )

    z0, cotangent = torch.zeros(16, 48, 16, 16), torch.randn(16, 48, 16, 16)
    name = "Torch, 16×48×16×16 convolutions"
    return Cell(name, f, z0, (first, second, x), cotangent, 1e-3)


def _torch_gradients(cell: Cell, value: Any, clock: Clock) -> Answer:
    import torch

    midway = clock()
    gradients = torch.autograd.grad(value, cell.args, cell.cotangent)
    return Answer(value.detach(), gradients, midway)


def torch_ours(cell: Cell, solver: Any, forward: float, backward: float) -> Contender:
    """Our solve and gradient."""
    import fixedpoint as fp

    adjoint = fp.ImplicitAdjoint(rtol=backward)
    settings = {"solver": solver, "adjoint": adjoint, "batch_ndim": 1}
    settings |= {"rtol": forward, "test": "residual"}

    def run(f: Any, clock: Clock) -> Answer:
        return _torch_gradients(
            cell, fp.fixed_point(f, cell.z0, cell.args, **settings).value, clock
        )

    name = "no solver named" if solver is None else f"{solver.name}({solver.memory})"
    return Contender(f"fixedpoint {name}", lambda f: partial(run, f))


def torchdeq(
    cell: Cell, setting: tuple[Any, ...], tolerances: tuple[float, float]
) -> Contender:
    """Torchdeq's solve and gradient, by its hook, which evaluates f once less than its
    function.
    """
    from torchdeq.core import get_deq

    forward, backward, options = setting
    limits = {
        "f_max_iter": 200,
        "b_max_iter": 200,
        "f_stop_mode": "rel",
        "b_stop_mode": "rel",
    }
    peer = get_deq(
        f_solver=forward,
        b_solver=backward,
        f_tol=tolerances[0],
        b_tol=tolerances[1],
        hook_ift=True,
        **limits,
    )

    def run(f: Any, clock: Clock) -> Answer:
        outputs, _ = peer(
            lambda z: f(z, *cell.args), cell.z0, solver_kwargs=dict(options)
        )
        return _torch_gradients(cell, outputs[-1], clock)

    told = "".join(f", {key}={value:g}" for key, value in options.items())
    name = f"torchdeq {forward}{told} and {backward}"
    return Contender(name, lambda f: partial(run, f))


def torchdeq_contenders(cell: Cell, exact: list[Any], bar: Quality) -> list[Contender]:
    """For each forward solver of torchdeq the fastest of its settings that meet
    `bar`.
    """
    backward = "anderson", "broyden", "fixed_point_iter"
    options: dict[str, list[dict[str, Any]]] = {
        "anderson": [{}, {"lam": 1e-8}],
        "broyden": [{}],
    }
    fastest = []
    for forward, variants in options.items():
        settings = [(forward, b, o) for o in variants for b in backward]
        found = [_tuned(cell, partial(torchdeq, cell, s), exact, bar) for s in settings]
        able = [contender for contender in found if contender is not None]
        fastest += [min(able, key=partial(_quick, cell))] if able else []
    return fastest


def _tuned(
    cell: Cell,
    make: Callable[[tuple[float, float]], Contender],
    exact: list[Any],
    bar: Quality,
) -> Contender | None:
    def quality(*tolerances: float) -> Quality:
        return _quality(cell, make(tolerances), exact)

    tolerances = tuned(quality, bar, cell.rtol)
    return tolerances and make(tolerances)


def _quality(cell: Cell, contender: Contender, exact: list[Any]) -> Quality:
    answer = contender.make(cell.f)(time.perf_counter)
    return Quality(cell.residual(answer.value), relative_error(answer.gradients, exact))


def _quick(cell: Cell, contender: Contender) -> float:
    run = contender.make(cell.f)
    return min(_timed(run, time.process_time)[1] for _ in range(5))


def _timed(run: Callable[[Clock], Answer], clock: Clock) -> tuple[float, float]:
    begin = clock()
    answer = run(clock)
    return answer.midway - begin, clock() - begin


def _counted(cell: Cell, contender: Contender) -> tuple[int, int]:
    """Evaluations of f, and how often its output was pulled back."""
    counts = [0, 0]

    def counting(z: Any, *args: Any) -> Any:
        counts[0] += 1
        image = cell.f(z, *args)
        if image.requires_grad:
            image.register_hook(lambda _: counts.__setitem__(1, counts[1] + 1))
        return image

    contender.make(counting)(time.perf_counter)
    return counts[0], counts[1]


def torch_contenders(cell: Cell, exact: list[Any]) -> list[Contender]:
    """Ours, as asked for and as loose as may be, and the peers, all at the first one's
    quality.
    """
    import fixedpoint as fp

    solvers = None, fp.Anderson(memory=5), fp.Broyden()
    ours = [torch_ours(cell, solver, cell.rtol, cell.rtol) for solver in solvers]
    bar = _quality(cell, ours[0], exact)
    loose = _tuned(cell, lambda t: torch_ours(cell, solvers[1], *t), exact, bar)
    if loose is not None:
        ours.append(Contender(f"{loose.name}, loosest tolerances", loose.make))
    return ours + torchdeq_contenders(cell, exact, bar)


def measure(
    cell: Cell, contenders: list[Contender], exact: list[Any], threads: int
) -> list[Row]:
    """Time the contenders in turn."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times = interleaved([(c.name, c.make(cell.f)) for c in contenders], clock)
    case = f"{cell.name}, {threads} thread{'s' * (threads > 1)}"
    return [_row(cell, case, c, times, exact) for c in contenders]


def interleaved(
    runs: list[tuple[str, Callable[[Clock], Answer]]], clock: Clock
) -> dict[str, tuple[float, float]]:
    """Median microseconds, midway and in total, of contenders that run in turn."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name, _ in runs}
    for _ in range(ROUNDS):
        for name, run in runs:
            times[name].append(_timed(run, clock))
    return {
        name: (
            1e6 * statistics.median(a for a, _ in t),
            1e6 * statistics.median(b for _, b in t),
        )
        for name, t in times.items()
    }


def _row(
    cell: Cell,
    case: str,
    contender: Contender,
    times: dict[str, tuple[float, float]],
    exact: list[Any],
) -> Row:
    (forward, total), first = times[contender.name], next(iter(times.values()))[1]
    quality, counts = _quality(cell, contender, exact), _counted(cell, contender)
    return Row(
        case,
        contender.name,
        forward,
        total - forward,
        total,
        total / first,
        *counts,
        *quality,
    )


def torch_section() -> list[Row]:
    """Dense and convolutional cells, on one thread and on all."""
    import torch

    rows, usual = [], torch.get_num_threads()
    for cell in (dense_cell(), convolutional_cell()):
        torch.set_num_threads(1)
        exact = cell.exact()
        contenders = torch_contenders(cell, exact)
        for threads in sorted({1, usual}):
            torch.set_num_threads(threads)
            with threadpool_limits(limits=threads):
                rows += measure(cell, contenders, exact, threads)
    return rows


# JAX.


class CompiledCell(Equilibrium):
    """An equilibrium on JAX."""

    def residual(self, z: Any) -> float:
        """The largest relative residual of a sample."""
        import jax.numpy as jnp

        image = self.f(z, *self.args)
        norms = jnp.linalg.norm(image - z, axis=1) / jnp.linalg.norm(image, axis=1)
        return float(norms.max())

    def differentiated(self, solve: Callable[..., Any]) -> Callable[..., Any]:
        """The gradients of the loss and the solution that `solve` finds for given
        args.
        """
        import jax

        def loss(*args: Any) -> Any:
            value = solve(*args)
            return (self.cotangent * value).sum(), value

        def gradients(*args: Any) -> Any:
            gradient, value = jax.grad(loss, argnums=(0, 1), has_aux=True)(*args)
            return value, gradient

        return gradients


def jax_cell() -> tuple[CompiledCell, list[Any]]:
    """The arrays of :func:`dense_cell` on JAX, and the gradients."""
    import jax.numpy as jnp

    cell = dense_cell()
    z0, cotangent = (jnp.asarray(a.numpy()) for a in (cell.z0, cell.cotangent))
    W, b = (jnp.asarray(a.detach().numpy()) for a in cell.args)

    def f(z: Any, W: Any, b: Any) -> Any:
        return jnp.tanh(z @ W.T + b)

    name = "JAX jitted, 64×256 dense, float32"
    return CompiledCell(name, f, z0, (W, b), cotangent, cell.rtol), cell.exact()


def jax_ours(
    cell: CompiledCell, solver: Any, adjoint: Any = None
) -> Callable[..., Any]:
    """Our solve."""
    import fixedpoint as fp

    settings = {"solver": solver, "adjoint": fp.ImplicitAdjoint(solver=adjoint)}
    settings |= {"batch_ndim": 1, "rtol": cell.rtol, "test": "residual"}

    def solve(*args: Any) -> Any:
        return fp.fixed_point(cell.f, cell.z0, args, **settings).value

    return solve


def jaxopt_solve(
    cell: CompiledCell, kind: str, linear: str, forward: float, backward: float
) -> Callable[..., Any]:
    """Solve by jaxopt; its tolerance is that of the whole batch's norm."""
    import jax.numpy as jnp
    import jaxopt
    from jaxopt import linear_solve

    norm = float(jnp.linalg.norm(cell.args[1]))
    inner = partial(getattr(linear_solve, linear), tol=backward, maxiter=200)
    settings = {"tol": forward * norm, "maxiter": 200, "implicit_diff_solve": inner}
    if kind == "AndersonAcceleration":
        settings |= {"history_size": 5, "ridge": 1e-5}
    peer = getattr(jaxopt, kind)(cell.f, **settings)
    return lambda *args: peer.run(cell.z0, *args).params


def optimistix_solve(
    cell: CompiledCell, kind: str, linear: str, forward: float, backward: float
) -> Callable[..., Any]:
    """Solve by optimistix; its norm is the root mean square over the whole batch."""
    import lineax
    import optimistix

    def krylov(tolerance: float) -> Any:
        return getattr(lineax, linear)(
            rtol=tolerance, atol=tolerance, norm=optimistix.rms_norm
        )

    settings: dict[str, Any] = {
        "rtol": forward,
        "atol": forward,
        "norm": optimistix.rms_norm,
    }
    if kind == "Newton":
        settings["linear_solver"] = krylov(1e-2)
    solver = getattr(optimistix, kind)(**settings)
    adjoint = optimistix.ImplicitAdjoint(linear_solver=krylov(backward))

    def solve(*args: Any) -> Any:
        function = lambda z, args: cell.f(z, *args)
        found = optimistix.fixed_point(
            function, solver, cell.z0, args, adjoint=adjoint, max_steps=500, throw=False
        )
        return found.value

    return solve


def jax_contenders(
    cell: CompiledCell, exact: list[Any], bar: Quality
) -> list[tuple[str, Callable[..., Any]]]:
    """The peers, each with the loosest tolerances that meet `bar`."""
    makers = {
        f"jaxopt {kind}, {linear}": partial(jaxopt_solve, cell, kind, linear)
        for kind in ("AndersonAcceleration", "FixedPointIteration")
        for linear in ("solve_normal_cg", "solve_bicgstab", "solve_gmres")
    } | {
        f"optimistix {kind}, {linear}": partial(optimistix_solve, cell, kind, linear)
        for kind, linear in (
            ("FixedPointIteration", "GMRES"),
            ("FixedPointIteration", "BiCGStab"),
            ("Newton", "GMRES"),
        )
    }
    found = []
    for name, make in makers.items():
        best = tuned(
            lambda f, b, make=make: _jax_quality(cell, make(f, b), exact),
            bar,
            cell.rtol,
        )
        if best is None:
            print(f"{name}: no tolerance reaches the quality asked for")
        else:
            found.append((name, make(*best)))
    return found


def _jax_quality(
    cell: CompiledCell, solve: Callable[..., Any], exact: list[Any]
) -> Quality:
    import jax

    try:
        value, gradients = jax.jit(cell.differentiated(solve))(*cell.args)
    except jax.errors.JaxRuntimeError:  # what lineax raises where it does not converge
        return Quality(math.inf, math.inf)
    return Quality(cell.residual(value), relative_error(gradients, exact))


def _compilation(cell: CompiledCell, solve: Callable[..., Any]) -> float:
    """Seconds from Python to the executable, nothing cached."""
    import jax

    jax.clear_caches()
    begin = time.process_time()
    jax.jit(cell.differentiated(solve)).lower(*cell.args).compile()
    return time.process_time() - begin


def _jax_run(
    cell: CompiledCell, solve: Callable[..., Any]
) -> Callable[[Clock], Answer]:
    import jax

    compiled = jax.jit(cell.differentiated(solve)).lower(*cell.args).compile()

    def run(_: Clock) -> Answer:
        value, gradients = jax.block_until_ready(compiled(*cell.args))
        return Answer(value, gradients)

    return run


def jax_section() -> list[CompiledRow]:
    """The dense cell, solve and gradient jitted together, on one thread."""
    keep_jax_to_one_thread()
    import fixedpoint as fp

    logging.getLogger("jax").setLevel(logging.CRITICAL)  # of the same errors
    cell, exact = jax_cell()
    anderson, picard = fp.Anderson(memory=5), fp.Picard()
    named = {
        "Anderson(5)": (anderson,),
        "Anderson(5), and backward": (anderson, anderson),
        "Picard, and backward": (picard, picard),
        "Broyden(20)": (fp.Broyden(),),
        "no solver named": (None,),
    }
    solves = [(f"fixedpoint {name}", jax_ours(cell, *s)) for name, s in named.items()]
    bar = _jax_quality(cell, solves[0][1], exact)
    solves += jax_contenders(cell, exact, bar)
    compilations: dict[str, list[float]] = {name: [] for name, _ in solves}
    for _ in range(COMPILATIONS):
        for name, solve in solves:
            compilations[name].append(_compilation(cell, solve))
    runs = [(name, _jax_run(cell, solve)) for name, solve in solves]
    times = {
        name: total for name, (_, total) in interleaved(runs, time.process_time).items()
    }
    compiled = {name: statistics.median(t) for name, t in compilations.items()}
    first = solves[0][0]
    return [
        CompiledRow(
            cell.name,
            name,
            times[name],
            times[name] / times[first],
            compiled[name],
            compiled[name] / compiled[first],
            *_jax_quality(cell, solve, exact),
        )
        for name, solve in solves
    ]


# Memory.

_WIDTH, _MIB = (256, 4096), 2.0**20


def _fixed_steps(method: str, steps: int) -> dict[str, Any]:
    """The settings of a solve of so many steps, differentiated by `method`."""
    import fixedpoint as fp

    if method == "unrolled":
        named = {"solver": fp.Picard(), "adjoint": fp.Unrolled()}
    else:
        named = {
            "solver": fp.Anderson(memory=5),
            "adjoint": fp.ImplicitAdjoint(rtol=1e-3),
        }
    tolerances = {"rtol": 0.0, "atol": 0.0, "on_failure": "return"}
    return {"batch_ndim": 1, "max_steps": steps, **named, **tolerances}


def torch_memory(method: str, steps: int) -> tuple[float, float]:
    """MiB that Torch keeps between solve and gradient, and the growth of the process
    meanwhile.
    """
    import torch

    import fixedpoint as fp

    torch.set_num_threads(1)
    a, b = (torch.randn(_WIDTH, requires_grad=True) for _ in range(2))
    settings = _fixed_steps(method, steps)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sol = fp.fixed_point(
            lambda z, a, b: torch.tanh(0.5 * a.sin() * z + b),
            torch.zeros(_WIDTH),
            (a, b),
            **settings,
        )
    sol.value.sum().backward()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return sum(kept.values()) / _MIB, (after - before) * 1024 / _MIB


def jax_memory(method: str, steps: int) -> tuple[float, float]:
    """MiB of temporary buffers of the compiled gradient; nothing is kept outside of
    it.
    """
    import jax
    import jax.numpy as jnp

    import fixedpoint as fp

    settings = _fixed_steps(method, steps)

    def loss(a: Any, b: Any) -> Any:
        sol = fp.fixed_point(
            lambda z, a, b: jnp.tanh(0.5 * jnp.sin(a) * z + b),
            jnp.zeros(_WIDTH),
            (a, b),
            **settings,
        )
        return sol.value.sum()

    a = jnp.ones(_WIDTH)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(a, a).compile()
    return 0.0, compiled.memory_analysis().temp_size_in_bytes / _MIB


def memory_section() -> list[MemoryRow]:
    """Each measurement in a process of its own, whose peak is then its own."""
    rows = []
    pool = multiprocessing.get_context("spawn").Pool
    for case, probe in (("Torch", torch_memory), ("JAX", jax_memory)):
        for method in ("implicit", "unrolled"):
            for steps in (10, 100, 1000):
                if method == "unrolled" and steps == 1000:
                    continue  # several GiB
                with pool(1) as worker:
                    kept, peak = worker.apply(probe, (method, steps))
                rows.append(MemoryRow(case, method, steps, kept, peak))
    return rows


# Shared inverses.


@dataclass(frozen=True)
class Network:
    """An equilibrium classifier of digits: z = tanh(zWᵀ + xUᵀ + b), logits zCᵀ."""

    parameters: tuple[Any, ...]
    images: Any
    labels: Any

    @staticmethod
    def f(z: Any, x: Any, W: Any, U: Any, b: Any) -> Any:
        """The cell."""
        return (z @ W.T + x @ U.T + b).tanh()

    def batch(self, index: int, size: int = 64) -> tuple[Any, Any]:
        """Some images and their labels."""
        import torch

        rows = torch.arange(index * size, (index + 1) * size) % len(self.labels)
        return self.images[rows], self.labels[rows]

    def solved(self, x: Any, **settings: Any) -> Any:
        """The equilibria of the images x."""
        import torch

        import fixedpoint as fp

        z0 = torch.zeros(len(x), len(self.parameters[2]), dtype=x.dtype)
        return fp.fixed_point(
            self.f, z0, (x, *self.parameters[:3]), batch_ndim=1, **settings
        )

    def loss(self, value: Any, y: Any) -> Any:
        """The cross-entropy."""
        import torch

        return torch.nn.functional.cross_entropy(value @ self.parameters[3].T, y)


def untrained(size: int = 100, gain: float = 1.0) -> Network:
    """A network whose W has the spectral radius `gain`, about."""
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    normal = partial(torch.randn, dtype=torch.float64)
    parameters = (
        normal(size, size) * gain / size**0.5,
        normal(size, 64) / 8,
        torch.zeros(size, dtype=torch.float64),
        normal(10, size) / size**0.5,
    )
    images = torch.tensor(digits.data, dtype=torch.float64) / 16
    return Network(
        tuple(p.requires_grad_() for p in parameters),
        images,
        torch.tensor(digits.target),
    )


def trained(steps: int = 200) -> Network:
    """The network after a short training."""
    import torch

    import fixedpoint as fp

    network = untrained()
    optimizer = torch.optim.Adam(network.parameters, lr=1e-3)
    settings = {
        "solver": fp.Anderson(),
        "rtol": 1e-4,
        "max_steps": 100,
        "on_failure": "return",
        "adjoint": fp.ImplicitAdjoint(max_steps=100, on_failure="return"),
    }
    for step in range(steps):
        x, y = network.batch(step)
        loss = network.loss(network.solved(x, **settings).value, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def exact_gradients(network: Network, x: Any, y: Any) -> tuple[list[Any], float]:
    """The gradients by dense algebra at the equilibrium, and the largest spectral
    radius of J.
    """
    import torch

    W, _, b, _ = (p.detach() for p in network.parameters)
    z = _iterated_newton(network, x)
    J = (1 - z**2)[:, :, None] * W
    z.requires_grad_()
    v = torch.autograd.grad(network.loss(z, y), z)[0]
    u = torch.linalg.solve(torch.eye(len(b)) - J.mT, v)
    inner = u * (1 - z.detach() ** 2)
    gradients = [inner.T @ z.detach(), inner.T @ x, inner.sum(0)]
    radius = float(torch.linalg.eigvals(J).abs().max())
    return [g.numpy() for g in gradients], radius


def _iterated_newton(network: Network, x: Any) -> Any:
    """The equilibria by Newton's method with the closed-form Jacobian, from an
    approximate one.
    """
    import torch

    args = (x, *(p.detach() for p in network.parameters[:3]))
    with torch.no_grad():
        z = network.solved(x, rtol=1e-8).value
        for _ in range(4):
            image = network.f(z, *args)
            J = (1 - image**2)[:, :, None] * args[1]
            z = z + torch.linalg.solve(torch.eye(z.shape[1]) - J, image - z)
    return z


def adjoints() -> dict[str, Callable[[int], Any]]:
    """What is compared: a function from products to the adjoint."""
    import fixedpoint as fp

    def gmres(products: int) -> Any:
        linear = fp.GMRES(restart=MOST, max_steps=max(1, products - 1))
        solver = fp.NewtonKrylov(linear=linear, forcing=1e-12, line_search=False)
        return fp.ImplicitAdjoint(
            solver=solver, rtol=1e-12, max_steps=1, on_failure="return"
        )

    def cold(solver: Any, products: int) -> Any:
        steps = max(0, products - 1)
        return fp.ImplicitAdjoint(
            solver=solver, rtol=1e-12, max_steps=steps, on_failure="return"
        )

    return {
        "GMRES": gmres,
        "Anderson(20)": partial(cold, fp.Anderson(memory=20)),
        "Broyden(50)": partial(cold, fp.Broyden(memory=50)),
        "shared inverse, GMRES": lambda k: fp.SharedInverse(refine=k),
        "shared inverse, Broyden": lambda k: fp.SharedInverse(outer_aware=k),
        "shared inverse, 3 by Broyden, GMRES": lambda k: fp.SharedInverse(
            outer_aware=min(k, 3), refine=max(0, k - 3)
        ),
    }


def products_needed(
    network: Network, x: Any, y: Any, exact: list[Any], make: Callable[[int], Any]
) -> list[float]:
    """The error without products, then the products to reach each level; infinite if
    too many.
    """
    import torch

    import fixedpoint as fp

    needed, first = dict.fromkeys(LEVELS, math.inf), math.nan
    for budget in range(MOST):
        sol = network.solved(
            x, rtol=1e-5, solver=fp.Broyden(memory=60), adjoint=make(budget)
        )
        loss = network.loss(sol.value, y)
        error = relative_error(torch.autograd.grad(loss, network.parameters[:3]), exact)
        used = sol.backward.products
        first = error if used == 0 else first
        needed = {
            level: min(n, used) if error <= level else n for level, n in needed.items()
        }
        if error <= LEVELS[-1]:
            break
    return [first, *needed.values()]


def shine_section(batches: int = 5) -> list[SharedRow]:
    """Products with Jᵀ to given errors of the gradients of a batch."""
    network = trained()
    found: dict[str, list[list[float]]] = {name: [] for name in adjoints()}
    for index in range(batches):
        x, y = network.batch(index)
        exact, radius = exact_gradients(network, x, y)
        print(f"batch {index}: largest spectral radius {radius:.2f}")
        for name, make in adjoints().items():
            found[name].append(products_needed(network, x, y, exact, make))
    rows = []
    for name, entries in found.items():
        first, *needed = zip(*entries, strict=True)
        median = tuple(map(statistics.median, needed))
        rows.append(
            SharedRow(name, statistics.median(first), median, tuple(map(max, needed)))
        )
    return rows


SECTIONS: dict[str, Callable[[], list[Any]]] = {
    "torch": torch_section,
    "jax": jax_section,
    "memory": memory_section,
    "shine": shine_section,
}


def shown(rows: list[Any]) -> None:
    """Print a table of dataclasses."""
    print("".join(f"{field.name:>14}" for field in fields(rows[0])[1:]))
    for row in rows:
        head, *values = asdict(row).values()
        print(head, "".join(f"{_brief(value):>14}" for value in values))


def _brief(value: Any) -> str:
    if isinstance(value, tuple | list):
        return " ".join(map(_brief, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the sections that are named, or all, and write each down."""
    path = Path(__file__).with_name("gradients.json")
    content = json.loads(path.read_text()) if path.exists() else {}
    for name in sys.argv[1:] or SECTIONS:
        rows = SECTIONS[name]()
        shown(rows)
        content["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        content[name] = [asdict(row) for row in rows]
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
