"""What stands around the arrays of a function while it is recorded: numbers, attributes, containers, parts of modules.

A program repeats NumPy calls. Whatever else the function read when it was recorded is frozen in them, and whatever else it
did is done once. So all of it is looked at: a trace function sees each Python frame that the function runs, other than those
of this library, of NumPy and of Python's own modules, and before the frame's first line it notes what the names in the frame's
code lead to. That is more than the function reads, and never less, but for what no name leads to
(`getattr(self, f"part{i}")` of an object that is no module, the globals of an extension).

Looked at are of a module all attributes; of other objects, and of the user's classes and modules, those whose names stand in
the code; of a function its closure, defaults and globals; of a list, dict, set or array what it holds.
"""

from __future__ import annotations

import builtins
import dis
import functools
import gc
import logging
import os
import random
import sys
import sysconfig
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.autograd.modes import LIBRARY, NUMPY
from tinygrad_llm.capture.ir import CaptureError
from tinygrad_llm.capture.places import NUMBERS, Cell, Contents, Entries, Names, Place, Slots, State, Tensors, Values
from tinygrad_llm.ops.closures import slot_names

_LEAVES = {*NUMBERS, BuiltinFunctionType, CodeType, FrameType, slice, range}

_PATHS = sysconfig.get_paths()
_STANDARD = tuple({os.path.realpath(_PATHS[name]) + os.sep for name in ("stdlib", "platstdlib")})
_SITE = tuple({os.path.realpath(_PATHS[name]) + os.sep for name in ("purelib", "platlib")})
_LIBRARIES = ("tinygrad_llm", "numpy")

_CLOCKS = ("time", "perf_counter", "monotonic", "process_time", "thread_time", "time_ns", "perf_counter_ns", "monotonic_ns",
           "process_time_ns")
_OUTSIDE = [(builtins, "print"), (builtins, "input"), (builtins, "open"), (os, "urandom"), *[(time, name) for name in _CLOCKS]]
"""Functions whose every call matters, or gives something else."""
_FUNCTIONS = {getattr(module, name) for module, name in _OUTSIDE}
_LOGGED = logging.Logger._log.__code__


def _package(module: Any) -> str:
    """The first part of a module's name."""
    return str(module or "").partition(".")[0]


def _is_installed(path: str | None) -> bool:
    """Whether a module's file is the library's, NumPy's, Python's or another installed package's."""
    return path is not None and path.startswith((LIBRARY, NUMPY, *_STANDARD, *_SITE))


def _compares_types(code: CodeType) -> bool:
    """Whether `type(...)` stands shortly before a comparison."""
    steps = [(i.opname, i.argval) for i in dis.get_instructions(code)]
    asked = [k for k, step in enumerate(steps) if step == ("LOAD_GLOBAL", "type")]
    return any(name in ("IS_OP", "COMPARE_OP", "CONTAINS_OP") for k in asked for name, _ in steps[k : k + 10])


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs neither this library's code, nor NumPy's, nor Python's: also of code that was made of a string."""
    path = frame.f_code.co_filename
    if path in _known_files:
        return False
    if path.startswith(("<frozen", LIBRARY, NUMPY)) or (path.startswith(_STANDARD) and not path.startswith(_SITE)):
        if path != _LOGGED.co_filename:
            _known_files.add(path)
        return False
    return _package(frame.f_globals.get("__name__")) not in _LIBRARIES


_known_files: set[str] = set()
"""Files that are not the user's, as far as they have been met."""


class Effect(CaptureError):
    """A recorded function changed something. What it did was undone: the function may be run as it is, and recorded later."""


class Surroundings:
    """What a function leads to, noted while it runs inside `watching()`.

    polled     places that are compared before each replay
    watched    those of modules, which say of themselves that they changed: see tinygrad_llm.autograd.changes
    draws      generators of random numbers, which only recording must not move
    """

    def __init__(self) -> None:
        self.polled: list[Place] = []
        self.watched: list[Place] = []
        self.draws: list[Place] = [State("random", random._inst), State("numpy.random", np.random.mtrand._rand)]
        self.problem: str | None = None
        self._names: set[str] = set()
        self._seen: dict[int, Any] = {}
        self._spaces: dict[int, Names] = {}
        self._count = -1
        self._codes: set[CodeType] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block each frame of the user's is looked at, and calls of what is outside of the process are noticed."""
        before, collects = sys.gettrace(), gc.isenabled()
        gc.disable()  # its callbacks are no frames of the function's
        try:
            with warnings.catch_warnings(), self._noticing():
                warnings.filterwarnings("error", message="you are shuffling a")  # NumPy shuffles what is no array of its own
                sys.settrace(self._called)
                yield
        finally:
            sys.settrace(before)
            if collects:
                gc.enable()

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Inside the block print, clocks and the like say that they were called from here."""
        thread, plain = threading.get_ident(), [(module, name, getattr(module, name)) for module, name in _OUTSIDE]

        def noticed(function: Any, name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if threading.get_ident() == thread and is_users(sys._getframe(1)):
                    self._notice(f"{sys._getframe(1).f_code.co_name} calls {name}()")
                return function(*args, **kwargs)

            return call

        for module, name, function in plain:
            setattr(module, name, noticed(function, name))
        try:
            yield
        finally:
            for module, name, function in plain:
                setattr(module, name, function)

    def _notice(self, problem: str) -> None:
        self.problem = self.problem or problem

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename in _known_files:  # the library's, as nearly all are
            return None
        if code is _LOGGED:
            self._notice("it writes to a log")
        if not is_users(frame):
            return None
        frame.f_trace_lines = False
        self._enter(frame, code)
        return self._left

    def _left(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return" and arg is not None:
            self.visit(f"{frame.f_code.co_name}()", arg)
        return self._left

    def _enter(self, frame: FrameType, code: CodeType) -> None:
        if code not in self._codes:
            self._codes.add(code)
            new = set(code.co_names) - self._names
            self._names |= new
            for place in list(self._spaces.values()) if new else ():
                if place.holder is not None:
                    self._space(place.what, place.space, place.holder, new)
            self._space("", frame.f_globals, None, set(code.co_names))
            if "type" in code.co_names and _compares_types(code):
                self._notice(f"{code.co_name} compares type(...), which is another one while it is recorded, with a class")
            if not {"now", "utcnow", "today"}.isdisjoint(code.co_names) and {"datetime", "date"} & new:
                self._notice(f"{code.co_name} asks for the date")
            if not {"environ", "getenv"}.isdisjoint(code.co_names):
                self._note("os.environ", os.environ._data, Entries)  # type: ignore[attr-defined]
        for name, value in frame.f_locals.items():
            self.visit(name, value)

    def visit(self, what: str, value: Any) -> None:
        """Note what a value holds, and what it leads to."""
        kind = type(value)
        if kind is BuiltinFunctionType and value in _FUNCTIONS and value is not print:
            self._notice(f"{value.__name__} is read, a function that gives something else each time")
        if kind in _LEAVES or issubclass(kind, Tensor) or hasattr(kind, "__record_call__") or id(value) in self._seen:
            return
        if isinstance(value, tuple | frozenset):
            self._seen[id(value)] = value
            for i, member in enumerate(value):
                self.visit(f"{what}[{i}]", member)
        elif isinstance(value, dict):
            self._note(what, value, Entries)
            for key, member in list(value.items()):
                self.visit(f"{what}[{key!r}]", member)
        elif isinstance(value, list | deque | set):
            self._note(what, value, Contents)
            for i, member in enumerate(list(value)):
                self.visit(f"{what}[{i}]", member)
        elif isinstance(value, np.ndarray):
            if value.base is None or not hasattr(value.base, "__record_call__"):
                self._note(what, value, Values)
        elif isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
            self._seen[id(value)] = value
            self.draws.append(State(what, value))
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self.visit(what, value.__self__)
            self.visit(what, value.__func__)
        elif isinstance(value, ModuleType):
            self._seen[id(value)] = value
            path = getattr(value, "__file__", None)
            if path is not None and not _is_installed(path):
                self._space(value.__name__, vars(value), value, self._names)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._object(what, value)

    def _function(self, function: FunctionType) -> None:
        self._seen[id(function)] = function
        if _package(function.__module__) in _LIBRARIES:
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self.polled.append(Cell(name, cell))
                self.visit(name, self.polled[-1].before[0])
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.visit(f"a default of {function.__name__}", value)

    def _class(self, kind: type) -> None:
        for base in kind.__mro__:
            path = getattr(sys.modules.get(base.__module__), "__file__", None)
            if base.__module__ != "builtins" and not _is_installed(path) and id(base) not in self._seen:
                self._seen[id(base)] = base
                self._space(base.__name__, base.__dict__, base, self._names)

    def _object(self, what: str, value: Any) -> None:
        self._seen[id(value)] = value
        kind = type(value)
        self._class(kind)
        if hasattr(kind, "named_modules") and hasattr(kind, "training"):
            self.watched.append(Names(kind.__name__, vars(value), tuple(vars(value)), value))
            known = _package(kind.__module__) == "tinygrad_llm"  # changes nothing but by setting an attribute
            for name, member in list(vars(value).items()):
                if not known or hasattr(member, "named_modules"):
                    self.visit(f"{kind.__name__}.{name}", member)
            return
        if isinstance(value, functools.partial):
            for member in (value.func, value.args, value.keywords):
                self.visit(what, member)
        if (slots := slot_names(kind)) and _package(kind.__module__) not in ("builtins", *_LIBRARIES):
            self.polled.append(Slots(what, value, tuple(slots)))
            for name, member in zip(slots, self.polled[-1].before):
                self.visit(f"{what}.{name}", member)
        if isinstance(getattr(value, "__dict__", None), dict):
            self._space(what, value.__dict__, value, self._names)

    def _space(self, what: str, space: Any, owner: Any, names: set[str]) -> None:
        """Note what these names mean in a namespace: of modules only what they hold."""
        place = self._spaces.get(id(space))
        if place is None:
            place = self._spaces[id(space)] = Names(what, space, (), owner)
            self.polled.append(place)
        place.more({name for name in names if not isinstance(space.get(name), ModuleType)})
        for name in names:
            if name in space:
                self.visit(f"{what}.{name}" if what else name, space[name])

    def _note(self, what: str, value: Any, kind: Callable[[str, Any], Place]) -> None:
        if id(value) not in self._seen:
            self._seen[id(value)] = value
            self.polled.append(kind(what, value))

    # Afterwards -------------------------------------------------------------------------------------------------------

    def look_at(self, tensors: Any) -> None:
        """Note tensors that the function has read."""
        self.watched.append(Tensors("tensors", tensors))

    def forget(self) -> None:
        """After recording: what the function itself has made is nobody's any more."""
        self._seen.clear()
        self._spaces.clear()
        while any(map(_is_dead, (*self.polled, *self.watched))):
            self.polled = [place for place in self.polled if not _is_dead(place)]
            self.watched = [place for place in self.watched if not _is_dead(place)]

    def settle(self) -> None:
        """Errors: Effect where anything is not as it was noted."""
        found = self.problem or _first([*self.draws, *self.watched, *self.polled])
        if found is not None:
            raise Effect(f"{found}, expected a function that leaves all but its results as it was")
        self.polled = [place for place in self.polled if not isinstance(place, Names) or place.names or place.keys is not None]
        self.draws, self._count = [], changes.count

    def restore(self) -> None:
        """Put back what was noted."""
        for place in (*self.draws, *self.watched, *self.polled):
            place.write()

    def changed(self) -> str | None:
        """What is not as it was noted, in words. Of modules only if any module changed since the last look."""
        if (found := _first(self.polled)) is not None or self._count == changes.count:
            return found
        if (found := _first(self.watched)) is None:
            self._count = changes.count
        return found


def _first(places: list[Place]) -> str | None:
    for place in places:
        if (found := place.difference()) is not None:
            return found
    return None


def _is_dead(place: Place) -> bool:
    """Whether nobody but the place has what it is about."""
    holder = place.holder
    return holder is not None and sys.getrefcount(holder) <= 3  # the place's, this function's and the call's
