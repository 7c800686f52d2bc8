"""The compiled steps, where they are installed, against those of the core."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint as fp
from fixedpoint import kernels

native = pytest.importorskip(
    "fixedpoint_native", reason="the compiled steps are not installed"
)
TYPES = [np.float32, np.float64]
METHODS = [fp.Anderson, fp.Broyden, fp.Picard]


def random_map(seed, samples, size, dtype, radius=0.9):
    """z ↦ tanh(Az + b), harder for one sample than for another, and a start."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((samples, size, size))
    A *= (rng.uniform(0.1, radius, samples) / np.linalg.norm(A, 2, axis=(1, 2)))[
        :, None, None
    ]
    A, b = A.astype(dtype), rng.standard_normal((samples, size)).astype(dtype)
    f = lambda z: np.tanh(np.einsum("bij,bj->bi", A, z) + b)
    return f, rng.standard_normal((samples, size)).astype(dtype)


def solve(f, z0, **settings):
    settings = {"solver": fp.Anderson(memory=4), "batch_ndim": 1} | settings
    return fp.fixed_point(f, z0, on_failure="return", **settings)


def by_core(f, z0, **settings):
    """The same without compiled steps."""
    with kernels.disabled():
        return solve(f, z0, **settings)


def counted(f, z0, **settings):
    """How many compiled steps a solve takes."""
    steps, ran = [0], native.kernel.CompiledSteps._ran

    def counting(self, *at):
        steps[0] += 1
        return ran(self, *at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native.kernel.CompiledSteps, "_ran", counting)
        solve(f, z0, **settings)
    return steps[0]


@given(
    seed=st.integers(0, 2**20),
    samples=st.sampled_from([1, 3, 16, 37]),
    size=st.sampled_from([1, 2, 7, 40]),
    steps=st.integers(1, 9),
    memory=st.integers(1, 12),
    wide=st.booleans(),
    method=st.sampled_from(METHODS),
)
def test_the_iterates_are_those_of_the_core(
    seed, samples, size, steps, memory, wide, method
):
    """As far as rounding lets them: the methods enlarge it."""
    f, z0 = random_map(seed, samples, size, TYPES[wide])
    solver = method(memory=memory) if method is not fp.Picard else method(damping=0.6)
    settings = {"rtol": 0.0, "max_steps": steps, "solver": solver}
    sols = [run(f, z0, **settings) for run in (solve, by_core)]
    values = [sol.value for sol in sols]
    assert values[0].dtype == z0.dtype
    np.testing.assert_allclose(*values, atol=[2e-2, 1e-6][wide])
    norms = [sol.residual_norm for sol in sols]
    np.testing.assert_allclose(*norms, rtol=1e-2, atol=[1e-3, 1e-7][wide])


@given(
    seed=st.integers(0, 2**20),
    samples=st.sampled_from([1, 5, 20]),
    size=st.sampled_from([2, 30, 250]),
    norm=st.sampled_from([None, "leaves", "euclidean", "entries", "max"]),
    test=st.sampled_from(["error", "residual"]),
    digits=st.integers(3, 9),
    method=st.sampled_from(METHODS),
)
def test_claims_are_true(seed, samples, size, norm, test, digits, method):
    """Affine maps, whose solution is known; in other units too."""
    rng = np.random.default_rng(seed)
    unit = 10.0 ** rng.integers(-6, 7)
    A = rng.standard_normal((size, size))
    A *= 0.95 / np.linalg.norm(A, 2)
    b = unit * rng.standard_normal((samples, size))
    known = np.linalg.solve(np.eye(size) - A, b.T).T
    rtol = 10.0**-digits
    settings = {"rtol": rtol, "norm": norm, "test": test, "solver": method()}
    sol = solve(lambda z: z @ A.T + b, np.zeros((samples, size)), **settings)
    core = by_core(lambda z: z @ A.T + b, np.zeros((samples, size)), **settings)
    assert np.all(sol.converged)
    assert np.all(np.abs(sol.steps - core.steps) <= 4)  # as rounding makes it
    order = np.inf if norm == "max" else 2
    length = lambda u: np.linalg.norm(u, order, axis=1)
    if test == "residual":
        left = length(sol.value @ A.T + b - sol.value)
        assert np.all(left <= 1.01 * rtol * length(known))
    else:
        assert np.all(length(sol.value - known) <= 2 * rtol * length(known))
        assert np.all(sol.error <= 1.01 * rtol * length(known))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("samples", [1, 2, 16, 23])
def test_a_sample_is_as_if_alone(dtype, samples, method):
    """Bit by bit: neighbors that run away, become no number or stand still
    included.
    """
    rng = np.random.default_rng(samples)
    slope = rng.uniform(-1.5, 1.5, (samples, 1)).astype(dtype)
    kind = np.arange(samples)[:, None] % 4

    def f(z, slope, kind):
        z = np.where(kind == 1, z * z + 1, np.sin(slope * z) + 0.5)
        return np.where((kind == 2) & (np.abs(z - 0.7) < 0.05), np.nan, z)

    z0 = rng.standard_normal((samples, 5)).astype(dtype)
    settings = {"max_steps": 30, "rtol": 1e-5}
    args = slope, kind
    batch = fp.fixed_point(
        f, z0, args, on_failure="return", batch_ndim=1, solver=method(), **settings
    )
    for k in range(samples):
        args = slope[k : k + 1], kind[k : k + 1]
        alone = fp.fixed_point(
            f,
            z0[k : k + 1],
            args,
            on_failure="return",
            batch_ndim=1,
            solver=method(),
            **settings,
        )
        for field in ("value", "residual_norm", "status", "steps", "error"):
            one, other = getattr(batch, field)[k], getattr(alone, field)[0]
            np.testing.assert_array_equal(one, other, field)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", TYPES)
def test_memory_in_any_order(dtype, method):
    """What f returns, and the start, may lie in memory as they like."""
    f, z0 = random_map(1, 6, 9, dtype)
    known = solve(f, z0, solver=method()).value
    awkward = lambda z: np.asfortranarray(f(z))
    for start in (z0, np.asfortranarray(z0), np.repeat(z0, 2, axis=1)[:, ::2]):
        found = solve(awkward, start, solver=method()).value
        np.testing.assert_allclose(found, known, rtol=1e-5)
    frozen = z0.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(solve(f, frozen, solver=method()).value, known)
    np.testing.assert_array_equal(frozen, z0)


def test_states_without_a_batch_and_with_many_axes():
    f, z0 = random_map(3, 6, 8, np.float64)
    known = solve(f, z0, rtol=1e-10).value
    shape = (2, 3, 2, 4)
    cube = lambda z: f(z.reshape(6, 8)).reshape(shape)
    sol = solve(cube, z0.reshape(shape), batch_ndim=2, rtol=1e-10)
    assert sol.status.shape == (2, 3)
    np.testing.assert_allclose(sol.value.reshape(6, 8), known, rtol=1e-9)
    one = solve(cube, z0.reshape(shape), batch_ndim=0, rtol=1e-10)
    assert one.status.shape == ()
    np.testing.assert_allclose(one.value.reshape(6, 8), known, rtol=1e-9)


def test_plain_problems_take_compiled_steps():
    f, z0 = random_map(0, 5, 6, np.float64)
    taken = counted(f, z0)
    assert taken == int(solve(f, z0).steps.max())
    assert counted(f, z0, test="residual") > 0
    assert counted(f, z0, norm="entries") > 0
    assert counted(f, z0, solver=None) > 0
    assert counted(f, z0, solver=fp.Broyden()) > 0
    torch = pytest.importorskip("torch")
    g = lambda z: torch.tanh(0.5 * z + 1.0)
    assert counted(g, torch.zeros(3, 4)) > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": fp.Anderson(damping=0.5)},
        {"solver": fp.Anderson(type=1)},
        {"solver": fp.Anderson(delay=1)},
        {"solver": fp.Anderson(weights=(2.0,))},
        {"solver": fp.Anderson(memory=17)},
        {"solver": fp.Broyden(memory=129)},
        {"solver": fp.Broyden(update="bad")},
        {"solver": fp.Broyden(line_search=True)},
        {"solver": fp.SQUAREM()},
        {"project": lambda z: z},
        {"rtol": np.full(5, 1e-3)},
    ],
)
def test_others_take_those_of_the_core(settings):
    f, z0 = random_map(0, 5, 40, np.float64)
    assert counted(f, z0, **settings) == 0


@pytest.mark.parametrize("dtype", [np.complex128, np.longdouble])
def test_other_numbers_take_those_of_the_core(dtype):
    assert counted(lambda z: 0.5 * z + 1, np.zeros((5, 4), dtype)) == 0


def test_arrays_of_other_sizes_are_refused():
    kernel = native.kernel._kernels.AndersonFloat64(
        samples=2,
        size=3,
        memory=1,
        entries=False,
        peaks=False,
        on_error=True,
        rtol=1e-6,
        atol=0.0,
        least=1.0,
        rounding=1e-16,
        smallest=1e-150,
        fall=0.9,
        zero=1e-12,
        roundings=4.0,
    )
    state, one = np.zeros((2, 3)), np.zeros(2)
    at = {
        "pushed": 0,
        "slot": 0,
        "count": 0,
        "value": state,
        "image": np.zeros((2, 4)),
        "old": (state, state, np.zeros((6, 2)), one),
        "memory": (
            np.zeros((2, 1, 3)),
            np.zeros((2, 1, 3)),
            np.zeros((2, 1, 1)),
            one,
        ),
        "threads": 1,
        "known": (one, np.zeros((2, 20))),
        "active": None,
        "shortened": None,
        "made": (
            state.copy(),
            state.copy(),
            np.zeros((6, 2)),
            np.zeros((4, 2), bool),
            one.copy(),
        ),
    }
    with pytest.raises(ValueError, match="image must have 6 entries, got 8"):
        kernel.advance(**at)
    with pytest.raises(ValueError, match="slot"):
        kernel.advance(**at | {"image": state, "slot": 1})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("threads", [2, 3, 64])
def test_threads_change_nothing(monkeypatch, method, threads):
    """Each takes samples of its own: bit by bit the same."""
    f, z0 = random_map(5, 70, 12, np.float64)
    known = solve(f, z0, solver=method())
    monkeypatch.setattr(fp.backend.Backend, "threads", threads)
    sol = solve(f, z0, solver=method())
    np.testing.assert_array_equal(sol.value, known.value)
    np.testing.assert_array_equal(sol.steps, known.steps)


@pytest.mark.parametrize("method", [fp.Anderson, fp.Picard])
def test_large_tensors_take_compiled_steps(method):
    """They are not copied for it, and Torch's operations are not faster."""
    torch = pytest.importorskip("torch")
    b = torch.linspace(-1.0, 1.0, 4 * 2**17).reshape(4, -1)
    f = lambda z: 0.5 * torch.tanh(z) + b
    assert counted(f, torch.zeros_like(b), solver=method()) > 0
    sol = solve(f, torch.zeros_like(b), solver=method())
    core = by_core(f, torch.zeros_like(b), solver=method())
    torch.testing.assert_close(sol.value, core.value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_few_calls_make_a_step(python_calls, method):
    """A count that grows is time that everybody spends."""
    slopes, z0 = np.linspace(0.1, 0.9, 300), np.zeros((4, 300))

    def run(steps):
        settings = {"rtol": 0.0, "max_steps": steps, "solver": method()}
        solve(lambda z: slopes * z + 1.0, z0, **settings)

    run(1)
    some, more = (python_calls(partial(run, k)) for k in (15, 25))
    assert (more - some) / 10 <= 80
