"""Adjoint systems that an iterative method solves wrongly, or not at all."""

import numpy as np
import pytest
import scipy.linalg
import torch

import fixedpoint as fp

torch64 = {"dtype": torch.float64}


def close(found, expected, rtol):
    """In the norm of each sample, in whose units both are."""
    error = np.linalg.norm(found - expected, axis=-1)
    assert np.all(error <= rtol * np.linalg.norm(expected, axis=-1)), error


@pytest.mark.parametrize("size", [16, 20])
@pytest.mark.parametrize("seed", range(5))
def test_cotangents_that_are_zero_are_no_failure(size, seed):
    """What elimination leaves in place of a zero is rounding of the other entries."""
    rng = np.random.default_rng(seed)
    upper = 10.0 * np.triu(rng.standard_normal((size, size)), 1) / np.sqrt(size)
    A = np.diag(rng.uniform(0.1, 1.9, size)) - upper
    v = np.eye(size)[size // 2]
    vjp = lambda x, b: lambda w: (A.T @ w, -w)
    (found,) = fp.implicit_vjp(vjp, np.ones(size), v, (np.ones(size),), is_root=True)
    expected = scipy.linalg.solve_triangular(A.T, v, lower=True)
    assert not expected[: size // 2].any()
    close(found, expected, 1e-14 * np.linalg.cond(A))


@pytest.mark.parametrize("apart", [0, 8])
def test_what_elimination_makes_of_coupled_samples_is_no_gradient(apart):
    """No sample has a matrix of its own, and of some seeds GMRES finds no solution."""
    outcomes = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        units = torch.tensor(10.0 ** rng.uniform(-apart, apart, 6))
        A = torch.tensor(np.eye(6) + 0.2 * rng.standard_normal((6, 6)))
        b, v = torch.tensor(rng.standard_normal((2, 3, 6)))
        coupled = lambda y, A=A: (y - 0.5 * y.mean(0)) @ A.T
        F = lambda x, b, u=units, coupled=coupled: u * (coupled(x / u) - b)
        whole = torch.kron(torch.eye(3, **torch64) - 0.5 / 3.0, A)
        x = units * torch.linalg.solve(whole, b.flatten()).reshape(3, 6)
        b.requires_grad_()
        sol = fp.root(F, x, (b,), batch_ndim=1, max_steps=0, on_failure="return")
        try:
            (found,) = torch.autograd.grad(sol.value, b, v / units)
        except fp.ConvergenceError:
            outcomes.append("raised")
            continue
        expected = torch.linalg.solve(whole.T, v.flatten()).reshape(3, 6)
        close(found.numpy(), expected.numpy(), 1e-5)
        outcomes.append("right")
    assert outcomes.count("right") >= 3
