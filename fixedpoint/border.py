"""Where a user's containers become leaves, and leaves containers again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import compress
from typing import Any

from fixedpoint.adapters import (
    backend_of_state,
    is_number,
    of_one_backend,
    row,
    type_name,
)
from fixedpoint.backend import Array, Backend, Vec
from fixedpoint.checks import check_count
from fixedpoint.communicator import Communicator
from fixedpoint.evaluator import Evaluated, Evaluator, Tested
from fixedpoint.functions import Bridge, Functions, Mapped, Product
from fixedpoint.joining import Joined
from fixedpoint.matrix import as_function
from fixedpoint.operators.base import Evaluation, Map, Operator
from fixedpoint.remedies import not_square, remedy_of, returned_as, stacked
from fixedpoint.space import Space
from fixedpoint.spaces import space_of


@dataclass(frozen=True, eq=False)
class Border:
    """The containers of a state: how they are made up of leaves.

    Parameters
    ----------
    backend : Backend
        The adapter of the array library.
    structure : structure
        How to rebuild a container.
    names : tuple of str
        What messages call each leaf.
    numbers : tuple of bool
        Which leaves the user gave as numbers, and gets back as such.
    joining : Joined or None
        Which leaves lie in one array.
    """

    backend: Backend
    structure: Any
    names: tuple[str, ...]
    numbers: tuple[bool, ...]
    joining: Joined | None = None

    @classmethod
    def of(
        cls,
        start: Any,
        whole: str,
        communicator: Communicator | None = None,
        batch_ndim: int = 0,
    ) -> tuple[Border, Vec]:
        """That of a state like `start`, called `whole`; and the leaves of this one."""
        backend = backend_of_state(start, whole).among(communicator)
        backend = backend.holding(start, batch_ndim)
        names = tuple(backend.paths(start, whole))
        leaves, structure = backend.flatten(start)
        numbers = tuple(map(is_number, leaves))
        border = cls(backend, structure, names, numbers)
        return border, tuple(map(backend.leaf, leaves))

    def check(self, leaves: Vec, batch_ndim: int) -> None:
        """Raise unless each leaf of a state holds floating-point entries, and all
        share their first axes.
        """
        backend, batch = self.backend, tuple(leaves[0].shape[:batch_ndim])
        xp = backend.namespace(leaves[0])
        for leaf, name in zip(leaves, self.names, strict=True):
            if not xp.isdtype(leaf.dtype, ("real floating", "complex floating")):
                raise TypeError(
                    f"{name} must have a floating-point or complex dtype, got "
                    f"{leaf.dtype}"
                )
            shape = tuple(leaf.shape)
            if len(shape) < batch_ndim:
                raise ValueError(
                    f"{name} has {len(shape)} axes, fewer than batch_ndim={batch_ndim}"
                )
            if shape[:batch_ndim] != batch:
                raise ValueError(
                    f"{name} must begin with the {batch_ndim} batch axes {batch} of "
                    f"{self.names[0]}, got the shape {shape}"
                )
            if 0 in shape[batch_ndim:]:
                raise ValueError(f"{name} is empty: its shape is {shape}")

    def joined(self, leaves: Vec, batch_ndim: int) -> Border:
        """The same, with small neighbors among the leaves in one array."""
        return replace(self, joining=Joined.of(self.backend, leaves, batch_ndim))

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The entries of the leaves in each array of a vector, if any are joined."""
        return () if self.joining is None else self.joining.sizes

    def leaves(self, container: Any) -> Vec:
        """The leaves of a container, whatever they are."""
        return tuple(map(self.backend.leaf, self.backend.flatten(container)[0]))

    def vector(self, leaves: Sequence[Array]) -> Vec:
        """The vector that the leaves make up."""
        return tuple(leaves) if self.joining is None else self.joining.vector(leaves)

    def unpack(self, vector: Vec) -> Any:
        """The container of a vector."""
        if self.is_bare:
            return vector[0]
        return self.structure.rebuild(self._apart(vector))

    def returned(self, vector: Vec) -> Any:
        """The container of a vector, as the user gets it: for numbers, NumPy's."""
        if not any(self.numbers):
            return self.unpack(vector)
        pairs = zip(self._apart(vector), self.numbers, strict=True)
        return self.structure.rebuild([x[()] if is_one else x for x, is_one in pairs])

    def _apart(self, vector: Vec) -> Sequence[Array]:
        """The leaves of a vector."""
        return self.joining.leaves(vector) if self.joining else vector

    @cached_property
    def is_bare(self) -> bool:
        """Whether a state is an array by itself."""
        mark = object()
        return len(self.names) == 1 and self.structure.rebuild([mark]) is mark

    def pack(self, container: Any, like: Vec, what: str) -> Vec:
        """The vector of what `what` returned, whose leaves must be like a state's."""
        if self.is_bare:
            old = like[0]
            if (
                type(container) is type(old)
                and container.shape == old.shape
                and container.dtype == old.dtype
            ):
                return (container,)
            container = row(container, tuple(old.shape))
        leaves = self.backend.outputs(container, self.structure)
        if leaves is None:
            raise ValueError(self._of_other_structure(container, what, like))
        joining = self.joining
        if joining is not None and joining.are_alike(leaves, like):
            return joining.vector(leaves)
        alike = like if joining is None else joining.leaves(like)
        triples = zip(map(self.backend.leaf, leaves), alike, self.names, strict=True)
        return self.vector([self._conforming(what, *triple) for triple in triples])

    def found(self, container: Any) -> tuple[Any, ...]:
        """The leaves of a state of which some are missing: None in their places."""
        names = self.backend.paths(container, self.names[0].partition("[")[0])
        leaves = dict(zip(names, self.backend.flatten(container)[0], strict=True))
        return tuple(map(leaves.get, self.names))

    def _of_other_structure(self, container: Any, what: str, like: Vec) -> str:
        """What to say of a container that is not one of a state."""
        if container is None:
            return f"{what} returned None: is there a return at its end?"
        start, count = self.names[0].partition("[")[0], len(self.leaves(container))
        kind, holding = getattr(self.structure, "kind", None), ", ".join(self.names)
        made = f"a {kind.__name__} " if kind else ""
        remedy = stacked(container, like[0], what) if self.is_bare else ""
        return (
            f"{what} must return a container like {start}, {made}with leaves "
            f"{holding}; it returned {type(container).__name__} with {count} "
            f"leaves{remedy}"
        )

    def _conforming(self, what: str, new: Any, old: Array, name: str) -> Array:
        """A leaf that `what` returned, of the type, shape and dtype of the old one."""
        if type(new) is not type(old) and not of_one_backend(new, old):
            remedy = remedy_of(new, f"Give {name}") or returned_as(old, new)
            raise TypeError(
                f"{what} must return an array for {name}, of the same library: "
                f"expected {type_name(old)}, got {type_name(new)}{remedy}"
            )
        if new.shape != old.shape:
            raise ValueError(
                f"{what} must keep the shape of {name}: expected {tuple(old.shape)}, "
                f"got {tuple(new.shape)}{not_square(what, new, old, name)}"
            )
        conforming = self.backend.conform(new, old)
        if conforming.dtype != old.dtype:
            raise TypeError(
                f"{what} must keep the dtype of {name}: expected {old.dtype}, got "
                f"{new.dtype}. Give the start the dtype that f computes in"
            )
        return conforming


def posed(state: Any, name: str, batch_ndim: int) -> tuple[Border, Vec, Space]:
    """The border of a state of this name, checked; its leaves, and their space."""
    check_count("batch_ndim", batch_ndim, 0)
    border, leaves = Border.of(state, name, batch_ndim=batch_ndim)
    border.check(leaves, batch_ndim)
    return border, leaves, space_of(border.backend, leaves, batch_ndim)


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of a map: the arrays among them are leaves, all else constants."""

    structure: Any  # of the tuple of arguments
    places: tuple[int, ...]  # of the arrays among the leaves
    constants: tuple[Any, ...]  # all leaves, None in place of an array

    @classmethod
    def of(cls, backend: Backend, args: tuple[Any, ...]) -> tuple[Arguments, Vec]:
        """Those like `args`, and the arrays of these."""
        leaves, structure = backend.flatten(args)
        known = list(map(backend.is_array, leaves))
        places = tuple(compress(range(len(leaves)), known))
        constants = [None if k else leaf for leaf, k in zip(leaves, known, strict=True)]
        return cls(structure, places, tuple(constants)), tuple(compress(leaves, known))

    def unpack(self, arrays: Vec) -> tuple[Any, ...]:
        """The arguments, as given."""
        leaves = list(self.constants)
        for place, array in zip(self.places, arrays, strict=False):
            leaves[place] = array
        args: tuple[Any, ...] = self.structure.rebuild(leaves)
        return args


def _packed(map_: Map, border: Border, name: str, output: Any, value: Vec) -> Evaluated:
    """The leaves of what f returned, and of what an operator tells besides."""
    if isinstance(output, Evaluation) and map_.is_operator:
        image, residual = [border.pack(part, value, name) for part in output[:2]]
        return image, Tested(residual, border.found(output.terms))
    if map_.has_aux:
        if not isinstance(output, tuple) or len(output) != 2:
            raise ValueError(
                f"{name} must return a pair (z, aux) where has_aux=True, "
                f"got {type_name(output)}"
            )
        output = output[0]
    return border.pack(output, value, name), None


@dataclass(frozen=True, eq=False)
class MapOnLeaves:
    """A user's map and what is known of it, as functions of leaves.

    The leaves of the arguments are followed by the arrays that the backend found inside
    f. In the loop f is called as it is, and brings these along; for derivatives it is a
    pure function of them. One evaluator calls f, wherever it is.
    """

    map: Map
    border: Border  # the containers of the state
    arguments: Arguments  # the containers of the arguments
    evaluator: Evaluator

    @classmethod
    def of(
        cls, map_: Map, border: Border, value: Vec, args: tuple[Any, ...], name: str
    ) -> tuple[MapOnLeaves, Vec]:
        """That of `map_`; and the arrays among the arguments and inside f."""
        backend = border.backend
        arguments, arrays = Arguments.of(backend, args)
        packed = partial(_packed, map_, border, name)
        evaluator = backend.evaluator(value, border.unpack, packed)
        arrays = (*arrays, *backend.lift(map_.f))
        return cls(map_, border, arguments, evaluator), arrays

    def functions(
        self, adjoint_preconditioner: Callable[..., Any] | None = None
    ) -> Functions:
        """The functions that a solve asks for, with its adjoint's preconditioner."""
        given = self.map
        jacobian = as_function(self.border.backend, given.jacobian)
        return Functions(
            at=partial(self.at, given.f),
            image=self.image,
            product=self._product if given.jvp else None,
            jacobian=jacobian and partial(self._matrix, jacobian),
            preconditioner=self._inverse(given.preconditioner),
            project=self._projected if given.project else None,
            adjoint_preconditioner=self._inverse(adjoint_preconditioner),
            substituted=lambda change: partial(self.at, change(given.f)),
            has_residual=given.is_operator,
        )

    def at(
        self, f: Callable[..., Any], arrays: Vec, bridge: Bridge | None = None
    ) -> Mapped:
        """The map of the state, by the function f, for given arguments."""
        args = self.arguments.unpack(arrays)
        call = f.evaluate if isinstance(f, Operator) else f
        return partial(self.evaluator, call, args, bridge)

    def image(self, value: Vec, arrays: Vec) -> Vec:
        """The leaves of f(z, *args), a pure function of all `arrays`."""
        inside = arrays[len(self.arguments.places) :]
        f = self.border.backend.pure(self.map.f, inside)
        return self.at(f, arrays)(value)[0]

    def _product(self, value: Vec, arrays: Vec) -> Product:
        jvp, unpack = self.map.jvp, self.border.unpack
        assert jvp is not None
        z, args = unpack(value), self.arguments.unpack(arrays)
        return lambda v: self.border.pack(jvp(z, unpack(v), *args), value, "jvp")

    def _matrix(self, given: Callable[..., Any], value: Vec, arrays: Vec) -> Any:
        matrix = given(self.border.unpack(value), *self.arguments.unpack(arrays))
        return self.border.backend.sparse(matrix)

    def _projected(self, value: Vec) -> Vec:
        project = self.map.project
        assert project is not None
        return self.border.pack(project(self.border.unpack(value)), value, "project")

    def _inverse(
        self, given: Callable[..., Any] | None
    ) -> Callable[[Vec, Vec], Any] | None:
        """A preconditioner, on leaves if it returns a function on containers."""
        if given is None:
            return None
        pack, unpack = self.border.pack, self.border.unpack

        def at(value: Vec, arrays: Vec) -> Any:
            inverse = given(unpack(value), *self.arguments.unpack(arrays))
            if self._is_matrix_free(inverse):
                return inverse
            return lambda v: pack(inverse(unpack(v)), value, "preconditioner")

        return at

    def _is_matrix_free(self, inverse: Any) -> bool:
        """Whether what a preconditioner returned has products of flat vectors, and is
        not a function on containers.

        Raises
        ------
        TypeError
            If it is neither.
        """
        is_array = self.border.backend.is_array(inverse)  # Torch's have a solve, too
        flat = hasattr(inverse, "solve") or hasattr(inverse, "matvec")
        if is_array or not (flat or callable(inverse)):
            raise TypeError(
                "preconditioner must return a function v ↦ Pv, a linear operator or a "
                f"factorization with a method solve, got {type_name(inverse)}: for the "
                "matrix P of an approximate inverse return lambda v: P @ v"
            )
        return flat
