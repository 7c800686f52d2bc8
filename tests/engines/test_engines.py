"""States that are spread over devices and processes, against one solve of the whole."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fixedpoint as fp
from fixedpoint.testing import problems

HERE = Path(__file__).parent


def results(*command, program=(sys.executable,), **variables):
    """The lines that a program printed, by their case."""
    environment = {**os.environ, **variables}
    ran = subprocess.run(
        [*program, *command],
        check=False,
        capture_output=True,
        timeout=600,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-4000:]
    lines = [line for line in ran.stdout.decode().splitlines() if line.startswith("{")]
    return {found.pop("case"): found for found in map(json.loads, lines)}


SPECS = {
    "jit-Anderson-d": ["d", None],
    "jit-Anderson-None-d": [None, "d"],
    "jit-Anderson-x-y": ["x", "y"],
    "jit-Anderson-x-None-y": ["x", None, "y"],
    "jit-Anderson-batch": ["x", None, "y"],
    "jit-Picard": ["x", None, "y"],
    "jit-Broyden": ["x", None, "y"],
    "jit-NewtonKrylov": ["x", None, "y"],
    "explicit-Anderson-d": ["d", None],
    "explicit-Anderson-x-None-y": ["x", None, "y"],
    "explicit-Broyden-batch": ["x", None, "y"],
}
# Once in a program, where axes become automatic or explicit again.
GATHERS = {case: 2 for case in SPECS if case.startswith("explicit")}
# In the whole program, the gradient and the questions that are seldom asked included;
# twice that on two axes.
REDUCTIONS = {
    "jit-Anderson-d": 39,
    "jit-Anderson-x-y": 78,
    "jit-Broyden": 80,
    "jit-Picard": 76,
}
HISTORIES = {"Anderson": 2, "Broyden": 2, "NewtonKrylov": 1, "Picard": 0}


@pytest.mark.slow
def test_states_on_eight_devices():
    """All in one test: the program compiles for a minute."""
    flags = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )
    found = results(str(HERE / "on_eight_devices.py"), XLA_FLAGS=flags)
    for case, spec in SPECS.items():
        check_compiled(case, found.pop(case), spec)
    for case in ("eager-Anderson", "eager-NewtonKrylov", "eager-explicit"):
        result = found.pop(case)
        assert result["spec"] == ["x", "y"], case
        assert result["steps"][0] == result["steps"][1], case
        assert result["error"] < 1e-14, case
    assert len(found) == 5
    for case, result in found.items():
        assert case.startswith("map")
        assert result["steps"] == [0, 0], case  # the difference
        assert result["error"] < 1e-14, case
        assert result["slope_error"] < 1e-13, case


def check_compiled(case, result, spec):
    """Nothing is gathered in a loop, and shardings are kept."""
    assert result["gathers"] <= GATHERS.get(case, 0), case
    assert result["reductions"] <= REDUCTIONS.get(case, 100), case
    assert result["spec"] == result["slope_spec"] == spec, case
    assert result["error"] < 1e-14, case
    assert result["steps"][0] == result["steps"][1], case
    batch = int(case.endswith("batch"))
    expected = [*spec[:batch], None, *spec[batch:]]
    histories = HISTORIES[case.split("-")[1]]
    assert result["history_specs"] == [expected] * histories, case


# What is refused, in the words of the error.
REFUSALS = {
    "dtensor-refused-alike": "ValueError: the leaves of z0 must be spread alike",
    "dtensor-refused-mixed": "TypeError: z0 mixes DTensors and other tensors",
    "dtensor-refused-thin": "ValueError: axis 0 of z0, of the length 1",
    "dtensor-refused-partial": "ValueError: z0 has the placement",
    "dtensor-refused-plain": "ValueError: where z0 is a DTensor, f must return one",
    "dtensor-refused-communicator": "ValueError: z0 is a DTensor, whose mesh",
    "dtensor-refused-matrix": "ValueError: where a communicator joins",
    "dtensor-refused-batched": "ValueError: batched_args",
    "dtensor-refused-bracket": "TypeError: each bracket is a problem by itself",
    "dtensor-refused-twice": "TypeError: a solve for a DTensor has first derivatives",
    "dtensor-refused-transform": "TypeError: a solve for a DTensor has first",
    "model-refused-fsdp": "TypeError: DDP and FSDP act on every call of a module",
    "model-refused-ddp": "TypeError: DDP and FSDP act on every call of a module",
}


@pytest.mark.slow
def test_states_in_two_processes():
    """All in one test: the processes take seconds to start."""
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    found = results(*run, str(HERE / "on_two_processes.py"), **settings)
    for name, words in REFUSALS.items():
        both = found.pop(name)
        for result in both["results"]:
            assert result["message"].startswith(words), name
    assert len(found) == 51
    for case, both in found.items():
        for result in both["results"]:
            assert result["error"] < 1e-11, case
            assert result.get("slope_error", 0.0) < 1e-11, case
            # Where the number of all entries is not known, the default sequence is
            # another.
            steps = result.get("steps", [0, 0])
            assert "default" in case or steps[0] == steps[1], case


@pytest.mark.slow
def test_states_on_two_ranks():
    """Of MPI, where that is installed."""
    pytest.importorskip("mpi4py")
    beside = str(Path(sys.executable).parent)
    mpiexec = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("needs mpiexec")
    run = (mpiexec, "-n", "2", sys.executable)
    # Open MPI is careful in containers, and with cores.
    names = "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"
    settings = dict.fromkeys(names, "1")
    settings["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    found = results(str(HERE / "on_two_ranks.py"), program=run, **settings)
    assert len(found) == 5
    for case, both in found.items():
        assert len(both["results"]) == 2
        for result in both["results"]:
            assert result["error"] < 1e-11, case
            assert result["steps"][0] == result["steps"][1], case


class Thread(fp.Communicator):
    """One of two threads, each with a part of every sample."""

    def __init__(self, rank, barrier, slots):
        self.rank, self.barrier, self.slots = rank, barrier, slots

    def everyone(self, own):
        self.slots[self.rank] = own
        self.barrier.wait()
        both = list(self.slots)
        self.barrier.wait()
        return both

    def reduce(self, array, reduction):
        return {"sum": np.add, "max": np.maximum}[reduction](
            *self.everyone(np.array(array))
        )

    def agree(self, flag):
        return any(self.everyone(bool(flag)))


def test_one_part_is_zero_where_the_squares_of_another_underflow():
    """Both take part in the same messages."""
    barrier, slots = threading.Barrier(2, timeout=30), [None, None]

    def solve(rank, start):
        return fp.fixed_point(
            lambda z: 0.5 * z + 1.0,
            np.full(3, start),
            solver=fp.Anderson(),
            communicator=Thread(rank, barrier, slots),
        )

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(solve, [0, 1], [0.0, 1e-200]))
    for sol in found:
        np.testing.assert_allclose(sol.value, 2.0)
        assert sol.steps == found[0].steps


def test_entries_of_all_decide_also_after_a_leaf_without_axes():
    """Each entry is a part of its own, and one who is done asks the other."""
    barrier, slots = threading.Barrier(2, timeout=30), [None, None]

    def solve(rank, factor):
        return fp.fixed_point(
            lambda z: {"a": 0.1 * z["a"] + 0.9, "b": factor * z["b"] + 1.0 - factor},
            {"a": np.asarray(0.0), "b": np.zeros(2)},
            solver=fp.Picard(),
            norm="entries",
            communicator=Thread(rank, barrier, slots),
        )

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(solve, [0, 1], [0.1, 0.9]))
    assert found[0].steps == found[1].steps
    for sol in found:
        np.testing.assert_allclose(sol.value["b"], 1.0, rtol=1e-5)


class Alone(fp.Communicator):
    """One who takes part alone, and counts the messages."""

    def __init__(self):
        self.sums, self.flags = 0, 0

    def reduce(self, array, reduction):
        assert reduction in ("sum", "max")
        self.sums += 1
        return array

    def agree(self, flag):
        self.flags += 1
        return flag


@pytest.mark.parametrize(
    ("solver", "most"),
    [(fp.Picard(), 4.1), (fp.Anderson(), 3.5), (fp.Broyden(), 4), (fp.SQUAREM(), 6)],
)
def test_messages_of_a_step(solver, most):
    """Sums and largest values, and one question whether all go on; those of the start
    and the end are not counted.
    """
    counts = []
    for steps in (5, 15):
        alone = Alone()
        fp.fixed_point(
            lambda z: 0.9 * np.cos(z),
            np.linspace(0.0, 1.0, 300),
            solver=solver,
            rtol=0.0,
            max_steps=steps,
            on_failure="return",
            communicator=alone,
        )
        counts.append((alone.sums, alone.flags))
    sums, flags = ((b - a) / 10 for a, b in zip(*counts, strict=True))
    assert sums <= most
    assert flags <= 2


@pytest.mark.parametrize(
    ("linear", "exact", "difference"),
    [(fp.GMRES, 1, 2), (fp.ConjugateGradient, 2, 3), (fp.BiCGStab, 2, 4)],
)
@pytest.mark.parametrize("given", [True, False])
def test_messages_of_a_product(linear, exact, difference, given):
    """Sums of all inner products at once, and of the size of a difference; and whether
    all go on. A step of BiCGStab has two products.
    """
    problem, counts = problems.bratu(64), []
    more = {"jvp": problem.jvp} if given else {}
    for steps in (4, 8):
        alone, method = Alone(), linear(max_steps=steps)
        sol = fp.root(
            problem.function,
            problem.start,
            max_steps=1,
            on_failure="return",
            solver=fp.NewtonKrylov(linear=method, forcing=1e-4),
            communicator=alone,
            **more,
        )
        counts.append((alone.sums, alone.flags, sum(sol.work)))
    sums, flags, products = (b - a for a, b in zip(*counts, strict=True))
    assert products == (8 if linear is fp.BiCGStab else 4)
    assert sums == (exact if given else difference) * products
    assert flags <= 3 * products


@pytest.mark.parametrize(
    "solver", [fp.Picard(), fp.Anderson(memory=3), fp.Broyden(), fp.NewtonKrylov()]
)
def test_one_who_takes_part_alone_finds_the_same(xp_case, solver):
    """On every library, batches of leaves with several axes."""
    rng = np.random.default_rng(0)
    z0 = {"a": rng.random((2, 3, 4)), "b": rng.random((2, 10))}
    xp, settings = xp_case.xp, {"batch_ndim": 1, "norm": "leaves", "solver": solver}

    def f(z):
        mean = xp.reshape(xp.mean(z["b"], axis=1), (2, 1, 1))
        return {"a": 0.5 * xp.cos(z["a"]) + 0.3 * mean, "b": 0.8 * xp.cos(z["b"])}

    alone = xp_case.solve(f, z0, communicator=Alone(), **settings)
    known = xp_case.solve(f, z0, **settings)
    for name in z0:
        values = [xp_case.to_numpy(sol.value[name]) for sol in (alone, known)]
        np.testing.assert_allclose(*values, rtol=1e-12)
    for figure in ("status", "steps"):
        found = [xp_case.to_numpy(getattr(sol, figure)) for sol in (alone, known)]
        np.testing.assert_array_equal(*found)


def test_matrices_of_a_part_are_refused():
    with pytest.raises(ValueError, match="communicator"):
        fp.fixed_point(np.cos, np.ones(3), solver=fp.Newton(), communicator=Alone())


def test_samples_do_not_leave_a_batch_that_is_spread():
    with pytest.raises(ValueError, match="batched_args"):
        fp.fixed_point(
            lambda z, a: a * np.cos(z),
            np.ones((2, 1)),
            (np.ones((2, 1)),),
            batch_ndim=1,
            batched_args=(True,),
            communicator=Alone(),
        )
