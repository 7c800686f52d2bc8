"""Namespaces that lack what the standard leaves open, or a part of the standard."""

import array_api_strict as strict
import numpy as np
import pytest

import fixedpoint as fp
from fixedpoint.backend import Backend
from fixedpoint.elimination import gauss_jordan
from fixedpoint.spaces import space_of


class Thin:
    """array-api-strict, as ndonnx and MLX are: without complex numbers of double
    precision, an extension, a name.
    """

    lacking = ("complex128", "linalg", "bool")

    def __getattr__(self, name):
        if name in self.lacking:
            raise AttributeError(name)
        return getattr(strict, name)


class Alone:
    """A dtype that compares with dtypes alone, as MLX's do."""

    def __eq__(self, other):
        if not isinstance(other, Alone):
            raise TypeError(f"incompatible: {other!r}")
        return self is other

    __hash__ = object.__hash__


@pytest.fixture
def thin(monkeypatch):
    """The namespace of all arrays."""
    xp = Thin()
    monkeypatch.setattr(Backend, "namespace", lambda self, array: xp)
    return xp


@pytest.mark.parametrize(
    "solver", [fp.Anderson(memory=3), fp.Broyden(), fp.NewtonKrylov()]
)
@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_solvers_do_without(solver, by, thin):
    a = np.array([[0.9, 0.5, 0.2], [0.3, 0.6, 0.8]])
    sign = 1.0 if by is fp.root else 0.0
    sol = by(
        lambda z, a: sign * z - (2.0 * sign - 1.0) * a * strict.cos(z),
        strict.zeros((2, 3)),
        (strict.asarray(a),),
        solver=solver,
        batch_ndim=1,
        rtol=1e-10,
        norm="leaves",
    )
    z = np.asarray(sol.value)
    np.testing.assert_allclose(z, a * np.cos(z), rtol=1e-9)


def test_methods_with_a_matrix_say_what_is_missing(thin):
    with pytest.raises(TypeError, match="NewtonKrylov"):
        fp.root(lambda z: z - strict.cos(z), strict.ones(3), solver=fp.Newton())


def test_dtypes_are_compared_with_those_there_are():
    class Namespace:
        float32 = Alone()

        isdtype = staticmethod(lambda _, kind: kind == "real floating")
        finfo = staticmethod(lambda _: np.finfo(np.float32))

    class Leaf:
        dtype, shape, device = Namespace.float32, (3,), None

    class Of(Backend):
        def namespace(self, array):
            return Namespace

    assert space_of(Of(), (Leaf(),), 0).dtype is Namespace.float32


class Unread:
    """An array that NumPy takes for an object, as it does those of ndonnx."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array_namespace__(self, api_version=None):
        class Namespace:
            isdtype = staticmethod(strict.isdtype)
            reshape = staticmethod(lambda x, shape: strict.reshape(x.array, shape))

        return Namespace


@pytest.mark.parametrize(
    "entries", [[[True, False]], [[1, 2], [3, 4]], 2.5, [0.5, 1.5], [1.0 + 2.0j], []]
)
def test_arrays_that_numpy_does_not_know_are_read(entries):
    array = strict.asarray(entries)
    assert np.asarray(Unread(array)).dtype == object
    read = Backend().numpy(Unread(array))
    np.testing.assert_array_equal(read, np.asarray(array), strict=True)


def test_elimination_solves_what_needs_pivots():
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((4, 5, 5))
    matrices[0, 0, 0] = 0.0
    rights = rng.standard_normal((4, 5))
    found = gauss_jordan(strict, strict.asarray(matrices), strict.asarray(rights))
    known = np.linalg.solve(matrices, rights[..., None])[..., 0]
    np.testing.assert_allclose(np.asarray(found), known, rtol=1e-10)
