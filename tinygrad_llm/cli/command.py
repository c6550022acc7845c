"""A command: its settings, its help, what it runs; and the parser made of them, whose errors read like all others."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import stat
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tinygrad_llm._version import __version__
from tinygrad_llm.cli.errors import UserError
from tinygrad_llm.cli.program import NAME, PROGRAM
from tinygrad_llm.cli.settings import add_options, read_toml, settle, to_toml

DESCRIPTION = """Train, try and check a small language model whose every gradient is written by hand in NumPy."""

EPILOG = f"""\
examples:
  {PROGRAM} train --preset tiny --out runs/tiny
  {PROGRAM} generate --checkpoint runs/tiny --prompt "ROMEO: "
  {PROGRAM} train --help                # every option of a command

exit codes: 0 success; 1 a check found a difference; 2 a mistake in what was
asked for; 70 a bug of ours; 130 stopped by Ctrl-C"""


@dataclass(frozen=True)
class Run:
    """What a command is given: its settings, the names of those that the user chose, and a loader of `reference`."""

    settings: Any
    chosen: set[str]
    reference: Callable[[], Any]


@dataclass(frozen=True)
class Command:
    """One command. `summary` is its line in the list; `examples` stand at the end of its --help."""

    name: str
    summary: str
    description: str
    examples: str
    settings: type[Any]
    run: Callable[[Run], int]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Parser(argparse.ArgumentParser):
    """argparse, but what it refuses is a UserError in the form of all our errors."""

    def error(self, message: str) -> NoReturn:
        if match := re.fullmatch(r"argument (\S+): expected (.*) arguments?", message):
            count = "a value" if match[2] == "one" else f"{match[2]} values"
            raise UserError(f"{match[1]}: got too few values, expected {count} (--flag=VALUE where it begins with -)")
        if match := re.fullmatch(r"unrecognized arguments: (.*)", message):
            raise UserError(f"arguments: got {match[1]!r}, expected {self._near(match[1].split()[0])}")
        if match := re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message):
            raise UserError(f"{match[1].lower()}: got {match[2]}, expected one of {match[3].replace(chr(39), '')}")
        raise UserError(f"arguments: got some that cannot be read ({message}), expected what {self.prog} --help lists")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own drops an error, such as that of a full disk."""
        print(message or "", end="", file=file or sys.stderr)

    def _near(self, word: str) -> str:
        close = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, 1)
        return f"an option that {self.prog} --help lists" + f", such as {''.join(close)}" * bool(close)


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Fills a description to the width of the terminal, and leaves examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return (
            text if "examples:" in text else textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)
        )


def make_parser(commands: Sequence[Command]) -> tuple[Parser, dict[str, Parser]]:
    """The parser of the program, and those of its commands by name."""
    style: dict[str, Any] = {"formatter_class": Formatter, "allow_abbrev": False}
    parser = Parser(PROGRAM, description=DESCRIPTION, epilog=EPILOG, **style)
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    below = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=Parser)
    made = {}
    for command in commands:
        examples = "examples:\n" + textwrap.indent(command.examples.strip(), "  ")
        made[command.name] = below.add_parser(
            command.name, help=command.summary, description=command.description, epilog=examples, **style
        )
        _add_command(made[command.name], command)
    return parser, made


def _add_command(parser: Parser, command: Command) -> None:
    add_options(parser, command.settings)
    group = parser.add_argument_group("where settings come from: flags win over --config, that over --preset")
    suppress = argparse.SUPPRESS
    if command.presets:
        group.add_argument(
            "--preset", default=suppress, metavar="|".join(command.presets), help="settings that go together"
        )
    group.add_argument(
        "--config", metavar="FILE", help="a TOML file of settings; keys are flags with _ for -: d_model = 128"
    )
    group.add_argument("--print-config", action="store_true", help="print all settings as such a file, and stop")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def parse(commands: Sequence[Command], arguments: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its flags. Raises UserError, or SystemExit after --help and --version."""
    parser, parsers = make_parser(commands)
    namespace, rest = parser.parse_known_args(arguments)
    if namespace.command is None:
        names = ", ".join(parsers)
        raise UserError(
            f"command: got {rest[0] if rest else 'none'}, expected one of {names}; {PROGRAM} --help says more"
        )
    if rest:
        parsers[namespace.command].error(f"unrecognized arguments: {' '.join(rest)}")
    return next(command for command in commands if command.name == namespace.command), namespace


def prepare(command: Command, namespace: argparse.Namespace, reference: Callable[[], Any]) -> Run | str:
    """What to run; or, after --print-config, what to print."""
    flags = {
        name: value
        for name, value in vars(namespace).items()
        if name not in ("command", "config", "print_config", "debug")
    }
    config = read_toml(namespace.config) if namespace.config else {}
    settings, chosen = settle(command.settings, flags, config, namespace.config, command.presets)
    if namespace.print_config:
        return to_toml(settings)
    return Run(settings, chosen, reference)


def check_writable(*files: str | None) -> None:
    """OSError where one of the files cannot be written: said before the work, so that its result is not lost."""
    for name in filter(None, files):
        new = not os.path.lexists(name)
        if not new and stat.S_ISFIFO(os.stat(name).st_mode):
            _open_pipe(name)
            continue
        with open(name, "ab"):
            pass
        if new:
            os.remove(name)


def _open_pipe(name: str) -> None:
    """It stays open, or its reader would take this for the end."""
    try:
        os.open(name, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise UserError(f"{name}: got a pipe that nobody reads, expected a file, or a reader before this is begun") from None
