"""A state of NumPy arrays that is spread over ranks of MPI: ``mpiexec -n 2 python``
runs it.

The first rank prints a line of JSON for each case, with what each of them found.
"""

import json
from typing import Any

import numpy as np

import fixedpoint as fp


def main(mpi: Any) -> None:
    """Solve in parts and as a whole."""
    from solver_table import SOLVERS  # beside this file

    comm = mpi.COMM_WORLD

    class Ranks(fp.Communicator):
        """As in the documentation."""

        def reduce(self, array: Any, reduction: str) -> Any:
            return comm.allreduce(array, {"sum": mpi.SUM, "max": mpi.MAX}[reduction])

        def agree(self, flag: bool) -> bool:
            return comm.allreduce(bool(flag), mpi.LOR)

    a = np.linspace(0.1, 0.9, 7)
    mine = np.array_split(a, comm.size)[comm.rank]

    def spread(z: Any, a: Any) -> Any:
        return a * np.cos(z) + 0.1 * comm.allreduce(z.sum(), mpi.SUM) / 7

    def whole(z: Any, a: Any) -> Any:
        return a * np.cos(z) + 0.1 * z.mean()

    for name, solver in SOLVERS.items():
        settings = {"solver": solver, "rtol": 1e-10, "norm": "leaves"}
        ranks = Ranks()
        sol = fp.fixed_point(spread, 0 * mine, (mine,), communicator=ranks, **settings)
        known = fp.fixed_point(whole, 0 * a, (a,), **settings)
        part = np.array_split(known.value, comm.size)[comm.rank]
        result = {
            "error": float(abs(sol.value - part).max()),
            "steps": [int(sol.steps), int(known.steps)],
        }
        results = comm.gather(result)
        if comm.rank == 0:
            print(json.dumps({"case": name, "results": results}), flush=True)


if __name__ == "__main__":
    from mpi4py import MPI

    main(MPI)
