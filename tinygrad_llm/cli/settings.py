"""A setting is declared once: the declaration is a flag, a TOML key, a default, a check and a line of help."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tinygrad_llm.cli.errors import UserError

S = TypeVar("S")
_LARGEST_TOML = 1 << 20  # bytes


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    expected   the words of an error
    metavar    the word that stands for the value in --help; "" for a switch
    read       text of a flag → value; raises ValueError
    accepts    whether a value, from a flag or from TOML, will do
    how        what else argparse is told
    """

    expected: str
    metavar: str
    read: Callable[[Any], Any]
    accepts: Callable[[Any], bool]
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def integer(low: int) -> Kind:
    """An integer of at least `low` that NumPy can hold."""
    return Kind(f"an integer >= {low} and < 2^62", "N", int, lambda v: type(v) is int and low <= v < 2**62)


def count_or(name: str) -> Kind:
    """An integer of at least 1, or a word that stands for one."""
    counts = integer(1)
    return Kind(
        f"{name}, or {counts.expected}",
        f"{name}|N",
        lambda raw: raw if raw == name else int(raw),
        lambda v: v == name or counts.accepts(v),
    )


def number(expected: str, accepts: Callable[[float], bool]) -> Kind:
    """A finite number that `accepts` accepts."""
    return Kind(expected, "X", float, lambda v: _is_number(v) and accepts(v))


def at_least_zero() -> Kind:
    """A finite number >= 0."""
    return number("a number >= 0", lambda v: v >= 0)


def word(metavar: str = "TEXT") -> Kind:
    """Any text but an empty one."""
    return Kind("a text that is not empty", metavar, str, lambda v: isinstance(v, str) and v != "")


def words(metavar: str = "TEXT") -> Kind:
    """A text, and the flag may be given several times."""
    return Kind(
        "texts that are not empty",
        metavar,
        list,
        lambda v: isinstance(v, list) and all(isinstance(item, str) and item for item in v),
        {"action": "append"},
    )


def one_of(*choices: str) -> Kind:
    """One of a few words."""
    return Kind(f"one of {', '.join(choices)}", "|".join(choices), str, lambda v: v in choices)


def pair() -> Kind:
    """Two numbers in [0, 1)."""
    return Kind(
        "two numbers in [0, 1)",
        "",
        lambda raw: [float(item) for item in raw],
        lambda v: isinstance(v, list) and len(v) == 2 and all(_is_number(x) and 0 <= x < 1 for x in v),
        {"nargs": 2, "metavar": ("B1", "B2")},
    )


def switch(negatable: bool = False) -> Kind:
    """True or False: --name, and where negatable --no-name."""
    action = argparse.BooleanOptionalAction if negatable else "store_true"
    return Kind("true or false", "", bool, lambda v: isinstance(v, bool), {"action": action})


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def option(default: Any, kind: Kind, help: str, group: str = "options", positional: bool = False) -> Any:
    """A dataclass field that is a setting."""
    return dataclasses.field(
        default=default, metadata={"kind": kind, "help": help, "group": group, "positional": positional}
    )


def flag(name: str) -> str:
    """The spelling on the command line."""
    return "--" + name.replace("_", "-")


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """A flag for every field. What is not given is not in the namespace; what is given stays text."""
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_option(groups[title], field)


def _add_option(group: Any, field: dataclasses.Field[Any]) -> None:
    kind = field.metadata["kind"]
    how = {
        "default": argparse.SUPPRESS,
        "help": (field.metadata["help"] + _default_words(field)).replace("%", "%%"),
        **kind.how,
    }
    if kind.metavar:
        how["metavar"] = kind.metavar
    if field.metadata["positional"]:
        group.add_argument(field.name, nargs="?", **how)
    else:
        group.add_argument(flag(field.name), **how)


def _default_words(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is None or value is False or value == []:
        return ""
    if value is True:
        return " (default: yes)"
    return f" (default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"


def settle(
    settings: type[S],
    flags: Mapping[str, Any],
    config: Mapping[str, Any],
    where: str,
    presets: Mapping[str, Mapping[str, Any]],
) -> tuple[S, set[str]]:
    """The settings, and the names of those that were chosen: by preset, by config, or by flags; the last wins."""
    flags, config = dict(flags), dict(config)
    preset = flags.pop("preset", config.pop("preset", None))
    if preset is not None and preset not in presets:
        names = ", ".join(presets)
        raise UserError(
            f"preset: got {preset!r}, expected {f'one of {names}' if names else 'none: this command has none'}"
        )
    fields = {field.name: field for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for name, value in config.items():
        if isinstance(value, dict):
            raise UserError(f"{where}: {name}: got a table, expected keys that stand in none")
        if name not in fields:
            raise UserError(f"{where}: {name}: got an unknown key, expected {_suggestion(name, fields)}")
    chosen: dict[str, Any] = dict(presets.get(preset, {}))
    chosen |= {name: _checked(f"{where}: {name}", value, fields[name]) for name, value in config.items()}
    chosen |= {
        name: _checked(_shown(fields[name]), _read(value, fields[name]), fields[name]) for name, value in flags.items()
    }
    return settings(**chosen), set(chosen)


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), names, 1)
    return f"{close[0]!r} or another name that --print-config lists" if close else "a name that --print-config lists"


def _shown(field: dataclasses.Field[Any]) -> str:
    return field.name if field.metadata["positional"] else flag(field.name)


def _read(raw: Any, field: dataclasses.Field[Any]) -> Any:
    try:
        return field.metadata["kind"].read(raw)
    except ValueError:
        return raw


def _checked(name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    kind = field.metadata["kind"]
    if not kind.accepts(value):
        got = " ".join(map(str, value)) if isinstance(value, list) else value
        raise UserError(f"{name}: got {got!r}, expected {kind.expected}")
    if kind.read is float:
        return float(value)
    return tuple(value) if isinstance(value, list) else value


def check_saved(settings: type, values: Any, where: str) -> None:
    """UserError, naming `where`, for values saved with a checkpoint that the settings of a command cannot have."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: settings: got {type(values).__name__}, expected a dict")
    for field in dataclasses.fields(settings):
        value = values.get(field.name)
        if value is not None or field.default is not None:
            _checked(f"{where}: settings: {field.name}", list(value) if isinstance(value, tuple) else value, field)


def read_toml(path: str) -> dict[str, Any]:
    """The keys of a TOML file. Raises UserError where it is not TOML in UTF-8, OSError where it cannot be read."""
    if stat.S_ISFIFO(os.stat(path).st_mode) and not os.path.realpath(path).startswith(("/dev/fd/", "/proc/")):
        raise UserError(f"{path}: got a named pipe, which may wait for ever, expected a file, or - in bash - <(a command)")
    try:
        with open(path, "rb") as file:
            raw = file.read(_LARGEST_TOML + 1)
        if len(raw) > _LARGEST_TOML:  # a device may have no end
            raise UserError(f"{path}: got more than {_LARGEST_TOML:,} bytes, expected some lines such as d_model = 128")
        return tomllib.loads(raw.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}: got a file that is not TOML ({error}), expected lines such as d_model = 128"
        ) from None


def to_toml(settings: Any) -> str:
    """All settings as TOML that --config takes, under a comment for each group; what is not set is a comment."""
    return "\n".join(_toml_lines(settings)) + "\n"


def _toml_lines(settings: Any) -> Iterator[str]:
    group = None
    for field in dataclasses.fields(settings):
        if field.metadata["group"] != group:
            yield from ("",) * (group is not None)
            group = field.metadata["group"]
            yield f"# {group}"
        value = getattr(settings, field.name)
        yield f"# {field.name} is not set" if value is None else f"{field.name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
