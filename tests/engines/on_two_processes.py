"""A state that is spread over two processes of gloo: ``python -m
torch.distributed.run`` runs it.

The first process prints a line of JSON for each case, with what each of them found.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce

import fixedpoint as fp
from fixedpoint_torch import Processes

# The first process has the easy part, and more of the entries.
FACTORS = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.9, 0.85, 0.8], dtype=torch.float64)
PART = slice(5) if os.environ.get("RANK") == "0" else slice(5, 8)


def mean_of_all(z: torch.Tensor) -> torch.Tensor:
    """The mean over both processes, differentiable."""
    return all_reduce(z.sum()) / len(FACTORS)


def spread(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """A map whose entries lie in both processes."""
    return a * torch.cos(z) + 0.1 * mean_of_all(z)


def whole(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """The same map in one process."""
    return a * torch.cos(z) + 0.1 * z.mean()


def entries(solver: Any) -> dict[str, Any]:
    """Half of the entries each."""
    # A small state that is whole would be differentiated by elimination.
    adjoint = fp.ImplicitAdjoint(solver="anderson")
    settings = {"solver": solver, "adjoint": adjoint, "rtol": 1e-10, "norm": "leaves"}
    known_a = FACTORS.clone().requires_grad_()
    known = fp.fixed_point(whole, torch.zeros_like(FACTORS), (known_a,), **settings)
    known.value.square().sum().backward()
    a = FACTORS[PART].clone().requires_grad_()
    sol = fp.fixed_point(
        spread, torch.zeros_like(a), (a,), communicator=Processes(), **settings
    )
    sol.value.square().sum().backward()
    return {
        "error": float((sol.value - known.value[PART]).detach().abs().max()),
        "slope_error": float((a.grad - known_a.grad[PART]).abs().max()),
        "steps": [int(sol.steps), int(known.steps)],
    }


def samples(solver: Any) -> dict[str, Any]:
    """Samples of its own in each, of unequal difficulty, and a collective in f, which
    every evaluation takes part in, and every product with its derivative.
    """

    def f(z: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return a * torch.cos(z) + 0.0 * all_reduce(a.sum() + z.sum())

    settings = {"solver": solver, "batch_ndim": 1, "rtol": 1e-10}
    a = FACTORS[PART].reshape(-1, 1).requires_grad_()
    z0 = torch.zeros_like(a)
    here = Processes(whole_samples=True)
    sol = fp.fixed_point(f, z0, (a,), communicator=here, **settings)
    sol.value.sum().backward()
    known = fp.fixed_point(lambda z, a: a * torch.cos(z), z0, (a,), **settings)
    slope = torch.cos(sol.value) / (1.0 + a * torch.sin(sol.value))
    return {
        "error": float((sol.value - known.value).detach().abs().max()),
        "slope_error": float((a.grad - slope).detach().abs().max()),
        "steps": [sol.steps.tolist(), known.steps.tolist()],
    }


def ends(kind: str, whole_samples: bool) -> dict[str, Any]:
    """One process alone wants to end, after its third step, and both do."""
    step_of_end, impatient = 3, dist.get_rank() == 1

    def late(step: int, *_: Any) -> bool:
        if impatient and step == step_of_end and kind == "seconds":
            time.sleep(2.0)
        return impatient and step == step_of_end and kind == "callback"

    ways = {
        "callback": {},
        "seconds": {"budget": fp.Budget(seconds=1.0 if impatient else 1e6)},
        "evaluations": {"budget": fp.Budget(evaluations=4 if impatient else 100)},
    }
    shape = (-1, 1) if whole_samples else (1, -1)
    a = torch.ones_like(FACTORS[PART]).reshape(shape)
    sol = fp.fixed_point(
        lambda z, a: a * torch.cos(z) + 0.0 * all_reduce(z.sum()),
        torch.zeros_like(a),
        (a,),
        solver=fp.Picard(),
        batch_ndim=1,
        rtol=0.0,
        callback=late,
        on_failure="return",
        communicator=Processes(whole_samples=whole_samples),
        **ways[kind],
    )
    steps, status = sol.steps.unique().tolist(), sol.status.unique().tolist()
    expected = fp.Status.STOPPED if kind == "callback" else fp.Status.OUT_OF_BUDGET
    return {"error": float(status != [expected]), "steps": [steps, [step_of_end]]}


def failure() -> dict[str, Any]:
    """A solve that fails in one process raises in both."""
    a = torch.full((2, 1), 0.5 if dist.get_rank() == 0 else 2.0, dtype=torch.float64)
    settings = {"solver": fp.Picard(), "batch_ndim": 1, "max_steps": 60}
    try:
        fp.fixed_point(
            lambda z, a: a * torch.cos(z) + 0.0 * all_reduce(z.sum()),
            torch.zeros_like(a),
            (a,),
            communicator=Processes(whole_samples=True),
            **settings,
        )
    except fp.ConvergenceError as error:
        elsewhere = "in another process; here it: converged" in str(error)
        return {"error": float(elsewhere != (dist.get_rank() == 0))}
    return {"error": 1.0}


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """All of them."""
    import distributed_models  # beside this file
    import dtensors
    from solver_table import SOLVERS

    for name, solver in {**SOLVERS, "default": None}.items():
        yield f"entries-{name}", entries(solver)
    for name in ("Anderson", "Broyden", "Picard"):
        yield f"samples-{name}", samples(SOLVERS[name])
    for kind in ("callback", "seconds", "evaluations"):
        for whole_samples in (False, True):
            yield f"ends-{kind}-{whole_samples}", ends(kind, whole_samples)
    yield "failure", failure()
    yield from dtensors.cases()
    yield from distributed_models.cases()


def leave() -> None:
    """End the process without tearing the interpreter down.

    Torch keeps the threads of gloo beyond ``destroy_process_group`` where a
    ``DistributedDataParallel`` was made. One that lets go of a tensor while the
    interpreter goes asks for its lock, and aborts the process.
    """
    dist.barrier()  # nobody leaves while another still listens
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for case, result in cases():
        results: list[Any] = [None, None]
        dist.all_gather_object(results, result)
        if dist.get_rank() == 0:
            print(json.dumps({"case": case, "results": results}), flush=True)
    leave()
