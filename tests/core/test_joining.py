"""Many small leaves lie in one array, and nobody notices."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
from fixedpoint import joining

SHAPES = [(), (3,), (2, 2), (2, 2), (1,), (4,), (4,), (2, 1, 2), (3,), (3,)]
SOLVERS = [fp.Picard(), fp.Anderson(memory=4), fp.Broyden(), fp.NewtonKrylov()]


@pytest.fixture
def apart(monkeypatch):
    """Calls a function as if no leaf were small enough to be joined."""

    def call(function, *args, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(joining, "_MANY", 10**9)
            return function(*args, **settings)

    return call


def many(lead=()):
    """A start of many leaves, and a factor for each."""
    rng = np.random.default_rng(0)
    z0 = {f"z{k}": rng.random((*lead, *shape)) for k, shape in enumerate(SHAPES)}
    return z0, {name: rng.uniform(0.3, 0.9, leaf.shape) for name, leaf in z0.items()}


def coupled(xp, axes):
    """A contraction in which every leaf feels the first one."""

    def f(z, a):
        shift = 0.1 * xp.sin(z["z0"])
        beside = lambda leaf: xp.reshape(
            shift, (*shift.shape, *(1,) * (leaf.ndim - axes))
        )
        return {
            name: a[name] * xp.cos(leaf) + (beside(leaf) if leaf.ndim > axes else shift)
            for name, leaf in z.items()
        }

    return f


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("lead", [(), (2,)])
def test_iterates_agree_with_those_of_leaves_apart(eager_case, apart, solver, lead):
    z0, a = many(lead)
    f = coupled(eager_case.xp, len(lead))
    settings = {"solver": solver, "batch_ndim": len(lead), "norm": "leaves"}
    here = eager_case.solve(f, z0, (a,), **settings)
    there = apart(eager_case.solve, f, z0, (a,), **settings)
    for name, leaf in here.value.items():
        assert tuple(leaf.shape) == z0[name].shape
        np.testing.assert_allclose(
            eager_case.to_numpy(leaf), eager_case.to_numpy(there.value[name]), rtol=1e-9
        )
    for figure in ("status", "steps", "residual_norm"):
        pair = [eager_case.to_numpy(getattr(sol, figure)) for sol in (here, there)]
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-13)


@pytest.mark.parametrize("norm", ["entries", "leaves", "euclidean", "max"])
def test_every_norm_asks_the_same(apart, norm):
    z0, a = many()
    scales = {name: 10.0 ** (-k) for k, name in enumerate(z0)}
    f = lambda z, a: {n: scales[n] * a[n] * np.cos(z[n] / scales[n]) for n in z}
    sols = [
        call(fp.fixed_point, f, z0, (a,), norm=norm, solver=fp.Picard(), rtol=1e-9)
        for call in (apart, lambda function, *args, **kw: function(*args, **kw))
    ]
    assert int(sols[0].steps) == int(sols[1].steps)
    np.testing.assert_allclose(sols[0].error, sols[1].error, rtol=1e-6)


@pytest.mark.parametrize("power", [-300, -40, 300])
def test_leaves_have_units_of_their_own(eager_case, power):
    """Also where squares under- or overflow."""
    z0, a = many()
    unit = 2.0 ** (power if eager_case.xp is not jnp else np.clip(power, -100, 100))
    xp, scale = eager_case.xp, {n: unit if n == "z3" else 1.0 for n in z0}
    f = lambda z, a: {n: scale[n] * (a[n] * xp.cos(z[n] / scale[n])) for n in z}
    settings = {"solver": fp.Picard(), "norm": "leaves"}
    start = {name: scale[name] * leaf for name, leaf in z0.items()}
    sol = eager_case.solve(f, start, (a,), **settings)
    plain = eager_case.solve(
        lambda z, a: {n: a[n] * xp.cos(z[n]) for n in z}, z0, (a,), **settings
    )
    assert int(sol.status) == int(fp.Status.CONVERGED)
    found = eager_case.to_numpy(sol.value["z3"]) / unit
    np.testing.assert_allclose(found, eager_case.to_numpy(plain.value["z3"]), rtol=1e-5)


def test_leaves_of_several_dtypes_keep_theirs():
    z0, _ = many()
    z0 = {n: x.astype(np.float32 if n > "z7" else float) for n, x in z0.items()}
    z0["z4"] = z0["z4"] + 0.5j
    more = {f"y{k}": np.full(2, 0.1, np.float32) for k in range(9)}
    f = lambda z: {n: (0.5 * np.cos(x)).astype(x.dtype) for n, x in z.items()}
    sol = fp.fixed_point(f, z0 | more, rtol=1e-5)
    for name, leaf in (z0 | more).items():
        assert sol.value[name].dtype == leaf.dtype
        np.testing.assert_allclose(sol.value[name], f(sol.value)[name], rtol=1e-4)


def test_all_that_is_the_users_sees_containers(apart):
    """A Jacobian in the order of the leaves, products, a callback and a projection."""
    z0, a = many()
    size = sum(leaf.size for leaf in z0.values())
    flat = lambda z: np.concatenate([z[n].ravel() for n in z0])
    seen = []
    settings = {
        "project": lambda z: {n: np.minimum(x, 2.0) for n, x in z.items()},
        "callback": lambda step, z, norm: seen.append(sorted(z)),
    }
    f = lambda z, a: {n: a[n] * np.cos(z[n]) for n in z}
    jacobian = lambda z, a: np.diag(-flat(a) * np.sin(flat(z)))
    newton = fp.fixed_point(
        f, z0, (a,), solver=fp.Newton(), jacobian=jacobian, **settings
    )
    jvp = lambda z, v, a: {n: -a[n] * np.sin(z[n]) * v[n] for n in z}
    krylov = fp.fixed_point(
        f,
        z0,
        (a,),
        solver=fp.NewtonKrylov(),
        jvp=jvp,
        preconditioner=lambda z, a: lambda v: {n: -v[n] for n in v},
        **settings,
    )
    assert seen[0] == sorted(z0)
    there = apart(fp.fixed_point, f, z0, (a,))
    for sol in (newton, krylov):
        np.testing.assert_allclose(flat(sol.value), flat(there.value), rtol=1e-6)
    v = {n: np.ones_like(x) for n, x in z0.items()}
    product = newton.linearize()(v)
    expected = jacobian(newton.value, a) @ np.ones(size)
    np.testing.assert_allclose(flat(product), expected, rtol=1e-6)


def test_what_is_remembered_is_used_again():
    z0, a = many()
    f = coupled(np, 0)
    sol = fp.fixed_point(f, z0, (a,), solver=fp.Broyden())
    again = fp.fixed_point(f, sol.value, (a,), solver=fp.Broyden(), state=sol.state)
    assert int(again.steps) <= 2


@pytest.mark.parametrize(
    "adjoint", [fp.ImplicitAdjoint(), fp.SharedInverse(refine=30), fp.Unrolled()]
)
def test_derivatives_in_torch(apart, adjoint):
    z0, a = many()

    def slope(scale):
        start = {n: torch.tensor(x) for n, x in z0.items()}
        factors = {n: scale * torch.tensor(x) for n, x in a.items()}
        sol = fp.fixed_point(
            coupled(torch, 0),
            start,
            (factors,),
            adjoint=adjoint,
            solver=fp.Broyden(),
            rtol=1e-11,
        )
        return sum((leaf**2).sum() for leaf in sol.value.values())

    def gradient():
        scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(slope(scale), scale)[0])

    assert gradient() == pytest.approx(apart(gradient), rel=1e-7)


def test_derivatives_in_jax(apart):
    z0, a = many()
    # Alone it is compiled fast.
    adjoint = fp.ImplicitAdjoint(solver=fp.Broyden(), rtol=1e-10)
    settings = {"solver": fp.Broyden(), "adjoint": adjoint}

    def square(scale):
        factors = {n: scale * x for n, x in a.items()}
        sol = fp.fixed_point(coupled(jnp, 0), z0, (factors,), rtol=1e-11, **settings)
        return sum(jnp.sum(leaf**2) for leaf in sol.value.values())

    z0 = jax.tree.map(jnp.asarray, z0)
    gradient = lambda: float(jax.jit(jax.grad(square))(0.9))
    assert gradient() == pytest.approx(apart(gradient), rel=1e-7)


def test_a_wrong_leaf_is_named():
    z0, _ = many()
    f = lambda z: z | {"z3": np.ones(7)}
    with pytest.raises(ValueError, match=r"z0\['z3'\]"):
        fp.fixed_point(f, z0)


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_a_leaf_costs_a_few_calls_a_step(make):
    """Calls of functions, of Python and of C, beside those of f."""
    leaves, calls = 300, [0]
    z0 = {f"z{k}": make(2) for k in range(leaves)}
    f = lambda z: {name: 0.5 * leaf + 1.0 for name, leaf in z.items()}

    def count(frame, event, argument):
        del frame, argument
        calls[0] += event in ("call", "c_call")

    def spent(steps):
        calls[0] = 0
        sys.setprofile(count)
        try:
            fp.fixed_point(
                f,
                z0,
                solver=fp.Anderson(),
                rtol=0.0,
                max_steps=steps,
                on_failure="return",
            )
        finally:
            sys.setprofile(None)
        return calls[0]

    spent(3)
    assert (spent(3) - spent(1)) / 2 <= 10 * leaves
