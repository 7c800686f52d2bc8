"""True error against the tolerance asked for: ``python benchmarks/tolerance.py [part
...]``.

The parts are ``maps``, ``systems`` and ``defaults``; without one, all run. The problems
are those of :mod:`fixedpoint.testing.problems`, and random ones of families whose
answers are known, in units of 1, 1e-6 and 1e6. An answer is compared with a root that
was refined with residuals in extended precision. Tolerances that rounding puts out of
reach are left out. Peers whose tolerance is absolute are given the relative one times
the size of the answer, which a caller would not know. The tables go to the terminal
and, as JSON, to ``benchmarks/tolerance.json``, where parts that were not run stay as
they are; ``benchmarks/tolerance.png`` is drawn from that.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from matplotlib import rc_context
from matplotlib.figure import Figure
from parts import Parts, chosen, recorded
from scipy.optimize import fixed_point as scipy_fixed_point
from scipy.optimize import root as scipy_root

import fixedpoint as fp
from fixedpoint.testing import problems
from fixedpoint.testing.problems import Problem

TOLERANCES = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
UNITS = (1.0, 1e-6, 1e6)
LIMIT = 10_000  # evaluations
SECONDS = 4.0  # of CPU for each attempt
# A tolerance is asked for if it is this many times what rounding changes the answer by.
ABOVE_ROUNDING = 100.0
OURS = "fixedpoint"
SOLVERS: dict[str, Any] = {
    OURS: None,
    "Picard": fp.Picard(),
    "Anderson": fp.Anderson(),
    "SQUAREM": fp.SQUAREM(),
    "Broyden": fp.Broyden(),
    "Newton": fp.Newton(),
    "NewtonKrylov": fp.NewtonKrylov(),
}
OF_ROOTS = (OURS, "Broyden", "Newton", "NewtonKrylov")
# An estimate counts as right up to this factor, where rounding does not blur the error.
FACTOR = 10.0
# An entry of the answer that is so small beside the largest counts as zero, and is not
# judged.
ZERO = 1e-12


# Families of random problems.


def _like(values: Any, z: Any) -> Any:
    return array_namespace(z).asarray(values, dtype=z.dtype)


def shares_map(products: int = 10, consumers: int = 100, seed: int = 0) -> Problem:
    """Mean utilities of products that have given market shares: Berry, Levinsohn and
    Pakes.
    """
    rng = np.random.default_rng(seed)
    utilities = rng.standard_normal(products) + 1.0
    tastes = 0.7 * rng.standard_normal((consumers, 1)) * rng.standard_normal(products)
    function = partial(
        _utilities, tastes=tastes, logarithms=np.log(_shares(utilities, tastes))
    )
    return Problem(
        "shares_map", "fixed point", function, np.zeros(products), (utilities,)
    )


def _shares(utilities: Any, tastes: Any) -> Any:
    xp = array_namespace(utilities)
    weights = xp.exp(utilities + tastes)
    return xp.mean(weights / (1.0 + xp.sum(weights, axis=1, keepdims=True)), axis=0)


def _utilities(z: Any, tastes: np.ndarray, logarithms: np.ndarray) -> Any:
    xp = array_namespace(z)
    return z + _like(logarithms, z) - xp.log(_shares(z, _like(tastes, z)))


def kepler_map(eccentricity: float = 0.8, seed: int = 0) -> Problem:
    """Kepler's equation, E ← M + e sin E."""
    mean = np.random.default_rng(seed).uniform(0.5, 2.5, 1)

    def function(z: Any) -> Any:
        return _like(mean, z) + eccentricity * array_namespace(z).sin(z)

    return Problem(f"kepler_map_{eccentricity}", "fixed point", function, mean)


def gaussian_mixture_map(apart: float = 2.5, seed: int = 0) -> Problem:
    """EM for the weight and the means of two normal distributions of variance one."""
    rng = np.random.default_rng(seed)
    second = rng.random(300) < 0.4
    sample = rng.standard_normal(300) + np.where(second, 1.0 + apart, 1.0)

    def function(z: Any) -> Any:
        xp, x = array_namespace(z), _like(sample, z)
        one, two = (xp.exp(-0.5 * (x - z[k]) ** 2) for k in (1, 2))
        of_one = z[0] * one / (z[0] * one + (1.0 - z[0]) * two)
        weight, rest = xp.sum(of_one), xp.sum(1.0 - of_one)
        means = xp.sum(of_one * x) / weight, xp.sum((1.0 - of_one) * x) / rest
        return xp.stack([weight / sample.size, *means])

    return Problem(
        "gaussian_mixture_map", "fixed point", function, np.array([0.5, 0.5, 4.0])
    )


def scaled(problem: Problem, unit: float) -> Problem:
    """The problem with its state in another unit."""
    if unit == 1.0:
        return problem
    function = lambda z: unit * problem.function(z / unit)
    roots = tuple(unit * known for known in problem.roots)
    name = f"{problem.name} x {unit:g}"
    return replace(
        problem, name=name, function=function, start=unit * problem.start, roots=roots
    )


def random_maps() -> Iterable[Problem]:
    """Three of each family, each in a unit of its own."""
    families: list[Callable[[int], Problem]] = [
        lambda seed: problems.affine_map((0.999, 0.9, 0.99)[seed % 3], seed=seed),
        lambda seed: problems.bellman_map((0.9, 0.99, 0.999)[seed % 3], seed=seed),
        lambda seed: shares_map(seed=seed),
        lambda seed: problems.tanh_map((0.5, 0.9, 1.5)[seed % 3], seed=seed),
        lambda seed: problems.sinkhorn_map(
            entropy=(0.05, 0.02, 0.1)[seed % 3], seed=seed
        ),
        lambda seed: kepler_map((0.3, 0.8, 0.97)[seed % 3], seed=seed),
        lambda seed: gaussian_mixture_map(seed=seed),
        lambda seed: problems.pagerank_map((0.5, 0.85, 0.95)[seed % 3], seed=seed),
    ]
    for family in families:
        for seed, unit in enumerate(UNITS, start=1):
            yield scaled(family(seed), unit)


# References.


@dataclass(frozen=True)
class Reference:
    """A solution, and how much rounding changes it: relatively, in the Euclidean
    norm.
    """

    value: np.ndarray
    floor: float

    @property
    def size(self) -> float:
        """The norm of the solution."""
        return size(self.value)

    def worst(self, x: np.ndarray, start: np.ndarray) -> float:
        """The relative error of the worst entry of `x`, of those that are not zero."""
        difference, z = np.abs(x - self.value), np.abs(self.value)
        where = z > ZERO * max(float(np.max(z)), float(np.max(np.abs(start))))
        return float(np.max(difference[where] / z[where]))


def jacobian(problem: Problem, x: np.ndarray) -> np.ndarray:
    """The derivative of the residual by central differences."""
    columns, scale = [], max(float(np.max(np.abs(x))), 1e-30)
    for j in range(x.size):
        step = np.zeros(x.size)
        step[j] = 1e-6 * max(abs(float(x.flat[j])), 1e-3 * scale)
        step = step.reshape(x.shape)
        change = problem.residual(x + step) - problem.residual(x - step)
        columns.append(np.ravel(change) / (2.0 * step.flat[j]))
    return np.stack(columns, axis=1)


@np.errstate(all="ignore")
def refined(problem: Problem, x: np.ndarray) -> Reference | None:
    """The root that Newton's method leads to from x, with residuals in extended
    precision.
    """
    value, near = np.asarray(x, np.longdouble), False
    for _ in range(40):
        if not near:
            matrix = jacobian(problem, value.astype(float))
            if not np.all(np.isfinite(matrix)) or np.linalg.cond(matrix) > 1e13:
                return None
            inverse = np.linalg.inv(matrix)
        residual = np.ravel(problem.residual(value)).astype(float)
        correction = (inverse @ residual).reshape(x.shape)
        value = value - correction
        near = near or size(correction) <= 1e-6 * size(value)
        if size(correction) <= 1e-17 * size(value):
            break
    if not size(correction) <= 1e-15 * size(value):
        return None
    found = value.astype(float)
    if size(found) <= ZERO * size(problem.start):
        return None
    images = np.abs(np.ravel(found))
    if problem.kind == "root":
        images = np.abs(matrix) @ images
    changes = np.finfo(float).eps * (np.abs(inverse) @ images)
    return Reference(found, size(changes) / size(found))


@np.errstate(all="ignore")
def references(problem: Problem) -> list[Reference]:
    """Its known solutions, or that of a long tight solve, refined; none where zero is
    one.
    """
    starts = list(problem.roots)
    if any(size(x) == 0.0 for x in starts):
        return []
    if not starts:
        solve = fp.root if problem.kind == "root" else fp.fixed_point
        settings = {"rtol": 1e-13, "on_failure": "return", "max_steps": LIMIT}
        starts = [solve(problem.function, problem.start, **settings).value]
    return [found for x in starts if (found := refined(problem, x)) is not None]


def size(x: Any) -> float:
    """The Euclidean norm."""
    return float(np.linalg.norm(np.ravel(x).astype(float)))


def nearest(
    problem: Problem, known: list[Reference], x: np.ndarray, asked: float
) -> Reference:
    """The reference next to an answer: another root that this is close to is added."""
    best = min(known, key=lambda reference: size(x - reference.value))
    if size(x - best.value) > 10.0 * asked * size(best.value) and np.all(
        np.isfinite(x)
    ):
        other = refined(problem, x)
        if other is not None and size(x - other.value) < 0.5 * size(x - best.value):
            known.append(other)
            return other
    return best


# Methods.


class _SpentError(Exception):
    """Raised out of a function whose evaluations or CPU time are used up."""


class Counted:
    """A problem's function that counts its calls, and raises when a limit is passed.

    With a reference it notes the first call at a point that is right, too.
    """

    def __init__(
        self, problem: Problem, reference: Reference | None = None, rtol: float = 0.0
    ) -> None:
        self.problem, self.calls, self.right = problem, 0, None
        self.reference, self.rtol = reference, rtol
        self.deadline = time.process_time() + SECONDS

    def __call__(self, x: Any) -> Any:
        """The value at `x`."""
        if self.calls >= LIMIT or time.process_time() > self.deadline:
            raise _SpentError
        self.calls += 1
        if self.reference is not None and self.right is None:
            right = self.reference.worst(x, self.problem.start) <= self.rtol
            self.right = self.calls if right else None
        return self.problem.function(x)

    def residual(self, x: Any) -> Any:
        """F(x), or f(x) − x."""
        value = self(x)
        return value if self.problem.kind == "root" else value - x


@dataclass(frozen=True)
class Answer:
    """What a method returns, whether it claims success, and what it thinks of its
    error.
    """

    value: np.ndarray
    claim: bool
    evaluations: int
    error: float | None = None
    precise: bool = False
    right: int | None = None  # evaluations up to the first point that was right


# A method gets a problem, a relative tolerance (none: its defaults) and a solution.
Method = Callable[[Problem, float | None, Reference], Answer]


def ours(
    problem: Problem, rtol: float | None, known: Reference, solver: Any, test: str
) -> Answer:
    """``fp.root`` or ``fp.fixed_point``."""
    counted = Counted(problem, known, rtol or 1e-6)
    solve = fp.root if problem.kind == "root" else fp.fixed_point
    settings: dict[str, Any] = {"on_failure": "return"}
    if rtol is not None:
        settings |= {"rtol": rtol, "solver": solver, "test": test, "max_steps": LIMIT}
    sol = solve(counted, problem.start.copy(), **settings)
    return Answer(
        sol.value,
        bool(sol.converged),
        counted.calls,
        float(sol.error),
        bool(sol.precise),
        counted.right,
    )


def of_scipy_root(
    problem: Problem, rtol: float | None, known: Reference, method: str
) -> Answer:
    """``scipy.optimize.root``: its hybr and lm bound the step, the others the
    residual.
    """
    counted, options = Counted(problem), {}
    if rtol is not None:
        options = {
            "hybr": {"xtol": rtol, "maxfev": LIMIT},
            "lm": {"xtol": rtol, "ftol": rtol},
        }.get(method, {"fatol": rtol * known.size, "maxiter": LIMIT})
    sol = scipy_root(
        counted.residual, problem.start.copy(), method=method, options=options
    )
    return Answer(sol.x, bool(sol.success), counted.calls)


def of_scipy_map(
    problem: Problem, rtol: float | None, known: Reference, method: str
) -> Answer:
    """``scipy.optimize.fixed_point``: each entry's last relative change is bounded."""
    del known
    counted = Counted(problem)
    settings = {} if rtol is None else {"xtol": rtol, "maxiter": LIMIT}
    value = scipy_fixed_point(counted, problem.start.copy(), method=method, **settings)
    return Answer(value, True, counted.calls)


def of_torchdeq(
    problem: Problem, rtol: float | None, known: Reference, method: str
) -> Answer:
    """The solvers of torchdeq, stopped on the relative residual."""
    import torch
    from torchdeq.core import get_deq

    del known
    counted = Counted(problem)
    settings: dict[str, Any] = {"f_solver": method}
    if rtol is not None:
        settings |= {"f_tol": rtol, "f_stop_mode": "rel", "f_max_iter": 2000}
    start = torch.from_numpy(np.ravel(problem.start).copy())[None]
    shape = problem.start.shape
    with torch.no_grad():
        states, info = get_deq(**settings)(
            lambda z: torch.reshape(counted(torch.reshape(z, shape)), (1, -1)), start
        )
    key, tolerance = ("abs_lowest", 1e-3) if rtol is None else ("rel_lowest", rtol)
    value = states[-1].numpy().reshape(shape)
    return Answer(value, float(info[key].max()) < tolerance, counted.calls)


def of_jaxopt(
    problem: Problem, rtol: float | None, known: Reference, method: str
) -> Answer:
    """The solvers of jaxopt, whose tolerance is one on the norm of the residual."""
    bound, steps = JAXOPT_DEFAULTS if rtol is None else (rtol * known.size, LIMIT)
    value, error, steps = compiled(problem.function, method)(
        problem.start, bound, steps
    )
    return Answer(np.asarray(value), float(error) <= bound, int(steps) + 1)


@cache
def compiled(function: Any, method: str) -> Callable[..., Any]:
    """A solve by jaxopt, the tolerance and the most steps of which are arguments."""
    import jax
    import jaxopt

    def solve(start: Any, tolerance: Any, steps: Any) -> Any:
        peer = getattr(jaxopt, method)(function, tol=tolerance, maxiter=steps)
        value, state = peer.run(start)
        return value, state.error, state.iter_num

    return jax.jit(solve)


def of_optimistix(
    problem: Problem, rtol: float | None, known: Reference, method: str
) -> Answer:
    """Optimistix's solvers, whose tolerance is one on the last step, or on what is to
    come.
    """
    value, good, steps = compiled_optimistix(problem.function, problem.kind, method)(
        problem.start, rtol, rtol * known.size * 1e-3
    )
    return Answer(np.asarray(value), bool(good), int(steps) + 1)


@cache
def compiled_optimistix(function: Any, kind: str, method: str) -> Callable[..., Any]:
    """A solve by Optimistix, the tolerances of which are arguments."""
    import jax
    import optimistix

    search = optimistix.root_find if kind == "root" else optimistix.fixed_point

    def solve(start: Any, rtol: Any, atol: Any) -> Any:
        solver = getattr(optimistix, method)(rtol=rtol, atol=atol)
        sol = search(
            lambda z, _: function(z), solver, start, max_steps=LIMIT, throw=False
        )
        return (
            sol.value,
            sol.result == optimistix.RESULTS.successful,
            sol.stats["num_steps"],
        )

    return jax.jit(solve)


OF_MAPS: dict[str, Method] = {
    "SciPy fixed_point(del2)": partial(of_scipy_map, method="del2"),
    "SciPy fixed_point(iteration)": partial(of_scipy_map, method="iteration"),
    "SciPy root(hybr)": partial(of_scipy_root, method="hybr"),
    "SciPy root(anderson)": partial(of_scipy_root, method="anderson"),
    "jaxopt FixedPointIteration": partial(of_jaxopt, method="FixedPointIteration"),
    "jaxopt AndersonAcceleration": partial(of_jaxopt, method="AndersonAcceleration"),
    "optimistix FixedPointIteration": partial(
        of_optimistix, method="FixedPointIteration"
    ),
    "optimistix Newton": partial(of_optimistix, method="Newton"),
    "torchdeq fixed_point_iter": partial(of_torchdeq, method="fixed_point_iter"),
    "torchdeq anderson": partial(of_torchdeq, method="anderson"),
}
OF_SYSTEMS: dict[str, Method] = {
    "SciPy root(hybr)": partial(of_scipy_root, method="hybr"),
    "SciPy root(lm)": partial(of_scipy_root, method="lm"),
    "optimistix Newton": partial(of_optimistix, method="Newton"),
}
JAXOPT_DEFAULTS = 1e-5, 100  # tolerance and steps
WITHOUT_DEFAULTS = ("optimistix FixedPointIteration", "optimistix Newton")


# Measurements.


@dataclass(frozen=True)
class Attempt:
    """An answer assessed.

    `ratio` is the true error beside the one asked for, in the Euclidean norm, and
    `worst` the same of the worst entry; `estimate` is the error that the method names,
    beside the true one; `right` counts evaluations up to the first point that was
    right.
    """

    problem: str
    method: str
    rtol: float
    claim: bool
    evaluations: int
    error: float
    ratio: float
    worst: float
    estimate: float | None
    precise: bool
    right: int | None


def attempts(
    problem: Problem,
    known: list[Reference],
    name: str,
    method: Method,
    tolerances: list[float],
) -> list[Attempt]:
    """Run a method at ever tighter tolerances; cut off at one, it is not tried at the
    next.
    """
    rows: list[Attempt] = []
    for rtol in tolerances:
        spent = bool(rows) and rows[-1].evaluations >= LIMIT
        row = (
            replace(rows[-1], rtol=rtol)
            if spent
            else attempt(problem, known, name, method, rtol)
        )
        rows.append(row)
    return rows


def attempt(
    problem: Problem,
    known: list[Reference],
    name: str,
    method: Method,
    rtol: float | None,
) -> Attempt:
    """Run a method; one that raises, or is cut off, claims nothing."""
    nothing = Answer(np.full_like(problem.start, np.nan), False, LIMIT)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            answer = method(problem, rtol, known[0])
        except Exception:  # whatever a peer raises
            answer = nothing
    return assessed(problem, known, name, answer, rtol)


def assessed(
    problem: Problem,
    known: list[Reference],
    name: str,
    answer: Answer,
    rtol: float | None,
) -> Attempt:
    """What an answer is worth."""
    asked = rtol or 1e-6
    reference = (
        nearest(problem, known, answer.value, asked) if answer.claim else known[0]
    )
    difference = np.abs(answer.value - reference.value)
    error, worst = (
        size(difference) / reference.size,
        reference.worst(answer.value, problem.start),
    )
    estimate = None
    if answer.error is not None and error > FACTOR * reference.floor:
        estimate = answer.error / size(difference)
    return Attempt(
        problem=problem.name,
        method=name,
        rtol=asked,
        claim=answer.claim,
        evaluations=answer.evaluations,
        error=error,
        ratio=error / asked,
        worst=worst / asked,
        estimate=estimate,
        precise=answer.precise,
        right=answer.right,
    )


def measured(
    listed: Iterable[Problem], names: Iterable[str], peers: dict[str, Method]
) -> tuple[list[str], list[Attempt]]:
    """Every method on every problem, at every tolerance in reach."""
    methods: dict[str, Method] = {}
    for name in names:
        for test, suffix in (("error", ""), ("residual", RESIDUAL)):
            methods[name + suffix] = partial(ours, solver=SOLVERS[name], test=test)
    methods |= peers
    done, rows = [], []
    for problem in listed:
        known = references(problem)
        if not known:
            print(
                f"{problem.name}: left out, its Jacobian is singular or its answer zero"
            )
            continue
        done.append(problem.name)
        floor = max(reference.floor for reference in known)
        reach = [rtol for rtol in TOLERANCES if rtol >= ABOVE_ROUNDING * floor]
        for name, method in methods.items():
            rows += attempts(problem, known, name, method, reach)
        report(problem, rows)
    return done, rows


RESIDUAL = ", residual"


def report(problem: Problem, rows: list[Attempt]) -> None:
    """A line for a problem: the largest ratios that a claim of ours had."""
    own = [row for row in rows if row.problem == problem.name and row.claim]
    cells = []
    for name in SOLVERS:
        ratios = [row.worst for row in own if row.method == name and not row.precise]
        cells.append(f"{max(ratios):14.2g}" if ratios else f"{'-':>14}")
    print(f"{problem.name:34}" + "".join(cells), flush=True)


# From attempts to the table.


def quantile(values: list[float], share: float) -> float | None:
    """A quantile, none of nothing."""
    return float(np.quantile(values, share)) if values else None


def percent(flags: list[bool]) -> float | None:
    """How many of a hundred."""
    return 100.0 * sum(flags) / len(flags) if flags else None


def summary(rows: list[Attempt], method: str) -> dict[str, Any]:
    """A line of the table."""
    mine = [row for row in rows if row.method == method]
    claims = [row for row in mine if row.claim and not row.precise]
    ratios = [row.ratio for row in claims]
    estimates = [row.estimate for row in claims if row.estimate is not None]
    prices = price(rows, method)
    late = [row.evaluations / row.right for row in claims if row.right is not None]
    return {
        "method": method,
        "asked": len(mine),
        "claimed": len(claims),
        "precise": sum(row.claim and row.precise for row in mine),
        "median": quantile(ratios, 0.5),
        "q90": quantile(ratios, 0.9),
        "q99": quantile(ratios, 0.99),
        "largest": quantile(ratios, 1.0),
        "within 10": percent([ratio <= 10.0 for ratio in ratios]),
        "within 1000": percent([ratio <= 1000.0 for ratio in ratios]),
        "entries within 10": percent([row.worst <= 10.0 for row in claims]),
        "estimates": percent([1.0 / FACTOR <= e <= FACTOR for e in estimates]),
        "price": quantile(prices, 0.5),
        "price 90": quantile(prices, 0.9),
        "late": quantile(late, 0.5),
        "late 90": quantile(late, 0.9),
    }


def price(rows: list[Attempt], method: str) -> list[float]:
    """Evaluations beside those of the same solver with the test of residuals."""
    of = {(row.problem, row.rtol, row.method): row for row in rows}
    quotients = []
    for row in rows:
        other = of.get((row.problem, row.rtol, method + RESIDUAL))
        if row.method == method and row.claim and other is not None and other.claim:
            quotients.append(row.evaluations / max(other.evaluations, 1))
    return quotients


def curve(rows: list[Attempt], method: str) -> list[list[float]]:
    """The tolerance, and the quantiles of the true relative error that claims of it
    had.
    """
    points = []
    for rtol in TOLERANCES:
        chosen = [
            row
            for row in rows
            if row.method == method and row.rtol == rtol and row.claim
        ]
        errors = [max(row.error, 1e-17) for row in chosen]
        if errors:
            points.append(
                [rtol, *(float(np.quantile(errors, q)) for q in (0.1, 0.5, 0.9))]
            )
    return points


def worst_claims(rows: list[Attempt]) -> list[dict[str, Any]]:
    """Our claims that are wrong by more than a thousand times what was asked."""
    wrong = [
        row
        for row in rows
        if row.claim
        and not row.precise
        and row.worst > 1000.0
        and row.method in SOLVERS
    ]
    return [
        {
            "problem": row.problem,
            "method": row.method,
            "rtol": row.rtol,
            "ratio": row.worst,
        }
        for row in wrong
    ]


def table(
    listed: Iterable[Problem], names: Iterable[str], peers: dict[str, Method]
) -> Any:
    """A part of the file."""
    done, rows = measured(listed, names, peers)
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = [summary(rows, method) for method in methods]
    show(lines)
    wrong = worst_claims(rows)
    for claim in wrong:
        print("  1000 times and more:", claim)
    curves = {method: curve(rows, method) for method in methods}
    return {"problems": len(done), "rows": lines, "wrong": wrong, "curves": curves}


def show(lines: list[dict[str, Any]]) -> None:
    """Print the table."""
    heads = [head for head in lines[0] if head not in ("kind", "method")]
    print(f"\n{'method':34}" + "".join(f"{head:>18}" for head in heads))
    for line in lines:
        cells = ("-" if line[h] is None else f"{line[h]:.4g}" for h in heads)
        print(f"{line['method']:34}" + "".join(f"{cell:>18}" for cell in cells))


def maps_table() -> dict[str, Any]:
    """The maps of the library, and the random ones."""
    return table([*problems.maps(), *random_maps()], SOLVERS, OF_MAPS)


def systems_table() -> dict[str, Any]:
    """The systems of the library."""
    return table(problems.systems(), OF_ROOTS, OF_SYSTEMS)


def defaults_table() -> dict[str, Any]:
    """Calls that name no tolerance and no solver."""
    kinds = {
        "maps": ([*problems.maps(), *random_maps()], OF_MAPS),
        "systems": (problems.systems(), OF_SYSTEMS),
    }
    lines = []
    for kind, (listed, peers) in kinds.items():
        methods = {OURS: partial(ours, solver=None, test="error")} | {
            name: method
            for name, method in peers.items()
            if name not in WITHOUT_DEFAULTS
        }
        pairs = [
            (problem, known) for problem in listed if (known := references(problem))
        ]
        for name, method in methods.items():
            rows = [
                attempt(problem, known, name, method, None) for problem, known in pairs
            ]
            lines.append({"kind": kind, **of_defaults(name, rows)})
    show([{**line, "method": f"{line['kind']}: {line['method']}"} for line in lines])
    return {"rows": lines}


def of_defaults(name: str, rows: list[Attempt]) -> dict[str, Any]:
    """A line of the table of defaults: `claimed` answers, and their true relative
    errors.
    """
    claims = [row for row in rows if row.claim]
    errors = [row.error for row in claims]
    return {
        "method": name,
        "asked": len(rows),
        "claimed": len(claims),
        "median": quantile(errors, 0.5),
        "q90": quantile(errors, 0.9),
        "largest": quantile(errors, 1.0),
        "wrong": sum(error > 1e-3 for error in errors),
        "evaluations": quantile([row.evaluations for row in claims], 0.5),
    }


# The picture.


def draw(content: dict[str, Any], path: Path) -> None:
    """True error against tolerance: the solvers of this library, and the peers."""
    curves = content["maps"]["curves"]
    panels = {
        # The curve of Anderson is that of the default, which begins with it.
        "fixedpoint": {OURS: "default"}
        | {n: n for n in curves if n in SOLVERS and n not in {OURS, "Anderson"}},
        "other libraries": {n: n.split()[0] for n in curves if n in OF_MAPS},
    }
    with rc_context({"font.size": 11}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for ax, (title, labels) in zip(axes, panels.items(), strict=True):
            draw_curves(ax, {name: curves[name] for name in labels}, labels)
            ax.set(title=title, xlabel="relative tolerance")
        axes[0].set(ylim=(1e-16, 1e1), ylabel="true relative error")
        axes[0].invert_xaxis()
        figure.savefig(path, dpi=130)


def draw_curves(ax: Any, curves: dict[str, Any], labels: dict[str, str]) -> None:
    """The median solid, the 90 % quantile dotted, and a color for each label."""
    colors: dict[str, str] = {}
    for name, points in curves.items():
        tolerance, _, median, high = np.transpose(points)
        label = labels[name]
        new = None if label in colors else label.replace("optimistix", "Optimistix")
        color = colors.setdefault(label, f"C{len(colors)}")
        ax.loglog(tolerance, median, color, marker="o", ms=3, label=new)
        ax.loglog(tolerance, high, color, ls=":", lw=1.2)
    ends = [TOLERANCES[0], TOLERANCES[-1]]
    ax.loglog(ends, ends, color="black", lw=1.6, label="asked for")
    ax.legend(loc="upper right", fontsize=9)


PARTS: Parts = {
    "maps": maps_table,
    "systems": systems_table,
    "defaults": defaults_table,
}


def main() -> None:
    """Run the parts that were asked for, and write each down when it is done."""
    names = chosen(PARTS, "True error against the tolerance asked for")
    import jax
    import torch

    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    path = Path(__file__).with_name("tolerance.json")
    content = recorded(PARTS, names, path)
    if "maps" in content:
        draw(content, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
