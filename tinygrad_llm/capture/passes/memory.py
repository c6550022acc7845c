"""plan_memory: buffers that are not needed at the same time share memory, and a result takes the place of an operand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tinygrad_llm.capture.ir import Buffer, Call, Loop, Rows, View
from tinygrad_llm.capture.passes.calls import renamed
from tinygrad_llm.capture.passes.tiles import same_rows
from tinygrad_llm.capture.program import Program
from tinygrad_llm.capture.replay import ALIGNMENT

Life = dict[Buffer, tuple[int, int]]


def plan_memory(program: Program) -> Program:
    """In place where an operand is used for the last time; then every buffer gets a place in one piece of memory."""
    program = _in_place(program)
    lives = {b: life for b, life in lifetimes(program).items() if b.kind in ("temp", "tile")}
    places: dict[Buffer, int] = {}
    placed: list[tuple[Buffer, int, int, int]] = []
    for buffer in sorted(lives, key=lambda b: (-b.nbytes, lives[b])):
        first, last = lives[buffer]
        taken = [(at, at + b.nbytes) for b, at, start, end in placed if start <= last and first <= end]
        places[buffer] = _first_gap(taken, buffer.nbytes)
        placed.append((buffer, places[buffer], first, last))
    arena = max((at + b.nbytes for b, at in places.items()), default=0)
    return dataclasses.replace(program, places=places, arena=arena)


def lifetimes(program: Program) -> Life:
    """(first, last) call that touches each buffer. In a loop, only the rows of one turn live shorter than the loop."""
    lives: Life = {}
    for first, last, calls in _stretches(program):
        for i, call in enumerate(calls):
            for buffer in call.buffers():
                start, end = (first + i, first + i) if buffer.kind == "tile" else (first, last)
                before = lives.get(buffer, (start, end))
                lives[buffer] = min(before[0], start), max(before[1], end)
    return lives


def _stretches(program: Program) -> Iterable[tuple[int, int, list[Call]]]:
    """(number of the first call, of the last, the calls) of each loop, and of each call outside of one."""
    number = 0
    for item in program.calls:
        calls = item.calls if isinstance(item, Loop) else [item]
        yield number, number + len(calls) - 1, calls
        number += len(calls)


def _in_place(program: Program) -> Program:
    """Results that take the memory of an operand. Rows of a loop do so where no other turn reads them."""
    last: dict[Buffer, int] = {}
    first: dict[Buffer, int] = {}
    for number, call in enumerate(program.flat()):
        for buffer in call.buffers():
            first.setdefault(buffer, number)
            last[buffer] = number
    same: dict[Buffer, Buffer] = {}
    number = 0
    items: list[Call | Loop] = []
    for item in program.calls:
        calls: list[Call] = []
        for call in item.calls if isinstance(item, Loop) else [item]:
            call = renamed(call, same)
            view = _reusable(call, number, first, last)
            if view is not None and (isinstance(item, Call) or _is_of_one_turn(view, [*calls, call])):
                assert call.out is not None
                old, new = call.out.buffer, view.buffer
                same[old], last[new] = new, last[old]
                call = renamed(call, same)
            calls.append(call)
            number += 1
        items.append(dataclasses.replace(item, calls=calls) if isinstance(item, Loop) else calls[0])
    return dataclasses.replace(program, calls=items)


def _reusable(call: Call, number: int, first: dict[Buffer, int], last: dict[Buffer, int]) -> View | None:
    """The operand whose memory a result may take: of a call element by element, or matrix by matrix."""
    out = call.out
    if call.kind not in ("ufunc", "apart") or out is None or first[out.buffer] != number:
        return None
    if out.buffer.kind not in ("temp", "tile") or not _fills(out):
        return None
    for view in call.reads:
        if (last[view.buffer] == number and _layout(view) == _layout(out)
                and all(other == view for other in call.reads if other.buffer is view.buffer)):
            return view
    return None


def _is_of_one_turn(place: View, calls: list[Call]) -> bool:
    """Whether each turn of a loop reads of a buffer only the rows that it may write over."""
    views = [v for call in calls for v in call.reads if v.buffer is place.buffer]
    return all(isinstance(v, Rows) and same_rows(v, place) for v in views)


def _layout(v: View) -> tuple[object, ...]:
    return v.buffer.kind, v.buffer.nbytes, type(v), v.offset, v.shape, v.strides, v.dtype.itemsize


def _fills(view: View) -> bool:
    return view.is_whole() or (view.buffer.kind == "tile" and view.size * view.dtype.itemsize >= view.buffer.nbytes)


def _first_gap(taken: list[tuple[int, int]], nbytes: int) -> int:
    """The lowest aligned offset with so many bytes free."""
    at = 0
    for start, end in sorted(taken):
        if start - at >= nbytes:
            break
        at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
    return at
