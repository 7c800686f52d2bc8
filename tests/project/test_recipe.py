"""The recipe of the conda package asks for what the project asks for."""

import tomllib
from pathlib import Path

import yaml

import fixedpoint as fp

ROOT = Path(__file__).parents[2]
RECIPE = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# What is called otherwise there.
NAMES = {"pytorch": "torch", "dask-core": "dask[array]"}


def requirements(part):
    """Those of a part of the recipe, written as in pyproject.toml."""
    rows = [row.split() for row in RECIPE["requirements"][part]]
    return {NAMES.get(name, name) + "".join(bound) for name, *bound in rows}


def test_it_is_of_this_version():
    assert RECIPE["context"]["version"] == fp.__version__


def test_what_it_needs_to_run():
    python = f"python{PROJECT['project']['requires-python']}"
    assert requirements("run") == {python, *PROJECT["project"]["dependencies"]}


def test_what_it_needs_to_be_built():
    python = f"python{PROJECT['project']['requires-python']}"
    assert requirements("host") == {python, "pip", *PROJECT["build-system"]["requires"]}


def test_what_it_works_with():
    extras = PROJECT["project"]["optional-dependencies"]
    expected = {*extras["torch"], *extras["jax"], *extras["dask"]}
    assert requirements("run_constraints") == expected


def test_its_command_is_that_of_the_project():
    (entry,) = RECIPE["build"]["python"]["entry_points"]
    name, target = entry.split(" = ")
    assert PROJECT["project"]["scripts"] == {name: target}
