"""The tests on the oldest releases that pyproject.toml declares, in an environment of
their own.

``python tests/oldest.py ENVIRONMENT [argument of pytest]...``

The lower bounds become exact requirements, except that of Torch: its old releases come
with CUDA, which is several gigabytes, or for CPUs from an index of their own. The
variable TORCH holds what is passed to pip for it, by default the pin of
constraints.txt.
"""

import os
import shlex
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What the tests are run with is not what is tested.
TOOLS = [
    "array-api-strict",
    "hypothesis",
    "mpmath",
    "pytest",
    "pytest-xdist",
]
TESTS = [
    "fixedpoint",
    "backends",
    "tests/adjoints",
    "tests/contracts/test_backends.py",
    "tests/jax/test_deq.py",
    "tests/models",
    "tests/torch",
    # What old releases use of others may be deprecated by now.
    "-Wignore::DeprecationWarning",
    # jax.shard_map is newer; its predecessor needs check_rep=False.
    "--deselect=backends/fixedpoint_jax/axes.py::fixedpoint_jax.axes.MeshAxes",
]


EXTRAS = "jax", "dask", "models", "tensorboard"


def oldest(names: tuple[str, ...] = EXTRAS) -> list[str]:
    """The requirements of some extras, but for Torch, at their lower bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    extras = [optional[name] for name in names]
    declared = sum(extras, project["dependencies"])
    bounds = [name.replace(">=", "==") for name in declared if ">=" in name]
    return bounds + [
        bound.replace("jax", "jaxlib") for bound in bounds if bound.startswith("jax")
    ]


def main(folder: str, *arguments: str) -> int:
    """Make the environment, if it is not there, and run the tests in it."""
    venv.create(folder, with_pip=True)
    python = str(Path(folder, "bin", "python").absolute())
    torch = shlex.split(os.environ.get("TORCH") or "-c constraints.txt torch")
    install = [python, "-m", "pip", "install", *oldest(), *TOOLS, *torch, "-e", "."]
    subprocess.run(install, cwd=ROOT, check=True)
    tests = [python, "-m", "pytest", *TESTS, "-m", "not slow", *arguments]
    return subprocess.run(tests, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
