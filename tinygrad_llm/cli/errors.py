"""Which errors are a user's mistake, and the one line that says so."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tinygrad_llm.cli.program import NAME

STDOUT = "standard output"
CHECKED = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError)


class UserError(Exception):
    """What the command line itself refuses: `name: got X, expected Y`."""


def is_mistake(error: BaseException) -> bool:
    """Whether the user, and not a bug, is the cause.

    Every check in this project raises `name: got X, expected Y`; Python's and NumPy's own errors do not read so. So a
    ValueError (TypeError, ...) with ": got " was raised on purpose, about an argument, and one without it is a bug.
    What the system refuses (a file, the disk, memory) is no bug either.
    """
    if isinstance(error, UserError | OSError | MemoryError):
        return True
    return isinstance(error, CHECKED) and ": got " in message(error)


def message(error: BaseException) -> str:
    """What it says."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = f"memory: got too little of it ({str(error) or 'no more'}), expected enough for this model and batch"
    else:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text


def say(text: str) -> None:
    """One line on stderr, if it takes it: a terminal that is gone is no reason to stop."""
    with suppress(OSError):
        print(f"{NAME}: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


class _Output:
    """A stream whose errors say which one it is, as those of files do."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._named():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._named():
            self._stream.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"cannot be written: {error.strerror}", self._name) from None


@contextmanager
def named_output() -> Iterator[None]:
    """An error of standard output names it."""
    before, sys.stdout = sys.stdout, _Output(sys.stdout, STDOUT)
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename == STDOUT:
            _forsake(1)
        raise
    finally:
        sys.stdout = before


def end_of_stderr() -> None:
    """What standard error does not take is lost, and the exit code stays what it is."""
    try:
        sys.stderr.flush()
    except OSError:
        _forsake(2)


def _forsake(descriptor: int) -> None:
    """Python writes what is left when it ends, and an error of that would be its exit code: 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def text_of(name: str, value: str) -> str:
    """A text that was given as an argument, or read from standard input where it is "-". Errors: UserError for bytes that are
    no UTF-8."""
    if value != "-":
        return _argument(name, value)
    try:
        return sys.stdin.buffer.read().decode() if hasattr(sys.stdin, "buffer") else sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: got bytes that are no UTF-8 on standard input, the first at {error.start:,}, expected text "
                        "in UTF-8") from None


def _argument(name: str, value: str) -> str:
    """In a C locale Python takes what is not ASCII for bytes, which stand as surrogates in the text."""
    try:
        return os.fsencode(value).decode() if re.search("[\ud800-\udfff]", value) else value
    except UnicodeError:
        raise UserError(f"{name}: got bytes that are no UTF-8, expected text in UTF-8") from None


def open_closed_streams() -> None:
    """Something stands behind each standard stream: else the next file that is opened would, and take what is printed."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def write_anything() -> None:
    """Show characters that the terminal lacks as escapes, in place of an error in the middle of a text."""
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream, "reconfigure"):
            continue
        if stream.errors == "strict" or "utf" not in stream.encoding.lower():  # in a C locale it is surrogateescape
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """A warning is one line, without the source that raised it."""
    with warnings.catch_warnings():
        # NumPy's overflow in a run that diverges: the check that follows it says more.
        warnings.filterwarnings("ignore", "(overflow|invalid value|divide by zero) encountered", RuntimeWarning)
        warnings.showwarning = lambda text, *rest: say(f"note: {text}")
        yield


@contextmanager
def without_notes() -> Iterator[None]:
    """Drop warnings that someone else will give again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def notes_unless_refused() -> Iterator[None]:
    """Hold warnings back: they follow what succeeds, and the first explains, in the same line, what is refused."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        except (ValueError, OSError) as error:
            if caught and is_mistake(error):
                raise UserError(f"{message(error)} ({caught[0].message})") from error
            raise
    for warning in caught:
        say(f"note: {warning.message}")
