"""Arguments that settings do not take, and what errors say of them."""

import copy
import inspect
import pickle

import pytest

import fixedpoint as fp
import fixedpoint_jax
import fixedpoint_models
import fixedpoint_torch

TORCH_LAYER, JAX_LAYER = fixedpoint_torch.DEQ, fixedpoint_jax.DEQ


@pytest.mark.parametrize("layer", [TORCH_LAYER, JAX_LAYER])
@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("tol", "rtol= or atol="),
        ("maxiter", "max_steps="),
        ("max_iter", "max_steps="),
        ("f_solver", "solver="),
        ("throw", 'on_failure="return"'),
        ("ift", "adjoint="),
        ("b_solver", r"adjoint=ImplicitAdjoint\(solver=\)"),
        ("implicit_diff", "adjoint="),
        ("f_stop_mode", "test="),
    ],
)
def test_a_layer_knows_what_others_call_its_settings(layer, name, here):
    with pytest.raises(TypeError, match=f"DEQ got .*'{name}': here it is {here}$"):
        layer(lambda z, x: z, **{name: 3})


@pytest.mark.parametrize(
    ("kind", "name", "here"),
    [
        (fp.Anderson, "m", "memory="),
        (fp.Anderson, "beta", "damping="),
        (fp.Anderson, "ridge", "regularization="),
        (fp.Broyden, "max_iter", "max_steps= of the call or layer"),
        (fp.Newton, "tol", "rtol= or atol= of the call or layer"),
        (fp.GMRES, "m", "restart="),
        (fp.GMRES, "maxiter", "max_steps="),
        (fp.ImplicitAdjoint, "tol", "rtol="),
        (fp.PhantomGradient, "tau", "damping="),
        (fp.Control, "max_iter", "max_steps="),
        (fixedpoint_models.TrackedLBFGS, "history_size", "memory="),
        (fp.NewtonKrylov, "linear_solver", "linear="),
        (fp.ImplicitAdjoint, "linear_solver", "solver="),
    ],
)
def test_a_method_knows_what_others_call_its_settings(kind, name, here):
    with pytest.raises(TypeError, match=f"'{name}': here it is {here}"):
        kind(**{name: 3})


@pytest.mark.parametrize("kind", [fp.Newton, fp.Picard])
@pytest.mark.parametrize("name", ["rtol", "max_steps"])
def test_a_method_leaves_tolerances_and_limits_to_the_call(kind, name):
    with pytest.raises(TypeError, match=f"'{name}': it is one of the call or layer$"):
        kind(**{name: 3})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("maxiter", "': here it is max_steps=$"),
        ("bracket", "': here it is lower=, upper=$"),
        ("solver", "'$"),
        ("method", "'$"),
    ],
)
def test_a_bracket_knows_what_others_call_its_settings(name, says):
    with pytest.raises(TypeError, match=rf"^bracketed_root\(\) got .* '{name}{says}"):
        fp.bracketed_root(abs, 0.0, 1.0, **{name: 3})
    assert "max_steps" in inspect.signature(fp.bracketed_root).parameters


def test_a_limit_of_evaluations_is_a_budget():
    with pytest.raises(TypeError, match=r"here it is budget=Budget\(evaluations=\)$"):
        fp.root(abs, 0.5, maxfev=3)


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("bounds", "project="),
        ("iter", "max_steps="),
        ("tol_norm", "norm="),
        ("verbose", r"callback=Progress\(\)"),
        ("x_tol", "atol="),
    ],
)
def test_a_call_knows_what_scipy_calls_its_settings(name, here):
    with pytest.raises(TypeError, match=f"'{name}': here it is {here}$"):
        fp.root(abs, 0.5, **{name: 3})


def test_an_unknown_setting_lists_the_known_ones():
    says = "Broyden got .* 'speed': it takes memory, update, line_search$"
    with pytest.raises(TypeError, match=says):
        fp.Broyden(speed=2)


def test_settings_are_given_by_name():
    says = "Broyden takes its settings by name, got 3 by position: it takes memory, "
    with pytest.raises(TypeError, match=says):
        fp.Broyden(3)
    for layer in (TORCH_LAYER, JAX_LAYER):
        with pytest.raises(TypeError, match="DEQ takes all but cell by name, got Pic"):
            layer(lambda z, x: z, fp.Picard())


@pytest.mark.parametrize("kind", [fp.Anderson, fp.GMRES, fp.Unrolled, JAX_LAYER])
def test_signatures_show_the_settings(kind):
    names = {name for name in inspect.signature(kind).parameters if name != "cell"}
    assert names == kind.__dataclass_fields__.keys() - {"cell", "_"}


def test_settings_are_copied_and_pickled():
    solver = fp.Anderson(memory=3)
    assert copy.deepcopy(solver) == pickle.loads(pickle.dumps(solver)) == solver


def test_a_method_of_ones_own_derives_from_one_that_is_known():
    class Mine(fp.Picard):
        def __init__(self, speed):
            super().__init__(damping=speed)

    assert Mine(0.5).damping == 0.5
