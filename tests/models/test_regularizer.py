"""Inputs with a convex function of their own beside the loss: a sum of absolute
values.
"""

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

import fixedpoint as fp
from fixedpoint.operators import L1Norm, SoftThreshold
from fixedpoint_models import AugmentedDEQ, JointIteration, TrackedDescent
from fixedpoint_models.descent_rules import Momentum

ARRAYS = {"torch": torch.tensor, "jax": jnp.asarray}


def sparse(seed, samples=2, width=30, inputs=60):
    """A linear cell z = Wz + Ux, what is seen of it, and sparse inputs behind that."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((width, width))
    W *= 0.7 / np.linalg.norm(W, 2)
    U = rng.standard_normal((width, inputs)) / np.sqrt(width)
    x = rng.standard_normal((samples, inputs)) * (rng.random((samples, inputs)) < 0.1)
    y = x @ U.T @ np.linalg.inv(np.eye(width) - W).T
    return W, U, y + 0.05 * rng.standard_normal(y.shape)


def known(W, U, y, weight):
    """The least ½‖z − y‖² + w‖x‖₁, by coordinate descent."""
    design = np.linalg.solve(np.eye(len(W)) - W, U)
    lasso = Lasso(weight / len(y[0]), fit_intercept=False, tol=1e-12, max_iter=10**6)
    found = np.stack([lasso.fit(design, row).coef_ for row in y])
    return found, 0.5 * ((found @ design.T - y) ** 2).sum(-1) + weight * abs(found).sum(
        -1
    )


def cell(z, x, params):
    W, U = params
    return z @ W.T + x @ U.T


def misfit(z, x, y, params):
    return 0.5 * ((z - y) ** 2).sum(-1)


@pytest.mark.parametrize(
    ("seed", "share", "library"),
    [*product(range(3), [0.02, 0.2, 0.8], ["torch"]), (0, 0.2, "jax")],
)
def test_the_solution_is_that_of_coordinate_descent(seed, share, library):
    """With nothing named: the same zeros, and converged."""
    W, U, y = sparse(seed)
    design = np.linalg.solve(np.eye(len(W)) - W, U)
    weight = share * float(abs(y @ design).max())
    expected, value = known(W, U, y, weight)
    array = ARRAYS[library]
    model = AugmentedDEQ(cell, misfit, regularizer=L1Norm(weight))
    sol = model.solve(
        array(0 * y),
        array(np.zeros(expected.shape)),
        params=(array(W), array(U)),
        y=array(y),
        rtol=1e-6,
        max_steps=2000,
    )
    assert sol.joint.methods == ("TrackedLBFGS",)
    assert bool(sol.joint.converged.all())
    np.testing.assert_allclose(sol.objective, value, rtol=1e-8)
    np.testing.assert_allclose(sol.x, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(sol.x) == 0, abs(expected) < 1e-9)


@pytest.mark.parametrize("power", [-40, 0, 40])
@pytest.mark.parametrize("start", [0.0, 1.0, 100.0])
def test_units_and_starts(power, start):
    """The loss and the weight in another unit: the same steps to the same inputs."""
    W, U, y = sparse(0)
    weight, unit = 0.3, 2.0**power
    expected, value = known(W, U, y, weight)
    loss = lambda *given: unit * misfit(*given)
    model = AugmentedDEQ(cell, loss, regularizer=L1Norm(unit * weight))
    sol = model.solve(
        torch.tensor(0 * y),
        torch.full(expected.shape, start, dtype=torch.float64),
        params=(torch.tensor(W), torch.tensor(U)),
        y=torch.tensor(y),
        rtol=1e-6,
        max_steps=2000,
    )
    assert bool(sol.joint.converged.all())
    np.testing.assert_allclose(sol.objective, unit * value, rtol=1e-8)
    np.testing.assert_allclose(sol.x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method", [{"solver": fp.Anderson()}, {"method": JointIteration(step_size=0.1)}]
)
def test_the_joint_fixed_point_ends_there_too(method):
    """z = z/2 + x and ℓ = (z − y)²: x = y/2 shrunk by w/8, whatever the step is."""
    y = torch.tensor([[4.0], [-1.0], [0.05]], dtype=torch.float64)
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: ((z - y) ** 2).sum(-1),
        regularizer=L1Norm(0.8),
        step_size=0.05,
    )
    sol = model.solve(
        0 * y, 0 * y, params=None, y=y, rtol=1e-9, max_steps=400, **method
    )
    expected = SoftThreshold(0.1)(0.5 * y)
    torch.testing.assert_close(sol.x, expected, rtol=1e-6, atol=1e-8)
    objective = ((2 * expected - y) ** 2 + 0.8 * abs(expected))[:, 0]
    torch.testing.assert_close(sol.objective, objective)
    assert all(bool((norm < 1e-6).all()) for norm in sol.kkt.values())


def test_derivatives_pass_through_the_proximal_operator():
    """Of x = (y − w/4)/2, by the implicit function theorem for the three blocks."""
    y = torch.tensor([[4.0]], dtype=torch.float64, requires_grad=True)
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: ((z - y) ** 2).sum(-1),
        regularizer=L1Norm(0.8),
    )
    zero = torch.zeros_like(y).detach()
    sol = model.iterate(
        zero, zero, params=None, y=y, adjoint=fp.ImplicitAdjoint(), rtol=1e-9
    )
    sol.value["x"].sum().backward()
    torch.testing.assert_close(y.grad, torch.full_like(zero, 0.5))


def test_what_serves_no_regularizer_says_what_does():
    model = AugmentedDEQ(cell, misfit, regularizer=L1Norm(1.0))
    zero = torch.zeros(1, 2)
    given = {"params": (torch.eye(2), torch.eye(2)), "y": zero}
    rule = Momentum(step_size=0.1)
    with pytest.raises(ValueError, match="without a regularizer: use TrackedLBFGS"):
        model.solve(zero, zero, **given, method=TrackedDescent(rule=rule))
    with pytest.raises(ValueError, match="project and regularizer must not be given"):
        AugmentedDEQ(cell, misfit, project=abs, regularizer=L1Norm(1.0))
    with pytest.raises(TypeError, match=r"must have a method prox\(v, alpha\)"):
        AugmentedDEQ(cell, misfit, regularizer=abs)


class Moreau:
    """‖x‖₁ by the projection of x/α, and the α that it was asked for."""

    def __init__(self):
        self.alphas = []

    def __call__(self, x):
        return abs(x).sum(-1)

    def prox(self, v, alpha):
        alpha = torch.as_tensor(alpha)
        self.alphas.append(alpha.flatten())
        return v - alpha * (v / alpha).clamp(-1.0, 1.0)


def test_a_start_where_the_regularizer_is_infinite():
    """Of positive inputs alone: the other sample stays where it begins."""

    class Positive(L1Norm):
        def __call__(self, x):
            return torch.where((x < 0).any(-1), torch.inf, super().__call__(x))

        def prox(self, v, alpha):
            return super().prox(v, alpha).clamp(min=0.0)

    y = torch.tensor([[4.0, -1.0, 0.1], [4.0, -1.0, 0.1]], dtype=torch.float64)
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: ((z - y) ** 2).sum(-1),
        regularizer=Positive(1.0),
    )
    start = torch.tensor([[-1.0], [2.0]], dtype=torch.float64).expand(2, 3)
    sol = model.solve(0 * y, start, params=None, y=y)
    expected = torch.tensor([[1.875, 0.0, 0.0]], dtype=torch.float64).expand(2, 3)
    torch.testing.assert_close(sol.x, expected, rtol=1e-6, atol=1e-8)


def test_no_proximal_operator_is_asked_for_nothing():
    """α is positive, and that of a sample that has ended stays what it was."""
    y = torch.tensor([[4.0, -1.0, 0.1], [40.0, 1.0, 7.0]], dtype=torch.float64)
    slow = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 1e-2, 1e2], dtype=torch.float64)
    given = Moreau()
    model = AugmentedDEQ(
        lambda z, x, p: 0.5 * z + x,
        lambda z, x, y, p: ((1.0 + slow * (weights - 1.0)) * (z - y) ** 2).sum(-1),
        regularizer=given,
    )
    sol = model.solve(0 * y, 0 * y, params=None, y=y, rtol=1e-6, max_steps=500)
    assert bool(sol.joint.converged.all())
    assert int(sol.joint.steps[1]) > int(sol.joint.steps[0])
    # The spectral step, and what is a rounding error beside it.
    assert float(torch.cat(given.alphas).min()) > 1e-20
    scale = 1.0 + slow * (weights - 1.0)
    expected = SoftThreshold(1.0)(0.5 * y, 1.0 / (8.0 * scale))
    torch.testing.assert_close(sol.x, expected, rtol=1e-3, atol=1e-4)
