"""Two autograd functions whose rules are written with each other.

``Root`` is z*(θ), where z* = f(z*, θ); ``LinearSolve`` is u(v, z, θ), where (I − A)u =
v with A = J or Jᵀ and J = ∂f/∂z at (z, θ). The derivative of either is a LinearSolve
and a derivative of f, so the pair is closed under differentiation, to every order:

    dz* = (I − J)⁻¹ ∂f/∂θ dθ ,    du = (I − A)⁻¹ (dv + dA u) .

For a root F(z*, θ) = 0 the same holds with f = −F and 0 in place of I.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Any

import torch

from fixedpoint.adjoints.base import Adjoint, LinearAdjoint
from fixedpoint.backend import Vec
from fixedpoint.control import Memory
from fixedpoint.functions import Functions, converted, of_chosen
from fixedpoint.iterate import Iteration
from fixedpoint.run import Run
from fixedpoint.solution import BackwardReport
from fixedpoint_torch import numpy_algebra
from fixedpoint_torch.kept import inside_transform, kept, primals
from fixedpoint_torch.linearization import gradients, products
from fixedpoint_torch.surroundings import exact
from fixedpoint_torch.vectorized import vectorizable

Tensors = tuple[torch.Tensor, ...]


@dataclass(eq=False)
class Call:
    """A run and its adjoint, the number of its leaves, and where to report.

    ``end`` receives where the forward solve ended, and ``memory`` what its solver
    remembers, if the adjoint wants that. Right-hand sides have ``rhs_axes`` axes in
    front that z* and θ lack. Others that they had are batch axes now: for each of these
    ``added`` has the number of batch axes behind it, and its size.
    """

    adjoint: Adjoint
    run: Run
    n: int
    report: BackwardReport
    end: list[Iteration] = field(default_factory=list)
    memory: list[Memory | None] = field(default_factory=lambda: [None])
    rhs_axes: int = 0
    added: tuple[tuple[int, int], ...] = ()

    def image(self, value: Tensors, rest: Tensors) -> Tensors:
        """The map whose fixed point is z*."""
        return self.run.problem.image(value, rest)

    def split(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """The state's leaves, and the rest."""
        return tensors[: self.n], tensors[self.n :]

    def linear_solve(
        self,
        product: Callable[[Vec], Vec],
        rhs: Vec,
        transposed: bool,
        at: tuple[Vec, Vec],
    ) -> Vec:
        """The solution u of (I − A)u = v, reported."""
        value, rest = at
        with exact(rhs[0].device):
            adjoint = self.adjoint
            assert isinstance(adjoint, LinearAdjoint)
            system = adjoint.system(
                self.run.at(rest),
                product,
                rhs,
                transposed=transposed,
                value=value,
                memory=self._remembered(rhs),
                rhs_axes=self.rhs_axes,
            )
            u, end = numpy_algebra.solved(adjoint, system)
        self.report.note(self.run.border.unpack(tuple(x.detach() for x in u)), end)
        # Of an input that is returned a function of autograd saves nothing.
        return tuple(
            [x.view_as(x) if x is v else x for x, v in zip(u, rhs, strict=True)]
        )

    def with_added(self, sizes: Sequence[int]) -> Call:
        """The call where right-hand sides have no axes of their own any more: those in
        front, of these `sizes`, are batch axes.
        """
        behind = self.run.problem.space.batch_ndim
        added = *self.added, *enumerate(reversed(sizes), behind)
        return dataclasses.replace(self, rhs_axes=0, added=added)

    def _remembered(self, rhs: Vec) -> Memory | None:
        """What the forward solver remembers, with the batch axes of right-hand
        sides.
        """
        memory = self.memory[0]
        if memory is None:
            return None
        batch_ndim = memory.contents.used.ndim - 1
        for behind, size in self.with_added(rhs[0].shape[: self.rhs_axes]).added:
            repeat = partial(_repeated, batch_ndim - behind, size)
            memory = memory.converted(partial(converted, repeat))
            batch_ndim = batch_ndim + 1
        return memory

    def vectorized(self, in_dims: tuple[int | None, ...], size: int) -> Call:
        """The call for a map with one more batch axis in front of every state leaf."""
        problem, dims = self.run.problem, ((0,) * self.n, in_dims[self.n :])
        project = problem.functions.project
        functions = Functions.of_image(
            torch.func.vmap(problem.functions.image, in_dims=dims),
            project=project and torch.func.vmap(project),
        )
        problem = dataclasses.replace(
            problem, functions=functions, space=problem.space.widened(size)
        )
        adjoint: Any = self.adjoint
        if adjoint.warm_start is not None:  # of the shape that states had before
            adjoint = dataclasses.replace(adjoint, warm_start=None)
        run = dataclasses.replace(self.run, problem=problem)
        return dataclasses.replace(self, adjoint=adjoint, run=run)


class Root(torch.autograd.Function):
    """The solution z* as a function of all that the map takes."""

    @staticmethod
    def forward(call: Call, *tensors: torch.Tensor) -> Any:
        """Iterate; the tensors are the state's leaves, then the map's."""
        value, rest = call.split(tensors)
        end = numpy_algebra.iterate(call.run.at(rest), value)
        call.end[:] = [end]
        if call.adjoint.shares_memory:
            call.memory[:] = [end.state]
        scalars = end.status, end.residual_norm, end.error, end.precise
        return (*end.value, *scalars, end.steps, end.method)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the solution and the map's tensors."""
        ctx.call = inputs[0]
        n = ctx.call.n
        saved = (*output[:n], *inputs[1 + n :])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.mark_non_differentiable(*output[n:])

    @staticmethod
    @vectorizable
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """(∂f/∂θ)ᵀu with (I − Jᵀ)u = v."""
        call: Call = ctx.call
        value, rest = call.split(kept(ctx))
        needed = ctx.needs_input_grad[1 + call.n :]
        rhs = cotangents[: call.n]
        if torch.is_grad_enabled() or inside_transform():
            u = linear_solve(call, True, *rhs, *value, *rest)
            pulled = _pull(lambda part: call.image(value, part), rest, needed, u)
        else:
            pulled = _pulled_once(call, value, rest, needed, rhs)
        return (None, *(None,) * call.n, *pulled)

    @staticmethod
    @vectorizable
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """(I − J)⁻¹ ∂f/∂θ dθ."""
        call: Call = ctx.call
        given = tangents[1 + call.n :]
        with primals(ctx) as tensors:
            value, rest = call.split(tensors)
            rhs = _push(lambda part: call.image(value, part), rest, given)
            u = linear_solve(call, False, *rhs, *value, *rest)
        return (*u, *(None,) * 6)

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Call, *tensors: torch.Tensor) -> Any:
        """One more batch axis."""
        value, rest = call.split(_to_front(info, in_dims[1:], tensors, call.n))
        mapped = call.vectorized(_front_dims(in_dims[1:], call.n), info.batch_size)
        outputs = root(mapped, *value, *rest)
        return outputs, (0,) * len(outputs)


class LinearSolve(torch.autograd.Function):
    """The solution u of (I − A)u = v, A = Jᵀ if transposed, else J."""

    @staticmethod
    def forward(call: Call, transposed: bool, *tensors: torch.Tensor) -> Any:
        """Iterate on u = Au + v; the tensors are v, z*, and what the map takes."""
        rhs, z, rest = _thirds(call, tensors)
        product = products(call.image, z, rest, transposed, call.rhs_axes)
        return call.linear_solve(product, rhs, transposed, (z, rest))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep the solution, z* and the map's tensors."""
        ctx.call, ctx.transposed = inputs[:2]
        saved = (*output, *inputs[2 + ctx.call.n :])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @vectorizable
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """With s = (I − Aᵀ)⁻¹w: s for v, and the derivative of ⟨s, A u⟩ for z and θ."""
        call: Call = ctx.call
        u, value, rest = _thirds(call, kept(ctx))
        s = linear_solve(call, not ctx.transposed, *cotangents, *value, *rest)
        product = _product_at(call, u, ctx.transposed)
        needed = ctx.needs_input_grad[2 + call.n :]
        return (None, None, *s, *_pull(product, (*value, *rest), needed, s))

    @staticmethod
    @vectorizable
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """(I − A)⁻¹(dv + dA u)."""
        call: Call = ctx.call
        given = tangents[2 : 2 + call.n]
        with primals(ctx) as tensors:
            u, value, rest = _thirds(call, tensors)
            product = _product_at(call, u, ctx.transposed)
            change = _push(product, (*value, *rest), tangents[2 + call.n :])
            rhs = tuple(
                c if g is None else c + g for c, g in zip(change, given, strict=True)
            )
            return linear_solve(call, ctx.transposed, *rhs, *value, *rest)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, call: Call, transposed: bool, *tensors: torch.Tensor
    ) -> Any:
        """One more batch axis."""
        dims = in_dims[2:]
        if all(dim is None for dim in dims[call.n :]):
            rhs = _to_front(info, dims[: call.n], tensors[: call.n], call.n)
            widened = dataclasses.replace(call, rhs_axes=call.rhs_axes + 1)
            outputs = linear_solve(widened, transposed, *rhs, *tensors[call.n :])
        else:
            fronted = _to_front(info, dims, tensors, 2 * call.n)
            fronted, mapped = _rhs_axes_to_batch(call, fronted)
            front = _front_dims(dims[call.n :], call.n)
            mapped = mapped.vectorized(front, info.batch_size)
            outputs = linear_solve(mapped, transposed, *fronted)
        return outputs, (0,) * len(outputs)


# Torch leaves the types of these open.
root: Callable[..., Any] = Root.apply
linear_solve: Callable[..., Any] = LinearSolve.apply


def _rhs_axes_to_batch(call: Call, fronted: Tensors) -> tuple[Tensors, Call]:
    """The call with the axes of its right-hand sides as batch axes of z* too, all of
    which have another axis in front.
    """
    rhs, value, rest = _thirds(call, fronted)
    rhs_axes = tuple(rhs[0].shape[1 : 1 + call.rhs_axes])
    call = call.with_added(rhs_axes)
    for size in reversed(rhs_axes):
        call = call.vectorized((*(0,) * call.n, *(None,) * len(rest)), size)
    spread = []
    for leaf in value:
        front, shape = leaf.shape[0], leaf.shape[1:]
        thin = leaf.reshape(front, *(1,) * len(rhs_axes), *shape)
        spread.append(thin.expand(front, *rhs_axes, *shape).contiguous())
    return (*rhs, *spread, *rest), call


def _repeated(axis: int, size: int, leaf: Any) -> Any:
    """A tensor with one more axis, along which it is the same; all else as it is."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    shape = leaf.shape
    return leaf.unsqueeze(axis).expand(*shape[:axis], size, *shape[axis:])


def _thirds(call: Call, tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
    head, tail = call.split(tensors)
    return head, *call.split(tail)


def _pulled_once(
    call: Call, value: Tensors, rest: Tensors, needed: Any, rhs: Tensors
) -> list[torch.Tensor | None]:
    """The cotangents of the `rest`, by one linearization for the solve and for what
    follows it.

    Nothing is recorded: this is the first derivative, outside of all transforms.
    """
    with torch.enable_grad():
        z = tuple(leaf.detach().requires_grad_() for leaf in value)
        inputs = tuple(
            leaf.detach().requires_grad_(w)
            for leaf, w in zip(rest, needed, strict=True)
        )
        outputs = call.image(z, inputs)
    u = call.linear_solve(lambda u: gradients(outputs, z, u), rhs, True, (value, rest))
    chosen = tuple(compress(inputs, needed))
    pulled = iter(gradients(outputs, chosen, u) if chosen else ())
    return [next(pulled) if wanted else None for wanted in needed]


def _product_at(
    call: Call, u: Tensors, transposed: bool
) -> Callable[[Tensors], Tensors]:
    """The function (z, θ) ↦ A(z, θ) u."""

    def product(inputs: Tensors) -> Any:
        value, rest = call.split(inputs)
        image = lambda z: call.image(z, rest)
        times = (
            _pullback(image, value) if transposed else lambda w: pushed(image, value, w)
        )
        for _ in range(call.rhs_axes):
            times = torch.func.vmap(times)
        return times(u)

    return product


def _pullback(
    function: Callable[[Tensors], Any], value: Tensors
) -> Callable[[Tensors], Any]:
    pullback: Callable[[Tensors], Any] = torch.func.vjp(function, value)[1]
    return lambda w: pullback(w)[0]


def _pull(
    function: Callable[[Tensors], Any],
    inputs: Tensors,
    needed: Any,
    cotangents: Tensors,
) -> list[torch.Tensor | None]:
    """The cotangents of those `inputs` that are `needed`."""
    chosen = tuple(compress(inputs, needed))
    if not chosen:
        return [None] * len(inputs)
    pullback = torch.func.vjp(of_chosen(function, inputs, needed), chosen)[1]
    gradients = iter(pullback(cotangents)[0])
    return [next(gradients) if wanted else None for wanted in needed]


def _push(
    function: Callable[[Tensors], Any], inputs: Tensors, tangents: Any
) -> Tensors:
    """The tangent of `function`; those of None, and of integers, are zero."""
    moving = [
        t is not None and (x.is_floating_point() or x.is_complex())
        for x, t in zip(inputs, tangents, strict=True)
    ]
    chosen, given = tuple(compress(inputs, moving)), tuple(compress(tangents, moving))
    if not chosen:
        return tuple(map(torch.zeros_like, function(inputs)))
    return pushed(of_chosen(function, inputs, moving), chosen, given)


def pushed(
    function: Callable[[Tensors], Any], inputs: Tensors, tangents: Tensors
) -> Tensors:
    """J t as the transpose of w ↦ Jᵀw: dual numbers do not nest in Torch."""
    outputs, pullback, *_ = torch.func.vjp(function, inputs)
    zeros = tuple(map(torch.zeros_like, outputs))
    product: Tensors = torch.func.vjp(lambda w: pullback(w)[0], zeros)[1](tangents)[0]
    return product


def _front_dims(in_dims: Any, states: int) -> tuple[int | None, ...]:
    """Where the new axis lies: in front, or nowhere for what all share."""
    rest = (None if dim is None else 0 for dim in in_dims[states:])
    return (*(0,) * states, *rest)


def _to_front(info: Any, in_dims: Any, tensors: Tensors, states: int) -> Tensors:
    """Move the new axis to the front, repeating states that lack it."""
    fronted = []
    for index, (tensor, dim) in enumerate(zip(tensors, in_dims, strict=True)):
        if dim is not None:
            fronted.append(tensor.movedim(dim, 0).contiguous())
        elif index < states:
            fronted.append(tensor.expand(info.batch_size, *tensor.shape).contiguous())
        else:
            fronted.append(tensor)
    return tuple(fronted)
