"""The first hour of someone new.

From the sources to a wheel, from the wheel into new environments, and in each the
programs of the README, the usual mistakes, and the command.

``python tests/newcomer.py [interpreter]...``

The interpreters are by default the one that runs this. Nothing is left behind, and the
answer is one table. The pins of constraints.txt hold for the newest releases: without
the one of Torch its build for CUDA comes, of several gigabytes. On the oldest Python
JAX and NumPy are also taken at their lower bounds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from oldest import ROOT, oldest

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CLEAN = {key: value for key, value in os.environ.items() if "PYTHON" not in key}

# What goes wrong in the first hour, and what the message has to say: under each library
# the start of the program, then mistakes with patterns.
MISTAKES = {
    "numpy": (
        "import numpy as np, fixedpoint as fp",
        [
            ("fp.fixed_point(lambda z: None, 1.0)", "f returned None: is there a ret"),
            ("fp.fixed_point(np.cos, np.ones(3), batch_ndim=2)", "z0 has 1 axes"),
            ("fp.fixed_point(np.cos, 1.0, args=2.0)", r"write args=\(x,\)"),
            ("fp.fixed_point(np.cos, 1.0, tol=1e-8)", "tol"),
            ("fp.fixed_point(np.cos, 1.0, solver='adnerson')", "anderson, .*adnerson"),
            ("fp.fixed_point(lambda z: z[:2], np.ones(3))", r"f.*\(3,\).*\(2,\)"),
            ("fp.fixed_point(lambda z: z + 1.0, 1.0)", "fixed_point failed: stalled"),
        ],
    ),
    "torch": (
        "import numpy as np, torch, fixedpoint as fp\n"
        "from fixedpoint_torch import DEQ\n"
        "w = torch.ones((), requires_grad=True)\n"
        "linear, back = torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)",
        [
            ("fp.fixed_point(lambda z: w * z.cos(), torch.ones(()))", "f captures w"),
            ("fp.fixed_point(lambda z, a: a * z, 1.0, (w,))", r"torch\.as_tensor\("),
            ("DEQ(torch.nn.Tanh())()", r"start="),
            ("DEQ(lambda z, x: linear(x))(torch.ones(2, 4))", "start="),
            ("DEQ(lambda z, x: back(z))(torch.ones(2, 4))", "start="),
            ("DEQ(torch.nn.Tanh(), solver='adnerson')", "anderson, .*adnerson"),
            ("fp.fixed_point(lambda z: None, torch.ones(2))", "is there a return"),
            (
                "fp.fixed_point(lambda z, a: a * z, torch.ones(2), (np.ones(2),))",
                r"args\[0\] as torch\.as_tensor\(",
            ),
            ("torch.export.export(DEQ(back), (torch.ones(2, 8),))", "number of plain"),
            ("torch.jit.trace(DEQ(back), torch.ones(2, 8))", "number of plain steps"),
            ("torch.jit.script(DEQ(back))", "number of plain steps"),
        ],
    ),
    "jax": (
        "import jax, jax.numpy as jnp, numpy as np, fixedpoint as fp\n"
        "from fixedpoint_jax import DEQ",
        [
            ("fp.fixed_point(np.cos, jnp.ones(2))", r"jnp\.asarray\("),
            (
                "fp.fixed_point(lambda z, a: a * z, 1.0, (jnp.ones(2),))",
                r"jnp\.asarray",
            ),
            ("DEQ(jnp.tanh)()", "start="),
            ("fp.fixed_point(lambda z: None, jnp.ones(2))", "is there a return"),
            (
                "jax.jacfwd(lambda b: fp.fixed_point(lambda z, b: z + b, b, (b,), "
                "max_steps=2, solver='picard').value)(jnp.ones(()))",
                "not converged within max_steps",
            ),
            ("DEQ(lambda z, x: z @ jnp.ones((8, 8)))(jnp.ones((2, 4)))", "start="),
        ],
    ),
}
# Runs mistakes, which come as JSON, and prints what each is told.
TOLD = """
import json, sys
exec(sys.argv[1])
told = []
for mistake in json.loads(sys.argv[2]):
    try:
        told.append(f"nothing: {eval(mistake)}")
    except Exception as error:
        told.append(" ".join([str(error), *getattr(error, "__notes__", ())]))
print(json.dumps(told))
"""
COMMANDS = [
    (["--version"], "^fixedpoint {version}$"),
    (["list"], "generative_digits"),
    (["train", "generative", "--config", "generative_digits", "--dry-run"], "latent:"),
]


@dataclass
class Visit:
    """One interpreter with one choice of what is installed, and how it went."""

    python: str
    title: str
    requirements: list[str]
    libraries: list[str]
    rows: list[tuple[str, bool, str]] = field(default_factory=list)
    first: str = "-"

    def run(self, *command: str, folder: str | None = None) -> tuple[str, bool]:
        """What a command prints, and whether it succeeds."""
        done = subprocess.run(
            command,
            cwd=folder,
            env=CLEAN,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr, done.returncode == 0

    def note(self, what: str, passed: bool, found: str) -> None:
        """A row of the table; of a failure the end of what was found."""
        self.rows.append((what, passed, found))
        sign = "ok" if passed else "FAILED"
        print(f"{self.title}: {what}: {sign} {found}".rstrip(), flush=True)

    def make(self, folder: str) -> None:
        """The environment, and all that is tried in it."""
        began = time.monotonic()
        self.run(self.python, "-m", "venv", folder)
        python = str(Path(folder, "bin", "python"))
        install = [python, "-m", "pip", "install", "-q", *self.requirements]
        printed, passed = self.run(*install)
        seconds = f"{time.monotonic() - began:.0f} s"
        self.note("install", passed, seconds if passed else printed[-2000:])
        if passed:
            self.programs(python, folder, began)
            self.mistakes(python, folder)
            self.commands(Path(folder, "bin", "fixedpoint-models"), folder)

    def programs(self, python: str, folder: str, began: float) -> None:
        """Those of the README alone, then together."""
        mine = [program for program in PROGRAMS if self.has(program)]
        for program in mine:
            first = program.partition("\n")[0]
            self.compare(f"README, {first}", [python, "-I", "-c", program], [program])
            self.first = f"{time.monotonic() - began:.0f} s"
        self.compare(
            "README, in order", [python, "-I", "-c", "\n".join(mine)], mine, folder
        )

    def compare(
        self, what: str, command: list[str], programs: list[str], folder: str = ""
    ) -> None:
        """Whether programs print what their comments say."""
        printed, passed = self.run(*command, folder=folder or None)
        promised = re.findall(r"^# (.*)$", "\n".join(programs), re.MULTILINE)
        passed = passed and printed.splitlines() == promised
        self.note(what, passed, "" if passed else printed[-2000:])

    def has(self, program: str) -> bool:
        """Whether what a program imports is there."""
        needed = {name for name in ("torch", "jax") if f"import {name}" in program}
        return needed <= set(self.libraries)

    def mistakes(self, python: str, folder: str) -> None:
        """What is said of the usual ones."""
        for library in self.libraries:
            start, pairs = MISTAKES[library]
            asked = json.dumps([mistake for mistake, _ in pairs])
            printed, passed = self.run(
                python, "-I", "-W", "ignore", "-c", TOLD, start, asked, folder=folder
            )
            told = json.loads(printed.splitlines()[-1]) if passed else [printed] * 99
            for (mistake, pattern), said in zip(pairs, told, strict=False):
                right = re.search(pattern, said, re.DOTALL) is not None
                self.note(mistake, right, "" if right else said[-2000:])

    def commands(self, script: Path, folder: str) -> None:
        """The console script; without its extra it says what to install."""
        complete = "models" in self.title
        tried = COMMANDS if complete else [(["list"], r"pip install '.*\[models\]'")]
        version = re.findall(r"^Version (\S+),", README, re.MULTILINE)[0]
        for arguments, pattern in tried:
            printed, passed = self.run(str(script), *arguments, folder=folder)
            found = re.search(pattern.format(version=version), printed, re.MULTILINE)
            right = found is not None and passed == complete
            what = " ".join([script.name, *arguments])
            self.note(what, right, "" if right else printed[-2000:])
        if complete:
            words = ["COMP_WORDS=fixedpoint-models ev", "COMP_CWORD=1"]
            asked = ["_FIXEDPOINT_MODELS_COMPLETE=complete_bash", *words, str(script)]
            printed, _ = self.run("env", *asked, folder=folder)
            self.note("completion", printed.strip() == "evaluate", printed[-2000:])


def visits(python: str, wheel: Path) -> Iterator[Visit]:
    """What is tried with an interpreter."""
    pins = ["-c", str(ROOT / "constraints.txt")]
    bounds = [
        requirement for requirement in oldest(("jax",)) if "scipy" not in requirement
    ]
    name = Path(python).name
    yield Visit(python, f"{name}, NumPy", [str(wheel)], ["numpy"])
    for title, extra in (("PyTorch", "torch"), ("JAX", "jax"), ("models", "models")):
        libraries = ["numpy", "torch" if extra == "models" else extra]
        yield Visit(python, f"{name}, {title}", [*pins, f"{wheel}[{extra}]"], libraries)
    if is_oldest(python):  # the newest have no wheels of the oldest
        title = f"{name}, oldest NumPy and JAX"
        yield Visit(python, title, [f"{wheel}[jax]", *bounds], ["numpy", "jax"])


def is_oldest(python: str) -> bool:
    """Whether an interpreter is of the oldest release that is supported."""
    show = "import sys; print('>={}.{}'.format(*sys.version_info))"
    version = subprocess.check_output([python, "-c", show], text=True).strip()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return bool(project["requires-python"] == version)


def built(folder: Path) -> Path:
    """The wheel, as it would be published, and checked as it would be."""
    tools = folder / "tools"
    subprocess.run([sys.executable, "-m", "venv", tools], check=True)
    python = tools / "bin" / "python"
    dist = folder / "dist"
    for command in (
        "pip install -q build twine",
        f"build -o {dist} {ROOT}",
        f"twine check --strict {dist}/*",
    ):
        said = subprocess.run(
            f"{python} -m {command}",
            shell=True,
            capture_output=True,
            text=True,
            check=False,
            env=CLEAN,
        )
        if said.returncode:
            sys.exit(f"{command}: {said.stdout}{said.stderr}")
    (wheel,) = dist.glob("*.whl")
    return wheel


def table(done: list[Visit]) -> str:
    """One line an environment: how long from nothing until all is installed, and until
    the first answer, or gradient where there are gradients; and what failed.
    """
    width = max(len(visit.title) for visit in done)
    lines = []
    for visit in done:
        failed = [what for what, passed, _ in visit.rows if not passed]
        passed = f"{len(visit.rows) - len(failed)} of {len(visit.rows)} passed"
        installed = visit.rows[0][2] if visit.rows[0][1] else "-"
        times = f"{installed:>9} {visit.first:>12}"
        failures = "".join(f"; FAILED: {what}" for what in failed)
        lines.append(f"{visit.title:{width}} {times}  {passed}{failures}")
    head = f"{'':{width}} installed first answer  checks"
    return "\n".join([head, *lines])


def main(*pythons: str) -> int:
    """Visit, and print the table; 1 if anything failed."""
    done = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = built(Path(folder))
        for python in pythons or (sys.executable,):
            for number, visit in enumerate(visits(python, wheel)):
                with tempfile.TemporaryDirectory(prefix=f"visit{number}") as place:
                    visit.make(place)
                done.append(visit)
    print(f"\n{table(done)}")
    return int(any(not passed for visit in done for _, passed, _ in visit.rows))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
