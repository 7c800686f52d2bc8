"""Derivatives on Torch against closed forms, finite differences and unrolled
iterations.
"""

import copy
import functools

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.utils import parametrizations

import fixedpoint as fp
from fixedpoint_torch import DEQ, HiddenTensorError

TIGHT = {"rtol": 1e-13, "atol": 1e-15, "max_steps": 500}
ADJOINT = fp.ImplicitAdjoint(rtol=1e-13, atol=1e-15)
N = 4


def rand(*shape, seed=0):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def matrix(n, norm, seed=0):
    W = rand(n, n, seed=seed)
    return norm * W / torch.linalg.matrix_norm(W, 2)


def tracked(*tensors):
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def root(f, z0, *args, **settings):
    """The solution, tightly."""
    return fp.fixed_point(f, z0, args, **{"adjoint": ADJOINT} | TIGHT | settings).value


def affine(z, A, b):
    return A @ z + b


def tanh(z, W, b):
    return torch.tanh(W @ z + b)


def affine_root(A, b):
    return root(affine, torch.zeros_like(b), A, b)


def tanh_root(W, b):
    return root(tanh, torch.zeros_like(b), W, b)


def tanh_unrolled(W, b):
    z = torch.zeros_like(b)
    for _ in range(400):
        z = tanh(z, W, b)
    return z


def close(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# Closed forms.


def test_affine_gradients():
    A, b = tracked(matrix(N, 0.8), rand(N, seed=1))
    v = rand(N, seed=2)
    z = affine_root(A, b)
    grad_A, grad_b = torch.autograd.grad(z, (A, b), v)
    u = torch.linalg.solve(torch.eye(N) - A.T, v)
    close(grad_b, u.detach())
    close(grad_A, torch.outer(u, z).detach())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_elementwise_derivatives_of_any_order(order):
    """z = a z + b: the n-th derivative of b/(1 − a) by a is n! b/(1 − a)ⁿ⁺¹."""
    a, b = tracked(torch.tensor([0.5, -0.3], dtype=torch.float64), rand(2))
    value = root(lambda z, a, b: a * z + b, torch.zeros(2, dtype=torch.float64), a, b)
    for _ in range(order):
        (value,) = torch.autograd.grad(value.sum(), a, create_graph=True)
    expected = float(np.prod(range(1, order + 1))) * b / (1 - a) ** (order + 1)
    close(value, expected, 1e-8)


def test_mixed_second_derivative():
    a, b = tracked(
        torch.tensor(0.6, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    )
    value = root(lambda z, a, b: a * z + b, torch.zeros((), dtype=torch.float64), a, b)
    (first,) = torch.autograd.grad(value, b, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    close(second, 1 / (1 - a.detach()) ** 2)


def test_gradient_of_the_start_is_nothing():
    z0, b = tracked(torch.zeros(N, dtype=torch.float64), rand(N))
    value = root(lambda z, b: 0.5 * z + b, z0, b)
    grad_z0, grad_b = torch.autograd.grad(value.sum(), (z0, b), allow_unused=True)
    assert grad_z0 is None or not grad_z0.any()
    close(grad_b, torch.full_like(b, 2.0))


# Numerical references.


def test_gradcheck():
    assert gradcheck(tanh_root, tracked(matrix(3, 0.8), rand(3)), check_forward_ad=True)


def test_gradgradcheck():
    assert gradgradcheck(tanh_root, tracked(matrix(2, 0.8), rand(2)))


def test_gradcheck_of_a_batch_of_containers():
    def solution(a, b):
        f = lambda z, a, b: {
            "u": torch.tanh(a * z["v"]) + b,
            "v": 0.3 * z["u"] * z["u"].cos(),
        }
        zero = torch.zeros(2, 3, dtype=torch.float64)
        value = root(f, {"u": zero, "v": zero}, a, b, batch_ndim=1)
        return value["u"], value["v"]

    assert gradcheck(solution, tracked(0.5 * rand(2, 1), rand(2, 3, seed=1)))


def test_unrolled_gradient_and_second_derivative():
    v = rand(N, seed=4)
    derivatives = []
    for solution in (tanh_root, tanh_unrolled):
        W, b = tracked(matrix(N, 0.7), rand(N))
        first = torch.autograd.grad(solution(W, b) @ v, (W, b), create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), (W, b))
        derivatives.append((*first, *second))
    for one, other in zip(*derivatives, strict=True):
        close(one, other, 1e-8)


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_accuracy_up_to_a_spectral_radius_of_nearly_one(radius, mode):
    n = 12
    Q = torch.linalg.qr(rand(n, n))[0]
    A = Q @ torch.diag(torch.linspace(-radius, radius, n, dtype=torch.float64)) @ Q.T
    b, v = rand(n, seed=1), rand(n, seed=2)
    inverse = torch.linalg.inv(torch.eye(n) - A)
    condition = float(torch.linalg.matrix_norm(inverse, 2))
    settings = {
        "solver": fp.Anderson(memory=n),
        "rtol": 1e-15,
        "atol": 1e-14,
        "max_steps": 2000,
        "adjoint": fp.ImplicitAdjoint(
            solver=fp.Anderson(memory=n),
            rtol=1e-15,
            atol=1e-14,
            max_steps=2000,
            on_failure="return",
        ),
        "on_failure": "return",
    }
    function = lambda b: root(
        affine, torch.zeros(n, dtype=torch.float64), A, b, **settings
    )
    if mode == "reverse":
        (b,) = tracked(b)
        (found,) = torch.autograd.grad(function(b), b, v)
        exact = inverse.T @ v
    else:
        found, exact = torch.func.jvp(function, (b,), (v,))[1], inverse @ v
    bound = max(1e-9, 10 * condition**2 * torch.finfo(torch.float64).eps)
    assert torch.linalg.norm(found - exact) <= bound * torch.linalg.norm(exact)


def test_a_map_that_is_not_holomorphic():
    def solution(a, b):
        return root(lambda z, a, b: a * z.conj() + b, torch.zeros_like(b), a, b)

    a, b = (torch.complex(rand(2, seed=s), rand(2, seed=s + 1)) for s in (0, 2))
    assert gradcheck(solution, tracked(0.3 * a, b))


# Transforms.


@pytest.fixture(scope="module")
def jacobian():
    """∂z/∂b by linear algebra."""
    W, b = matrix(N, 0.8), rand(N)
    z = tanh_unrolled(W, b)
    slope = torch.diag(1 - z**2)
    return torch.linalg.solve(torch.eye(N, dtype=torch.float64) - slope @ W, slope)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians(jacobian, transform):
    W = matrix(N, 0.8)
    close(transform(lambda b: tanh_root(W, b))(rand(N)), jacobian)


def test_jvp(jacobian):
    t = rand(N, seed=3)
    _, tangent = torch.func.jvp(
        lambda b: tanh_root(matrix(N, 0.8), b), (rand(N),), (t,)
    )
    close(tangent, jacobian @ t)


def test_vjp(jacobian):
    v = rand(N, seed=3)
    _, pullback = torch.func.vjp(lambda b: tanh_root(matrix(N, 0.8), b), rand(N))
    close(pullback(v)[0], jacobian.T @ v)


def test_dual_numbers(jacobian):
    t = rand(N, seed=3)
    with forward_ad.dual_level():
        value = tanh_root(matrix(N, 0.8), forward_ad.make_dual(rand(N), t))
        close(forward_ad.unpack_dual(value).tangent, jacobian @ t)


def energy(solve):
    W = matrix(2, 0.5)
    return lambda b: (solve(W, b) ** 2).sum()


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (torch.func.jacrev, torch.func.jacrev),
        (torch.func.jacrev, torch.func.jacfwd),
        (torch.func.jacfwd, torch.func.jacrev),
        (torch.func.jacfwd, torch.func.jacfwd),
    ],
)
def test_hessians(outer, inner):
    b = rand(2)
    found = outer(inner(energy(tanh_root)))(b)
    close(found, torch.autograd.functional.hessian(energy(tanh_unrolled), b), 1e-8)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("adjoint", [ADJOINT, fp.Unrolled(), fp.Unrolled(checkpoint=2)])
@pytest.mark.parametrize("solver", [fp.Anderson(), fp.Newton()])
def test_vectorized_derivatives(adjoint, solver):
    W, b = matrix(N, 0.8), rand(N)
    calculus = torch.autograd.functional

    def solution(b):
        return root(tanh, torch.zeros_like(b), W, b, adjoint=adjoint, solver=solver)

    def jacobian(b, **settings):
        return calculus.jacobian(solution, b, **settings)

    first, (z,) = jacobian(b), tracked(b)
    second = calculus.jacobian(lambda b: jacobian(b, create_graph=True), b)
    (rows,) = torch.autograd.grad(
        solution(z), z, torch.eye(N, dtype=torch.float64), is_grads_batched=True
    )
    close(rows, first)
    close(jacobian(b, vectorize=True), first)
    close(jacobian(b, vectorize=True, strategy="forward-mode"), first)
    lanes = functools.partial(jacobian, create_graph=True, vectorize=True)
    for vectorize in (False, True):
        close(calculus.jacobian(lanes, b, vectorize=vectorize), second)
    total = lambda b: (solution(b) ** 2).sum()
    hessian = functools.partial(calculus.hessian, total, b)
    for mode in ("reverse-mode", "forward-mode"):
        close(hessian(vectorize=True, outer_jacobian_strategy=mode), hessian())


def inner_map(y, a):
    f = lambda z, y, a: z - (z**2 - y - a) / 5
    return root(f, torch.ones_like(y), y, a)


def inner_steps(y, a):
    f = lambda z, y, a: z - (z**2 - y - a) / 5
    return root(f, torch.ones_like(y), y, a, adjoint="unrolled")


def inner_root(y, a):
    F = lambda z, y, a: z**2 - y - a
    return fp.root(F, torch.ones_like(y), (y, a), adjoint=ADJOINT, rtol=1e-13).value


def inner_bracket(y, a):
    ends = torch.zeros_like(y), torch.full_like(y, 9.0)
    return fp.bracketed_root(lambda z, y, a: z**2 - y - a, *ends, (y, a)).value


def pulled(f):
    """The gradient, by a pullback that is called when its transform has ended."""
    return lambda a: torch.func.vjp(f, a)[1](torch.ones(()).to(a))[0]


GRAD, FORWARD, REVERSE = torch.func.grad, torch.func.jacfwd, torch.func.jacrev


@pytest.mark.parametrize("inner", [inner_map, inner_steps, inner_root, inner_bracket])
@pytest.mark.parametrize(
    "transforms",
    [
        (pulled,),
        (GRAD, GRAD),
        (pulled, pulled),
        (REVERSE, FORWARD),
        (FORWARD, REVERSE),
        (GRAD, GRAD, GRAD),
        (FORWARD, FORWARD),
        (FORWARD, REVERSE, GRAD),
        (FORWARD, REVERSE, FORWARD),
    ],
)
def test_a_solve_inside_a_solve(inner, transforms):
    # z² = y + a and y = z + a, so that y = (1 + √(1 + 8a))/2 + a.
    def outer(a):
        return root(lambda y, a: inner(y, a) + a, torch.full_like(a, 2.0), a)

    found, a = outer, torch.tensor(1.0, dtype=torch.float64)
    for transform in transforms:
        found = transform(found)
    expected = 5 / 3, -8 / 27, 32 / 81
    expected = torch.full_like(a, expected[len(transforms) - 1])
    close(found(a), expected, 1e-8)
    if len(transforms) == 1:
        close(torch.func.vmap(found)(a[None]), expected[None], 1e-8)


def test_vmap_of_a_gradient():
    W, bs = matrix(N, 0.8), rand(3, N)
    gradient = torch.func.grad(lambda b: (tanh_root(W, b) ** 2).sum())
    close(torch.func.vmap(gradient)(bs), torch.stack([gradient(b) for b in bs]))


def test_vmap_over_the_matrix():
    Ws, b = torch.stack([matrix(N, norm) for norm in (0.2, 0.9)]), rand(N)
    found = torch.func.vmap(tanh_root, in_dims=(0, None))(Ws, b)
    close(found, torch.stack([tanh_root(W, b) for W in Ws]))


def test_backward_twice_on_one_graph():
    W, b = tracked(matrix(N, 0.8), rand(N))
    z = tanh_root(W, b)
    one = torch.autograd.grad(z.sum(), (W, b), retain_graph=True)
    other = torch.autograd.grad(z.sum(), (W, b))
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_gradients_of_tensors_inside_containers():
    W, b = tracked(matrix(N, 0.8), rand(N))
    f = lambda z, params, scale: torch.tanh(params["W"] @ z + params["b"][0]) * scale
    value = root(f, torch.zeros_like(b), {"W": W, "b": [b]}, 1.0)
    found = torch.autograd.grad(value.sum(), (W, b))
    expected = torch.autograd.grad(tanh_root(W, b).sum(), (W, b))
    for one, other in zip(found, expected, strict=True):
        close(one, other)


# Modules.


class Cell(torch.nn.Module):
    """A contraction with a method besides forward."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, z, x):
        return torch.tanh(0.5 * self.linear(z) + x)

    def other(self, z, x):
        return self(z, 2 * x)


def linear(seed=0):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(N, N, dtype=torch.float64)
    torch.nn.init.orthogonal_(layer.weight)
    return layer


X = rand(2, N, seed=9)
PARAMETRIZED = {
    "plain": lambda layer: layer,
    "spectral_norm": lambda layer: parametrizations.spectral_norm(layer).eval(),
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


def module_gradients(f, module, x, batch_ndim=1):
    value = root(f, torch.zeros_like(x), x, batch_ndim=batch_ndim)
    return torch.autograd.grad((value**2).sum(), list(module.parameters()))


def unrolled_gradients(f, module, x, steps=150):
    z = torch.zeros_like(x)
    for _ in range(steps):
        z = f(z, x)
    return torch.autograd.grad((z**2).sum(), list(module.parameters()))


@pytest.mark.parametrize("name", list(PARAMETRIZED))
@pytest.mark.parametrize("method", ["forward", "other", "__call__"])
def test_parameters_of_a_module(name, method):
    cell = Cell(PARAMETRIZED[name](linear()))
    f = cell if method == "__call__" else getattr(cell, method)
    found, expected = (g(f, cell, X) for g in (module_gradients, unrolled_gradients))
    assert len(found) >= 2
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e-8)


def test_parameters_passed_explicitly():
    cell = Cell(linear())
    weight, bias = cell.linear.weight, cell.linear.bias
    f = lambda z, x, weight, bias: torch.tanh(0.5 * (z @ weight.T + bias) + x)
    value = root(f, torch.zeros_like(X), X, weight, bias, batch_ndim=1)
    expected = torch.autograd.grad((value**2).sum(), (weight, bias))
    for one, other in zip(module_gradients(cell, cell, X), expected, strict=True):
        close(one, other)


def test_tied_weights():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(0), linear(1)
            self.b.weight = self.a.weight

        def forward(self, z, x):
            return 0.4 * self.b(torch.tanh(self.a(z))) + x

    module = Tied()
    assert len(list(module.parameters())) == 3
    found, expected = (
        g(module, module, X) for g in (module_gradients, unrolled_gradients)
    )
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e-8)


class Shared(torch.nn.Module):
    """A submodule under two names, beside another one with the same weight."""

    def __init__(self, wrap=lambda layer: layer, norm=False):
        super().__init__()
        self.first = wrap(linear())
        self.tail = torch.nn.Sequential(self.first, torch.nn.Tanh())
        self.other = linear(1)
        if not torch.nn.utils.parametrize.is_parametrized(self.first):
            self.other.weight = self.first.weight
        norms = torch.nn.BatchNorm1d(N, dtype=torch.float64) if norm else None
        self.norms = torch.nn.ModuleList([norms or torch.nn.Identity()] * 2)

    def forward(self, z, x):
        z = self.norms[1](self.norms[0](self.tail(0.3 * z)))
        return 0.1 * torch.tanh(self.other(z) + 0.3 * self.first(z)) + x

    def other_name(self, z, x):
        return self(z, x)


def registered(module):
    """The ids of all parameters and buffers, by every name."""
    named = (module.named_parameters, module.named_buffers)
    return {k: id(t) for of in named for k, t in of(remove_duplicate=False)}


SHARING = {name: (wrap, False) for name, wrap in PARAMETRIZED.items()}
SHARING["batch norm"] = (PARAMETRIZED["plain"], True)


@pytest.mark.parametrize("name", list(SHARING))
@pytest.mark.parametrize("method", ["forward", "other_name", "__call__"])
def test_a_submodule_under_two_names(name, method):
    module, x = Shared(*SHARING[name]), rand(8, N, seed=3)
    before = registered(module)
    f = module if method == "__call__" else getattr(module, method)
    found = module_gradients(f, module, x, batch_ndim=int(name != "batch norm"))
    for one, other in zip(found, unrolled_gradients(f, module, x), strict=True):
        close(one, other, 1e-8)
    assert registered(module) == before


def by_deq(module, x):
    return DEQ(module, adjoint=ADJOINT, **TIGHT)(x)


def by_root(module, x):
    F = torch.nn.Sequential()
    F.cell = module
    F.forward = lambda z, x: z - module(z, x)
    return fp.root(F, torch.zeros_like(x), (x,), batch_ndim=1, rtol=1e-12).value


def by_nesting(module, x):
    outer = torch.nn.Sequential()
    outer.cell = module
    outer.forward = lambda z, y: root(module, torch.zeros_like(z), 0 * z + y)
    return root(outer, torch.zeros_like(x), x)


@pytest.mark.parametrize("by", [by_deq, by_root, by_nesting])
def test_a_shared_submodule_is_trained(by):
    module = Shared().train()
    parameters = list(module.parameters())
    found = torch.autograd.grad((by(module, X) ** 2).sum(), parameters)
    for one, other in zip(found, unrolled_gradients(module, module, X), strict=True):
        close(one, other, 1e-7)
    optimizer, losses = torch.optim.SGD(parameters, 0.02), []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append((by(module, X) ** 2).sum())
        losses[-1].backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert list(map(id, module.parameters())) == list(map(id, parameters))


def test_second_derivatives_with_a_shared_submodule():
    module = Shared()
    before = registered(module)

    def second(solve):
        x = X.clone().requires_grad_()
        loss = (solve(module, x) ** 2).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), list(module.parameters()))

    def by_unrolling(module, x):
        z = torch.zeros_like(x)
        for _ in range(100):
            z = module(z, x)
        return z

    for one, other in zip(second(by_deq), second(by_unrolling), strict=True):
        close(one, other, 1e-7)
    assert registered(module) == before


def test_transforms_leave_a_shared_submodule_as_it_was():
    module = Shared()
    before = registered(module)
    tangent = rand(2, N, seed=7)
    solve = lambda x: root(module, torch.zeros_like(x), x, batch_ndim=1)
    _, forward = torch.func.jvp(solve, (X,), (tangent,))
    _, pullback = torch.func.vjp(solve, X)
    close((pullback(torch.ones_like(X))[0] * tangent).sum(), forward.sum(), 1e-8)
    torch.func.vmap(solve)(rand(2, *X.shape))
    with forward_ad.dual_level():
        dual = solve(forward_ad.make_dual(X, tangent))
        close(forward_ad.unpack_dual(dual).tangent, forward, 1e-8)
    assert registered(module) == before


def test_an_exception_leaves_a_shared_submodule_as_it_was():
    module = Shared()
    before = registered(module)
    calls = []

    def after(*_):
        calls.append(1)
        if torch.is_grad_enabled() and len(calls) > 1:
            raise RuntimeError("in f")

    module.register_forward_hook(after)
    value = root(module, torch.zeros_like(X), X, batch_ndim=1)
    with pytest.raises(RuntimeError, match="in f"):
        value.sum().backward()
    assert registered(module) == before


def test_a_shared_submodule_after_a_copy_and_loading():
    module = Shared()
    module_gradients(module, module, X)
    other = copy.deepcopy(module)
    assert other.first is other.tail[0]
    other.load_state_dict({k: 0.5 * v for k, v in module.state_dict().items()})
    for one, expected in zip(
        module_gradients(other, other, X),
        unrolled_gradients(other, other, X),
        strict=True,
    ):
        close(one, expected, 1e-8)
    assert not torch.equal(other.first.weight, module.first.weight)


def test_frozen_parameters_have_no_gradient():
    cell = Cell(linear())
    cell.linear.weight.requires_grad_(False)
    value = root(cell, torch.zeros_like(X), X, batch_ndim=1)
    value.sum().backward()
    assert cell.linear.weight.grad is None
    assert cell.linear.bias.grad.abs().min() > 0


class Normalized(torch.nn.Module):
    """A cell whose batch normalization keeps statistics."""

    def __init__(self):
        super().__init__()
        self.linear = linear()
        self.norm = torch.nn.BatchNorm1d(N, dtype=torch.float64)

    def forward(self, z, x):
        return self.norm(torch.tanh(0.1 * self.linear(z) + x))


def test_running_statistics_move_forward_and_not_backward():
    cell, reference = Normalized().train(), Normalized().train()
    x = rand(8, N, seed=3)
    sol = fp.fixed_point(cell, torch.zeros_like(x), (x,), rtol=1e-10)
    assert int(cell.norm.num_batches_tracked) == sol.work.f
    after = copy.deepcopy(cell.norm.state_dict())
    assert not torch.equal(after["running_mean"], reference.norm.running_mean)
    sol.value.square().sum().backward()
    for name, buffer in cell.norm.state_dict().items():
        torch.testing.assert_close(buffer, after[name], rtol=0, atol=0)


def test_gradients_through_batch_statistics():
    cell, x = Normalized().train(), rand(8, N, seed=3)
    value = root(cell, torch.zeros_like(x), x)
    weights = rand(8, N, seed=5)
    found = torch.autograd.grad((value * weights).sum(), list(cell.parameters()))
    z = torch.zeros_like(x)
    for _ in range(150):
        z = cell(z, x)
    expected = torch.autograd.grad((z * weights).sum(), list(cell.parameters()))
    for one, other in zip(found, expected, strict=True):
        close(one, other, 1e-8)


def test_gradients_do_not_depend_on_the_mode_of_the_module():
    cell = Cell(linear())
    one, other = (module_gradients(cell.train(mode), cell, X) for mode in (True, False))
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


# Hidden tensors.


def test_a_hidden_tensor_is_found_at_the_first_evaluation(counted):
    (b,) = tracked(rand(N))
    f = counted(lambda z: 0.5 * z + b)
    with pytest.raises(
        HiddenTensorError, match=r"Pass the tensor through args, f\(z, \*args\)"
    ):
        fp.fixed_point(f, torch.zeros_like(b))
    assert f.calls == 1


def test_looking_for_hidden_tensors_costs_no_evaluation(counted):
    (b,) = tracked(rand(N))
    f = counted(lambda z, b: 0.5 * torch.tanh(z) + b)
    sol = fp.fixed_point(f, torch.zeros_like(b), (b,))
    assert f.calls == sol.work.f == int(sol.steps) + 1


def test_a_hidden_tensor_does_no_harm_without_gradients():
    (b,) = tracked(rand(N))
    with torch.no_grad():
        value = fp.fixed_point(
            lambda z: 0.5 * z + b, torch.zeros_like(b), rtol=1e-12
        ).value
    close(value, 2 * b.detach())
    assert not value.requires_grad


def test_a_detached_tensor_is_not_hidden():
    (b,) = tracked(rand(N))
    value = fp.fixed_point(
        lambda z: 0.5 * z + b.detach(), torch.zeros_like(b), rtol=1e-12
    ).value
    close(value, 2 * b.detach())


def test_a_module_hidden_in_a_closure_is_found():
    cell = Cell(linear())
    with pytest.raises(HiddenTensorError, match=r"give the nn\.Module itself as f"):
        fp.fixed_point(lambda z: cell(z, X), torch.zeros_like(X))


def test_a_module_in_args_is_told_how_to_be_passed():
    cell = Cell(linear())
    with pytest.raises(HiddenTensorError, match=r"in args: give dict\(module\.named_p"):
        fp.fixed_point(lambda z, cell: cell(z, X), torch.zeros_like(X), (cell,))


def test_gradients_inside_the_map():
    """By torch.func they are differentiable; those of a copy that requires grad are
    told so.
    """

    def potential(x, a):
        return (torch.log(torch.cosh(x - a)) + 0.1 * x**4).sum()

    def by_autograd(x, a):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(potential(x, a), x, create_graph=True)[0]

    def solution(a, F):
        return fp.root(F, torch.zeros_like(a), (a,), adjoint=ADJOINT, rtol=1e-13).value

    a = torch.tensor([0.5, 2.0], dtype=torch.float64)
    with pytest.raises(HiddenTensorError, match=r"torch\.func\.grad forms it"):
        solution(a, by_autograd)
    (a,) = tracked(a)
    x = solution(a, torch.func.grad(potential))
    # With t = tanh(x - a): t + 0.4x³ = 0, whose slopes are 1 - t² and 1.2x².
    slope = 1 - torch.tanh(x - a) ** 2
    (found,) = torch.autograd.grad(x.sum(), a)
    close(found, slope / (slope + 1.2 * x**2))
    assert gradgradcheck(lambda a: solution(a, torch.func.grad(potential)), (a,))


def test_a_hidden_dual_number_is_found():
    with forward_ad.dual_level():
        b = forward_ad.make_dual(rand(N), rand(N, seed=1))
        with pytest.raises(HiddenTensorError, match="carries a tangent"):
            fp.fixed_point(lambda z: 0.5 * z + b, torch.zeros(N, dtype=torch.float64))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd])
def test_a_tensor_hidden_under_a_transform_is_found(transform):
    def solution(b):
        return fp.fixed_point(
            lambda z: 0.5 * z + b, torch.zeros(N, dtype=torch.float64)
        ).value.sum()

    with pytest.raises(HiddenTensorError):
        transform(solution)(rand(N))


# The adjoint solve, and what it reports.


def starved(policy, **settings):
    adjoint = fp.ImplicitAdjoint(
        max_steps=1, rtol=1e-12, on_failure=policy, solver=fp.Picard(), **settings
    )
    (b,) = tracked(rand(N))
    A = matrix(N, 0.9)
    sol = fp.fixed_point(affine, torch.zeros_like(b), (A, b), adjoint=adjoint)
    return sol, A, b


def test_the_report_of_the_backward_pass():
    W, b = tracked(matrix(N, 0.8), rand(N))
    adjoint = fp.ImplicitAdjoint(solver="anderson", rtol=1e-8)
    sol = fp.fixed_point(tanh, torch.zeros_like(b), (W, b), adjoint=adjoint)
    assert sol.backward.status is None
    v = rand(N, seed=2)
    (u,) = torch.autograd.grad(sol.value, b, v)
    assert int(sol.backward.status) == fp.Status.CONVERGED
    assert sol.backward.products == int(sol.backward.steps) + 1 >= 2
    assert (
        0
        <= float(sol.backward.residual_norm)
        <= 1e-8 * 10 * float(torch.linalg.norm(v))
    )
    assert u.shape == b.shape


def test_nothing_is_reported_where_nothing_is_recorded():
    with torch.no_grad():
        sol = fp.fixed_point(lambda z: 0.5 * z + 1, torch.zeros(2))
    assert sol.backward is None


def test_a_starved_adjoint_raises():
    sol, _, _ = starved("raise")
    with pytest.raises(
        fp.ConvergenceError, match=r"adjoint solve failed.*max_steps"
    ) as caught:
        sol.value.sum().backward()
    assert int(caught.value.solution.status) == fp.Status.MAX_STEPS
    assert caught.value.solution.work.vjp == 2


def test_a_starved_tangent_raises():
    adjoint = fp.ImplicitAdjoint(max_steps=1, rtol=1e-12, solver=fp.Picard())
    A, b = matrix(N, 0.9), rand(N)
    function = lambda b: (
        fp.fixed_point(affine, torch.zeros_like(b), (A, b), adjoint=adjoint).value
    )
    with pytest.raises(fp.ConvergenceError, match="tangent solve failed"):
        torch.func.jvp(function, (b,), (b,))


def test_a_starved_adjoint_warns():
    sol, A, b = starved("warn")
    with pytest.warns(fp.ConvergenceWarning, match="adjoint solve failed"):
        (found,) = torch.autograd.grad(sol.value.sum(), b)
    close(found, A.T @ torch.ones(N, dtype=torch.float64) + 1)


def test_a_starved_adjoint_returns_what_it_reached():
    sol, A, b = starved("return")
    (found,) = torch.autograd.grad(sol.value.sum(), b)
    close(found, A.T @ torch.ones(N, dtype=torch.float64) + 1)
    assert int(sol.backward.status) == fp.Status.MAX_STEPS


def test_a_starved_adjoint_poisons():
    sol, _, b = starved("nan")
    (found,) = torch.autograd.grad(sol.value.sum(), b)
    assert found.isnan().all()


def test_a_sample_that_fails_poisons_only_itself():
    """One sample's adjoint needs more than ten steps; the others' gradients are
    right.
    """
    a, b = tracked(
        torch.tensor([[0.1], [0.99], [-0.2]], dtype=torch.float64), rand(3, 2)
    )
    adjoint = fp.ImplicitAdjoint(
        max_steps=15, rtol=1e-10, solver=fp.Picard(), on_failure="nan"
    )
    f = lambda z, a, b: a * z + b
    sol = fp.fixed_point(
        f, torch.zeros_like(b), (a, b), batch_ndim=1, rtol=1e-12, adjoint=adjoint
    )
    grad_a, grad_b = torch.autograd.grad(sol.value.sum(), (a, b))
    assert grad_b.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert grad_a.isnan().tolist() == [[False], [True], [False]]
    good = [0, 2]
    close(grad_b[good], (1 / (1 - a.detach()))[good].expand(2, 2))
    close(grad_a[good], (b.detach() / (1 - a.detach()) ** 2).sum(1, keepdim=True)[good])


def test_a_failed_forward_sample_leaves_the_gradients_of_the_others():
    a, b = tracked(torch.tensor([[0.1], [1.0]], dtype=torch.float64), rand(2, 2))
    adjoint = fp.ImplicitAdjoint(rtol=1e-12, on_failure="nan")
    f = lambda z, a, b: a * z + b
    sol = fp.fixed_point(
        f,
        torch.zeros_like(b),
        (a, b),
        batch_ndim=1,
        rtol=1e-12,
        adjoint=adjoint,
        on_failure="nan",
    )
    assert sol.value.isnan().tolist() == [[False] * 2, [True] * 2]
    (grad_b,) = torch.autograd.grad(sol.value[0].sum(), b)
    close(grad_b[0], torch.full((2,), 1 / 0.9, dtype=torch.float64))


def test_the_backward_linearization_costs_two_evaluations_at_most(counted):
    (b,) = tracked(rand(N))
    f = counted(lambda z, b: 0.5 * torch.tanh(z) + b)
    sol = fp.fixed_point(f, torch.zeros_like(b), (b,), rtol=1e-10)
    before = f.calls
    sol.value.sum().backward()
    assert f.calls - before <= 2


class Residual(torch.nn.Module):
    """A module with attributes that operators have too, as users' modules often do."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2).double()])

    def forward(self, z):
        return 0.1 * torch.tanh(self.blocks[0](z))

    def evaluate(self):
        raise AssertionError


def test_a_module_is_no_operator_whatever_its_attributes():
    module = Residual()
    sol = fp.fixed_point(module, torch.zeros(2, dtype=torch.float64))
    sol.value.sum().backward()
    assert bool(sol.converged)
    assert module.blocks[0].weight.grad is not None
