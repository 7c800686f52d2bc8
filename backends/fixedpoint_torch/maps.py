"""The user's map in Torch: modules made functional, hidden tensors found."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from fixedpoint.backend import Vec
from fixedpoint.evaluator import Evaluated
from fixedpoint.functions import Bridge, Functions, Mapped
from fixedpoint_torch.parametrized import WithWeights


class HiddenTensorError(ValueError):
    """The map uses a tensor that requires grad, but that it was not passed."""


_HIDDEN = (
    "f uses a tensor that requires a gradient, carries a tangent or is mapped over, "
    "without being passed it, so its derivative would be lost. Pass the tensor through "
    "args, f(z, *args); or give the nn.Module itself as f; or detach the tensor"
)
_MADE = (
    ". If it is in a module in args: give dict(module.named_parameters()) there, for "
    "torch.func.functional_call. If f makes it itself, to form a gradient by "
    "torch.autograd.grad: torch.func.grad forms it without"
)


# A module has other parameters as long as it is called with them: threads that share it
# take turns.
_LOCKS: WeakKeyDictionary[torch.nn.Module, Any] = WeakKeyDictionary()


class _Method(torch.nn.Module):
    """A method of a module, as a module."""

    def __init__(self, inner: torch.nn.Module, name: str) -> None:
        super().__init__()
        self.inner = inner
        self.name = name
        self.lock = _LOCKS.setdefault(inner, RLock())

    def named(self) -> dict[str, torch.Tensor]:
        """The parameters, each once even if tied."""
        with self.lock:
            return dict(self.named_parameters())

    def called(self, values: dict[str, torch.Tensor], args: tuple[Any, ...]) -> Any:
        """Call the method with other tensors in place of those of these names."""
        with self.lock:
            named = dict([*self.named_parameters(), *self.named_buffers()])
            others = {id(named[name]): value for name, value in values.items()}
            with _exchanged(self, others):
                return self(*args)

    def forward(self, *args: Any) -> Any:
        """Call the method."""
        return getattr(self.inner, self.name)(*args)


@contextmanager
def _exchanged(
    module: torch.nn.Module, others: dict[int, torch.Tensor]
) -> Iterator[None]:
    """Have others stand for the tensors of these ids, wherever `module` keeps them.

    Places are visited once, however many names lead there:
    ``torch.func.functional_call`` goes by names, and of a submodule that has two it
    would keep the other tensors.
    """
    places: list[tuple[dict[str, Any], str, Any]] = [
        (kept, name, tensor)
        for part in module.modules()
        for kept in (part._parameters, part._buffers)
        for name, tensor in kept.items()
        if id(tensor) in others
    ]
    try:
        for kept, name, tensor in places:
            kept[name] = others[id(tensor)]
        yield
    finally:
        for kept, name, tensor in places:
            kept[name] = tensor


def _as_module(f: Callable[..., Any]) -> _Method | None:
    """`f` as a module, if it is one or a bound method of one."""
    if isinstance(f, torch.nn.Module):
        return _Method(f, "__call__")
    owner = getattr(f, "__self__", None)
    return _Method(owner, f.__name__) if isinstance(owner, torch.nn.Module) else None


def lift(f: Callable[..., Any]) -> Vec:
    """The parameters of a module that is used as a map, each once even if tied."""
    module = _as_module(f)
    if module is None:
        return ()
    parts = list(module.modules())
    if any(isinstance(part, _distributing()) for part in parts):
        raise TypeError(
            "DDP and FSDP act on every call of a module, and a solve calls f many "
            "times: apply them to the DEQ or to what holds it, not to the cell or a "
            "part of it"
        )
    parametrized = any(map(parametrize.is_parametrized, parts))
    if parametrize._cache_enabled and parametrized and not isinstance(f, WithWeights):
        raise ValueError(
            "inside parametrize.cached() a module's parametrized weights are "
            "constants, so their gradients would be lost: solve outside of it, or by "
            "fixedpoint_torch.DEQ"
        )
    return tuple(module.named().values())


def _distributing() -> tuple[type, ...]:
    """The modules that gather weights or send gradients, if they are imported."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    names = ("FSDPModule", "FullyShardedDataParallel")
    found = [getattr(fsdp, name) for name in names if hasattr(fsdp, name)]
    return (torch.nn.parallel.DistributedDataParallel, *found)


def pure(f: Callable[..., Any], parameters: Vec) -> Callable[..., Any]:
    """`f` as a function of its `parameters`, that leaves its buffers as they are."""
    module = _as_module(f)
    if module is None:
        return f
    values = dict(zip(module.named(), parameters, strict=True))

    def call(*args: Any) -> Any:
        with module.lock:
            buffers = {name: b.detach().clone() for name, b in module.named_buffers()}
            return module.called({**buffers, **values}, args)

    return call


def refusing_hidden(functions: Functions) -> Callable[[Vec], Mapped]:
    """The map for the first evaluation, which fails if its output depends on a tensor
    not passed.

    That evaluation is recorded with all inputs detached, so that an output which still
    requires a gradient, or has a tangent, must have found one elsewhere. No evaluation
    is spent on it.
    """
    assert functions.substituted is not None
    seen: list[Any] = []
    probe = functions.substituted(_noted(seen))

    def first(args: Vec, bridge: Bridge | None = None) -> Mapped:
        mapped = probe(_all_detached(args))

        def checked(value: Vec) -> Evaluated:
            value = value if bridge is None else bridge.all_back(value)
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                image, tested = mapped(_all_detached(value))
                _refuse_hidden(image, seen)
            found = _all_detached(image), tested and tested.across(_all_detached)
            return found if bridge is None else bridge.evaluated_there(found)

        return checked

    return first


def _all_detached(leaves: Vec) -> Vec:
    return tuple(leaf.detach() for leaf in leaves)


def refuse_hidden(functions: Functions, value: Vec, args: Vec) -> None:
    """Raise if the output of the map depends on a tensor not passed, inside
    ``torch.func``.

    An autograd function runs beneath the transforms, where what they track cannot be
    seen: this costs an evaluation of its own, above it.
    """
    assert functions.substituted is not None
    seen: list[Any] = []
    probe = functions.substituted(_noted(seen))
    inputs = _all_detached(value), _all_detached(args)
    image = probe(inputs[1])(inputs[0])[0]
    _refuse_hidden(image, seen)
    known = {
        level for leaf in (*inputs[0], *inputs[1]) for level in _mapped_levels(leaf)
    }
    if any(level not in known for leaf in image for level in _mapped_levels(leaf)):
        raise HiddenTensorError(_HIDDEN + _captured_by(seen))


def _mapped_levels(leaf: torch.Tensor) -> list[int]:
    """The levels of ``torch.func.vmap`` that map over `leaf`."""
    functorch = torch._C._functorch
    return [
        functorch.maybe_get_level(t)
        for t in unwrap(leaf)
        if functorch.is_batchedtensor(t)
    ]


def is_dtensor(leaf: Any) -> bool:
    """Whether `leaf` is a DTensor, maybe beneath transforms, without an import."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or not isinstance(leaf, torch.Tensor):
        return False
    return isinstance(unwrap(leaf)[-1], module.DTensor)


def unwrap(tensor: torch.Tensor) -> list[torch.Tensor]:
    """`tensor`, and what the transforms of ``torch.func`` wrapped, layer by layer."""
    layers = [tensor]
    while torch._C._functorch.is_functorch_wrapped_tensor(layers[-1]):
        layers.append(torch._C._functorch.get_unwrapped(layers[-1]))
    return layers


def _detached(f: Callable[..., Any]) -> Callable[..., Any]:
    module = _as_module(f)
    if module is None:
        return f
    values = {name: parameter.detach() for name, parameter in module.named().items()}
    return lambda *args: module.called(values, args)


def _noted(seen: list[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Like :func:`_detached`, and leaves the function in `seen`, for messages."""

    def detached(f: Callable[..., Any]) -> Callable[..., Any]:
        seen[:] = [f]
        return _detached(f)

    return detached


def _refuse_hidden(image: Vec, seen: list[Any]) -> None:
    layers = [layer for leaf in image for layer in unwrap(leaf)]
    if any(layer.requires_grad or _has_tangent(layer) for layer in layers):
        raise HiddenTensorError(_HIDDEN + _captured_by(seen))


def _captured_by(functions: list[Any]) -> str:
    """The names of tensors and modules that functions capture, as far as is known; or
    what else there may be.
    """
    names: list[str] = []
    for function in functions:
        try:
            found = inspect.getclosurevars(getattr(function, "__func__", function))
        except (TypeError, ValueError):  # no function of Python's, or an empty cell
            continue
        captured = {**found.globals, **found.nonlocals}
        names += [name for name, value in captured.items() if _is_tracked(value)]
    return f". f captures {', '.join(names)}" if names else _MADE


def _is_tracked(value: Any) -> bool:
    """Whether this is a tensor, or holds one, that derivatives are recorded for."""
    if isinstance(value, torch.nn.Module):
        return any(map(_is_tracked, value.parameters()))
    return isinstance(value, torch.Tensor) and (
        value.requires_grad or unwrap(value)[-1] is not value or _has_tangent(value)
    )


def _has_tangent(leaf: torch.Tensor) -> bool:
    return forward_ad.unpack_dual(leaf).tangent is not None  # type: ignore[no-untyped-call]
