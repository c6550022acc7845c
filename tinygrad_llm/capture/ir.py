"""What a program is made of: calls of NumPy functions on parts of buffers.

    c = np.add(a, b)     →   Call(np.add, (View a, View b), out=View c)

A buffer is a piece of memory; a view is a part of one, as NumPy shows it: offset, shape, strides, dtype. What a call does
is all in it, so passes (tinygrad_llm.capture.passes) may change, move and drop calls.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_llm.autograd.modes import active_recorder, calling_line


class CaptureError(RuntimeError):
    """What was to be recorded cannot be: it depends on values, or NumPy was called in a way that leaves no trace.

    The recorder remembers the first, so that a function that goes on after it is refused all the same.

    line    file, number and text of the user's line
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        recorder, self.line = active_recorder(), ""
        if recorder is not None:
            self.line = calling_line()
            if getattr(recorder, "refused", self) is None:
                recorder.refused = self


def why_refused(error: Exception) -> str:
    """What a warning says of a function that cannot be captured, with the line that is to blame."""
    if not isinstance(error, CaptureError):
        return f"{type(error).__name__}: {error}"
    return f"{error}; {error.line}" if error.line else str(error)


_NUMBERS = itertools.count()


@dataclass(eq=False)
class Buffer:
    """A piece of memory.

    kind     "temp" (the program's own), "tile" (the rows of one turn of a loop), "input" (filled before a run), "output"
             (kept after it), "extern" (an array of somebody else: a weight, a constant)
    array    the memory of an extern buffer
    """

    nbytes: int
    kind: str = "temp"
    array: np.ndarray | None = None
    number: int = field(default_factory=lambda: next(_NUMBERS))


@dataclass(frozen=True)
class View:
    """A part of a buffer. offset and strides in bytes."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements; of a broadcast view, of what it repeats."""
        return self.dtype.itemsize * math.prod(n for n, s in zip(self.shape, self.strides) if s)

    def span(self) -> tuple[int, int]:
        """The bytes of the buffer between its first and its last element."""
        if not self.size:
            return self.offset, self.offset
        steps = [(n - 1) * s for n, s in zip(self.shape, self.strides)]
        return (self.offset + sum(s for s in steps if s < 0),
                self.offset + sum(s for s in steps if s > 0) + self.dtype.itemsize)

    def is_whole(self) -> bool:
        """Whether it shows each byte of its buffer once."""
        return self.nbytes == self.buffer.nbytes and self.size * self.dtype.itemsize == self.nbytes

    def at(self, buffer: Buffer) -> View:
        """The same part of another buffer."""
        return type(self)(buffer, self.offset, self.shape, self.strides, self.dtype)

    def is_contiguous(self) -> bool:
        """Whether its elements lie in row-major order without gaps."""
        return self.strides == c_strides(self.shape, self.dtype.itemsize) or self.size <= 1


class Rows(View):
    """A view whose first axis is that of the loop that it stands in: each turn sees its own rows.

    In a "tile" buffer, which holds the rows of one turn, they are always the first.
    """


def c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides of an array in row-major order, in bytes."""
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def fresh(shape: tuple[int, ...], dtype: np.dtype) -> View:
    """A new buffer as a row-major array."""
    nbytes = math.prod(shape) * dtype.itemsize
    return View(Buffer(nbytes), 0, shape, c_strides(shape, dtype.itemsize), dtype)


def whole_of(array: np.ndarray) -> View:
    """An array of somebody else that lies in memory without gaps, in row-major order."""
    return View(Buffer(array.nbytes, "extern", array), 0, array.shape, array.strides, array.dtype)


@dataclass(eq=False)
class Call:
    """One NumPy call.

    kind      "ufunc" (element by element), "reduce", "matmul" (any ufunc with core axes), "copy", "where", "index",
              "opaque", "apart" (opaque, but each matrix of the last two axes by itself), "check" (no result)
    args      views, and whatever else the function takes by position
    out       where the result goes; of a write in place, it is among the arguments too
    op, layer, line   where it comes from
    """

    function: Callable[..., Any]
    kind: str
    args: tuple[Any, ...]
    out: View | None
    options: dict[str, Any] = field(default_factory=dict)
    op: str = ""
    layer: str = ""
    line: str = ""

    def but(self, **changes: Any) -> Call:
        """A copy in which these attributes are others."""
        changed = object.__new__(Call)
        vars(changed).update(vars(self))
        vars(changed).update(changes)
        vars(changed).pop("reads", None)
        return changed

    @functools.cached_property
    def reads(self) -> list[View]:
        """The views among its arguments."""
        return [a for a in self.args if isinstance(a, View)]

    def buffers(self) -> Iterator[Buffer]:
        """All that it touches."""
        own = [view.buffer for view in self.reads]
        return iter(own if self.out is None else [*own, self.out.buffer])

    @property
    def name(self) -> str:
        """The function's name, as NumPy has it."""
        owner = getattr(self.function, "__self__", None)
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{owner.__name__}.{name}" if isinstance(owner, np.ufunc) else name

    @property
    def flops(self) -> int:
        """2 for each multiply-add of a product, 1 for each element of anything else but moves."""
        if self.out is None or self.kind in ("copy", "index", "opaque"):
            return 0
        if self.kind == "matmul":
            return 2 * self.out.size * self.reads[0].shape[-1]
        return max(view.size for view in (*self.reads, self.out))

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(view.nbytes for view in self.reads) + (self.out.nbytes if self.out else 0)


@dataclass(eq=False)
class Loop:
    """Calls on `rows` rows, made for `step` rows at a time: all of them for the first ones, then for the next."""

    rows: int
    step: int
    calls: list[Call]
