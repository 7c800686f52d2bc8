"""The directive ``measured``: tables from the files that the benchmarks wrote.

``.. measured:: NAME`` puts the table NAME of `TABLES` where it stands. A file that is
missing, that is of another form, or that knows other problems than
:mod:`fixedpoint.testing.problems` does, ends the build with an error which says what to
run.
"""

import json
import math
import re
import statistics
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from fixedpoint.testing import problems

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
ROBUSTNESS, OVERHEAD = FOLDER / "robustness.json", FOLDER / "results.json"
GRADIENTS, TOLERANCE = FOLDER / "gradients.json", FOLDER / "tolerance.json"
INPUTS, ACCELERATOR = FOLDER / "input_optimization.json", FOLDER / "accelerator.json"
FAMILIES, REPRODUCTION = FOLDER / "decoder_families.json", FOLDER / "reproduction.json"
IMAGES = FOLDER / "many_inputs.json"
SCRIPTS = {
    IMAGES: "many_inputs.py",
    REPRODUCTION: "reproduce.py",
    ROBUSTNESS: "robustness.py",
    OVERHEAD: "run.py",
    GRADIENTS: "gradients.py",
    INPUTS: "input_optimization.py",
    FAMILIES: "decoder_families.py",
    ACCELERATOR: "accelerator.py",
    TOLERANCE: "tolerance.py",
}
OURS, SCIPY_BRATU = "fixedpoint", "SciPy newton_krylov(lgmres)"

# The types of what was measured.
NUMBER = (int, float)

# How a cell of a table is written, by the mark of the attempt; a solved one is its
# evaluations.
MARKS = {"solved": None, "failed": "failed", "FALSE": "false claim", "error": "error"}


def wrong(path, what):
    """The error to raise where a file lacks what a table needs."""
    return ExtensionError(
        f"benchmarks/{path.name}: {what}; run benchmarks/{SCRIPTS[path]} anew"
    )


def content(path, part=None):
    """What a file says, or one part of it."""
    if not path.exists():
        raise wrong(path, "there is no such file")
    whole = json.loads(path.read_text(encoding="utf-8"))
    found = whole if part is None else whole.get(part)
    if not isinstance(found, dict) or not isinstance(found.get("machine"), str):
        raise wrong(
            path,
            f"no part {part!r} with an entry 'machine'" if part else "no 'machine'",
        )
    return found


def records(path, found, name, fields):
    """The list `name`, each entry of which has `fields`, of these types."""
    rows = found.get(name)
    if not rows or not isinstance(rows, list):
        raise wrong(path, f"no list {name!r}, or an empty one")
    for row in rows:
        for field, kind in fields.items():
            value = row.get(field)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise wrong(path, f"{name}: {field!r} is {value!r} in {row}")
    return rows


def attempts(part, expected):
    """The machine, the methods, and the attempts by problem and method.

    `expected` are the problems, as pairs of name and size, that have to be there, in
    order.
    """
    found = content(ROBUSTNESS, part)
    fields = {"problem": str, "n": int, "method": str, "evaluations": int, "mark": str}
    grid, methods = {}, {}
    for row in records(ROBUSTNESS, found, "attempts", fields):
        if row["mark"] not in MARKS:
            raise wrong(ROBUSTNESS, f"{part}: unknown mark {row['mark']!r}")
        methods[row["method"]] = None
        line = grid.setdefault((row["problem"], row["n"]), {})
        if row["method"] in line:
            raise wrong(
                ROBUSTNESS, f"{part}: {row['method']} twice on {row['problem']}"
            )
        line[row["method"]] = row
    if list(grid) != expected:
        raise wrong(ROBUSTNESS, f"{part}: the problems are not those of the library")
    if next(iter(methods)) != OURS or len(methods) < 2:
        raise wrong(
            ROBUSTNESS,
            f"{part}: {OURS!r} and others must be there, got {list(methods)}",
        )
    for problem, line in grid.items():
        if missing := set(methods) - set(line):
            raise wrong(
                ROBUSTNESS, f"{part}: {sorted(missing)} not tried on {problem[0]}"
            )
    return found["machine"], list(methods), grid


def pairs(listed):
    """The names and sizes of problems."""
    return [(problem.name, int(problem.start.size)) for problem in listed]


def large_sizes():
    """The sizes of the large systems, which the benchmark chooses."""
    found = content(ROBUSTNESS, "large")
    rows = records(ROBUSTNESS, found, "attempts", {"n": int})
    return list(dict.fromkeys(row["n"] for row in rows))


def systems():
    """The 23 systems."""
    return attempts("systems", pairs(problems.systems()))


def large():
    """The scalable systems."""
    listed = [pair for n in large_sizes() for pair in pairs(problems.large_systems(n))]
    return attempts("large", listed)


def maps():
    """The maps."""
    return attempts("maps", pairs(problems.maps()))


# From records to reStructuredText.


def literal(text):
    """`text` in the type of code."""
    return f"``{text}``"


def plain(text):
    """`text` without markup."""
    return re.sub(r"([*`_|\\])", r"\\\1", text)


def table(head, rows):
    """The lines of a table."""
    lines = [
        ".. list-table::",
        "    :class: measured",
        "    :header-rows: 1",
        "    :widths: auto",
        "    :align: left",
        "",
    ]
    for row in [head, *rows]:
        if len(row) != len(head):
            raise ExtensionError(
                f"a row of {len(row)} cells in a table of {len(head)}: {row}"
            )
        lines.append(f"    * - {row[0]}")
        lines += [f"      - {cell}" for cell in row[1:]]
    return [*lines, ""]


def measured_on(machine, how=""):
    """The line below a table."""
    return [f"Measured on {plain(machine)}{how}.", ""]


def shown(row):
    """An attempt in a cell."""
    return MARKS[row["mark"]] or str(row["evaluations"])


def detail(measure):
    """Evaluations of every method on every problem."""
    machine, methods, grid = measure()
    head = ["problem", "n", *map(plain, methods)]
    rows = [
        [literal(name), str(n), *(shown(line[method]) for method in methods)]
        for (name, n), line in grid.items()
    ]
    return table(head, rows) + measured_on(machine)


def summary(measure):
    """What each method solved, claimed and cost, over all problems."""
    machine, methods, grid = measure()
    head = [
        "method",
        "solved",
        "false claims",
        "errors",
        f"evaluations / those of {OURS}",
    ]
    rows = []
    for method in methods:
        marks = [line[method]["mark"] for line in grid.values()]
        solved = f"{marks.count('solved')} of {len(marks)}"
        counts = (str(marks.count(mark)) for mark in ("FALSE", "error"))
        rows.append([plain(method), solved, *counts, compared(grid, method)])
    return table(head, rows) + measured_on(machine)


def compared(grid, method):
    """The quotients of evaluations, where both solve: smallest, median and largest."""
    if method == OURS:
        return "1"
    both = [
        line[method]["evaluations"] / line[OURS]["evaluations"]
        for line in grid.values()
        if line[method]["mark"] == line[OURS]["mark"] == "solved"
    ]
    if not both:
        return "none solved by both"
    return f"{min(both):.3g} to {max(both):.3g}, median {statistics.median(both):.3g}"


def bratu():
    """Times on Bratu's problem."""
    found = content(ROBUSTNESS, "bratu")
    fields = {
        "problem": str,
        "method": str,
        "seconds": NUMBER,
        "ratio": NUMBER,
        "evaluations": int,
        "products": int,
        "residual": NUMBER,
    }
    timings = records(ROBUSTNESS, found, "timings", fields)
    by_problem = {}
    for row in timings:
        by_problem.setdefault(row["problem"], []).append(row["method"])
    for problem, methods in by_problem.items():
        if (
            methods[0] != SCIPY_BRATU
            or len(methods) < 2
            or len(set(methods)) != len(methods)
        ):
            raise wrong(
                ROBUSTNESS,
                f"bratu: {SCIPY_BRATU} and others on {problem}, got {methods}",
            )
    head = [
        "problem",
        "method",
        "CPU ms",
        "SciPy's time / its",
        "evaluations of F",
        "products",
        "residual / first",
    ]
    rows = [
        [
            literal(row["problem"]),
            plain(row["method"]),
            f"{1e3 * row['seconds']:.1f}",
            f"{row['ratio']:.2f}",
            str(row["evaluations"]),
            str(row["products"]),
            f"{row['residual']:.1e}",
        ]
        for row in timings
    ]
    return table(head, rows) + measured_on(found["machine"], ", on one thread")


def overhead():
    """Overhead of the solvers beside their peers."""
    found = content(OVERHEAD)
    fields = {
        "case": str,
        "method": str,
        "microseconds": NUMBER,
        "evaluations": int,
        "per_evaluation": NUMBER,
        "overhead": NUMBER,
        "residual": NUMBER,
        "ratio": NUMBER,
    }
    rows = records(OVERHEAD, found, "rows", fields)
    for case in dict.fromkeys(row["case"] for row in rows):
        methods = [row["method"] for row in rows if row["case"] == case]
        if not methods[0].startswith(OURS) or len(methods) < 2:
            raise wrong(
                OVERHEAD, f"{case}: {OURS} and others must be there, got {methods}"
            )
    head = [
        "case",
        "method",
        "ms",
        "evaluations",
        "µs / evaluation",
        "overhead",
        "residual",
        "time / first of the case",
    ]
    lines = [
        [
            plain(row["case"]),
            plain(row["method"]),
            f"{1e-3 * row['microseconds']:.2f}",
            str(row["evaluations"]),
            f"{row['per_evaluation']:.1f}",
            f"{row['overhead']:.2f}",
            f"{row['residual']:.1e}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(found["machine"], ", on one thread")


def gradient_rows(section, fields):
    """The machine, and the rows of a section of the benchmark of derivatives."""
    found = content(GRADIENTS)
    return found["machine"], records(GRADIENTS, found, section, fields)


def torch_gradients():
    """Solve and gradient in PyTorch, beside torchdeq."""
    fields = {
        "case": str,
        "method": str,
        "evaluations": int,
        "products": int,
    } | dict.fromkeys(
        ("forward", "backward", "total", "ratio", "residual", "error"), NUMBER
    )
    machine, rows = gradient_rows("torch", fields)
    head = [
        "case",
        "method",
        "forward ms",
        "backward ms",
        "evaluations",
        "products",
        "residual",
        "gradient's error",
        "time / first of the case",
    ]
    lines = [
        [
            plain(row["case"]),
            plain(row["method"]),
            f"{1e-3 * row['forward']:.2f}",
            f"{1e-3 * row['backward']:.2f}",
            str(row["evaluations"]),
            str(row["products"]),
            f"{row['residual']:.1e}",
            f"{row['error']:.1e}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(machine)


def jax_gradients():
    """Solve and gradient in JAX, beside jaxopt and optimistix."""
    names = ("total", "ratio", "compilation", "compilation_ratio", "residual", "error")
    fields = {"case": str, "method": str} | dict.fromkeys(names, NUMBER)
    machine, rows = gradient_rows("jax", fields)
    head = [
        "method",
        "ms",
        "time / first",
        "compilation, s",
        "compilation / first",
        "residual",
        "gradient's error",
    ]
    lines = [
        [
            plain(row["method"]),
            f"{1e-3 * row['total']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['compilation']:.2f}",
            f"{row['compilation_ratio']:.2f}",
            f"{row['residual']:.1e}",
            f"{row['error']:.1e}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(machine, ", on one thread")


def memory():
    """Memory of a gradient, by the steps of the forward solve."""
    fields = {"case": str, "method": str, "steps": int, "kept": NUMBER, "peak": NUMBER}
    machine, rows = gradient_rows("memory", fields)
    head = ["framework", "adjoint", "steps", "kept for the gradient, MiB", "peak, MiB"]
    lines = [
        [
            row["case"],
            row["method"],
            str(row["steps"]),
            f"{row['kept']:.0f}" if row["case"] == "Torch" else "–",
            f"{row['peak']:.0f}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(machine)


def shared_inverse():
    """Products with and without the inverse estimate of the forward solve."""
    fields = {"method": str, "error_without": NUMBER, "median": list, "largest": list}
    machine, rows = gradient_rows("shine", fields)
    head = ["adjoint", "error without products", "to 1e-1", "to 1e-2", "to 1e-4"]
    lines = [
        [
            plain(row["method"]),
            without_products(row["error_without"]),
            *map(str, row["median"]),
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(machine)


def without_products(error):
    """The error of an adjoint that takes no product, if it can."""
    return "–" if math.isnan(error) else f"{error:.2f}"


def input_optimization():
    """Seconds to each target, by task."""
    found = content(INPUTS)
    fields = {
        "task": str,
        "kkt": NUMBER,
        "radius": list,
        "targets": list,
        "geometric mean": NUMBER,
    }
    rows = records(INPUTS, found, "tasks", fields)
    head = [
        "task",
        "ρ(J)",
        "KKT",
        "target",
        "nested",
        "tracked",
        "ratio",
        "recipe",
        "best ratio",
        "as published",
    ]
    lines = []
    for row in rows:
        labels = [row["task"], f"{row['radius'][1]:.2f}", f"{100 * row['kkt']:.0f} %"]
        for target in row["targets"]:
            tracked, nested, recipe = (
                target[name] for name in ("tracked", "nested", "recipe")
            )
            best = min(
                (time for time in (tracked, recipe) if time is not None), default=None
            )
            lines.append(
                [
                    *labels,
                    f"{target['factor']:g} ×",
                    *map(seconds_or_never, (nested, tracked)),
                    ratio_or_never(tracked, nested),
                    seconds_or_never(recipe),
                    ratio_or_never(best, nested),
                    seconds_or_never(target["published"]),
                ]
            )
            labels = ["", "", ""]
        mean, published = row["geometric mean"], row.get("against Adam or PGD")
        against = f", {published:.1f} against Adam or PGD" if published else ""
        lines.append([*labels, "mean", "", "", f"{mean:.1f}{against}", "", "", ""])
    return table(head, lines) + measured_on(found["machine"])


def decoder_families():
    """How many times faster the joint solve is at each target, by decoder."""
    found = content(FAMILIES)
    fields = {"family": str, "seed": int, "kkt": NUMBER, "targets": list}
    rows = records(FAMILIES, found, "tasks", fields)
    factors = sorted({t["factor"] for row in rows for t in row["targets"]})
    lines = []
    for row in rows:
        ratios = {t["factor"]: joint_ratio(t) for t in row["targets"]}
        labels = [row["family"], str(row["seed"]), f"{100 * row['kkt']:.0f} %"]
        lines.append([*labels, *(ratios.get(factor, "") for factor in factors)])
    head = ["decoder", "seed", "KKT", *(f"{factor:g} ×" for factor in factors)]
    counted = families_counted([t for row in rows for t in row["targets"]])
    return [*table(head, lines), *counted, *measured_on(found["machine"])]


def joint_ratio(target):
    """How many times faster it is, of the target of a decoder."""
    return ratio_or_never(target["joint"], target["nested"])


def families_counted(targets):
    """The targets, and the mean over those that a nested method reached."""
    reached = [t["ratio"] for t in targets if t["nested"] is not None]
    below = sum(ratio < 1.0 for ratio in reached)
    mean = statistics.geometric_mean(max(ratio, 1e-3) for ratio in reached)
    return [
        "",
        f"Of {len(targets)} targets nested methods reached {len(reached)}: there the "
        f"joint solve is {mean:.1f} times as fast in the geometric mean, "
        f"{min(reached):.2f} times at worst, and slower at {below}.",
        "",
    ]


def many_inputs():
    """What each method spent until each target, where inputs are images."""
    found = content(IMAGES)
    fields = {"problem": str, "seed": int, "targets": list}
    rows = records(IMAGES, found, "problems", fields)
    parts = [target["part"] for target in rows[0]["targets"]]
    head = ["problem", "seed", "steps", *(f"{part:g} left" for part in parts)]
    lines = []
    for row in rows:
        steps = "more" if row["steps"] is None else str(row["steps"])
        lines.append(
            [row["problem"], str(row["seed"]), steps, *map(spent, row["targets"])]
        )
    return table(head, lines) + measured_on(found["machine"])


def spent(target):
    """The evaluations of the joint solve, and of the nested one."""
    counts = (target["joint"], target["nested"])
    return " / ".join("never" if count is None else str(count) for count in counts)


def seconds_or_never(seconds):
    """A time in milliseconds; None is for a method that never arrived."""
    return "never" if seconds is None else f"{1e3 * seconds:.1f} ms"


def ratio_or_never(tracked, nested):
    """How many times faster the tracked method is."""
    if tracked is None:
        return "never"
    return "∞" if nested is None else f"{nested / tracked:.1f}"


def accelerator_layers():
    """Layers on a GPU, beside torchdeq."""
    names = ("forward", "gradient", "evaluation", "overhead", "residual", "mebibytes")
    fields = {"case": str, "method": str, "evaluations": int, "synchronizations": int}
    found = content(ACCELERATOR)
    rows = records(ACCELERATOR, found, "layers", fields | dict.fromkeys(names, NUMBER))
    head = [
        "case",
        "method",
        "forward ms",
        "with gradient ms",
        "evaluations",
        "ms / evaluation",
        "overhead",
        "waits",
        "residual",
        "peak MiB",
    ]
    lines = [
        [
            plain(row["case"]),
            plain(row["method"]),
            f"{row['forward']:.1f}",
            f"{row['gradient']:.1f}",
            str(row["evaluations"]),
            f"{row['evaluation']:.2f}",
            f"{row['overhead']:.1f}",
            str(row["synchronizations"]),
            f"{row['residual']:.1e}",
            f"{row['mebibytes']:.0f}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(found["machine"])


def accelerator_jax():
    """A compiled layer on a GPU, beside jaxopt."""
    fields = {"method": str, "evaluations": int} | dict.fromkeys(
        ("forward", "gradient", "compilation", "residual"), NUMBER
    )
    found = content(ACCELERATOR)
    rows = records(ACCELERATOR, found, "jax", fields)
    head = [
        "method",
        "forward ms",
        "with gradient ms",
        "compilation, s",
        "evaluations",
        "residual",
    ]
    lines = [
        [
            plain(row["method"]),
            f"{row['forward']:.2f}",
            f"{row['gradient']:.2f}",
            f"{1e-3 * row['compilation']:.1f}",
            str(row["evaluations"]),
            f"{row['residual']:.1e}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(found["machine"])


def accelerator_large():
    """Large systems on a GPU."""
    fields = {"method": str, "unknowns": int, "evaluations": int, "products": int}
    found = content(ACCELERATOR)
    fields |= dict.fromkeys(("seconds", "residual", "gibibytes"), NUMBER)
    rows = records(ACCELERATOR, found, "large", fields)
    head = [
        "method",
        "unknowns",
        "seconds",
        "evaluations",
        "products",
        "residual",
        "peak GiB",
    ]
    lines = [
        [
            plain(row["method"]),
            f"{row['unknowns']:,}",
            f"{row['seconds']:.1f}",
            str(row["evaluations"]),
            str(row["products"]),
            f"{row['residual']:.1e}",
            f"{row['gibibytes']:.1f}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(found["machine"])


def tolerances(part):
    """True error beside the tolerance asked for, method by method."""
    found = content(TOLERANCE, part)
    fields = {"method": str, "asked": int, "claimed": int, "precise": int}
    rows = records(TOLERANCE, found, "rows", fields)
    if rows[0]["method"] != OURS:
        raise wrong(
            TOLERANCE, f"{part}: {OURS!r} must come first, got {rows[0]['method']!r}"
        )
    head = [
        "method",
        "claimed",
        "median",
        "90 %",
        "99 %",
        "≤ 10",
        "≤ 1000",
        "entries ≤ 10",
        "``sol.error``",
        "price",
        "late",
    ]
    lines = [
        [
            plain(row["method"]),
            f"{row['claimed'] + row['precise']} of {row['asked']}",
            *(number(row[name]) for name in ("median", "q90", "q99")),
            *(
                share(row[name])
                for name in ("within 10", "within 1000", "entries within 10")
            ),
            share(row["estimates"]),
            *(quotients(row, name) for name in ("price", "late")),
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(found["machine"])


def number(value):
    """A number of two digits, if there is one."""
    return "–" if value is None else f"{value:.2g}"


def share(value):
    """How many of a hundred."""
    return "–" if value is None else f"{value:.1f} %"


def quotients(row, name):
    """The median and the 90 % quantile of quotients of evaluations, if there are
    any.
    """
    return "–" if row[name] is None else f"{row[name]:.2f}, {row[name + ' 90']:.2f}"


def tolerance_defaults():
    """Calls without settings."""
    found = content(TOLERANCE, "defaults")
    fields = {"kind": str, "method": str, "asked": int, "claimed": int, "wrong": int}
    rows = records(TOLERANCE, found, "rows", fields)
    head = [
        "problems",
        "method",
        "claimed",
        "median error",
        "90 %",
        "largest",
        "above 1e-3",
        "evaluations, median",
    ]
    lines = [
        [
            row["kind"],
            plain(row["method"]),
            f"{row['claimed']} of {row['asked']}",
            *(number(row[name]) for name in ("median", "q90", "largest")),
            str(row["wrong"]),
            "–" if row["evaluations"] is None else f"{row['evaluations']:.0f}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(found["machine"])


# What others published: PSNR in dB on the 68 images, by the level of noise; Zhang, Zuo,
# Chen, Meng and Zhang, "Beyond a Gaussian denoiser", IEEE Trans. Image Process., 2017.
BM3D = {15: 31.07, 25: 28.57, 50: 25.62}
DNCNN = {15: 31.73, 25: 29.23, 50: 26.23}
# How many times faster the joint solve is said to be, by the paper on input
# optimization.
PUBLISHED_FACTORS = {"training": "3", "adaptation": "2.5 to 3"}


def reproduced(part, fields):
    """The machine, and the rows of a part of the reproduction."""
    found = content(REPRODUCTION, part)
    fields = {"settings": str, "parameters": int, "train seconds": NUMBER} | fields
    return found["machine"], records(REPRODUCTION, found, "rows", fields)


def percent(value):
    """A share, in percent."""
    return f"{100 * value:.1f}"


def attacked(part):
    """Classifiers trained against attacks."""
    figures = dict.fromkeys(("clean", "joint", "nested", "foolbox"), NUMBER)
    return reproduced(part, {"attack": str, **figures})


def reproduced_mnist():
    """Accuracy of classifiers on MNIST, clean and under attack."""
    head = [
        "network",
        "parameters",
        "attack in training",
        "training, s",
        "clean",
        "joint attack",
        "nested attack",
        "Foolbox",
    ]
    lines = []
    for label, part in (("dense", "mnist-dense"), ("multiscale", "mnist-mdeq")):
        machine, rows = attacked(part)
        lines += [
            [
                label,
                f"{row['parameters']:,}",
                row["attack"],
                f"{row['train seconds']:.0f}",
                *(
                    percent(row[name])
                    for name in ("clean", "joint", "nested", "foolbox")
                ),
            ]
            for row in rows
        ]
    return table(head, lines) + measured_on(machine)


def adapted(part):
    """Few-shot tasks of Omniglot."""
    fields = {"adaptation": str, "ways": int}
    figures = ("accuracy", "interval", "converged", "test seconds", "train seconds")
    return reproduced(part, fields | dict.fromkeys(figures, NUMBER))


def reproduced_omniglot(part):
    """Accuracy on tasks of unseen alphabets, and on the official runs."""
    head = ["tasks", "adaptation", "labeled rightly", "converged", "all tasks, s"]
    machine, rows = adapted(part)
    lines = []
    for row in rows:
        right = f"{percent(row['accuracy'])} ± {percent(row['interval'])}"
        solved, seconds = percent(row["converged"]), f"{row['test seconds']:.0f}"
        lines.append([f"{row['ways']}-way", row["adaptation"], right, solved, seconds])
        if "official_accuracy" in row:
            right, half, solved = (
                percent(row[f"official_{name}"])
                for name in ("accuracy", "interval", "converged")
            )
            official = ["official runs", row["adaptation"], f"{right} ± {half}"]
            lines.append([*official, solved, "above"])
    training = f"; training took {rows[0]['train seconds']:.0f} s"
    return table(head, lines) + measured_on(machine, training)


def reproduced_bsd():
    """PSNR on BSD68, beside what others published."""
    names = ("psnr_noisy", "psnr_tv", "psnr", "seconds")
    fields = {"level": NUMBER, "images": int} | dict.fromkeys(names, NUMBER)
    machine, rows = reproduced("bsd", fields)
    head = ["σ", "noisy", "total variation", "game", "BM3D", "DnCNN", "s / image"]
    lines = [
        [
            f"{row['level']:g}",
            *(f"{row[name]:.2f}" for name in names[:3]),
            *(f"{others[row['level']]:.2f}" for others in (BM3D, DNCNN)),
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    return table(head, lines) + measured_on(machine)


def reproduced_patches():
    """What is recovered of patches of photographs, by decoders and without them."""
    methods = {
        "PCA": "_pca",
        "PCA, prior": "_pca_prior",
        "decoder": "",
        "total variation": "_tv",
        "biharmonic": "_biharmonic",
    }
    known = [
        f"{figure}{suffix}"
        for figure in ("psnr", "ssim")
        for suffix in ("", "_pca", "_pca_prior")
    ]
    fields = {"problem": str, "latent": int} | dict.fromkeys(known, NUMBER)
    lines = []
    for part in ("patches-32", "patches-128"):
        machine, rows = reproduced(part, fields)
        for row in rows:
            cells = [quality(row, suffix) for suffix in methods.values()]
            gains = [
                f"{row['psnr'] - row[f'psnr_pca{other}']:+.2f}"
                for other in ("", "_prior")
            ]
            lines.append([row["problem"], str(row["latent"]), *cells, *gains])
    head = ["problem", "code", *methods, "beside PCA, dB", "beside PCA, prior"]
    return table(head, lines) + measured_on(machine)


def quality(row, suffix):
    """PSNR and SSIM by a method, if it was used."""
    if f"psnr{suffix}" not in row:
        return ""
    return f"{row[f'psnr{suffix}']:.2f} / {row[f'ssim{suffix}']:.3f}"


def reproduced_factors():
    """How many times faster the joint solve is, at what quality."""
    head = [
        "task",
        "published factor",
        "joint, s",
        "nested, s",
        "factor",
        "joint, % right",
        "nested, % right",
    ]
    lines = []
    epochs = reproduced("mnist-mdeq-epoch", {"attack": str})[1]
    for label, part, timed in (
        ("dense", "mnist-dense", None),
        ("multiscale, an epoch", "mnist-mdeq", epochs),
    ):
        machine, rows = attacked(part)
        seconds = [row["train seconds"] for row in (timed or rows)[:2]]
        right = [row["nested"] for row in rows[:2]]
        pair = zip(seconds, right, strict=True)
        task = f"adversarial training, {label}"
        lines.append(compared_pair(task, PUBLISHED_FACTORS["training"], *pair))
    rows = adapted("omniglot")[1]
    for ways in dict.fromkeys(row["ways"] for row in rows):
        pair = [
            (row["test seconds"], row["accuracy"])
            for row in rows
            if row["ways"] == ways
        ]
        task = f"adaptation, {ways}-way"
        lines.append(compared_pair(task, PUBLISHED_FACTORS["adaptation"], *pair))
    return table(head, lines) + measured_on(machine)


def compared_pair(task, published, joint, nested):
    """A row, of pairs of seconds and of what is right."""
    factor = f"{nested[0] / joint[0]:.1f}"
    seconds = [f"{pair[0]:.0f}" for pair in (joint, nested)]
    return [task, published, *seconds, factor, percent(joint[1]), percent(nested[1])]


TABLES = {
    "reproduced-factors": reproduced_factors,
    "reproduced-mnist": reproduced_mnist,
    "reproduced-omniglot": lambda: reproduced_omniglot("omniglot"),
    "reproduced-omniglot-large": lambda: reproduced_omniglot("omniglot-large"),
    "reproduced-bsd": reproduced_bsd,
    "reproduced-patches": reproduced_patches,
    "tolerances-maps": lambda: tolerances("maps"),
    "tolerances-systems": lambda: tolerances("systems"),
    "tolerances-defaults": tolerance_defaults,
    "accelerator-layers": accelerator_layers,
    "accelerator-jax": accelerator_jax,
    "accelerator-large": accelerator_large,
    "input-optimization": input_optimization,
    "decoder-families": decoder_families,
    "many-inputs": many_inputs,
    "systems-summary": lambda: summary(systems),
    "systems": lambda: detail(systems),
    "large-summary": lambda: summary(large),
    "large": lambda: detail(large),
    "maps-summary": lambda: summary(maps),
    "maps": lambda: detail(maps),
    "bratu": bratu,
    "overhead": overhead,
    "torch-gradients": torch_gradients,
    "jax-gradients": jax_gradients,
    "memory": memory,
    "shared-inverse": shared_inverse,
}


class Measured(SphinxDirective):
    """A table of measurements."""

    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"no table {name!r}: there are {', '.join(TABLES)}")
        for path in SCRIPTS:
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes("\n".join(TABLES[name]()))


def setup(app):
    """Make the directive known, and every table once, so that a bad file fails the
    build early.
    """
    app.add_directive("measured", Measured)
    app.connect("builder-inited", lambda _: [make() for make in TABLES.values()])
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
