"""Random maps whose fixed points, and all derivatives of these, are known in closed
form.

:func:`known_maps` is a strategy for `Hypothesis <https://hypothesis.works>`_, which is
imported only when it is called; :func:`known_map` makes one map of a seed, without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from array_api_compat import array_namespace

from fixedpoint.backend import Array
from fixedpoint.testing.problems import _constant

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_SHAPES = ("tanh", "exponential", "quadratic")


@dataclass(frozen=True, eq=False)
class KnownMap:
    """A map z ↦ f(z, θ(t)) that is known to have the fixed point z*(t), for every t
    near 0.

    The map is f(z, θ) = M h(Qz) + c, with an elementwise function h, and its fixed
    point

        z*(t) = p + q ∘ sin(Ωt + φ) ,

    because c(t) = z*(t) − M(t) h(Qz*(t)). A solver is given M, Q and c alone, and
    whoever differentiates with respect to t needs the derivatives of f of every order,
    of which nothing is left in the end but those of a sine. The Jacobian at z*(0) is
    `jacobian`. How far z* moves, and how far M, is in proportion to 1/κ, κ = ‖(I −
    J)⁻¹‖: so every order matters, and rounding changes each by some κ²·eps of itself.

    As a problem for :func:`fixedpoint.root`, F(z, θ) = M h(Qz) + c has its root at the
    same place, and F′ = I − J.

    Parameters
    ----------
    is_root : bool
        Whether it is a root that is known.
    shape : {"tanh", "exponential", "quadratic"}
        The function h.
    splits : tuple of int
        Where the state is cut into leaves.
    jacobian : ndarray of shape (\\*batch, n, n)
        J at t = 0.
    outer, drift : ndarray of shape (\\*batch, n, n)
        M at t = 0, and its derivative by the sum of the parameters.
    inner : ndarray of shape (n, n)
        Q, orthogonal.
    center, amplitude, phase : ndarray of shape (\\*batch, n)
        p, q and φ.
    frequency : ndarray of shape (\\*batch, n, m)
        Ω, for m parameters.

    Examples
    --------
    >>> import numpy as np, fixedpoint as fp
    >>> from fixedpoint.testing.strategies import known_map
    >>> known = known_map(seed=0, radius=0.9)
    >>> t = np.zeros(known.parameters_shape)
    >>> sol = fp.fixed_point(known, known.start(t), known.args(t), rtol=1e-12)
    >>> bool(np.max(np.abs(known.joined(sol.value) - known.derivative(0))) < 1e-8)
    True
    """

    is_root: bool
    shape: str
    splits: tuple[int, ...]
    jacobian: np.ndarray
    outer: np.ndarray
    drift: np.ndarray
    inner: np.ndarray
    center: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray
    frequency: np.ndarray

    def __call__(self, z: Any, matrices: dict[str, Array], offset: Array) -> Any:
        """The image of z, or the residual, in the containers of :meth:`start`."""
        seen = _elementwise(self.shape, _product(matrices["inner"], self.joined(z)))
        return self._split(_product(matrices["outer"], seen) + offset)

    @property
    def batch_ndim(self) -> int:
        """The number of batch axes, 0 or 1."""
        return self.center.ndim - 1

    @property
    def parameters_shape(self) -> tuple[int, ...]:
        """The shape of t: a vector for each sample."""
        return (*self.frequency.shape[:-2], self.frequency.shape[-1])

    @property
    def condition(self) -> np.ndarray:
        """κ = ‖(I − J)⁻¹‖₂ of each sample."""
        inverse = np.linalg.inv(np.eye(self.jacobian.shape[-1]) - self.jacobian)
        return np.asarray(np.linalg.norm(inverse, 2, axis=(-2, -1)))

    def start(self, t: Array) -> Any:
        """A point near the solution at t = 0, in the containers of the state."""
        return self._split(_constant(self.center, t))

    def args(self, t: Array) -> tuple[dict[str, Array], Array]:
        """θ(t), on the array library of t."""
        solution, inner = self.solution(t), _constant(self.inner, t)
        moved = _constant(self.drift, t) * t.sum(-1)[..., None, None]
        outer = _constant(self.outer, t) + moved
        image = _product(outer, _elementwise(self.shape, _product(inner, solution)))
        offset = -image if self.is_root else solution - image
        return {"outer": outer, "inner": inner}, offset

    def solution(self, t: Array) -> Array:
        """z*(t), one leaf."""
        angle = _product(_constant(self.frequency, t), t) + _constant(self.phase, t)
        wave = array_namespace(t).sin(angle)
        return _constant(self.center, t) + _constant(self.amplitude, t) * wave

    def derivative(self, order: int, t: np.ndarray | None = None) -> np.ndarray:
        """A derivative of z*.

        Parameters
        ----------
        order : int
            Which; 0 for z* itself.
        t : ndarray, optional
            Where, by default at zero.

        Returns
        -------
        ndarray of shape (\\*batch, n, m, …, m)
            ∂ᵏz*ᵢ/∂tⱼ…, with an axis of length m for each of the k orders.
        """
        angle = self.phase if t is None else self.phase + _product(self.frequency, t)
        tensor = np.asarray(self.amplitude * np.sin(angle + 0.5 * np.pi * order))
        if order == 0:
            return np.asarray(self.center + tensor)
        for k in range(order):
            ones = (1,) * k
            shape = (*self.frequency.shape[:-1], *ones, self.frequency.shape[-1])
            tensor = np.asarray(tensor[..., None] * self.frequency.reshape(shape))
        return tensor

    def joined(self, z: Any) -> Array:
        """The leaves of a state as one."""
        if not self.splits:
            return z
        leaves = [z["head"], *z["tail"]]
        return array_namespace(leaves[0]).concat(leaves, axis=-1)

    def _split(self, vector: Array) -> Any:
        if not self.splits:
            return vector
        ends = (*self.splits, vector.shape[-1])
        pairs = zip(self.splits, ends[1:], strict=True)
        tail = [vector[..., start:end] for start, end in pairs]
        return {"head": vector[..., : self.splits[0]], "tail": tail}


_SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tanh": lambda y: 1.0 - np.tanh(y) ** 2,
    "exponential": np.exp,
    "quadratic": lambda y: 1.0 + 0.5 * y,
}


def _elementwise(shape: str, y: Array) -> Array:
    if shape == "quadratic":
        return y + 0.25 * y**2
    xp = array_namespace(y)
    return xp.tanh(y) if shape == "tanh" else xp.exp(y)


def _product(matrix: Array, vector: Array) -> Array:
    return (matrix @ vector[..., None])[..., 0]


def known_map(
    seed: int = 0,
    *,
    radius: float = 0.9,
    size: int = 4,
    shape: str = "tanh",
    leaves: int = 1,
    samples: int | None = None,
    skew: float = 0.0,
    is_root: bool = False,
) -> KnownMap:
    """A random map with a known fixed point.

    Parameters
    ----------
    seed : int, optional
        The seed of all its numbers.
    radius : float, optional
        The spectral radius of J.
    size : int, optional
        The unknowns of a sample, not fewer than `leaves`.
    shape : {"tanh", "exponential", "quadratic"}, optional
        The nonlinearity.
    leaves : int, optional
        The leaves of the state: one array, or a dict that holds a list.
    samples : int, optional
        The length of the batch axis, by default without one.
    skew : float, optional
        The size of what makes J other than normal.
    is_root : bool, optional
        Whether it is a root that is known.

    Examples
    --------
    >>> from fixedpoint.testing.strategies import known_map
    >>> known = known_map(leaves=2, samples=3)
    >>> known.batch_ndim, known.jacobian.shape
    (1, (3, 4, 4))
    """
    rng = np.random.default_rng(seed)
    vector = (size,) if samples is None else (samples, size)
    jacobian = _jacobian(rng, vector, radius, skew)
    inner = _orthogonal(rng, (size, size))
    derivative = np.eye(size) - jacobian
    small = np.minimum(1.0, np.linalg.norm(derivative, -2, axis=(-2, -1)))[..., None]
    center = rng.uniform(-0.5, 0.5, vector)
    amplitude = small * rng.uniform(0.2, 0.5, vector)
    quarters = rng.integers(0, 4, vector) + rng.uniform(0.4, 0.6, vector)
    phase = 0.5 * np.pi * quarters  # so that no derivative vanishes
    slope = _SLOPES[shape](_product(inner, center + amplitude * np.sin(phase)))
    outer = (derivative if is_root else jacobian) @ inner.T / slope[..., None, :]
    drift = 0.3 * small[..., None] * rng.standard_normal((*vector, size))
    signs = rng.choice([-1.0, 1.0], (*vector, 2))
    frequency = signs * rng.uniform(0.5, 1.5, (*vector, 2))
    return KnownMap(
        is_root=is_root,
        shape=shape,
        splits=tuple(range(1, leaves)),
        jacobian=jacobian,
        outer=outer,
        drift=drift,
        inner=inner,
        center=center,
        amplitude=amplitude,
        phase=phase,
        frequency=frequency,
    )


def _orthogonal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.linalg.qr(rng.standard_normal(shape))[0])


def _jacobian(
    rng: np.random.Generator, vector: tuple[int, ...], radius: float, skew: float
) -> np.ndarray:
    """A matrix in Schur's form, turned: a pair of eigenvalues, maybe complex, is the
    largest.
    """
    size = vector[-1]
    schur = skew * np.triu(rng.standard_normal((*vector, size)), 1)
    schur = schur + radius * rng.uniform(-1.0, 1.0, vector)[..., None] * np.eye(size)
    angle = np.pi * rng.choice([0.0, 0.0, 0.3, 1.0], vector[:-1])
    cosine, sine = radius * np.cos(angle), radius * np.sin(angle)
    schur[..., 0, 0] = schur[..., 1, 1] = cosine
    schur[..., 0, 1], schur[..., 1, 0] = -sine, sine
    turn = _orthogonal(rng, (*vector, size))
    return np.asarray(turn @ schur @ np.swapaxes(turn, -1, -2))


def known_maps(largest: float = 0.999, **settings: Any) -> SearchStrategy[KnownMap]:
    """A Hypothesis strategy for random maps with known fixed points and roots.

    Parameters
    ----------
    largest : float, optional
        The largest spectral radius.
    **settings
        Settings of :func:`known_map` to hold fixed, such as ``leaves=2``.

    Returns
    -------
    SearchStrategy
        It draws a :class:`KnownMap`.

    Examples
    --------
    >>> from hypothesis import given
    >>> from fixedpoint.testing.strategies import known_maps
    >>> @given(known_maps(largest=0.9, leaves=1))
    ... def test_condition(known):
    ...     assert known.condition.min() > 0.5
    """
    from hypothesis import strategies as st  # noqa: PLC0415  hypothesis is optional

    radii = st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999])
    drawn = {
        "seed": st.integers(0, 2**32 - 1),
        "radius": radii.map(lambda r: min(r, largest)),
        "size": st.integers(3, 6),
        "shape": st.sampled_from(_SHAPES),
        "leaves": st.integers(1, 3),
        "samples": st.sampled_from([None, None, 1, 3]),
        "skew": st.sampled_from([0.0, 0.3, 1.0]),
        "is_root": st.booleans(),
    }
    fixed = {name: st.just(value) for name, value in settings.items()}
    return st.builds(known_map, **{**drawn, **fixed})
