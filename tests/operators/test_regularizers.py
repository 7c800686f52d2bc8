"""Convex functions of an input by their proximal operators."""

import numpy as np
import pytest

from fixedpoint.operators import InputStep, L1Norm, LocalGradients


def test_an_exact_solution_has_no_residual(xp_case):
    """Whatever the step and the unit: at it each input is shrunk by what its gradient
    moved it by.
    """
    gradient, x = np.array([0.3, -0.3, 0.1, 2.0]), np.array([-5.0, 1e-3, 0.0, 0.0])

    def residual(step_size, **terms):
        block = InputStep(step_size, L1Norm(0.3, batch_ndim=0).prox)
        objective, slope = map(xp_case.asarray, (np.array(1.0), gradient))
        local = LocalGradients(None, objective, None, slope, **terms)
        return xp_case.to_numpy(block.evaluate(xp_case.asarray(x), local).residual)

    for found in (
        residual(1e-3),
        residual(7.0),
        residual(1.0, input_terms=xp_case.asarray(abs(gradient))),
    ):
        np.testing.assert_allclose(found, [0.0, 0.0, 0.0, -1.7], rtol=1e-12, atol=1e-12)


def test_the_norm_of_containers(xp_case):
    """Of all leaves, sample by sample; the proximal operator has a number or one for
    each.
    """
    a, b = np.array([[1.0, -3.0], [0.0, 0.5]]), np.array([2.0, -0.1])
    x = xp_case.tree({"a": a, "b": b})
    h = L1Norm(0.5)
    np.testing.assert_allclose(xp_case.to_numpy(h(x)), [3.0, 0.3])
    alphas = xp_case.tree({"a": np.array([[2.0], [1.0]]), "b": np.array([2.0, 1.0])})
    for alpha, shrunk in (
        (2.0, ([[0.0, -2.0], [0.0, 0.0]], [1.0, 0.0])),
        (alphas, ([[0.0, -2.0], [0.0, 0.0]], [1.0, 0.0])),
    ):
        found = h.prox(x, alpha)
        np.testing.assert_allclose(xp_case.to_numpy(found["a"]), shrunk[0])
        np.testing.assert_allclose(xp_case.to_numpy(found["b"]), shrunk[1])


def test_a_weight_that_is_none():
    with pytest.raises(ValueError, match="weight must be positive"):
        L1Norm(-1.0)
