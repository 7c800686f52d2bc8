"""The derivative of a residual at a point, in the forms that solvers ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from fixedpoint.adapters import type_name
from fixedpoint.backend import Array, Vec
from fixedpoint.differences import difference_jacobian, difference_product
from fixedpoint.functions import Functions, Product
from fixedpoint.matrix import (
    Matrix,
    Sparsity,
    columns_of,
    is_operator,
    is_sparse,
    matrix_of,
    product_with,
)
from fixedpoint.point import Point
from fixedpoint.solution import Work
from fixedpoint.space import Space


class Linearization(NamedTuple):
    """The products v ↦ g′(z)v, where g is the increment, and what they cost.

    Attributes
    ----------
    product : callable
        v ↦ g′(z)v.
    quotient : callable or None
        The same from v and ‖v‖, of difference quotients, which need both.
    evaluations, products : int
        Evaluations and products that each takes.
    further : list of int
        Evaluations besides, until now.
    """

    product: Product
    evaluations: int
    products: int
    further: list[int]
    quotient: Callable[[Vec, Array], Vec] | None = None

    def work(self, count: Any) -> Work:
        """What `count` products took, these being all."""
        return Work(
            f=count * self.evaluations + self.further[0], jvp=count * self.products
        )


class Linearizable:
    """An increment g that has a derivative, by what is known of the map.

    The user's products and matrices are those of f′; :meth:`of_user` and the other two
    hooks make those of g′ of them.
    """

    space: Space
    functions: Functions
    args: Vec

    def increment(self, value: Vec) -> Vec:
        """The increment at a state."""
        raise NotImplementedError

    def linearize(self, point: Point) -> Linearization:
        """The products with the increment's derivative, exact where they can be."""
        known, space, further = self._known_product(point), self.space, [0]
        if known is not None:
            return Linearization(known, 0, 1, further)
        quotient = difference_product(self, point, further)
        product = lambda v: quotient(v, space.norm(v))
        return Linearization(product, 1, 0, further, quotient)

    def _known_product(self, point: Point) -> Product | None:
        """The products by what the user gave, or by the framework, if either can."""
        given, space = self.functions, self.space
        if given.product is not None:
            return self.of_user(given.product(point.value, self.args))
        if given.jacobian is not None:
            matrix, ravel = self._jacobian(given.jacobian, point), space.ravel
            return self.of_user(
                lambda v: space.unravel(product_with(space, matrix, ravel(v)))
            )
        if space.backend.differentiates:
            return space.backend.linearize(self.increment, point.value)
        return None

    def precondition(self, point: Point) -> Product | None:
        """The product with the user's approximate inverse of the derivative, if any."""
        given, space = self.functions.preconditioner, self.space
        if given is None:
            return None
        inverse = given(point.value, self.args)
        apply = getattr(inverse, "solve", None) or getattr(inverse, "matvec", None)
        if apply is None:
            return self.of_user_inverse(inverse)
        return self.of_user_inverse(lambda v: space.unravel(apply(space.ravel(v))))

    def matrix(self, point: Point, sparsity: Sparsity | None, sizes: Array) -> Matrix:
        """The increment's derivative (batch, n, n).

        `sparsity` is what an earlier one found, and `sizes` the largest that entries
        have been.
        """
        space, given = self.space, self.functions
        _check_matrices(space)
        if given.jacobian is not None:
            found = self._jacobian(given.jacobian, point)
            known = columns_of(space, found) if is_operator(found) else found
            return Matrix(self.of_user_matrix(known), Work(), None)
        product = self._known_product(point)
        if product is None:
            return difference_jacobian(self, point, sparsity, sizes)
        column = lambda unit: space.ravel(product(space.unravel(unit)))
        size = space.real_size
        columns = space.backend.mapped(column, space.identity(size))
        return Matrix(columns, Work(jvp=size), None)

    def _jacobian(self, jacobian: Callable[[Vec, Vec], Any], point: Point) -> Any:
        """The user's Jacobian at a point, checked."""
        space, given = self.space, jacobian(point.value, self.args)
        matrix = matrix_of(space, given)
        if space.backend.is_traced(point.value) and not space.backend.is_array(matrix):
            raise TypeError(
                "jacobian must be an array in a trace such as that of jit, got "
                f"{type_name(given)}"
            )
        return matrix

    def of_user(self, product: Product) -> Product:
        """The products with g′ = f′ − I, by the user's with f′."""
        return lambda v: self.space.subtract(product(v), v)

    def of_user_inverse(self, product: Product) -> Product:
        """The products with the inverse of g′, by the user's approximation."""
        return product

    def of_user_matrix(self, matrix: Any) -> Any:
        """The matrix of g′ = f′ − I, by the user's of f′."""
        order = self.space.real_size
        if not is_sparse(matrix):
            return matrix - self.space.identity(order)
        from scipy.sparse import eye_array  # noqa: PLC0415  there, since the matrix is

        return matrix - eye_array(order, format="csr")


def _check_matrices(space: Space) -> None:
    """Raise unless matrices of the entries of a sample can be had."""
    if space.backend.is_partial:
        raise ValueError(
            "where a communicator joins the entries of a sample there is no matrix "
            "of them: use a solver without one, as NewtonKrylov"
        )
    if not hasattr(getattr(space.xp, "linalg", None), "vector_norm"):
        raise TypeError(
            "the arrays' library lacks the array API's linear algebra, which a "
            "matrix takes: use a solver without one, as NewtonKrylov"
        )
