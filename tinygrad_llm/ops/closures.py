"""What a vjp holds: the arrays in its closure, which a graph keeps alive for it and watches for writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

_PLAIN = frozenset({bool, int, float, complex, str, bytes, slice, type(None), type(...), type, np.dtype, range})


class Each:
    """A vjp of one function for each argument; None for an argument without a gradient."""

    __slots__ = ("functions",)

    def __init__(self, functions: Sequence[Callable[[Any], Any] | None]) -> None:
        self.functions = functions

    def __call__(self, g: Any) -> tuple[Any, ...]:
        return tuple([None if function is None else function(g) for function in self.functions])

    def only(self, wanted: Sequence[Any]) -> Each:
        """The functions of the arguments that are wanted: the others go, and with them what they close over."""
        return Each([None if w is None else function for w, function in zip(wanted, self.functions)])


def each(*functions: Callable[[Any], Any] | None) -> Each:
    """`x * y, each(lambda g: g * y, lambda g: g * x)`: the gradients of the arguments, each by itself."""
    return Each(functions)


def saved_arrays(function: Any) -> list[Any]:
    """The arrays that a vjp holds, in order: in closure variables and defaults, and in functions, partials, tuples, lists and
    dicts among them."""
    found: list[Any] = []
    _collect((function,), found, set())
    return found


def _collect(parts: Iterable[Any], found: list[Any], seen: set[int]) -> None:
    for part in parts:
        kind = type(part)
        if kind is CellType:
            part = _contents(part)
            kind = type(part)
        if kind is np.ndarray:
            found.append(part)
        elif kind in _PLAIN:
            continue
        elif isinstance(part, _HOLDERS):
            if id(part) not in seen:
                seen.add(id(part))
                _collect(_parts(part), found, seen)
        elif isinstance(part, np.ndarray | np.generic) or hasattr(part, "__record_call__"):
            found.append(part)


_HOLDERS = (FunctionType, tuple, Each, list, set, frozenset, dict, functools.partial)


def _parts(value: Any) -> Iterable[Any]:
    """What a value of one of the known kinds consists of; a function of the cells of its closure, and its defaults."""
    if isinstance(value, FunctionType):
        cells = value.__closure__ or ()
        if value.__defaults__ is None and value.__kwdefaults__ is None:
            return cells
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, Each):
        return value.functions
    if isinstance(value, tuple | list | set | frozenset):
        return value
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    return ()


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def check_closure(name: str, vjp: Any) -> None:
    """Refuse an array where it would not be found, and a write to it not be seen: in an attribute of an object."""
    stack, seen = [vjp], set[int]()
    while stack:
        value = stack.pop()
        value = _contents(value) if isinstance(value, CellType) else value
        if type(value) in _PLAIN or id(value) in seen or isinstance(value, np.ndarray | np.generic):
            continue
        seen.add(id(value))
        stack += _parts(value)
        for key, held in _attributes(value):
            if saved_arrays(held):
                raise TypeError(f"op {name}: vjp: got an array in the attribute {key!r} of a {type(value).__name__}, where a "
                                "later write to it would not be seen, expected a variable that the vjp closes over")


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """The attributes of a plain object, and of the one that a method is bound to."""
    if isinstance(value, MethodType):
        return [*_attributes(value.__self__), (value.__name__, value.__func__)]
    if isinstance(value, FunctionType):  # what it wraps is in its closure
        return [(key, held) for key, held in vars(value).items() if key != "__wrapped__"]
    if isinstance(value, type | ModuleType | Each) or hasattr(value, "__record_call__") or hasattr(value, "__apply_op__"):
        return []
    return [*getattr(value, "__dict__", {}).items(), *[(name, getattr(value, name, None)) for name in slot_names(type(value))]]


def slot_names(kind: type) -> list[str]:
    """The names of the slots of its objects, which need not all be filled."""
    return [name for base in kind.__mro__ for name in vars(base).get("__slots__", ()) if not name.startswith("__")]
