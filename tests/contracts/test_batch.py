"""A sample's answer, status and step count do not depend on its neighbors."""

from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint as fp

PICARD = fp.Picard()
FIRST_ORDER = [
    PICARD,
    fp.Picard(damping=0.6),
    fp.Anderson(memory=4),
    fp.Anderson(damping=0.5),
]
DAMPED = FIRST_ORDER[1::2]

GOOD = [0.5, 0.4, 1.0]
SLOW = [0.5, 0.98, 1.0]
NAN = [0.5, 0.4, np.nan]
DIVERGING = [4.0, 2.0, 1.0]
RUNAWAY = [1.0, 0.0, 1.0]
SOLVED = [0.0, 0.0, 0.0]
KINDS = {
    "good": GOOD,
    "slow": SLOW,
    "nan": NAN,
    "diverging": DIVERGING,
    "runaway": RUNAWAY,
    "solved": SOLVED,
}
FIELDS = ("value", "status", "steps", "residual_norm", "method")
EXPECTED = {
    "good": fp.Status.CONVERGED,
    "solved": fp.Status.CONVERGED,
    "nan": fp.Status.NON_FINITE,
}


def elementwise(xp):
    """z ↦ a z + c (sin z − z)/2 + d, exact for each entry whatever else is computed."""

    def f(z, p):
        a, c, d = (p[..., i][..., None] for i in range(3))
        return a * z + c * (xp.sin(z) - z) / 2 + d

    return f


def matmul(xp):
    """z ↦ tanh(W z + b), its products summed in one order whatever else is computed."""
    return lambda z, W, b: xp.tanh(xp.sum(W * z[..., None, :], axis=-1) + b)


SCALES = np.array([[2.0**-30], [1.0], [2.0**30]])
START, AWAY = np.array([0.0, 1e-3, -2e-3]), np.array([1.0, 0.5, -2.0])


def solve(case, rows, solver, f=None, start=START, **options):
    z0 = np.zeros((*np.shape(rows)[:-1], 3)) + start
    options = {"max_steps": 60, "batch_ndim": 1} | options
    f = f or elementwise(case.xp)
    return case.solve(f, z0, (np.array(rows),), solver=solver, **options)


@cache
def only_sample(case, kind, solver):
    """The only sample of its batch: many tests compare with it."""
    return solve(case, [KINDS[kind]], solver)


def assert_same(case, batch, index, alone):
    """Sample `index` of one solution is the only sample of another."""
    for field in FIELDS:
        one = case.to_numpy(getattr(batch, field))[index]
        np.testing.assert_array_equal(
            one, case.to_numpy(getattr(alone, field))[0], field
        )


def test_every_solver_treats_each_sample_as_if_alone(eager_case, solver):
    batch = solve(eager_case, list(KINDS.values()), solver, start=AWAY)
    for index, (name, row) in enumerate(KINDS.items()):
        assert_same(
            eager_case, batch, index, solve(eager_case, [row], solver, start=AWAY)
        )
        if name in EXPECTED:
            assert int(batch.status[index]) == EXPECTED[name]


def test_every_solver_of_roots_treats_each_sample_as_if_alone(eager_case, solver):
    f = elementwise(eager_case.xp)
    options = {"f": lambda z, p: z - f(z, p), "by": fp.root, "start": AWAY}
    batch = solve(eager_case, list(KINDS.values()), solver, **options)
    for index, row in enumerate(KINDS.values()):
        assert_same(
            eager_case, batch, index, solve(eager_case, [row], solver, **options)
        )


def test_neither_a_neighbor_nor_a_unit_changes_anything_under_jit(solver):
    """One compiled call for all, as another shape may be another order of sums."""
    f, z0 = elementwise(jax.numpy), jax.numpy.zeros((3, 3)) + AWAY
    options = {
        "solver": solver,
        "max_steps": 60,
        "batch_ndim": 1,
        "on_failure": "return",
        "atol": 0.0,
    }

    @jax.jit
    def call(p, unit):
        scaled = lambda z, p: unit * f(z / unit, p)
        sol = fp.fixed_point(scaled, unit * z0, (p,), **options)
        known = {field: getattr(sol, field) for field in FIELDS}
        lengths = {
            name: known[name].T / unit[:, 0] for name in ("value", "residual_norm")
        }
        return known | {name: length.T for name, length in lengths.items()}

    ones = np.ones((3, 1))
    alike = call(np.array([GOOD] * 3), ones)
    assert alike["status"].tolist() == [fp.Status.CONVERGED] * 3
    for kind in KINDS.values():
        found = call(np.array([kind, GOOD, kind]), ones)
        for field in FIELDS:
            np.testing.assert_array_equal(found[field][1], alike[field][1], field)
    found = call(np.array([GOOD] * 3), SCALES)
    for field in FIELDS:
        np.testing.assert_array_equal(found[field], alike[field], field)


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_leaving_the_batch_changes_nothing(eager_case, contraction, layer, solver, by):
    """Samples that have stopped leave a batch whose arguments are declared to be its
    own.
    """
    f = layer(eager_case.xp, by is fp.root)
    A = np.stack([contraction(3, norm, 5) for norm in (0.1, 0.3, 0.6, 0.95)])
    b, z0 = np.random.default_rng(3).standard_normal((2, 4, 3))
    b[1] = np.nan
    options = {
        "by": by,
        "solver": solver,
        "batch_ndim": 1,
        "rtol": 1e-8,
        "max_steps": 60,
    }
    stays = eager_case.solve(f, z0, (A, b), **options)
    leaves = eager_case.solve(f, z0, (A, b), batched_args=(True, True), **options)
    for field in FIELDS:
        one, other = (
            eager_case.to_numpy(getattr(sol, field)) for sol in (stays, leaves)
        )
        np.testing.assert_array_equal(one, other, field)


@pytest.mark.parametrize("solver", FIRST_ORDER)
@pytest.mark.parametrize("neighbor", list(KINDS))
def test_a_neighbor_changes_nothing(eager_case, solver, neighbor):
    both = solve(eager_case, [KINDS[neighbor], GOOD, KINDS[neighbor]], solver)
    assert int(both.status[1]) == fp.Status.CONVERGED
    assert_same(eager_case, both, 1, only_sample(eager_case, "good", solver))


@settings(max_examples=8)
@given(names=st.lists(st.sampled_from(list(KINDS)), min_size=4, max_size=4))
@pytest.mark.parametrize("solver", [PICARD, fp.Anderson(memory=3)])
def test_every_sample_is_as_if_alone(eager_case, solver, names):
    batch = solve(eager_case, [KINDS[name] for name in names], solver)
    for index, name in enumerate(names):
        assert_same(eager_case, batch, index, only_sample(eager_case, name, solver))
        if name in EXPECTED:
            assert int(batch.status[index]) == EXPECTED[name]


@pytest.mark.parametrize("solver", DAMPED)
def test_samples_with_their_own_matrix(compiled_case, contraction, solver):
    W = np.stack(
        [contraction(4, norm, seed) for seed, norm in enumerate((0.2, 0.9, 0.99))]
    )
    b = np.random.default_rng(2).standard_normal((3, 4))
    f = matmul(compiled_case.xp)
    options = {"solver": solver, "batch_ndim": 1, "rtol": 1e-8, "max_steps": 40}
    batch = compiled_case.solve(f, 0 * b, (W, b), **options)
    for i in range(3):
        alone = compiled_case.solve(
            f, 0 * b[:1], (W[i : i + 1], b[i : i + 1]), **options
        )
        assert int(batch.status[i]) == int(alone.status[0])
        assert int(batch.steps[i]) == int(alone.steps[0])
        np.testing.assert_allclose(
            compiled_case.to_numpy(batch.value)[i],
            compiled_case.to_numpy(alone.value)[0],
            rtol=1e-10,
        )


@pytest.mark.parametrize("solver", DAMPED)
def test_a_batch_of_zero(compiled_case, solver):
    sol = solve(compiled_case, np.zeros((0, 3)), solver, on_failure="raise")
    assert sol.value.shape == (0, 3)
    assert sol.status.shape == sol.steps.shape == sol.residual_norm.shape == (0,)
    assert sol.converged.shape == (0,)


def assert_any_shape(case, solver):
    """A batch of two axes, of one, of no sample, and a problem without batch agree."""
    rows = np.array([[GOOD, NAN, SLOW], [SOLVED, GOOD, DIVERGING]])
    line = solve(case, rows.reshape(6, 3), solver, start=AWAY)
    grid = solve(case, rows, solver, start=AWAY, batch_ndim=2)
    none = solve(case, rows[:0], solver, start=AWAY, batch_ndim=2)
    alone = solve(case, rows[0, 0], solver, start=AWAY, batch_ndim=0)
    assert (grid.status.shape, alone.status.shape) == ((2, 3), ())
    for field in FIELDS:
        flat, square, empty, scalar = (
            case.to_numpy(getattr(sol, field)) for sol in (line, grid, none, alone)
        )
        np.testing.assert_array_equal(square.reshape(flat.shape), flat, field)
        assert empty.shape == (0, *square.shape[1:])
        np.testing.assert_allclose(scalar, flat[0], rtol=1e-9, atol=1e-12)


def test_every_solver_takes_batches_of_any_shape(eager_case, solver):
    assert_any_shape(eager_case, solver)


def test_a_batch_of_no_samples_takes_no_step(jit_case):
    sol = fp.fixed_point(
        lambda z: 0.5 * z + 1.0, jit_case.xp.zeros((0, 3)), batch_ndim=1
    )
    assert sol.work.f == 1


@pytest.mark.parametrize("jit_case", ["jax-jit"], indirect=True)
@pytest.mark.parametrize("solver", DAMPED)
def test_batches_of_any_shape_under_jit(jit_case, solver):
    assert_any_shape(jit_case, solver)


def test_each_sample_may_have_its_own_tolerance(jit_case):
    atol = np.array([1e-2, 1e-6, 1e-10])
    z0 = np.zeros((3, 1))
    sol = jit_case.solve(
        lambda z: 0.5 * z + 1.0,
        z0,
        solver=PICARD,
        rtol=0.0,
        atol=jit_case.asarray(atol),
        batch_ndim=1,
    )
    np.testing.assert_array_equal(
        jit_case.to_numpy(sol.steps), np.ceil(1.0 - np.log2(atol))
    )


def test_a_finished_sample_is_left_alone(xp_case):
    """It keeps its value, although the map would still move it."""
    a = np.array([[0.0], [0.9]])
    f = lambda z, a: a * z + 1.0 + 1e-8 * xp_case.xp.sin(1e9 * z)
    z0 = np.ones((2, 1))
    sol = xp_case.solve(
        f, z0, (a,), solver=PICARD, rtol=0.0, atol=1e-6, test="residual", batch_ndim=1
    )
    assert int(sol.status[0]) == fp.Status.CONVERGED
    assert int(sol.steps[0]) == 0
    assert float(sol.value[0, 0]) == 1.0


def reactors(x, p):
    """Stirred tanks, each with coefficients of its own."""
    C, T = x[..., 0], x[..., 1]
    # One by one: of an array a processor may round the exponentials otherwise.
    rates = np.reshape([np.exp(t) for t in np.ravel(-8750.0 / T)], T.shape)
    burnt = 7.2e10 * rates * C
    balance = 350.0 - T + p[..., 0] * burnt + p[..., 1] * (300.0 - T)
    return np.stack([1.0 - C - burnt, balance], axis=-1)


@pytest.mark.parametrize("max_steps", [3, 20, 60, 400])
def test_a_sample_that_waits_for_another_method_takes_no_steps(max_steps):
    rng = np.random.default_rng(0)
    p = np.stack([rng.uniform(80.0, 330.0, 16), rng.uniform(0.4, 4.0, 16)], axis=-1)
    x = np.stack([rng.uniform(0.0, 1.0, 16), rng.uniform(290.0, 450.0, 16)], axis=-1)
    x[7] = 1e300
    settings = {"max_steps": max_steps, "on_failure": "return"}
    with np.errstate(all="ignore"):
        whole = fp.root(reactors, x, (p,), batch_ndim=1, **settings)
        for i in range(16):
            one, alone = slice(i, i + 1), np.index_exp[i]
            part = fp.root(reactors, x[one], (p[one],), batch_ndim=1, **settings)
            for name in ("value", "status", "steps", "method", "error"):
                all_, single = getattr(whole, name)[alone], getattr(part, name)[0]
                np.testing.assert_array_equal(all_, single)
            assert int(part.steps[0]) <= max_steps
    if max_steps == 400:
        assert int(whole.method.max()) > 0


def coupled(xp, seed):
    """A map that couples the samples of a batch by their mean, with its arguments, and
    a start.
    """
    rng = np.random.default_rng(seed)
    size, width = rng.integers(2, 7, 2)
    share = float(rng.choice([1e-4, 1e-2, 0.3, 0.9]))
    W = rng.standard_normal((width, width))
    W *= rng.uniform(0.1, 0.8) / np.linalg.norm(W, 2)
    b = rng.standard_normal((size, width))

    def f(z, W, b):
        others = share * xp.mean(z, axis=0)
        return xp.tanh((1.0 - share) * z @ W.T + 0.5 * others) + b

    return f, 10.0 * rng.standard_normal((size, width)), (W, b)


@pytest.mark.parametrize(
    ("solver", "seeds"),
    [(None, 12), ("broyden", 6), ("newton", 6), ("newton_krylov", 6), ("picard", 6)],
)
@pytest.mark.parametrize("xp_case", ["numpy", "torch"], indirect=True)
def test_samples_that_f_couples_are_right_together(xp_case, solver, seeds):
    """The steps of one sample move the residual of those that ended before."""
    claims = 0
    for seed in range(seeds):
        f, z0, args = coupled(xp_case.xp, seed)
        settings = {"solver": solver, "batch_ndim": 1, "rtol": 1e-7}
        sol = xp_case.solve(f, z0, args, on_failure="return", **settings)
        f, _, (W, b) = coupled(np, seed)
        known = b
        for _ in range(300):
            known = f(known, W, b)
        converged, value = map(xp_case.to_numpy, (sol.converged, sol.value))
        error = np.abs(value - known)[converged]
        assert np.all(error <= 1e-6 * np.abs(known)[converged].max(-1, keepdims=True))
        claims += converged.any()
    assert claims or solver == "newton"


def test_a_claim_that_neighbors_undid_under_jit():
    f, z0, args = coupled(jax.numpy, 3)
    call = jax.jit(lambda z, args: fp.fixed_point(f, z, args, batch_ndim=1))
    sol = call(z0, args)
    assert bool(sol.converged.all())
    left = np.linalg.norm(f(sol.value, *args) - sol.value, axis=-1)
    np.testing.assert_allclose(sol.residual_norm, left, rtol=1e-6, atol=1e-14)
