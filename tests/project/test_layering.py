"""The core knows no framework, and the layers know only those beneath."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command):
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "name", ["fixedpoint", "fixedpoint.operators", "fixedpoint.api"]
)
def test_the_core_imports_no_framework(name):
    found = "sorted({'torch', 'jax', 'scipy'} & set(sys.modules))"
    code = f"import sys, {name}; print({found})"
    result = run("-c", code)
    assert result.stdout.strip() == "[]", result.stderr


def test_solving_on_numpy_imports_no_framework():
    code = (
        "import sys, numpy as np, fixedpoint as fp; fp.fixed_point(np.cos, 1.0);"
        "print(sorted({'torch', 'jax'} & set(sys.modules)))"
    )
    assert run("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "other"), [("fixedpoint_torch", "jax"), ("fixedpoint_jax", "torch")]
)
def test_an_adapter_imports_its_own_framework_alone(name, other):
    result = run("-c", f"import sys, {name}; print({other!r} in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr


def test_import_contracts_hold():
    result = run("-c", "from importlinter.cli import lint_imports_command as c; c()")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kept, 0 broken" in result.stdout


def test_the_documentation_lists_the_layers_as_they_are():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [inside] = [
        contract
        for contract in contracts["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == ["fixedpoint"]
    ]
    layers = [set(layer.split(" | ")) for layer in inside["layers"]]
    page = (ROOT / "docs" / "architecture.rst").read_text()
    rows = re.findall(r"^    \* - (``.*)$", page, re.MULTILINE)
    listed = [set(re.findall(r"``(\w+)(?:\.py|/)``", row)) for row in rows]
    assert listed == layers
    modules = {p.stem for p in (ROOT / "fixedpoint").iterdir() if p.suffix == ".py"}
    packages = {p.parent.name for p in (ROOT / "fixedpoint").glob("*/__init__.py")}
    beside = {"__init__", "testing", "recording"}
    assert set().union(*layers) == (modules | packages) - beside
