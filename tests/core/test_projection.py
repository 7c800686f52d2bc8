"""Trial points that are projected before f is evaluated there."""

import numpy as np
import pytest

import fixedpoint as fp

FIRST_ORDER = [fp.Picard(), fp.Anderson(memory=4), fp.Broyden(), fp.SQUAREM()]


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_the_map_is_evaluated_at_projected_points_alone(solver):
    seen = []

    def f(z):
        seen.append(z)
        return 2.0 - 1.5 * np.log(z)

    sol = fp.fixed_point(
        f,
        np.full(2, 4.0),
        solver=solver,
        project=lambda z: np.clip(z, 0.5, 4.0),
        on_failure="return",
        max_steps=50,
    )
    assert np.min(seen) >= 0.5
    assert np.max(seen) <= 4.0
    assert np.all((sol.value >= 0.5) & (sol.value <= 4.0))
    np.testing.assert_allclose(
        sol.residual_norm, np.linalg.norm(f(sol.value) - sol.value), rtol=1e-12
    )


@pytest.mark.parametrize("solver", [fp.Newton(), fp.NewtonKrylov(), fp.Broyden()])
def test_projected_steps_reach_a_root_inside(solver):
    """Newton's step from 5 leads below zero, where the projection holds it at 0.1."""
    F = lambda x: {"x": np.log(x["x"])}
    sol = fp.root(
        F,
        {"x": np.array([5.0])},
        solver=solver,
        rtol=1e-8,
        project=lambda x: {"x": np.maximum(x["x"], 0.1)},
    )
    np.testing.assert_allclose(sol.value["x"], 1.0, atol=1e-6)


def test_a_projection_must_keep_the_structure():
    with pytest.raises(ValueError, match="project"):
        fp.fixed_point(lambda z: 0.5 * z, np.ones(2), project=lambda z: z[:1])
