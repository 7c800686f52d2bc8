"""Nothing that a caller did not ask for."""

import copy
import dataclasses
import pickle

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp

SOLVERS = [fp.Picard(damping=0.9), fp.Anderson(memory=3)]
SETTINGS = [
    (fp.Picard, {"damping": 0.5}),
    (fp.Anderson, {"memory": 7, "damping": 0.5, "regularization": 1e-9}),
    (fp.Implicit, {"solver": fp.Anderson(memory=3), "rtol": 1e-8, "on_failure": "nan"}),
]


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_read_only_arrays_are_enough(solver, batch_ndim):
    z0, b = frozen(np.zeros((2, 3))), frozen(np.ones((2, 3)))
    sol = fp.fixed_point(lambda z, b: 0.5 * z + b, z0, (b,), solver=solver, batch_ndim=batch_ndim)
    np.testing.assert_allclose(sol.value, 2.0, rtol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_arrays_of_the_caller_are_not_written_to(xp_case, solver):
    z0, b = (xp_case.asarray(a) for a in (np.linspace(0, 1, 4), np.linspace(1, 2, 4)))
    before = xp_case.to_numpy(z0).copy(), xp_case.to_numpy(b).copy()
    fp.fixed_point(lambda z, b: 0.5 * xp_case.xp.sin(z) + b, z0, (b,), solver=solver)
    np.testing.assert_array_equal(xp_case.to_numpy(z0), before[0])
    np.testing.assert_array_equal(xp_case.to_numpy(b), before[1])


@pytest.mark.parametrize("solver", SOLVERS)
def test_iterates_handed_to_f_stay_as_they_were(solver):
    seen, copies = [], []

    def f(z):
        seen.append(z)
        copies.append(z.copy())
        return 0.5 * np.cos(z) + 1.0

    fp.fixed_point(f, np.zeros(4), solver=solver)
    np.testing.assert_array_equal(seen, copies)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_a_map_may_reuse_its_output_buffer(solver, batch_ndim):
    buffer, z0 = np.empty((2, 3)), np.arange(6.0).reshape(2, 3)

    def f(z):
        np.multiply(z, 0.5, out=buffer)
        return np.add(buffer, np.sin(z) / 4 + 1, out=buffer)

    settings = {"solver": solver, "rtol": 1e-10, "batch_ndim": batch_ndim}
    sol = fp.fixed_point(f, z0, **settings)
    fresh = fp.fixed_point(lambda z: z * 0.5 + (np.sin(z) / 4 + 1), z0, **settings)
    np.testing.assert_array_equal(sol.value, fresh.value)
    np.testing.assert_array_equal(sol.steps, fresh.steps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_torch_map_may_reuse_its_output_buffer(solver):
    buffer = torch.empty(4, dtype=torch.float64)
    z0 = torch.arange(4.0, dtype=torch.float64)

    def f(z):
        return torch.add(torch.mul(z, 0.5), 1.0, out=buffer)

    with torch.no_grad():
        sol = fp.fixed_point(f, z0, solver=solver, rtol=1e-10)
    np.testing.assert_allclose(sol.value.numpy(), 2.0, rtol=1e-9)


def test_an_operator_may_reuse_its_output_buffers():
    buffer = np.empty(3)
    operator = fp.operators.Map(lambda z: np.add(0.5 * z, 1.0, out=buffer)).damped(0.5)
    sol = fp.fixed_point(operator, np.zeros(3), rtol=1e-10)
    np.testing.assert_allclose(sol.value, 2.0, rtol=1e-9)


@pytest.mark.parametrize("asarray", [np.asarray, array_api_strict.asarray, torch.as_tensor])
def test_writing_to_the_solution_does_not_change_the_start(asarray):
    z0 = asarray(np.full(3, 2.0))
    sol = fp.fixed_point(lambda z: 0.5 * z + 1.0, z0)
    sol.value[...] = 7.0
    assert float(z0[0]) == 2.0


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_settings_are_values(kind, settings):
    one, other = kind(**settings), kind(**settings)
    assert one == other
    assert hash(one) == hash(other)
    assert one != kind()
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == one


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_settings_are_frozen(kind, settings):
    name = next(iter(settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(**settings), name, settings[name])


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_settings_reject_unknown_keywords(kind, settings):
    with pytest.raises(TypeError, match="dampin"):
        kind(**settings, dampin=0.5)


def test_the_front_door_rejects_unknown_keywords():
    with pytest.raises(TypeError, match="tol"):
        fp.fixed_point(np.cos, 1.0, tol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_maps_may_solve(jit_case, solver):
    """z = w/2 + b with w = z/2 + w/4, that is w = 2z/3."""

    def outer(z, b):
        inner = fp.fixed_point(lambda w, z: z / 2 + w / 4, 0 * z, (z,), rtol=1e-12, solver=solver)
        return inner.value / 2 + b

    sol = jit_case.solve(outer, np.zeros(3), (np.array([1.0, -2.0, 3.0]),), solver=solver)
    assert bool(sol.converged)
    np.testing.assert_allclose(jit_case.to_numpy(sol.value), np.array([1.5, -3.0, 4.5]), rtol=1e-5)


def test_layers_may_be_nested():
    """The derivative of b ↦ z with z = w(z, b)/2, w = (b + z + w)/3: z = b/3."""

    def outer(z, b):
        inner = fp.fixed_point(
            lambda w, z, b: (b + z + w) / 3, torch.zeros_like(z), (z, b), rtol=1e-12
        )
        return inner.value / 2

    b = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    sol = fp.fixed_point(outer, torch.zeros_like(b), (b,), rtol=1e-12)
    np.testing.assert_allclose(sol.value.detach().numpy(), [1 / 3, 2 / 3], rtol=1e-9)
    (gradient,) = torch.autograd.grad(sol.value.sum(), b)
    np.testing.assert_allclose(gradient.numpy(), 1 / 3, rtol=1e-8)


class Layer(torch.nn.Module):
    """An equilibrium layer."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.cell = torch.nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.cell.weight *= 0.3

    def forward(self, x):
        f = lambda z, x, weight, bias: torch.tanh(z @ weight.T + bias + x)
        args = (x, self.cell.weight, self.cell.bias)
        return fp.fixed_point(f, torch.zeros_like(x), args, batch_ndim=1, rtol=1e-10).value


X = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)


def gradients(layer):
    return torch.autograd.grad(layer(X).square().sum(), list(layer.parameters()))


def test_layers_are_deep_copied_after_use():
    layer = Layer(0)
    before = gradients(layer)
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.cell.weight.zero_()
    for one, other in zip(before, gradients(layer), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(copied(X), torch.tanh(X + copied.cell.bias), rtol=1e-8, atol=0)


def test_layers_are_right_after_load_state_dict():
    one, other = Layer(0), Layer(1)
    other(X)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(X), other(X), rtol=0, atol=0)
    for a, b in zip(gradients(one), gradients(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_module_given_as_f_is_right_after_load_state_dict():
    def solution(cell):
        return fp.fixed_point(cell, torch.zeros(2, 3, dtype=torch.float64), batch_ndim=1).value

    one, other = (Layer(seed).cell for seed in (0, 1))
    solution(other)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(solution(one), solution(other), rtol=0, atol=0)


def test_solutions_are_deep_copied_and_pickled():
    sol = fp.fixed_point(lambda z: 0.5 * z + 1.0, np.zeros(2))
    for other in (copy.deepcopy(sol), pickle.loads(pickle.dumps(sol))):
        np.testing.assert_array_equal(other.value, sol.value)
        assert bool(other.converged)


def test_a_result_does_not_depend_on_the_calls_before(xp_case):
    def call():
        sol = xp_case.solve(xp_case.xp.cos, np.linspace(0, 1, 5))
        return xp_case.to_numpy(sol.value).copy()

    first = call()
    xp_case.solve(lambda z: xp_case.xp.sin(z) + 3.0, np.linspace(0, 9, 5))
    np.testing.assert_array_equal(first, call())


def test_jit_compiles_once_for_one_shape():
    traces = []

    def f(z, b):
        traces.append(None)
        return 0.5 * z + b

    call = jax.jit(lambda z, b: fp.fixed_point(f, z, (b,)).value)
    call(jnp.zeros(2), jnp.ones(2))
    number = len(traces)
    call(jnp.ones(2), 2 * jnp.ones(2))
    assert len(traces) == number
