"""Bad input of which the language or an array library would say too little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import torch

import fixedpoint as fp
import fixedpoint_jax
import fixedpoint_torch


@pytest.mark.parametrize(
    ("inverse", "x0", "kind"),
    [
        (np.eye(3), np.ones(3), "numpy.ndarray"),
        (scipy.sparse.eye_array(3).tocsr(), np.ones(3), "csr_array"),
        (torch.eye(3), torch.ones(3), "torch.Tensor"),
        (jnp.eye(3), jnp.ones(3), "jax.Array"),
        (None, np.ones(3), "NoneType"),
    ],
)
def test_a_preconditioner_returns_a_function(inverse, x0, kind):
    says = rf"preconditioner must return a function v ↦ Pv.* got \S*{kind}: for the mat"
    with pytest.raises(TypeError, match=says):
        fp.root(
            lambda x: x**3 - 8.0,
            x0,
            solver=fp.NewtonKrylov(),
            preconditioner=lambda x: inverse,
        )


def test_the_preconditioner_of_an_adjoint_returns_a_function():
    adjoint = fp.ImplicitAdjoint(preconditioner=lambda z, a: torch.eye(2))
    a = torch.ones(2, requires_grad=True)
    sol = fp.fixed_point(
        lambda z, a: 0.5 * torch.cos(a * z), torch.ones(2), (a,), adjoint=adjoint
    )
    with pytest.raises(TypeError, match="preconditioner must return a function"):
        sol.value.sum().backward()


@pytest.mark.parametrize("make", [fp.Map, fp.ImplicitAdjoint])
@pytest.mark.parametrize(
    "inverse",
    [
        np.eye(3),
        scipy.sparse.linalg.aslinearoperator(np.eye(3)),
        scipy.sparse.linalg.splu(scipy.sparse.eye_array(3).tocsc()),
    ],
)
def test_a_preconditioner_is_a_function(make, inverse):
    name = type(inverse).__name__
    says = f"preconditioner must be a function .*, got {name}: for the same P everywher"
    with pytest.raises(TypeError, match=says):
        make(*(np.cos,) * (make is fp.Map), preconditioner=inverse)


@pytest.mark.parametrize("xp", [np, torch, jnp])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_a_root_of_more_equations_than_unknowns(xp, lead):
    def F(x):
        return xp.concatenate([x, 2.0 * x[..., :2]], -1)

    says = (
        r"expected \(.*3,?\), got .* square systems.* scipy\.optimize\.least_squares$"
    )
    for solver in (None, fp.LevenbergMarquardt()):
        with pytest.raises(ValueError, match=says):
            fp.root(F, xp.ones((*lead, 3)), solver=solver, batch_ndim=len(lead))


def test_a_root_whose_equations_are_laid_out_otherwise():
    with pytest.raises(ValueError, match=r"expected \(3,\), got \(3, 1\)$"):
        fp.root(lambda x: x[:, None], np.ones(3))
    with pytest.raises(ValueError, match=r"expected \(3,\), got \(5,\)$"):
        fp.fixed_point(lambda x: np.ones(5), np.ones(3))


@pytest.mark.parametrize("xp", [np, torch, jnp])
def test_a_callback_that_answers_for_each_sample(xp):
    x0, callback = xp.ones((2, 1)), lambda step, x, norm: norm < 1e-3
    F = lambda x: x**3 - 8.0
    says = r"callback must return one truth value.* got \S+ of the shape \(2,"
    with pytest.raises(TypeError, match=says):
        fp.root(F, x0, batch_ndim=1, callback=callback)
    with pytest.raises(TypeError, match=says):
        fp.bracketed_root(F, 0.0 * x0, 5.0 * x0, callback=callback)
    one = fp.root(F, x0[:1], batch_ndim=1, callback=callback, on_failure="return")
    assert one.status == int(fp.Status.STOPPED)


class Half:
    def __call__(self, z, *x):
        return 0.5 * z


NOT_MEANT = [
    (np.linalg, "the module numpy.linalg: give a function of it"),
    ((Half(),), "a tuple of Half"),
    ([Half(), 3], "a list of Half, int"),
    ((), "a tuple of nothing"),
    ("cos", "str"),
]


@pytest.mark.parametrize(("f", "got"), NOT_MEANT)
def test_what_came_in_place_of_a_function(f, got):
    for call in (fp.fixed_point, fp.root, fp.steps, fp.Map):
        with pytest.raises(TypeError, match=f"^[fF] must be callable, got {got}$"):
            call(f, *(1.0,) * (call is not fp.Map))
    with pytest.raises(TypeError, match=f"^F must be callable, got {got}$"):
        fp.bracketed_root(f, 0.0, 1.0)
    for layer in (fixedpoint_torch.DEQ, fixedpoint_jax.DEQ):
        says = f"^cell must be a function or a module, got {got}$"
        with pytest.raises(TypeError, match=says):
            layer(f)


@pytest.mark.parametrize("kind", [Half, torch.nn.Linear])
def test_a_class_in_place_of_its_object(kind):
    says = f"got the class {kind.__name__}: give {kind.__name__}"
    with pytest.raises(TypeError, match=says):
        fp.fixed_point(kind, torch.ones(2))


def test_a_class_may_be_a_function():
    assert float(fp.fixed_point(np.float64, 1.0).value) == 1.0


def test_jax_may_put_anything_in_place_of_a_cell():
    layer = fixedpoint_jax.DEQ(jax.tree_util.Partial(lambda w, z, x: w * z, 0.5))
    leaves, structure = jax.tree.flatten(layer, is_leaf=lambda part: part is layer.cell)
    assert jax.tree.unflatten(structure, [None] * len(leaves)).cell is None
    assert jax.tree.map(lambda w: 2.0 * w, layer).cell.args == (1.0,)


@pytest.mark.parametrize(
    ("a", "remedy"),
    [(torch.tensor(2.0), "torch.as_tensor"), (jnp.asarray(2.0), "jnp.asarray")],
)
@pytest.mark.parametrize("lower", [0.0, [0.0, 1.0]])
def test_plain_ends_with_arguments_of_another_library(a, remedy, lower):
    says = rf"F must return an array for lower.* Give lower as {remedy}\(...\)"
    with pytest.raises(TypeError, match=says):
        fp.bracketed_root(lambda x, a: a * a.reshape(1) - 4.0, lower, 4.0, (a,))


def test_ends_and_arguments_that_cannot_be_combined():
    with pytest.raises(TypeError) as caught:
        fp.bracketed_root(lambda x, a: x - a, 0.0, 4.0, (torch.tensor(2.0),))
    note = "lower is a numpy.ndarray, args[0] a torch.Tensor. Give lower as torch.as_t"
    assert caught.value.__notes__[0].startswith(note)


@pytest.mark.parametrize("of", [tuple, list])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_equations_may_come_in_a_list_or_a_tuple(of, dtype):
    sol = fp.root(lambda x: of((x[0] - 1, x[1] - x[0])), np.zeros(2, dtype))
    assert sol.value.dtype == dtype
    assert np.allclose(sol.value, 1.0)


@pytest.mark.parametrize(
    ("xp", "name"), [(np, "np.stack"), (torch, "torch.stack"), (jnp, "jnp.stack")]
)
def test_arrays_in_a_list_in_place_of_one(xp, name):
    with pytest.raises(ValueError, match=rf"list with 2 leaves\. .* by {name}$"):
        fp.root(lambda x: [x[0], x[1]], xp.ones((2, 3)))
    with pytest.raises(ValueError, match=f"by {name}, or .* has_aux=True$"):
        fp.fixed_point(lambda z: (0.5 * z, {"steps": 1}), xp.ones(3))


def notes_on_a_number(F, x0):
    with pytest.raises((IndexError, TypeError)) as caught:
        fp.root(F, x0)
    notes = getattr(caught.value, "__notes__", ())
    return [note for note in notes if note.startswith("x0 is a ")]


@pytest.mark.parametrize("one", [1.0, torch.ones(()), jnp.asarray(1.0)])
@pytest.mark.parametrize("F", [lambda x: x[0], lambda x: [*x]])
def test_a_number_is_not_a_vector_of_one(F, one):
    (note,) = notes_on_a_number(F, one)
    assert note.endswith("For a vector of one entry give an array of one, or a list")


def test_a_tuple_is_a_container():
    for F in (lambda x: x**2 - 2.0, lambda x: 2.0 * x):
        (note,) = notes_on_a_number(F, (1.0, 2.0))
        assert note.endswith("For a vector give an array, or a list of numbers")


def test_other_errors_of_a_number_are_let_alone():
    assert not notes_on_a_number(lambda x: [1.0][int(x)], 3.0)
    assert not notes_on_a_number(lambda x: x + None, 3.0)


def test_a_number_as_the_start_of_an_array():
    a = np.array([1.0, 8.0])
    for by, name in ((fp.root, "x0"), (fp.fixed_point, "z0")):
        with pytest.raises(ValueError, match=f"Then give {name} its shape$"):
            by(lambda x, a: 0.5 * x + a, 1.0, (a,))


@pytest.mark.parametrize("xp", [np, torch])
def test_a_list_in_place_of_a_tuple(xp):
    with pytest.raises(
        ValueError, match=r"z0, a tuple with .* it returned list with 2"
    ):
        fp.fixed_point(lambda z: [0.5 * z[0], z[1]], (xp.ones(2), xp.ones(3)))


class Table:
    """What NumPy makes an array of, like a table of pandas, but is none."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(2)


def test_a_table_in_place_of_an_array():
    with pytest.raises(
        TypeError, match=r"got .*Table\. Give it as np\.asarray"
    ) as told:
        fp.fixed_point(lambda z: z, Table())
    assert not hasattr(told.value, "__notes__")
    with pytest.raises(
        TypeError, match=r"^f must .* Return it as np\.asarray\(\.\.\.\)$"
    ):
        fp.fixed_point(lambda z: Table(), np.ones(2))
