"""Who solves what, and within how many evaluations: ``python benchmarks/robustness.py
[part ...]``.

The parts are ``systems``, ``large``, ``maps`` and ``bratu``; without one, all run. The
problems are those of :mod:`fixedpoint.testing.problems`. An answer counts as solved by
its residual, evaluated afterwards, whatever the method says; a method that claims
success without that has made a false claim. Differences count as the evaluations they
take. The tables go to the terminal and, as JSON, to ``benchmarks/robustness.json``,
where parts that were not run stay as they are.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aa
import numpy as np
from parts import Parts, chosen, recorded
from scipy.optimize import anderson, newton_krylov
from scipy.optimize import root as scipy_root

import fixedpoint as fp
from fixedpoint.testing import problems
from fixedpoint.testing.problems import Problem

LIMIT = 10_000  # evaluations
PICARD_LIMIT = 100_000
SECONDS = 20.0  # of CPU for each attempt
TOLERANCE = 1e-9  # what the methods are asked for, in the largest component
# What an answer must meet, relative to its largest component if that is above 1.
ACCEPTED = 1e-8
MEMORY = 10
LARGE = (30, 100, 300, 1000)
ROUNDS = 5  # of timings
BRATU_SIZES, BRATU_TOLERANCE = (64, 128), 1e-8

# The tolerance of hybr and lm is one on the step, which has to lie below that on the
# residual.
SCIPY_OPTIONS: dict[str, dict[str, Any]] = {
    "hybr": {"xtol": 1e-12, "maxfev": LIMIT},
    "lm": {"xtol": 1e-12, "ftol": 1e-12, "maxiter": LIMIT},
    "krylov": {"fatol": TOLERANCE, "maxiter": LIMIT},
    "anderson": {"fatol": TOLERANCE, "maxiter": LIMIT},
    "broyden1": {"fatol": TOLERANCE, "maxiter": LIMIT},
    "df-sane": {"ftol": 0.0, "fatol": TOLERANCE, "maxfev": LIMIT},
}


class _SpentError(Exception):
    """Raised out of a function whose evaluations or CPU time are used up."""


class Counted:
    """A problem's function that counts its calls, and raises when a limit is passed."""

    def __init__(self, problem: Problem, limit: int) -> None:
        self.function, self.is_root = problem.function, problem.kind == "root"
        self.limit, self.deadline = limit, time.process_time() + SECONDS
        self.calls, self.spent = 0, False
        self.best, self.smallest = problem.start, np.inf

    def __call__(self, x: Any) -> Any:
        """The value at `x`; the point of the smallest residual is remembered."""
        if self.calls >= self.limit or time.process_time() > self.deadline:
            self.spent = True
            raise _SpentError
        self.calls += 1
        value = self.function(x)
        size = largest(value if self.is_root else value - x)
        if size < self.smallest:
            self.best, self.smallest = np.array(x), size
        return value


@dataclass(frozen=True)
class Answer:
    """What a method returns: the value, whether it claims success, and what it says
    besides.
    """

    value: Any
    claim: bool
    note: str = ""


Method = Callable[[Counted, np.ndarray], Answer]


@dataclass(frozen=True)
class Attempt:
    """A method on a problem.

    `mark` is "solved", "failed", "error" for a method that raised, or "FALSE" for a
    false claim.
    """

    problem: str
    n: int
    method: str
    evaluations: int
    mark: str
    residual: float | None
    note: str


def largest(x: Any) -> float:
    """The maximum norm."""
    return float(np.max(np.abs(x)))


def attempt(problem: Problem, name: str, method: Method, limit: int = LIMIT) -> Attempt:
    """Run a method; one that is cut off answers with the best point it has
    evaluated.
    """
    counted = Counted(problem, limit)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            answer = method(counted, problem.start.copy())
        except Exception as error:
            lost = Answer(None, False, f"{type(error).__name__}: {error}")
            answer = Answer(counted.best, False, "cut off") if counted.spent else lost
        residual, solved = checked(problem, answer.value)
    unsolved = (
        "error" if answer.value is None else "FALSE" if answer.claim else "failed"
    )
    mark = "solved" if solved else unsolved
    size = int(problem.start.size)
    return Attempt(problem.name, size, name, counted.calls, mark, residual, answer.note)


def checked(problem: Problem, value: Any) -> tuple[float | None, bool]:
    """The residual of an answer, None if it is not finite, and whether it is
    accepted.
    """
    if value is None:
        return None, False
    residual = largest(problem.residual(value))
    accepted = residual <= ACCEPTED * max(1.0, largest(value))
    return (residual if math.isfinite(residual) else None), accepted


# Systems.


def our_root(F: Counted, x0: np.ndarray) -> Answer:
    """``fp.root`` with no solver named."""
    sol = fp.root(F, x0, **_asked())
    return _packed(sol)


def their_root(F: Counted, x0: np.ndarray, method: str) -> Answer:
    """``scipy.optimize.root``."""
    options = dict(SCIPY_OPTIONS[method])
    if method == "df-sane":
        options["fnorm"] = largest
    sol = scipy_root(F, x0, method=method, options=options)
    return Answer(sol.x, bool(sol.success))


def _asked() -> dict[str, Any]:
    """What ``fp.root`` and ``fp.fixed_point`` are asked for."""
    return {
        "rtol": 0.0,
        "atol": TOLERANCE,
        "norm": "max",
        "test": "residual",
        "on_failure": "return",
        "max_steps": LIMIT,
        "budget": fp.Budget(evaluations=LIMIT, seconds=SECONDS),
    }


def _packed(sol: fp.Solution) -> Answer:
    return Answer(sol.value, bool(sol.converged), sol.methods[int(sol.method)])


def systems_table() -> dict[str, Any]:
    """The collection at its standard sizes, next to six methods of SciPy."""
    return {"attempts": _systems(problems.systems(), list(SCIPY_OPTIONS))}


def large_table() -> dict[str, Any]:
    """The scalable systems, next to the two methods of SciPy that bear their size."""
    rows = []
    for n in LARGE:
        rows += _systems(problems.large_systems(n), ["hybr", "krylov"])
    return {"attempts": rows}


def _systems(systems: list[Problem], names: list[str]) -> list[dict[str, Any]]:
    methods: dict[str, Method] = {"fixedpoint": our_root}
    methods |= {name: partial(their_root, method=name) for name in names}
    _header(list(methods), "solver")
    rows = []
    for problem in systems:
        row = [attempt(problem, name, method) for name, method in methods.items()]
        print(_line(row), f" {row[0].note}", flush=True)
        rows += row
    _totals(rows, list(methods))
    return [asdict(row) for row in rows]


# Maps.


def our_map(f: Counted, z0: np.ndarray, solver: Any = None) -> Answer:
    """``fp.fixed_point``, by default with no solver named."""
    return _packed(fp.fixed_point(f, z0, solver=solver, **_asked()))


def aa_map(f: Counted, z0: np.ndarray, **options: Any) -> Answer:
    """Anderson acceleration of type 2 by cvxgrp's ``aa``.

    Its safeguard is left out: with it, aa takes as many or more evaluations on most of
    the maps, and fails on one.
    """
    memory = min(MEMORY, z0.size)
    return _iterated(
        f, z0, aa.AndersonAccelerator(z0.size, memory, type1=False, **options)
    )


def picard_map(f: Counted, z0: np.ndarray) -> Answer:
    """Plain iteration."""
    return _iterated(f, z0, None)


def _iterated(f: Counted, z0: np.ndarray, accelerator: Any) -> Answer:
    """Iterate f, with the accelerator applied to each image but the first."""
    z = previous = z0.reshape(-1)
    while True:
        if accelerator and previous is not z:
            accelerator.apply(z, previous)
        previous = z.copy()
        z = f(previous.reshape(z0.shape)).reshape(-1).copy()
        if largest(z - previous) <= TOLERANCE:
            return Answer(previous.reshape(z0.shape), True)


def scipy_map(f: Counted, z0: np.ndarray) -> Answer:
    """SciPy's ``anderson``, without line search."""
    options = {"M": MEMORY, "alpha": 1.0, "line_search": None, "maxiter": LIMIT}
    return Answer(anderson(lambda z: f(z) - z, z0, f_tol=TOLERANCE, **options), True)


OUR_MAPS: dict[str, Method] = {
    "fixedpoint": our_map,
    f"Anderson({MEMORY})": partial(our_map, solver=fp.Anderson(memory=MEMORY)),
}

# By default aa accelerates once its memory is full.
AA_MAPS: dict[str, Method] = {
    "aa": aa_map,
    "aa (min_len=1)": partial(aa_map, min_len=1),
}


def maps_table() -> dict[str, Any]:
    """The maps: ours next to aa's and SciPy's Anderson acceleration, and to plain
    iteration.
    """
    methods = {**OUR_MAPS, **AA_MAPS, "SciPy anderson": scipy_map, "Picard": picard_map}
    _header(
        list(methods),
        "".join(f"{name + ' / aa':>18}" for name in OUR_MAPS) + "  solver",
    )
    rows = []
    for problem in problems.maps():
        row = {
            name: attempt(
                problem, name, method, PICARD_LIMIT if name == "Picard" else LIMIT
            )
            for name, method in methods.items()
        }
        shown = "".join(f"{_ratio(row[name], row['aa']):18.2f}" for name in OUR_MAPS)
        print(
            _line(list(row.values())), shown, f" {row['fixedpoint'].note}", flush=True
        )
        rows.append(row)
    attempts = [cell for row in rows for cell in row.values()]
    _totals(attempts, list(methods))
    for ours, theirs in itertools.product(OUR_MAPS, AA_MAPS):
        ratios = [_ratio(row[ours], row[theirs]) for row in rows]
        fewer = sum(ratio <= 1.0 for ratio in ratios)
        wins = f"at most as many on {fewer} of {len(ratios)}"
        print(f"{ours} / {theirs}: {wins}, largest ratio {max(ratios):.2f}")
    return {"attempts": [asdict(cell) for cell in attempts]}


def _ratio(ours: Attempt, theirs: Attempt) -> float:
    """Of evaluations: infinite if we fail, zero if only they do."""
    if ours.mark != "solved":
        return math.inf
    return ours.evaluations / theirs.evaluations if theirs.mark == "solved" else 0.0


# Both tables.


def _header(methods: list[str], more: str) -> None:
    print(
        f"\n{'problem':32}{'n':>5}" + "".join(f"{name:>15}" for name in methods),
        f" {more}",
    )


def _line(row: list[Attempt]) -> str:
    cells = "".join(f"{a.evaluations:8} {a.mark:6}" for a in row)
    return f"{row[0].problem:32}{row[0].n:5}{cells}"


def _totals(rows: list[Attempt], methods: list[str]) -> None:
    """How many each method solved, its false claims, and the errors it raised."""
    for title, mark in (("solved", "solved"), ("false claims", "FALSE")):
        marks = {
            name: [row.mark for row in rows if row.method == name] for name in methods
        }
        counts = (f"{m.count(mark)} of {len(m)}" for m in marks.values())
        print(f"{title:37}" + "".join(f"{count:>15}" for count in counts))
    for row in rows:
        if row.mark == "error":
            print(
                f"  {row.method} on {row.problem}: {' '.join(row.note.split())[:100]}"
            )


# Bratu.


@dataclass(frozen=True)
class Timing:
    """A method on Bratu's problem: median CPU seconds, and SciPy's divided by them."""

    problem: str
    method: str
    seconds: float
    ratio: float
    evaluations: int
    products: int
    residual: float


class Tally:
    """A function that counts its calls, and does nothing else."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        """The value."""
        self.calls += 1
        return self.function(*args)


def our_variants(problem: Problem) -> list[tuple[str, dict[str, Any]]]:
    """The calls of ``fp.root`` to time: a name, and the arguments."""
    exact = {"jvp": problem.jvp}
    bicgstab = {"solver": fp.NewtonKrylov(linear=fp.BiCGStab())}
    gradient = {"solver": fp.NewtonKrylov(linear=fp.ConjugateGradient())}
    recycling = fp.ConjugateGradient(recycle=8)
    recycled = {"solver": fp.NewtonKrylov(linear=recycling, forcing=1e-3)}
    return [
        ("no solver named", {}),
        ("no solver named, jvp", exact),
        ("NewtonKrylov(BiCGStab)", bicgstab),
        ("NewtonKrylov(BiCGStab), jvp", bicgstab | exact),
        ("NewtonKrylov(ConjugateGradient)", gradient),
        ("NewtonKrylov(ConjugateGradient), jvp", gradient | exact),
        ("NewtonKrylov(recycled gradients)", recycled),
        ("NewtonKrylov(recycled gradients), jvp", recycled | exact),
    ]


def our_bratu(problem: Problem, arguments: dict[str, Any]) -> tuple[Any, int, int]:
    """The value by ``fp.root``, evaluations, and products."""
    function, jvp = Tally(problem.function), Tally(problem.jvp)
    if "jvp" in arguments:
        arguments = arguments | {"jvp": jvp}
    sol = fp.root(
        function,
        problem.start,
        rtol=BRATU_TOLERANCE,
        test="residual",
        on_failure="return",
        **arguments,
    )
    return sol.value, function.calls, jvp.calls


def their_bratu(problem: Problem) -> tuple[Any, int, int]:
    """The value by SciPy's ``newton_krylov``, to the same reduction in the same
    norm.
    """
    function, norm = Tally(problem.function), np.linalg.norm
    tolerance = BRATU_TOLERANCE * norm(problem.function(problem.start))
    value = newton_krylov(
        function, problem.start, method="lgmres", f_tol=tolerance, tol_norm=norm
    )
    return value, function.calls, 0


def bratu_table() -> dict[str, Any]:
    """CPU times of Newton–Krylov methods, taken in turn."""
    head = f"{'CPU s':>9}{'SciPy/it':>10}{'F':>8}{'products':>10}{'residual':>11}"
    print(f"\n{'problem':12}{'method':40}{head}")
    rows = []
    for n in BRATU_SIZES:
        problem = problems.bratu(n)
        for row in _timed(f"bratu({n})", problem):
            rows.append(row)
            print(
                f"{row.problem:12}{row.method:40}{row.seconds:9.3f}{row.ratio:10.2f}"
                f"{row.evaluations:8}{row.products:10}{row.residual:11.1e}",
                flush=True,
            )
    return {"timings": [asdict(row) for row in rows]}


def _timed(name: str, problem: Problem) -> list[Timing]:
    """Each method's median time; `residual` is relative to the first one."""
    solves = {"SciPy newton_krylov(lgmres)": partial(their_bratu, problem)}
    for variant, arguments in our_variants(problem):
        solves[variant] = partial(our_bratu, problem, arguments)
    seconds: dict[str, list[float]] = {method: [] for method in solves}
    answers = {}
    for _ in range(ROUNDS):
        for method, solve in solves.items():
            begin = time.process_time()
            answers[method] = solve()
            seconds[method].append(time.process_time() - begin)
    medians = [statistics.median(taken) for taken in seconds.values()]
    first = np.linalg.norm(problem.function(problem.start))
    rows = []
    for (method, (value, *counts)), median in zip(
        answers.items(), medians, strict=True
    ):
        residual = float(np.linalg.norm(problem.function(value)) / first)
        rows.append(
            Timing(name, method, median, medians[0] / median, *counts, residual)
        )
    return rows


PARTS: Parts = {
    "systems": systems_table,
    "large": large_table,
    "maps": maps_table,
    "bratu": bratu_table,
}


def main() -> None:
    """Run the parts that were asked for, and write each down when it is done."""
    names = chosen(PARTS, "Who solves what, and within how many evaluations")
    recorded(PARTS, names, Path(__file__).with_name("robustness.json"))


if __name__ == "__main__":
    main()
