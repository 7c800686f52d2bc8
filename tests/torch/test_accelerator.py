"""What an accelerator is spared, played by the processor: waits for it, evaluations
and operations.
"""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fixedpoint as fp
from fixedpoint_torch import numpy_algebra
from fixedpoint_torch.backend import TorchBackend


class Operations(TorchDispatchMode):
    """Counts the operations, and those for whose result the host waits."""

    def __init__(self):
        super().__init__()
        self.number, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.number += 1
        self.reads += "_local_scalar_dense" in str(function)
        return found


@pytest.fixture
def accelerated(monkeypatch):
    """In this context tensors are taken to lie on a device, where none can be read for
    nothing, and whose algebra is that of Torch.
    """

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(TorchBackend, "is_readable", lambda *_: False)
            patch.setattr(TorchBackend, "defers", lambda *_: True)
            patch.setattr(numpy_algebra, "_can_hold", lambda _: False)
            yield

    return context


def batch(sizes, dtype=torch.float64):
    """The factors and the data of a batch of a state of 16 entries."""
    rng = np.random.default_rng(0)
    W = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    a, x = np.reshape(sizes, (-1, 1)), rng.standard_normal((len(sizes), 16))
    return [torch.as_tensor(array, dtype=dtype) for array in (W, a, x)]


@pytest.mark.parametrize("by", [fp.fixed_point, fp.root])
def test_every_solver_does_as_on_the_processor(accelerated, counted, solver, by):
    """The same steps and evaluations, and the same is said of them."""
    W, a, x = batch([0.1, 0.5, 0.9, 0.0])
    args = (a, x)
    x0 = torch.zeros_like(x)
    image = lambda z, a, x: torch.tanh(0.5 * a * (z @ (W + W.T))) + x
    f = image if by is fp.fixed_point else lambda z, a, x: z - image(z, a, x)
    settings = {"solver": solver, "batch_ndim": 1, "on_failure": "return"}

    def solved():
        function = counted(f)
        return by(function, x0, args, **settings), function.calls

    there, evaluations = solved()
    with accelerated():
        here, calls = solved()
    assert calls == evaluations
    assert here.status.tolist() == there.status.tolist()
    assert here.steps.tolist() == there.steps.tolist()
    torch.testing.assert_close(here.value, there.value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(here.error, there.error, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("solver", [fp.Picard(), fp.Anderson(), fp.Broyden()])
@pytest.mark.parametrize(
    ("sizes", "reads", "dtype", "most"),
    [
        ([0.7] * 4, 1, torch.float64, 325),
        ([0.7] * 4, 1, torch.float32, 256),
        ([0.0, 0.7, 0.7], 2, torch.float64, 412),
    ],
)
def test_waits_and_operations(accelerated, solver, sizes, reads, dtype, most):
    """Once a step it is asked whether samples may have ended; twice after some have."""
    W, a, x = batch(sizes, dtype)
    counts, settings = [], {"rtol": 1e-14, "atol": 0.0, "on_failure": "return"}
    for steps in (4, 12):
        with accelerated(), torch.no_grad(), Operations() as operations:
            sol = fp.fixed_point(
                lambda z, a, x: a * torch.tanh(z @ W + x),
                torch.zeros_like(x),
                (a, x),
                solver=solver,
                batch_ndim=1,
                max_steps=steps,
                **settings,
            )
        assert int(sol.steps.max()) == steps
        counts.append((operations.reads, operations.number))
    waits, number = ((b - a) / 8 for a, b in zip(*counts, strict=True))
    assert waits <= reads
    assert number <= most


@pytest.mark.parametrize("solver", [None, "newton"])
def test_what_rounding_leaves_unknown_is_in_the_error(accelerated, solver):
    """A claim is held against rounding there, too."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        V, slow = rng.standard_normal((2, 2)), 1.0 - 10.0 ** -rng.uniform(7.0, 11.0)
        A = torch.as_tensor(V @ np.diag([slow, 0.5]) @ np.linalg.inv(V))
        z = torch.as_tensor(rng.standard_normal(2))
        with accelerated():
            sol = fp.fixed_point(
                lambda z, A=A, b=z - A @ z: A @ z + b,
                torch.zeros(2, dtype=torch.float64),
                solver=solver,
                rtol=1e-13,
                on_failure="return",
            )
        # The data are rounded, too, which is amplified alike.
        error = float((sol.value - z).norm())
        assert not sol.converged or error <= 100.0 * float(sol.error)


@pytest.mark.parametrize(
    "adjoint",
    [
        fp.ImplicitAdjoint(),
        fp.ImplicitAdjoint(solver="broyden"),
        fp.NeumannSeries(steps=20),
        fp.JacobianFree(),
        fp.Unrolled(),
    ],
)
def test_first_and_second_derivatives(accelerated, counted, adjoint):
    W, a, data = batch([0.1, 0.5, 0.9, 0.0])

    def derivatives():
        x = data.clone().requires_grad_()
        f = counted(lambda z, x, a: torch.tanh(0.5 * a * (z @ (W + W.T))) + x)
        settings = {"batch_ndim": 1, "rtol": 1e-10, "adjoint": adjoint}
        value = fp.fixed_point(f, torch.zeros_like(x), (x, a), **settings).value
        (first,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return [first.detach(), second], f.calls

    there, evaluations = derivatives()
    with accelerated():
        here, calls = derivatives()
    assert calls == evaluations
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rtol", [-1.0, float("nan")])
def test_tolerances_are_read(accelerated, rtol):
    with accelerated(), pytest.raises(ValueError, match="rtol must be finite"):
        fp.fixed_point(torch.cos, torch.ones(2), rtol=torch.tensor(rtol))


@pytest.mark.parametrize(
    ("dtype", "power"), [(torch.float64, 600), (torch.float32, 80)]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_norms_whose_squares_under_or_overflow(accelerated, dtype, power, sign):
    W, a, x = batch([0.5, 0.9], dtype)
    unit = 2.0 ** (sign * power)

    def solved(norm):
        f = lambda z: unit * (torch.tanh(a * (z / unit) @ W) + x)
        pair = lambda z: {"a": f(z["b"])[..., None], "b": f(z["a"][..., 0])}
        start = {"a": torch.zeros_like(x)[..., None], "b": torch.zeros_like(x)}
        settings = {"batch_ndim": 1, "rtol": 1e-4, "on_failure": "return"}
        settings |= {"solver": fp.Picard(), "norm": norm}
        return fp.fixed_point(pair, start, **settings)

    for norm in ("leaves", "euclidean"):
        there = solved(norm)
        with accelerated():
            here = solved(norm)
        assert here.converged.all()
        assert here.steps.tolist() == there.steps.tolist()
        found, known = here.value["b"] / unit, there.value["b"] / unit
        torch.testing.assert_close(found, known)
        errors = here.error / unit, there.error / unit
        torch.testing.assert_close(*errors, rtol=0.1, atol=0)
