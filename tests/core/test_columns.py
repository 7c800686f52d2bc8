"""The columns that methods remember, against matrices written out."""

import numpy as np
import pytest

from fixedpoint.adapters import backend_of
from fixedpoint.columns import Columns, products
from fixedpoint.spaces import space_of

# The entries of a leaf of one sample, and its dtype.
LEAVES = [((3,), np.float64), ((2, 2), np.complex128), ((), np.float64)]
WIDTH = 4


def random(lead, seed):
    """A leaf of each kind, with these axes in front."""
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((2, *lead, *shape)) for shape, _ in LEAVES]
    pairs = zip(parts, LEAVES, strict=True)
    return tuple(
        a + 1j * b if dtype is np.complex128 else a for (a, b), (_, dtype) in pairs
    )


def dense(case, lead, leaves):
    """The real entries of leaves in one axis, after those in front."""
    rows = [case.to_numpy(leaf).reshape(*lead, -1) for leaf in leaves]
    parts = [[row.real, row.imag] if np.iscomplexobj(row) else [row] for row in rows]
    return np.concatenate([part for pair in parts for part in pair], axis=-1)


@pytest.fixture(params=[(), (2,), (2, 1)], ids=["one", "batch", "batches"])
def given(request, xp_case):
    """A library, the batch, its space, some columns, and two vectors."""
    lead = request.param
    columns, u, v = (
        xp_case.tree(random(axes, seed))
        for seed, axes in enumerate([(*lead, WIDTH), lead, lead])
    )
    space = space_of(backend_of(list(u), ["z"] * len(u)), u, len(lead))
    return xp_case, lead, space, Columns(columns), u, v


def test_products_are_those_of_the_transpose(given):
    case, lead, space, columns, u, v = given
    Q = dense(case, (*lead, WIDTH), columns.leaves)
    found = columns.transposed_times(space, v)
    expected = np.einsum("...kn,...n->...k", Q, dense(case, lead, v))
    np.testing.assert_allclose(case.to_numpy(found), expected, rtol=1e-12, atol=1e-12)
    along, dot = products(space, (columns, v), (u, v))
    np.testing.assert_array_equal(case.to_numpy(along), case.to_numpy(found))
    expected = np.einsum("...n,...n->...", dense(case, lead, u), dense(case, lead, v))
    np.testing.assert_allclose(case.to_numpy(dot), expected, rtol=1e-12)


@pytest.mark.parametrize("ours", [False, True])
def test_combinations_are_added_and_subtracted(given, ours):
    case, lead, space, columns, u, _ = given
    Q, before = dense(case, (*lead, WIDTH), columns.leaves), dense(case, lead, u)
    c = np.random.default_rng(3).standard_normal((*lead, WIDTH))
    change = np.einsum("...kn,...k->...n", Q, c)
    for by, sign in ((columns.added_to, 1.0), (columns.subtracted_from, -1.0)):
        found = by(space, space.copy(u), case.asarray(c), ours=ours)
        expected = before + sign * change
        np.testing.assert_allclose(dense(case, lead, found), expected, atol=1e-12)
    np.testing.assert_array_equal(dense(case, lead, u), before)


def test_a_column_that_is_pushed_is_read_and_stands_alone(given):
    case, lead, space, columns, u, v = given
    Q = dense(case, (*lead, WIDTH), columns.leaves).copy()
    half = space.full(0.5)
    columns = columns.copy().push(space, 1, u)
    columns, scaled = columns.push_scaled(space, 2, half, v)
    columns, total = columns.placed(space, 3, u, v, by=lambda a, b: a + b)
    new = (u, u), (scaled, space.scale(0.5, v)), (total, space.add(u, v))
    for slot, (found, expected) in enumerate(new, start=1):
        Q[..., slot, :] = dense(case, lead, expected)
        np.testing.assert_array_equal(dense(case, lead, found), Q[..., slot, :])
    np.testing.assert_array_equal(dense(case, (*lead, WIDTH), columns.leaves), Q)
    found = dense(case, lead, columns.column(space, 2))
    np.testing.assert_array_equal(found, Q[..., 2, :])


def test_some_columns_and_more(given):
    case, lead, space, columns, _, _ = given
    Q = dense(case, (*lead, WIDTH), columns.leaves)
    wider = columns.widened(space, 2)
    assert wider.width(space) == WIDTH + 2
    found = dense(case, (*lead, WIDTH + 2), wider.leaves)
    np.testing.assert_array_equal(found[..., :WIDTH, :], Q)
    assert np.all(found[..., WIDTH:, :] == 0.0)
    few = columns.first(space, 2)
    if space.backend.compiles:
        assert few is columns
    else:
        found = dense(case, (*lead, 2), few.leaves)
        np.testing.assert_array_equal(found, Q[..., :2, :])
    assert columns.first(space, WIDTH) is columns
