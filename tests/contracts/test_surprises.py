"""Nothing that a caller did not ask for."""

import copy
import dataclasses
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
import fixedpoint_jax
import fixedpoint_models.config
import fixedpoint_models.devices
import fixedpoint_torch

FIRST_ORDER = [fp.Picard(damping=0.9), fp.Anderson(memory=3)]
SETTINGS = [
    (fp.Picard, {"damping": 0.5}),
    (fp.Anderson, {"memory": 7, "damping": 0.5, "regularization": 1e-9}),
    (fp.Anderson, {"type": 1, "delay": 3, "safeguard": 10.0, "weights": (1.0, 2.0)}),
    (fp.Anderson, {"damping": float}),  # a callable
    (fp.Broyden, {"memory": 7, "update": "bad", "line_search": True}),
    (fp.SQUAREM, {"growth": 2.0, "tolerance": 3.0}),
    (fp.Newton, {"line_search": False, "step_bound": 0.5}),
    (fp.NewtonKrylov, {"linear": fp.BiCGStab(), "forcing": 0.1, "forcing_max": 0.5}),
    (fp.LevenbergMarquardt, {"radius": 1.0}),
    (fp.PseudoTransient, {"time_step": 0.1, "linear": fp.BiCGStab(), "rtol": 0.1}),
    (fp.GMRES, {"restart": 5, "max_steps": 50}),
    (fp.BiCGStab, {"max_steps": 50}),
    (fp.ConjugateGradient, {"max_steps": 50}),
    (fp.Budget, {"evaluations": 5, "seconds": 1.0}),
    (fp.Control, {"max_steps": 3, "budget": fp.Budget(seconds=1.0), "record": True}),
    (fp.Control, {"batched_args": [True, False]}),
    (fp.Control, {"batched_args": np.array([True, False])}),
    (fp.Control, {"callback": print}),
    (
        fp.ImplicitAdjoint,
        {"solver": fp.Anderson(memory=3), "rtol": 1e-8, "on_failure": "nan"},
    ),
]


def frozen(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_read_only_arrays_are_enough(solver, batch_ndim):
    z0, b = frozen(np.zeros((2, 3))), frozen(np.ones((2, 3)))
    sol = fp.fixed_point(
        lambda z, b: 0.5 * z + b, z0, (b,), solver=solver, batch_ndim=batch_ndim
    )
    np.testing.assert_allclose(sol.value, 2.0, rtol=1e-5)


def test_arrays_of_the_caller_are_not_written_to(xp_case, solver):
    z0, b = (xp_case.asarray(a) for a in (np.linspace(0, 1, 4), np.linspace(1, 2, 4)))
    before = xp_case.to_numpy(z0).copy(), xp_case.to_numpy(b).copy()
    f = lambda z, b: 0.5 * xp_case.xp.sin(z) + b
    fp.fixed_point(f, z0, (b,), solver=solver)
    fp.root(lambda z, b: z - f(z, b), z0, (b,), solver=solver)
    np.testing.assert_array_equal(xp_case.to_numpy(z0), before[0])
    np.testing.assert_array_equal(xp_case.to_numpy(b), before[1])


def test_iterates_handed_to_f_stay_as_they_were(solver):
    seen, copies = [], []

    def f(z):
        seen.append(z)
        copies.append(z.copy())
        return 0.5 * np.cos(z) + 1.0

    fp.fixed_point(f, np.zeros(4), solver=solver)
    np.testing.assert_array_equal(seen, copies)


def test_iterates_handed_to_a_callback_stay_as_they_were(solver):
    seen, copies = [], []

    def note(step, z, norm):
        seen.append(z)
        copies.append(z.copy())

    fp.fixed_point(
        lambda z: 0.5 * np.cos(z) + 1.0, np.zeros(4), solver=solver, callback=note
    )
    np.testing.assert_array_equal(seen, copies)


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


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_a_product_may_reuse_its_output_buffer(contraction, layer, solver, by):
    f, A = layer(np, by is fp.root), contraction(5, 0.9)
    b, z0 = np.random.default_rng(0).standard_normal((2, 5))
    image, product = np.empty(5), np.empty(5)

    def into(buffer, function):
        def call(*args):
            buffer[...] = function(*args)
            return buffer

        return call

    settings = {"solver": solver, "rtol": 1e-9, "max_steps": 200}
    reused = by(into(image, f), z0, (A, b), jvp=into(product, f.jvp), **settings)
    fresh = by(f, z0, (A, b), jvp=f.jvp, **settings)
    np.testing.assert_array_equal(reused.value, fresh.value)


def test_a_torch_map_may_reuse_its_output_buffer(solver):
    buffer = torch.empty(4, dtype=torch.float64)
    z0 = torch.arange(4.0, dtype=torch.float64)

    def f(z):
        return torch.add(torch.mul(z, 0.5), 1.0, out=buffer)

    jvp = lambda z, v: 0.5 * v  # Torch does not differentiate what writes to a buffer
    with torch.no_grad():
        sol = fp.fixed_point(f, z0, solver=solver, rtol=1e-10, jvp=jvp)
    np.testing.assert_allclose(sol.value.numpy(), 2.0, rtol=1e-9)


def test_an_operator_may_reuse_its_output_buffers():
    buffer = np.empty(3)
    operator = fp.operators.Map(lambda z: np.add(0.5 * z, 1.0, out=buffer)).damped(0.5)
    sol = fp.fixed_point(operator, np.zeros(3), rtol=1e-10)
    np.testing.assert_allclose(sol.value, 2.0, rtol=1e-9)


@pytest.mark.parametrize(
    "asarray", [np.asarray, array_api_strict.asarray, torch.as_tensor]
)
@pytest.mark.parametrize("start", [2.0, 0.0])
def test_writing_to_the_solution_does_not_change_the_start(asarray, start, solver):
    z0 = asarray(np.full(3, start))
    sol = fp.fixed_point(
        lambda z: 0.5 * z + 1.0,
        z0,
        solver=solver,
        max_steps=0 if start == 0.0 else 100,
        on_failure="return",
    )
    sol.value[...] = 7.0
    assert float(z0[0]) == start


def test_writing_to_the_solution_does_not_change_what_f_returned(solver):
    image = np.full(3, 2.0)
    sol = fp.fixed_point(lambda z: image, np.zeros(3), solver=solver)
    sol.value[...] = 7.0
    np.testing.assert_array_equal(image, 2.0)


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_settings_are_values(kind, settings):
    one, other = kind(**settings), kind(**settings)
    assert one == other
    assert hash(one) == hash(other)
    assert one != kind()
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == one


def test_every_solver_is_a_value(solver):
    assert pickle.loads(pickle.dumps(solver)) == copy.deepcopy(solver) == solver
    assert hash(pickle.loads(pickle.dumps(solver))) == hash(solver)
    assert eval(repr(solver), vars(fp)) == solver
    assert {solver: 1}[copy.copy(solver)] == 1


def test_a_fallback_is_frozen_and_flat():
    one, other = fp.Picard(), fp.Newton()
    fallback = fp.Fallback([one, fp.Fallback([other])])
    assert fallback == fp.Fallback((one, other))
    assert fallback != fp.Fallback([other, one])
    with pytest.raises(dataclasses.FrozenInstanceError):
        fallback.solvers = ()
    with pytest.raises(TypeError, match="dampin"):
        fp.Fallback([one], dampin=0.5)


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_settings_are_frozen(kind, settings):
    name = next(iter(settings))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(**settings), name, settings[name])


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_settings_reject_unknown_keywords(kind, settings):
    with pytest.raises(TypeError, match="dampin"):
        kind(**settings, dampin=0.5)


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_the_front_door_rejects_unknown_keywords(by):
    with pytest.raises(TypeError, match="tol"):
        by(np.cos, 1.0, tol=1e-3)


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_maps_may_solve(jit_case, solver):
    """z = w/2 + b with w = z/2 + w/4, that is w = 2z/3."""

    def outer(z, b):
        inner = fp.fixed_point(
            lambda w, z: z / 2 + w / 4, 0 * z, (z,), rtol=1e-12, solver=solver
        )
        return inner.value / 2 + b

    sol = jit_case.solve(
        outer, np.zeros(3), (np.array([1.0, -2.0, 3.0]),), solver=solver
    )
    assert bool(sol.converged)
    np.testing.assert_allclose(
        jit_case.to_numpy(sol.value), np.array([1.5, -3.0, 4.5]), rtol=1e-5
    )


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
        return fp.fixed_point(
            f, torch.zeros_like(x), args, batch_ndim=1, rtol=1e-10
        ).value


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
    torch.testing.assert_close(
        copied(X), torch.tanh(X + copied.cell.bias), rtol=1e-8, atol=0
    )


def test_layers_are_right_after_load_state_dict():
    one, other = Layer(0), Layer(1)
    other(X)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(X), other(X), rtol=0, atol=0)
    for a, b in zip(gradients(one), gradients(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_module_given_as_f_is_right_after_load_state_dict():
    def solution(cell):
        return fp.fixed_point(
            cell, torch.zeros(2, 3, dtype=torch.float64), batch_ndim=1
        ).value

    one, other = (Layer(seed).cell for seed in (0, 1))
    solution(other)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(solution(one), solution(other), rtol=0, atol=0)


def test_solutions_are_deep_copied_and_pickled(solver):
    sol = fp.fixed_point(lambda z: 0.5 * z + 1.0, np.zeros(2), solver=solver)
    for other in (copy.deepcopy(sol), pickle.loads(pickle.dumps(sol))):
        np.testing.assert_array_equal(other.value, sol.value)
        assert bool(other.converged)
        assert other.message == sol.message


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_solution_can_be_linearized(eager_case, copied):
    sol = eager_case.solve(eager_case.xp.cos, np.ones(2))
    v = eager_case.asarray(np.array([1.0, -2.0]))
    images = copied(sol).linearize()(v), sol.linearize()(v)
    np.testing.assert_array_equal(*map(eager_case.to_numpy, images))


def test_a_copy_of_a_solution_shares_what_the_kind_of_copy_shares():
    sol = fp.fixed_point(np.cos, np.ones(2))
    assert copy.copy(sol).value is sol.value
    assert copy.deepcopy(sol).value is not sol.value


def test_an_unpickled_solution_says_why_it_cannot_be_linearized():
    sol = pickle.loads(pickle.dumps(fp.fixed_point(np.cos, np.ones(2))))
    for other in (
        sol,
        copy.copy(sol),
        copy.deepcopy(sol),
        pickle.loads(pickle.dumps(sol)),
    ):
        with pytest.raises(ValueError, match="pickled solution does not hold its map"):
            other.linearize()


def fail(factor):
    fp.fixed_point(lambda z: factor * z + 1.0, np.zeros(2), solver=fp.Picard())


ERRORS = [
    *(getattr(fp, name) for name in ("ConvergenceWarning", "DomainError")),
    fixedpoint_torch.HiddenTensorError,
    fixedpoint_jax.maps.CapturedTracerError,
    fixedpoint_models.CheckpointError,
    fixedpoint_models.DataError,
    fixedpoint_models.TrainingError,
    fixedpoint_models.config.ConfigError,
    fixedpoint_models.devices.DeviceError,
]


def test_every_error_is_among_those_that_are_copied():
    """Those that are defined here, subclasses of subclasses included."""
    kinds, known = [Exception], {fp.ConvergenceError, *ERRORS}
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    ours = {kind for kind in kinds if kind.__module__.startswith("fixedpoint")}
    assert ours == known


COPIES = [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("kind", ERRORS)
def test_errors_are_copied_and_pickled(kind, copied):
    error = kind("what went wrong")
    error.add_note("and where")
    other = copied(error)
    assert type(other) is kind
    assert (str(other), other.__notes__) == ("what went wrong", ["and where"])


@pytest.mark.parametrize("copied", COPIES)
def test_a_failed_solve_is_copied_and_pickled(copied):
    with pytest.raises(fp.ConvergenceError) as caught:
        fail(2.0)
    caught.value.add_note("and where")
    other = copied(caught.value)
    assert str(other) == str(caught.value)
    assert other.__notes__ == ["and where"]
    assert other.solution.message == caught.value.solution.message
    np.testing.assert_array_equal(other.solution.value, caught.value.solution.value)


@pytest.mark.parametrize("grad", [False, True])
def test_a_failed_solve_of_torch_goes_to_another_process(grad):
    """Torch sends no tensors there of which derivatives are recorded."""
    b = torch.ones(2, requires_grad=grad)
    with pytest.raises(fp.ConvergenceError) as caught:
        fp.fixed_point(
            lambda z, b: {"a": 2 * z["a"] + b},
            {"a": torch.zeros(2)},
            (b,),
            solver="picard",
        )
    sent = ForkingPickler.dumps(caught.value)
    other, value = pickle.loads(sent).solution, caught.value.solution.value["a"]
    torch.testing.assert_close(other.value["a"], value.detach())


def test_a_failed_solve_in_another_process_is_raised_here():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        error = pool.submit(fail, 2.0).exception(timeout=120)
    assert isinstance(error, fp.ConvergenceError)
    assert int(error.solution.status) == fp.Status.DIVERGED


def test_a_result_does_not_depend_on_the_calls_before(xp_case):
    def call():
        sol = xp_case.solve(xp_case.xp.cos, np.linspace(0, 1, 5))
        return xp_case.to_numpy(sol.value).copy()

    first = call()
    xp_case.solve(lambda z: xp_case.xp.sin(z) + 3.0, np.linspace(0, 9, 5))
    np.testing.assert_array_equal(first, call())


@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_jit_compiles_once_for_one_shape(counted, batch_ndim):
    f = counted(lambda z, b: 0.5 * z + b)
    call = jax.jit(lambda z, b: fp.fixed_point(f, z, (b,), batch_ndim=batch_ndim).value)
    call(jnp.zeros((2, 2)), jnp.ones((2, 2)))
    number = f.calls
    np.testing.assert_allclose(
        call(jnp.ones((2, 2)), 2 * jnp.ones((2, 2))), 4.0, rtol=1e-5
    )
    assert f.calls == number


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson(), fp.Broyden()])
def test_a_callback_that_writes_changes_nothing(eager_case, solver):
    f, z0 = eager_case.xp.cos, np.array([0.1, 1.0, 2.0])

    def meddle(step, value, residual_norm):
        if not isinstance(value, jax.Array):
            value[...] = 17.0

    plain = eager_case.solve(f, z0, solver=solver)
    sol = eager_case.solve(f, z0, solver=solver, callback=meddle)
    assert int(sol.steps) == int(plain.steps)
    np.testing.assert_array_equal(*map(eager_case.to_numpy, (sol.value, plain.value)))
