"""Squared extrapolation against its published form, and on the EM map it was made
for.
"""

import numpy as np
import pytest

import fixedpoint as fp
from fixedpoint.testing import problems

EM = problems.poisson_mixture_map()


SLOPES = np.linspace(0.1, 0.95, 5)


def slow(z):
    """A map whose Jacobian has eigenvalues between 0 and 1, as EM's has."""
    return SLOPES * z + 0.04 * np.cos(z) + 1.0


def scheme_s3(f, z, cycles, growth):
    """Varadhan and Roland's scheme S3, without a check of what it leads to."""
    bound, iterates, lengths = 1.0, [z], []
    for _ in range(cycles):
        r = f(z) - z
        v = (f(f(z)) - f(z)) - r
        alpha = -np.linalg.norm(r) / np.linalg.norm(v)
        alpha = max(min(alpha, -1.0), -bound)
        if alpha == -bound:
            bound *= growth
        z = z - 2.0 * alpha * r + alpha**2 * v
        iterates.append(z)
        lengths.append(-alpha)
    return iterates, lengths


def run(f, z0, cycles, **settings):
    """The iterates, the start included, and the solution."""
    iterates = [z0]
    sol = fp.fixed_point(
        f,
        z0,
        solver=fp.SQUAREM(**settings),
        rtol=0.0,
        atol=0.0,
        max_steps=cycles,
        on_failure="return",
        callback=lambda _, z, __: iterates.append(z.copy()),
    )
    return iterates, sol


@pytest.mark.parametrize("growth", [2.0, 4.0, 1e30])
@pytest.mark.parametrize(("f", "z0"), [(EM.function, EM.start), (slow, np.zeros(5))])
def test_steps_are_those_of_scheme_s3(growth, f, z0):
    expected, lengths = scheme_s3(f, z0, 5, growth)
    iterates, _ = run(f, z0, 5, growth=growth, tolerance=1e30)
    assert max(lengths) > 1.5
    np.testing.assert_allclose(iterates, expected, rtol=1e-9)


def test_the_first_step_is_two_of_picards():
    z0 = np.arange(5.0)
    np.testing.assert_allclose(run(slow, z0, 1)[0][1], slow(slow(z0)), rtol=1e-13)


@pytest.mark.parametrize("a", [0.9, 0.999, -0.5])
def test_one_unknown_takes_an_exact_extrapolation(a):
    """On z ↦ az + 1 the unbounded step is Steffensen's: α = 1/(1 − a), if that is above
    1.
    """
    iterates, _ = run(lambda z: a * z + 1.0, np.zeros(1), 2, growth=1e30)
    if a > 0.0:
        np.testing.assert_allclose(iterates[2], 1.0 / (1.0 - a), rtol=1e-9)
    else:
        np.testing.assert_allclose(iterates[2], (1.0 - a**4) / (1.0 - a), rtol=1e-12)


@pytest.mark.parametrize("growth", [2.0, 4.0])
def test_the_bound_grows_while_it_binds(growth):
    """On a slow map α = 1000 is wanted, and allowed step by step."""
    f = lambda z: 0.999 * z + 1.0
    for cycles in range(1, 6):
        _, sol = run(f, np.zeros(1), cycles, growth=growth)
        assert sol.state.contents.bound == min(growth**cycles, np.inf)


def test_a_step_costs_two_evaluations(counted):
    f = counted(EM.function)
    _, sol = run(f, EM.start, 7)
    assert f.calls == sol.work.f == 1 + 2 * 7


def test_it_accelerates_the_em_algorithm():
    """At its published solution, in a small part of EM's own evaluations."""
    settings = {"rtol": 0.0, "atol": 1e-9, "max_steps": 20_000}
    sol = fp.fixed_point(EM.function, EM.start, solver=fp.SQUAREM(), **settings)
    plain = fp.fixed_point(EM.function, EM.start, solver=fp.Picard(), **settings)
    np.testing.assert_allclose(sol.value, EM.roots[0], rtol=1e-5)
    assert 10 * sol.work.f < plain.work.f


def nan(z):
    return z * np.nan


def undefined(z):
    raise fp.DomainError("beyond the wall")


def steep(z):
    return 1e9 * z


@pytest.mark.parametrize("beyond", [nan, undefined, steep])
def test_where_the_extrapolation_fails_the_plain_point_is_taken(beyond):
    """From z₁ the step with α = 4 leads beyond a wall; the bound on α falls."""
    plain = lambda z: 0.9 * z + 1.0
    expected, lengths = scheme_s3(plain, np.zeros(1), 2, 4.0)
    assert lengths[1] == 4.0
    assert expected[2] > 5.0
    iterates, sol = run(
        lambda z: plain(z) if z[0] <= 5.0 else beyond(z), np.zeros(1), 2
    )
    np.testing.assert_allclose(iterates[2], plain(expected[1]), rtol=1e-13)
    assert sol.state.contents.bound == 1.0
    np.testing.assert_allclose(
        sol.residual_norm, plain(iterates[2]) - iterates[2], rtol=1e-12
    )


def test_samples_have_their_own_lengths():
    a = np.array([[0.2, 0.1], [0.9, 0.8], [0.99, 0.5]])
    f = lambda z, a: a * np.sin(z) + 1.0
    settings = {"solver": fp.SQUAREM(), "batch_ndim": 1, "rtol": 1e-10}
    sol = fp.fixed_point(f, 0.0 * a, (a,), **settings)
    for i in range(3):
        alone = fp.fixed_point(f, 0.0 * a[i : i + 1], (a[i : i + 1],), **settings)
        np.testing.assert_array_equal(sol.value[i], alone.value[0])
        assert sol.steps[i] == alone.steps[0]


@pytest.mark.parametrize("name", ["growth", "tolerance"])
@pytest.mark.parametrize("value", [1.0, 0.0, -2.0, float("nan"), float("inf")])
def test_settings_must_be_finite_and_exceed_one(name, value):
    with pytest.raises(ValueError, match=name):
        fp.SQUAREM(**{name: value})


@pytest.mark.parametrize("q", [0.999, 0.9993923, 0.9999])
def test_a_slow_map_whose_curvature_is_lost_in_rounding(q):
    sol = fp.fixed_point(lambda z: q * z + 1.0, 0.0, solver=fp.SQUAREM())
    assert sol.steps <= 20
    np.testing.assert_allclose(sol.value, 1.0 / (1.0 - q), rtol=1e-8)
