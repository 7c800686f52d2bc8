"""The equilibrium layer on JAX, against derivatives of the unrolled iteration."""

import copy
import dataclasses
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import fixedpoint as fp
import fixedpoint_jax as fj

PICARD = {"solver": fp.Picard(), "adjoint": fp.ImplicitAdjoint(solver=fp.Picard())}
TIGHT = PICARD | {"rtol": 1e-13, "atol": 1e-13}


@partial(jax.tree_util.register_dataclass, data_fields=["W", "b"], meta_fields=[])
@dataclasses.dataclass
class Cell:
    """A module that is a pytree, as those of Equinox and of Flax NNX are."""

    W: jax.Array
    b: jax.Array

    def __call__(self, z, x):
        return jnp.tanh(z @ self.W + self.b + x)


@partial(jax.tree_util.register_dataclass, data_fields=["W", "count"], meta_fields=[])
@dataclasses.dataclass
class Counting:
    """A module that writes to itself, as those with statistics or random masks do."""

    W: jax.Array
    count: jax.Array

    def __call__(self, z, x):
        self.count = self.count + 1
        return jnp.tanh(z @ self.W + x + jnp.cos(self.count))


def function(z, x, params):
    return jnp.tanh(z @ params["W"] + params["b"] + x)


def arrays(n=4):
    rng = np.random.default_rng(0)
    W = rng.standard_normal((n, n))
    return {
        "W": jnp.asarray(0.6 * W / np.linalg.norm(W, 2)),
        "b": jnp.asarray(rng.random(n)),
    }


def data(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape or (3, 4)))


@pytest.fixture(scope="module")
def cell():
    return Cell(**arrays())


def unrolled(cell, z, *inputs, steps=120):
    return jax.lax.fori_loop(0, steps, lambda _, z: cell(z, *inputs), z)


def scanned(cell, z, *inputs, steps=120):
    """The same for reverse mode."""
    return jax.lax.scan(lambda z, _: (cell(z, *inputs), None), z, length=steps)[0]


def squares(z):
    return sum((leaf**2).sum() for leaf in jax.tree.leaves(z))


def assert_close(got, expected, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    tolerance = {"rtol": 1e-9, "atol": 1e-10} | tolerance
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), **tolerance
        )


# The equilibrium and its derivatives.


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson()])
def test_a_module_that_is_a_pytree(cell, solver):
    layer, x = fj.DEQ(cell, **TIGHT | {"solver": solver}), data()
    value, gradients = jax.jit(
        jax.value_and_grad(lambda layer, x: squares(layer(x)), (0, 1))
    )(layer, x)
    reference = lambda cell, x: squares(scanned(cell, jnp.zeros_like(x), x))
    expected, wanted = jax.jit(jax.value_and_grad(reference, (0, 1)))(cell, x)
    assert_close(value, expected)
    assert_close((gradients[0].cell, gradients[1]), wanted)
    assert isinstance(gradients[0], fj.DEQ)


def test_a_function_of_parameters():
    layer, x, params = fj.DEQ(function, **TIGHT), data(), arrays()
    assert jax.tree.leaves(layer) == []
    got = jax.jit(jax.grad(lambda layer, params: squares(layer(x, params)), 1))(
        layer, params
    )
    reference = lambda params: squares(scanned(function, jnp.zeros_like(x), x, params))
    assert_close(got, jax.jit(jax.grad(reference))(params))


def test_a_function_with_arrays_bound_to_it():
    params, x = arrays(), data()
    layer = fj.DEQ(
        jax.tree_util.Partial(lambda params, z, x: function(z, x, params), params)
    )
    assert len(jax.tree.leaves(layer)) == 2
    layer = dataclasses.replace(layer, **TIGHT)
    assert_close(
        jax.jit(lambda layer: layer(x))(layer), fj.DEQ(function, **TIGHT)(x, params)
    )


def test_tangents_agree_with_differences(cell):
    layer, x, v = fj.DEQ(cell, **TIGHT), data(), data()[::-1]
    pushed = jax.jit(lambda x, v: jax.jvp(layer, (x,), (v,))[1])(x, v)
    reference = partial(unrolled, cell, jnp.zeros_like(x))
    assert_close(pushed, jax.jit(lambda x, v: jax.jvp(reference, (x,), (v,))[1])(x, v))


def test_vmap(cell):
    layer, stack = fj.DEQ(cell, **TIGHT), data(2, 3, 4)
    got = jax.jit(jax.vmap(layer))(stack)
    assert_close(got, jnp.stack([unrolled(cell, jnp.zeros((3, 4)), x) for x in stack]))


def test_a_state_of_several_leaves(cell):
    def pair(z, x):
        return {
            "a": jnp.tanh(0.5 * z["b"][:, 0] + x),
            "b": 0.5 * cell(z["a"], x)[:, None],
        }

    start = lambda x: {"a": jnp.zeros_like(x), "b": jnp.zeros((3, 1, 4))}
    layer, x = fj.DEQ(pair, start=start, **TIGHT), data()
    got = jax.jit(jax.grad(lambda x: squares(layer(x))))(x)
    reference = jax.jit(jax.grad(lambda x: squares(scanned(pair, start(x), x))))(x)
    assert_close(got, reference)


def test_two_uses_and_a_layer_inside_a_layer(cell):
    inner, x = fj.DEQ(cell, **TIGHT), data()
    outer = lambda z, x, inner: 0.5 * inner(jnp.sin(z) + x)
    layer = fj.DEQ(outer, **TIGHT)

    def loss(inner, x):
        return squares(inner(layer(x, inner)))

    def reference(cell, x):
        solve = lambda x: scanned(cell, jnp.zeros_like(x), x, steps=60)
        return squares(
            solve(
                scanned(lambda z, x: outer(z, x, solve), jnp.zeros_like(x), x, steps=60)
            )
        )

    got = jax.jit(jax.grad(loss))(inner, x)
    assert_close(got.cell, jax.jit(jax.grad(reference))(cell, x))


def test_where_to_start(cell):
    x = data()
    z = unrolled(cell, jnp.zeros_like(x), x)
    settings = TIGHT | {"rtol": 1e-9}
    assert fj.DEQ(cell, **settings).solve(x, z0=z).steps.tolist() == [0, 0, 0]
    assert fj.DEQ(cell, start=lambda x: z, **settings).solve(x).steps.tolist() == [
        0,
        0,
        0,
    ]
    assert int(fj.DEQ(cell, **settings).solve(x).steps.min()) > 3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_other_precisions(cell, dtype):
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), fj.DEQ(cell, **PICARD))
    x = data()
    value, gradient = jax.jit(jax.value_and_grad(lambda x: squares(narrow(x))))(
        x.astype(dtype)
    )
    reference = lambda x: squares(scanned(cell, jnp.zeros_like(x), x))
    expected, wanted = jax.jit(jax.value_and_grad(reference))(x)
    assert gradient.dtype == dtype
    scale = float(jnp.finfo(dtype).eps)
    assert_close(value, expected, rtol=20 * scale)
    assert_close(gradient, wanted, rtol=0.0, atol=100 * scale)


# Settings.


def test_a_layer_is_a_pytree(cell):
    layer = fj.DEQ(
        cell, max_steps=7, adjoint=fp.ImplicitAdjoint(max_steps=77), start=jnp.sin
    )
    leaves, structure = jax.tree.flatten(layer)
    twin = jax.tree.unflatten(structure, [2.0 * leaf for leaf in leaves])
    assert (twin.max_steps, twin.adjoint.max_steps, twin.start) == (7, 77, jnp.sin)
    assert_close(twin.cell.W, 2.0 * cell.W)
    assert jax.tree.structure(twin) == structure
    assert structure != jax.tree.structure(fj.DEQ(cell, max_steps=8))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(layer)]
    assert paths == [".cell.W", ".cell.b"]


def test_a_layer_without_its_arrays(cell):
    layer = fj.DEQ(cell)
    empty = jax.tree.map(lambda _: None, layer)
    assert jax.tree.leaves(empty) == []
    back = jax.tree.map(lambda _, leaf: leaf, empty, layer, is_leaf=lambda x: x is None)
    assert_close(back.cell, cell)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies(cell, copied):
    layer, x = fj.DEQ(cell, **TIGHT), data()
    twin = copied(layer)
    assert_close(twin(x), layer(x))
    assert (twin.solver, twin.adjoint) == (layer.solver, layer.adjoint)


def test_unknown_settings_are_refused(cell):
    with pytest.raises(TypeError, match="tolerance"):
        fj.DEQ(cell, tolerance=1.0)


def test_failures_are_heeded(cell):
    x, settings = data(), PICARD | {"max_steps": 1}
    with pytest.warns(fp.ConvergenceWarning):
        z = fj.DEQ(cell, **settings)(x)
    assert bool(jnp.isfinite(z).all())
    assert bool(jnp.isnan(jax.jit(fj.DEQ(cell, **settings))(x)).all())
    layer = fj.DEQ(cell, on_failure="return", **settings)
    assert layer.solve(x).status.tolist() == [int(fp.Status.MAX_STEPS)] * 3
    assert bool(jnp.isfinite(jax.jit(layer)(x)).all())


# Modules that change as they are evaluated.


def test_what_a_cell_writes_to_itself_is_lost():
    W, x = arrays()["W"], data()
    layer = fj.DEQ(Counting(W, jnp.asarray(0)), rtol=1e-10)
    first = lambda z, x: jnp.tanh(z @ W + x + jnp.cos(1))
    expected = unrolled(first, jnp.zeros_like(x), x)
    for wrap in (jax.jit, lambda function: function):
        solution = wrap(lambda layer, x: layer.solve(x))(layer, x)
        assert solution.converged.all()
        assert_close(solution.value, expected, rtol=1e-8)
        states = wrap(lambda x: layer.trajectory(x, steps=(0, 50)))(x)
        assert_close(states[1:], [expected] * 2, rtol=1e-8)
    radii = np.abs(np.linalg.eigvals(jacobians(first, expected, x))).max(-1)
    assert_close(layer.spectral_radius(x), radii, rtol=1e-6)
    assert layer.cell.count == 0


def test_a_call_at_the_equilibrium_updates_statistics_and_masks():
    nnx = pytest.importorskip("flax.nnx")

    class Normalized(nnx.Module):
        def __init__(self, width, rngs):
            self.norm = nnx.BatchNorm(width, momentum=0.0, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, z, x):
            return self.dropout(0.1 * self.norm(jnp.tanh(z) + x)) + x

    x = data().astype(jnp.float32)
    layer = fj.DEQ(Normalized(4, nnx.Rngs(0)))

    @partial(nnx.jit, static_argnums=2)
    @partial(nnx.value_and_grad, has_aux=True)
    def loss(cell, x, update):
        z = dataclasses.replace(layer, cell=cell)(x)
        if update:
            cell(z, x)
        return squares(z), z

    cell = layer.cell
    first, again = (loss(cell, x, update)[0][1] for update in (False, True))
    assert_close(first, again)
    assert_close(cell.norm.mean[...], (jnp.tanh(first) + x).mean(0), rtol=1e-5)
    assert not jnp.allclose(loss(cell, x, False)[0][1], first)


# States on the way.


@pytest.mark.parametrize(
    "wrap", [jax.jit, lambda function: function], ids=["jit", "eager"]
)
def test_trajectory(cell, wrap):
    layer, x = fj.DEQ(cell, **TIGHT), data()
    states = wrap(lambda x: layer.trajectory(x, steps=(1, 3)))(x)
    iterates = [unrolled(cell, jnp.zeros_like(x), x, steps=k) for k in (2, 4)]
    assert_close(states[:2], iterates)
    assert_close(states[2], unrolled(cell, jnp.zeros_like(x), x))


def test_a_trajectory_goes_on_with_what_the_solver_remembers(cell, counted):
    counts = counted(cell)
    layer, x = fj.DEQ(counts, **TIGHT | {"solver": fp.Anderson(memory=2)}), data()
    layer(x)
    whole = counts.calls
    states = layer.trajectory(x, steps=(4, 100))
    assert_close(states[1:], [layer(x)] * 2)
    # Two pauses, two applications, two to spare.
    assert counts.calls - 3 * whole <= 2 * 2 + 2


def test_derivatives_along_a_trajectory(cell):
    layer, x = fj.DEQ(cell, **TIGHT), data()

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def of_state(cell, which):
        states = dataclasses.replace(layer, cell=cell).trajectory(x, steps=(2,))
        return jnp.stack([squares(z) for z in states])[which], states

    before = unrolled(cell, jnp.zeros_like(x), x, steps=2)
    assert_close(
        of_state(cell, 0)[0], jax.grad(lambda cell: squares(cell(before, x)))(cell)
    )
    reference = lambda cell: squares(scanned(cell, jnp.zeros_like(x), x))
    assert_close(of_state(cell, 1)[0], jax.jit(jax.grad(reference))(cell))


@pytest.mark.parametrize("solver", [None, "anderson"])
def test_eager_training_along_a_trajectory(cell, solver):
    """The first piece is compiled for it, and the next, which goes on, is not."""
    layer, x = fj.DEQ(cell, **TIGHT | {"solver": solver}), data()

    def loss(cell):
        states = dataclasses.replace(layer, cell=cell).trajectory(x, steps=(1, 3))
        return fj.correction_loss(lambda z, y: squares(z - y), states, 1.0)

    assert_close(jax.grad(loss)(cell), jax.jit(jax.grad(loss))(cell))


@pytest.mark.parametrize("solver", [fp.Anderson(memory=3), fp.Broyden()])
def test_a_memory_goes_into_a_trace_and_out_of_it(solver):
    x = jnp.linspace(0.1, 1.0, 6).reshape(2, 3)
    solve = lambda x, **settings: fp.fixed_point(
        lambda z, x: jnp.tanh(0.5 * z[:, ::-1] + x),
        jnp.zeros_like(x),
        (x,),
        solver=solver,
        batch_ndim=1,
        on_failure="return",
        **settings,
    )
    expected = solve(x, rtol=1e-5).value
    for first, then in ((jax.jit, lambda f: f), (lambda f: f, jax.jit)):
        state = first(lambda x: solve(x, max_steps=4).state)(x)
        sol = then(lambda x, state: solve(x, rtol=1e-5, state=state))(x, state)
        assert sol.converged.all()
        assert_close(sol.value, expected, rtol=1e-4)


def test_what_a_memory_has_room_for_is_zero():
    """A trace that goes on with it reads all of it."""
    full = np.full(10**3, np.nan)  # memory that is likely to be taken next
    del full
    f = lambda z: jnp.cos(z * jnp.linspace(0.1, 0.7, 100))
    settings = {"solver": fp.Anderson(memory=10), "on_failure": "return"}
    state = fp.fixed_point(f, jnp.zeros(100), max_steps=2, **settings).state
    for columns in (state.contents.residuals, state.contents.images):
        assert not columns.leaves[0][2:].any()


def test_correction_loss():
    states = [jnp.full(2, value) for value in (1.0, 2.0, 4.0)]
    loss = lambda states: fj.correction_loss(
        lambda z, y: squares(z - y), states, 1.0, gamma=0.5
    )
    assert float(loss(states)) == 0.25 * 0.0 + 0.5 * 2.0 + 18.0
    assert jax.grad(loss)(states)[1].tolist() == [1.0, 1.0]


# Regularization.


def jacobians(f, z, *args):
    whole = jax.jacobian(lambda z: f(z, *args))(z)
    return jnp.stack([whole[i, :, i] for i in range(len(z))])


def mean_penalty(f, z, args, probes):
    keys = jax.random.split(jax.random.key(0), 1000)
    penalty = lambda key: fj.jacobian_penalty(f, z, args, key=key, probes=probes)
    return jax.jit(jax.vmap(penalty))(keys).mean(0)


def test_expectation_of_the_penalty(cell):
    x, z = data(), data()[::-1]
    expected = (jacobians(cell, z, x) ** 2).sum((1, 2)) / 4
    assert_close(mean_penalty(cell, z, (x,), probes=2), expected, rtol=0.15)


def test_penalty_of_several_leaves():
    f = lambda z: {"a": 2.0 * z["b"][:, 0], "b": 3.0 * z["a"][:, None]}
    z = {"a": jnp.zeros((2, 5)), "b": jnp.zeros((2, 1, 5))}
    assert_close(mean_penalty(f, z, (), probes=1), jnp.full(2, 6.5), rtol=0.1)


def test_the_key_decides(cell):
    x, z = data(), data()[::-1]
    draw = lambda seed: fj.jacobian_penalty(
        cell, z, (x,), key=jax.random.key(seed), probes=2
    )
    assert bool((draw(0) == draw(0)).all())
    assert not bool((draw(0) == draw(1)).any())


def test_derivatives_of_the_penalty(cell):
    x, z = data(), data()[::-1]
    penalty = lambda cell, z, x: fj.jacobian_penalty(
        cell, z, (x,), key=jax.random.key(3)
    ).sum()
    check_grads(penalty, (cell, z, x), order=1, modes=["rev"], eps=1e-5)


def test_penalty_needs_a_probe():
    with pytest.raises(ValueError, match="probes"):
        fj.jacobian_penalty(
            lambda z: z, jnp.ones((1, 1)), key=jax.random.key(0), probes=0
        )


def test_spectral_radius_at_the_equilibrium(cell):
    layer, x = fj.DEQ(cell, **TIGHT), data()
    expected = np.abs(np.linalg.eigvals(jacobians(cell, layer(x), x))).max(-1)
    assert_close(jax.jit(lambda layer, x: layer.spectral_radius(x))(layer, x), expected)
