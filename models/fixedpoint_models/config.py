"""YAML files into frozen dataclasses, with errors of one line."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import (
    MISSING,
    Field,
    asdict,
    dataclass,
    field,
    fields,
    is_dataclass,
    replace,
)
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

_CONFIGS = files("fixedpoint_models") / "configs"
_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
}
# Range by range: what it is called, and whether a number breaks it.
_RANGES: dict[str, tuple[str, Any]] = {
    "least": ("at least", lambda value, end: value < end),
    "above": ("more than", lambda value, end: value <= end),
    "most": ("at most", lambda value, end: value > end),
    "below": ("less than", lambda value, end: value >= end),
}


class ConfigError(ValueError):
    """The settings cannot be used; the message names the key, in one line."""


def setting(default: Any = MISSING, **ends: float) -> Any:
    """A field of a dataclass of settings whose value, or each of whose values, is in a
    range.

    Parameters
    ----------
    default : object, optional
        Without one the key has to be there.
    **ends : float
        ``least``, ``above``, ``most`` or ``below``.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from fixedpoint_models.config import build, setting
    >>> @dataclass(frozen=True)
    ... class Settings:
    ...     latent: int = setting(16, least=1)
    >>> build(Settings, {"latent": 0})  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    fixedpoint_models.config.ConfigError: latent: expected an integer of at least 1,
    got 0
    """
    unknown = set(ends) - set(_RANGES)
    if unknown:
        raise TypeError(f"ends must be of {list(_RANGES)}, got {sorted(unknown)}")
    return field(default=default, metadata=ends)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How parameters are trained: the key ``training`` of every file.

    Parameters
    ----------
    epochs : int
        Passes over the data.
    learning_rate, final_rate : float
        Of Adam, at the start; and the part of it that is left at the end of the half
        cosine.
    clip : float, optional
        The largest norm of a gradient; longer ones are shortened.
    weight_decay : float
        Of Adam.
    """

    epochs: int = setting(10, least=1)
    learning_rate: float = setting(2e-3, above=0.0)
    final_rate: float = setting(0.1, least=0.0, most=1.0)
    clip: float | None = setting(None, above=0.0)
    weight_decay: float = setting(0.0, least=0.0)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a file says.

    Attributes
    ----------
    name : str
        The file's, without folder and suffix.
    training : Training
        How to train.
    settings : dataclass
        The task's own.
    """

    name: str
    training: Training
    settings: Any

    def overridden(self, seed: int | None, epochs: int | None) -> Config:
        """The same with another seed or number of epochs, where they are given."""
        training = (
            self.training if epochs is None else replace(self.training, epochs=epochs)
        )
        settings = self.settings if seed is None else replace(self.settings, seed=seed)
        return replace(self, training=training, settings=settings)

    def plain(self) -> dict[str, Any]:
        """All settings in dicts, lists, numbers and strings, as a checkpoint keeps
        them.
        """
        return {"training": plain(self.training), "settings": plain(self.settings)}


def plain(settings: Any) -> Any:
    """A dataclass of settings in dicts, lists, numbers and strings."""
    if is_dataclass(settings) and not isinstance(settings, type):
        return plain(asdict(settings))
    if isinstance(settings, dict):
        return {key: plain(value) for key, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [plain(value) for value in settings]
    return str(settings) if isinstance(settings, Path) else settings


def shipped() -> list[str]:
    """The names of the files that come with this package."""
    names = (file.name for file in _CONFIGS.iterdir())
    return sorted(
        name.removesuffix(".yaml") for name in names if name.endswith(".yaml")
    )


def described(name: str) -> str:
    """What a file that comes with this package says of itself: its first sentence."""
    lines = (_CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    return text.partition(". ")[0].removesuffix(".")


def shown(config: Config) -> str:
    """All settings as a file would have them, in YAML."""
    content = {"training": plain(config.training), **plain(config.settings)}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def load_config(
    source: str, task: str, settings: type[Any], changes: Sequence[str] = ()
) -> Config:
    """The settings of a task.

    Parameters
    ----------
    source : str
        The name of a file that comes with this package, or the path of another.
    task : str
        The name of the task, which the key ``task`` has to repeat.
    settings : type
        The task's dataclass.
    changes : sequence of str, optional
        ``key=value`` each, to stand in place of what the file says; a key inside of
        another is ``outer.inner``, and a value is YAML.

    Raises
    ------
    ConfigError
        If the file is not there, or something in it is not as it should be.
    """
    content = _read(source)
    for change in changes:
        _change(content, change)
    found = content.pop("task", None)
    if found != task:
        raise ConfigError(f"{source}: task: expected {task!r}, got {found!r}")
    try:
        training = build(Training, content.pop("training", {}), "training")
        return Config(
            name=Path(source).stem, training=training, settings=build(settings, content)
        )
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _read(source: str) -> dict[str, Any]:
    known = source in shipped()
    path = Path(source)
    if not known and not path.is_file():
        names = ", ".join(shipped())
        raise ConfigError(
            f"{source}: no such file, and no included one of that name: {names}"
        )
    try:
        text = (_CONFIGS / f"{source}.yaml" if known else path).read_text(
            encoding="utf-8"
        )
        content = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{source}: not a YAML file ({' '.join(str(error).split())})"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: expected keys and values, got {_shown(content)}")
    return content


def _change(content: dict[str, Any], change: str) -> None:
    """Put a value where a change says, among what was read."""
    key, found, text = change.partition("=")
    if not (key and found):
        raise ConfigError(f"--set: expected KEY=VALUE, got {change!r}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {key}: not a value in YAML: {text!r}") from None
    *outer, last = key.split(".")
    for name in outer:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {key}: there are no keys in {name}")
    content[last] = value


def _unique_mapping(self: Any, node: Any, deep: bool = False) -> Any:
    """A mapping without a key that is there twice, of which PyYAML takes the last."""
    keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.YAMLError(f"the key {key!r} is there twice")
    return yaml.SafeLoader.construct_mapping(self, node, deep=deep)


# PyYAML's safe loader, which also takes 1e-3 for a number.
_Loader: Any = type(
    "_Loader", (yaml.SafeLoader,), {"construct_mapping": _unique_mapping}
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def build(kind: type[Any], content: Any, where: str = "") -> Any:
    """A dataclass of a mapping; `where` is the key that the mapping was found at.

    Parameters
    ----------
    kind : type
        The dataclass. Fields are bool, int, float, str, Path, Literal, another
        dataclass, a ``tuple[X, ...]`` of these, or one of these or None. A tuple is
        empty only if it is by default.
    content : dict
        Its keys and values.
    where : str, optional
        The key of `content` itself.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, or a value of the wrong type or out of its
        range.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys and values, got {_shown(content)}")
    known = {entry.name: entry for entry in fields(kind)}
    _check_keys(content, known, where)
    hints = get_type_hints(kind)
    values = {
        k: _value(v, hints[k], known[k], _join(where, k)) for k, v in content.items()
    }
    try:
        return kind(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def _check_keys(
    content: dict[str, Any], known: dict[str, Field[Any]], where: str
) -> None:
    """Raise if there are keys that no field has, or none of one that needs it."""
    for key in content:
        if key not in known:
            raise ConfigError(
                f"{_join(where, key)}: unknown key, expected one of {', '.join(known)}"
            )
    for name, entry in known.items():
        has_default = not (entry.default is MISSING is entry.default_factory)
        if name not in content and not has_default:
            raise ConfigError(f"{_join(where, name)}: missing")


def _join(where: str, key: Any) -> str:
    return f"{where}.{key}" if where else str(key)


def _value(value: Any, kind: Any, entry: Field[Any], key: str) -> Any:
    """`value` as a `kind`, in the range of its field."""
    origin, arms = get_origin(kind), get_args(kind)
    convert = partial(_value, entry=entry)
    if origin in (Union, UnionType):
        if value is None and NoneType in arms:
            return None
        return convert(value, next(arm for arm in arms if arm is not NoneType), key=key)
    if origin is Literal:
        if value not in arms:
            raise _expected(key, f"one of {', '.join(map(str, arms))}", value)
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise _expected(key, "a list", value)
        if not value and entry.default != ():
            raise _expected(key, "a list that is not empty", value)
        return tuple(
            convert(v, arms[0], key=f"{key}[{i}]") for i, v in enumerate(value)
        )
    if isinstance(kind, type) and is_dataclass(kind):
        return build(kind, value, key)
    return _scalar(value, kind, entry, key)


def _scalar(value: Any, kind: Any, entry: Field[Any], key: str) -> Any:
    known = [(*_RANGES[name], end) for name, end in entry.metadata.items()]
    bounds = " and ".join(f"{word} {end:g}" for word, _, end in known)
    expected = f"{_NAMES[kind]} of {bounds}" if bounds else _NAMES[kind]
    accepted = {float: (int, float), Path: (str,)}.get(kind, (kind,))
    # A bool is an int to Python, but `epochs: true` is a mistake.
    if not isinstance(value, accepted) or (
        isinstance(value, bool) and kind is not bool
    ):
        raise _expected(key, expected, value)
    value = kind(value)
    if kind in (int, float) and (
        not math.isfinite(value) or any(broken(value, end) for _, broken, end in known)
    ):
        raise _expected(key, expected, value)
    return value


def _expected(key: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(f"{key}: expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in one short line."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."
