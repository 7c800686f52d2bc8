"""Methods that optimize an input while its equilibrium and the adjoint are tracked."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.utils._pytree import tree_map

import fixedpoint as fp
from fixedpoint.adapters import backend_of
from fixedpoint.operators import Lagrangian
from fixedpoint.spaces import space_of
from fixedpoint_models import (
    AugmentedDEQ,
    BarzilaiBorwein,
    ConditionalGradient,
    JointIteration,
    Momentum,
    Nested,
    TrackedDescent,
    TrackedLBFGS,
    TrackedNewton,
    ball,
    linear_minimizer,
    quasi_newton,
    sensitivity,
)
from fixedpoint_models.curvature import Loss
from fixedpoint_models.methods import _Best
from fixedpoint_models.sensitivity import Tangents, tangents

B, N, M = 4, 7, 3
RNG = np.random.default_rng(0)


def arguments(radius=0.6):
    """Parameters and data of a small network, in NumPy."""
    rng = np.random.default_rng(3)
    W = rng.standard_normal((N, N))
    W = radius * (W + W.T) / np.abs(np.linalg.eigvalsh(W + W.T)).max()
    params = {
        "W": W,
        "U": 0.5 * rng.standard_normal((N, M)),
        "C": 0.5 * rng.standard_normal((5, N)),
    }
    return params, 0.5 * rng.standard_normal((B, 5))


def xp_of(array):
    return (
        torch if torch.is_tensor(array) else jnp if isinstance(array, jax.Array) else np
    )


def f(z, x, params):
    return xp_of(z).tanh(z @ params["W"].T + x @ params["U"].T)


def output(z, params):
    return z @ params["C"].T


def loss(o, x, y, params):
    return ((o - y) ** 2).sum(-1) + 0.1 * (x**2).sum(-1)


MODEL = AugmentedDEQ(f, loss, output)


def to(container):
    """From NumPy's arrays to Torch's; JAX compiles the same sources, and is compared
    below.
    """
    return jax.tree.map(torch.tensor, container)


def solved(method, model=MODEL, radius=0.6, scale=1.0, **settings):
    params, y = to(arguments(radius))
    y = scale * y
    start = to((np.zeros((B, N)), np.zeros((B, M))))
    settings = {"max_steps": 400, "rtol": 1e-9, "atol": 1e-10} | settings
    return model.solve(*start, params=params, y=y, method=method, **settings)


def minima(radius=0.6, scale=1.0):
    """The least objective of each sample, by SciPy."""
    params, y = arguments(radius)
    y = scale * y

    def objective(x, target):
        z = np.zeros(N)
        for _ in range(1000):
            z = f(z, x, params)
        return loss(output(z, params), x, target, params)

    return [minimize(objective, np.zeros(M), args=(row,), tol=1e-12) for row in y]


METHODS = {
    "newton": TrackedNewton(),
    "L-BFGS": TrackedLBFGS(),
    "newton, few directions": TrackedNewton(blocks=1),
    "momentum": TrackedDescent(rule=Momentum(step_size=0.03, momentum=0.3), sweeps=3),
    "recipe": JointIteration(step_size=0.05, later=0.02, memory=5, drop=0.2, type=2),
    "Barzilai and Borwein": TrackedDescent(
        rule=BarzilaiBorwein(step_size=0.02), sweeps=6
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_solution_is_the_minimum_that_scipy_finds(name):
    sol = solved(METHODS[name], scale=0.3, rtol=1e-6, atol=1e-7, max_steps=1500)
    expected = minima(scale=0.3)
    np.testing.assert_allclose(sol.objective, [r.fun for r in expected], rtol=1e-6)
    np.testing.assert_allclose(sol.x, [r.x for r in expected], atol=2e-4)
    assert all(float(norm.max()) < 1e-5 for norm in sol.kkt.values())


def test_newton_is_fast_where_equilibria_are_hard():
    """Spectral radius 0.9 at the start."""
    sol = solved(TrackedNewton(), radius=0.9, scale=0.2, max_steps=200, rtol=1e-5)
    np.testing.assert_allclose(
        sol.objective, [r.fun for r in minima(0.9, 0.2)], rtol=1e-5
    )


def test_newton_evaluates_as_often_as_it_says():
    """One sweep of the batch before the first step, and three in each if easy."""
    params, y = jax.tree.map(torch.tensor, arguments())
    calls = []

    def counted(z, x, params):
        calls.append(len(z))
        return f(z, x, params)

    zeros = (
        torch.zeros(B, N, dtype=torch.float64),
        torch.zeros(B, M, dtype=torch.float64),
    )
    params["W"] = 0.2 * params["W"]
    model = AugmentedDEQ(counted, loss, output)
    sol = model.iterate(
        *zeros,
        params=params,
        y=y,
        method=TrackedNewton(),
        max_steps=4,
        rtol=0.0,
        atol=0.0,
        on_failure="return",
    )
    assert calls.count(B) == 2 + 3 * 4
    assert sol.work.f == len(calls)
    # One product gives the tangents, and none belongs to the first sweep.
    assert sol.work.vjp == calls.count(B)
    assert calls.count(N) == 1


@pytest.mark.parametrize("sweeps", [1, 3])
def test_descent_takes_as_many_evaluations_as_sweeps(sweeps):
    params, y = jax.tree.map(torch.tensor, arguments())
    calls = []

    def counted(z, x, params):
        calls.append(1)
        return f(z, x, params)

    zeros = (
        torch.zeros(B, N, dtype=torch.float64),
        torch.zeros(B, M, dtype=torch.float64),
    )
    method = TrackedDescent(rule=Momentum(step_size=0.01), sweeps=sweeps)
    sol = AugmentedDEQ(counted, loss, output).iterate(
        *zeros, params=params, y=y, method=method, max_steps=5, on_failure="return"
    )
    assert len(calls) == sol.work.f == sol.work.vjp == 1 + 5 * sweeps


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_does_not_depend_on_its_neighbors(name):
    params, y = jax.tree.map(torch.tensor, arguments())
    run = lambda rows: MODEL.iterate(
        torch.zeros(len(rows), N, dtype=torch.float64),
        torch.zeros(len(rows), M, dtype=torch.float64),
        params=params,
        y=rows,
        method=METHODS[name],
        max_steps=12,
        on_failure="return",
    ).value["x"]
    torch.testing.assert_close(run(y)[1:2], run(y[1:2]), rtol=1e-9, atol=1e-12)


def test_samples_that_have_converged_leave_the_batch():
    params, y = to(arguments())
    # Three are at the minimum from the start.
    y = torch.cat([torch.zeros_like(y[:3]), 0.3 * y[3:]])
    calls = []

    def counted(z, x, params):
        calls.append(len(z))
        return f(z, x, params)

    start = to((np.zeros((B, N)), np.zeros((B, M))))
    kw = {"params": params, "method": TrackedNewton(), "max_steps": 40, "rtol": 1e-6}
    found = AugmentedDEQ(counted, loss, output).iterate(*start, y=y, **kw)
    alone = MODEL.iterate(start[0][3:], start[1][3:], y=y[3:], **kw)
    assert calls.count(B) <= 2 + 3  # the start, and the sweeps of a step
    assert calls[-int(found.steps[3]) + 1 :] == [1] * (int(found.steps[3]) - 1)
    torch.testing.assert_close(
        found.value["x"][3:], alone.value["x"], rtol=1e-9, atol=1e-12
    )


def test_a_nan_neighbor_is_left_alone():
    params, y = jax.tree.map(torch.tensor, arguments())
    poisoned = y.clone()
    poisoned[2] = torch.nan
    zeros = (
        torch.zeros(B, N, dtype=torch.float64),
        torch.zeros(B, M, dtype=torch.float64),
    )
    run = lambda y: MODEL.iterate(
        *zeros,
        params=params,
        y=y,
        method=TrackedNewton(),
        max_steps=30,
        on_failure="return",
    )
    clean, spoilt = run(y), run(poisoned)
    others = [0, 1, 3]
    assert not spoilt.converged[2]
    torch.testing.assert_close(spoilt.value["x"][others], clean.value["x"][others])


def test_leaves_do_not_matter():
    """A state in two leaves, and an input in two, take the same path as in one."""
    params, y = jax.tree.map(torch.tensor, arguments())
    join = lambda pair: torch.cat([pair["a"], pair["b"]], -1)
    split = lambda v, k: {"a": v[:, :k], "b": v[:, k:]}
    parts = AugmentedDEQ(
        lambda z, x, p: split(f(join(z), join(x), p), 2),
        lambda o, x, y, p: loss(o, join(x), y, p),
        lambda z, p: output(join(z), p),
    )
    zeros = (
        torch.zeros(B, N, dtype=torch.float64),
        torch.zeros(B, M, dtype=torch.float64),
    )
    kw = {"params": params, "y": y, "method": TrackedNewton(), "max_steps": 8}
    whole = MODEL.iterate(*zeros, on_failure="return", **kw).value
    two = parts.iterate(
        split(zeros[0], 2), split(zeros[1], 1), on_failure="return", **kw
    ).value
    torch.testing.assert_close(join(two["x"]), whole["x"], rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(join(two["z"]), whole["z"], rtol=1e-9, atol=1e-11)


def test_jax_agrees_with_torch():
    """Compiled; in a trace nothing is known of how fast sweeps contract, so both are
    compared where they end.
    """
    params, y = arguments()
    start = np.zeros((B, N)), np.zeros((B, M))
    run = lambda start, params, y: MODEL.iterate(
        *start,
        params=params,
        y=y,
        method=TrackedNewton(),
        rtol=1e-9,
        atol=1e-10,
        max_steps=200,
    ).value["x"]
    there = jax.jit(run)(*jax.tree.map(jnp.asarray, (start, params, y)))
    np.testing.assert_allclose(there, run(*to((start, params, y))), atol=1e-7)


def test_starts_that_differ_lead_to_the_minimum_too():
    params, y = to(arguments())
    start = to((np.zeros((B, N)), RNG.standard_normal((B, M))))
    sol = MODEL.solve(
        *start,
        params=params,
        y=y,
        method=TrackedNewton(),
        max_steps=300,
        rtol=1e-8,
        atol=1e-9,
    )
    np.testing.assert_allclose(sol.objective, [r.fun for r in minima()], rtol=1e-6)


@pytest.mark.parametrize("small", [0, 256])
def test_tangents_are_those_of_dense_algebra(small, monkeypatch):
    monkeypatch.setattr(sensitivity, "_SMALL", small)
    params, _ = to(arguments())
    zero, x = to((np.zeros((1, N)), 0.3 * np.ones((1, M))))
    z = fp.fixed_point(f, zero, (x, params), batch_ndim=1, rtol=1e-13).value
    found = tangents(
        Lagrangian(f, loss, output=output), z, x, params, blocks=9, rtol=0.0
    )
    p, state = arguments()[0], np.asarray(z)[0]
    slope = (1 - state**2)[:, None]
    inverse = np.linalg.inv(np.eye(N) - slope * p["W"])
    np.testing.assert_allclose(found.state[0].T, inverse @ (slope * p["U"]), atol=1e-10)
    np.testing.assert_allclose(
        found.output[0].T, p["C"] @ inverse @ (slope * p["U"]), atol=1e-10
    )


@pytest.mark.parametrize("small", [0, 256])
def test_tangents_along_directions_that_do_nothing(small, monkeypatch):
    """A column of ∂f/∂x that is zero, and one that is another's double."""
    monkeypatch.setattr(sensitivity, "_SMALL", small)
    params, _ = jax.tree.map(torch.tensor, arguments())
    params["U"][:, 1], params["U"][:, 2] = 0.0, 2 * params["U"][:, 0]
    z, x = (
        torch.zeros(1, N, dtype=torch.float64),
        torch.zeros(1, M, dtype=torch.float64),
    )
    found = tangents(Lagrangian(f, loss, output=output), z, x, params)
    expected = torch.linalg.solve(
        torch.eye(N, dtype=z.dtype) - params["W"], params["U"]
    )
    torch.testing.assert_close(found.state[0].T, expected, rtol=0.05, atol=1e-9)


def test_data_in_params_is_refused():
    params, y = jax.tree.map(torch.tensor, arguments())
    model = AugmentedDEQ(lambda z, x, p: f(z, x, p) + p["shift"], loss, output)
    zeros = (
        torch.zeros(B, N, dtype=torch.float64),
        torch.zeros(B, M, dtype=torch.float64),
    )
    params["shift"] = torch.zeros(B, N, dtype=torch.float64)
    with pytest.raises(ValueError, match="shape"):
        model.solve(*zeros, params=params, y=y, method=TrackedNewton())


def test_constraints_are_refused_by_newton():
    with pytest.raises(ValueError, match="use TrackedLBFGS"):
        solved(TrackedNewton(), model=replace(MODEL, project=ball(1.0)))


def test_implicit_derivatives_hold_after_any_method():
    """The derivative of the minimum is the envelope's, however it was found."""
    params, y = jax.tree.map(torch.tensor, arguments())
    params = {name: leaf.requires_grad_() for name, leaf in params.items()}
    zeros = (
        torch.zeros(B, N, dtype=torch.float64),
        torch.zeros(B, M, dtype=torch.float64),
    )
    sol = MODEL.iterate(
        *zeros,
        params=params,
        y=y,
        method=TrackedNewton(),
        max_steps=2000,
        rtol=1e-9,
        atol=1e-10,
        adjoint=fp.ImplicitAdjoint(rtol=1e-12),
    )
    z, x = sol.value["z"], sol.value["x"]
    through = torch.autograd.grad(
        loss(output(z, params), x, y, params).sum(), list(params.values())
    )
    constants = {name: leaf.detach() for name, leaf in sol.value.items()}
    lagrangian = MODEL.lagrangian(**constants, params=params, y=y).sum()
    for a, b in zip(
        through, torch.autograd.grad(lagrangian, list(params.values())), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_an_iterate_is_better_by_its_residual_or_its_loss():
    """Each case is an iterate after the first, whose residual and loss are one."""
    cases = {
        (0, 10, 9.0, 9.0): True,  # any of the first ten
        (0, 11, 9.0, 9.0): False,
        (0, 11, 0.9, 9.0): True,  # a lower residual
        (0, 11, 1.2, 0.9): True,  # a lower loss, and a residual that may be borne
        (0, 11, 1.4, 0.9): False,
        (
            40,
            5,
            9.0,
            9.0,
        ): False,  # the first ten are free once, not again after the drop
    }
    for (before, step, residual, cost), kept in cases.items():
        best = _Best(lambda state: state["x"][:, 0])
        for number, norm, value in ((0, 1.0, 1.0), (step, residual, cost)):
            state = {"x": torch.full((1, 1), value)}
            best.note(before, number, state, torch.tensor([norm]))
        assert bool(best.state["x"] == cost) is kept, (before, step, residual, cost)


# Where nothing is named.


def bumpy(z, x, params):
    return torch.tanh(0.5 * z + x)


def swish_misfit(z, x, y, params):
    """(3zσ(3z) − 1)² + x²/100, which is bent downwards at zero."""
    return ((3 * z * torch.sigmoid(3 * z) - 1) ** 2 + 0.01 * x**2).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_is_bent_downwards_at_the_start(dtype):
    zero = torch.zeros(1, 1, dtype=dtype)
    sol = AugmentedDEQ(bumpy, swish_misfit).solve(zero, zero, params=None, y=None)
    x = np.linspace(-2.0, 2.0, 4001)
    z = np.zeros_like(x)
    for _ in range(200):
        z = np.tanh(0.5 * z + x)
    lowest = ((3 * z / (1 + np.exp(-3 * z)) - 1) ** 2 + 0.01 * x**2).min()
    np.testing.assert_allclose(sol.objective, lowest, rtol=1e-2)


@pytest.mark.parametrize("kind", ["separable", "coupled"])
def test_the_first_curvature_is_positive(kind):
    """Against the absolute value of dense algebra, of a loss with both signs in it."""
    rng = np.random.default_rng(5)
    signs, mixed = np.array([1.0, -2.0, 3.0, -4.0, 5.0]), rng.standard_normal((5, 5))
    Q = np.diag(signs) if kind == "separable" else mixed + mixed.T
    S, Q_there = rng.standard_normal((M, 5)), torch.tensor(Q)
    o, x = to((np.zeros((2, 5)), np.zeros((2, M))))
    space = space_of(backend_of([x], ["x"]), (x,), 1)
    quadratic = lambda o, x, y, p: 0.5 * ((o @ Q_there) * o).sum(-1) - (x**2).sum(-1)
    loss = Loss(space, quadratic, None, Tangents((to(S),), (to(S),), 0))
    found = loss.curvature(o, x, None, loss.expanded(o, x, None)[2])
    exact = S @ Q @ S.T - 2.0 * np.eye(M)
    values, vectors = np.linalg.eigh(exact)
    expected = (vectors * np.abs(values)) @ vectors.T
    if kind == "separable":
        expected = S @ np.abs(Q) @ S.T + 2.0 * np.eye(M)
    np.testing.assert_allclose(found[-1], expected, rtol=1e-9, atol=1e-9)


def decoder_task(norm, seed=0, dtype=torch.float32, states=32, inputs=6):
    """An untrained decoder, images of its own codes with noise, and a start."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((states, states))
    W *= norm / np.linalg.norm(W, 2)
    U = rng.standard_normal((states, inputs)) / inputs**0.5
    C = rng.standard_normal((20, states)) / states**0.5
    codes, z = rng.standard_normal((30, inputs)), np.zeros((30, states))
    for _ in range(300):
        z = np.tanh(z @ W.T + codes @ U.T)
    y = 1 / (1 + np.exp(-3 * z @ C.T)) + 0.1 * rng.standard_normal((30, 20))
    params, start = {"W": W, "U": U, "C": 3 * C}, (np.zeros_like(z), 0.0 * codes)
    narrow = lambda a: torch.tensor(a, dtype=dtype)
    return jax.tree.map(narrow, (params, y, start))


def decoded(z, params):
    return torch.sigmoid(z @ params["C"].T)


@pytest.mark.parametrize("norm", [0.5, 0.9, 1.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_decoders_are_solved_with_nothing_named(norm, dtype):
    params, y, start = decoder_task(norm, dtype=dtype)
    model = AugmentedDEQ(f, loss, decoded)
    sol = model.solve(*start, params=params, y=y, max_steps=100)
    assert sol.joint.methods == ("TrackedNewton",)
    slow = model.solve(*start, params=params, y=y, max_steps=400, rtol=1e-6)
    torch.testing.assert_close(sol.objective, slow.objective, rtol=1e-4, atol=0.0)
    sizes = {"z": sol.z, "mu": sol.mu, "x": sol.x}
    for name, residual in sol.kkt.items():
        assert (residual <= 2e-4 * (sizes[name].norm(dim=-1) + 0.01)).all()


@pytest.mark.parametrize("start", [-1.0, 0.5])
def test_states_that_follow_slowly_near_zero_and_fast_elsewhere(start):
    """z = tanh(0.9z + x): sweeps leave 0.9 of a defect at zero, and half that at .7."""
    steep = lambda z, x, p: torch.tanh(0.9 * z + x)
    misfit = lambda z, x, y, p: ((z - y) ** 2 + 0.01 * x**2).sum(-1)
    y = torch.linspace(-0.9, 0.9, 100)[:, None]
    sol = AugmentedDEQ(steep, misfit).solve(
        torch.zeros_like(y),
        torch.full_like(y, start),
        params=None,
        y=y,
        max_steps=200,
        rtol=1e-4,
        method=TrackedNewton(),
    )
    z = np.linspace(-0.95, 0.95, 4001)
    x = np.arctanh(z) - 0.9 * z
    lowest = ((z - y.numpy()) ** 2 + 0.01 * x**2).min(1)
    np.testing.assert_allclose(sol.objective, lowest, atol=1e-5)


def test_newton_steps_stay_within_reach_of_the_radius():
    """On a saddle, where the model is never bent as far down as what is seen."""
    signs, x = np.array([-1.0, 0.5, -0.1]), np.full((2, 3), 0.1)
    space = space_of(backend_of([x], ["x"]), (x,), 1)
    value, zero = lambda x: 0.5 * (signs * x**2).sum(-1), np.zeros(2)
    unit = np.broadcast_to(np.eye(3), (2, 3, 3))
    memory = quasi_newton.opened(space, x, signs * x, value(x), unit)
    for _ in range(60):
        x = memory.x + quasi_newton.step_of(space, memory)
        found = quasi_newton.Trial(x, signs * x, value(x), zero, zero)
        moved = quasi_newton.moved(space.backend, *found, *memory)
        memory = quasi_newton.Memory(*moved[: len(memory)])
        lengths = np.linalg.norm(memory.newton(), axis=1)
        assert (lengths <= 200 * memory.radius).all()


def test_what_is_named_or_not_for_newton_is_solved_otherwise():
    """Inputs in a set, data of the samples in params, and a solver that is named."""
    params, y, start = decoder_task(0.5)
    drive = torch.zeros_like(start[0])
    shifted = lambda z, x, p: torch.tanh(z @ p["W"].T + x @ p["U"].T + p["drive"])
    in_a_ball = AugmentedDEQ(f, loss, decoded, project=ball(1.0))
    with_data = AugmentedDEQ(shifted, loss, decoded)
    cases = [
        (in_a_ball, params, None, "TrackedLBFGS"),
        (with_data, {**params, "drive": drive}, None, "TrackedLBFGS"),
        (AugmentedDEQ(f, loss, decoded), params, fp.Anderson(), "Anderson"),
    ]
    for model, given, solver, name in cases:
        found = model.iterate(
            *start, params=given, y=y, solver=solver, max_steps=2, on_failure="return"
        )
        assert found.methods == (name,)


def test_a_first_step_that_overflows_is_shortened():
    """z = 2eˣ is to be y: the Gauss-Newton step from x = 0 goes to y/2 − 1."""
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + torch.exp(x),
        lambda z, x, y, p: ((z - y) ** 2).sum(-1),
    )
    zeros, y = to((np.zeros((2, 1)), np.array([[4.0], [2e3]])))
    sol = model.solve(zeros, zeros, params=None, y=y, max_steps=200)
    np.testing.assert_allclose(sol.x, np.log(np.asarray(y) / 2), rtol=1e-4)


@pytest.mark.parametrize("seen", ["z", "x"])
@pytest.mark.parametrize("given", ["x", "nothing"])
def test_a_singular_equilibrium_ends_as_a_failure_unless_the_loss_ignores_it(
    given, seen
):
    """Every z, or none, is an equilibrium of z = z + x: I − J is zero."""
    zeros = to(np.zeros((2, 2)))
    model = AugmentedDEQ(
        lambda z, x, p: z + x if given == "x" else z,
        lambda z, x, y, p: (((z if seen == "z" else x) - 1.0) ** 2).sum(-1),
    )
    sol = model.solve(zeros, zeros, params=None, y=None, on_failure="return")
    assert sol.joint.methods == ("TrackedNewton",)
    solvable = given == "nothing" and seen == "x"
    assert (sol.joint.converged == solvable).all()
    if solvable:
        np.testing.assert_allclose(sol.x, 1.0)


def test_tangents_that_there_are_not_are_done_without():
    """The first unknown is as it began, z = z; the second follows the input."""
    start = to(np.ones((2, 2)))
    model = AugmentedDEQ(
        lambda z, x, p: torch.stack([z[:, 0], 0.5 * z[:, 1] + x[:, 1]], -1),
        lambda z, x, y, p: ((z - 1.0) ** 2 + 0.1 * x**2).sum(-1),
    )
    sol = model.solve(start, start, params=None, y=None)
    assert sol.joint.methods == ("TrackedNewton",)
    np.testing.assert_allclose(sol.x, [[0.0, 4.0 / 8.2]] * 2, atol=1e-4)


def test_steps_that_went_too_far_hide_no_residual():
    """Sweeps of z = 2z + x run away, and residuals with them; none is rounding after
    that.
    """
    start = to(np.ones((2, 2)))
    model = AugmentedDEQ(lambda z, x, p: 2.0 * z + x, lambda z, x, y, p: z.sum(-1))
    sol = model.solve(start, start, params=None, y=None, on_failure="return")
    assert not sol.joint.converged.any()
    assert (sol.kkt["x"] > 1.0).all()


def test_steps_along_gradients_are_lost_in_no_values():
    """Those of Barzilai and Borwein rise and fall for dozens of steps."""
    rng = np.random.default_rng(30)
    A = rng.standard_normal((6, 6))
    A *= 0.8 / np.abs(np.linalg.eigvals(A)).max()
    U, y = rng.standard_normal((6, 8)), rng.standard_normal((8, 6))
    start = np.zeros((8, 6)), 100.0 * rng.standard_normal((8, 8))
    S = np.linalg.solve(np.eye(6) - A, U)
    steepest = 2.0 * np.linalg.norm(S, 2) ** 2 + 0.02
    narrow = [torch.tensor(a, dtype=torch.float32) for a in (*start, A, U, y)]
    model = AugmentedDEQ(
        lambda z, x, p: z @ p[0].T + x @ p[1].T,
        lambda z, x, y, p: ((z - y) ** 2).sum(-1) + 0.01 * (x**2).sum(-1),
        project=lambda x: x.clamp(-3.0, 2.0),
    )
    method = TrackedDescent(rule=BarzilaiBorwein(step_size=0.3 / steepest), sweeps=6)
    control = {"method": method, "max_steps": 155, "on_failure": "return"}
    sol = model.iterate(*narrow[:2], params=narrow[2:4], y=narrow[4], **control)
    x = np.zeros((8, 8))
    for _ in range(5000):
        slope = 2.0 * (x @ S.T - y) @ S + 0.02 * x
        x = np.clip(x - slope / steepest, -3.0, 2.0)
    phi = lambda x: ((x @ S.T - y) ** 2).sum(-1) + 0.01 * (x**2).sum(-1)
    high = phi(np.asarray(sol.value["x"], dtype=np.float64)) > 1.01 * phi(x)
    assert not (np.asarray(sol.converged) & high).any()


# Attacks: a linear loss over a ball, whose minimum is known.


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("rule", ["conditional gradient", "normalized", "projected"])
def test_a_linear_loss_is_least_on_the_boundary(norm, rule):
    params, _ = to(arguments())
    direction = to(RNG.standard_normal((B, N)))
    linear = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x @ p["U"].T,
        lambda z, x, c, p: (c * z).sum(-1),
        project=ball(0.7, norm),
    )
    rules = {
        "conditional gradient": ConditionalGradient(oracle=linear_minimizer(0.7, norm)),
        "normalized": Momentum(step_size=0.2, normalized=True),
        "projected": Momentum(step_size=0.1, momentum=0.5),
    }
    zeros = to((np.zeros((B, N)), np.zeros((B, M))))
    sol = linear.solve(
        *zeros,
        params=params,
        y=direction,
        method=TrackedDescent(rule=rules[rule]),
        max_steps=900,
        rtol=1e-6,
        atol=1e-8,
    )
    slope = 2 * np.asarray(direction) @ arguments()[0]["U"]
    dual = np.linalg.norm(slope, axis=1) if norm == "l2" else np.abs(slope).sum(1)
    np.testing.assert_allclose(sol.objective, -0.7 * dual, rtol=1e-4)


def test_jax_differentiates_a_descent_that_ends_on_the_boundary():
    """The least ⟨c, z⟩ with z = z/2 + x over a ball of radius r is at x = −r c/‖c‖."""
    linear = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, c, p: (c * z).sum(-1),
        project=ball(0.7),
    )
    rule = ConditionalGradient(oracle=linear_minimizer(0.7))

    def minimizer(c):
        zeros = jnp.zeros((1, M))
        found = linear.iterate(
            zeros,
            zeros,
            params=None,
            y=c[None],
            method=TrackedDescent(rule=rule),
            rtol=1e-10,
            atol=1e-12,
        )
        return found.value["x"][0]

    c = np.array([1.0, 2.0, -2.0])
    expected = 0.7 / 3.0 * (np.outer(c, c) / 9.0 - np.eye(M))
    v = np.array([1.0, 0.0, 0.5])
    found = jax.jvp(jax.jit(minimizer), (jnp.asarray(c),), (jnp.asarray(v),))[1]
    np.testing.assert_allclose(found, expected @ v, rtol=1e-7, atol=1e-9)


def test_a_constrained_solution_is_linearized_with_its_projection():
    params, y = to(arguments())
    model = replace(MODEL, project=ball(0.1))
    zeros = to((np.zeros((B, N)), np.zeros((B, M))))
    method = TrackedDescent(rule=Momentum(step_size=0.05))
    sol = model.iterate(*zeros, params=params, y=y, method=method, max_steps=400)
    direction = tree_map(torch.randn_like, sol.value)
    expected = torch.func.jvp(
        lambda state: model.system(state, params, y), (sol.value,), (direction,)
    )[1]
    for name, product in sol.linearize()(direction).items():
        torch.testing.assert_close(product, expected[name], rtol=1e-10, atol=1e-12)


UNREAD = {
    "state": lambda z, x, p: {"a": torch.tanh(x), "b": torch.tanh(x)},
    "leaf": lambda z, x, p: {"a": torch.tanh(x), "b": 0.5 * z["a"]},
    "input": lambda z, x, p: {"a": 0.5 * z["b"], "b": 0.5 * z["a"] + 1.0},
    "either": lambda z, x, p: {"a": torch.ones(1, 3), "b": torch.ones(1, 3)},
}


@pytest.mark.parametrize("unread", UNREAD)
def test_what_f_does_not_read_has_no_part_in_the_nested_gradient(unread):
    f, zeros = UNREAD[unread], {name: torch.zeros(1, 3) for name in "ab"}
    loss = lambda z, x, y, p: ((z["b"] - y) ** 2).sum(-1) + (x**2).sum(-1)
    x = torch.full((1, 3), 0.3)
    nested = Nested(Lagrangian(f, loss), torch.optim.SGD, fp.Anderson(), 1e-8)
    found = nested.reduced(zeros, zeros, x, params=None, y=1.0)

    def composed(x):
        state = zeros
        for _ in range(80):
            state = f(state, x, None)
        return loss(state, x, 1.0, None).sum()

    expected = torch.func.grad(composed)(x)
    torch.testing.assert_close(found.gradient, expected, rtol=1e-6, atol=1e-7)
    assert not x.requires_grad


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Momentum(step_size=0.0), "step_size"),
        (lambda: Momentum(step_size=0.1, momentum=1.0), "momentum"),
        (lambda: ConditionalGradient(oracle=len, step_size=1.5), "step_size"),
        (lambda: BarzilaiBorwein(step_size=-1.0), "step_size"),
        (lambda: TrackedNewton(damping=0.0), "damping"),
        (lambda: ball(-1.0), "radius"),
        (lambda: linear_minimizer(1.0, "l1"), "norm"),
        (lambda: Lagrangian(f, loss, f, f, output), "output"),
    ],
)
def test_bad_settings_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


class LastPicard(fp.Picard):
    """Its last iterate counts."""

    @property
    def latest(self):
        return True


@pytest.mark.parametrize("solver", [LastPicard(), fp.Picard()])
def test_the_last_iterate_is_kept_where_it_counts(solver):
    """On a map whose residual rises before it falls."""
    matrix, z0 = to((np.array([[0.0, -3.0], [0.9, 0.0]]), np.array([0.0, 1.0])))
    sol = fp.fixed_point(
        lambda z, A: A @ z,
        z0,
        (matrix,),
        solver=solver,
        max_steps=1,
        on_failure="return",
    )
    np.testing.assert_allclose(sol.value, [-3.0, 0.0] if solver.latest else [0.0, 1.0])


def test_the_recipe_keeps_the_best_iterate_by_residual_and_loss():
    params, y = to(arguments())
    zeros = (
        torch.zeros(B, N, dtype=torch.float64),
        torch.zeros(B, M, dtype=torch.float64),
    )
    method = JointIteration(step_size=0.1, later=0.05, memory=3)
    sol = MODEL.iterate(
        *zeros,
        params=params,
        y=y,
        method=method,
        max_steps=60,
        rtol=0.0,
        atol=0.0,
        on_failure="return",
    )
    kkt = MODEL.kkt(*(sol.value[name] for name in ("z", "mu", "x")), params=params, y=y)
    norm = torch.stack(list(kkt.values())).norm(dim=0)
    torch.testing.assert_close(sol.residual_norm, norm)  # that of the value returned
    first = MODEL.iterate(
        *zeros,
        params=params,
        y=y,
        solver=fp.Anderson(),
        max_steps=10,
        on_failure="return",
    )
    assert (sol.residual_norm < 1.3 * first.residual_norm).all()


def test_the_recipe_says_how_many_steps_it_took():
    """Those of the samples, not those that were allowed."""
    sol = solved(METHODS["recipe"], scale=0.3, rtol=1e-3, atol=1e-4, max_steps=1500)
    assert bool((sol.joint.steps > 0).all())
    assert int(sol.joint.steps.max()) < 1000


# What is asked for in another way than it can be.


ZERO = torch.zeros(3, 2)


def asked(z0=ZERO, x0=ZERO, loss=lambda z, x, y, p: (z**2).sum(-1), **settings):
    control = {key: settings.pop(key) for key in {"method"} & settings.keys()}
    model = AugmentedDEQ(lambda z, x, p: 0.5 * z + x, loss, **settings)
    return model.solve(z0, x0, params=None, y=z0, **control)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"loss": lambda z, x, y, p: (z**2).sum()},
            ValueError,
            r"loss must return one number for each sample, an array of 1 axes, "
            r"got the shape \(\)",
        ),
        ({"loss": lambda z, x, y, p: z**2}, ValueError, r"loss must .*shape \(3, 2\)"),
        ({"loss": lambda z, x, y, p: 1.0}, ValueError, "loss must .*builtins.float"),
        ({"loss": "a"}, TypeError, "loss must be callable, got str"),
        ({"project": 3}, TypeError, "project must be callable, got 3"),
        ({"x0": ZERO.long()}, TypeError, "x0 must have a floating-point .*torch.int64"),
        ({"x0": ZERO[:0]}, ValueError, r"same batch axes, got \(\d,\) and \(0,\)"),
        ({"method": "newton"}, TypeError, r"method must be TrackedN.*, got 'newton'"),
        ({"method": 3}, TypeError, "method must be TrackedNewton.*, got 3"),
        ({"method": TrackedLBFGS}, TypeError, "method must be .*got <class"),
    ],
)
def test_an_argument_of_the_wrong_kind(settings, error, message):
    with pytest.raises(error, match=message):
        asked(**settings)


def test_a_batch_of_none():
    sol = asked(ZERO[:0], ZERO[:0])
    assert sol.x.shape == (0, 2)
    assert sol.objective.shape == sol.joint.status.shape == (0,)


@pytest.mark.parametrize("name", ["params", "y"])
@pytest.mark.parametrize("method", [AugmentedDEQ.solve, AugmentedDEQ.iterate])
def test_what_is_none_and_read_is_named(method, name):
    model = AugmentedDEQ(
        lambda z, x, w: w["w"] * z + x, lambda z, x, y, w: ((z - y) ** 2).sum(-1)
    )
    given = {"params": {"w": torch.tensor(0.5)}, "y": ZERO} | {name: None}
    with pytest.raises(TypeError) as caught:
        method(model, ZERO, ZERO, **given)
    (note,) = caught.value.__notes__
    assert note.startswith(f"{name} is None: if ")


def quadratic(seed, ridge):
    """A linear equilibrium network, the squared distance of its states to others plus
    `ridge` times ‖x‖², and the minimizers; without a ridge the states are met exactly.
    """
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((2, 4, 4))
    A, B = 0.6 * A / np.linalg.norm(A, 2), np.linalg.qr(B)[0]
    y = rng.standard_normal((2, 4))
    S = np.linalg.solve(np.eye(4) - A, B)
    x = np.linalg.solve(S.T @ S + ridge * np.eye(4), S.T @ y.T).T
    A, B, y, x = map(torch.as_tensor, (A, B, y, x))
    loss = lambda z, x, y, p: ((z - y) ** 2).sum(-1) + ridge * (x**2).sum(-1)
    return (lambda z, x, p: z @ A.T + x @ B.T), loss, y, x


@pytest.mark.parametrize("far", [1e2, 1e8])
@pytest.mark.parametrize("ridge", [0.0, 0.1, 10.0])
@pytest.mark.parametrize(
    "method",
    [None, TrackedLBFGS(), TrackedDescent(rule=Momentum(step_size=0.02), sweeps=6)],
    ids=["default", "lbfgs", "momentum"],
)
def test_what_is_claimed_from_far_away_is_right(method, ridge, far):
    claims = 0
    for seed in range(3):
        f, loss, y, exact = quadratic(seed, ridge)
        model = AugmentedDEQ(f, loss, step_size=0.02)
        x0 = far * torch.randn(
            exact.shape, generator=torch.Generator().manual_seed(seed)
        ).to(exact)
        solved = model.solve(
            torch.zeros_like(y),
            x0,
            params=None,
            y=y,
            method=method,
            rtol=1e-4,
            max_steps=200,
            on_failure="return",
        )
        errors = (solved.x - exact).norm(dim=-1) / exact.norm(dim=-1)
        claims += int(solved.joint.converged.sum())
        assert not (solved.joint.converged & (errors > 1e-3)).any()
    assert claims == 6 or method is not None


@pytest.mark.parametrize(
    "named", [{}, {"method": TrackedLBFGS()}, {"solver": fp.Anderson()}]
)
def test_a_network_may_hold_the_parameters_that_are_trained(named):
    """They need not go through params: the solve is constant, the Lagrangian is not."""
    torch.manual_seed(0)
    network = torch.nn.Linear(6, 4)
    f = lambda z, x, _: torch.tanh(0.3 * network(torch.cat([z, x], -1)))
    loss = lambda z, x, y, _: ((z - y) ** 2).sum(-1) + 0.1 * (x**2).sum(-1)
    model = AugmentedDEQ(f, loss, step_size=0.3)
    z0, x0, y = torch.zeros(2, 4), torch.zeros(2, 2), torch.full((2, 4), 0.3)
    sol = model.solve(z0, x0, params=None, y=y, max_steps=300, **named)
    assert not sol.objective.requires_grad
    found = model.lagrangian(sol.z, sol.mu, sol.x, params=None, y=y).sum()
    (slope,) = torch.autograd.grad(found, network.bias)
    with torch.no_grad():
        network.bias += 1e-2
        moved = model.solve(z0, x0, params=None, y=y, max_steps=300, **named)
    quotient = (moved.objective - sol.objective).sum() / 1e-2
    torch.testing.assert_close(slope.sum(), quotient, rtol=0.05, atol=0.0)


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ((lambda z, x: z, lambda z, x, y, p: z), r"^f is called as f\(z, x, params\)"),
        ((lambda z, x, p: z, lambda z, y: z), r"^loss is called as loss\(o, x, y, par"),
        (
            (lambda z, x, p: z, lambda z, x, y, p: z, lambda z: z),
            r"^output is called as output\(z, params\), but takes \(z\)$",
        ),
    ],
)
def test_what_functions_of_the_model_are_called_with(functions, message):
    with pytest.raises(TypeError, match=message):
        AugmentedDEQ(*functions)


def test_a_solve_of_the_model_knows_what_others_call_its_settings():
    model = AugmentedDEQ(lambda z, x, p: z, lambda z, x, y, p: z.sum(-1))
    with pytest.raises(TypeError, match=r"^solve\(\) got .*here it is max_steps=$"):
        model.solve(
            torch.zeros(1, 1), torch.zeros(1, 1), params=None, y=None, maxiter=3
        )


def test_data_of_another_library_are_named():
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x, lambda z, x, y, p: ((z - y) ** 2).sum(-1)
    )
    one = torch.ones(1, 1)
    with pytest.raises(RuntimeError) as told:
        model.solve(one, one, params=None, y=np.ones((1, 1)))
    assert told.value.__notes__ == [
        "z0 is a torch.Tensor, y a numpy.ndarray. Give y as torch.as_tensor(...)"
    ]


def test_a_solver_that_would_not_be_used_is_refused():
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x, lambda z, x, y, p: ((z - y) ** 2).sum(-1)
    )
    one, both = torch.ones(1, 1), {"solver": fp.Anderson(), "method": TrackedNewton()}
    with pytest.raises(ValueError, match=r"^solver and method must not .*Anderson\("):
        model.solve(one, one, params=None, y=one, **both)
