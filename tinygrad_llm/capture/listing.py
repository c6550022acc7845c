"""A program as text, one call a line, and in numbers."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tinygrad_llm.capture.ir import Buffer, Call, Loop, Rows, View
from tinygrad_llm.capture.kernels import Hole

if TYPE_CHECKING:
    from tinygrad_llm.capture.program import Program

_DTYPES = {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "bool": "bool"}


def listing(program: Program) -> str:
    """A line for each call:   result [shape] at its place = function(arguments)    bytes    op    layer

    %3 is a buffer, +64 a part of it that starts 64 bytes in, @4096 its place in the program's memory; two buffers at one
    place live at different times. A line in a loop shows the rows of all turns; ~3 holds the rows of one turn.
    """
    names = _Names(program)
    lines = [f"inputs   {', '.join(names.of(v) for v in program.inputs)}"]
    for item in program.calls:
        if isinstance(item, Loop):
            lines.append(f"for rows in 0 … {item.rows}, {item.step} at a time:")
            lines += ["    " + _line(call, names) for call in item.calls]
        else:
            lines.append(_line(item, names))
    lines.append(f"outputs  {', '.join(names.of(v) for v in program.outputs)}")
    return "\n".join(lines)


def _line(call: Call, names: _Names) -> str:
    args = ", ".join([names.of(a) for a in call.args] + [f"{k}={_shown(v)}" for k, v in call.options.items()])
    text = f"{call.name}({args})"
    if call.out is not None:
        text = f"{names.defined(call.out)} = {text}"
    return f"{text:<96} {call.bytes:>12,} B  {call.op:<16} {call.layer}".rstrip()


class _Names:
    """Short names for buffers, in the order in which they appear."""

    def __init__(self, program: Program) -> None:
        self.places = program.places
        self.numbers: dict[Buffer, int] = {}

    def of(self, x: Any) -> str:
        """An argument: a view by its buffer, with its shape where it is not the whole of it."""
        if not isinstance(x, View):
            return _shown(x)
        name = self._buffer(x.buffer) + (f"+{x.offset}" if x.offset else "")
        return name + ("" if x.is_contiguous() and x.nbytes == x.buffer.nbytes else _layout(x))

    def defined(self, x: View) -> str:
        """A result, with dtype, shape and place."""
        place = f" @{self.places[x.buffer]}" if x.buffer in self.places else ""
        return f"{self.of(x)}: {_DTYPES.get(x.dtype.name, x.dtype.name)}{_shape(x.shape)}{place}"

    def _buffer(self, buffer: Buffer) -> str:
        number = self.numbers.setdefault(buffer, len(self.numbers))
        return {"temp": "%", "tile": "~", "input": "in", "output": "out", "extern": "ext"}[buffer.kind] + str(number)


def _layout(x: View) -> str:
    steps = [s // x.dtype.itemsize for s in x.strides]
    return _shape(x.shape) + ("" if x.is_contiguous() else f"/{_shape(tuple(steps))}")


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _shown(x: Any) -> str:
    if isinstance(x, float):
        return f"{x:.6g}"
    if isinstance(x, slice):
        return ":".join("" if v is None else str(v) for v in (x.start, x.stop)) + (f":{x.step}" if x.step else "")
    if isinstance(x, tuple) and any(isinstance(i, slice | Hole) for i in x):
        return "[" + ",".join(map(_shown, x)) + "]"
    return repr(x)


def stats(program: Program) -> dict[str, Any]:
    """flops of one run; bytes that its calls read and write, rows that stay in the cache for a turn of a loop counted once;
    calls; bytes of all buffers of its own, and of the memory that they share; bytes of inputs and outputs."""
    own: dict[Buffer, int] = {}
    for call in program.flat():
        own |= {b: b.nbytes for b in call.buffers() if b.kind in ("temp", "tile")}
    calls = list(program.flat())
    return {
        "calls": len(calls), "flops": sum(c.flops for c in _of_all_turns(program)), "bytes_moved": sum(c.bytes for c in calls),
        "buffers": len(own), "buffer_bytes": sum(own.values()), "arena_bytes": program.arena if program.places else None,
        "input_bytes": sum(v.nbytes for v in program.inputs), "output_bytes": sum(v.nbytes for v in program.outputs),
    }


def _of_all_turns(program: Program) -> Iterator[Call]:
    """The calls, those of loops with the rows of all turns."""

    def whole(x: Any, rows: int) -> Any:
        return dataclasses.replace(x, shape=(rows, *x.shape[1:])) if isinstance(x, Rows) else x

    for item in program.calls:
        if isinstance(item, Loop):
            for call in item.calls:
                args = tuple([whole(a, item.rows) for a in call.args])
                yield dataclasses.replace(call, args=args, out=whole(call.out, item.rows))
        else:
            yield item


def first_difference(program: Any, again: Any) -> str:
    """Where two recordings of one function part, in words; where they do not, a pass or a replay is to blame."""
    numbers: tuple[dict[Any, int], dict[Any, int]] = {}, {}
    before, now = list(program.flat()), list(again.flat())
    for old, new in zip(before, now):
        if (was := _outline(old, numbers[0])) != (is_now := _outline(new, numbers[1])):
            where = f" of {new.op}" * bool(new.op) + f" at {new.line}" * bool(new.line)
            return f"the first call that differs is {new.name}{where}, recorded as {was}, and now {is_now}"
    if len(before) != len(now):
        return f"it was recorded as {len(before)} calls, and makes {len(now)} now"
    return "its calls are the same as when it was recorded; a pass or the replay changed their bits"


def _outline(call: Any, numbers: dict[Any, int]) -> tuple[Any, ...]:
    """A call without what is another one in each recording: buffers by the order in which they come."""
    def shown(a: Any) -> Any:
        if not isinstance(a, View):
            return f"{type(a).__name__} {a!r}"[:80]
        number = numbers.setdefault(a.buffer, len(numbers))
        content = a.buffer.array.tobytes() if a.buffer.array is not None and a.buffer.nbytes < 4096 else b""
        return number, a.offset, a.shape, a.strides, str(a.dtype), zlib.crc32(content)

    return call.name, *map(shown, call.args), shown(call.out), tuple([(k, shown(v)) for k, v in sorted(call.options.items())])
