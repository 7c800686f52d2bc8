"""How derivatives of a solution are formed."""

from fixedpoint.adjoints.implicit import Implicit

__all__ = ["Implicit"]
