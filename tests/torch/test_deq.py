"""The equilibrium layer on Torch, against derivatives of the unrolled iteration."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import fixedpoint as fp
import fixedpoint_torch as ft
from fixedpoint.regularization import jacobian_penalty as penalty_of_probes

TIGHT = {"rtol": 1e-13, "atol": 1e-13}
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(autouse=True)
def seeded():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Cell(torch.nn.Module):
    """tanh(Wz/2 + b + x), and something after it."""

    def __init__(self, wrap=None, after=None, n=4):
        super().__init__()
        self.inner = torch.nn.Linear(n, n)
        if wrap is not None:
            wrap(self.inner)
        self.after = after or torch.nn.Identity()

    def forward(self, z, x):
        return self.after(torch.tanh(0.5 * self.inner(z) + x))


class Pair(torch.nn.Module):
    """Two coupled states of different shapes."""

    def __init__(self):
        super().__init__()
        self.down, self.up = torch.nn.Linear(4, 3), torch.nn.Linear(3, 4)

    def forward(self, z, x):
        return {
            "a": torch.tanh(0.5 * self.up(z["b"][:, 0]) + x),
            "b": torch.sin(0.5 * self.down(z["a"])[:, None]),
        }


def unrolled(cell, z, *inputs, steps=150):
    for _ in range(steps):
        z = cell(z, *inputs)
    return z


def derivatives(value, *inputs):
    """Of the squares of all entries of `value`, which weigh each of them
    differently.
    """
    leaves = list(value.values()) if isinstance(value, dict) else [value]
    return torch.autograd.grad(sum((leaf**2).sum() for leaf in leaves), inputs)


def assert_close(got, expected, **tolerance):
    torch.testing.assert_close(got, expected, **(CLOSE | tolerance))


def data(samples=3, n=4):
    return torch.randn(samples, n, requires_grad=True)


# The equilibrium and its derivatives.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "adjoint", [None, fp.ImplicitAdjoint(solver=fp.Picard()), fp.Unrolled()]
)
def test_value_and_derivatives_are_those_of_the_unrolled_iteration(training, adjoint):
    layer, x = ft.DEQ(Cell(), adjoint=adjoint, **TIGHT).train(training), data()
    inputs = (x, *layer.parameters())
    z, reference = layer(x), unrolled(layer.cell, torch.zeros_like(x), x)
    assert_close(z, reference)
    assert_close(derivatives(z, *inputs), derivatives(reference, *inputs))


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_has_the_derivatives_of_its_mode(training):
    layer = ft.DEQ(Cell(after=torch.nn.BatchNorm1d(4)), **TIGHT).train(training)
    layer.cell.after.running_mean += 0.3
    x = data()
    inputs = (x, *layer.parameters())
    got = derivatives(layer(x), *inputs)
    assert_close(
        got, derivatives(unrolled(layer.cell, torch.zeros_like(x), x), *inputs)
    )


def test_second_derivatives():
    layer = ft.DEQ(Cell(n=2), **TIGHT)
    x = data(2, 2)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_a_state_of_several_leaves():
    layer = ft.DEQ(
        Pair(), start=lambda x: {"a": torch.zeros_like(x), "b": x.new_zeros(3, 1, 3)}
    )
    layer.rtol = layer.atol = 1e-13
    x = data()
    z, reference = layer(x), unrolled(layer.cell, layer.start(x), x)
    assert_close(z, reference)
    inputs = (x, *layer.parameters())
    assert_close(derivatives(z, *inputs), derivatives(reference, *inputs))
    assert layer.spectral_radius(x).shape == (3,)


def test_zeros_like_an_input_that_is_a_container():
    layer = ft.DEQ(lambda z, x: {"a": 0.5 * z["a"] + x["a"]}, **TIGHT)
    assert_close(layer({"a": torch.ones(2, 3)}), {"a": torch.full((2, 3), 2.0)})


def test_more_inputs_and_functions_as_cells():
    layer = ft.DEQ(lambda z, x, a: a * torch.sin(z) + x, **TIGHT)
    x, a = data(), torch.tensor(0.7, requires_grad=True)
    reference = unrolled(layer.cell, torch.zeros_like(x), x, a)
    assert_close(derivatives(layer(x, a), x, a), derivatives(reference, x, a))


def test_a_method_of_the_module_that_the_layer_is_part_of():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = weight_norm(torch.nn.Linear(4, 4))
            self.layer = ft.DEQ(self.step, **TIGHT)

        def step(self, z, x):
            return torch.tanh(0.5 * self.inner(z) + x)

    model, x = Model(), data()
    inputs = (x, *model.parameters())
    reference = unrolled(model.step, torch.zeros_like(x), x)
    assert_close(derivatives(model.layer(x), *inputs), derivatives(reference, *inputs))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.inner.bias += 1.0
    assert not torch.allclose(twin.layer(x), model.layer(x))


def test_where_to_start():
    starts = []

    def cell(z, x):
        starts.append(z)
        return 0.5 * z + x

    x = torch.ones(2, 3)
    ft.DEQ(cell)(x)
    ft.DEQ(cell, start=lambda x: 3.0 * x)(x)
    ft.DEQ(cell, start=lambda x: 3.0 * x)(x, z0=2.0 * x)
    firsts = [z for z in starts if torch.equal(z, z[:1, :1].expand_as(z))]
    assert torch.equal(starts[0], torch.zeros_like(x))
    assert any(torch.equal(z, 3.0 * x) for z in firsts)
    assert torch.equal(
        ft.DEQ(cell).solve(x, z0=2.0 * x).steps, torch.zeros(2, dtype=torch.int32)
    )


def test_two_uses_in_one_graph():
    layer, x, y = ft.DEQ(Cell(), **TIGHT), data(), data(5)
    inputs = (x, y, *layer.parameters())

    def both(solve):
        z = solve(x)
        return solve(torch.cat([z, y]))

    reference = both(lambda x: unrolled(layer.cell, torch.zeros_like(x), x))
    got = both(layer)
    assert layer.statistics.status.shape == (8,)
    assert_close(derivatives(got, *inputs), derivatives(reference, *inputs))
    assert layer.statistics.backward.status.shape == (8,)


class Outer(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, z, x):
        return 0.5 * self.layer(torch.sin(z) + x)


@pytest.mark.parametrize("wrap", [None, weight_norm])
def test_a_layer_inside_a_layer(wrap):
    outer, x = ft.DEQ(Outer(ft.DEQ(Cell(wrap), **TIGHT)), **TIGHT), data()
    inner = outer.cell.layer.cell
    inputs = (x, *outer.parameters())

    def nested(z, x):
        drive = torch.sin(z) + x
        return 0.5 * unrolled(inner, torch.zeros_like(x), drive, steps=60)

    reference = unrolled(nested, torch.zeros_like(x), x, steps=60)
    assert_close(derivatives(outer(x), *inputs), derivatives(reference, *inputs))


def test_functional_calls_and_their_transforms():
    layer, x = ft.DEQ(Cell(weight_norm), **TIGHT), data()
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return (torch.func.functional_call(layer, parameters, (x,)) ** 2).sum()

    got = torch.func.grad(loss)(parameters, x.detach())
    expected = derivatives(layer(x), *parameters.values())
    assert_close(tuple(got.values()), expected)
    pickle.dumps(layer.statistics)
    assert layer.statistics.converged.all()


# Settings and state.


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="tolerance"):
        ft.DEQ(Cell(), tolerance=1.0)


def test_failures_are_heeded():
    layer = ft.DEQ(Cell(), max_steps=1)
    with pytest.warns(fp.ConvergenceWarning):
        z = layer(data())
    assert bool(torch.isfinite(z).all())
    assert layer.statistics.status.tolist() == [int(fp.Status.MAX_STEPS)] * 3
    assert layer.statistics.converged.tolist() == [False] * 3
    layer.on_failure = "raise"
    with pytest.raises(fp.ConvergenceError):
        layer(data())


def test_statistics_are_those_of_the_solve_and_of_the_backward_pass():
    layer, x = ft.DEQ(Cell(), rtol=1e-6), data()
    assert layer.statistics is None
    z = layer(x)
    seen = layer.statistics
    residual = (layer.cell(z, x) - z).norm(dim=1)
    assert_close(seen.residual_norm, residual.detach(), atol=1e-14)
    assert seen.status.tolist() == [1, 1, 1]
    assert seen.work.f == int(seen.steps.max()) + 1
    assert seen.backward.status is None
    z.sum().backward()
    assert layer.statistics is seen
    assert seen.backward.status.tolist() == [1, 1, 1]
    assert seen.backward.products > 0


def test_statistics_without_derivatives():
    layer = ft.DEQ(Cell())
    with torch.no_grad():
        layer(data())
    assert layer.statistics.backward is None


class Witness(torch.autograd.Function):
    """The identity, whose graph holds an object."""

    @staticmethod
    def forward(ctx, x, kept):
        ctx.kept = kept
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        assert ctx.kept is not None
        return cotangent, None


def test_statistics_keep_no_graph_alive():
    layer = ft.DEQ(Cell(weight_norm))
    kept = torch.nn.Identity()
    watched = weakref.ref(kept)
    z = layer(Witness.apply(data(), kept))
    z.sum().backward(retain_graph=True)
    del kept
    assert watched() is not None
    del z
    gc.collect()
    assert watched() is None
    statistics = layer.statistics
    tensors = [statistics.status, statistics.steps, statistics.residual_norm]
    tensors += [statistics.backward.value, statistics.backward.residual_norm]
    assert not any(tensor.requires_grad for tensor in tensors)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("solver", [None, fp.Broyden(memory=7)])
def test_copies(copied, solver):
    layer = ft.DEQ(
        Cell(), solver=solver, adjoint=fp.ImplicitAdjoint(max_steps=77), **TIGHT
    )
    x = data()
    z = layer(x)
    z.sum().backward(retain_graph=True)
    twin = copied(layer)
    assert (twin.solver, twin.adjoint) == (solver, fp.ImplicitAdjoint(max_steps=77))
    assert torch.equal(twin.statistics.status, layer.statistics.status)
    assert_close(
        derivatives(twin(x), *twin.parameters()), derivatives(z, *layer.parameters())
    )
    with torch.no_grad():
        twin.cell.inner.bias += 1.0
    assert torch.equal(layer(x), z)


@pytest.mark.parametrize("wrap", [None, weight_norm, spectral_norm])
def test_state_dict_round_trip(wrap):
    layer, other, x = ft.DEQ(Cell(wrap)).eval(), ft.DEQ(Cell(wrap)).eval(), data()
    assert not torch.allclose(layer(x), other(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    assert set(layer.state_dict()) == {
        f"cell.{name}" for name in layer.cell.state_dict()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrap", [None, weight_norm])
def test_other_precisions(dtype, wrap):
    layer, x = ft.DEQ(Cell(wrap)), data()
    exact = layer(x)
    expected = derivatives(exact, x)[0]
    layer.to(dtype)
    x = x.detach().to(dtype).requires_grad_()
    z = layer(x)
    assert z.dtype == dtype
    assert layer.statistics.status.tolist() == [1, 1, 1]
    scale = 20 * torch.finfo(dtype).eps
    assert_close(z.double(), exact, rtol=0.0, atol=scale)
    assert_close(derivatives(z, x)[0].double(), expected, rtol=0.0, atol=2 * scale)


def test_autocast():
    layer, x = (
        ft.DEQ(Cell(weight_norm), rtol=1e-2).float(),
        data().detach().float().requires_grad_(),
    )
    exact, radius = layer(x), layer.spectral_radius(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = layer.trajectory(x, steps=(2, 1000))
        got = layer.spectral_radius(x)
        penalty = ft.jacobian_penalty(layer.cell, states[-1], (x,))
    assert {z.dtype for z in states} == {got.dtype, penalty.dtype} == {torch.float32}
    assert_close(states[1], exact, rtol=0.0, atol=0.1)
    assert_close(got, radius, rtol=0.1, atol=0.0)
    penalty.sum().backward()
    assert bool(torch.isfinite(x.grad).all())


# States on the way.


def test_trajectory():
    layer, x = ft.DEQ(Cell(), solver=fp.Picard(), **TIGHT), data()
    states = layer.trajectory(x, steps=(1, 3, 100_000))
    iterates = [
        unrolled(layer.cell, torch.zeros_like(x), x, steps=k) for k in (2, 4, 5)
    ]
    assert len(states) == 4
    assert_close(states[:2], iterates[:2])
    assert_close(states[2], states[3])
    assert torch.equal(states[3], layer(x))
    assert layer.statistics.work.f == int(layer.statistics.steps.max()) + 1


@pytest.mark.parametrize("adjoint", [None, fp.Unrolled()])
def test_derivatives_along_a_trajectory(adjoint):
    layer, x = ft.DEQ(Cell(), solver=fp.Picard(), adjoint=adjoint, **TIGHT), data()
    inputs = (x, *layer.parameters())
    state, unreached, end = layer.trajectory(x, steps=(2, 1000))
    with torch.no_grad():
        before = unrolled(layer.cell, torch.zeros_like(x), x, steps=2)
    assert_close(
        derivatives(state, *inputs), derivatives(layer.cell(before, x), *inputs)
    )
    last = layer.cell(end.detach(), x)
    assert_close(derivatives(unreached, *inputs), derivatives(last, *inputs))
    assert_close(derivatives(end, *inputs), derivatives(layer(x), *inputs))


def test_trajectory_of_samples_that_end_at_different_steps():
    layer = ft.DEQ(lambda z, x, a: a * z + x, solver=fp.Picard(), atol=1e-9, rtol=0.0)
    a = torch.tensor([[0.0], [0.5]])
    states = layer.trajectory(torch.ones(2, 1), a, steps=(5,))
    assert_close(states[0], torch.tensor([[1.0], [2.0 - 2.0**-5]]))


def test_correction_loss():
    states = [torch.full((2,), value, requires_grad=True) for value in (1.0, 2.0, 4.0)]
    loss = ft.correction_loss(lambda z, y: ((z - y) ** 2).sum(), states, 1.0, gamma=0.5)
    assert loss.item() == 0.25 * 0.0 + 0.5 * 2.0 + 18.0
    loss.backward()
    assert states[1].grad.tolist() == [1.0, 1.0]


# Regularization.


def jacobians(f, z, *args):
    """The dense Jacobian of each sample."""
    whole = torch.autograd.functional.jacobian(lambda z: f(z, *args), z)
    return torch.stack([whole[i, :, i] for i in range(len(z))])


@pytest.mark.parametrize("probes", [1, 4])
def test_penalty_is_the_mean_over_its_probes(probes):
    cell, x, z = Cell(), data(), data()
    got = ft.jacobian_penalty(
        cell, z, (x,), probes=probes, generator=torch.Generator().manual_seed(3)
    )
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(z.shape, generator=generator) for _ in range(probes)]
    products = [torch.einsum("bi,bij->bj", e, jacobians(cell, z, x)) for e in drawn]
    expected = sum((product**2).sum(-1) for product in products) / (4 * probes)
    assert_close(got.detach(), expected.detach())


def test_expectation_of_the_penalty():
    cell, x, z = Cell(), data(1).detach(), data(1).detach()
    got = ft.jacobian_penalty(cell, z, (x,), probes=2000)
    expected = (jacobians(cell, z, x) ** 2).sum((1, 2)) / 4
    assert_close(got, expected, rtol=0.15)


def test_penalty_of_several_leaves():
    matrix = torch.randn(5, 5)

    def f(z):
        image = torch.cat([z["a"], z["b"][:, 0]], -1) @ matrix.T
        return {"a": image[:, :2], "b": image[:, None, 2:]}

    units = 5**0.5 * torch.eye(5)  # their mean outer product is the unit matrix
    probes = [{"a": unit[None, :2], "b": unit[None, None, 2:]} for unit in units]
    z = {"a": torch.zeros(1, 2), "b": torch.zeros(1, 1, 3)}
    got = penalty_of_probes(f, z, (), probes, batch_ndim=1)
    assert_close(got, (matrix**2).sum()[None] / 5)
    assert ft.jacobian_penalty(f, z).shape == (1,)


def test_derivatives_of_the_penalty():
    cell, x, z = Cell(n=2), data(2, 2), data(2, 2)
    names = [name for name, _ in cell.named_parameters()]

    def penalty(z, x, *values):
        named = dict(zip(names, values, strict=True))
        f = lambda z, x: torch.func.functional_call(cell, named, (z, x))
        return ft.jacobian_penalty(
            f, z, (x,), generator=torch.Generator().manual_seed(0)
        )

    assert torch.autograd.gradcheck(penalty, (z, x, *cell.parameters()))


def test_penalty_trains_the_layer_it_is_taken_of():
    layer, x = ft.DEQ(Cell(spectral_norm), **TIGHT), data()
    z = layer(x)
    ft.jacobian_penalty(layer.cell, z, (x,), probes=2).mean().backward()
    assert all(bool((p.grad != 0).any()) for p in layer.parameters())
    assert bool((x.grad != 0).any())


def test_penalty_needs_a_probe():
    with pytest.raises(ValueError, match="probes"):
        ft.jacobian_penalty(lambda z: z, torch.ones(1, 1), probes=0)


def test_spectral_radius_at_the_equilibrium():
    layer, x = ft.DEQ(Cell(spectral_norm), **TIGHT).eval(), data()
    z = layer(x).detach()
    before = layer.statistics
    expected = torch.linalg.eigvals(jacobians(layer.cell, z, x)).abs().amax(-1)
    assert_close(layer.spectral_radius(x), expected.detach())
    assert layer.statistics is before
    half = copy.deepcopy(layer).bfloat16().spectral_radius(x.bfloat16())
    assert_close(half.double(), expected.detach(), rtol=0.1)


# Parametrized weights.


class Counting(torch.nn.Module):
    calls = 0

    def forward(self, weight):
        Counting.calls += 1
        return 0.9 * torch.tanh(weight)


def counting(module):
    Counting.calls = 0
    parametrize.register_parametrization(module, "weight", Counting())


def test_weights_are_computed_once_a_solve():
    layer, x = ft.DEQ(Cell(counting), **TIGHT), data()
    Counting.calls = 0
    z = layer(x)
    assert Counting.calls == 1
    z.sum().backward()
    assert Counting.calls == 1
    layer.trajectory(x, steps=(1, 2))
    assert Counting.calls == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm, orthogonal, counting])
def test_parametrized_weights(wrap, training):
    layer, x = ft.DEQ(Cell(wrap), **TIGHT).train(training), data()
    twin = copy.deepcopy(layer)
    inputs, twins = (x, *layer.parameters()), (x, *twin.parameters())
    z = layer(x)
    # Of one step of power iteration.
    weight, bias = (
        twin.cell.inner.weight,
        twin.cell.inner.bias,
    )
    reference = unrolled(
        lambda z: torch.tanh(0.5 * (z @ weight.T + bias) + x), torch.zeros_like(x)
    )
    assert_close(z, reference)
    assert_close(derivatives(z, *inputs), derivatives(reference, *twins))
    for ours, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_copies_of_one_parametrized_cell_keep_their_own_weights():
    first = Cell(weight_norm)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.inner.bias += 0.5
        second.inner.parametrizations.weight.original0 *= 0.5

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = first, second

        def forward(self, z, x):
            return self.second(self.first(z, x), x)

    layer, x = ft.DEQ(Both(), **TIGHT), data()
    inputs = (x, *layer.parameters())
    reference = unrolled(layer.cell, torch.zeros_like(x), x)
    got = layer(x)
    assert_close(got, reference)
    assert_close(derivatives(got, *inputs), derivatives(reference, *inputs))


def test_the_cache_of_the_caller():
    layer, x = ft.DEQ(Cell(weight_norm), **TIGHT), data()
    inputs = (x, *layer.parameters())
    expected = derivatives(layer(x), *inputs)
    with parametrize.cached():
        z = layer(x)
        outside = layer.cell.inner.weight
        got = derivatives(z, *inputs)
    assert_close(got, expected)
    assert outside.requires_grad
    assert_close(
        derivatives(outside, *inputs[2:]),
        derivatives(layer.cell.inner.weight, *inputs[2:]),
    )


def test_an_error_in_the_cell_leaves_the_weights_as_they_were():
    class Failing(Cell):
        def forward(self, z, x):
            raise RuntimeError("on purpose")

    layer, x = ft.DEQ(Failing(weight_norm)), data()
    with pytest.raises(RuntimeError, match="on purpose"):
        layer(x)
    weight = layer.cell.inner.weight
    with torch.no_grad():
        layer.cell.inner.parametrizations.weight.original0 *= 2.0
    assert_close(layer.cell.inner.weight, 2.0 * weight)


# Dropout.


def test_variational_dropout_is_constant_along_its_axes():
    dropout, x = ft.VariationalDropout(0.4, axes=(1, -1)), torch.ones(50, 7, 60, 2)
    y = dropout(x)
    assert torch.equal(y, y[:, :1, :, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 1 / 0.6}
    assert abs(y.mean().item() - 1.0) < 0.1
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(ft.VariationalDropout(0.0)(x), x)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_probabilities(p):
    with pytest.raises(ValueError, match="p must be"):
        ft.VariationalDropout(p)


@pytest.mark.parametrize("dropout", [ft.VariationalDropout(0.5), torch.nn.Dropout(0.5)])
def test_one_mask_for_a_solve_and_its_derivatives(dropout):
    layer, x = (
        ft.DEQ(Cell(after=dropout), **TIGHT),
        torch.randn(2, 5, 4, requires_grad=True),
    )
    inputs = (x, *layer.parameters())
    torch.manual_seed(7)
    z = layer(x)
    after = torch.randn(1)
    torch.manual_seed(7)
    mask = dropout(torch.ones_like(x))
    assert torch.equal(torch.randn(1), after)  # the caller's numbers are drawn once
    held = lambda z, x: mask * torch.tanh(0.5 * layer.cell.inner(z) + x)
    reference = unrolled(held, torch.zeros_like(x), x)
    assert_close(z, reference)
    assert_close(derivatives(z, *inputs), derivatives(reference, *inputs))
    other = layer(x)
    assert not torch.equal(other == 0, z == 0)
    assert torch.equal(layer.eval()(x) == 0, torch.zeros_like(x, dtype=torch.bool))


def test_a_trajectory_has_one_mask():
    layer, x = (
        ft.DEQ(Cell(after=ft.VariationalDropout(0.5)), **TIGHT),
        torch.randn(9, 5, 4),
    )
    first, last, end = layer.trajectory(x, steps=(1, 1000))
    assert torch.equal(first == 0, end == 0)
    assert_close(last, end)
    assert bool((end == 0).any())


def test_spectral_radius_of_a_random_cell_is_that_of_one_mask():
    layer, x = ft.DEQ(Cell(after=torch.nn.Dropout(0.5)), **TIGHT), data(9)
    torch.manual_seed(7)
    z = layer(x)
    torch.manual_seed(7)
    mask = layer.cell.after(torch.ones_like(x))
    fixed = lambda z, x: mask * torch.tanh(0.5 * layer.cell.inner(z) + x)
    torch.manual_seed(7)
    expected = torch.linalg.eigvals(jacobians(fixed, z, x)).abs().amax(-1)
    assert_close(layer.spectral_radius(x), expected.detach())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("wrap", [None, weight_norm])
def test_on_a_gpu(wrap):
    layer, x = ft.DEQ(Cell(wrap, torch.nn.Dropout(0.5)), **TIGHT), data()
    layer, x = layer.eval(), x.detach()
    expected, radius = layer(x), layer.spectral_radius(x)
    layer.cuda()
    # Torch's own kernel of weight normalization agrees with that on the CPU to 4e-8
    # only.
    kernel = {} if wrap is None else {"rtol": 1e-6, "atol": 1e-6}
    assert_close(layer(x.cuda()).cpu(), expected, **kernel)
    assert_close(layer.spectral_radius(x.cuda()).cpu(), radius, **kernel)
    layer.train()
    first, last, end = layer.trajectory(x.cuda(), steps=(1, 1000))
    assert torch.equal(first == 0, end == 0)
    assert_close(last, end)
    end.sum().backward()
    assert layer.statistics.backward.status.tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
def test_a_compiled_network_calls_the_layer_as_it_is():
    counter, layer = CompileCounter(), ft.DEQ(Cell(), **TIGHT)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), layer, torch.nn.Linear(4, 2))
    compiled, x = torch.compile(network, backend=counter), torch.randn(5, 3)
    for scale in (1.0, 2.0, 3.0):  # other numbers of steps are no other graphs
        weights = tuple(network.parameters())
        expected = derivatives(network(scale * x), *weights)
        found = derivatives(compiled(scale * x), *weights)
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, **CLOSE)
    assert counter.frame_count <= 2  # what is before the layer, and what is after


@pytest.mark.parametrize("solver", [None, "newton", fp.NewtonKrylov(), "anderson"])
@pytest.mark.parametrize("made_inside", [False, True])
def test_methods_that_differentiate_do_in_inference_mode(solver, made_inside):
    """There gradients of f vanish without a word; a solve steps out of it."""
    f = lambda z, x: torch.cos(3.0 * z) + 0.1 * x
    arrays = lambda: (torch.full((3,), 0.3), torch.ones(3))
    start, x = arrays()
    known = fp.fixed_point(f, start, (x,), solver=solver)
    with torch.inference_mode():
        start, x = arrays() if made_inside else (start, x)
        found = fp.fixed_point(f, start, (x,), solver=solver)
    assert torch.equal(found.value, known.value)
    assert found.work == known.work


def test_what_is_told_of_a_layer_is_the_same_in_inference_mode():
    weight = torch.diag(torch.tensor([-0.9, 0.9, 0.5]))
    layer = ft.DEQ(lambda z, x: z @ weight.T + x)
    inputs = torch.ones(2, 3)
    known = layer.spectral_radius(inputs)
    with torch.inference_mode():
        assert torch.equal(layer.spectral_radius(inputs), known)
