"""How processes or devices, each of which holds a part of the problem, solve it as
one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

Array = Any
Reduction = Literal["sum", "max"]


class Communicator(ABC):
    """Joins the parts of a state that is spread over processes or devices.

    Each runs the same call on its own part: of the entries of each sample, of the
    samples, or of both. What is summed over the entries of a sample is then summed over
    all who hold some, and all decide together when to stop, so that they evaluate f
    equally often: f may itself communicate. A subclass for a library of messages needs
    two methods; adapters bring theirs.

    Attributes
    ----------
    whole_samples : bool
        Whether each holds whole samples, so that nothing has to be summed.

    Examples
    --------
    With mpi4py, for NumPy arrays:

    >>> import fixedpoint as fp
    >>> class Ranks(fp.Communicator):
    ...     def __init__(self, comm, operations):
    ...         self.comm, self.operations = comm, operations
    ...     def reduce(self, array, reduction):
    ...         return self.comm.allreduce(array, self.operations[reduction])
    ...     def agree(self, flag):
    ...         return bool(self.comm.allreduce(flag, self.operations["max"]))
    """

    whole_samples: bool = False

    @abstractmethod
    def reduce(self, array: Array, reduction: Reduction) -> Array:
        """The sum, or the largest, of the arrays that all who share these samples call
        this with.

        Parameters
        ----------
        array : array of the batch's shape, and maybe more axes
            What was found in this part of the entries.
        reduction : {"sum", "max"}
            Which.

        Returns
        -------
        array
            The same for all, in a new array.
        """

    @abstractmethod
    def agree(self, flag: Any) -> Any:
        """Whether the flag is true for any of all who take part.

        Parameters
        ----------
        flag : bool, or in a trace an array without axes
            This one's.
        """
