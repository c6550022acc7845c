"""Node: what backward needs to know of one application of an op."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygrad_llm.autograd.modes import calling_line, is_anomaly_enabled
from tinygrad_llm.ops import Op, Vjp

if TYPE_CHECKING:
    from tinygrad_llm.autograd.hooks import Hooks

_NUMBERS = itertools.count()


class AutogradError(RuntimeError):
    """The graph cannot do what was asked of it."""


class AnomalyError(AutogradError):
    """A NaN or an infinity appeared while detect_anomaly() was on."""


class WriteError(AutogradError, ValueError):
    """A write into a tensor that no gradient could follow, or whose memory cannot be written to."""


class Version:
    """How often the memory of a tensor was written to; views share it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Node:
    """One application of an op: who made its inputs (parents) and how a cotangent goes back to them (vjp).

    It never holds its own output, so that a dropped loss frees its whole graph by reference counting. It holds its
    inputs only where a gradient could depend on them, for create_graph. Shape and dtype are those of the output.
    A node has a higher number than all that were made before it.
    """

    __slots__ = ("_hooks", "dtype", "given", "inputs", "line", "number", "op", "options", "parents", "saved", "shape", "vjp")

    _hooks: Hooks | None

    def __init__(self, op: Op, vjp: Vjp, args: tuple[Any, ...], options: dict[str, Any], out: Any) -> None:
        self.op = op
        self.vjp: Vjp | None = vjp
        self.parents = tuple([_parent(a) for a in args])
        self.options = options
        self.shape, self.dtype = out.shape, out.dtype
        saved = list(saved_arrays(vjp))
        self.inputs: tuple[Any, ...] | None = args if any(a.dtype.kind == "f" for a in saved) else None
        self.saved = _versions(saved, (*args, out))
        self.given = tuple([(a._version, a._version.count) for a in self.inputs or () if hasattr(a, "_version")])
        self.line = calling_line() if is_anomaly_enabled() else None
        self.number, self._hooks = next(_NUMBERS), None

    def __repr__(self) -> str:
        return f"<{self.op.name} {self.shape}>"

    def check_saved(self, runs_again: bool = False) -> None:
        """AutogradError where an array that the vjp closes over, or an input if the op runs again, was written to since."""
        for version, seen in (*self.saved, *self.given) if runs_again else self.saved:
            if version.count != seen:
                raise AutogradError(
                    f"{self.op.name}: backward needs a tensor that was modified in place: it is at version "
                    f"{version.count}, expected {seen}. Write to a copy, or call backward() before writing"
                    + (f"; its forward was called at {self.line}" if self.line else "")
                )

    def release(self) -> None:
        """Let go of everything that only one backward needs."""
        self.vjp, self.inputs, self.saved, self.given = None, None, (), ()


def saved_arrays(function: Any) -> Iterator[Any]:
    """The arrays that a vjp closes over: what the graph keeps alive for it."""
    for cell in getattr(function, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:  # a cell that is not filled yet
            continue
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, np.ndarray | np.generic) or hasattr(item, "__record_call__"):
                yield item
            elif hasattr(item, "__closure__"):
                yield from saved_arrays(item)


def _parent(arg: Any) -> Any:
    """The node that made a tensor, or the tensor itself where it is a leaf, or None for a constant."""
    if not getattr(arg, "requires_grad", False):
        return None
    return arg._node or arg


def root(array: Any) -> Any:
    """The array whose memory a view shows."""
    while isinstance(array.base, np.ndarray) or hasattr(array.base, "__record_call__"):
        array = array.base
    return array


def _versions(saved: list[Any], tensors: tuple[Any, ...]) -> tuple[tuple[Version, int], ...]:
    """(version, count now) of each of the tensors whose memory the vjp closes over."""
    roots = {id(root(a)) for a in saved if not isinstance(a, np.generic)}
    return tuple([(t._version, t._version.count) for t in tensors if hasattr(t, "_version") and id(root(t._array)) in roots])
