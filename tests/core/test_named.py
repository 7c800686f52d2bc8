"""Solvers and adjoints by name: the same as the objects, wherever one is given."""

import numpy as np
import pytest
import torch

import fixedpoint as fp
import fixedpoint_jax
import fixedpoint_torch
from fixedpoint.solvers import Solver

PUBLIC = [getattr(fp, name) for name in fp.__all__]
CLASSES = [entry for entry in PUBLIC if isinstance(entry, type)]
SOLVERS = [
    kind for kind in CLASSES if issubclass(kind, Solver) and kind is not fp.Fallback
]
ADJOINTS = [
    kind for kind in CLASSES if issubclass(kind, fp.Adjoint) and kind is not fp.Adjoint
]
LAYERS = [
    lambda **settings: fixedpoint_torch.DEQ(lambda z, x: 0.5 * z + x, **settings),
    lambda **settings: fixedpoint_jax.DEQ(lambda z, x: 0.5 * z + x, **settings),
]


def f(z):
    return np.cos(z) + 0.1


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("spelled", [str, str.lower, str.upper])
def test_each_public_solver_is_found_by_the_name_of_its_class(kind, spelled):
    expected = fp.fixed_point(f, np.ones(3), solver=kind())
    found = fp.fixed_point(f, np.ones(3), solver=spelled(kind.__name__))
    assert found.methods == expected.methods
    np.testing.assert_array_equal(found.value, expected.value)
    assert found.work == expected.work


@pytest.mark.parametrize("name", ["newton_krylov", "Newton-Krylov", "newtonkrylov"])
def test_words_may_be_joined_in_any_way(name):
    assert fp.root(lambda x: f(x) - x, 1.0, solver=name).methods == ("NewtonKrylov",)


def slope(adjoint):
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    start = torch.tensor(1.0, dtype=torch.float64)
    f, settings = lambda z, a: a * torch.cos(z), {"solver": "broyden"}
    fp.fixed_point(f, start, (a,), adjoint=adjoint, **settings).value.backward()
    return float(a.grad)


@pytest.mark.parametrize("kind", ADJOINTS)
def test_each_public_adjoint_is_found_by_the_name_of_its_class(kind):
    assert slope(kind.__name__) == slope(kind())


def test_implicit_is_the_default_adjoint():
    assert slope("implicit") == slope(None)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_knows_the_solver_of_a_name_when_it_is_made(layer):
    made = layer(solver="Picard", adjoint="jacobian_free")
    assert made.solver == fp.Picard()
    assert made.adjoint == fp.JacobianFree()
    with pytest.raises(
        ValueError, match=r"solver must be one of anderson, .*'adnerson'"
    ):
        layer(solver="adnerson")
    with pytest.raises(ValueError, match=r"adjoint must be one of implicit, .*'exact'"):
        layer(adjoint="exact")


def test_names_inside_of_others():
    assert fp.Fallback(["picard", fp.Newton()]).sequence == (fp.Picard(), fp.Newton())
    assert fp.ImplicitAdjoint(solver="newton") == fp.ImplicitAdjoint(solver=fp.Newton())
    with pytest.raises(ValueError, match="each of solvers must be one of"):
        fp.Fallback(["steepest"])
    with pytest.raises(ValueError, match="solver must be one of"):
        fp.ImplicitAdjoint(solver="steepest")


@pytest.mark.parametrize("solve", [fp.fixed_point, fp.root])
def test_an_unknown_name_is_answered_by_those_there_are(solve):
    with pytest.raises(ValueError, match="must be one of") as raised:
        solve(f, 1.0, solver="steepest")
    listed = (
        str(raised.value).partition(" one of ")[2].partition(", got")[0].split(", ")
    )
    assert len(listed) == len(SOLVERS)
    for name in listed:
        assert fp.fixed_point(f, 1.0, solver=name).converged
