"""What a call is like: equal for calls that one program can serve."""

from __future__ import annotations

import datetime
import weakref
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.modes import is_inference_mode_enabled, records_graph
from tinygrad_llm.autograd.trees import form_of

_HEARD = {"raise", "call", "log", "print"}
_VALUES = (str, bytes, type(None), type, np.dtype, range, type(...), FunctionType, BuiltinFunctionType, Decimal, Fraction,
           PurePath, datetime.date, datetime.time, datetime.timedelta)
"""Types of constants that are compared by their values; numbers are by their text, other objects by what they are."""


class _Same:
    """Equal for one and the same object, which it does not keep alive where it need not."""

    __slots__ = ("found", "number")

    def __init__(self, value: Any) -> None:
        self.number = id(value)
        try:
            self.found: Callable[[], Any] = weakref.ref(value)
        except TypeError:
            self.found = lambda: value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.number == other.number and (value := self.found()) is not None and (
            value is other.found())

    def __hash__(self) -> int:
        return self.number


class Key(NamedTuple):
    """Modes, the form of the arguments, which of them are the same, their layouts and values."""

    modes: Any
    form: Any
    same: tuple[int, ...]
    layouts: tuple[Any, ...]


def key_of(leaves: list[Any], tree: Any) -> Key | None:
    """The key of a call with these leaves; None where NumPy's errors are to be heard of: a program is silent."""
    errors = tuple(np.geterr().values())
    if not _HEARD.isdisjoint(errors):
        return None
    first: dict[int, int] = {}
    same = tuple([first.setdefault(id(a), i) for i, a in enumerate(leaves) if isinstance(a, Tensor | np.ndarray)])
    modes = records_graph(), is_inference_mode_enabled(), errors
    return Key(modes, form_of(tree), same, tuple([_layout(a) for a in leaves]))


def _layout(a: Any) -> Any:
    """What a program depends on: of a constant its value; 1, 1.0 and True are equal, and yet not the same."""
    if isinstance(a, Tensor):
        return type(a), a.shape, a._array.strides, a.dtype, a.requires_grad, a._node is None
    if isinstance(a, np.ndarray):
        return type(a), a.shape, a.strides, a.dtype, a.flags.writeable
    if isinstance(a, _VALUES):
        return type(a), a
    return type(a), repr(a) if isinstance(a, int | float | complex | np.generic | slice) else _Same(a)


def described(layout: Any) -> str:
    """What `_layout` gives, in words."""
    kind, *rest = layout
    if issubclass(kind, Tensor | np.ndarray):
        return f"{kind.__name__} {rest[0]} of {rest[2]}"
    if issubclass(kind, int | float | np.number):
        return f"{rest[0]}"
    return f"another {kind.__name__}" if isinstance(rest[0], _Same) else f"{rest[0]!r:.40}"
