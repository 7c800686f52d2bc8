"""States that are spread over devices and processes, against one solve of the whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fixedpoint as fp

HERE = Path(__file__).parent


def results(*command, **variables):
    """The lines that a program printed, by their case."""
    environment = {**os.environ, **variables}
    ran = subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, timeout=600, env=environment
    )
    assert ran.returncode == 0, ran.stderr.decode()[-4000:]
    lines = [line for line in ran.stdout.decode().splitlines() if line.startswith("{")]
    return {found.pop("case"): found for found in map(json.loads, lines)}


@pytest.fixture(scope="module")
def devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    return results(str(HERE / "on_eight_devices.py"), XLA_FLAGS=flags)


@pytest.fixture(scope="module")
def processes():
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return results(*run, str(HERE / "on_two_processes.py"), **settings)


SPECS = {
    "jit-Anderson-d": ["d", None],
    "jit-Anderson-None-d": [None, "d"],
    "jit-Anderson-x-y": ["x", "y"],
    "jit-Anderson-x-None-y": ["x", None, "y"],
    "jit-Anderson-batch": ["x", None, "y"],
    "jit-Picard": ["x", None, "y"],
    "jit-Broyden": ["x", None, "y"],
    "jit-NewtonKrylov": ["x", None, "y"],
}
# In the whole program, the questions that are seldom asked included; twice that on two axes.
REDUCTIONS = {"jit-Anderson-d": 22, "jit-Anderson-x-y": 44, "jit-Broyden": 48, "jit-Picard": 38}


@pytest.mark.slow
@pytest.mark.parametrize("case", SPECS)
def test_nothing_is_gathered_and_shardings_are_kept(devices, case):
    found, spec = devices[case], SPECS[case]
    assert found["gathers"] == 0
    assert found["spec"] == found["slope_spec"] == spec
    assert found["error"] < 1e-14
    assert found["steps"][0] == found["steps"][1]
    batch = int(case.endswith("batch"))
    expected = [*spec[:batch], None, *spec[batch:]]
    assert all(history == expected for history in found["history_specs"])
    assert bool(found["history_specs"]) == any(name in case for name in ("Anderson", "Broyden"))


@pytest.mark.slow
@pytest.mark.parametrize("case", REDUCTIONS)
def test_how_often_devices_add_up(devices, case):
    assert devices[case]["reductions"] <= REDUCTIONS[case]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["eager-Anderson", "eager-NewtonKrylov"])
def test_spread_arrays_without_jit(devices, case):
    found = devices[case]
    assert found["spec"] == ["x", "y"]
    assert found["error"] < 1e-14
    assert found["steps"][0] == found["steps"][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "map-Picard-entries",
        "map-Broyden-entries",
        "map-NewtonKrylov-entries",
        "map-Anderson-entries-unchecked",
        "map-Anderson-samples",
    ],
)
def test_parts_inside_a_shard_map(devices, case):
    found = devices[case]
    assert found["error"] < 1e-14
    assert found["slope_error"] < 1e-13
    assert found["steps"] == [0, 0]  # the difference


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Picard", "Anderson", "Broyden", "NewtonKrylov", "SQUAREM", "default"]
)
def test_entries_in_two_processes(processes, name):
    for found in processes[f"entries-{name}"]["results"]:
        assert found["error"] < 1e-11
        assert found["slope_error"] < 1e-11
        # Where the number of all entries is not known, the default sequence is another.
        assert name == "default" or found["steps"][0] == found["steps"][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Anderson", "Broyden", "Picard"])
def test_samples_of_unequal_difficulty_in_two_processes(processes, name):
    for found in processes[f"samples-{name}"]["results"]:
        assert found["error"] == 0.0
        assert found["steps"][0] == found["steps"][1]


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
    [(fp.Picard(), 5), (fp.Anderson(), 5), (fp.Broyden(), 9)],
)
def test_messages_of_a_step(solver, most):
    """Sums and largest values; those of the start and the end are not counted."""
    counts = []
    for steps in (5, 15):
        alone = Alone()
        fp.fixed_point(
            lambda z: 0.9 * np.cos(z), np.linspace(0.0, 1.0, 300), solver=solver, rtol=0.0,
            max_steps=steps, on_failure="return", communicator=alone,
        )  # fmt: skip
        counts.append(alone.sums)
    assert (counts[1] - counts[0]) / 10 <= most


def test_matrices_of_a_part_are_refused():
    with pytest.raises(ValueError, match="communicator"):
        fp.fixed_point(np.cos, np.ones(3), solver=fp.Newton(), communicator=Alone())


def test_samples_do_not_leave_a_batch_that_is_spread():
    with pytest.raises(ValueError, match="batched_args"):
        fp.fixed_point(
            lambda z, a: a * np.cos(z), np.ones((2, 1)), (np.ones((2, 1)),), batch_ndim=1,
            batched_args=(True,), communicator=Alone(),
        )  # fmt: skip
