"""What the benchmarks in several parts share: the command line, and the file they
write.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from threadpoolctl import threadpool_limits

Parts = dict[str, Callable[[], dict[str, Any]]]


def keep_jax_to_one_thread() -> None:
    """JAX has threads of its own, which are told before its first array."""
    one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one}"


def chosen(parts: Parts, description: str) -> list[str]:
    """The parts that were asked for, without any named all of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"of {', '.join(parts)}"
    )
    names: list[str] = parser.parse_args().parts or list(parts)
    if unknown := set(names) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    return names


def recorded(parts: Parts, names: list[str], path: Path) -> dict[str, Any]:
    """Run some parts, on one thread, and write each down when it is done; the whole
    file.
    """
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    versions = f"{machine}, NumPy {np.__version__}, SciPy {scipy.__version__}"
    with threadpool_limits(limits=1):
        for name in names:
            content[name] = {"machine": versions, **parts[name]()}
            path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content
