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
import operator
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
from tinygrad_llm.capture.ir import CaptureError

_ABSENT = object()
_NUMBERS = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis))
_LEAVES = {*_NUMBERS, BuiltinFunctionType, CodeType, FrameType, slice, range}
_PLAIN = (*_NUMBERS, np.generic, np.dtype)
LARGEST = 1 << 26
"""Bytes of a NumPy array outside of the function that are compared before each replay; a larger one is refused."""

_PATHS = sysconfig.get_paths()
_STANDARD = tuple({os.path.realpath(_PATHS[name]) + os.sep for name in ("stdlib", "platstdlib")})
_SITE = tuple({os.path.realpath(_PATHS[name]) + os.sep for name in ("purelib", "platlib")})
_OWN = tuple([os.path.dirname(os.path.realpath(str(path))) + os.sep for path in (np.__file__, os.path.dirname(__file__))])

_CLOCKS = ("time", "perf_counter", "monotonic", "process_time", "thread_time", "time_ns", "perf_counter_ns", "monotonic_ns",
           "process_time_ns")
_OUTSIDE = [(builtins, "print"), (builtins, "input"), (builtins, "open"), (os, "urandom"), *[(time, name) for name in _CLOCKS]]
"""Functions whose every call matters, or gives something else."""
_FUNCTIONS = {getattr(module, name) for module, name in _OUTSIDE}
_LOGGED = logging.Logger._log.__code__


def _compares_types(code: CodeType) -> bool:
    """Whether `type(...)` stands shortly before a comparison."""
    steps = [(i.opname, i.argval) for i in dis.get_instructions(code)]
    asked = [k for k, step in enumerate(steps) if step == ("LOAD_GLOBAL", "type")]
    return any(name in ("IS_OP", "COMPARE_OP", "CONTAINS_OP") for k in asked for name, _ in steps[k : k + 10])


def is_users(frame: FrameType) -> bool:
    """Whether a frame runs neither this library's code, nor NumPy's, nor Python's: also of code that was made of a string."""
    code = frame.f_code
    if code not in _known_codes:
        path, module = code.co_filename, str(frame.f_globals.get("__name__", "")).partition(".")[0]
        inside = path.startswith(("<frozen", *_OWN)) or (path.startswith(_STANDARD) and not path.startswith(_SITE))
        _known_codes[code] = not inside and module not in ("tinygrad_llm", "numpy")
    return _known_codes[code]


_known_codes: dict[CodeType, bool] = {}


# Places ------------------------------------------------------------------------------------------------------------------


class Place:
    """Something that holds values: what they were, what they are, and how to put them back."""

    __slots__ = ("before", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.before: Any = self.read()

    def read(self) -> Any:
        """The values now, as a tuple."""
        raise NotImplementedError

    def write(self) -> None:
        """Put them back."""

    def difference(self) -> str | None:
        """What is not as it was, or None."""
        now = self.read()
        if len(now) == len(self.before) and all(map(operator.is_, now, self.before)):
            return None
        if len(now) != len(self.before):
            return f"{self.what} had {len(self.before)} entries and has {len(now)}"
        for i, (a, b) in enumerate(zip(self.before, now)):
            if a is not b and not _are_equal(a, b):
                return f"{self.name_of(i)} was {_shown(a)} and is {_shown(b)}"
        self.before = now
        return None

    def name_of(self, i: int) -> str:
        """What to call the value of a number."""
        return self.what


class Names(Place):
    """Some entries of a namespace: of a module's globals, of an object, of a class.

    keys    of an object, all names that it has: what is new is taken away again
    """

    __slots__ = ("keys", "names", "owner", "space")

    def __init__(self, what: str, space: Any, names: tuple[str, ...], owner: Any = None) -> None:
        self.space, self.names, self.owner = space, names, owner
        self.keys = None if owner is None or isinstance(owner, type | ModuleType) else tuple(space)
        super().__init__(what)

    def read(self) -> Any:
        get = self.space.get
        return tuple([get(name, _ABSENT) for name in self.names])

    def difference(self) -> str | None:
        if self.keys is not None and len(self.space) != len(self.keys):
            new = [name for name in self.space if name not in self.keys]
            return f"{self.what}.{new[0]} is new" if new else f"{self.what} has lost an attribute"
        return super().difference()

    def write(self) -> None:
        for name in [name for name in self.space if name not in self.keys] if self.keys is not None else ():
            del self.space[name]
        for name, value in zip(self.names, self.before):
            if self.space.get(name, _ABSENT) is not value:
                setattr(self.owner, name, value) if isinstance(self.owner, type) else self.space.__setitem__(name, value)
        changes.count += 1

    def more(self, names: set[str]) -> None:
        """Note further names as they are now."""
        new = tuple([name for name in names if name in self.space and name not in self.names])
        self.names += new
        self.before += tuple([self.space[name] for name in new])

    def name_of(self, i: int) -> str:
        return f"{self.what}.{self.names[i]}" if self.what else self.names[i]


class Slots(Place):
    """The attributes of an object without a namespace."""

    __slots__ = ("names", "owner")

    def __init__(self, what: str, owner: Any, names: tuple[str, ...]) -> None:
        self.owner, self.names = owner, names
        super().__init__(what)

    def read(self) -> Any:
        return tuple([getattr(self.owner, name, _ABSENT) for name in self.names])

    def write(self) -> None:
        for name, value, now in zip(self.names, self.before, self.read()):
            if value is not now:
                setattr(self.owner, name, value) if value is not _ABSENT else delattr(self.owner, name)

    def name_of(self, i: int) -> str:
        return f"{self.what}.{self.names[i]}"


class Cell(Place):
    """What a function has of the function around it."""

    __slots__ = ("cell",)

    def __init__(self, what: str, cell: Any) -> None:
        self.cell = cell
        super().__init__(what)

    def read(self) -> Any:
        try:
            return (self.cell.cell_contents,)
        except ValueError:
            return (_ABSENT,)

    def write(self) -> None:
        if self.before[0] is not _ABSENT:
            self.cell.cell_contents = self.before[0]


class Contents(Place):
    """The members of a list, deque or set."""

    __slots__ = ("container",)

    def __init__(self, what: str, container: Any) -> None:
        self.container = container
        super().__init__(what)

    def read(self) -> Any:
        return tuple(self.container)

    def write(self) -> None:
        if not (len(self.container) == len(self.before) and all(map(operator.is_, self.container, self.before))):
            self.container.clear()
            (self.container.update if isinstance(self.container, set) else self.container.extend)(self.before)

    def name_of(self, i: int) -> str:
        return f"{self.what}[{i}]"


class Entries(Place):
    """The keys and values of a dict."""

    __slots__ = ("mapping",)

    def __init__(self, what: str, mapping: dict[Any, Any]) -> None:
        self.mapping = mapping
        super().__init__(what)

    def read(self) -> Any:
        return (*self.mapping, *self.mapping.values())

    def write(self) -> None:
        now = self.read()
        if not (len(now) == len(self.before) and all(map(operator.is_, now, self.before))):
            half = len(self.before) // 2
            self.mapping.clear()
            self.mapping.update(zip(self.before[:half], self.before[half:]))

    def name_of(self, i: int) -> str:
        half = len(self.before) // 2
        return f"{self.what}[{self.before[i % half]!r}]"


class Values(Place):
    """The elements of an array of NumPy's."""

    __slots__ = ("array",)

    def __init__(self, what: str, array: np.ndarray) -> None:
        if array.nbytes > LARGEST:
            raise CaptureError(f"{what}: got a NumPy array of {array.nbytes >> 20} MB from outside of the function, expected a "
                               "tensor or an argument, whose values are read at each call")
        self.array = array
        super().__init__(what)

    def read(self) -> Any:
        return self.array.copy("K")

    def write(self) -> None:
        if not self._is_same():
            self.array[...] = self.before

    def difference(self) -> str | None:
        return None if self._is_same() else f"the array {self.what} was written to"

    def _is_same(self) -> bool:
        a, b = self.array, self.before
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind in "biuf" and a.itemsize <= 8:  # as bits, of which a nan's are equal too
            return bool((a.view(f"u{a.itemsize}") == b.view(f"u{a.itemsize}")).all())
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


class Tensors(Place):
    """Of tensors that were read: their memory, and whether they want a gradient and have hooks. Their values are read anew."""

    __slots__ = ("tensors",)

    def __init__(self, what: str, tensors: Any) -> None:
        self.tensors = list(tensors)
        super().__init__(what)

    def read(self) -> Any:
        return tuple([part for t in self.tensors for part in (t._array, t._requires_grad, not t._hooks or not (
            t._hooks.calls or t._hooks.see_grad))])

    def name_of(self, i: int) -> str:
        return f"{('the memory', 'requires_grad', 'no hooks')[i % 3]} of a tensor {self.tensors[i // 3].shape}"


class State(Place):
    """Where a generator of random numbers stands."""

    __slots__ = ("source",)

    def __init__(self, what: str, source: Any) -> None:
        self.source = source
        super().__init__(what)

    def read(self) -> Any:
        if isinstance(self.source, np.random.Generator):
            return self.source.bit_generator.state
        if isinstance(self.source, random.Random):
            return self.source.getstate()
        return self.source.get_state(legacy=False)

    def write(self) -> None:
        if isinstance(self.source, np.random.Generator):
            self.source.bit_generator.state = self.before
        elif isinstance(self.source, random.Random):
            self.source.setstate(self.before)
        else:
            self.source.set_state(self.before)

    def difference(self) -> str | None:
        return None if _frozen(self.read()) == _frozen(self.before) else f"{self.what} was drawn from"


def _frozen(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _frozen(value) for name, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state


def _are_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, MethodType):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    return isinstance(a, _PLAIN) and (a == b if isinstance(a, str | bytes) else repr(a) == repr(b))


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return repr(value)[:60] if isinstance(value, _PLAIN) else f"another {type(value).__name__}"


class Effect(CaptureError):
    """A recorded function changed something. What it did was undone: the function may be run as it is, and recorded later."""


# Looking ------------------------------------------------------------------------------------------------------------------


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
        if code is _LOGGED:
            self._notice("it writes to a log")
        if not _known_codes.get(code, True) or not is_users(frame):  # the library's, as nearly all are
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
                if place.owner is not None:
                    self._space(place.what, place.space, place.owner, new)
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
            if path is not None and not path.startswith(_OWN) and not path.startswith((*_STANDARD, *_SITE)):
                self._space(value.__name__, vars(value), value, self._names)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._object(what, value)

    def _function(self, function: FunctionType) -> None:
        self._seen[id(function)] = function
        if function.__module__ is not None and function.__module__.partition(".")[0] in ("tinygrad_llm", "numpy"):
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
            module = sys.modules.get(base.__module__)
            path = getattr(module, "__file__", None)
            inside = base.__module__ == "builtins" or (path is not None and path.startswith((*_OWN, *_STANDARD, *_SITE)))
            if not inside and id(base) not in self._seen:
                self._seen[id(base)] = base
                self._space(base.__name__, base.__dict__, base, self._names)

    def _object(self, what: str, value: Any) -> None:
        self._seen[id(value)] = value
        kind = type(value)
        self._class(kind)
        if hasattr(kind, "named_modules") and hasattr(kind, "training"):
            self.watched.append(Names(kind.__name__, vars(value), tuple(vars(value)), value))
            known = kind.__module__.partition(".")[0] == "tinygrad_llm"  # changes nothing but by setting an attribute
            for name, member in list(vars(value).items()):
                if not known or hasattr(member, "named_modules"):
                    self.visit(f"{kind.__name__}.{name}", member)
            return
        if isinstance(value, functools.partial):
            for member in (value.func, value.args, value.keywords):
                self.visit(what, member)
        slots = [name for base in kind.__mro__ for name in vars(base).get("__slots__", ()) if not name.startswith("__")]
        if slots and kind.__module__.partition(".")[0] not in ("builtins", "tinygrad_llm", "numpy"):
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
        found = self.problem or self.changed(everything=True)
        if found is not None:
            raise Effect(f"{found}, expected a function that leaves all but its results as it was")
        self.polled = [place for place in self.polled if not isinstance(place, Names) or place.names or place.keys is not None]
        self.draws = []

    def restore(self) -> None:
        """Put back what was noted."""
        for place in (*self.draws, *self.watched, *self.polled):
            place.write()

    def changed(self, everything: bool = False) -> str | None:
        """What is not as it was noted, in words. Of modules only if any module changed since the last look."""
        places = [*self.draws, *self.watched, *self.polled] if everything else self.polled
        found = _first(places)
        if found is None and self._count != changes.count and not everything:
            found = _first(self.watched)
        if found is None:
            self._count = changes.count
        return found


def _first(places: list[Place]) -> str | None:
    for place in places:
        if (found := place.difference()) is not None:
            return found
    return None


def _is_dead(place: Place) -> bool:
    """Whether nobody but the place has what it is about."""
    for name in ("owner", "container", "mapping", "array", "cell"):
        holder = getattr(place, name, None)
        if holder is not None:
            return sys.getrefcount(holder) <= 3  # the place's, this function's and the call's
    return False
