"""The directives ``command-help`` and ``settings-of``: the command line as it is.

``.. command-help:: NAME`` is the help of a command of ``fixedpoint_models``, as it is
printed; ``.. settings-of:: TASK`` the keys of a task's YAML file, from the dataclass
that reads it. Neither can lag behind the program, and a key without a description in
its docstring ends the build.
"""

import re
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from docutils import nodes
from numpydoc.docscrape import NumpyDocString
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from typer.testing import CliRunner

from fixedpoint_models.__main__ import app
from fixedpoint_models.config import Training
from fixedpoint_models.tasks import task_class

NAMES = {bool: "true or false", int: "integer", float: "number", str: "string"}
SIGNS = {"least": "≥", "above": ">", "most": "≤", "below": "<"}


class CommandHelp(SphinxDirective):
    """What a command prints when it is asked for help."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        arguments = [*self.arguments[0].split(), "--help"]
        arguments.remove("fixedpoint-models")
        settings = {"COLUMNS": "80", "TERMINAL_WIDTH": "80"}
        found = CliRunner().invoke(
            app, arguments, prog_name="fixedpoint-models", env=settings
        )
        if found.exit_code:
            raise self.error(f"{arguments}: {found.output}")
        block = nodes.literal_block(found.output, found.output.strip())
        block["language"] = "text"
        return [block]


class SettingsOf(SphinxDirective):
    """A table of the keys that a task's file may have."""

    required_arguments = 1

    def run(self):
        name = self.arguments[0]
        kind = Training if name == "training" else task_class(name).settings_type()
        outer = "training" if name == "training" else ""
        lines = [
            ".. list-table::",
            "    :class: measured",
            "    :header-rows: 1",
            "    :widths: 22 24 14 40",
            "",
            *row("key", "value", "default", "meaning"),
        ]
        for entry in entries(kind, outer):
            lines += row(*entry)
        return self.parse_text_to_nodes("\n".join(lines))


def row(*cells):
    """The lines of a row of a list-table."""
    first, *others = (cell or " " for cell in cells)
    return [f"    * - {first}", *(f"      - {cell}" for cell in others)]


def entries(kind, outer=""):
    """Key, value, default and meaning of each field, and of those inside of it."""
    meanings, hints = described(kind), get_type_hints(kind)
    for field in fields(kind):
        key = f"{outer}.{field.name}" if outer else field.name
        if field.name not in meanings:
            raise ExtensionError(f"{kind.__qualname__}: {field.name} is not described")
        inner = dataclass_in(hints[field.name])
        value = "keys below" if inner else allowed(hints[field.name], field.metadata)
        if inner and get_origin(hints[field.name]) is tuple:
            key, value = f"{key}[]", "list of keys below"
        yield f"``{key}``", value, default(field, inner), meanings[field.name]
        if inner:
            yield from entries(inner, key)


def described(kind):
    """What the docstring of a dataclass says of each of its fields."""
    found = {}
    for entry in NumpyDocString(kind.__doc__)["Parameters"]:
        # A reference from a docstring need not have a target among these pages.
        text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"``\1``", " ".join(entry.desc))
        found |= dict.fromkeys(entry.name.split(", "), text)
    return found


def dataclass_in(hint):
    """The dataclass that a type is, or holds, if it does."""
    if is_dataclass(hint):
        return hint
    return next(filter(None, map(dataclass_in, get_args(hint))), None)


def allowed(hint, ends):
    """What a value may be, in words."""
    origin, arms = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        first = next(arm for arm in arms if arm is not NoneType)
        return f"{allowed(first, ends)}, or null"
    if origin is Literal:
        return ", ".join(f"``{arm}``" for arm in arms)
    if origin is tuple:
        return f"list of: {allowed(arms[0], ends)}"
    bounds = ", ".join(f"{SIGNS[name]} {end:g}" for name, end in ends.items())
    return f"{NAMES[hint]} {bounds}".strip()


def default(field, inner):
    """What holds where the key is left out."""
    if field.default is MISSING and field.default_factory is MISSING:
        return "*required*"
    if inner:
        return "null" if field.default is None else " "
    value = field.default
    shown = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return f"``{shown[value]}``"
    return f"``{list(value) if isinstance(value, tuple) else value}``"


def setup(app):
    """Make the directives known."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("settings-of", SettingsOf)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
