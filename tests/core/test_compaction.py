"""Finished samples leave the batch, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import fixedpoint as fp


@pytest.mark.parametrize("library", [np, torch, jnp])
def test_finished_samples_leave_the_batch_and_nothing_else_changes(library):
    """By plain iteration; those of every solver do in the contract of batches."""
    asarray = torch.as_tensor if library is torch else library.asarray
    number = 2 if library is jnp else 8
    a = np.array([0.1, 0.8, 0.0, 0.3, 0.2, 0.95, 0.2, 0.1])[:number, None] * np.ones(3)
    b = np.linspace(0.5, 1.0, 3 * number).reshape(number, 3)
    rows = []

    def f(z, a, b, c):
        rows.append(int(z.shape[0]))
        return a * library.sin(z) + b + c

    args = tuple(map(asarray, (a, b, np.full(3, 0.1))))
    settings = {
        "solver": fp.Picard(),
        "batch_ndim": 1,
        "rtol": asarray(np.geomspace(1e-2, 1e-8, number)),
        "atol": 0.0,
        "max_steps": 300,
        "on_failure": "return",
    }
    start = asarray(np.zeros((number, 3)))
    whole = fp.fixed_point(f, start, args, **settings)
    total, rows[:] = sum(rows), []
    few = fp.fixed_point(f, start, args, batched_args=(True, True, False), **settings)
    assert sum(rows) < total
    for field in ("value", "status", "steps", "residual_norm"):
        one, other = (np.asarray(getattr(sol, field)) for sol in (few, whole))
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15, err_msg=field)
    assert few.work == whole.work


def test_all_rows_are_put_back_in_their_places():
    """Rows that stop at any time, in any order, converged or not; the rest is solved
    anew.
    """
    rng = np.random.default_rng(0)
    a = rng.permutation(np.r_[np.linspace(0.0, 1.05, 30), np.nan, 7.0])[
        :, None
    ] * np.ones(2)
    settings = {
        "solver": fp.Anderson(memory=2),
        "batch_ndim": 1,
        "on_failure": "return",
    }
    settings |= {"max_steps": 80, "rtol": 1e-9}
    f = lambda z, a: a * np.sin(z) + 1.0
    z0 = rng.standard_normal((32, 2))
    whole = fp.fixed_point(f, z0, (a,), **settings)
    few = fp.fixed_point(f, z0, (a,), batched_args=(True,), **settings)
    for field in ("value", "status", "steps", "residual_norm", "method"):
        np.testing.assert_array_equal(getattr(few, field), getattr(whole, field), field)


def test_the_trace_of_a_shrinking_batch_is_that_of_its_samples():
    """Up to the last step of each."""
    a = np.array([[0.1], [0.9], [0.5], [0.2]])
    settings = {
        "solver": fp.Picard(),
        "batch_ndim": 1,
        "record": True,
        "max_steps": 200,
    }
    f = lambda z, a: a * z + 1.0
    whole = fp.fixed_point(f, np.zeros((4, 1)), (a,), **settings)
    few = fp.fixed_point(f, np.zeros((4, 1)), (a,), batched_args=(True,), **settings)
    for one, other in zip(few.trace, whole.trace, strict=True):
        for i, steps in enumerate(whole.steps):
            np.testing.assert_array_equal(one[i, : steps + 1], other[i, : steps + 1])


def test_a_sample_of_two_axes_leaves_with_its_row():
    a = np.array([[0.1, 0.2, 0.3], [0.9, 0.1, 0.2], [0.2, 0.2, 0.2], [0.0, 0.0, 0.95]])
    f = lambda z, a: a[..., None] * z + 1.0
    settings = {"solver": fp.Picard(), "batch_ndim": 2, "rtol": 1e-6}
    whole = fp.fixed_point(f, np.zeros((4, 3, 2)), (a,), **settings)
    few = fp.fixed_point(f, np.zeros((4, 3, 2)), (a,), batched_args=(True,), **settings)
    np.testing.assert_array_equal(few.value, whole.value)
    np.testing.assert_array_equal(few.steps, whole.steps)


def test_a_shrinking_batch_goes_through_a_fallback_with_its_own_tolerances():
    a = np.array([[0.5], [3.0], [0.2], [-4.0], [0.1], [0.3]])
    settings = {"solver": fp.Fallback([fp.Picard(), fp.Broyden()]), "batch_ndim": 1}
    settings |= {"rtol": 0.0, "atol": np.geomspace(1e-2, 1e-9, 6), "max_steps": 100}
    f = lambda z, a: a * z + 1.0
    whole = fp.fixed_point(f, np.zeros((6, 1)), (a,), **settings)
    few = fp.fixed_point(f, np.zeros((6, 1)), (a,), batched_args=(True,), **settings)
    np.testing.assert_array_equal(few.value, whole.value)
    np.testing.assert_array_equal(few.steps, whole.steps)
    np.testing.assert_array_equal(few.method, [0, 1, 0, 1, 0, 0])
    assert np.all(few.residual_norm <= settings["atol"])


def test_given_derivatives_shrink_with_the_batch():
    a = np.array([[2.0], [3.0], [1e4], [4.0]])
    rows = []

    def jacobian(x, a):
        rows.append(len(x))
        return 3.0 * x[..., None] ** 2 + 0.0 * a[..., None]

    sol = fp.root(
        lambda x, a: x**3 - a,
        np.ones((4, 1)),
        (a,),
        solver=fp.Newton(line_search=False),
        jacobian=jacobian,
        batch_ndim=1,
        batched_args=(True,),
        rtol=1e-12,
        atol=1e-9,
    )
    np.testing.assert_allclose(sol.value, np.cbrt(a), rtol=1e-9)
    assert rows[0] == 4
    assert rows[-1] == 1


def test_in_a_trace_the_batch_stays_whole():
    a = jnp.array([[0.1], [0.9], [0.5]])
    call = lambda z, a: fp.fixed_point(
        lambda z, a: a * z + 1.0, z, (a,), batch_ndim=1, batched_args=(True,), rtol=1e-8
    )
    traced = jax.jit(call)(jnp.zeros((3, 1)), a)
    np.testing.assert_allclose(traced.value, 1.0 / (1.0 - a), rtol=1e-6)


def test_solutions_of_a_shrinking_batch_are_differentiated():
    """z = az + 1 has dz/da = 1/(1 − a)²."""
    a = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64, requires_grad=True)
    sol = fp.fixed_point(
        lambda z, a: a * z + 1.0,
        torch.zeros(3, 1, dtype=torch.float64),
        (a,),
        batch_ndim=1,
        batched_args=(True,),
        rtol=1e-10,
    )
    (gradient,) = torch.autograd.grad(sol.value.sum(), a)
    np.testing.assert_allclose(gradient, 1.0 / (1.0 - a.detach()) ** 2, rtol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batched_args": (True,)}, "batch_ndim"),
        ({"batched_args": (True, False), "batch_ndim": 1}, "batched_args"),
        ({"batched_args": (True,), "batch_ndim": 1}, "rows"),
    ],
)
def test_batched_args_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        fp.fixed_point(
            lambda z, b: 0.5 * z + b, np.ones((2, 3)), (np.ones(3),), **settings
        )


def test_a_callback_and_a_shrinking_batch_exclude_each_other():
    with pytest.raises(ValueError, match="callback"):
        fp.fixed_point(
            lambda z, b: 0.5 * z + b,
            np.ones((2, 3)),
            (np.ones((2, 3)),),
            batch_ndim=1,
            batched_args=(True,),
            callback=lambda *_: False,
        )
