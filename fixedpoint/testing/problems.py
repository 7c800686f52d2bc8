"""Problems to test solvers on: systems of equations, and maps with fixed points.

:func:`systems` is the collection of 23 square systems by Moré, Garbow and Hillstrom as
extended in Burkardt's TEST_NONLIN, in the published form and from the published starts;
:func:`large_systems` has its scalable families at a larger size, and :func:`maps` has
fixed points to seek. All functions are written over the array API for one state, keep
to its dtype and device, and can be traced and differentiated.

References
----------
Moré, Garbow and Hillstrom, "Testing unconstrained optimization software", ACM Trans.
Math. Softw. 7, 1981. Dennis and Schnabel, "Numerical Methods for Unconstrained
Optimization and Nonlinear Equations", SIAM, 1996. Hasselblad, "Estimation of finite
mixtures of distributions from the exponential family", J. Amer. Statist. Assoc. 64,
1969. Varadhan and Roland, "Simple and globally convergent methods for accelerating the
convergence of any EM algorithm", Scand. J. Statist. 35, 2008.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from array_api_compat import array_namespace

from fixedpoint.backend import Array

# Hammarling's matrices have this number on the diagonal: their root is far from normal.
_HAMMARLING_EPSILON = 1e-4

# Deaths of women over 80 in the London Times, 1910–1912: days with 0, 1, …, 9 of them.
_DAYS_BY_DEATHS = np.array(
    [162.0, 267.0, 271.0, 185.0, 111.0, 61.0, 27.0, 8.0, 3.0, 1.0]
)


@dataclass(frozen=True, eq=False)
class Problem:
    """A root or a fixed point to find.

    Parameters
    ----------
    name : str
        What the problem is called.
    kind : {"root", "fixed point"}
        Whether x with F(x) = 0 or z with z = f(z) is sought.
    function : callable
        F or f, over the array API.
    start : ndarray
        The standard start, in double precision.
    roots : tuple of ndarray
        Known solutions; not all of them, and none where none has a closed form or is
        cheap.
    number : int, optional
        The number in the collection.
    jvp : callable, optional
        The derivative of `function` at its first argument times its second.

    Examples
    --------
    >>> from fixedpoint.testing.problems import powell_singular
    >>> problem = powell_singular()
    >>> problem.number, problem.kind, problem.start
    (2, 'root', array([ 3., -1.,  0.,  1.]))
    >>> problem.residual(problem.roots[0])
    array([0., 0., 0., 0.])
    """

    name: str
    kind: str
    function: Callable[[Array], Array]
    start: np.ndarray
    roots: tuple[np.ndarray, ...] = ()
    number: int | None = None
    jvp: Callable[[Array, Array], Array] | None = None

    def residual(self, x: Array) -> Array:
        """F(x), or f(x) − x."""
        value = self.function(x)
        return value if self.kind == "root" else value - x


def systems() -> list[Problem]:
    """The 23 systems of the collection, in order, at their standard sizes."""
    return [
        rosenbrock(),
        powell_singular(),
        powell_badly_scaled(),
        wood(),
        helical_valley(),
        watson(),
        chebyquad(),
        brown_almost_linear(),
        discrete_boundary_value(),
        discrete_integral_equation(),
        trigonometric(),
        variably_dimensioned(),
        broyden_tridiagonal(),
        broyden_banded(),
        hammarling(2),
        hammarling(3),
        dennis_schnabel(),
        sample_18(),
        sample_19(),
        scalar(),
        freudenstein_roth(),
        boggs(),
        chandrasekhar(),
    ]


def large_systems(n: int = 100) -> list[Problem]:
    """The scalable systems of the collection in `n` unknowns.

    Chebyquad, which has no real root for n > 9, and Watson, whose conditioning is
    hopeless by then, are left out.

    Parameters
    ----------
    n : int, optional
        The number of unknowns; from about 1070 on, the product in Brown's system
        underflows.
    """
    families = (
        rosenbrock,
        brown_almost_linear,
        discrete_boundary_value,
        discrete_integral_equation,
        trigonometric,
        variably_dimensioned,
        broyden_tridiagonal,
        broyden_banded,
        chandrasekhar,
    )
    return [family(n) for family in families]


def maps() -> list[Problem]:
    """Maps with a fixed point that plain iteration finds, slowly as a rule."""
    return [
        *(chandrasekhar_map(albedo) for albedo in (0.9, 0.999, 1.0 - 1e-6)),
        bratu_jacobi_map(),
        bratu_poisson_map(),
        *(affine_map(radius) for radius in (0.9, 0.99, 0.999)),
        poisson_mixture_map(),
        *(bellman_map(discount) for discount in (0.95, 0.99)),
        sinkhorn_map(),
        *(pagerank_map(damping) for damping in (0.85, 0.99)),
        *(tanh_map(norm) for norm in (0.9, 1.5)),
    ]


# Over the array API.


def _constant(values: np.ndarray, like: Array) -> Array:
    """`values` as an array of the library, dtype and device of `like`."""
    device = getattr(like, "device", None)
    place = {} if device is None else {"device": device}
    return array_namespace(like).asarray(values, dtype=like.dtype, **place)


def _vector(*entries: Array) -> Array:
    return array_namespace(entries[0]).stack(entries)


def _padded(x: Array, before: int, after: int) -> Array:
    """`x` between zeros."""
    left, right = (_constant(np.zeros(count), x) for count in (before, after))
    return array_namespace(x).concat([left, x, right])


def _grid(n: int) -> np.ndarray:
    """The n inner points of a uniform grid on the unit interval."""
    return np.arange(1, n + 1) / (n + 1)


# The collection, in order.


def rosenbrock(n: int = 10) -> Problem:
    """Generalized Rosenbrock: 1 − x₁ and 10 (xᵢ − xᵢ₋₁²).

    Parameters
    ----------
    n : int, optional
        The number of unknowns.
    """
    start = np.ones(n)
    start[0] = -1.2
    return Problem("rosenbrock", "root", _rosenbrock, start, (np.ones(n),), 1)


def _rosenbrock(x: Array) -> Array:
    return array_namespace(x).concat([1.0 - x[:1], 10.0 * (x[1:] - x[:-1] ** 2)])


def powell_singular() -> Problem:
    """Powell's singular system in 4 unknowns, whose Jacobian at the root has rank 2."""
    start = np.array([3.0, -1.0, 0.0, 1.0])
    return Problem(
        "powell_singular", "root", _powell_singular, start, (np.zeros(4),), 2
    )


def _powell_singular(x: Array) -> Array:
    return _vector(
        x[0] + 10.0 * x[1],
        math.sqrt(5.0) * (x[2] - x[3]),
        (x[1] - 2.0 * x[2]) ** 2,
        math.sqrt(10.0) * (x[0] - x[3]) ** 2,
    )


def powell_badly_scaled() -> Problem:
    """Powell's badly scaled system: 10⁴x₁x₂ = 1 and exp(−x₁) + exp(−x₂) = 1.0001."""
    root = np.array([1.0981593296998174557e-5, 9.1061467398665240109])
    roots = (root, root[::-1].copy())
    start = np.array([0.0, 1.0])
    return Problem("powell_badly_scaled", "root", _powell_badly_scaled, start, roots, 3)


def _powell_badly_scaled(x: Array) -> Array:
    decay = array_namespace(x).exp(-x)
    return _vector(1e4 * x[0] * x[1] - 1.0, decay[0] + decay[1] - 1.0001)


def wood() -> Problem:
    """Wood's function: its gradient, with the first and the third entry halved."""
    start = np.array([-3.0, -1.0, -3.0, -1.0])
    return Problem("wood", "root", _wood, start, (np.ones(4),), 4)


def _wood(x: Array) -> Array:
    first, second = x[1] - x[0] ** 2, x[3] - x[2] ** 2
    return _vector(
        -200.0 * x[0] * first - (1.0 - x[0]),
        200.0 * first + 20.2 * (x[1] - 1.0) + 19.8 * (x[3] - 1.0),
        -180.0 * x[2] * second - (1.0 - x[2]),
        180.0 * second + 20.2 * (x[3] - 1.0) + 19.8 * (x[1] - 1.0),
    )


def helical_valley() -> Problem:
    """The helical valley of Fletcher and Powell, with the angle cut at the negative x₂
    axis.
    """
    start, root = np.array([-1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0])
    return Problem("helical_valley", "root", _helical_valley, start, (root,), 5)


def _helical_valley(x: Array) -> Array:
    xp = array_namespace(x)
    # A quarter turn moves the cut of atan2 off the negative x₁ axis, where the start
    # lies.
    turns = 0.25 + xp.atan2(-x[0], x[1]) / (2.0 * math.pi)
    radius = xp.sqrt(x[0] ** 2 + x[1] ** 2)
    return _vector(10.0 * (x[2] - 10.0 * turns), 10.0 * (radius - 1.0), x[2])


def watson(n: int = 6) -> Problem:
    """Watson's function: half the gradient of its sum of squares.

    Parameters
    ----------
    n : int, optional
        The number of unknowns, 2 to 31: the degree plus one of the polynomial that fits
        the solution of y′ = 1 + y², y(0) = 0. The least sum of squares is 2.28767·10⁻³
        at n = 6 and 1.39976·10⁻⁶ at n = 9.
    """
    function = partial(_watson, matrices=_watson_matrices(n))
    return Problem("watson", "root", function, np.zeros(n), (), 6)


def _watson_matrices(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """D, T and c such that the 31 residuals are Dx − (Tx)² − c."""
    times, powers = np.arange(1, 30)[:, None] / 29, np.arange(n)
    slopes, values, offsets = np.zeros((31, n)), np.zeros((31, n)), np.ones(31)
    values[:29] = times**powers
    slopes[:29, 1:] = powers[1:] * times ** powers[:-1]
    # The last two residuals are x₁ and x₂ − x₁² − 1.
    slopes[29, 0] = slopes[30, 1] = values[30, 0] = 1.0
    offsets[29] = 0.0
    return slopes, values, offsets


def _watson(x: Array, matrices: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Array:
    slopes, values, offsets = (_constant(matrix, x) for matrix in matrices)
    value = values @ x
    residual = slopes @ x - value**2 - offsets
    return residual @ slopes - (2.0 * residual * value) @ values


def chebyquad(n: int = 7) -> Problem:
    """Chebyquad on [−1, 1]: n nodes whose mean integrates the polynomials T₁, …, Tₙ.

    Parameters
    ----------
    n : int, optional
        The number of nodes. They are real for n ≤ 7 and n = 9 only.
    """
    start = 2.0 * _grid(n) - 1.0
    return Problem("chebyquad", "root", _chebyquad, start, _chebyshev_nodes(n), 7)


def _chebyquad(x: Array) -> Array:
    xp, n = array_namespace(x), x.shape[0]
    means, older, newer = [], xp.ones_like(x), x
    for _ in range(n):
        means.append(xp.mean(newer))
        older, newer = newer, 2.0 * x * newer - older
    degree = np.arange(1, n + 1)
    integrals = np.where(degree % 2 == 0, 1.0 / np.maximum(degree**2 - 1, 1), 0.0)
    return xp.stack(means) + _constant(integrals, x)


def _chebyshev_nodes(n: int) -> tuple[np.ndarray, ...]:
    """The nodes by Newton's identities: their power sums are known, their polynomial
    follows.
    """
    sums = [n / (k + 1) if k % 2 == 0 else 0.0 for k in range(n + 1)]
    coefficients = [1.0]
    for k in range(1, n + 1):
        terms = (coefficients[k - i] * sums[i] for i in range(1, k + 1))
        coefficients.append(-sum(terms) / k)
    nodes = np.roots(coefficients)
    return (np.sort(nodes.real),) if np.all(nodes.imag == 0.0) else ()


def brown_almost_linear(n: int = 10) -> Problem:
    """Brown's almost linear system: xᵢ + Σxⱼ = n + 1 for i < n, and Πxⱼ = 1.

    Parameters
    ----------
    n : int, optional
        The number of unknowns.
    """
    other = np.full(n, _brown_entry(n))
    other[-1] = other[0] ** (1 - n)
    roots = (np.ones(n), other)
    name, start = "brown_almost_linear", np.full(n, 0.5)
    return Problem(name, "root", _brown_almost_linear, start, roots, 8)


def _brown_almost_linear(x: Array) -> Array:
    xp, n = array_namespace(x), x.shape[0]
    return xp.concat([x[:-1] + (xp.sum(x) - (n + 1.0)), xp.stack([xp.prod(x) - 1.0])])


def _brown_entry(n: int) -> float:
    """The root of naⁿ − (n+1)aⁿ⁻¹ + 1 between 0 and 1, by Newton's method.

    From 1 − 1/n the polynomial is convex and falls to its root, so the iteration is
    monotone.
    """
    a = 1.0 - 1.0 / n
    for _ in range(20):
        value = a ** (n - 1) * (n * a - (n + 1)) + 1.0
        a -= value / (a ** (n - 2) * (n * n * a - (n * n - 1)))
    return a


def discrete_boundary_value(n: int = 10) -> Problem:
    """The differences of u″ = (u + t + 1)³ / 2 with u(0) = u(1) = 0.

    Parameters
    ----------
    n : int, optional
        The number of inner grid points.
    """
    start = _grid(n) * (_grid(n) - 1.0)
    return Problem(
        "discrete_boundary_value", "root", _discrete_boundary_value, start, (), 9
    )


def _discrete_boundary_value(x: Array) -> Array:
    n = x.shape[0]
    around = _padded(x, 1, 1)
    cube = (x + _constant(_grid(n) + 1.0, x)) ** 3
    return 2.0 * x - around[:-2] - around[2:] + 0.5 / (n + 1) ** 2 * cube


def discrete_integral_equation(n: int = 10) -> Problem:
    """The boundary value problem u″ = (u + t + 1)³ / 2 as an integral equation.

    Parameters
    ----------
    n : int, optional
        The number of inner grid points.
    """
    t = _grid(n)
    green = np.minimum.outer(t, t) * (1.0 - np.maximum.outer(t, t)) * (0.5 / (n + 1))
    function = partial(_discrete_integral_equation, green=green)
    return Problem(
        "discrete_integral_equation", "root", function, t * (t - 1.0), (), 10
    )


def _discrete_integral_equation(x: Array, green: np.ndarray) -> Array:
    grid = _constant(_grid(x.shape[0]) + 1.0, x)
    return x + _constant(green, x) @ (x + grid) ** 3


def trigonometric(n: int = 10) -> Problem:
    """Spedicato's trigonometric system: n − Σcos xⱼ + i (1 − cos xᵢ) − sin xᵢ.

    Parameters
    ----------
    n : int, optional
        The number of unknowns.
    """
    start = np.full(n, 1.0 / n)
    return Problem("trigonometric", "root", _trigonometric, start, (np.zeros(n),), 11)


def _trigonometric(x: Array) -> Array:
    xp, n = array_namespace(x), x.shape[0]
    versine = 1.0 - xp.cos(x)
    return xp.sum(versine) + _constant(np.arange(1.0, n + 1.0), x) * versine - xp.sin(x)


def variably_dimensioned(n: int = 10) -> Problem:
    """The variably dimensioned system: xᵢ − 1 + i s (1 + 2s²) with s = Σ j (xⱼ − 1).

    Parameters
    ----------
    n : int, optional
        The number of unknowns.
    """
    start = 1.0 - np.arange(1, n + 1) / n
    return Problem(
        "variably_dimensioned", "root", _variably_dimensioned, start, (np.ones(n),), 12
    )


def _variably_dimensioned(x: Array) -> Array:
    index = _constant(np.arange(1.0, x.shape[0] + 1.0), x)
    moment = array_namespace(x).sum(index * (x - 1.0))
    return x - 1.0 + index * (moment * (1.0 + 2.0 * moment**2))


def broyden_tridiagonal(n: int = 10) -> Problem:
    """Broyden's tridiagonal system: (3 − 2xᵢ) xᵢ − xᵢ₋₁ − 2xᵢ₊₁ + 1.

    Parameters
    ----------
    n : int, optional
        The number of unknowns.
    """
    return Problem(
        "broyden_tridiagonal", "root", _broyden_tridiagonal, -np.ones(n), (), 13
    )


def _broyden_tridiagonal(x: Array) -> Array:
    around = _padded(x, 1, 1)
    return (3.0 - 2.0 * x) * x - around[:-2] - 2.0 * around[2:] + 1.0


def broyden_banded(n: int = 10) -> Problem:
    """Broyden's banded system: xᵢ (2 + 5xᵢ²) + 1 − Σ xⱼ (1 + xⱼ), i − 5 ≤ j ≤ i + 1, j
    ≠ i.

    Parameters
    ----------
    n : int, optional
        The number of unknowns.
    """
    return Problem("broyden_banded", "root", _broyden_banded, -np.ones(n), (), 14)


def _broyden_banded(x: Array) -> Array:
    n, lower, upper = x.shape[0], 5, 1
    around = _padded(x * (1.0 + x), lower, upper)
    result = x * (2.0 + 5.0 * x**2) + 1.0
    for offset in range(lower + upper + 1):
        if offset != lower:
            result = result - around[offset : offset + n]
    return result


def hammarling(order: int = 2) -> Problem:
    """Hammarling's square root of a matrix that is nearly without one.

    Parameters
    ----------
    order : int, optional
        The order of the matrix: 2, or 3 with a further eigenvalue that repeats the
        others. The unknowns are the entries of its root, row by row.
    """
    matrix, root = _HAMMARLING_EPSILON * np.eye(order), 0.01 * np.eye(order)
    matrix[0, 1], root[0, 1] = 1.0, 50.0
    roots = (root.reshape(-1), -root.reshape(-1))
    function, start = partial(_square_root, matrix=matrix), np.eye(order).reshape(-1)
    return Problem(f"hammarling_{order}", "root", function, start, roots, 13 + order)


def _square_root(x: Array, matrix: np.ndarray) -> Array:
    xp = array_namespace(x)
    root = xp.reshape(x, matrix.shape)
    return xp.reshape(root @ root - _constant(matrix, x), (-1,))


def dennis_schnabel() -> Problem:
    """The example of Dennis and Schnabel: a line meets a circle."""
    roots = (np.array([0.0, 3.0]), np.array([3.0, 0.0]))
    start = np.array([1.0, 5.0])
    return Problem("dennis_schnabel", "root", _dennis_schnabel, start, roots, 17)


def _dennis_schnabel(x: Array) -> Array:
    return _vector(x[0] + x[1] - 3.0, x[0] ** 2 + x[1] ** 2 - 9.0)


def sample_18() -> Problem:
    """Sample problem 18: x₂² q(x₁) and x₁ q(x₂) with q(t) = (1 − exp(−t²)) / t, zero on
    the axes.

    Every point of either axis is a root with a Jacobian of rank 1 at most; the origin,
    where it vanishes, stands for them.
    """
    return Problem(
        "sample_18", "root", _sample_18, np.array([2.0, 2.0]), (np.zeros(2),), 18
    )


def _sample_18(x: Array) -> Array:
    quotient = _gaussian_quotient(x)
    return _vector(x[1] ** 2 * quotient[0], x[0] * quotient[1])


def _gaussian_quotient(x: Array) -> Array:
    """(1 − exp(−x²)) / x, and its tangent x at zero, so that the derivative is right
    there too.
    """
    xp = array_namespace(x)
    divisor = xp.where(x == 0.0, xp.ones_like(x), x)
    return xp.where(x == 0.0, x, -xp.expm1(-(divisor**2)) / divisor)


def sample_19() -> Problem:
    """Sample problem 19: x ‖x‖² in two unknowns, singular at its only root."""
    return Problem(
        "sample_19", "root", _sample_19, np.array([3.0, 3.0]), (np.zeros(2),), 19
    )


def _sample_19(x: Array) -> Array:
    return x * (x[0] ** 2 + x[1] ** 2)


def scalar() -> Problem:
    """The scalar x (x − 5)², with a simple root and a double one."""
    roots = (np.array([0.0]), np.array([5.0]))
    return Problem("scalar", "root", _scalar, np.array([1.0]), roots, 20)


def _scalar(x: Array) -> Array:
    return x * (x - 5.0) ** 2


def freudenstein_roth() -> Problem:
    """The system of Freudenstein and Roth: from its start, descent ends in a minimum,
    no root.
    """
    start, root = np.array([0.5, -2.0]), np.array([5.0, 4.0])
    return Problem("freudenstein_roth", "root", _freudenstein_roth, start, (root,), 21)


def _freudenstein_roth(x: Array) -> Array:
    return _vector(
        x[0] - x[1] * (2.0 - x[1] * (5.0 - x[1])) - 13.0,
        x[0] - x[1] * (14.0 - x[1] * (1.0 + x[1])) - 29.0,
    )


def boggs() -> Problem:
    """The system of Boggs: x₁² − x₂ + 1 and x₁ − cos(πx₂/2)."""
    pairs = ((0.0, 1.0), (-math.sqrt(0.5), 1.5), (-1.0, 2.0))
    roots = tuple(np.array(pair) for pair in pairs)
    return Problem("boggs", "root", _boggs, np.array([1.0, 0.0]), roots, 22)


def _boggs(x: Array) -> Array:
    xp = array_namespace(x)
    return _vector(x[0] ** 2 - x[1] + 1.0, x[0] - xp.cos(0.5 * math.pi * x[1]))


def chandrasekhar(n: int = 10, albedo: float = 0.9) -> Problem:
    """Chandrasekhar's H equation by the midpoint rule: hᵢ = 1 / (1 − c/2n Σ μᵢhⱼ/(μᵢ +
    μⱼ)).

    Its roots obey Σhⱼ/n = 2 (1 ± √(1 − c)) / c, as does the integral in the continuous
    equation.

    Parameters
    ----------
    n : int, optional
        The number of nodes μᵢ = (i − 1/2)/n.
    albedo : float, optional
        The factor c, at most 1, where the two roots meet and the Jacobian is singular.
    """
    function = partial(_chandrasekhar, kernel=_chandrasekhar_kernel(n, albedo))
    return Problem("chandrasekhar", "root", function, np.ones(n), (), 23)


def _chandrasekhar(h: Array, kernel: np.ndarray) -> Array:
    return h - _chandrasekhar_map(h, kernel)


def _chandrasekhar_kernel(n: int, albedo: float) -> np.ndarray:
    nodes = (np.arange(n) + 0.5) / n
    kernel: np.ndarray = 0.5 * albedo / n * nodes[:, None] / (nodes[:, None] + nodes)
    return kernel


# Bratu's problem −Δu = λ exp(u) on the unit square, zero on the boundary.


def bratu(n: int = 64, parameter: float = 6.0) -> Problem:
    """Bratu's problem −Δu − λ exp(u) = 0 on the unit square, with its exact Jacobian
    product.

    Parameters
    ----------
    n : int, optional
        The inner grid points in each direction; the state has shape (n, n).
    parameter : float, optional
        λ. Solutions exist up to about 6.81, where the two branches meet.
    """
    function = partial(_bratu, parameter=parameter)
    jvp = partial(bratu_jvp, parameter=parameter)
    return Problem("bratu", "root", function, np.zeros((n, n)), jvp=jvp)


def bratu_jvp(u: Array, v: Array, parameter: float = 6.0) -> Array:
    """The Jacobian of Bratu's residual at `u` times `v`: −Δv − λ exp(u) v.

    Parameters
    ----------
    u, v : array of shape (n, n)
        The state, and the direction.
    parameter : float, optional
        λ.
    """
    return _negative_laplacian(v) - (parameter * array_namespace(u).exp(u)) * v


def _bratu(u: Array, parameter: float) -> Array:
    return _negative_laplacian(u) - parameter * array_namespace(u).exp(u)


def _negative_laplacian(u: Array) -> Array:
    """−Δu by the five-point formula."""
    return (4.0 * u - _neighbor_sum(u)) * (u.shape[0] + 1.0) ** 2


def _neighbor_sum(u: Array) -> Array:
    """The sum of the four neighbors of each inner point.

    At n = 64 on NumPy this takes half the time of two products with a matrix of
    differences.
    """
    xp = array_namespace(u)
    row, column = xp.zeros_like(u[:1, :]), xp.zeros_like(u[:, :1])
    rows = xp.concat([row, u, row])
    columns = xp.concat([column, u, column], axis=1)
    return (rows[:-2, :] + rows[2:, :]) + (columns[:, :-2] + columns[:, 2:])


def bratu_jacobi_map(n: int = 16, parameter: float = 6.0) -> Problem:
    """Bratu's problem as Jacobi's iteration: each point from its neighbors.

    Parameters
    ----------
    n : int, optional
        The inner grid points in each direction; the state has shape (n, n).
    parameter : float, optional
        λ. Up to about 6.81 the iteration from zero climbs to the lower branch.
    """
    function = partial(_bratu_jacobi, parameter=parameter)
    return Problem("bratu_jacobi_map", "fixed point", function, np.zeros((n, n)))


def _bratu_jacobi(u: Array, parameter: float) -> Array:
    source = parameter / (u.shape[0] + 1) ** 2 * array_namespace(u).exp(u)
    return 0.25 * (_neighbor_sum(u) + source)


def bratu_poisson_map(n: int = 16, parameter: float = 6.0) -> Problem:
    """Bratu's problem as Picard's iteration: u ← (−Δ)⁻¹ λ exp(u), by sine transforms.

    Parameters
    ----------
    n : int, optional
        The inner grid points in each direction; the state has shape (n, n).
    parameter : float, optional
        λ. Up to about 6.81 the iteration from zero climbs to the lower branch.
    """
    angles = np.pi * _grid(n)
    sines = math.sqrt(2.0 / (n + 1)) * np.sin(np.outer(np.arange(1, n + 1), angles))
    eigenvalues = (n + 1) ** 2 * (2.0 - 2.0 * np.cos(angles))
    inverse = parameter / np.add.outer(eigenvalues, eigenvalues)
    function = partial(_bratu_poisson, sines=sines, inverse=inverse)
    return Problem("bratu_poisson_map", "fixed point", function, np.zeros((n, n)))


def _bratu_poisson(u: Array, sines: np.ndarray, inverse: np.ndarray) -> Array:
    transform = _constant(sines, u)  # its own inverse
    source = transform @ array_namespace(u).exp(u) @ transform
    return transform @ (_constant(inverse, u) * source) @ transform


# Maps.


def chandrasekhar_map(albedo: float = 0.9, n: int = 200) -> Problem:
    """Chandrasekhar's H equation as the map h ← 1 / (1 − Kh).

    Near an albedo of 1 the Jacobian at the fixed point has an eigenvalue of about 1 −
    2.3√(1 − c).

    Parameters
    ----------
    albedo : float, optional
        The factor c, at most 1.
    n : int, optional
        The number of nodes.
    """
    function = partial(_chandrasekhar_map, kernel=_chandrasekhar_kernel(n, albedo))
    return Problem(f"chandrasekhar_map_{albedo}", "fixed point", function, np.ones(n))


def _chandrasekhar_map(h: Array, kernel: np.ndarray) -> Array:
    return 1.0 / (1.0 - _constant(kernel, h) @ h)


def affine_map(radius: float = 0.9, n: int = 50, seed: int = 0) -> Problem:
    """A non-normal affine map z ← Mz + b: M is triangular, with a norm well above its
    radius.

    Parameters
    ----------
    radius : float, optional
        The spectral radius of M, which both ``radius`` and ``-radius`` attain.
    n : int, optional
        The number of unknowns.
    seed : int, optional
        The seed of the entries above the diagonal and of b.
    """
    rng = np.random.default_rng(seed)
    matrix = np.diag(np.linspace(-radius, radius, n))
    matrix += np.triu(rng.standard_normal((n, n)), 1) / math.sqrt(n)
    offset = rng.standard_normal(n)
    root = np.linalg.solve(np.eye(n) - matrix, offset)
    function = partial(_affine, matrix=matrix, offset=offset)
    return Problem(
        f"affine_map_{radius}", "fixed point", function, np.zeros(n), (root,)
    )


def _affine(z: Array, matrix: np.ndarray, offset: np.ndarray) -> Array:
    return _constant(matrix, z) @ z + _constant(offset, z)


def poisson_mixture_map() -> Problem:
    """EM for a mixture of two Poisson distributions, on Hasselblad's counts of deaths.

    The state is the weight and the mean of the first component, and the mean of the
    second.
    """
    start = np.array([0.3, 1.0, 2.5])
    root = np.array(
        [0.35988539698493480243, 1.2560951012243379021, 2.6634043566324726414]
    )
    return Problem(
        "poisson_mixture_map", "fixed point", _poisson_mixture, start, (root,)
    )


def _poisson_mixture(z: Array) -> Array:
    xp = array_namespace(z)
    deaths, days = (_constant(a, z) for a in (np.arange(10.0), _DAYS_BY_DEATHS))
    # The factorials cancel. Powers, not logarithms, stand a mean that an extrapolation
    # has made negative.
    first = z[0] * xp.exp(-z[1]) * z[1] ** deaths
    second = (1.0 - z[0]) * xp.exp(-z[2]) * z[2] ** deaths
    of_first = days * first / (first + second)
    of_second = days - of_first
    weight, rest = xp.sum(of_first), xp.sum(of_second)
    means = xp.sum(of_first * deaths) / weight, xp.sum(of_second * deaths) / rest
    return _vector(weight / (weight + rest), *means)


def bellman_map(
    discount: float = 0.95, states: int = 50, actions: int = 4, seed: int = 0
) -> Problem:
    """Value iteration v ← maxₐ (rₐ + γPₐv) on a random Markov decision process.

    Parameters
    ----------
    discount : float, optional
        γ, the contraction factor in the maximum norm.
    states, actions : int, optional
        The size of the process.
    seed : int, optional
        The seed of rewards and transitions.
    """
    rng = np.random.default_rng(seed)
    rewards = rng.random((actions, states))
    transitions = rng.random((actions, states, states)) ** 20  # a few successors likely
    transitions *= discount / transitions.sum(axis=-1, keepdims=True)
    function = partial(_bellman, rewards=rewards, transitions=transitions)
    root = _optimal_value(rewards, transitions)
    return Problem(
        f"bellman_map_{discount}", "fixed point", function, np.zeros(states), (root,)
    )


def _bellman(v: Array, rewards: np.ndarray, transitions: np.ndarray) -> Array:
    values = _constant(rewards, v) + _constant(transitions, v) @ v
    return array_namespace(v).max(values, axis=0)


def _optimal_value(rewards: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """The optimal value by policy iteration, which is finite."""
    states = np.arange(rewards.shape[1])
    policy = np.argmax(rewards, axis=0)
    while True:
        system = np.eye(states.size) - transitions[policy, states]
        value = np.linalg.solve(system, rewards[policy, states])
        better = np.argmax(rewards + transitions @ value, axis=0)
        if np.array_equal(better, policy):
            return value
        policy = better


def sinkhorn_map(n: int = 40, entropy: float = 0.02, seed: int = 0) -> Problem:
    """Sinkhorn's iteration for entropic optimal transport between two random clouds of
    points.

    The state is the potential of the source in the log domain. The other one is
    eliminated, and the mean held at zero, without which the fixed points would be a
    line.

    Parameters
    ----------
    n : int, optional
        Points in each cloud.
    entropy : float, optional
        The weight of the entropy, in the units of the squared distance on the unit
        square.
    seed : int, optional
        The seed of points and masses.
    """
    rng = np.random.default_rng(seed)
    source, target = rng.random((2, n, 2))
    costs = np.sum((source[:, None, :] - target) ** 2, axis=-1)
    masses = rng.random((2, n)) + 0.1
    logarithms = np.log(masses / masses.sum(axis=1, keepdims=True))
    function = partial(_sinkhorn, kernel=-costs / entropy, masses=logarithms)
    return Problem("sinkhorn_map", "fixed point", function, np.zeros(n))


def _sinkhorn(z: Array, kernel: np.ndarray, masses: np.ndarray) -> Array:
    """Potentials are in units of the entropy; `masses` are logarithms."""
    kernel, masses = _constant(kernel, z), _constant(masses, z)
    other = masses[1, :] - _logsumexp(kernel + z[:, None], axis=0)
    new = masses[0, :] - _logsumexp(kernel + other[None, :], axis=1)
    return new - array_namespace(z).mean(new)


def _logsumexp(x: Array, axis: int) -> Array:
    xp = array_namespace(x)
    largest = xp.max(x, axis=axis, keepdims=True)
    sizes = xp.sum(xp.exp(x - largest), axis=axis)
    return xp.log(sizes) + xp.squeeze(largest, axis=axis)


def pagerank_map(damping: float = 0.85, n: int = 100, seed: int = 0) -> Problem:
    """PageRank's power iteration x ← αSx + (1 − α)/n on a random web of ten sites.

    Parameters
    ----------
    damping : float, optional
        α, the share of those who follow a link. The others start anew anywhere.
    n : int, optional
        The number of pages.
    seed : int, optional
        The seed of the links.
    """
    links = _links(n, np.random.default_rng(seed)).astype(float)
    links[:, links.sum(axis=0) == 0.0] = 1.0  # those who find no link start anew too
    matrix = damping * links / links.sum(axis=0)
    offset = np.full(n, (1.0 - damping) / n)
    root = np.linalg.solve(np.eye(n) - matrix, offset)
    function = partial(_affine, matrix=matrix, offset=offset)
    return Problem(
        f"pagerank_map_{damping}", "fixed point", function, np.full(n, 1.0 / n), (root,)
    )


def _links(n: int, rng: np.random.Generator) -> np.ndarray:
    """Which page (row) each page (column) links to: often its own site's, rarely
    others.
    """
    site = np.arange(n) * 10 // n
    probability = np.where(np.equal.outer(site, site), 0.3, 0.002)
    links: np.ndarray = rng.random((n, n)) < probability
    return links


def tanh_map(norm: float = 0.9, n: int = 100, seed: int = 0) -> Problem:
    """A network of one layer, z ← tanh(Wz + b).

    It has a fixed point for every W by Brouwer's theorem, since it maps the cube into
    itself. At a norm below 1 it contracts. At 1.5 it does not in the norm, but the
    spectral radius of this random W is about half its norm, and plain iteration
    converges.

    Parameters
    ----------
    norm : float, optional
        The 2-norm of W.
    n : int, optional
        The number of units.
    seed : int, optional
        The seed of W and b.
    """
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n, n))
    matrix *= norm / np.linalg.norm(matrix, 2)
    function = partial(_tanh, matrix=matrix, offset=rng.standard_normal(n))
    return Problem(f"tanh_map_{norm}", "fixed point", function, np.zeros(n))


def _tanh(z: Array, matrix: np.ndarray, offset: np.ndarray) -> Array:
    return array_namespace(z).tanh(_affine(z, matrix, offset))
