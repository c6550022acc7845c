"""Places that hold what a function reads beside its arrays: what was there, what is there now, and how to put it back.

tinygrad_llm.capture.surroundings finds them.
"""

from __future__ import annotations

import operator
import random
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from types import MethodType, ModuleType
from typing import Any

import numpy as np

from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.capture.ir import CaptureError

NUMBERS = (int, float, complex, str, bytes, bool, type(None), type(Ellipsis))
"""Types of values that nothing can change."""
LARGEST = 1 << 26
"""Bytes of a NumPy array outside of the function that are compared before each replay; a larger one is refused."""

_ABSENT = object()
_PLAIN = (*NUMBERS, np.generic, np.dtype)


def are_same(a: Any, b: Any) -> bool:
    """Whether two collections have the same objects in the same order."""
    return len(a) == len(b) and all(map(operator.is_, a, b))


class Place:
    """Something that holds values: what they were, what they are, and how to put them back.

    holder    what has them, if it may have been made while recording: then nobody else has it afterwards
    """

    __slots__ = ("before", "holder", "what")

    def __init__(self, what: str, holder: Any = None) -> None:
        self.what, self.holder = what, holder
        self.before: Any = self.read()

    def read(self) -> Any:
        """The values now, as a tuple."""
        raise NotImplementedError

    def write(self) -> None:
        """Put them back."""

    def difference(self) -> str | None:
        """What is not as it was, or None."""
        now = self.read()
        if are_same(now, self.before):
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


class Named(Place):
    """Values that have names."""

    __slots__ = ("names",)

    names: tuple[str, ...]

    def name_of(self, i: int) -> str:
        return f"{self.what}.{self.names[i]}" if self.what else self.names[i]


class Names(Named):
    """Some entries of a namespace: of a module's globals, of an object, of a class.

    keys    of an object, all names that it has: what is new is taken away again
    """

    __slots__ = ("keys", "matters", "space")

    def __init__(self, what: str, space: Any, names: tuple[str, ...], owner: Any = None) -> None:
        self.space, self.names = space, names
        self.keys = None if owner is None or isinstance(owner, type | ModuleType) else tuple(space)
        self.matters: Callable[[str, Any], bool] = lambda name, value: True
        super().__init__(what, owner)

    def read(self) -> Any:
        get = self.space.get
        return tuple([get(name, _ABSENT) for name in self.names])

    def difference(self) -> str | None:
        if self.keys is not None and len(self.space) != len(self.keys):
            new = [name for name in self.space if name not in self.keys]
            if new := [name for name in new if self.matters(name, self.space[name])]:
                return f"{self.what}.{new[0]} is new"
        return super().difference()

    def write(self) -> None:
        for name in [name for name in self.space if name not in self.keys] if self.keys is not None else ():
            del self.space[name]
        for name, value in zip(self.names, self.before):
            now = self.space.get(name, _ABSENT)
            if now is value:
                continue
            if isinstance(self.holder, type):
                delattr(self.holder, name) if value is _ABSENT else setattr(self.holder, name, value)
            elif value is _ABSENT:
                del self.space[name]
            else:
                self.space[name] = value
        changes.count += 1

    def keep(self) -> None:
        """From now on only what matters: other attributes come and go."""
        if self.keys is None:
            return
        kept = [(name, value) for name, value in zip(self.names, self.before) if self.matters(name, value)]
        self.names, self.before = tuple([name for name, _ in kept]), tuple([value for _, value in kept])

    def more(self, names: set[str]) -> None:
        """Note further names as they are now, also those that are absent: an attribute may come later."""
        new = tuple(names.difference(self.names))
        self.names += new
        self.before += tuple([self.space.get(name, _ABSENT) for name in new])


class Slots(Named):
    """The attributes of an object without a namespace."""

    __slots__ = ()

    def __init__(self, what: str, holder: Any, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(what, holder)

    def read(self) -> Any:
        return tuple([getattr(self.holder, name, _ABSENT) for name in self.names])

    def write(self) -> None:
        for name, value, now in zip(self.names, self.before, self.read()):
            if value is not now:
                object.__setattr__(self.holder, name, value) if value is not _ABSENT else object.__delattr__(self.holder, name)


class Cell(Place):
    """What a function has of the function around it."""

    __slots__ = ()

    def read(self) -> Any:
        try:
            return (self.holder.cell_contents,)
        except ValueError:
            return (_ABSENT,)

    def write(self) -> None:
        if self.before[0] is not _ABSENT:
            self.holder.cell_contents = self.before[0]


class Contents(Place):
    """The members of a list, deque or set."""

    __slots__ = ()

    def read(self) -> Any:
        return tuple(self.holder)

    def write(self) -> None:
        if not are_same(self.read(), self.before):
            kind: Any = next(kind for kind in (list, set, deque) if isinstance(self.holder, kind))  # its own may do otherwise
            kind.clear(self.holder)
            (kind.update if kind is set else kind.extend)(self.holder, self.before)

    def name_of(self, i: int) -> str:
        return f"{self.what}[{i}]"


class Entries(Place):
    """The keys and values of a dict."""

    __slots__ = ()

    def read(self) -> Any:
        return (*self.holder, *self.holder.values())

    def write(self) -> None:
        if not are_same(self.read(), self.before) and isinstance(self.holder, dict):
            half = len(self.before) // 2
            dict.clear(self.holder)
            dict.update(self.holder, zip(self.before[:half], self.before[half:]))  # a Counter's own would count

    def name_of(self, i: int) -> str:
        half = len(self.before) // 2
        return f"{self.what}[{self.before[i % half]!r}]"


class Cached(Place):
    """How much functools.lru_cache keeps for a function. What was computed while recording is forgotten."""

    __slots__ = ("misses",)

    def __init__(self, what: str, holder: Any) -> None:
        self.misses = holder.cache_info().misses
        super().__init__(what, holder)

    def read(self) -> Any:
        return (self.holder.cache_info().currsize,)

    def write(self) -> None:
        if self.holder.cache_info().misses != self.misses:
            self.holder.cache_clear()


class Objects(Place):
    """The members of an array of objects."""

    __slots__ = ()

    def read(self) -> Any:
        return tuple(self.holder.flat)

    def write(self) -> None:
        for i, value in enumerate(self.before):
            self.holder.flat[i] = value


class Target(Place):
    """What a weak reference or a context variable leads to now."""

    __slots__ = ()

    def read(self) -> Any:
        return (self.holder.get(_ABSENT) if isinstance(self.holder, ContextVar) else self.holder(),)

    def write(self) -> None:
        if isinstance(self.holder, ContextVar) and self.before[0] is not _ABSENT and self.read()[0] is not self.before[0]:
            self.holder.set(self.before[0])


class Raw(Place):
    """The bytes of a bytearray or an array.array."""

    __slots__ = ()

    def read(self) -> Any:
        return (bytes(self.holder),)

    def write(self) -> None:
        if self.read() != self.before:
            del self.holder[:]
            (self.holder.extend if isinstance(self.holder, bytearray) else self.holder.frombytes)(self.before[0])


class Values(Place):
    """The elements of an array of NumPy's."""

    __slots__ = ()

    def __init__(self, what: str, holder: np.ndarray) -> None:
        if holder.nbytes > LARGEST:
            raise CaptureError(f"{what}: got a NumPy array of {holder.nbytes >> 20} MB from outside of the function, expected "
                               "a tensor or an argument, whose values are read at each call")
        super().__init__(what, holder)

    def read(self) -> Any:
        return self.holder.copy("K")

    def write(self) -> None:
        if not self._is_same():
            self.holder[...] = self.before

    def difference(self) -> str | None:
        return None if self._is_same() else f"the array {self.what} was written to"

    def _is_same(self) -> bool:
        a, b = self.holder, self.before
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind in "biuf" and a.itemsize <= 8:  # as bits, of which a nan's are equal too
            return bool((a.view(f"u{a.itemsize}") == b.view(f"u{a.itemsize}")).all())
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))


class Tensors(Place):
    """Of tensors that were read: their memory, and whether they want a gradient and have hooks. Their values are read anew."""

    __slots__ = ("tensors",)
    PARTS = "the memory", "requires_grad", "no hooks"

    def __init__(self, what: str, tensors: Any) -> None:
        self.tensors = list(tensors)
        super().__init__(what)

    def read(self) -> Any:
        return tuple([part for t in self.tensors
                      for part in (t._array, t._requires_grad, t._hooks is None or not t._hooks.are_there)])

    def name_of(self, i: int) -> str:
        return f"{self.PARTS[i % 3]} of a tensor {self.tensors[i // 3].shape}"


class Asked(Tensors):
    """Of tensors that code names: their layout, which it may ask for, and whether they want a gradient."""

    __slots__ = ()
    PARTS = "the dtype", "the shape", "requires_grad"

    def read(self) -> Any:
        return tuple([part for t in self.tensors for part in (str(t._array.dtype), repr(t._array.shape), t._requires_grad)])


class State(Place):
    """Where a generator of random numbers stands."""

    __slots__ = ()

    def read(self) -> Any:
        if isinstance(self.holder, np.random.Generator):
            children = getattr(self.holder.bit_generator.seed_seq, "n_children_spawned", 0)
            return {**self.holder.bit_generator.state, "children": children}
        if isinstance(self.holder, random.Random):
            return self.holder.getstate()
        return self.holder.get_state(legacy=False)

    def write(self) -> None:
        if isinstance(self.holder, np.random.Generator):
            self.holder.bit_generator.state = self.before
        elif isinstance(self.holder, random.Random):
            self.holder.setstate(self.before)
        else:
            self.holder.set_state(self.before)

    def difference(self) -> str | None:
        return None if _frozen(self.read()) == _frozen(self.before) else f"{self.what} was drawn from"


def check_kind(what: str, array: np.ndarray) -> None:
    """CaptureError for an array of a class of its own, whose functions may do something else."""
    if type(array) not in (np.ndarray, np.memmap):
        raise CaptureError(f"{what}: got an array of class {type(array).__name__}, expected NumPy's own")


def _frozen(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _frozen(value) for name, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state


def _are_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(p is q or _are_equal(p, q) for p, q in zip(a, b))
    if isinstance(a, MethodType):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    return isinstance(a, _PLAIN) and (a == b if isinstance(a, str | bytes) else repr(a) == repr(b))


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return repr(value)[:60] if isinstance(value, _PLAIN) else f"another {type(value).__name__}"
