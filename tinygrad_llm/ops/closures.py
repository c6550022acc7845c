"""What a vjp holds: the arrays in its closure, which a graph keeps alive for it and watches for writes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType, ModuleType
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
    _collect(function, found, set())
    return found


def _collect(value: Any, found: list[Any], seen: set[int]) -> None:
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is np.ndarray or isinstance(value, np.ndarray | np.generic) or hasattr(value, "__record_call__"):
        found.append(value)
    elif (parts := _parts(value)) and id(value) not in seen:
        seen.add(id(value))
        for part in parts:
            _collect(part, found, seen)


def _parts(value: Any) -> Sequence[Any]:
    """What a value of one of the known kinds consists of."""
    if isinstance(value, FunctionType):
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, tuple | list | set | frozenset):
        return list(value)
    if isinstance(value, Each):
        return value.functions
    if isinstance(value, dict):
        return list(value.values())
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
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if not name.startswith("__")]
    return [*getattr(value, "__dict__", {}).items(), *[(name, getattr(value, name, None)) for name in slots]]
