"""Every array library takes the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp

FIRST_ORDER = [
    fp.Picard(damping=0.8),
    fp.Anderson(memory=5),
    fp.Anderson(memory=3, damping=0.5),
]
N = 12


def data(contraction):
    b, z0 = np.random.default_rng(11).standard_normal((2, N))
    return z0, (contraction(N, 0.9, 4), b)


def tanh_map(xp):
    return lambda z, W, b: xp.tanh(W @ z + b)


def assert_close(one, other, tolerance):
    assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_first_ten_iterates_of_every_solver(
    xp_case, numpy_case, contraction, layer, solver, by
):
    """With exact products: NumPy has them from the caller, Torch and JAX
    differentiate.
    """
    A = contraction(4, 0.95, 2)
    b, z0 = np.random.default_rng(2).standard_normal((2, 4))
    here, there = (
        case.iterates(f, z0, (A, b), by=by, solver=solver, **case.exact(f))
        for case in (xp_case, numpy_case)
        for f in [layer(case.xp, by is fp.root)]
    )
    assert len(here) > 1
    # Broyden's first step to a root is as long as a difference quotient says.
    tolerance = 1e-5 if isinstance(solver, fp.Broyden) and by is fp.root else 1e-10
    # Rounding alone may end one before another.
    for one, other in zip(here, there, strict=False):
        assert_close(one, other, tolerance)


def test_every_solver_in_lanes_of_jax_vmap_under_jit(
    numpy_case, contraction, layer, solver
):
    F, A = layer(jnp, is_root=True), contraction(3, 0.9)
    z0, *bs = np.random.default_rng(3).standard_normal((4, 3))
    settings = {"solver": solver, "rtol": 1e-10, "atol": 0.0, "max_steps": 100}

    def lane(b):
        sol = fp.root(F, jnp.asarray(z0), (A, b), on_failure="return", **settings)
        return sol.value, sol.converged

    values, converged = jax.jit(jax.vmap(lane))(np.stack(bs))
    assert bool(converged.all())
    for value, b in zip(values, bs, strict=True):
        there = numpy_case.solve(
            layer(np, is_root=True), z0, (A, b), by=fp.root, **settings
        )
        assert_close(np.asarray(value), there.value, 1e-8)


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_every_solver_in_lanes_of_torch_vmap(
    numpy_case, contraction, layer, solver, by
):
    f, A = layer(torch, by is fp.root), contraction(3, 0.9)
    z0, *bs = np.random.default_rng(3).standard_normal((4, 3))
    settings = {"solver": solver, "rtol": 1e-10, "atol": 0.0, "max_steps": 100}
    start, matrix = torch.as_tensor(z0), torch.as_tensor(A)
    lane = lambda b: by(f, start, (matrix, b), **settings).value
    values = torch.func.vmap(lane)(torch.as_tensor(np.stack(bs)))
    for value, b in zip(values, bs, strict=True):
        there = numpy_case.solve(
            layer(np, by is fp.root), z0, (A, b), by=by, **settings
        )
        assert_close(value.numpy(), there.value, 1e-8)


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_iterates_under_jit(numpy_case, contraction, solver):
    z0, args = data(contraction)

    def iterates(z0, args):
        settings = {"solver": solver, "rtol": 0.0, "atol": 0.0, "on_failure": "return"}
        return [
            fp.fixed_point(tanh_map(jnp), z0, args, max_steps=steps, **settings).value
            for steps in (3, 10)
        ]

    for steps, value in zip((3, 10), jax.jit(iterates)(z0, args), strict=True):
        there = numpy_case.solve(
            tanh_map(np), z0, args, solver=solver, rtol=0.0, atol=0.0, max_steps=steps
        )
        assert_close(np.asarray(value), there.value, 1e-10)


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_answers(jit_case, numpy_case, contraction, solver):
    z0, args = data(contraction)
    here = jit_case.solve(
        tanh_map(jit_case.xp), z0, args, solver=solver, rtol=1e-11, atol=0.0
    )
    there = numpy_case.solve(
        tanh_map(np), z0, args, solver=solver, rtol=1e-11, atol=0.0
    )
    assert bool(here.converged)
    assert_close(jit_case.to_numpy(here.value), there.value, 1e-9)


@pytest.mark.parametrize("solver", FIRST_ORDER[:2])
def test_lanes_of_jax_vmap(numpy_case, contraction, solver):
    z0, (W, b) = data(contraction)
    bs = np.stack([b, -2 * b, 0 * b])

    def lane(b):
        sol = fp.fixed_point(
            tanh_map(jnp),
            jnp.asarray(z0),
            (W, b),
            solver=solver,
            rtol=1e-10,
            on_failure="return",
        )
        return sol.value, sol.steps, sol.converged

    values, steps, converged = jax.vmap(lane)(bs)
    assert bool(converged.all())
    for i, b in enumerate(bs):
        there = numpy_case.solve(tanh_map(np), z0, (W, b), solver=solver, rtol=1e-10)
        assert_close(np.asarray(values[i]), there.value, 1e-9)
        if isinstance(solver, fp.Picard):
            assert int(steps[i]) == int(there.steps)


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_lanes_of_torch_vmap(numpy_case, contraction, solver):
    z0, (W, b) = data(contraction)
    bs = np.stack([b, -2 * b, 0 * b])

    def lane(b):
        sol = fp.fixed_point(
            tanh_map(torch),
            torch.as_tensor(z0),
            (torch.as_tensor(W), b),
            solver=solver,
            rtol=1e-10,
        )
        return sol.value, sol.steps

    values, steps = torch.func.vmap(lane)(torch.as_tensor(bs))
    for i, b in enumerate(bs):
        there = numpy_case.solve(tanh_map(np), z0, (W, b), solver=solver, rtol=1e-10)
        assert_close(values[i].numpy(), there.value, 1e-9)
        if isinstance(solver, fp.Picard):
            assert int(steps[i]) == int(there.steps)


def test_one_ten_steps_of_lanes_of_vmap(numpy_case, contraction):
    z0, (W, b) = data(contraction)
    settings = {
        "solver": fp.Anderson(memory=5),
        "rtol": 0.0,
        "atol": 0.0,
        "max_steps": 10,
    }
    there = numpy_case.solve(tanh_map(np), z0, (W, b), **settings).value
    settings["on_failure"] = "return"

    def lane(xp, z0, W):
        return lambda b: fp.fixed_point(tanh_map(xp), z0, (W, b), **settings).value

    in_jax = jax.vmap(lane(jnp, jnp.asarray(z0), W))(np.stack([3 * b, b]))
    z0, W, bs = (torch.as_tensor(a) for a in (z0, W, np.stack([3 * b, b])))
    in_torch = torch.func.vmap(lane(torch, z0, W))(bs)
    assert_close(np.asarray(in_jax[1]), there, 1e-10)
    assert_close(in_torch[1].numpy(), there, 1e-10)


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_a_map_that_is_not_holomorphic(jit_case, solver):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2, 5)) + 1j * rng.standard_normal((2, 5))) * [
        [0.3],
        [1.0],
    ]
    f = lambda z, a, b: a * jit_case.xp.conj(z) + b
    sol = jit_case.solve(f, np.zeros(5, complex), (a, b), solver=solver, rtol=1e-11)
    exact = (b + a * np.conj(b)) / (1 - np.abs(a) ** 2)
    assert bool(sol.converged)
    assert_close(jit_case.to_numpy(sol.value), exact, 1e-9)


def test_a_complex_state_is_the_real_state_of_its_parts(xp_case):
    """z ↦ a z̄ + b in ℂ, and the same map in ℝ², take the same steps."""
    a, b = 0.6 + 0.5j, np.array([1.0 - 2.0j, 0.5j])
    settings = {"solver": fp.Anderson(memory=3), "rtol": 0.0, "atol": 0.0}
    real = lambda s: (
        a.real * s[0] + a.imag * s[1] + b.real,
        a.imag * s[0] - a.real * s[1] + b.imag,
    )
    if xp_case.name != "numpy":
        re, im = xp_case.asarray(b.real), xp_case.asarray(b.imag)
        real = lambda s: (
            a.real * s[0] + a.imag * s[1] + re,
            a.imag * s[0] - a.real * s[1] + im,
        )
    for max_steps in range(1, 4):
        whole = xp_case.solve(
            lambda z, b: a * xp_case.xp.conj(z) + b,
            0 * b,
            (b,),
            max_steps=max_steps,
            **settings,
        )
        parts = xp_case.solve(
            real, (np.zeros(2), np.zeros(2)), max_steps=max_steps, **settings
        )
        x, y = (xp_case.to_numpy(part) for part in parts.value)
        assert_close(xp_case.to_numpy(whole.value), x + 1j * y, 1e-10)


@pytest.mark.parametrize("solver", FIRST_ORDER)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_torch_keeps_low_precision(solver, dtype):
    z0 = torch.zeros(2, 3, dtype=dtype)
    sol = fp.fixed_point(lambda z: 0.5 * z + 1.0, z0, solver=solver, batch_ndim=1)
    eps = torch.finfo(dtype).eps
    assert sol.value.dtype == dtype
    assert sol.residual_norm.dtype == torch.float32
    np.testing.assert_allclose(
        sol.value.double().numpy(), 2.0, rtol=max(50 * eps, 1e-5)
    )


# Each is compiled for each dtype: of all dtypes the solver whose steps have the
# operations of all.
@pytest.mark.parametrize(
    ("dtype", "solver", "jit"),
    [
        *((jnp.float16, solver, True) for solver in FIRST_ORDER[:-1]),
        *(
            (dtype, FIRST_ORDER[-1], jit)
            for dtype in (jnp.float16, jnp.bfloat16, jnp.float32)
            for jit in (True, False)
        ),
    ],
)
def test_jax_keeps_low_precision_with_x64_on(dtype, solver, jit):
    def call(z0):
        return fp.fixed_point(lambda z: 0.5 * z + 1.0, z0, solver=solver, batch_ndim=1)

    sol = (jax.jit(call) if jit else call)(jnp.zeros((2, 3), dtype))
    eps = float(jnp.finfo(dtype).eps)
    assert sol.value.dtype == dtype
    assert sol.residual_norm.dtype == jnp.float32
    np.testing.assert_allclose(
        np.asarray(sol.value, float), 2.0, rtol=max(50 * eps, 1e-5)
    )


def test_a_module_of_low_precision_sums_in_float32():
    """The norm of 70 000 entries of 1 overflows nothing and loses nothing."""
    z0 = torch.zeros(70_000, dtype=torch.float16)
    sol = fp.fixed_point(
        lambda z: 0 * z + 1.0, z0, solver=fp.Picard(), max_steps=0, on_failure="return"
    )
    assert float(sol.residual_norm) == pytest.approx(np.sqrt(70_000), rel=1e-6)


def test_a_python_number_is_a_numpy_array():
    sol = fp.fixed_point(lambda z: 0.5 * z + 1.0, 0.0)
    assert isinstance(sol.value, (np.ndarray, np.generic))
    assert sol.value.dtype == np.float64
    assert float(sol.value) == pytest.approx(2.0, rel=1e-5)


def test_a_solution_leaves_jit_whole():
    sol = jax.jit(lambda z: fp.fixed_point(lambda z: 0.5 * z + 1.0, z))(jnp.zeros(2))
    assert isinstance(sol, fp.Solution)
    assert sol.message.startswith("converged")
