"""Random problems, most of them ill-natured: no crash, no hang, and nothing said that
is not so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import fixedpoint as fp

SOLVERS = [
    fp.Picard(),
    fp.Picard(damping=0.3),
    fp.Anderson(memory=3),
    fp.Anderson(memory=5, damping=0.5),
    fp.Anderson(memory=4, type=1),
    fp.Broyden(),
    fp.Broyden(memory=2, update="bad"),
    fp.Broyden(line_search=True),
    fp.SQUAREM(),
    fp.Newton(),
    fp.Newton(line_search=False),
    fp.Newton(line_search=False, step_bound=0.5),
    fp.LevenbergMarquardt(),
    fp.NewtonKrylov(),
    fp.NewtonKrylov(linear=fp.BiCGStab(max_steps=20), line_search=False),
    fp.NewtonKrylov(linear=fp.ConjugateGradient(max_steps=20), step_bound=1.0),
    fp.NewtonKrylov(linear=fp.ConjugateGradient(max_steps=20, recycle=2)),
    fp.PseudoTransient(linear=fp.GMRES(max_steps=20)),
    fp.Fallback([fp.SQUAREM(), fp.Broyden(), fp.Newton()]),
    None,
]
NUMBER, NUMBER_TORCH = 120, 30  # of problems for each solver


class Namespace:
    """What the functions below need, under one name in NumPy and in Torch."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    def __getattr__(self, name: str) -> Any:
        return getattr(self.xp, name)

    def asarray(self, array: np.ndarray) -> Any:
        return torch.as_tensor(array) if self.xp is torch else array


def numpy(array: Any) -> np.ndarray:
    return array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


# Functions of z, with a matrix A and a vector b of random entries at the problem's
# scale s. They work on the last axis, so that any axes before it index samples.


def affine(xp, z, A, b, s):
    return (z[..., None, :] * A).sum(-1) + b


def saturating(xp, z, A, b, s):
    return s * xp.tanh(affine(xp, z, A, b, s) / s)


def chaotic(xp, z, A, b, s):
    return 3.9 * z * (1.0 - z / s)


def square(xp, z, A, b, s):
    return z * z / s - abs(b)


def cubic(xp, z, A, b, s):
    return z * (z / s) * (z / s) + affine(xp, z, A, b, s)


def pole(xp, z, A, b, s):
    return s * (s / z) + b


def poles(xp, z, A, b, s):
    return s * xp.tan(3.0 * z / s) + b


def logarithm(xp, z, A, b, s):
    return s * xp.log(z / s) + b


def root_of_square(xp, z, A, b, s):
    return s * xp.sqrt(z / s) - abs(b)


def explosive(xp, z, A, b, s):
    return s * xp.exp(affine(xp, z, A, b, s) / s) - b


def hole(xp, z, A, b, s):
    """Not a number beyond a half-space."""
    return xp.where(z > 0.7 * s, z * float("nan"), affine(xp, z, A, b, s))


def wall(xp, z, A, b, s):
    """Infinite in an entry of the state that is too small."""
    return xp.where(z < -0.5 * s, z * float("-inf"), saturating(xp, z, A, b, s))


def jump(xp, z, A, b, s):
    return s * xp.sign(z) - 0.3 * z + b


def stairs(xp, z, A, b, s):
    return s * xp.floor(2.0 * z / s) / 3.0 + b


def kink(xp, z, A, b, s):
    return abs(affine(xp, z, A, b, s)) - b


def flat(xp, z, A, b, s):
    """A constant: the Jacobian of a root is zero."""
    return 0.0 * z + b


def identity(xp, z, A, b, s):
    return 1.0 * z


def runaway(xp, z, A, b, s):
    return z + b


def undefined(xp, z, A, b, s):
    """Raises outside a box."""
    if bool((abs(z) > 1.5 * s).any()):
        raise fp.DomainError("outside the box")
    return 0.9 * affine(xp, z, A, b, s)


def noisy(xp, z, A, b, s):
    return saturating(xp, z, A, b, s) + 1e-9 * s * xp.sin(1e12 * z / s)


FUNCTIONS = [
    affine,
    saturating,
    chaotic,
    square,
    cubic,
    pole,
    poles,
    logarithm,
    root_of_square,
    explosive,
    hole,
    wall,
    jump,
    stairs,
    kink,
    flat,
    identity,
    runaway,
    undefined,
    noisy,
]


@dataclass
class Problem:
    """A function that counts its calls, where to start, and what to ask for."""

    xp: Namespace
    function: Any
    start: Any
    arguments: tuple
    is_root: bool
    settings: dict
    calls: int = 0

    def __call__(self, z):
        self.calls += 1
        return self.function(self.xp, z, *self.arguments)

    def residual(self, z):
        """In double precision, and its scale: that of f(z), or of F at the start."""
        with np.errstate(all="ignore"):
            image, value = (numpy(a).astype(float) for a in (self(z), z))
            if not self.is_root:
                return image - value, image
            return image, numpy(self(self.start)).astype(float)


def draw(rng, xp):
    """A random problem."""
    n = int(rng.integers(1, 9))
    batch = tuple(rng.choice([0, 1, 3], 1)) if rng.random() < 0.3 else ()
    scale = float(rng.choice([1.0, 1.0, 1.0, 1e150, 1e-150, 1e8, 1e-8]))
    single = bool(rng.random() < 0.2)
    dtype = np.float32 if single else np.float64
    scale = min(max(scale, 1e-8), 1e8) if single else scale
    A = (
        rng.standard_normal((*batch, n, n))
        * rng.choice([0.0, 0.3, 0.9, 1.0, 3.0])
        / np.sqrt(n)
    )
    if rng.random() < 0.2:
        A[..., -1, :] = A[..., 0, :]  # singular
    b, z = rng.standard_normal((2, *batch, n)) * scale
    z *= rng.choice([0.0, 1.0, 1.0, 10.0])
    settings = {
        "rtol": float(rng.choice([0.0, 1e-12, 1e-6, 1e-2])),
        "atol": float(rng.choice([0.0, 1e-9, 1e-3])) * scale,
        "norm": str(rng.choice(["euclidean", "max"])),
        "test": str(rng.choice(["error", "residual"])),
        "max_steps": int(rng.choice([0, 1, 7, 60])),
        "batch_ndim": len(batch),
    }
    A, b, z = (xp.asarray(a.astype(dtype)) for a in (A, b, z))
    function = FUNCTIONS[rng.integers(len(FUNCTIONS))]
    return Problem(xp, function, z, (A, b, scale), bool(rng.random() < 0.5), settings)


def norm_of(vector, kind):
    """Per sample, free of overflow."""
    largest = np.max(np.abs(vector), axis=-1)
    if kind == "max":
        return largest
    unit = np.where((largest > 0.0) & (largest < np.inf), largest, 1.0)
    return unit * np.sqrt(np.sum((vector / unit[..., None]) ** 2, axis=-1))


def check(problem, solver):
    """Solve, and compare what is reported with what is so."""
    settings, start = problem.settings, numpy(problem.start).copy()
    solve = fp.root if problem.is_root else fp.fixed_point
    try:
        sol = solve(
            problem, problem.start, solver=solver, on_failure="return", **settings
        )
    except fp.DomainError:  # at the start
        assert problem.function is undefined
        assert problem.calls == 1
        return None
    np.testing.assert_array_equal(numpy(problem.start), start)
    # Elsewhere the map is also evaluated where it is differentiated.
    if problem.xp.xp is np:
        assert problem.calls == sol.work.f
    status, steps, norms = (
        numpy(a) for a in (sol.status, sol.steps, sol.residual_norm)
    )
    assert np.all(status != fp.Status.RUNNING)
    assert np.all((steps >= 0) & (steps <= settings["max_steps"]))
    assert sol.value.dtype == problem.start.dtype
    assert sol.value.shape == problem.start.shape
    if status.size == 0:
        return sol
    with np.errstate(all="ignore"):
        compare(problem, sol, status, norms)
    return sol


def is_close(problem, value, settings):
    """Whether a step of Newton's method is tolerable, of a single sample.

    Where F is small at the start by chance, it may be larger next to a root elsewhere.
    """
    residual = lambda z: numpy(problem.residual(problem.xp.asarray(z))[0])
    value = numpy(value)
    step = 1e-5 * np.max(np.abs(value))
    moves = step * np.eye(len(value), dtype=value.dtype)
    ends = [[residual(value + s * e) for e in moves] for s in (1, -1)]
    jacobian = (np.asarray(ends[0]) - np.asarray(ends[1])).T / (2.0 * step)
    left = np.linalg.lstsq(jacobian, residual(value))[0]
    sizes = [norm_of(a, settings["norm"]) for a in (left, value)]
    return sizes[0] <= settings["atol"] + settings["rtol"] * sizes[1]


def compare(problem, sol, status, norms):
    settings, value = problem.settings, numpy(sol.value).astype(float)
    kind = settings["norm"]
    limits = np.finfo(numpy(problem.start).dtype)
    residual, image = (norm_of(a, kind) for a in problem.residual(sol.value))
    first = norm_of(problem.residual(problem.start)[0], kind)
    # Norms are roots of sums of squares: beyond these numbers they are infinite, or
    # rounding.
    defined = first < 0.1 * float(limits.max) ** 0.5
    underflow = 4.0 * float(limits.smallest_subnormal) ** 0.5
    assert np.all(np.isfinite(value).all(-1) | ~defined)
    assert np.all((status == fp.Status.NON_FINITE) | (first < np.inf))
    slack = 100 * float(limits.eps) * (norm_of(value, kind) + image) + underflow
    assert np.all((abs(norms - residual) <= slack) | ~defined)
    assert np.all(
        (residual <= first + slack) | (status == fp.Status.CONVERGED) | ~defined
    )
    fallen = residual <= 0.9 * first + slack
    if settings["test"] == "error" and problem.is_root:
        claimed = fallen | (numpy(sol.precise) & (problem.function is not flat))
        if status.ndim == 0 and status == fp.Status.CONVERGED and not claimed:
            claimed = is_close(problem, sol.value, settings)
    elif settings["test"] == "error":
        # The error of a map is at least about its residual, unless the answer is zero.
        size, largest = (
            norm_of(value, kind),
            norm_of(numpy(problem.start).astype(float), kind),
        )
        claimed = (
            residual
            <= settings["atol"] + settings["rtol"] * size + 1e-12 * largest + slack
        )
    else:
        claimed = residual <= settings["atol"] + settings["rtol"] * image + slack
    assert np.all(claimed | (status != fp.Status.CONVERGED))


def problems(number, seed, xp):
    rng = np.random.default_rng(seed)
    return (draw(rng, Namespace(xp)) for _ in range(number))


@pytest.mark.parametrize("index", range(len(SOLVERS)))
def test_nothing_false_is_said_of_random_problems(index):
    for problem in problems(NUMBER, index, np):
        check(problem, SOLVERS[index])


@pytest.mark.parametrize("index", range(len(SOLVERS)))
def test_nothing_false_is_said_of_random_problems_on_torch(index):
    for problem in problems(NUMBER_TORCH, 1000 + index, torch):
        check(problem, SOLVERS[index])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("library", [np, torch])
@pytest.mark.parametrize("norm", ["euclidean", "max"])
def test_at_no_scale_is_convergence_claimed_falsely(dtype, library, norm):
    """Not where the squares of all entries vanish, nor where they are infinite."""
    exponents = np.log10([np.finfo(dtype).tiny, np.finfo(dtype).max])
    for exponent in np.linspace(*(0.9 * exponents), 15):
        b = dtype(10.0**exponent) * np.arange(1.0, 4.0, dtype=dtype)
        b = Namespace(library).asarray(b)
        sol = fp.fixed_point(
            lambda z, b: 0.5 * z + b,
            b / 8.0,
            (b,),
            solver=fp.Picard(),
            rtol=1e-3,
            atol=0.0,
            norm=norm,
            on_failure="return",
        )
        if bool(sol.converged):
            np.testing.assert_allclose(numpy(sol.value), numpy(2.0 * b), rtol=1e-2)


def test_the_problems_end_in_many_ways():
    """Else they would test little."""
    ends = set()
    for index, solver in enumerate(SOLVERS):
        for problem in problems(10, index, np):
            sol = check(problem, solver)
            ends |= (
                set(numpy(sol.status).ravel().tolist()) if sol is not None else set()
            )
    S = fp.Status
    assert ends >= {
        S.CONVERGED,
        S.MAX_STEPS,
        S.NON_FINITE,
        S.DIVERGED,
        S.LINEAR_SOLVE_FAILED,
        S.LINE_SEARCH_FAILED,
    }
