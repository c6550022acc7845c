"""Passes on plain lists of calls, which take some away: what nobody reads, what is made twice, copies made for nothing."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from tinygrad_llm.capture.ir import Buffer, Call, View
from tinygrad_llm.capture.kernels import Hole
from tinygrad_llm.capture.passes.tiles import depends_on_layout
from tinygrad_llm.capture.program import Program


def dead_calls(program: Program) -> Program:
    """Calls whose result nothing needs go. Checks stay; so does a write into part of what is needed."""
    calls: list[Any] = program.calls
    needed = {view.buffer for view in program.outputs}
    kept = []
    for call in reversed(calls):
        if call.out is None or call.out.buffer in needed:
            needed |= set(call.buffers())
            kept.append(call)
    return dataclasses.replace(program, calls=kept[::-1])


def common_calls(program: Program) -> Program:
    """Of calls with the same function on the same arguments, the first serves all."""
    writers = writes(program)
    seen: dict[Any, View | None] = {}
    same: dict[Buffer, Buffer] = {}
    kept: list[Any] = []
    calls: list[Any] = program.calls
    for call in calls:
        call = renamed(call, same)
        key = _key(call)
        if not _is_pure(call, writers):
            kept.append(call)
        elif key in seen:
            if call.out is not None:
                same[call.out.buffer] = seen[key].buffer  # type: ignore[union-attr]
        else:
            seen[key] = call.out
            kept.append(call)
    return dataclasses.replace(program, calls=kept)


def _key(call: Call) -> tuple[Any, ...]:
    """Equal for calls that give the same in the same layout; numbers by their text, as 0.0 == -0.0 == False."""
    out = None if call.out is None else call.out.at(_ANY)
    return call.function, repr(call.options), out, *[a if isinstance(a, View) else (type(a), repr(a)) for a in call.args]


_ANY = Buffer(0)


def _is_pure(call: Call, writers: Counter[Buffer]) -> bool:
    """Whether it reads and writes nothing that another call writes: made twice, it gives the same."""
    if any(writers[v.buffer] > 1 for v in call.reads) or not all(map(_is_plain, (*call.args, *call.options.values()))):
        return False
    out = call.out
    return out is None or (out.buffer.kind == "temp" and out.is_whole() and writers[out.buffer] == 1)


def _is_plain(x: Any) -> bool:
    """Whether its text says all about it; an array's or a generator's does not."""
    if isinstance(x, tuple):
        return all(_is_plain(i) for i in x)
    return isinstance(x, View | int | float | np.generic | np.dtype | slice | str | Hole | type(None) | type(...))


def renamed(call: Call, same: dict[Buffer, Buffer]) -> Call:
    """The call with other buffers."""
    if same.keys().isdisjoint(call.buffers()):
        return call

    def rename(x: Any) -> Any:
        return x.at(same[x.buffer]) if isinstance(x, View) and x.buffer in same else x

    return call.but(args=tuple([rename(a) for a in call.args]), out=rename(call.out))


def writes(program: Program) -> Counter[Buffer]:
    """How many calls write into each buffer."""
    return Counter(call.out.buffer for call in program.flat() if call.out is not None)


def sink_copies(program: Program) -> Program:
    """Where all of an array is only copied elsewhere, whoever makes it writes there at once."""
    program = _without_whole_copies(program)
    calls: list[Any] = list(program.calls)
    writers = writes(program)
    readers = Counter(b for call in program.flat() for b in {v.buffer for v in call.reads})
    makers = {call.out.buffer: i for i, call in enumerate(calls) if call is not None and call.out is not None}
    for k, copy in enumerate(calls):
        if copy is None or copy.kind != "copy" or not isinstance(copy.args[0], View):
            continue
        source = copy.args[0].buffer
        made = makers.get(source)
        if made is None or source.kind != "temp" or writers[source] != 1 or readers[source] != 1 or not copy.args[0].is_whole():
            continue
        maker = calls[made]
        place = _redirected(maker, copy)
        if place is not None and not _disturbed(calls[made:k], place):
            calls[made], calls[k] = maker.but(out=place), None
            if writers[place.buffer] == 1:
                makers[place.buffer] = made
    return dataclasses.replace(program, calls=[call for call in calls if call is not None])


def _without_whole_copies(program: Program) -> Program:
    """A buffer that many calls write, and that is at last copied as a whole into one of the same layout, is that one."""
    calls: list[Any] = list(program.calls)
    writers = writes(program)
    last = {call.out.buffer: k for k, call in enumerate(calls) if call.out is not None}
    same: dict[Buffer, Buffer] = {}
    for k, copy in enumerate(calls):
        if copy.kind != "copy" or not isinstance(copy.args[0], View):
            continue
        source, target = copy.args[0], copy.out
        alike = source.is_whole() and source.at(target.buffer) == target
        if (alike and source.buffer.kind == "temp" and source.buffer not in same and writers[target.buffer] == 1
                and last.get(source.buffer, k) < k):
            same[source.buffer], calls[k] = target.buffer, None
    for buffer in reversed(same):  # of a copy of a copy
        same[buffer] = same.get(same[buffer], same[buffer])
    return dataclasses.replace(program, calls=[renamed(call, same) for call in calls if call is not None])


def _redirected(maker: Call | None, copy: Call) -> View | None:
    """Where the maker must write so that the copy is not needed; None where it cannot."""
    assert maker is not None
    assert maker.out is not None
    assert copy.out is not None
    made, source, target = maker.out, copy.args[0], copy.out
    if made.dtype != target.dtype or maker.kind == "check" or any(v.buffer is target.buffer for v in maker.reads):
        return None
    strides = _permuted(made, source, target) or _reshaped(made, source, target)
    if strides is None or not _suits(maker, strides, made):
        return None
    return dataclasses.replace(target, shape=made.shape, strides=strides)


def _permuted(made: View, source: View, target: View) -> tuple[int, ...] | None:
    """The target's strides in the order of the maker's axes, where the source has the same axes in any order, and the
    copy repeats none."""
    if made.offset != source.offset or source.shape != target.shape:
        return None
    axes = {s: t for n, s, t in zip(source.shape, source.strides, target.strides) if n != 1}
    sizes = {s: n for n, s in zip(source.shape, source.strides) if n != 1}
    own = {s: n for n, s in zip(made.shape, made.strides) if n != 1}
    if own != sizes:
        return None
    return tuple([axes[s] if n != 1 else made.dtype.itemsize for n, s in zip(made.shape, made.strides)])


def _reshaped(made: View, source: View, target: View) -> tuple[int, ...] | None:
    """The target's strides under the maker's shape, where both show the source in row-major order."""
    if not (made.is_contiguous() and source.is_contiguous()):
        return None
    dummy = np.lib.stride_tricks.as_strided(np.empty(1, target.dtype), target.shape, target.strides)
    try:
        return dummy.reshape(made.shape, copy=False).strides
    except ValueError:
        return None


def _suits(maker: Call, strides: tuple[int, ...], made: View) -> bool:
    """Whether the maker works as fast, and to the same bits, with such strides: the last axis must be without gaps."""
    unit = made.dtype.itemsize
    last = [(n, s) for n, s in zip(made.shape, strides) if n != 1]
    if not last:
        return True
    if strides != made.strides and depends_on_layout(maker):
        return False
    if maker.kind == "reduce" and _order(made.strides, made.shape) != _order(strides, made.shape):
        return False  # NumPy would add up in another order
    if maker.function is np.matmul and made.ndim >= 2:
        return strides[-1] == unit and strides[-2] >= unit * made.shape[-1]
    return last[-1][1] == unit


def _order(strides: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    return sorted([i for i, n in enumerate(shape) if n != 1], key=lambda i: -abs(strides[i]))


def _disturbed(between: list[Call | None], place: View) -> bool:
    """Whether a call after the maker, and before the copy, touches the place."""
    low, high = place.span()
    for call in between[1:]:
        for view in () if call is None else (*call.reads, *([call.out] if call.out else [])):
            if view.buffer is place.buffer:
                start, end = view.span()
                if start < high and low < end and not _disjoint(view, place):
                    return True
    return False


def _disjoint(a: View, b: View) -> bool:
    """Whether two views of the same strides, interleaved in memory, share no byte."""
    if a.strides != b.strides or a.shape != b.shape or not a.size:
        return False
    gap, runs = abs(a.offset - b.offset), sorted((s, n) for n, s in zip(a.shape, a.strides) if n > 1)
    width = a.dtype.itemsize
    for stride, n in runs:
        if stride > width:  # the views repeat every `stride` bytes from here on, each `width` bytes wide
            return width <= gap % stride <= stride - width
        width = stride * n
    return gap >= width


