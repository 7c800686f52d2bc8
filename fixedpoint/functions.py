"""A user's functions as functions of leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fixedpoint.backend import Backend, Vec
from fixedpoint.evaluator import Evaluated

Mapped = Callable[[Vec], Evaluated]
Product = Callable[[Vec], Vec]


@dataclass(frozen=True, eq=False, kw_only=True)
class Functions:
    """A map and what is known of it, on the leaves of the state and of the arguments.

    Parameters
    ----------
    at : callable
        Takes the leaves θ of the arguments to the map of the state, which returns the
        leaves of the image, and the residual that is tested, or None. With a
        :class:`Bridge`, those of the state are another library's.
    image : callable
        (z, θ) ↦ the leaves of the image: a pure function, which derivative rules
        differentiate.
    product, jacobian, preconditioner : callable or None
        (z, θ) ↦ v ↦ f′(z)v; the matrix f′(z), as ``matrix_of`` takes it; and v ↦ Pv, P
        an approximate inverse of the derivative of the residual.
    project : callable or None
        What is applied to every trial point.
    adjoint_preconditioner : callable or None
        (z, θ) ↦ v ↦ Pv, P an approximate inverse for the adjoint system.
    first : callable or None
        As ``at``, for the evaluation at the start, if that is another.
    substituted : callable or None
        Takes a change of the user's function to ``at`` of the changed one.
    has_residual : bool
        Whether the map brings a residual of its own.
    program : object
        What a framework made of the map, where it traced it: nothing else is in it.
    """

    at: Callable[..., Mapped]
    image: Callable[[Vec, Vec], Vec]
    product: Callable[[Vec, Vec], Product] | None = None
    jacobian: Callable[[Vec, Vec], Any] | None = None
    preconditioner: Callable[[Vec, Vec], Any] | None = None
    project: Callable[[Vec], Vec] | None = None
    adjoint_preconditioner: Callable[[Vec, Vec], Any] | None = None
    first: Callable[..., Mapped] | None = None
    substituted: Callable[[Callable[..., Any]], Callable[[Vec], Mapped]] | None = None
    has_residual: bool = False
    program: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is known beside the map."""
        known = self.product, self.jacobian, self.preconditioner, self.project
        return not any((*known, self.adjoint_preconditioner))

    @classmethod
    def of_image(cls, image: Callable[[Vec, Vec], Vec], **others: Any) -> Functions:
        """Those of a pure function alone."""

        def at(args: Vec, bridge: Bridge | None = None) -> Mapped:
            here = lambda value: (image(value, args), None)
            return here if bridge is None else bridge.mapped(here)

        return cls(at=at, image=image, **others)

    def of_part(self, part: slice) -> Functions:
        """The same, of a part of longer arguments."""

        def of(function: Any) -> Any:
            return function and (lambda value, args: function(value, args[part]))

        given = self.substituted
        return replace(
            self,
            at=lambda args, *bridge: self.at(args[part], *bridge),
            image=of(self.image),
            product=of(self.product),
            jacobian=of(self.jacobian),
            preconditioner=of(self.preconditioner),
            adjoint_preconditioner=of(self.adjoint_preconditioner),
            substituted=given and (lambda f: lambda args: given(f)(args[part])),
        )

    def across(self, bridge: Bridge) -> Functions:
        """The same, on the leaves of another array library."""
        there, back = bridge.all_there, bridge.all_back

        def inverse(given: Any) -> Any:
            return given and (
                lambda value, args: bridge.function(given(back(value), back(args)))
            )

        first, product, jacobian = self.first, self.product, self.jacobian
        return replace(
            self,
            at=lambda args: self.at(back(args), bridge),
            first=first and (lambda args: first(back(args), bridge)),
            image=lambda value, args: there(self.image(back(value), back(args))),
            product=inverse(product),
            jacobian=jacobian
            and (
                lambda value, args: bridge.there_in(jacobian(back(value), back(args)))
            ),
            preconditioner=inverse(self.preconditioner),
            project=self.project and bridge.function(self.project),
            adjoint_preconditioner=inverse(self.adjoint_preconditioner),
            substituted=None,
        )


def of_chosen(
    function: Callable[[Vec], Any], inputs: Vec, chosen: Sequence[bool]
) -> Callable[[Vec], Any]:
    """The function of the `chosen` ones of its inputs, the others constant."""

    def of(part: Vec) -> Any:
        parts, pairs = iter(part), zip(inputs, chosen, strict=True)
        return function(tuple([next(parts) if given else x for x, given in pairs]))

    return of


@dataclass(frozen=True, eq=False)
class Bridge:
    """Another array library, whose arrays lie on the same memory.

    Parameters
    ----------
    backend : Backend
        Its adapter.
    there, back : callable
        Take an array there, and one of theirs back. What is no array they return as it
        is.
    """

    backend: Backend
    there: Callable[[Any], Any]
    back: Callable[[Any], Any]

    def all_there(self, leaves: Vec) -> Vec:
        """The leaves over there."""
        return tuple(map(self.there, leaves))

    def all_back(self, leaves: Vec) -> Vec:
        """The leaves back here."""
        return tuple(map(self.back, leaves))

    def evaluated_there(self, found: Evaluated) -> Evaluated:
        """What an evaluation gave, over there."""
        image, tested = found
        return self.all_there(image), tested and tested.across(self.all_there)

    def mapped(self, mapped: Mapped) -> Mapped:
        """A map of the state here as one of those over there."""
        return lambda value: self.evaluated_there(mapped(self.all_back(value)))

    def there_in(self, container: Any) -> Any:
        """An array, or the arrays in lists and tuples, over there."""
        return converted(self.there, container)

    def back_in(self, container: Any) -> Any:
        """An array, or the arrays in lists and tuples, back here."""
        return converted(self.back, container)

    def function(self, function: Any) -> Any:
        """A function of leaves here as one of those over there; all else as it is."""
        if not callable(function):
            return function
        return lambda leaves: self.all_there(function(self.all_back(leaves)))


def converted(convert: Callable[[Any], Any], container: Any) -> Any:
    """The container, its leaves converted. What is no list and no tuple is one leaf:
    there are matrices that are dicts.
    """
    if not isinstance(container, (list, tuple)):
        return convert(container)
    kind, parts = type(container), [converted(convert, part) for part in container]
    return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
