"""What is the user's; and what is outside of the process, which a recorded function may not ask: print, files, clocks."""

from __future__ import annotations

import atexit
import builtins
import dis
import functools
import gc
import io
import linecache
import logging
import os
import random
import signal
import sys
import threading
import time
import timeit
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any

from tinygrad_llm.autograd.modes import is_inner
from tinygrad_llm.capture.ir import CaptureError

LIBRARIES = ("tinygrad_llm", "numpy")

_CLOCKS = ("time", "perf_counter", "monotonic", "process_time", "thread_time", "time_ns", "perf_counter_ns", "monotonic_ns",
           "process_time_ns", "sleep", "localtime", "gmtime", "strftime", "ctime")
_FILES = ("open", "stat", "lstat", "mkdir", "remove", "unlink", "rename", "replace", "rmdir", "listdir", "scandir", "getcwd",
          "chdir", "system", "pipe", "urandom", "write", "times", "access", "utime")
_OUTSIDE: list[tuple[Any, str]] = [
    (builtins, "print"), (builtins, "input"), (builtins, "open"), (io, "open"), (random, "_urandom"), (timeit, "default_timer"),
    (threading.Thread, "start"), (warnings, "warn"), (warnings, "warn_explicit"), (atexit, "register"), (signal, "signal"),
    (gc, "collect"), (gc, "disable"), (gc, "enable"), *[(os, name) for name in _FILES], *[(time, name) for name in _CLOCKS]]
"""Functions whose every call matters, or gives something else."""
FUNCTIONS = {getattr(module, name) for module, name in _OUTSIDE}
_HARMLESS = ("<frozen importlib", linecache.__file__, warnings.__file__)
"""Files whose calls of these functions do not count: imports, and source lines for messages."""
_RECORDINGS = os.path.join(os.path.dirname(__file__), "recordings.py")
_LOGGED, _SEEDED = logging.Logger._log.__code__, random.Random.seed.__code__


def package(module: Any) -> str:
    """The first part of a module's name."""
    return str(module or "").partition(".")[0]


def is_users_module(module: Any) -> bool:
    """Whether it is neither this library's, nor NumPy's, nor one of Python's own; also of one that has no file."""
    if not isinstance(module, ModuleType) or package(module.__name__) in LIBRARIES:
        return False
    path = getattr(module, "__file__", None)
    if path is not None:
        return not is_inner(path)
    return module.__name__ == "__main__" or package(module.__name__) not in sys.stdlib_module_names


def is_users_class(kind: type) -> bool:
    module = sys.modules.get(kind.__module__)
    return is_users_module(module) if module is not None else kind.__module__ not in sys.stdlib_module_names


def _compares_types(code: CodeType) -> bool:
    """Whether `type(x)` is asked, other than of self, or for its name alone."""
    plumbing = ("PRECALL", "CALL", "CALL_FUNCTION", "CACHE", "PUSH_NULL")
    steps = [(i.opname, i.argval) for i in dis.get_instructions(code) if i.opname not in plumbing]
    asked = [k for k, step in enumerate(steps[:-2]) if step == ("LOAD_GLOBAL", "type")]
    return any(steps[k + 1][1] not in ("self", "cls") and steps[k + 2][1] != "__name__" for k in asked)


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(names of globals, all names) in a code; among all, texts that may be names: getattr(x, "lr"), vars(x)["lr"]."""
    consts = [c for const in code.co_consts for c in (const if isinstance(const, tuple | frozenset) else (const,))]
    texts = {c for c in consts if type(c) is str and c.isidentifier()}
    own = {str(i.argval) for i in dis.get_instructions(code) if i.opname.endswith(("_GLOBAL", "_NAME"))}
    return frozenset(own | texts if {"globals", "vars"} & own else own), frozenset({*code.co_names, *texts})


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs neither this library's code, nor NumPy's, nor Python's: also of code that was made of a string."""
    path = frame.f_code.co_filename
    if path in KNOWN:
        return False
    if is_inner(path):
        if path not in (_LOGGED.co_filename, _SEEDED.co_filename):
            KNOWN.add(path)
        return False
    return package(frame.f_globals.get("__name__")) not in LIBRARIES


KNOWN: set[str] = set()
"""Files that are not the user's, as far as they have been met."""


def is_importing(frame: FrameType | None) -> bool:
    """Whether a frame of a recorded function runs because it imports a module: done once, whoever asks first."""
    return any(inner.f_code.co_filename.startswith("<frozen importlib") for inner in _inside(frame))


def _user_of(frame: FrameType | None) -> str | None:
    """The name of the user's function that a call comes from, through whatever libraries; None for what does not count."""
    for inner in _inside(frame):
        if inner.f_code.co_filename.startswith(_HARMLESS):
            return None
        if is_users(inner):
            return inner.f_code.co_name
    return None


def _inside(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that it is called from, as far as the recorded function goes."""
    while frame is not None and frame.f_code.co_filename != _RECORDINGS:
        yield frame
        frame = frame.f_back


class Effect(CaptureError):
    """A recorded function changed something. What it did was undone: the function may be run as it is, and recorded later."""


def check_code(code: CodeType) -> None:
    """Effect for a code that asks for the type of something, or for the date: nothing else would tell of it."""
    if "type" in code.co_names and _compares_types(code):
        raise Effect(f"{code.co_name} compares type(...), which is another one while it is recorded, with a class, "
                     "expected isinstance()")
    if not {"__stdout__", "__stderr__"}.isdisjoint(code.co_names):
        raise Effect(f"{code.co_name} uses a stream, expected a function that only computes")
    if not {"now", "utcnow", "today"}.isdisjoint(code.co_names) and not {"datetime", "date"}.isdisjoint(names_in(code)[1]):
        raise Effect(f"{code.co_name} asks for the date, expected a function that only computes")


def check_frame(frame: FrameType) -> None:
    """Effect for a call of Python's that writes to a log, or asks the system for a seed."""
    if frame.f_code is _LOGGED:
        raise Effect("it writes to a log, expected a function that only computes")
    if frame.f_code is _SEEDED and frame.f_locals.get("a") is None:
        raise Effect("it makes a generator with a seed of the system's, expected one from outside, or a seed")


class _Stream:
    """A stream that another function writes to."""

    def __init__(self, stream: Any, write: Callable[[str], Any]) -> None:
        self._stream, self.write, self.writelines = stream, write, lambda lines: [write(line) for line in lines]

    @property
    def buffer(self) -> Any:
        """The bytes behind it."""
        self.write("")
        return self._stream.buffer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def noticing() -> Iterator[None]:
    """Inside the block print, files, clocks and the like are not to be asked, from here."""
    thread, plain = threading.get_ident(), [(module, name, getattr(module, name)) for module, name in _OUTSIDE]
    is_over = False  # then whoever has kept one of these functions has the plain one

    def noticed(function: Any, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            own = name == "warn" and not is_users(caller)  # a library's warning is not heard again
            if not is_over and threading.get_ident() == thread and not own and (user := _user_of(caller)) is not None:
                raise Effect(f"{user} calls {name}(), expected a function that only computes")
            return function(*args, **kwargs)

        return call

    for module, name, function in plain:
        setattr(module, name, noticed(function, name))
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = [_Stream(stream, noticed(stream.write, "write")) for stream in streams]
    try:
        yield
    finally:
        is_over = True
        sys.stdout, sys.stderr = streams
        for module, name, function in plain:
            setattr(module, name, function)
