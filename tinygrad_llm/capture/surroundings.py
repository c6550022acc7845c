"""What stands around the arrays of a function while it is recorded: numbers, attributes, containers, parts of modules.

A program repeats NumPy calls. Whatever else the function read when it was recorded is frozen in them, and whatever else it
did is done once. So all of it is looked at: a trace function sees each Python frame that the function runs, other than those
of this library, of NumPy and of Python's own modules, and before the frame's first line it notes what the names in the frame's
code lead to. That is more than the function reads, and never less, but for what no name leads to
(`getattr(self, f"part{i}")` of an object that is no module, the globals of an extension).

Looked at are of the user's objects, classes and modules the attributes whose names stand in the code, and parts of modules; of
objects of other packages all attributes; of a function its closure, defaults, attributes and globals; of a list, dict, set,
array or bytearray what it holds. What says nothing of its state, as an iterator or a stream, is refused.
"""

from __future__ import annotations

import array
import builtins
import functools
import gc
import io
import logging
import operator
import os
import random
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GenericAlias,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    UnionType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.autograd.randomness import default_generator
from tinygrad_llm.capture.ir import CaptureError
from tinygrad_llm.capture.outside import (
    FUNCTIONS,
    KNOWN,
    LIBRARIES,
    Effect,
    check_code,
    check_frame,
    is_importing,
    is_users,
    is_users_class,
    is_users_module,
    names_in,
    noticing,
    package,
)
from tinygrad_llm.capture.places import (
    NUMBERS,
    Asked,
    Cached,
    Cell,
    Contents,
    Entries,
    Names,
    Objects,
    Place,
    Raw,
    Slots,
    State,
    Target,
    Tensors,
    Values,
    check_kind,
)
from tinygrad_llm.ops.closures import slot_names

_LEAVES = {*NUMBERS, CodeType, FrameType, slice, range, object, type(NotImplemented)}
_STATELESS = (functools.cached_property, PurePath, np.ufunc, operator.itemgetter,
              type(threading.Lock()), type(threading.RLock()), WrapperDescriptorType, MethodWrapperType,
              MethodDescriptorType, GetSetDescriptorType, MemberDescriptorType, GenericAlias, UnionType)
"""Types of what has no state that arrays could depend on, or keeps it from everybody."""
_CACHED = type(functools.lru_cache(abs))
MOST = 20_000
"""Places that are looked at before each replay, at most."""


def young() -> set[int]:
    """The ids of what was made since Surroundings(), while nothing is collected."""
    return {id(made) for made in gc.get_objects(0)}


class Surroundings:
    """What a function leads to, noted while it runs inside `watching()`.

    polled     places that are compared before each replay
    watched    those of modules, which say of themselves that they changed: see tinygrad_llm.autograd.changes
    draws      generators of random numbers, which only recording must not move
    """

    def __init__(self) -> None:
        gc.collect(0)  # what the function makes is younger
        self.polled: list[Place] = []
        self.watched: list[Place] = []
        self.draws: list[Place] = [State("random", random._inst), State("numpy.random", np.random.mtrand._rand),
                                   State("the library's generator", default_generator)]
        self.tensors: list[Tensor] = []
        self._names: set[str] = set()
        self._seen: dict[int, Any] = {id(place.holder): place.holder for place in self.draws}
        self._spaces: dict[int, Names] = {}
        self._count = -1
        self._codes: set[CodeType] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block each frame of the user's is looked at, and calls of what is outside of the process are refused."""
        before, collects = sys.gettrace(), gc.isenabled()
        gc.disable()  # its callbacks are no frames of the function's
        try:
            with noticing():
                sys.settrace(self._called)
                yield
        finally:
            sys.settrace(before)
            if collects:
                gc.enable()

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename in KNOWN:  # the library's, as nearly all are
            return None
        check_frame(frame)
        if not is_users(frame) or is_importing(frame):
            return None
        if frame.f_locals is frame.f_globals and id(frame.f_globals) not in self._spaces:
            return None  # code that is made of a string, in a namespace that nobody knows
        frame.f_trace_lines = False
        self._enter(frame, code)
        return self._left

    def _left(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "return":
            self._imported(names_in(frame.f_code)[1])
            if arg is not None:
                self.visit(f"{frame.f_code.co_name}()", arg)
        return self._left

    def _imported(self, names: Iterable[str]) -> None:
        """Note the user's modules that a function imports itself."""
        for name in names:
            if is_users_module(sys.modules.get(name)):
                self._space("sys.modules", sys.modules, None, {name})

    def _enter(self, frame: FrameType, code: CodeType) -> None:
        if code not in self._codes:
            self._codes.add(code)
            own, names = names_in(code)
            self._more(set(names))
            self._space("", frame.f_globals, None, set(own))
            self._imported(names)
            check_code(code)
            if not {"environ", "getenv"}.isdisjoint(code.co_names):
                self._note("os.environ", os.environ._data, Entries)  # type: ignore[attr-defined]
            if "argv" in code.co_names:
                self._space("sys", vars(sys), None, {"argv"})
        self._more({text for text in frame.f_locals.values() if type(text) is str and text.isidentifier()})
        for name, value in frame.f_locals.items() if frame.f_locals is not frame.f_globals else ():
            if name != ".0":  # the iterator of a comprehension, made for it
                self.visit(name, value)

    def _more(self, names: set[str]) -> None:
        """Further names: what they mean in all that was met."""
        new = names - self._names
        self._names |= new
        for place in list(self._spaces.values()) if new else ():
            if place.holder is not None:
                self._space(place.what, place.space, place.holder, new)

    def visit(self, what: str, value: Any) -> None:
        """Note what a value holds, and what it leads to. Errors: CaptureError for what says nothing of its state."""
        kind = type(value)
        if kind in _LEAVES or hasattr(kind, "__record_call__") or id(value) in self._seen or value is vars(builtins):
            return
        if issubclass(kind, Tensor):
            self._seen[id(value)] = value
            if not hasattr(type(value._array), "__record_call__"):
                self.tensors.append(value)
                self._space(what, value.__dict__, value, self._names) if getattr(value, "__dict__", None) is not None else None
        elif kind is BuiltinFunctionType:
            if value in FUNCTIONS:
                raise Effect(f"{what} is {value.__name__}(), which gives something else each time")
            if not isinstance(value.__self__, ModuleType | type):
                self.visit(what, value.__self__)  # a list's append, say
        elif isinstance(value, tuple | frozenset):
            self._seen[id(value)] = value
            for i, member in enumerate(value):
                self.visit(f"{what}[{i}]", member)
        elif isinstance(value, dict) and "__builtins__" in value:  # of a module, or of code that was made of a string
            self._seen[id(value)] = value
            self._space(what, value, value, self._names)
        elif isinstance(value, dict | MappingProxyType):
            self._note(what, value, Entries)
            for key, member in list(value.items()):
                self.visit(f"{what}[{key!r}]", member)
            self._attributes(what, value, kind)
        elif isinstance(value, list | deque | set):
            self._note(what, value, Contents)
            for i, member in enumerate(list(value)):
                self.visit(f"{what}[{i}]", member)
            self._attributes(what, value, kind)
        elif isinstance(value, np.ndarray):
            check_kind(what, value)
            if value.base is None or not hasattr(value.base, "__record_call__"):
                self._note(what, value, Objects if value.dtype.kind == "O" else Values)
                for member in value.flat if value.dtype.kind == "O" else ():
                    self.visit(f"{what}[...]", member)
        elif kind is _CACHED:
            self._note(what, value, Cached)
            self.visit(what, value.__wrapped__)
        elif isinstance(value, logging.Logger):
            self._seen[id(value)] = value
            self._space(what, value.__dict__, value, {"level", "disabled", "parent"})
        elif isinstance(value, bytearray | array.array):
            self._note(what, value, Raw)
        elif isinstance(value, weakref.ref | ContextVar):
            self._note(what, value, Target)
            self.visit(what, self.polled[-1].before[0])
        elif isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
            self._seen[id(value)] = value
            self.draws.append(State(what, value))
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, property):
            self.visit(what, value.fget)
        elif isinstance(value, staticmethod | classmethod):
            self.visit(what, value.__func__)
        elif isinstance(value, MethodType):
            self.visit(what, value.__self__)
            self.visit(what, value.__func__)
        elif isinstance(value, ModuleType):
            self._seen[id(value)] = value
            if is_users_module(value):
                self._space(value.__name__, vars(value), value, self._names)
        elif isinstance(value, type):
            self._class(value)
        elif not isinstance(value, _STATELESS):
            self._object(what, value)

    def _function(self, function: FunctionType) -> None:
        self._seen[id(function)] = function
        if package(function.__module__) in LIBRARIES:
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            if id(cell) not in self._seen:
                self._seen[id(cell)] = cell
                self.polled.append(Cell(name, cell))
                self.visit(name, self.polled[-1].before[0])
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._more({value} if type(value) is str and value.isidentifier() else set())
            self.visit(f"a default of {function.__name__}", value)
        self.polled.append(Slots(function.__name__, function, ("__code__", "__defaults__", "__kwdefaults__")))
        self._space(function.__name__, vars(function), function, {*self._names, *vars(function)})

    def _class(self, kind: type) -> None:
        meta: Any = type(kind)
        for base in (*kind.__mro__, *meta.__mro__):
            if id(base) not in self._seen and is_users_class(base):
                self._seen[id(base)] = base
                methods = [name for name, member in base.__dict__.items() if isinstance(member, FunctionType)]
                self._space(base.__name__, base.__dict__, base, {*self._names, *methods})

    def _object(self, what: str, value: Any) -> None:
        """Of the user's own objects the attributes that the code names, of others all; of modules parts as well."""
        kind = type(value)
        self._seen[id(value)] = value
        self._class(kind)
        foreign = [base for base in kind.__mro__ if base is not object and not is_users_class(base)]
        space = getattr(value, "__dict__", None)
        if hasattr(kind, "named_modules") and isinstance(space, dict):
            self._module(kind.__name__ if what in ("self", "the function") else what, value, space, foreign)
            return
        if package(kind.__module__) == "tinygrad_llm" and hasattr(value, "__wrapped__"):
            self.visit(what, value.__wrapped__)
            self._space(what, vars(value), value, self._names)
            return
        slots = slot_names(kind) if package(kind.__module__) not in ("builtins", *LIBRARIES) else ()
        self._check(what, value, kind, bool(slots) or isinstance(space, dict))
        if slots:
            self.polled.append(Slots(what, value, tuple(slots)))
            for name, member in zip(slots, self.polled[-1].before):
                self.visit(f"{what}.{name}", member)
        if isinstance(value, functools.partial):
            for member in (value.func, value.args, value.keywords):
                self.visit(what, member)
        if isinstance(value, operator.attrgetter | operator.methodcaller):
            self._more(set(".".join(map(str, value.__reduce__()[1])).split(".")))
        if isinstance(space, dict):
            whole = any(package(base.__module__) not in ("abc", "typing", "builtins") for base in foreign)
            optimizer = "param_groups" in space  # its moments change at each step, and a function only clears gradients
            fields = getattr(kind, "__dataclass_fields__", ())  # which replace(), asdict() and the like read
            self._space(what, space, value, {*self._names, *fields, *(space if whole and not optimizer else ())})

    def _attributes(self, what: str, value: Any, kind: type) -> None:
        """Of a subclass of a container the attributes."""
        if isinstance(space := getattr(value, "__dict__", None), dict):
            self._class(kind)
            self._space(what, space, value, {*self._names, *space})

    def _check(self, what: str, value: Any, kind: type, has_attributes: bool) -> None:
        """CaptureError for what goes on with each use, or does not show what it is."""
        reads_on = next((base for base in kind.__mro__ if "__next__" in vars(base)), None)
        if isinstance(value, io.IOBase):
            raise CaptureError(f"{what}: got a stream, expected a function that only computes")
        if reads_on is not None and not is_users_class(reads_on):
            if id(value) in young():
                return
            raise CaptureError(f"{what}: got an iterator ({kind.__name__}) from outside of the function, expected what it "
                               "gives as an argument: next() would be called once, while recording")
        if isinstance(value, operator.attrgetter | operator.methodcaller) or hasattr(kind, "__get__"):
            return
        if not has_attributes and (kind.__hash__ in (object.__hash__, None) or kind is memoryview):
            raise CaptureError(f"{what}: got a {kind.__name__}, which does not show its state, expected it outside of the "
                               "function")

    def _module(self, what: str, module: Any, space: dict[str, Any], foreign: list[type]) -> None:
        """All attributes of the library's modules, and of subclasses; of the user's the parts, and what the code names."""
        known = package(type(module).__module__) == "tinygrad_llm"  # changes nothing but by setting an attribute
        place = self._spaces[id(space)] = Names(what, space, (), module)
        self.watched.append(place)
        plain = any("forward" in vars(base) and "named_modules" not in vars(base) for base in foreign)
        place.matters = lambda name, value: plain or name in self._names or _is_part(name, value)
        place.more(set(space))
        for name, member in list(space.items()):
            if hasattr(member, "named_modules") or (not known and place.matters(name, member)):
                self.visit(f"{what}.{name}", member)

    def _space(self, what: str, space: Any, owner: Any, names: set[str]) -> None:
        """Note what these names mean in a namespace: of modules only what they hold."""
        place = self._spaces.get(id(space))
        if place is None:
            place = self._spaces[id(space)] = Names(what, space, (), owner)
            self.polled.append(place)
            if len(self.polled) > MOST:
                raise CaptureError(f"{what}: got a function that leads to more than {MOST} objects, expected fewer")
        place.more(names)
        for name in names:
            if name in space:
                self.visit(f"{what}.{name}" if what else name, space[name])

    def _note(self, what: str, value: Any, kind: Callable[[str, Any], Place]) -> None:
        if id(value) not in self._seen:
            self._seen[id(value)] = value
            self.polled.append(kind(what, value))

    # Afterwards -------------------------------------------------------------------------------------------------------

    def knows(self, value: Any) -> bool:
        """Whether it was met outside of the function."""
        return id(value) in self._seen

    def look_at(self, tensors: Any, drawn: Any) -> None:
        """Note tensors that the function has computed with, and leave out generators that it draws from anew at each call."""
        self.watched += [Tensors("tensors", tensors), Asked("tensors", self.tensors)]
        self._drawn = {id(generator) for generator in drawn}

    def forget(self, made: set[int]) -> None:
        """After recording: what the function itself has made is nobody's any more."""
        self._seen.clear()
        self._spaces.clear()
        gc.collect(0)  # cycles among what is forgotten
        held = Counter(id(place.holder) for place in self.polled)

        def is_its_own(place: Place) -> bool:
            if type(place.holder) is dict:  # which has an age only from when it holds more than numbers
                return sys.getrefcount(place.holder) <= held[id(place.holder)] + 1
            return id(place.holder) in made

        self.polled = [place for place in self.polled if not is_its_own(place)]
        self.watched = [place for place in self.watched if not is_its_own(place)]

    def settle(self) -> None:
        """Errors: Effect where anything is not as it was noted."""
        if (found := _first([*self.draws, *self.watched, *self.polled])) is not None:
            raise Effect(f"{found}, expected a function that leaves all but its results as it was")
        for place in (*self.watched, *self.polled):
            if isinstance(place, Names):
                place.keep()
                place.holder = None  # which it need not keep alive
        self.polled = [place for place in self.polled if not isinstance(place, Names) or place.names or place.keys is not None]
        asks = not self._names.isdisjoint(("getstate", "get_state", "bit_generator"))  # where the general ones stand
        self.polled += [place for place in self.draws[0 if asks else 3 :] if id(place.holder) not in self._drawn]
        self.draws, self._count = [], changes.count

    def restore(self) -> None:
        """Put back what was noted."""
        for place in (*self.draws, *self.watched, *self.polled):
            place.write()

    def longest(self) -> str:
        """What takes the most time to be looked at."""
        place = max(self.polled, key=lambda place: len(place.before), default=None)
        return f"{len(self.polled)} objects" + (f", {place.what or 'names'} with {len(place.before)} entries" if place else "")

    def changed(self) -> str | None:
        """What is not as it was noted, in words. Of modules only if any module changed since the last look."""
        if (found := _first(self.polled)) is not None or self._count == changes.count:
            return found
        if (found := _first(self.watched)) is None:
            self._count = changes.count
        return found


def _is_part(name: str, value: Any) -> bool:
    """Whether an attribute of a module is one of its parts, or says what they are."""
    return name == "training" or name.startswith("_Module__") or isinstance(value, Tensor) or hasattr(value, "named_modules")


def _first(places: list[Place]) -> str | None:
    for place in places:
        if (found := place.difference()) is not None:
            return found
    return None
