"""Operators: closed forms, the residual that is tested, and what an evaluation
costs.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
from fixedpoint.operators import Compose, InputStep, Joint, Lagrangian, Map, augmented

Z = np.array([1.0, -2.0, 4.0])
CLIP = lambda z: z.clip(-1.0, 1.0)


def half(z, b=1.0):
    return 0.5 * z + b


def check(evaluation, image, residual):
    np.testing.assert_allclose(evaluation.image, image, rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(evaluation.residual, residual, rtol=1e-15, atol=1e-16)


def test_map():
    check(Map(half).evaluate(Z), half(Z), half(Z) - Z)


def test_map_takes_arguments():
    check(Map(half).evaluate(Z, 3.0), half(Z, 3.0), half(Z, 3.0) - Z)


@pytest.mark.parametrize("damping", [0.1, 1.0, 1.9])
def test_damp(damping):
    check(
        Map(half).damped(damping).evaluate(Z), Z + damping * (half(Z) - Z), half(Z) - Z
    )


def test_damping_twice_multiplies():
    twice = Map(half).damped(0.5).damped(0.4).evaluate(Z)
    check(twice, Z + 0.2 * (half(Z) - Z), half(Z) - Z)


def test_project():
    check(Map(half).projected(CLIP).evaluate(Z), CLIP(half(Z)), CLIP(half(Z)) - Z)


def test_the_residual_of_a_projected_damped_map_is_undamped():
    evaluation = Map(half).damped(0.25).projected(CLIP).evaluate(Z)
    check(evaluation, CLIP(Z + 0.25 * (half(Z) - Z)), CLIP(half(Z)) - Z)


def test_compose():
    evaluation = (Map(half) @ Map(np.cos)).evaluate(Z)
    check(evaluation, half(np.cos(Z)), half(np.cos(Z)) - Z)


def test_compose_is_associative():
    f, g, h = Map(half), Map(np.cos), Map(np.tanh)
    np.testing.assert_array_equal(((f @ g) @ h)(Z), (f @ (g @ h))(Z))
    assert isinstance(f @ g, Compose)


def test_an_operator_is_callable(xp_case):
    z = xp_case.asarray(Z)
    np.testing.assert_array_equal(
        xp_case.to_numpy(Map(half).damped(0.5)(z)), 0.75 * Z + 0.5
    )


def test_containers(xp_case):
    operator = Map(lambda z: {"a": 0.5 * z["a"], "b": [z["b"][0] + 1.0]}).damped(0.5)
    evaluation = operator.evaluate(xp_case.tree({"a": Z, "b": [Z]}))
    np.testing.assert_array_equal(xp_case.to_numpy(evaluation.image["a"]), 0.75 * Z)
    np.testing.assert_array_equal(xp_case.to_numpy(evaluation.image["b"][0]), Z + 0.5)
    np.testing.assert_array_equal(
        xp_case.to_numpy(evaluation.residual["b"][0]), np.ones(3)
    )


@pytest.mark.parametrize("damping", [0.0, -1.0, 2.1])
def test_damping_is_in_range(damping):
    with pytest.raises(ValueError, match="damping must be in"):
        Map(half).damped(damping)


@pytest.mark.parametrize("step_size", [0.0, -0.1])
def test_step_size_is_positive(step_size):
    with pytest.raises(ValueError, match="step_size must be positive"):
        InputStep(step_size)


def test_operators_evaluate_their_map_once(counted):
    f = counted(half)
    Map(f).damped(0.5).projected(CLIP).damped(0.9).evaluate(Z)
    assert f.calls == 1


def test_joint_shares_its_work(counted):
    shared = counted(lambda state: state["u"] + state["v"])
    joint = Joint(
        shared, {"u": Map(lambda _, s: s / 4), "v": Map(lambda _, s: s / 2 + 1)}
    )
    evaluation = joint.evaluate({"u": Z, "v": 2 * Z})
    assert shared.calls == 1
    np.testing.assert_array_equal(evaluation.image["u"], 0.75 * Z)
    np.testing.assert_array_equal(evaluation.image["v"], 1.5 * Z + 1)
    np.testing.assert_array_equal(evaluation.residual["v"], -0.5 * Z + 1)


BLOCKS = {"u": np.full(2, 1e6), "v": np.ones(2), "w": np.full(2, 1e-3)}


def joint_of_blocks():
    """Goes to the blocks that it is given."""
    return Joint(
        lambda state, target: (state, target),
        {name: Map(lambda _, s, name=name: s[1][name]) for name in BLOCKS},
    )


def test_every_block_has_to_converge_by_itself(jit_case):
    """The relative test of a small block is not met on the strength of a large one."""
    state, joint = BLOCKS, joint_of_blocks()
    settings = {"max_steps": 0, "rtol": 1e-6, "atol": 0.0}
    assert bool(jit_case.solve(joint, state, (state,), **settings).converged)
    for wrong in "uvw":
        off = state | {wrong: state[wrong] * (1 + 1e-5)}
        assert not bool(jit_case.solve(joint, off, (state,), **settings).converged)


@pytest.mark.parametrize(
    "operator",
    [joint_of_blocks().damped(0.5), joint_of_blocks().projected(lambda state: state)],
)
def test_blocks_that_are_damped_or_projected_converge_by_themselves(operator):
    off = BLOCKS | {"w": BLOCKS["w"] * (1 + 1e-5)}
    settings = {"max_steps": 0, "rtol": 1e-6, "atol": 0.0, "on_failure": "return"}
    assert bool(fp.fixed_point(operator, BLOCKS, (BLOCKS,), **settings).converged)
    assert not bool(fp.fixed_point(operator, off, (BLOCKS,), **settings).converged)


# The augmented system of f(z, x) = Az + Bx, ℓ = |z − y|²/2 + c|x|²/2: linear algebra.

A = np.array([[0.4, 0.2], [-0.1, 0.3]])
B = np.array([[1.0, 0.0, 0.5], [0.3, 1.0, 0.0]])
C = 0.5
Y = np.array([1.0, -2.0])
NAMES = ("z", "mu", "x")


def affine(z, x, params):
    A, B = params
    return A @ z + B @ x


def loss(z, x, y, params):
    return (z - y) @ (z - y) / 2 + C * (x @ x) / 2


def affine_vjp(z, x, params):
    A, B = params
    return affine(z, x, params), lambda mu: (A.T @ mu, B.T @ mu)


def loss_gradient(z, x, y, params):
    return loss(z, x, y, params), (z - y, C * x)


USER = {"vjp": affine_vjp, "loss_gradient": loss_gradient}


def exact():
    """The solution by elimination: z = Sx with S = (I − A)⁻¹B, μ = (I − Aᵀ)⁻¹(z −
    y).
    """
    S = np.linalg.solve(np.eye(2) - A, B)
    x = np.linalg.solve(S.T @ S + C * np.eye(3), S.T @ Y)
    z = S @ x
    return {"z": z, "mu": np.linalg.solve(np.eye(2) - A.T, z - Y), "x": x}


def start():
    return {"z": np.zeros(2), "mu": np.zeros(2), "x": np.zeros(3)}


def solve_augmented(case, project=None, **settings):
    user = USER if case.name in ("numpy", "strict") else {}
    joint = augmented(affine, loss, step_size=0.15, project=project, **user)
    settings = {
        "solver": fp.Anderson(memory=7),
        "rtol": 1e-11,
        "max_steps": 300,
    } | settings
    return case.solve(joint, start(), ((A, B), Y), **settings)


def test_augmented_solves_its_problem(jit_case):
    sol = solve_augmented(jit_case)
    assert bool(sol.converged)
    for name, leaf in exact().items():
        np.testing.assert_allclose(jit_case.to_numpy(sol.value[name]), leaf, rtol=1e-8)


def test_augmented_iterates_agree(jit_case, numpy_case):
    settings = {"max_steps": 6, "rtol": 0.0, "atol": 0.0}
    here, there = (solve_augmented(case, **settings) for case in (jit_case, numpy_case))
    for name in NAMES:
        np.testing.assert_allclose(
            jit_case.to_numpy(here.value[name]),
            there.value[name],
            rtol=1e-9,
            atol=1e-11,
        )


def test_augmented_with_a_projection(jit_case):
    """At the solution no feasible direction descends: x = Π(x − ∇ₓL) with a gradient
    afresh.
    """
    bound = 0.2
    sol = solve_augmented(
        jit_case,
        lambda x: jit_case.xp.clip(x, -bound, bound),
        solver=fp.Picard(),
        max_steps=3000,
    )
    x = jit_case.to_numpy(sol.value["x"])
    z = np.linalg.solve(np.eye(2) - A, B @ x)
    gradient = B.T @ np.linalg.solve(np.eye(2) - A.T, z - Y) + C * x
    assert bool(sol.converged)
    np.testing.assert_allclose(np.clip(x - gradient, -bound, bound), x, atol=1e-8)
    assert np.sum(np.abs(x) == bound) >= 1


def almost(wrong):
    """A state that satisfies all equations but one."""
    eye, mu = np.eye(2), np.array([0.3, -0.7])
    x = -B.T @ mu / C
    if wrong == "z":
        return {"z": Y + (eye - A.T) @ mu, "mu": mu, "x": x}
    z = np.linalg.solve(eye - A, B @ x)
    if wrong == "x":
        mu = np.linalg.solve(eye - A.T, z - Y)
    return {"z": z, "mu": mu, "x": x}


@pytest.mark.parametrize("wrong", NAMES)
def test_kkt_residuals_block_by_block(wrong):
    joint = augmented(affine, loss, step_size=0.01, **USER)
    residual = joint.evaluate(almost(wrong), (A, B), Y).residual
    for name in NAMES:
        assert (np.linalg.norm(residual[name]) > 0.1) == (name == wrong)
        assert (np.linalg.norm(residual[name]) < 1e-14) == (name != wrong)


@pytest.mark.parametrize("wrong", NAMES)
def test_one_unsatisfied_block_is_no_solution(wrong):
    joint = augmented(affine, loss, step_size=1e-6, **USER)
    settings = {
        "max_steps": 0,
        "atol": 0.05,
        "rtol": 0.0,
        "test": "residual",
        "on_failure": "return",
    }
    assert not fp.fixed_point(joint, almost(wrong), ((A, B), Y), **settings).converged
    assert fp.fixed_point(joint, exact(), ((A, B), Y), **settings).converged


def test_lagrangian():
    state = {
        "z": np.array([1.0, 2.0]),
        "mu": np.array([-1.0, 3.0]),
        "x": np.array([1.0, 0.0, 2.0]),
    }
    linear = Lagrangian(affine, loss, affine_vjp, loss_gradient)(state, (A, B), Y)
    np.testing.assert_allclose(linear.value, A @ state["z"] + B @ state["x"])
    np.testing.assert_allclose(
        linear.state_gradient, A.T @ state["mu"] + state["z"] - Y
    )
    np.testing.assert_allclose(
        linear.input_gradient, B.T @ state["mu"] + C * state["x"]
    )
    assert linear.objective == pytest.approx(loss(state["z"], state["x"], Y, None))


def run_counted(f, user, case, steps, solver):
    joint = augmented(f, loss, step_size=0.1, **user)
    sol = case.solve(
        joint, start(), ((A, B), Y), max_steps=steps, rtol=0.0, atol=0.0, solver=solver
    )
    assert int(sol.steps) == steps


def count_numpy(case, steps, solver):
    counts = [0, 0]

    def vjp(z, x, params):
        counts[0] += 1
        value, pullback = affine_vjp(z, x, params)

        def counting(mu):
            counts[1] += 1
            return pullback(mu)

        return value, counting

    run_counted(affine, USER | {"vjp": vjp}, case, steps, solver)
    return counts


def count_torch(case, steps, solver):
    counts = [0, 0]

    class Counting(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, x, A, B):
            counts[0] += 1
            ctx.save_for_backward(A, B)
            return A @ z + B @ x

        @staticmethod
        def backward(ctx, mu):
            counts[1] += 1
            A, B = ctx.saved_tensors
            return A.T @ mu, B.T @ mu, None, None

    f = lambda z, x, params: Counting.apply(z, x, *params)
    with torch.no_grad():
        run_counted(f, {}, case, steps, solver)
    return counts


def count_jax(case, steps, solver):
    counts = [0, 0]

    @jax.custom_vjp
    def f(z, x, params):
        return affine(z, x, params)

    def forward(z, x, params):
        counts[0] += 1
        return affine(z, x, params), params

    def backward(params, mu):
        counts[1] += 1
        A, B = params
        return A.T @ mu, B.T @ mu, jax.tree.map(jnp.zeros_like, params)

    f.defvjp(forward, backward)
    run_counted(f, {}, case, steps, solver)
    return counts


COUNTERS = {
    "numpy": count_numpy,
    "strict": count_numpy,
    "torch": count_torch,
    "jax": count_jax,
}


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson(memory=3)])
@pytest.mark.parametrize("steps", [0, 1, 6])
def test_an_iteration_costs_one_evaluation_and_one_product(xp_case, solver, steps):
    counts = COUNTERS[xp_case.name](xp_case, steps, solver)
    assert counts == [steps + 1, steps + 1]


def test_both_products_come_from_one_linearization(counted):
    """Where derivatives are recorded too, f is evaluated once."""
    f = counted(affine)
    state = {name: torch.as_tensor(leaf) for name, leaf in start().items()}
    params = torch.as_tensor(A), torch.as_tensor(B)
    Lagrangian(f, loss)(state, params, torch.as_tensor(Y))
    assert f.calls == 1


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_batch_of_augmented_systems(name):
    """Each sample with its own target; the sum of the losses is differentiated."""
    asarray = {"torch": torch.as_tensor, "jax": jnp.asarray}[name]
    targets = np.stack([Y, -3 * Y, 0 * Y])
    f = lambda z, x, p: z @ p[0].T + x @ p[1].T
    objective = lambda z, x, y, _: ((z - y) ** 2).sum(-1) / 2 + C * (x**2).sum(-1) / 2
    joint = augmented(f, objective, step_size=0.15)
    z0 = {key: asarray(np.zeros((3, leaf.size))) for key, leaf in start().items()}
    args = ((asarray(A), asarray(B)), asarray(targets))
    solve = partial(
        fp.fixed_point,
        joint,
        batch_ndim=1,
        rtol=1e-10,
        atol=1e-12,
        solver=fp.Anderson(memory=7),
    )
    sol = (jax.jit(solve) if name == "jax" else solve)(z0, args)
    x = exact()["x"]
    np.testing.assert_allclose(
        np.asarray(sol.value["x"]), np.stack([x, -3 * x, 0 * x]), rtol=1e-7, atol=1e-12
    )
    assert int(sol.steps[2]) == 0
