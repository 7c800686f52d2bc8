"""What a solution tells, and what is returned."""

import base64
import copy
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import torch

import fixedpoint as fp

# What a solution tells.


@pytest.mark.parametrize("is_root", [True, False])
def test_the_linearization_is_the_jacobian(xp_case, is_root):
    """Of sin(x)·w + x² in two leaves, in closed form."""
    xp, w = xp_case.xp, np.array([0.3, -0.2])
    f = lambda z, w: {
        "u": xp.sin(z["u"]) * w + 0.25 * z["v"] ** 2,
        "v": 0.5 * xp.cos(z["u"]),
    }
    start = xp_case.tree({"u": np.array([0.1, 0.2]), "v": np.array([0.5, 0.4])})
    args = (xp_case.asarray(w),)
    solve = fp.root if is_root else fp.fixed_point
    F = (lambda z, w: {k: z[k] - v for k, v in f(z, w).items()}) if is_root else f
    sol = solve(F, start, args, solver=fp.Picard(), rtol=1e-9)
    u, v = (xp_case.to_numpy(sol.value[name]) for name in "uv")
    p, q = np.array([1.0, -2.0]), np.array([0.5, 3.0])
    image = sol.linearize()(xp_case.tree({"u": p, "v": q}))
    expected = {"u": np.cos(u) * w * p + 0.5 * v * q, "v": -0.5 * np.sin(u) * p}
    if is_root:
        expected = {"u": p - expected["u"], "v": q - expected["v"]}
    for name, value in expected.items():
        np.testing.assert_allclose(
            xp_case.to_numpy(image[name]), value, rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("given", ["jvp", "jacobian"])
def test_the_linearization_uses_what_was_given(given):
    A = np.array([[0.5, 0.1], [0.0, 0.2]])
    functions = {"jvp": lambda _, v: A @ v, "jacobian": lambda _: A}
    sol = fp.fixed_point(
        lambda z: A @ z + 1.0, np.zeros(2), **{given: functions[given]}
    )
    np.testing.assert_allclose(
        sol.linearize()(np.array([1.0, 2.0])), A @ [1.0, 2.0], rtol=1e-14
    )


def test_a_solution_from_a_trace_is_not_linearized():
    sol = jax.jit(lambda z: fp.fixed_point(jnp.cos, z))(jnp.ones(2))
    with pytest.raises(ValueError, match="trace"):
        sol.linearize()


def test_a_solution_tells_what_happened():
    sol = fp.fixed_point(
        lambda z: 0.5 * z, np.ones(1), solver=fp.Picard(), rtol=0.0, atol=1e-3
    )
    assert sol.message == (
        "converged (Picard); largest error 0.00098, residual norm 0.00049 after 10 "
        "steps"
    )
    assert repr(sol).splitlines() == [
        "Solution",
        "    value: 0.000976562 (numpy.ndarray of shape (1,), float64)",
        f"    message: {sol.message}",
        "    work: 11 evaluations, 0 vjp, 0 jvp",
    ]


def test_work_of_many_lanes_is_shown_in_a_line():
    a = jnp.linspace(0.1, 0.9, 20)
    solve = lambda a: fp.fixed_point(
        lambda z, a: a * z + 1.0, jnp.ones(()), (a,), solver=fp.Picard()
    )
    sol = jax.vmap(solve)(a)
    assert str(
        sol.work
    ) == f"{sol.work.f.min()} to {sol.work.f.max()} evaluations, " + ("0 vjp, 0 jvp")
    assert len(repr(sol).splitlines()) == 4


def test_a_long_value_is_shown_by_its_head(jit_case):
    shown = repr(jit_case.solve(lambda z: 0.5 * z + 1.0, np.zeros(7)))
    assert "value: 2, 2, 2, 2, 2, 2, ... (" in shown
    assert "of shape (7,)" in shown


def test_the_leaves_of_a_container_are_counted():
    sol = fp.fixed_point(lambda z: {"a": 0.5 * z["a"] + 1.0}, {"a": np.zeros(2)})
    assert "value: dict of an array\n" in repr(sol)


def test_a_traced_solution_is_shown_without_numbers():
    shown = []

    @jax.jit
    def solve(z):
        sol = fp.fixed_point(lambda z: 0.5 * z, z, solver=fp.Picard(), record=True)
        shown.extend([repr(sol), sol._repr_html_()])
        return sol.value

    solve(jnp.ones(2))
    assert "of shape (2,)" in shown[0]
    assert "message: not known while the solve is being traced" in shown[0]
    assert "<img" not in shown[1]


def test_a_trace_counts_the_steps_taken(jit_case):
    settings = {"solver": fp.Picard(), "record": True, "max_steps": 99}
    sol = jit_case.solve(lambda z: 0.5 * z + 1.0, np.zeros(2), **settings)
    assert int(sol.steps) < 99
    assert f"trace: {int(sol.steps)} steps\n" in repr(sol)


def test_a_notebook_shows_the_trace():
    matplotlib = pytest.importorskip("matplotlib.pyplot")
    sol = fp.fixed_point(lambda z: {"<": 0.5 * z["<"]}, {"<": np.ones(2)}, record=True)
    before = matplotlib.get_fignums()
    page = sol._repr_html_()
    assert matplotlib.get_fignums() == before
    assert page.startswith("<table><tr><th>value</th><td>dict of an array</td>")
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page).group(1)
    assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "<img" not in fp.fixed_point(np.cos, 1.0)._repr_html_()


def test_the_names_of_scipy():
    def F(x):
        return np.stack([x[0] ** 2 + x[1] ** 2 - 4.0, x[0] - x[1]])

    theirs = scipy.optimize.root(F, [1.0, 2.0])
    ours = fp.root(F, np.array([1.0, 2.0]))
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-6)
    assert ours.success == theirs.success
    assert ours.nfev == ours.work.f > 0
    for name in ("x", "success", "nfev"):
        with pytest.raises(AttributeError):
            setattr(ours, name, None)


def test_a_batch_tells_how_many():
    a = np.array([[0.0], [0.5], [2.0], [np.nan]])
    sol = fp.fixed_point(
        lambda z, a: a * z + 1.0,
        np.zeros((4, 1)),
        (a,),
        solver=fp.Picard(),
        batch_ndim=1,
        on_failure="return",
    )
    assert "converged (Picard): 2 samples" in sol.message
    assert (
        "diverged: the residual grew without bound (Picard): 1 samples" in sol.message
    )
    assert "not finite: the start" in sol.message


def test_a_batch_of_zero_has_a_message():
    sol = fp.fixed_point(np.cos, np.zeros((0, 2)), batch_ndim=1)
    assert sol.message == "no samples"
    assert "no samples" in repr(sol)


def test_an_error_says_the_same_and_holds_the_solution():
    with pytest.raises(fp.ConvergenceError, match="diverged") as caught:
        fp.fixed_point(lambda z: 3.0 * z + 1.0, np.zeros(1), solver=fp.Picard())
    assert caught.value.solution.message in str(caught.value)
    assert int(caught.value.solution.status) == fp.Status.DIVERGED


# What is returned.


def test_what_satisfied_the_test_is_returned_even_if_another_residual_was_smaller():
    """The tolerance goes with ‖f(z)‖: 0.6 at z = 1.5 is within it, and 0.5 at z = 1 was
    not.
    """
    steps = {0.0: 1.0, 1.0: 0.5, 1.5: 0.6}
    sol = fp.fixed_point(
        lambda z: z + steps[z[0]],
        np.zeros(1),
        solver=fp.Picard(),
        rtol=0.3,
        test="residual",
    )
    assert int(sol.status) == fp.Status.CONVERGED
    np.testing.assert_allclose([sol.value[0], sol.residual_norm], [1.5, 0.6])


def test_a_python_float_stays_a_scalar():
    sol = fp.root(lambda x: x * x - 2.0, 1.0)
    assert np.ndim(sol.value) == 0
    assert math.isclose(float(sol.value), math.sqrt(2.0), rel_tol=1e-6)


def test_aux_is_that_of_the_solution(xp_case):
    def f(z, b):
        return 0.5 * z + b, {"double": 2.0 * z}

    sol = xp_case.solve(
        f, np.zeros((2, 3)), (np.ones((2, 3)),), batch_ndim=1, has_aux=True
    )
    np.testing.assert_allclose(xp_case.to_numpy(sol.value), 2.0, rtol=1e-5)
    aux = xp_case.to_numpy(sol.aux["double"])
    np.testing.assert_array_equal(aux, 2.0 * xp_case.to_numpy(sol.value))


def test_aux_takes_one_evaluation_and_is_differentiated():
    calls = []

    def F(x, a):
        calls.append(1)
        return x**2 - a, a * x

    a = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    one = torch.ones(2, 1, dtype=torch.float64)
    sol = fp.root(F, one, (a[:, None],), batch_ndim=1, has_aux=True, atol=1e-13)
    assert sol.work.f <= len(calls)
    sol.aux.sum().backward()
    np.testing.assert_allclose(a.grad, 1.5 * np.sqrt([2.0, 3.0]), rtol=1e-7)  # (a√a)′


@pytest.mark.parametrize("f", [lambda z: z, lambda z: (z, 1, 2), lambda z: [z, 1]])
def test_aux_that_is_missing(f):
    with pytest.raises(ValueError, match="f must return a pair"):
        fp.fixed_point(f, np.ones(2), has_aux=True)


def test_operators_have_no_aux():
    with pytest.raises(TypeError, match="has_aux"):
        fp.fixed_point(fp.operators.Map(np.cos).damped(0.5), np.ones(2), has_aux=True)


@jax.tree_util.register_pytree_node_class
class Pair:
    """A container that JAX alone knows."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def tree_flatten(self):
        return (self.a, self.b), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


def test_a_solution_in_a_container_of_a_framework_is_shown():
    halved = lambda s: Pair(0.5 * s.a, jnp.cos(s.b))
    sol = fp.fixed_point(halved, Pair(jnp.ones(2), jnp.ones(3)))
    assert "value: Pair of 2 arrays" in repr(sol)
    assert "Pair of 2 arrays" in sol._repr_html_()


def test_a_solution_without_arrays_is_shown():
    """As JAX makes it: of shapes, of nothing, or of whatever a caller maps to."""
    sol = fp.fixed_point(lambda z: 0.5 * jnp.cos(z), jnp.ones(3))
    assert "value=(3,)" in repr(jax.tree.map(jnp.shape, sol))
    assert "value=None" in repr(jax.tree.map(lambda _: None, sol))
    assert "value=ShapedArray(float64[3])" in repr(jax.tree.map(jax.typeof, sol))


def test_functions_of_a_solution_take_containers_of_a_framework():
    """Its spectral radius, products without differentiation, and operators on it."""
    halved = lambda s: Pair(0.5 * s.a + 1.0, 0.25 * s.b)
    start = Pair(jnp.ones(2), jnp.ones(3))
    sol = fp.fixed_point(fp.operators.Map(halved).damped(0.5), start)
    np.testing.assert_allclose(sol.value.a, 2.0, rtol=1e-5)
    radius = fp.spectral_radius(fp.fixed_point(halved, start).linearize(), start)
    np.testing.assert_allclose(float(radius), 0.5, rtol=1e-5)
    products = lambda z: lambda u: (Pair(0.5 * u.a, 0.25 * u.b), u.a.sum())
    (pulled,) = fp.implicit_vjp(products, sol.value, start)
    np.testing.assert_allclose(float(pulled), 4.0, rtol=1e-4)


def test_a_solution_is_equal_to_itself_alone():
    """Its arrays have no one answer to whether they are equal."""
    sol = fp.fixed_point(np.cos, np.ones(2))
    assert sol != copy.copy(sol)
    assert sol in {sol: 1}
