"""Splitting a state into leaves changes nothing but the order of sums."""

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import pytest

import fixedpoint as fp

FIRST_ORDER = [fp.Picard(), fp.Anderson(memory=5), fp.Anderson(memory=3, damping=0.5)]


class Pair(NamedTuple):
    """A container with names."""

    left: object
    right: object


def _split_pair(xp, z):
    return Pair(z[:5], (z[5:],))


def _join_pair(xp, s):
    return xp.concat([s.left, s.right[0]])


def _split_dict(xp, z):
    return {"b": (z[:4], [xp.reshape(z[4:8], (2, 2))]), "a": z[8:]}


def _join_dict(xp, s):
    return xp.concat([s["b"][0], xp.reshape(s["b"][1][0], (4,)), s["a"]])


LAYOUTS = {
    "tuple": (lambda _, z: (z[:7], z[7:]), lambda xp, s: xp.concat(list(s))),
    "singles": (
        lambda _, z: [z[i] for i in range(12)],
        lambda xp, s: xp.stack(s),
    ),
    "named": (_split_pair, _join_pair),
    "nested": (_split_dict, _join_dict),
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def layout(request):
    return LAYOUTS[request.param]


def whole_and_parts(case, layout, contraction):
    """A map, its start and its arguments, for a vector and for the split state."""
    split, join = layout
    xp = case.xp
    W = contraction(12, 0.9)
    b, z0 = np.random.default_rng(5).standard_normal((2, 12))
    f = lambda z, W, b: xp.tanh(W @ z + b)
    parts = lambda s, W, b: split(xp, f(join(xp, s), W, b))
    return (f, z0, (W, b)), (parts, split(xp, case.asarray(z0)), (W, b))


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_the_first_ten_iterates_agree(xp_case, layout, contraction, solver):
    whole, parts = whole_and_parts(xp_case, layout, contraction)
    references = xp_case.iterates(*whole, solver=solver)
    split = xp_case.iterates(*parts, solver=solver)
    assert len(references) == len(split) == 10
    for reference, state in zip(references, split, strict=True):
        joined = xp_case.to_numpy(layout[1](xp_case.xp, xp_case.tree(state)))
        assert np.linalg.norm(joined - reference) <= 1e-10 * np.linalg.norm(reference)


def assert_the_answers_agree(case, layout, contraction, solver):
    settings = {"solver": solver, "rtol": 1e-10, "atol": 0.0}
    whole, parts = (
        case.solve(*problem, **settings)
        for problem in whole_and_parts(case, layout, contraction)
    )
    assert bool(whole.converged)
    assert bool(parts.converged)
    joined = case.to_numpy(layout[1](case.xp, parts.value))
    np.testing.assert_allclose(joined, case.to_numpy(whole.value), rtol=0, atol=3e-9)


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_the_answers_agree(eager_case, layout, contraction, solver):
    assert_the_answers_agree(eager_case, layout, contraction, solver)


@pytest.mark.parametrize("jit_case", ["jax-jit"], indirect=True)
def test_the_answers_agree_under_jit(jit_case, layout, contraction):
    assert_the_answers_agree(
        jit_case, layout, contraction, fp.Anderson(memory=3, damping=0.5)
    )


def in_parts(layout, xp, function):
    """`function` on split states, its last two arguments left as they are."""
    split, join = layout
    return lambda *args: split(
        xp, function(*(join(xp, s) for s in args[:-2]), *args[-2:])
    )


@pytest.mark.parametrize(
    ("by", "layout"),
    [(fp.fixed_point, "nested"), (fp.root, "named")],
    indirect=["layout"],
)
def test_the_first_ten_iterates_of_every_solver_agree(
    eager_case, contraction, layer, solver, by, layout
):
    case, xp = eager_case, eager_case.xp
    f, A = layer(xp, by is fp.root), contraction(12, 0.95)
    b, z0 = np.random.default_rng(5).standard_normal((2, 12))
    exact = case.exact(f)
    whole = case.iterates(f, z0, (A, b), by=by, solver=solver, **exact)
    split, join = layout
    exact = {name: in_parts(layout, xp, jvp) for name, jvp in exact.items()}
    parts = case.iterates(
        in_parts(layout, xp, f),
        split(xp, case.asarray(z0)),
        (A, b),
        by=by,
        solver=solver,
        **exact,
    )
    assert len(whole) > 1
    # Rounding alone may end one before another.
    for one, many in zip(whole, parts, strict=False):
        assert np.linalg.norm(join(np, many) - one) <= 1e-10 * np.linalg.norm(one)


def test_the_container_comes_back_as_it_was(jit_case):
    z0 = {"b": Pair(np.zeros(2), (np.zeros((1, 3)), [])), "a": None}
    f = lambda z: {
        "b": Pair(0.5 * z["b"].left + 1, (0.25 * z["b"].right[0] + 3, [])),
        "a": None,
    }
    value = jit_case.solve(f, z0).value
    assert set(value) == {"a", "b"}
    assert value["a"] is None
    assert isinstance(value["b"], Pair)
    assert value["b"].right[1] == []
    np.testing.assert_allclose(
        jit_case.to_numpy(value["b"].left), [2.0, 2.0], rtol=1e-5
    )
    np.testing.assert_allclose(
        jit_case.to_numpy(value["b"].right[0]), [[4.0] * 3], rtol=1e-5
    )


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_keys_keep_the_order_of_the_start(eager_case, kind, by):
    """For f, for the caller and inside of containers, whatever order f returns."""
    case, seen = eager_case, []
    if case.name == "jax" and kind is dict:
        pytest.skip("JAX sorts the keys of a dict")

    def f(z, p):
        seen.append((list(z), list(z["b"]), list(p)))
        image = {"y": 0.5 * z["b"]["x"] + p["s"], "x": 0.25 * z["b"]["y"] + p["r"]}
        if by is fp.root:
            image = {name: z["b"][name] - image[name] for name in "yx"}
        new = [("a", 0.5 * z["a"]), ("b", kind(image))]
        return kind(new[::-1] if case.name == "jax" else new)

    number = lambda x: case.asarray(np.array([x]))
    inner = kind([("y", number(0.0)), ("x", number(1.0))])
    z0 = kind([("b", inner), ("a", number(1.0))])
    p = kind([("s", number(1.0)), ("r", number(2.0))])
    sol = by(f, z0, (p,), callback=lambda _, z, __: seen.append((list(z),)))
    assert all(keys[0] == ["b", "a"] for keys in seen)
    assert seen[0] == (["b", "a"], ["y", "x"], ["s", "r"])
    for found in (sol.value, sol.linearize()(sol.value)):
        assert type(found) is type(found["b"]) is kind
        assert (list(found), list(found["b"])) == (["b", "a"], ["y", "x"])
    values = [case.to_numpy(sol.value["b"][name]) for name in "yx"]
    np.testing.assert_allclose(values, [[16 / 7], [18 / 7]], rtol=1e-5)


@pytest.mark.parametrize("solver", FIRST_ORDER)
def test_each_leaf_keeps_its_dtype_and_shape(jit_case, solver):
    xp = jit_case.xp
    z0 = {
        "a": np.zeros((2, 1, 3)),
        "b": np.zeros(2, dtype=np.float32),
        "c": np.zeros((), dtype=np.complex128),
    }

    wide = (
        (lambda b: b.double())
        if jit_case.name == "torch"
        else lambda b: xp.astype(b, xp.float64)
    )
    f = lambda z: {
        "a": 0.5 * z["a"] + 1.0 + 0.1 * xp.sum(wide(z["b"])),
        "b": 0.25 * z["b"] + 3.0,
        "c": -0.5j * z["c"] + 1.0,
    }
    sol = jit_case.solve(f, z0, solver=solver)
    assert bool(sol.converged)
    for name, leaf in z0.items():
        array = jit_case.to_numpy(sol.value[name])
        assert (array.dtype, array.shape) == (leaf.dtype, leaf.shape)
    np.testing.assert_allclose(jit_case.to_numpy(sol.value["b"]), [4.0, 4.0], rtol=1e-4)
    np.testing.assert_allclose(
        jit_case.to_numpy(sol.value["a"]), np.full((2, 1, 3), 3.6), 1e-4
    )
    np.testing.assert_allclose(complex(sol.value["c"]), 1 / (1 + 0.5j), rtol=1e-4)


def test_every_solver_keeps_dtypes_and_shapes(xp_case, solver):
    assert_dtypes_and_shapes_are_kept(xp_case, solver, fp.fixed_point)


def test_every_solver_of_roots_keeps_dtypes_and_shapes(eager_case, solver):
    assert_dtypes_and_shapes_are_kept(eager_case, solver, fp.root)


def assert_dtypes_and_shapes_are_kept(case, solver, by):
    z0 = {
        "a": np.zeros((2, 1, 3)),
        "b": np.ones(2, np.float32),
        "c": np.zeros((), complex),
    }
    answer = {"a": 2.0, "b": 4.0, "c": 2.0 + 2.0j}
    image = lambda z: {
        "a": 0.5 * z["a"] + 1.0,
        "b": 0.25 * z["b"] + 3.0,
        "c": -0.5 * z["c"] + 3 + 3j,
    }
    residual = lambda z: {name: z[name] - leaf for name, leaf in image(z).items()}
    f = image if by is fp.fixed_point else residual
    sol = case.solve(f, z0, by=by, solver=solver, rtol=1e-5, max_steps=100)
    assert bool(sol.converged)
    for name, leaf in z0.items():
        array = case.to_numpy(sol.value[name])
        assert (array.dtype, array.shape) == (leaf.dtype, leaf.shape)
        np.testing.assert_allclose(array, answer[name], rtol=1e-3)


def test_inner_products_are_global(xp_case, contraction):
    """Steps of a solver that mixed leaf by leaf would differ on a map that couples the
    leaves.
    """
    A = contraction(6, 0.95, 3)
    f = lambda s, A: tuple(
        A[3 * i : 3 * i + 3, :3] @ s[0] + A[3 * i : 3 * i + 3, 3:] @ s[1] + 1.0
        for i in (0, 1)
    )
    sol = xp_case.solve(
        f,
        (np.zeros(3), np.zeros(3)),
        (A,),
        solver=fp.Anderson(memory=6),
        rtol=1e-9,
        test="residual",
    )
    exact = np.linalg.solve(np.eye(6) - A, np.ones(6))
    assert int(sol.steps) <= 7
    joined = np.concatenate([xp_case.to_numpy(leaf) for leaf in sol.value])
    np.testing.assert_allclose(joined, exact, rtol=1e-7)
