"""Bad input gets a clear error or a clear status, and a message that names what is
wrong.
"""

import re
import traceback
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp
import fixedpoint_jax
import fixedpoint_torch

HALF = lambda z: 0.5 * z + 1.0
Z0 = {"a": np.zeros(2), "b": [np.zeros(3), np.zeros((2, 2))]}


def solve(f=HALF, z0=None, args=(), **settings):
    return fp.fixed_point(f, np.zeros(3) if z0 is None else z0, args, **settings)


def changed(**entries):
    """A map on Z0's structure whose outputs are Z0 but for one."""
    return lambda z: {"a": z["a"], "b": z["b"]} | entries


def test_f_changes_a_shape(jit_case):
    z0 = {"a": np.zeros(2), "b": np.zeros((2, 2))}
    f = lambda z: {"a": z["a"], "b": jit_case.xp.reshape(z["b"], (4,))}
    with pytest.raises(
        ValueError, match=r"shape of z0\['b'\]: expected \(2, 2\), got \(4,\)"
    ):
        jit_case.solve(f, z0)


def test_f_broadcasts(jit_case):
    with pytest.raises(ValueError, match=r"shape of z0: expected \(1,\), got \(3,\)"):
        jit_case.solve(lambda z, b: z + b, np.zeros(1), (np.zeros(3),))


def test_f_changes_a_dtype(xp_case):
    narrow = (
        (lambda z: z.float())
        if xp_case.name == "torch"
        else (lambda z: xp_case.xp.astype(z, xp_case.xp.float32))
    )
    with pytest.raises(TypeError, match=r"dtype of z0\[1\].*float64.*float32"):
        xp_case.solve(lambda z: (z[0], narrow(z[1])), (np.zeros(2), np.zeros(2)))


def test_f_makes_a_real_state_complex(xp_case):
    with pytest.raises(TypeError, match=r"dtype of z0.*float64.*complex128"):
        xp_case.solve(lambda z, c: z * c, np.zeros(2), (np.full(2, 1j),))


@pytest.mark.parametrize(
    "f",
    [
        lambda z: [z["a"], z["b"]],
        lambda z: {"a": z["a"]},
        lambda z: {"a": z["a"], "c": z["b"]},
        lambda z: {"a": z["a"], "b": tuple(z["b"])},
        lambda z: {"a": z["a"], "b": z["b"][:1]},
        lambda z: z["a"],
    ],
)
def test_f_changes_the_structure(jit_case, f):
    with pytest.raises(
        ValueError, match=r"container like z0.*z0\['a'\], z0\['b'\]\[0\]"
    ):
        jit_case.solve(f, Z0)


def test_f_renames_what_holds_nothing():
    start = {"a": np.zeros(2), "b": None}
    with pytest.raises(ValueError, match="must return a container like z0"):
        solve(lambda z: {"a": z["a"], "c": None}, start)


def test_f_returns_something_else():
    with pytest.raises(TypeError, match=r"array for z0.*got builtins.str"):
        solve(lambda _: "text")


@pytest.mark.parametrize(("by", "name"), [(fp.fixed_point, "f"), (fp.root, "F")])
def test_f_is_not_callable(by, name):
    with pytest.raises(TypeError, match=f"^{name} must be callable, got float"):
        by(1.0, np.zeros(3))


def test_messages_about_roots_speak_of_x0(jit_case):
    with pytest.raises(TypeError, match=r"x0\['n'\] must have a floating-point.*bool"):
        jit_case.solve(
            lambda x: x, {"a": np.zeros(1), "n": np.ones(3, dtype=bool)}, by=fp.root
        )
    with pytest.raises(ValueError, match=r"shape of x0: expected \(2,\), got \(1,\)"):
        jit_case.solve(lambda x: x[:1], np.zeros(2), by=fp.root)


def test_an_operator_has_no_roots():
    with pytest.raises(TypeError, match="an operator has fixed points, not roots"):
        fp.root(fp.operators.Map(HALF).damped(0.5), np.zeros(2))


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
@pytest.mark.parametrize("after", [1, 4])
def test_f_changes_a_shape_later(counted, solver, by, after):
    def f(z):
        return np.cos(z) if f.counter.calls <= after else np.zeros(4)

    f.counter = counted(f)
    with pytest.raises(ValueError, match=r"0: expected \(3,\), got \(4,\)"):
        by(f.counter, np.linspace(0.0, 1.0, 3), solver=solver, rtol=0.0, atol=0.0)
    assert f.counter.calls == after + 1


DERIVATIVE = [
    fp.Newton(),
    fp.NewtonKrylov(),
    fp.LevenbergMarquardt(),
    fp.PseudoTransient(),
]


@pytest.mark.parametrize("solver", DERIVATIVE)
@pytest.mark.parametrize(
    ("jvp", "error", "message"),
    [
        (
            lambda z, v: v[:1],
            ValueError,
            r"jvp must keep the shape of z0.*\(3,\), got \(1,\)",
        ),
        (lambda z, v: v.astype(np.float32), TypeError, "jvp must keep the dtype of z0"),
        (lambda z, v: [v], ValueError, "jvp must return a container like z0"),
    ],
)
def test_a_product_of_another_kind(solver, jvp, error, message):
    with pytest.raises(error, match=message):
        solve(np.cos, solver=solver, jvp=jvp)


def test_a_preconditioner_of_another_kind():
    with pytest.raises(ValueError, match=r"preconditioner must keep the shape of z0"):
        solve(
            np.cos, solver=fp.NewtonKrylov(), preconditioner=lambda z: lambda v: v[:1]
        )


def test_weights_are_one_per_leaf():
    with pytest.raises(
        ValueError, match="weights must have one entry per leaf, 1, got 2"
    ):
        solve(solver=fp.Anderson(weights=(1.0, 2.0)))


class Custom(Exception):  # noqa: N818
    """An exception of the user's."""


@pytest.mark.parametrize("error", [Custom("mine"), ValueError("mine")])
@pytest.mark.parametrize("after", [0, 3])
def test_exceptions_of_f_pass_untouched(xp_case, counted, error, after):
    def f(z):
        if f.counter.calls > after:
            raise error
        return xp_case.xp.cos(z)

    f.counter = counted(f)
    with pytest.raises(type(error)) as caught:
        xp_case.solve(f.counter, np.zeros(3))
    assert caught.value is error
    assert f.counter.calls == after + 1


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_exceptions_of_f_pass_every_solver_untouched(counted, solver, by, after):
    """Where f is needed for a difference quotient, too."""
    error = Custom("mine")

    def f(z):
        if f.counter.calls > after:
            raise error
        return np.cos(z)

    f.counter = counted(f)
    with pytest.raises(Custom) as caught:
        by(f.counter, np.linspace(0.0, 1.0, 3), solver=solver, rtol=0.0, atol=0.0)
    assert caught.value is error
    assert f.counter.calls == after + 1


@pytest.mark.parametrize(
    "jit_case", ["strict", "torch", "jax", "jax-jit"], indirect=True
)
def test_an_integer_start(jit_case):
    """NumPy's are taken as SciPy takes them."""
    with pytest.raises(TypeError, match=r"z0\['n'\] must have a floating-point.*int"):
        jit_case.solve(lambda z: z, {"a": np.zeros(1), "n": np.arange(3)})


def test_a_boolean_start(jit_case):
    with pytest.raises(TypeError, match=r"z0 must have a floating-point.*bool"):
        jit_case.solve(lambda z: z, np.zeros(2, dtype=bool))


def test_a_masked_start():
    with pytest.raises(TypeError, match=r"z0 must be .*MaskedArray"):
        solve(z0=np.ma.array([1.0, 2.0], mask=[False, True]))


@pytest.mark.parametrize("z0", [True, "text", object()])
def test_a_start_that_is_no_array(z0):
    with pytest.raises(TypeError, match="z0 must be a floating-point array"):
        solve(z0=z0)


@pytest.mark.parametrize("z0", ["text", object(), (jnp.ones(2), "relu")])
def test_what_is_not_solved_for_belongs_in_args(z0):
    with pytest.raises(TypeError) as caught:
        solve(z0=z0)
    assert any("All else belongs in args" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("z0", [(), {}, None, [None, ()]])
def test_a_start_without_arrays(z0):
    with pytest.raises(ValueError, match="z0 holds no array"):
        fp.fixed_point(HALF, z0)


def test_an_empty_leaf(jit_case):
    with pytest.raises(ValueError, match=r"z0\[1\] is empty: its shape is \(0, 2\)"):
        jit_case.solve(lambda z: z, (np.zeros(2), np.zeros((0, 2))))


def test_an_empty_sample(jit_case):
    with pytest.raises(ValueError, match=r"z0 is empty: its shape is \(4, 0\)"):
        jit_case.solve(lambda z: z, np.zeros((4, 0)), batch_ndim=1)


def test_batch_axes_differ(jit_case):
    with pytest.raises(
        ValueError, match=r"z0\['b'\] must begin with the 1 batch axes \(2,\)"
    ):
        jit_case.solve(
            lambda z: z, {"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}, batch_ndim=1
        )


def test_batch_axes_are_missing(jit_case):
    with pytest.raises(ValueError, match="z0 has 1 axes, fewer than batch_ndim=2"):
        jit_case.solve(lambda z: z, np.zeros(3), batch_ndim=2)


@pytest.mark.parametrize("batch_ndim", [-1, 1.0, "one", True])
def test_batch_ndim_is_no_number_of_axes(batch_ndim):
    with pytest.raises(ValueError, match="batch_ndim must be an integer, 0 or more"):
        solve(batch_ndim=batch_ndim)


@pytest.mark.parametrize(
    "z0",
    [
        [np.zeros(2), torch.zeros(2)],
        [torch.zeros(2), jnp.zeros(2)],
        [jnp.zeros(2), 1.0],
    ],
)
def test_mixed_libraries(z0):
    with pytest.raises(
        TypeError, match=r"z0\[1\] is a .*, but z0\[0\] is a .*one array library"
    ):
        solve(lambda z: z, z0)


def test_args_is_no_tuple():
    with pytest.raises(
        TypeError, match=r"args must be a tuple, got ndarray: write args=\(x,\)"
    ):
        solve(lambda z, _: z, args=np.ones(3))


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), -1])
def test_tolerances_are_not_negative(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        solve(**{name: value})


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_entries_of_tolerances_are_not_negative(eager_case, name, value, batch_ndim):
    tolerance = eager_case.asarray(np.array([1e-3, value])[1 - batch_ndim :].squeeze())
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        eager_case.solve(
            HALF, np.ones((2, 1)), batch_ndim=batch_ndim, **{name: tolerance}
        )


def between(lower=0.0, upper=3.0, **settings):
    return fp.bracketed_root(lambda x: x - 1.0, lower, upper, **settings)


@pytest.mark.parametrize("name", ["rtol", "xtol", "atol"])
def test_tolerances_of_a_bracket(name):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        between(np.zeros(2), **{name: np.array([1e-3, -1e-3])})
    with pytest.raises(TypeError, match=f"{name} must be a number or an array"):
        between(**{name: [1e-3]})


@pytest.mark.parametrize("call", [solve, fp.Control, between])
@pytest.mark.parametrize(
    ("callback", "takes"),
    [
        (lambda z: z, "(z)"),
        (lambda step, z, norm, more: more, "(step, z, norm, more)"),
        (lambda step, value, *, norm: norm, "(step, value, *, norm)"),
    ],
)
def test_a_callback_that_cannot_be_called(call, callback, takes):
    message = "callback is called as callback(step, value, residual_norm), but takes "
    with pytest.raises(TypeError, match=re.escape(message + takes)):
        call(callback=callback)


@pytest.mark.parametrize("call", [solve, fp.Control, between])
def test_a_class_is_no_callback(call):
    with pytest.raises(TypeError, match=r"the class Progress: give Progress\("):
        call(callback=fp.Progress)


@pytest.mark.parametrize("callback", [lambda *told: told and None, min, fp.Progress()])
def test_a_callback_that_can(callback):
    fp.Control(callback=callback)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": "1e-3"}, "rtol must be a number or an array, got '1e-3'"),
        ({"atol": 1j}, "atol must be a number or an array, got 1j"),
        ({"callback": 3}, "callback must be callable, got 3"),
        (
            {"budget": 6},
            "budget must be Budget(evaluations=..., seconds=...), got int",
        ),
        ({"preconditioner": 3}, "preconditioner must be callable, got 3"),
        ({"jvp": "exact"}, "jvp must be callable, got 'exact'"),
        ({"project": 0.5}, "project must be callable, got 0.5"),
        ({"state": 3}, "state must be sol.state of an earlier call, got int"),
        ({"batched_args": True}, "batched_args must be a sequence of bools"),
        ({"communicator": 3}, "communicator must be a Communicator, got 3"),
    ],
)
def test_an_argument_of_the_wrong_kind(settings, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        solve(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.Anderson(damping="a"), "damping must be a number, got 'a'"),
        (lambda: fp.Budget(seconds="a"), "seconds must be a number, got 'a'"),
        (lambda: fp.Newton(step_bound="a"), "step_bound must be a number, got 'a'"),
    ],
)
def test_a_setting_of_the_wrong_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_a_tolerance_of_another_batch(xp_case, name, batch_ndim):
    settings = {name: xp_case.asarray(np.full(2, 1e-3)), "batch_ndim": batch_ndim}
    with pytest.raises(ValueError, match=rf"{name} must be .*the batch.*got .*\(2,\)"):
        xp_case.solve(HALF, np.ones((3, 1)), **settings)


def test_an_array_of_the_other_byte_order():
    sol = fp.fixed_point(np.cos, np.ones(2, np.dtype(float).newbyteorder()))
    np.testing.assert_allclose(sol.value, 0.7390851332, rtol=1e-5)


@pytest.mark.parametrize("value", [-1, 1.5, "many", True])
def test_max_steps_is_a_number(value):
    with pytest.raises(ValueError, match="max_steps must be an integer, 0 or more"):
        solve(max_steps=value)


@pytest.mark.parametrize("solver", [fp.Picard, 3, fp.ImplicitAdjoint()])
def test_solver_is_a_solver(solver):
    with pytest.raises(TypeError, match="solver must be a solver object"):
        solve(solver=solver)


@pytest.mark.parametrize("adjoint", [fp.ImplicitAdjoint, 3, fp.Anderson()])
def test_adjoint_is_an_adjoint(adjoint):
    with pytest.raises(TypeError, match="adjoint must be an adjoint"):
        solve(adjoint=adjoint)


@pytest.mark.parametrize("norm", ["l2", 2])
def test_norm_is_known(norm):
    with pytest.raises(
        ValueError, match="norm must be one of entries, leaves, euclidean, max"
    ):
        solve(norm=norm)


@pytest.mark.parametrize("policy", ["ignore", None, "RAISE"])
def test_on_failure_is_known(policy):
    with pytest.raises(
        ValueError, match="on_failure must be one of raise, warn, return, nan"
    ):
        solve(on_failure=policy)


def test_on_failure_of_the_adjoint_is_known():
    with pytest.raises(ValueError, match="on_failure must be one of"):
        fp.ImplicitAdjoint(on_failure="ignore")


@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_max_steps_of_the_adjoint_is_a_number(value):
    with pytest.raises(ValueError, match="max_steps must be an integer, 0 or more"):
        fp.ImplicitAdjoint(max_steps=value)


@pytest.mark.parametrize("kind", [fp.Picard, fp.Anderson])
@pytest.mark.parametrize("damping", [0.0, -1.0, 2.5, float("nan")])
def test_damping_is_in_range(kind, damping):
    with pytest.raises(ValueError, match=r"damping must be in \(0, 2\]"):
        kind(damping=damping)


@pytest.mark.parametrize("kind", [fp.Anderson, fp.Broyden])
@pytest.mark.parametrize("memory", [0, -1, 2.0, True])
def test_memory_is_a_number(kind, memory):
    with pytest.raises(ValueError, match="memory must be an integer, 1 or more"):
        kind(memory=memory)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (fp.Anderson, "type", (0, 3, "2")),
        (fp.Anderson, "delay", (-1, 1.0)),
        (fp.Anderson, "safeguard", (0.0, -1.0, NAN)),
        (fp.Anderson, "weights", ((1.0, 0.0), (-1.0,))),
        (fp.Broyden, "update", ("ugly", None)),
        (fp.SQUAREM, "growth", (1.0, 0.0, NAN)),
        (fp.SQUAREM, "tolerance", (1.0, -3.0, NAN)),
        (fp.Newton, "step_bound", (0.0, -1.0, NAN)),
        (fp.NewtonKrylov, "step_bound", (0.0, NAN)),
        (fp.NewtonKrylov, "forcing", (0.0, 1.5, NAN)),
        (fp.NewtonKrylov, "forcing_max", (0.0, 1.5, NAN)),
        (fp.NewtonKrylov, "gamma", (0.0, 1.5, NAN)),
        (fp.LevenbergMarquardt, "radius", (0.0, -1.0, NAN)),
        (fp.PseudoTransient, "time_step", (0.0, -1.0, NAN)),
        (fp.PseudoTransient, "rtol", (0.0, 1.5, NAN)),
        (fp.GMRES, "restart", (0, 2.0)),
        (fp.GMRES, "max_steps", (0, 2.0)),
        (fp.BiCGStab, "max_steps", (0, 2.0)),
        (fp.ConjugateGradient, "max_steps", (0, 2.0)),
    ],
)
def test_settings_are_in_range(kind, name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            kind(**{name: value})


@pytest.mark.parametrize(
    "unlimited",
    [
        fp.Newton(step_bound=INF),
        fp.NewtonKrylov(step_bound=INF),
        fp.LevenbergMarquardt(radius=INF),
        fp.PseudoTransient(time_step=INF),
        fp.Anderson(safeguard=INF),
    ],
)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_what_may_be_without_limit(unlimited, start):
    sol = fp.fixed_point(
        lambda z: 0.5 * np.cos(z),
        np.full(3, start),
        solver=unlimited,
        budget=fp.Budget(seconds=INF),
    )
    np.testing.assert_allclose(sol.value, 0.5 * np.cos(sol.value), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: fp.Anderson(weights=(1.0, INF)), "weights"),
        (lambda: fp.operators.L1Norm(INF), "weight"),
        (lambda: fp.operators.InputStep(INF), "step_size"),
    ],
)
def test_what_must_be_finite(make, name):
    with pytest.raises(ValueError, match=f"^{name} must be positive and finite"):
        make()


@pytest.mark.parametrize("kind", [fp.NewtonKrylov, fp.PseudoTransient])
@pytest.mark.parametrize("linear", [fp.GMRES, "gmres", fp.Newton()])
def test_a_linear_solver_is_one(kind, linear):
    with pytest.raises(TypeError, match="linear must be a linear solver"):
        kind(linear=linear)


def test_a_fallback_holds_solvers():
    with pytest.raises(ValueError, match="solvers must hold at least one solver"):
        fp.Fallback([])
    with pytest.raises(TypeError, match="each of solvers must be a solver object"):
        fp.Fallback([fp.Picard(), fp.Newton])
    with pytest.raises(TypeError, match="solvers must be a sequence, got 'newton'"):
        fp.Fallback("newton")


@pytest.mark.parametrize("regularization", [0.0, -1e-8, 2.0])
def test_regularization_is_in_range(regularization):
    with pytest.raises(ValueError, match=r"regularization must be in \(0, 1\]"):
        fp.Anderson(regularization=regularization)


def test_blocks_and_state_differ():
    joint = fp.operators.Joint(lambda s: s, {"u": fp.operators.Map(lambda u, _: u)})
    with pytest.raises(ValueError, match="state must have the blocks"):
        solve(joint, {"u": np.zeros(1), "v": np.zeros(1)})


def test_half_of_a_users_derivatives():
    with pytest.raises(
        ValueError, match="vjp and loss_gradient must be given together"
    ):
        fp.operators.augmented(HALF, HALF, step_size=0.1, vjp=HALF)


def test_no_derivatives_in_numpy():
    joint = fp.operators.augmented(
        lambda z, x, _: 0.5 * z + x, lambda z, _x, y, _p: (z - y) ** 2, step_size=0.1
    )
    start = {name: np.zeros(1) for name in ("z", "mu", "x")}
    with pytest.raises(TypeError, match="no automatic differentiation"):
        solve(joint, start, (None, np.ones(1)))


def test_a_solver_without_a_method():
    with pytest.raises(TypeError, match=r"abstract class Solver.*init.*step"):
        fp.solvers.Solver()


# What is not finite.


def test_a_start_that_is_not_a_number(xp_case):
    z0 = np.array([[0.0, 0.0], [np.nan, 0.0], [0.0, 0.0]])
    sol = xp_case.solve(HALF, z0, batch_ndim=1)
    statuses = xp_case.to_numpy(sol.status).tolist()
    assert statuses == [fp.Status.CONVERGED, fp.Status.NON_FINITE, fp.Status.CONVERGED]
    value = xp_case.to_numpy(sol.value)
    np.testing.assert_allclose(value[[0, 2]], 2.0, rtol=1e-5)
    np.testing.assert_array_equal(value[1], z0[1])
    assert int(sol.steps[1]) == 0


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_every_solver_leaves_a_start_that_is_not_a_number(eager_case, solver, by):
    z0 = np.array([[1.0, 3.0], [np.nan, 1.0], [1.0, np.inf]])
    f = HALF if by is fp.fixed_point else lambda x: 0.5 * x - 1.0
    sol = eager_case.solve(f, z0, by=by, solver=solver, batch_ndim=1, max_steps=300)
    value = eager_case.to_numpy(sol.value)
    ends = eager_case.to_numpy(sol.status).tolist()
    assert ends == [fp.Status.CONVERGED, fp.Status.NON_FINITE, fp.Status.NON_FINITE]
    np.testing.assert_allclose(value[0], 2.0, rtol=1e-5)
    np.testing.assert_array_equal(value[1:], z0[1:])
    assert eager_case.to_numpy(sol.steps)[1:].tolist() == [0, 0]


@pytest.mark.parametrize("raises", [False, True])
def test_every_solver_survives_where_f_is_undefined(solver, raises):
    """Beyond 1 it is not a number, or refuses; the root, at 0.9, is reached or a reason
    given.
    """

    def F(x):
        if raises and np.any(x > 1.0):
            raise fp.DomainError("x must not exceed 1")
        return 1.0 - np.sqrt(1.0 - x) / np.sqrt(0.1)

    sol = fp.root(
        F, np.array([0.0, 0.5]), solver=solver, on_failure="return", max_steps=200
    )
    np.testing.assert_allclose(
        float(sol.residual_norm), np.linalg.norm(F(sol.value)), rtol=1e-12
    )
    if bool(sol.converged):
        np.testing.assert_allclose(sol.value, 0.9, rtol=1e-4)


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_f_undefined_at_the_start_raises(solver, by):
    def f(z):
        raise fp.DomainError("nowhere")

    with pytest.raises(fp.DomainError, match="nowhere"):
        by(f, np.zeros(2), solver=solver, on_failure="return")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_start_that_is_not_finite_raises(xp_case, bad):
    with pytest.raises(fp.ConvergenceError, match="not finite") as caught:
        xp_case.solve(HALF, np.array([1.0, bad]), on_failure="raise")
    assert int(caught.value.solution.status) == fp.Status.NON_FINITE
    assert int(caught.value.solution.steps) == 0


def test_f_that_stops_being_finite_keeps_the_last_iterate(jit_case):
    xp = jit_case.xp
    f = lambda z: 0.5 * z - 1.0 + 0 * xp.sqrt(z)
    sol = jit_case.solve(f, np.full(1, 5.0), solver=fp.Picard())
    assert int(sol.status) == fp.Status.NON_FINITE
    np.testing.assert_array_equal(jit_case.to_numpy(sol.value), [1.5])
    assert int(sol.steps) == 2


def test_max_steps_of_zero(jit_case):
    z0 = np.array([3.0, 4.0])
    sol = jit_case.solve(lambda z: 0 * z, z0, max_steps=0)
    assert (int(sol.status), int(sol.steps), int(sol.work.f)) == (
        fp.Status.MAX_STEPS,
        0,
        1,
    )
    np.testing.assert_array_equal(jit_case.to_numpy(sol.value), z0)
    assert float(sol.residual_norm) == 5.0


def test_no_solver_steps_where_max_steps_is_zero(solver):
    z0 = np.array([3.0, 4.0])
    sol = fp.fixed_point(
        lambda z: 0 * z, z0, solver=solver, max_steps=0, on_failure="return"
    )
    assert (int(sol.status), int(sol.steps), int(sol.work.f)) == (
        fp.Status.MAX_STEPS,
        0,
        1,
    )
    np.testing.assert_array_equal(sol.value, z0)
    assert float(sol.residual_norm) == 5.0


# What to do about failures.

MIXED = np.array([[0.5], [0.99], [0.25]])
SLOW = (1 - 0.99**40) / (1 - 0.99)  # the last of 40 steps, and so the best


def solve_mixed(case, policy):
    f = lambda z, a: a * z + 1.0
    z0 = np.zeros((3, 2))
    return case.solve(
        f,
        z0,
        (MIXED,),
        solver=fp.Picard(),
        batch_ndim=1,
        on_failure=policy,
        max_steps=40,
    )


def test_raise(xp_case):
    with pytest.raises(fp.ConvergenceError, match=r"max_steps.*1 sample") as caught:
        solve_mixed(xp_case, "raise")
    value = xp_case.to_numpy(caught.value.solution.value)
    np.testing.assert_allclose(value[[0, 2]], [[2.0] * 2, [4 / 3] * 2], rtol=1e-5)


def test_warn(xp_case):
    with pytest.warns(fp.ConvergenceWarning, match="max_steps") as caught:
        sol = solve_mixed(xp_case, "warn")
    assert len(caught) == 1
    np.testing.assert_allclose(xp_case.to_numpy(sol.value)[1], SLOW, rtol=1e-12)


def test_the_warning_of_a_layer_points_at_the_call():
    model = torch.nn.Sequential(fixedpoint_torch.DEQ(lambda z, x: z + x, max_steps=3))
    with pytest.warns(fp.ConvergenceWarning) as caught:
        model(torch.ones(1, 1))
    assert caught[0].filename == __file__


def test_the_warning_points_at_the_call():
    with pytest.warns(fp.ConvergenceWarning) as caught:
        solve(lambda z: z + 1, max_steps=3, on_failure="warn")
    assert caught[0].filename == __file__


def test_return(jit_case):
    sol = solve_mixed(jit_case, "return")
    assert jit_case.to_numpy(sol.converged).tolist() == [True, False, True]
    np.testing.assert_allclose(jit_case.to_numpy(sol.value)[1], SLOW, rtol=1e-12)


@pytest.mark.parametrize("policy", ["nan", "raise", "warn"])
def test_nan(jit_case, policy):
    if policy != "nan" and jit_case.name != "jax-jit":
        policy = "nan"
    sol = solve_mixed(jit_case, policy)
    value = jit_case.to_numpy(sol.value)
    assert np.isnan(value).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    np.testing.assert_allclose(value[0], 2.0, rtol=1e-5)
    assert jit_case.to_numpy(sol.status).tolist() == [1, 2, 1]


def test_no_policy_acts_on_a_success(xp_case):
    values = [
        xp_case.to_numpy(xp_case.solve(HALF, np.zeros(2), on_failure=policy).value)
        for policy in ("raise", "warn", "return", "nan")
    ]
    for value in values:
        np.testing.assert_array_equal(value, values[0])


def test_jax_traces_of_a_nan_start_raise_nothing():
    call = jax.jit(lambda z: fp.fixed_point(HALF, z, batch_ndim=1))
    sol = call(jnp.array([[0.0], [jnp.nan]]))
    assert sol.status.tolist() == [fp.Status.CONVERGED, fp.Status.NON_FINITE]
    assert np.isnan(sol.value).tolist() == [[False], [True]]


def test_an_image_of_another_library_is_named():
    with pytest.raises(
        TypeError,
        match=r"z0, of the same library: expected numpy.ndarray, got jax.Array",
    ):
        fp.fixed_point(lambda z, b: 0.5 * z + b, np.zeros(3), (jnp.ones(3),))


def test_leaves_may_be_arrays_and_tracers_of_one_library():
    start = lambda a: {"a": a, "b": jnp.ones(2)}
    halve = lambda z: {"a": 0.5 * z["a"], "b": 0.5 * z["b"] + z["a"]}
    value = jax.jit(lambda a: fp.fixed_point(halve, start(a)).value["b"])(jnp.ones(2))
    np.testing.assert_allclose(value, 0.0, atol=1e-6)


# What mends it is in the message.


def test_f_without_a_return(jit_case):
    def f(z):
        0.5 * z

    for by, name in ((fp.fixed_point, "f"), (fp.root, "F")):
        with pytest.raises(ValueError, match=f"^{name} returned None: is there a ret"):
            jit_case.solve(f, np.zeros(2), by=by)


def test_none_may_be_a_state():
    """Of a container in which nothing else is."""
    sol = fp.fixed_point(lambda z: (0.5 * z[0], None), (np.ones(1), None))
    assert sol.value[1] is None


@pytest.mark.parametrize("start", [0.0, np.zeros(())])
@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        (torch.ones(()), r"Give z0 as torch\.as_tensor\("),
        (torch.ones((), requires_grad=True), r"Give z0 as torch\.as_tensor\("),
        (jnp.ones(()), r"Give z0 as jnp\.asarray\("),
    ],
)
def test_a_start_of_numpy_with_arguments_of_another(start, argument, remedy):
    with pytest.raises(TypeError) as caught:
        fp.fixed_point(lambda z, b: 0.5 * z + b, start, (argument,))
    told = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    assert re.search(remedy, "\n".join(told))


def test_an_image_of_numpy_from_a_start_of_jax():
    with pytest.raises(TypeError, match=r"got numpy.*\. Return it as jnp\.asarray\("):
        fp.fixed_point(np.cos, jnp.zeros(2))


def test_an_operation_on_arrays_of_two_libraries():
    """Told beside the error of the library itself."""
    with pytest.raises(TypeError) as caught:
        fp.fixed_point(lambda z, b: z @ b["W"], np.zeros(3), ({"W": torch.ones(3, 3)},))
    (note,) = caught.value.__notes__
    assert note == (
        "z0 is a numpy.ndarray, args[0]['W'] a torch.Tensor. "
        "Give z0 as torch.as_tensor(...)"
    )


def test_errors_of_types_that_have_nothing_to_do_with_it():
    with pytest.raises(TypeError) as caught:
        fp.fixed_point(lambda z: 0.5 * z, 1.0, (2.0,))
    assert not hasattr(caught.value, "__notes__")


WEIGHT = torch.ones((), requires_grad=True)


def test_a_hidden_tensor_is_named():
    scale, module = torch.ones((), requires_grad=True), torch.nn.Linear(1, 1)
    harmless = torch.ones(())

    def f(z):
        return 0.1 * torch.tanh(module(z)) * scale * WEIGHT + harmless

    with pytest.raises(ValueError, match="f captures") as caught:
        fp.fixed_point(f, torch.zeros(1))
    named = str(caught.value).partition("f captures ")[2].split(", ")
    assert sorted(named) == ["WEIGHT", "module", "scale"]


class Half(torch.nn.Module):
    def forward(self, z, *inputs):
        return 0.5 * z + 1.0


LAYERS = [
    lambda **settings: fixedpoint_torch.DEQ(Half(), **settings),
    lambda **settings: fixedpoint_jax.DEQ(lambda z, *x: 0.5 * z + 1.0, **settings),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_without_inputs(layer):
    with pytest.raises(TypeError, match=r"where to start: call it with an input or z0"):
        layer()()


@pytest.mark.parametrize("layer", [fixedpoint_torch.DEQ, fixedpoint_jax.DEQ])
def test_a_class_is_no_cell(layer):
    with pytest.raises(TypeError, match=r"got the class Half: give Half\(\)"):
        layer(Half)


@pytest.mark.parametrize("solve", [fp.fixed_point, fp.root])
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tol", "rtol= or atol="),
        ("maxiter", "max_steps="),
        ("method", "solver="),
        ("jac", "jacobian="),
    ],
)
def test_a_keyword_of_another_library(solve, name, remedy):
    with pytest.raises(TypeError, match=f"argument '{name}': here it is {remedy}$"):
        solve(HALF, 1.0, **{name: None})


def test_a_keyword_that_none_has():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'speed'$"):
        fp.fixed_point(HALF, 1.0, speed=2)


def notes_on_the_start(error):
    """Among the notes, to which JAX adds its own."""
    return [note for note in getattr(error, "__notes__", ()) if "start=" in note]


WIDER = [
    (fixedpoint_torch.DEQ, torch.ones(2, 4), lambda z, x: torch.ones(2, 8)),
    (fixedpoint_torch.DEQ, torch.ones(2, 4), lambda z, x: z @ torch.ones(8, 8)),
    (fixedpoint_torch.DEQ, torch.ones(2, 4), lambda z, x: z + torch.ones(8)),
    (fixedpoint_jax.DEQ, jnp.ones((2, 4)), lambda z, x: jnp.ones((2, 8))),
    (fixedpoint_jax.DEQ, jnp.ones((2, 4)), lambda z, x: z @ jnp.ones((8, 8))),
    (fixedpoint_jax.DEQ, jnp.ones((2, 4)), lambda z, x: z + jnp.ones(8)),
]


@pytest.mark.parametrize(("layer", "x", "cell"), WIDER)
def test_a_state_wider_than_the_input(layer, x, cell):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
        layer(cell)(x)
    (note,) = notes_on_the_start(caught.value)
    assert "of the shape (2, 4). If the state has another" in note


@pytest.mark.parametrize(("layer", "x", "cell"), WIDER)
def test_a_start_that_was_given_is_not_said_to_be_guessed(layer, x, cell):
    for settings, call in (({"start": lambda x: 0 * x}, {}), ({}, {"z0": 0 * x})):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
            layer(cell, **settings)(x, **call)
        assert not notes_on_the_start(caught.value)


@pytest.mark.parametrize(
    ("layer", "x"),
    [(fixedpoint_torch.DEQ, torch.ones(2, 4)), (fixedpoint_jax.DEQ, jnp.ones((2, 4)))],
)
def test_a_start_that_was_given_is_shown_where_it_does_not_fit(layer, x):
    add = lambda z, x: 0.5 * z + x
    calls = {
        "z0 has the shape (1, 3)": lambda: layer(add)(x, z0=x[:1, :3]),
        "start returned has the shape (3,)": lambda: layer(
            add, batch_ndim=0, start=lambda x: x[0, :3]
        )(x),
    }
    for said, call in calls.items():
        with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
            call()
        assert any(note.endswith(said) for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("layer", "x"),
    [(fixedpoint_torch.DEQ, torch.ones(2, 4)), (fixedpoint_jax.DEQ, jnp.ones((2, 4)))],
)
def test_inputs_of_a_layer_go_by_position(layer, x):
    masked = layer(lambda z, x, mask: mask * (0.5 * z + x))
    for call in (masked, masked.solve):
        with pytest.raises(TypeError, match=r"by position, .* z0: got mask=$"):
            call(x, mask=x)


@pytest.mark.parametrize("layer", LAYERS)
def test_settings_of_a_layer_are_checked_when_it_is_made(layer):
    with pytest.raises(TypeError, match="solver must be a solver object"):
        layer(solver=fp.Anderson)
    with pytest.raises(TypeError, match="adjoint must be an adjoint"):
        layer(adjoint=fp.ImplicitAdjoint)
    for settings, message in (
        ({"rtol": -1e-3}, "rtol must be finite and not negative, got -0.001"),
        ({"norm": "l2"}, "norm must be one of entries, .*'l2'"),
        ({"test": "step"}, "test must be one of error, residual, got 'step'"),
        ({"max_steps": -1}, "max_steps must be an integer, 0 or more, got -1"),
        ({"batch_ndim": 0.5}, "batch_ndim must be an integer, 0 or more, got 0.5"),
        ({"on_failure": "ignore"}, "on_failure must be one of raise, .*'ignore'"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(**settings)


@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_layer_is_made_with(layer):
    with pytest.raises(TypeError, match=r"^start must be callable, got 3$"):
        layer(start=3)
    with pytest.raises(TypeError, match=r"^rtol must be a number or an array, got Tr"):
        layer(rtol=True)


@pytest.mark.parametrize(
    ("x", "kind"), [(np.ones(2), "numpy.ndarray"), (1.0, "builtins.float")]
)
def test_an_input_that_is_no_tensor(x, kind):
    message = f"first input must be a tensor or a container of tensors, got {kind}: "
    with pytest.raises(TypeError, match=re.escape(message)):
        fixedpoint_torch.DEQ(Half())(x)


JOINT = fp.operators.Joint(lambda s: s, {"u": fp.operators.Map(lambda u, s: u / 2)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.operators.Map(3), "f must be callable, got int"),
        (lambda: JOINT.projected(3), "project must be callable, got int"),
        (
            lambda: fp.operators.Joint(lambda s: s, {"u": lambda u, s: u}),
            "blocks['u'] must be an operator, such as Map(f), got function",
        ),
        (lambda: fp.operators.Joint(lambda s: s, 3), "blocks must be a mapping, got 3"),
        (
            lambda: fp.fixed_point(JOINT, np.zeros(2)),
            "the state must be a dictionary with the blocks {'u'}, got ndarray",
        ),
    ],
)
def test_what_an_operator_is_made_of(make, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        make()


def test_what_dropout_is_asked():
    dropout = fixedpoint_torch.VariationalDropout
    with pytest.raises(TypeError, match=r"^p must be a number, got 'a'$"):
        dropout("a")
    with pytest.raises(TypeError, match=r"^axes must be a tuple of integers, got 1$"):
        dropout(0.5, 1)
    with pytest.raises(ValueError, match=r"axes of x, which has 2, got \(5,\)$"):
        dropout(0.5, (5,))(torch.ones(2, 3))


PENALTIES = [
    lambda **settings: fixedpoint_torch.jacobian_penalty(
        torch.cos, torch.ones(2, 3), **settings
    ),
    lambda **settings: fixedpoint_jax.jacobian_penalty(
        jnp.cos, jnp.ones((2, 3)), key=jax.random.key(0), **settings
    ),
]


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    ("batch_ndim", "message"),
    [
        (-1, "batch_ndim must be an integer, 0 or more, got -1"),
        (7, "z has 2 axes, fewer than batch_ndim=7"),
    ],
)
def test_axes_of_a_penalty(penalty, batch_ndim, message):
    with pytest.raises(ValueError, match=message):
        penalty(batch_ndim=batch_ndim)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_what_a_penalty_is_made_of(library):
    """Elsewhere it takes what f returned instead of f."""
    if library == "torch":
        z, penalty = torch.ones(2, 3), fixedpoint_torch.jacobian_penalty
    else:
        key = jax.random.key(0)
        z, penalty = jnp.ones((2, 3)), partial(fixedpoint_jax.jacobian_penalty, key=key)
    with pytest.raises(TypeError, match=r"^f must be callable, got "):
        penalty(0.5 * z, z)
    with pytest.raises(TypeError, match=r"^args must be a tuple, got .*: write args="):
        penalty(lambda z, x: 0.5 * z + x, z, z)


def test_what_a_spectral_radius_is_of():
    with pytest.raises(TypeError, match=r"^product must be callable, got ndarray$"):
        fp.spectral_radius(np.eye(2), np.ones(2))


def test_what_a_correction_is_made_of():
    with pytest.raises(ValueError, match=r"^gamma must be finite and not neg.*got -1$"):
        fixedpoint_torch.correction_loss(lambda z: z, [1.0], gamma=-1)
    with pytest.raises(ValueError, match=r"^states must hold a state or more, got \[]"):
        fixedpoint_torch.correction_loss(lambda z: z, [])


ONES = [torch.ones(2, 3), jnp.ones((2, 3))]


@pytest.mark.parametrize(("layer", "x"), list(zip(LAYERS, ONES, strict=True)))
@pytest.mark.parametrize("steps", [3, "ab", [1.5], [True], [None], [-1], [3, 1]])
def test_steps_of_a_trajectory(layer, x, steps):
    message = "steps must be integers, 0 or more, in ascending order, got "
    with pytest.raises((TypeError, ValueError), match=re.escape(f"{message}{steps!r}")):
        layer().trajectory(x, steps=steps)


@pytest.mark.parametrize(("layer", "x"), list(zip(LAYERS, ONES, strict=True)))
def test_a_trajectory_begins_at_the_start(layer, x):
    first, second, end = layer().trajectory(x, steps=np.arange(2))
    assert first.tolist() == [[1.0] * 3] * 2
    assert second.tolist() == [[1.5] * 3] * 2
    np.testing.assert_allclose(np.asarray(end), 2.0, rtol=1e-4)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_shows_the_settings_that_were_changed(layer):
    shown = repr(layer(solver=fp.Picard(), rtol=1e-3, max_steps=1000))
    assert "solver=Picard(" in shown
    assert "rtol=0.001" in shown
    assert "max_steps" not in shown
    assert "adjoint" not in shown


def test_an_argument_of_numpy_with_a_start_of_torch():
    with pytest.raises(TypeError) as caught:
        fp.fixed_point(lambda z, b: b * z, torch.ones(2), (np.ones(2),))
    assert caught.value.__notes__ == [
        "z0 is a torch.Tensor, args[0] a numpy.ndarray. "
        "Give args[0] as torch.as_tensor(...)"
    ]


class MineError(Exception):
    """An error of the user's."""


def raises(z, *args):
    raise MineError


class Raises(torch.nn.Module):
    def forward(self, z, x):
        raise MineError


def frames_of_the_library(error):
    """The names of the functions of this library that a traceback shows."""
    shown = traceback.walk_tb(error.__traceback__)
    names = [(frame.f_globals["__name__"], frame.f_code.co_name) for frame, _ in shown]
    return [name for module, name in names if module.startswith("fixedpoint")]


TENSOR = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fp.fixed_point(raises, 1.0),
        lambda: fp.root(raises, np.ones(2), solver="newton-krylov"),
        lambda: fp.bracketed_root(raises, 0.0, 1.0),
        lambda: next(fp.steps(raises, np.ones(2))),
        lambda: fp.fixed_point(raises, torch.ones(2), (TENSOR,)),
        lambda: fp.fixed_point(raises, jnp.ones(2)),
        lambda: jax.jit(lambda z: fp.fixed_point(raises, z).value)(jnp.ones(2)),
        lambda: fixedpoint_torch.DEQ(Raises())(torch.ones(2, 2)),
        lambda: fixedpoint_jax.DEQ(raises)(jnp.ones((2, 2))),
    ],
)
def test_few_frames_stand_above_an_error_of_the_user(call):
    with pytest.raises(MineError) as caught:
        call()
    assert len(frames_of_the_library(caught.value)) <= 10


def test_an_error_on_the_way_shows_the_call_and_the_callers_code():
    """What is left out lies between the two."""
    with pytest.raises(MineError) as caught:
        fp.fixed_point(raises, np.ones(2))
    names = [entry.name for entry in traceback.extract_tb(caught.value.__traceback__)]
    assert "fixed_point" in names
    assert names[-1] == "raises"


def test_an_error_of_the_library_shows_where_it_comes_from():
    with pytest.raises(ValueError, match="f returned None") as caught:
        fp.fixed_point(lambda z: None, np.ones(2))
    assert len(frames_of_the_library(caught.value)) > 3


@pytest.mark.parametrize("transform", [jax.jacfwd, jax.jacrev])
def test_a_failure_under_a_transform_of_jax_says_what_happened(transform):
    def solution(b):
        f = lambda z, b: z + b
        return fp.fixed_point(f, b, (b,), max_steps=2, solver=fp.Picard()).value

    with pytest.raises(fp.ConvergenceError, match=r"within max_steps .*2"):
        transform(solution)(1.0)


@pytest.mark.parametrize(
    "export",
    [
        lambda layer, x: torch.export.export(layer, (x,)),
        torch.jit.trace,
        lambda layer, _: torch.jit.script(layer),
    ],
    ids=["export", "trace", "script"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TorchScript is deprecated
def test_an_exported_layer_is_told_what_can_be_exported(export):
    layer = fixedpoint_torch.DEQ(torch.nn.Bilinear(2, 2, 2))
    with pytest.raises(TypeError, match="a fixed number of plain steps"):
        export(layer, torch.ones(3, 2))
