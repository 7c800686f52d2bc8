"""Derivatives of every order against closed forms, on every library that
differentiates.
"""

import functools
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch.utils.checkpoint import checkpoint

import fixedpoint as fp
from fixedpoint.testing.strategies import KnownMap, known_map, known_maps

EPS = np.finfo(np.float64).eps
META = ("is_root", "shape", "splits")
jax.tree_util.register_dataclass(
    KnownMap, [f.name for f in fields(KnownMap) if f.name not in META], list(META)
)

# As tight as rounding allows; what they reach is judged by the errors.
GMRES = fp.NewtonKrylov(linear=fp.GMRES(restart=10), forcing=1e-3, line_search=False)
STEEP = fp.Newton(line_search=False)
EXACT = {
    "solver": STEEP,
    "rtol": EPS,
    "atol": 0.0,
    "max_steps": 12,
    "on_failure": "return",
    "adjoint": fp.ImplicitAdjoint(
        solver=GMRES, rtol=1e-14, max_steps=6, on_failure="return"
    ),
}


def tight(solver):
    """The settings of a solver that JAX compiles fast, since it stands alone."""
    adjoint = fp.ImplicitAdjoint(solver=solver, rtol=1e-13)
    return {"solver": solver, "rtol": 1e-13, "atol": 1e-15, "adjoint": adjoint}


TIGHT, NEWTON = tight(fp.Picard()), tight(STEEP)
DEFAULT = {
    "rtol": 1e-14,
    "atol": 1e-14,
    "on_failure": "return",
    "adjoint": fp.ImplicitAdjoint(rtol=1e-14, on_failure="return"),
}


@dataclass(frozen=True)
class Library:
    """An array library, and its transforms, which have the same names in both."""

    xp: ModuleType
    calculus: Any

    def array(self, values: Any, dtype: str = "float64") -> Any:
        return self.xp.asarray(np.asarray(values), dtype=getattr(self.xp, dtype))

    def cast(self, array: Any, dtype: str) -> Any:
        return (
            array.to(getattr(torch, dtype)) if self.xp is torch else array.astype(dtype)
        )

    def compiled(self, function: Any) -> Any:
        return function if self.xp is torch else jax.jit(function)

    def numpy(self, tree: Any) -> Any:
        return jax.tree.map(
            lambda x: np.asarray(getattr(x, "detach", lambda: x)()), tree
        )

    def zeros(self, known: KnownMap) -> Any:
        return self.array(np.zeros(known.parameters_shape))


TORCH, JAX = Library(torch, torch.func), Library(jnp, jax)


@pytest.fixture(scope="module", params=[TORCH, JAX], ids=["torch", "jax"])
def library(request):
    return request.param


def found(known, t, settings=TIGHT):
    """z*(t) as one leaf, by the library."""
    solve = fp.root if known.is_root else fp.fixed_point
    settings = {"batch_ndim": known.batch_ndim, **settings}
    return known.joined(solve(known, known.start(t), known.args(t), **settings).value)


def assert_close(one, other, tolerance=1e-9):
    one, other = np.asarray(one), np.asarray(other)
    assert one.shape == other.shape
    assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


# The contract.

# Each class is compiled once by JAX, for seconds: kinds of maps, and the modes of the
# first, second and third derivative, which are of three kinds there.
CLASSES = [
    ("rrr", "rrr", {"size": 4, "shape": "tanh", "leaves": 1, "samples": None}),
    ("rrf", "fr", {"size": 6, "shape": "quadratic", "leaves": 3, "samples": None}),
    ("fff", "fff", {"size": 4, "shape": "exponential", "leaves": 2, "samples": 3}),
    (
        "rrr",
        "rf",
        {"size": 5, "shape": "tanh", "leaves": 2, "samples": None, "is_root": True},
    ),
    (
        "frr",
        "rff",
        {"size": 3, "shape": "quadratic", "leaves": 1, "samples": 2, "is_root": True},
    ),
]


def climbed(library, function, mode):
    """From t ↦ y to t ↦ ∂y/∂t₁, on the way to which ∂y/∂t is noted: all of it in
    reverse mode.
    """
    calculus = library.calculus

    def reverse(t):
        def total(t):
            value, noted = function(t)
            return value.sum(), noted

        gradient, noted = calculus.grad(total, has_aux=True)(t)
        return gradient[..., 0], (*noted, gradient)

    def forward(t):
        unit = library.array([1.0, 0.0]) + 0.0 * t
        _, tangent, noted = calculus.jvp(function, (t,), (unit,), has_aux=True)
        return tangent, (*noted, tangent[..., None])

    return reverse if mode == "r" else forward


def derivatives(library, function, modes):
    """From t ↦ (y, what is noted) to what is noted on the way to the last of the
    derivatives.
    """
    for mode in modes:
        function = climbed(library, function, mode)
    return lambda t: function(t)[1]


def assert_contract(known, weights, orders):
    """Within max(1e-9, 10 κ² eps) of the value and each derivative, for each sample."""
    bound = np.maximum(1e-9, 10.0 * known.condition**2 * EPS)
    value = known.derivative(0)
    errors = [norm(orders[0] - value) / norm(value)]
    for order, gradient in enumerate(orders[1:], 1):
        exact = known.derivative(order)[
            (..., *(0,) * (order - 1), slice(gradient.shape[-1]))
        ]
        error = norm(gradient - np.einsum("...i,...ij->...j", weights, exact))
        errors.append(error / (norm(weights) * np.linalg.norm(exact, axis=(-2, -1))))
    assert all(np.all(error <= bound) for error in errors), (errors, bound)


def norm(vectors):
    return np.linalg.norm(vectors, axis=-1)


def weights_of(known):
    return np.random.default_rng(0).standard_normal(known.center.shape)


@functools.cache
def weighted(library, modes, is_default=False):
    """z*(t) and the derivatives of ⟨w, z*⟩: JAX compiles them once for each kind of
    maps.
    """

    def orders(known, t, weights):
        def function(t):
            value = found(known, t, DEFAULT if is_default else EXACT)
            return (weights * value).sum(-1), (value,)

        return derivatives(library, function, modes)(t)

    return library.compiled(orders)


def check(library, modes, known, **which):
    t, weights = (
        library.array(np.zeros(known.parameters_shape)),
        library.array(weights_of(known)),
    )
    orders = weighted(library, modes, **which)(known, t, weights)
    assert_contract(known, weights_of(known), library.numpy(orders))


@pytest.mark.parametrize(("torch_modes", "jax_modes", "kind"), CLASSES)
def test_derivatives_up_to_the_third(library, torch_modes, jax_modes, kind):
    modes = torch_modes if library is TORCH else jax_modes

    # Always the same maps: of others, rounding alone takes one in thousands past the
    # bound.
    @settings(
        max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(known_maps(**{"is_root": False, **kind}))
    def run(known):
        check(library, modes, known)

    run()


def test_derivatives_with_nothing_but_tolerances_set(library):
    """The solver and the adjoint that nobody chose: one with a matrix, up to sixteen
    unknowns.
    """
    for seed in range(6) if library is TORCH else [0]:
        size = 5 if seed % 2 else 18
        known = known_map(seed, radius=0.999, size=size, leaves=3)
        check(library, "rrr" if library is TORCH else "r", known, is_default=True)


# Named cases.


def orders_of(library, function, t, modes="rrr"):
    """A scalar function and its derivatives: third ones in Torch alone, as JAX takes
    seconds to compile each, and has one of each kind above.
    """
    modes = modes if library is TORCH else modes[:2]

    def noted(t):
        value = function(t[0])
        return value, (value,)

    orders = library.compiled(derivatives(library, noted, modes))(
        library.array([t, 0.0])
    )
    values = library.numpy(orders)
    return [values[0], *(gradient[0] for gradient in values[1:])]


def exact_orders(function, t, orders=3):
    """The same of a function in extended precision."""
    with mpmath.workdps(40):
        return [
            float(mpmath.diff(function, mpmath.mpf(t), n)) for n in range(orders + 1)
        ]


def assert_orders(found, expected, tolerance=1e-10):
    """As many as were computed."""
    np.testing.assert_allclose(found, expected[: len(found)], rtol=tolerance)


def test_a_neuron(library):
    def solution(a):
        f = lambda z, a: library.xp.tanh(a * z) + 0.3 * a
        return fp.fixed_point(f, library.array(0.3), (a,), **TIGHT).value

    def exact(a):
        gap = lambda z: z - mpmath.tanh(a * z) - mpmath.mpf("0.3") * a
        return mpmath.findroot(gap, mpmath.mpf("0.3"))

    expected = exact_orders(exact, 0.5)
    np.testing.assert_allclose(expected[2], 3.996551090053116, rtol=1e-15)
    assert_orders(orders_of(library, solution, 0.5), expected)


def test_lambert(library):
    """The root of x eˣ = t."""

    def solution(t):
        F = lambda x, t: x * library.xp.exp(x) - t
        return fp.root(F, library.array(0.5), (t,), **NEWTON).value

    expected = exact_orders(mpmath.lambertw, 1.5)
    assert_orders(orders_of(library, solution, 1.5), expected)


def test_layers_of_tanh(library):
    """A map without closed form, by Newton's method in extended precision."""
    W = np.array([[0.5, -0.75], [0.75, 0.25]])

    def solution(t):
        f = lambda z, t: library.xp.tanh(
            library.array(W) @ z + library.array([1.0, 2.0]) * t
        )
        return fp.fixed_point(f, library.array([0.5, 0.5]), (t,), **TIGHT).value[0]

    def exact(t):
        gap = lambda x, y: [
            x - mpmath.tanh(0.5 * x - 0.75 * y + t),
            y - mpmath.tanh(0.75 * x + 0.25 * y + 2 * t),
        ]
        return mpmath.findroot(gap, [0.5, 0.5])[0]

    assert_orders(orders_of(library, solution, 0.4), exact_orders(exact, 0.4))


def products_of(library, function):
    """Those of the Jacobian of a function of t, and of more, with a tangent and a
    cotangent: in JAX all of it is far slower to trace, as that takes its columns in
    lanes.
    """
    calculus = library.calculus

    def products(t, tangent, cotangent, *args):
        of_t = lambda t: function(t, *args)
        (pulled,) = calculus.vjp(of_t, t)[1](cotangent)
        return calculus.jvp(of_t, (t,), (tangent,))[1], pulled

    compiled = library.compiled(products)
    return lambda *arrays: library.numpy(compiled(*map(library.array, arrays)))


def parts(z):
    """A complex array as a real one."""
    return z.real, z.imag


def same_derivatives(library, one, other, t):
    """Whether two functions of a vector t, with two results, agree, and so do their
    first and second derivatives along a random direction.
    """
    calculus, rng = library.calculus, np.random.default_rng(0)
    direction, weights = map(library.array, (rng.standard_normal(len(t)), [0.7, -1.3]))

    def orders(function, t):
        def loss(t):
            value = function(t)
            return weights[0] * value[0] + weights[1] * value[1], value

        def slope(t):
            gradient, value = calculus.grad(loss, has_aux=True)(t)
            return (gradient * direction).sum(), (value, gradient)

        pushed = calculus.jvp(function, (t,), (direction,))[1]
        return pushed, calculus.grad(slope, has_aux=True)(t)

    found, expected = (
        jax.tree.leaves(library.compiled(functools.partial(orders, g))(t))
        for g in (one, other)
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(library.numpy(a), library.numpy(b))


def test_a_map_that_is_not_holomorphic(library):
    """z = a z̄ + b, whose solution is (b + a b̄)/(1 − |a|²)."""

    def solution(t):
        a, b = t[0] + 1j * t[1], t[2] + 1j * t[3]
        f = lambda z, a, b: a * z.conj() + b
        return parts(fp.fixed_point(f, 0.0 * b, (a, b), **TIGHT).value)

    def exact(t):
        a, b = t[0] + 1j * t[1], t[2] + 1j * t[3]
        return parts((b + a * b.conj()) / (1.0 - (a * a.conj()).real))

    same_derivatives(library, solution, exact, library.array([0.3, -0.5, 1.0, 2.0]))


def test_a_complex_root(library):
    """z² = w."""

    def solution(t):
        w = t[0] + 1j * t[1]
        return parts(
            fp.root(lambda z, w: z * z - w, 1.0 + 0.0 * w, (w,), **NEWTON).value
        )

    def exact(t):
        return parts(library.xp.sqrt(t[0] + 1j * t[1]))

    same_derivatives(library, solution, exact, library.array([0.5, 2.0]))


def test_integers_among_the_arguments(library):
    index = library.array([2, 0, 2], "int64")

    def solution(gain):
        f = lambda z, args: 0.5 * z + args["gain"][args["index"]]
        args = ({"index": index, "gain": gain},)
        return fp.fixed_point(f, library.array(np.zeros(3)), args, **TIGHT).value

    tangent, cotangent = np.array([1.0, -2.0, 0.5]), np.array([0.5, 1.0, -1.0])
    products = products_of(library, solution)
    pushed, pulled = products([1.0, 2.0, 3.0], tangent, cotangent)
    jacobian = 2.0 * np.eye(3)[[2, 0, 2]]
    assert_close(pushed, jacobian @ tangent)
    assert_close(pulled, cotangent @ jacobian)


@pytest.mark.parametrize("modes", ["rr", "rf", "fr"])
def test_an_argument_that_one_leaf_alone_uses(library, modes):
    """z = (2t, 2): the other leaf has neither a tangent nor a cotangent."""

    def solution(t):
        f = lambda z, t: (0.5 * z[0] + t, 0.5 * z[1] + 1.0)
        return (
            t
            * fp.fixed_point(f, (library.array(1.0),) * 2, (t,), **TIGHT).value[0] ** 2
        )

    found = orders_of(library, solution, 0.5, modes)
    np.testing.assert_allclose(found, [0.5, 3.0, 12.0], rtol=1e-9)


@pytest.mark.parametrize("solve", [fp.fixed_point, fp.root])
def test_an_argument_that_is_ignored(library, solve):
    def solution(b, ignored):
        f = lambda z, b, ignored: 0.5 * z + b
        return solve(f, library.array(np.zeros(2)), (b, ignored), **TIGHT).value.sum()

    def slope(b, ignored):
        gradients = library.calculus.grad(solution, argnums=(0, 1))(b, ignored)
        return gradients[1].sum(), gradients

    twice = library.calculus.grad(slope, argnums=1, has_aux=True)
    args = library.array([1.0, 2.0]), library.array([3.0])
    second, (first, ignored) = library.numpy(library.compiled(twice)(*args))
    assert_close(first, [2.0, 2.0] if solve is fp.fixed_point else [-2.0] * 2)
    np.testing.assert_array_equal(ignored, [0.0])
    np.testing.assert_array_equal(second, [0.0])


def test_leaves_of_two_precisions(library):
    """high = 2t and low = (2t·s)/0.75."""

    adjoint = fp.ImplicitAdjoint(solver=fp.Picard())

    def f(z, t, s):
        lowered = library.cast(z["high"], "float32") * s
        return {"high": 0.5 * z["high"] + t, "low": 0.25 * z["low"] + lowered}

    def solution(t, s):
        start = {"high": library.array([0.0]), "low": library.array([0.0], "float32")}
        value = fp.fixed_point(
            f, start, (t, s), solver=fp.Picard(), adjoint=adjoint
        ).value
        assert value["low"].dtype == library.xp.float32
        return value["low"].sum()

    args = library.array([3.0]), library.array([0.5], "float32")
    gradients = library.compiled(library.calculus.grad(solution, argnums=(0, 1)))(*args)
    assert [g.dtype for g in gradients] == [library.xp.float64, library.xp.float32]
    np.testing.assert_allclose(library.numpy(gradients[0]), [4.0 / 3.0], rtol=1e-5)
    np.testing.assert_allclose(library.numpy(gradients[1]), [8.0], rtol=1e-5)
    pushed = library.compiled(
        lambda *args: library.calculus.jvp(solution, args, args)[1]
    )
    np.testing.assert_allclose(library.numpy(pushed(*args)), 8.0, rtol=1e-5)


# Transforms.

KNOWN = known_map(3, radius=0.5, size=3, leaves=2)
T = np.array([[0.0, 0.0], [0.2, -0.1], [-0.3, 0.4]])
# In JAX, where each takes many seconds to trace, one third derivative of each kind is
# compiled above, without the lanes in which a Jacobian has its columns.
COMPOSITIONS = {
    TORCH: ["rr", "rf", "fr", "ff", "rrr", "rrf", "frr", "frf", "fff"],
    JAX: ["fr"],
}
TRANSFORMS = {"f": "jacfwd", "r": "jacrev"}


@pytest.mark.parametrize(
    ("library", "modes"),
    [(library, modes) for library in COMPOSITIONS for modes in COMPOSITIONS[library]],
    ids=lambda value: value if isinstance(value, str) else value.calculus.__name__,
)
def test_jacobians_of_jacobians(library, modes):
    """With the first on the way to the others."""

    def first(t):
        jacobian = getattr(library.calculus, TRANSFORMS[modes[0]])
        found_first = jacobian(functools.partial(found, KNOWN))(t)
        return found_first, found_first

    function = first
    for mode in modes[1:]:
        transform = getattr(library.calculus, TRANSFORMS[mode])
        function = transform(function, has_aux=True)
    jacobian, once = library.numpy(library.compiled(function)(library.array(T[1])))
    assert_close(once, KNOWN.derivative(1, T[1]))
    assert_close(jacobian, KNOWN.derivative(len(modes), T[1]))


def test_products(library):
    tangent, cotangent = np.array([1.0, -2.0]), np.array([0.5, 1.0, -1.0])
    products = products_of(library, functools.partial(found, KNOWN))
    pushed, pulled = products(T[1], tangent, cotangent)
    assert_close(pushed, KNOWN.derivative(1, T[1]) @ tangent)
    assert_close(pulled, cotangent @ KNOWN.derivative(1, T[1]))


def from_start(start, t):
    """z* from a given start, moved."""
    value = KNOWN.start(t)
    moved = jax.tree.map(lambda leaf: leaf + start, value)
    return KNOWN.joined(fp.fixed_point(KNOWN, moved, KNOWN.args(t), **TIGHT).value)


@pytest.mark.parametrize(
    ("mapped", "modes"), [((0, None), "r"), ((None, 0), "f"), ((0, 0), "rf")]
)
def test_lanes(library, mapped, modes):
    """Of the start, of the arguments and of both; of the value and derivatives of
    ⟨w, z*⟩.
    """
    both, weights = (np.array([0.0, 0.05, -0.05]), T), np.array([1.0, -2.0, 0.5])

    def orders(start, t):
        def function(t):
            value = from_start(start, t)
            return (library.array(weights) * value).sum(), (value,)

        return derivatives(library, function, modes)(t)

    args = [
        library.array(x if axis == 0 else x[1])
        for x, axis in zip(both, mapped, strict=True)
    ]
    lanes = library.compiled(library.calculus.vmap(orders, mapped))(*args)
    value, *gradients = library.numpy(lanes)
    ts = T if mapped[1] == 0 else T[[1, 1, 1]]
    assert_close(value, np.stack([KNOWN.derivative(0, t) for t in ts]))
    for order, gradient in enumerate(gradients, 1):
        inner = (slice(None), *(0,) * (order - 1), slice(gradient.shape[-1]))
        exact = [weights @ KNOWN.derivative(order, t)[inner] for t in ts]
        assert_close(gradient, np.stack(exact))


def test_gradient_of_lanes(library):
    """Of one loss over all lanes."""

    def loss(ts):
        return (lanes(ts) ** 2).sum()

    lanes = library.calculus.vmap(functools.partial(found, KNOWN))
    gradient = library.compiled(library.calculus.grad(loss))(library.array(T))
    pairs = [(KNOWN.derivative(0, t), KNOWN.derivative(1, t)) for t in T]
    assert_close(library.numpy(gradient), np.stack([2.0 * z @ dz for z, dz in pairs]))


def test_a_tangent_of_the_start_has_no_effect(library):
    def pushed(start, t):
        function = lambda start: from_start(start, t)
        return library.calculus.jvp(function, (start,), (start + 1.0,))[1]

    tangent = library.compiled(pushed)(library.array(0.0), library.array(T[0]))
    np.testing.assert_array_equal(library.numpy(tangent), np.zeros(3))


# What f returns besides.


@pytest.mark.parametrize("modes", ["rrr", "fr"])
def test_derivatives_of_what_f_returns_besides(library, modes):
    """z = (z + t/z)/2 is √t, and z³t is t^(5/2)."""

    def besides(t):
        f = lambda z, t: (0.5 * (z + t / z), {"besides": z**3 * t})
        sol = fp.fixed_point(f, library.array(1.0), (t,), has_aux=True, **TIGHT)
        return sol.aux["besides"]

    expected = exact_orders(lambda t: t ** mpmath.mpf("2.5"), 2.25)
    assert_orders(orders_of(library, besides, 2.25, modes), expected, 1e-9)


# Failure is loud.


def test_a_sample_that_fails_has_no_derivative(library):
    """The others have theirs, and a failed sample is not a finite number of any
    kind.
    """
    adjoint = fp.ImplicitAdjoint(rtol=1e-12, on_failure="nan")

    def solution(b):
        f = lambda z, b: library.array([0.1, 1.0]) * z + b
        settings = {
            "batch_ndim": 1,
            "rtol": 1e-12,
            "on_failure": "nan",
            "adjoint": adjoint,
        }
        return fp.fixed_point(f, 0.0 * b, (b,), solver=fp.Picard(), **settings).value

    for product in products_of(library, solution)([1.0, 2.0], [1.0, 1.0], [1.0, 1.0]):
        assert_close(product[0], 1.0 / 0.9)
        assert np.isnan(product[1])


# Torch alone: failure is loud. In JAX a derivative is always a trace, and not a number
# if it fails.

STIFF = known_map(1, radius=0.9999, size=6)
ORIGIN = torch.zeros(2, dtype=torch.float64)


def on_stiff(policy="raise", **settings):
    """z*(t) of a map whose adjoint takes more than three steps."""
    adjoint = fp.ImplicitAdjoint(
        **{"max_steps": 3, "rtol": 1e-12, "on_failure": policy, **settings}
    )
    return lambda t: found(STIFF, t, {**EXACT, "adjoint": adjoint})


def starved_gradient(policy, **settings):
    function = on_stiff(policy, **settings)
    return torch.func.grad(lambda t: function(t).sum())(ORIGIN)


def test_a_starved_adjoint_raises():
    with pytest.raises(
        fp.ConvergenceError, match=r"adjoint solve failed.*max_steps"
    ) as caught:
        starved_gradient("raise")
    assert int(caught.value.solution.status) == fp.Status.MAX_STEPS


def test_a_starved_adjoint_warns():
    with pytest.warns(fp.ConvergenceWarning, match="adjoint solve failed"):
        assert starved_gradient("warn").isfinite().all()


def test_a_starved_adjoint_poisons():
    assert starved_gradient("nan").isnan().all()


def test_a_starved_tangent_raises():
    with pytest.raises(fp.ConvergenceError, match="tangent solve failed"):
        torch.func.jvp(on_stiff(), (ORIGIN,), (ORIGIN + 1.0,))


def test_an_adjoint_that_has_enough_steps_at_the_same_radius():
    gradient = starved_gradient("raise", max_steps=100)
    assert_close(gradient, STIFF.derivative(1).sum(0), 1e-6)


def singular_double(b, adjoint):
    """A fixed point where J = 1, from which the solve starts."""
    return fp.fixed_point(lambda z, b: z - (z - b) ** 2, b, (b,), adjoint=adjoint).value


def singular_projection(b, adjoint):
    """One unknown that f leaves alone, so that no cotangent of it has an adjoint."""
    weights, other = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 1.0])
    f = lambda z, b: weights * z + other * b
    return fp.fixed_point(
        f, 2.0 * b * torch.tensor([0.5, 1.0]), (b,), adjoint=adjoint
    ).value


def singular_root(b, adjoint):
    """A root where F′ = 0."""
    return fp.root(lambda x, b: (x - b) ** 2, b, (b,), adjoint=adjoint).value


@pytest.mark.parametrize("solver", [None, fp.Newton(), fp.NewtonKrylov(), fp.Picard()])
@pytest.mark.parametrize(
    "problem", [singular_double, singular_projection, singular_root]
)
def test_a_singular_derivative_is_told(problem, solver):
    b = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = problem(b, fp.ImplicitAdjoint(solver=solver))
    with pytest.raises(fp.ConvergenceError, match="adjoint solve failed"):
        value.sum().backward()
    value = problem(b, fp.ImplicitAdjoint(solver=solver, on_failure="nan"))
    assert torch.autograd.grad(value.sum(), b)[0].isnan().any()


@pytest.mark.parametrize("mode", ["r", "f"])
def test_a_small_system_is_solved_though_its_matrix_is_singular(library, mode):
    """Two of three equations are the same, and so are the unknowns that they hold."""
    ones = library.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])

    def solution(t):
        right = t * library.array([1.0, 1.0, 3.0])
        start = library.array([1.0, 1.0, 1.5])
        return fp.root(lambda x, right: ones @ x - right, start, (right,)).value.sum()

    np.testing.assert_allclose(orders_of(library, solution, 2.0, mode)[1], 2.5, 1e-12)


def test_a_small_system_that_contradicts_itself_has_no_derivative(library):
    ones = library.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    adjoint = fp.ImplicitAdjoint(on_failure="nan")

    def product(right, cotangent):
        start = library.array([1.0, 1.0, 1.5])
        F = lambda x, right: ones @ x - right
        return (fp.root(F, start, (right,), adjoint=adjoint).value * cotangent).sum()

    gradient = library.compiled(library.calculus.grad(product))
    for cotangent in ([1.0, 0.6, 1.0], [1.0, 0.0, 0.0]):
        args = library.array([2.0, 2.0, 3.0]), library.array(cotangent)
        assert np.isnan(library.numpy(gradient(*args))).all()


# Torch alone: graphs.


def backward_of_squares(function):
    t = torch.tensor(T[1], requires_grad=True)
    (function(t) ** 2).sum().backward()
    return t.grad


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_under_checkpoint(use_reentrant):
    def function(t):
        return checkpoint(
            functools.partial(found, KNOWN), t, use_reentrant=use_reentrant
        )

    expected = 2.0 * KNOWN.derivative(0, T[1]) @ KNOWN.derivative(1, T[1])
    assert_close(backward_of_squares(function), expected)


def test_every_order_twice_on_one_graph():
    """The same numbers to the last bit."""
    t = torch.tensor(T[1], requires_grad=True)
    value = found(KNOWN, t)[0]
    for order in range(1, 4):
        once, again = (
            torch.autograd.grad(value, t, create_graph=True)[0] for _ in range(2)
        )
        assert torch.equal(once, again)
        expected = KNOWN.derivative(order, T[1])[(0, *(0,) * (order - 1))]
        assert_close(once.detach(), expected)
        value = once[0]


def bytes_kept(steps):
    """What the graph of a solve of so many steps holds, and the steps."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    t = torch.tensor(T[1], requires_grad=True)
    fixed = {
        "solver": fp.Picard(damping=0.01),
        "rtol": 0.0,
        "atol": 0.0,
        "on_failure": "return",
    }
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        args = KNOWN.args(t)
        sol = fp.fixed_point(KNOWN, KNOWN.start(t), args, max_steps=steps, **fixed)
    return sum(sizes), int(sol.steps)


def test_memory_of_the_backward_pass_does_not_grow_with_the_steps():
    (few, ten), (many, thousand) = bytes_kept(10), bytes_kept(1000)
    assert (ten, thousand) == (10, 1000)
    assert few == many > 0


# Units.


@pytest.mark.parametrize("is_root", [False, True])
@pytest.mark.parametrize("size", [4, 20])
def test_first_derivatives_in_mixed_units(library, size, is_root):
    """Each entry of the state in a unit of its own; equations go with them."""
    known = known_map(5, radius=0.7, size=size, is_root=is_root)
    solve = fp.root if is_root else fp.fixed_point

    def solution(t, units):
        scaled = lambda z, *args: units * known(z / units, *args)
        start, settings = units * known.start(t), {"rtol": 1e-10, "solver": "newton"}
        return solve(scaled, start, known.args(t), **settings).value / units

    products, t = products_of(library, solution), np.zeros(known.parameters_shape)
    tangent, cotangent = np.array([1.0, -2.0]), weights_of(known)
    for apart in (3, 6, 8, 11):
        exponents = np.tile([1.0, -1.0, 0.0, 0.5], size // 4)
        units = 10.0 ** (apart * exponents)
        pushed, pulled = products(t, tangent, cotangent, units)
        assert_close(pushed, known.derivative(1) @ tangent, 1e-6)
        assert_close(pulled, cotangent @ known.derivative(1), 1e-6)


@pytest.mark.parametrize("modes", ["r", "f", "rr", "fr"])
@pytest.mark.parametrize("which", ["equations", "unknowns", "both"])
@pytest.mark.parametrize("size", [4, 18])
def test_derivatives_of_roots_whose_equations_have_units_of_their_own(
    modes, which, size
):
    """Seen in one norm, equations in small units are none; those of a tangent are the
    root's own, and those of a cotangent are in one over the units of the unknowns.
    """
    known = known_map(5, radius=0.7, size=size, is_root=True)
    for apart in (3, 6, 8):
        rng = np.random.default_rng(apart)
        units, rows = torch.asarray(10.0 ** rng.uniform(-apart, apart, (2, size)))
        units = torch.ones(size) if which == "equations" else units
        rows = torch.ones(size) if which == "unknowns" else rows

        def derivative(t, units=units, rows=rows):
            scaled = lambda z, *args: rows * known(z / units, *args)
            start = units * known.start(t)
            sol = fp.root(scaled, start, known.args(t), rtol=1e-8, solver="newton")
            return sol.value / units

        for mode in reversed(modes):
            modes_of = {"r": torch.func.jacrev, "f": torch.func.jacfwd}
            derivative = modes_of[mode](derivative)
        found = derivative(TORCH.zeros(known))
        assert_close(found, known.derivative(len(modes)), 1e-5)


@pytest.mark.parametrize("apart", [4, 8])
def test_products_given_by_hand_serve_equations_in_units_of_their_own(apart):
    rows = 10.0 ** (apart * np.array([0.0, 1.0, -1.0]))
    matrix = np.array([[1.0, -0.5, 0.2], [0.3, 1.0, 0.1], [-0.4, 0.2, 1.5]])
    change, v = np.array([1.0, 3.0, -2.0]), np.array([1.0, 0.0, 2.0])
    A, b = rows[:, None] * matrix, rows * change
    z = np.ones(3)
    pushed = lambda z, a: lambda dz, da: A @ dz - b * da
    tangent = fp.implicit_jvp(pushed, z, (1.0,), (2.0,), is_root=True)
    np.testing.assert_allclose(tangent, np.linalg.solve(matrix, change), rtol=1e-6)
    pulled = lambda z, a: lambda w: (A.T @ w, -b @ w)
    (cotangent,) = fp.implicit_vjp(pulled, z, v, (2.0,), is_root=True)
    np.testing.assert_allclose(cotangent, v @ np.linalg.solve(matrix, change), 1e-6)
