"""row_tiles: runs of calls that treat each row by itself are made for a few rows at a time, which stay in the cache.

    a = x − m      b = a · a      c = a · s        for rows 0 … 127, then for 128 … 255, …

What lies between the calls of such a run, and is used nowhere else, needs memory for the rows of one turn only. Products of
two matrices are left alone: BLAS works best on all rows at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from typing import Any

import numpy as np

from tinygrad_llm.capture.ir import Buffer, Call, Loop, Rows, View
from tinygrad_llm.capture.program import Program

TILE = 2**20
"""Bytes of an array that one turn of a loop touches: about a core's second-level cache; less makes more calls."""

REACH = 24
"""How far ahead a run looks for its next call: what is made long before it is used takes memory all that time."""


def row_tiles(program: Program, tile: int = TILE) -> Program:
    """The program with loops over rows."""
    if not any(_is_larger(view, tile) for call in program.flat() for view in (call.out, *call.reads)):
        return program  # a loop would have one turn
    pending = list(program.calls)
    rows = [_row_forms(call) if isinstance(call, Call) else {} for call in pending]
    counts = {count for forms in rows for count in forms}
    for forms in rows:
        forms |= _coarser(forms, counts)
    items: list[Call | Loop] = []
    placed = [False] * len(pending)
    for i, call in enumerate(pending):
        if placed[i]:
            continue
        group, count = _best_group(pending, rows, placed, i, tile)
        for j in group:
            placed[j] = True
        items.append(_loop([rows[j][count] for j in group], count, tile) if len(group) > 1 else call)
        placed[i] = True
    return _with_tile_buffers(dataclasses.replace(program, calls=items))


def _is_larger(view: View | None, tile: int) -> bool:
    return view is not None and view.size * view.dtype.itemsize > tile


# Row forms -----------------------------------------------------------------------------------------------------------


def _row_forms(call: Call) -> dict[int, Call]:
    """For each number of rows that the call can be split into: the call with these rows as its first axis."""
    if call.out is None or call.kind not in ("ufunc", "copy", "where", "reduce", "matmul", "apart") or depends_on_layout(call):
        return {}
    forms: dict[int, Call] = {}
    for lead in range(1, call.out.ndim + 1):
        rows = math.prod(call.out.shape[:lead])
        if rows > 1 and (form := _row_form(call, lead, rows)) is not None:
            forms[rows] = form
    return forms


def depends_on_layout(call: Call) -> bool:
    """Whether the loop that NumPy takes for a ufunc, and with it a bit of the result, depends on the layout of the whole: the
    last one of a logarithm or a power that is read from the end, the sign of fmax and fmin of both zeros."""
    return call.kind == "ufunc" and (call.function in (np.fmax, np.fmin) or any(s < 0 for v in call.reads for s in v.strides))


def _row_form(call: Call, lead: int, rows: int) -> Call | None:
    assert call.out is not None
    core, options = 0, call.options
    if call.kind == "reduce":
        if any(axis < lead for axis in options["axis"]) or not _is_reduced_by_row(call, lead):
            return None
        options = options | {"axis": tuple([axis - lead + 1 for axis in options["axis"]])}
    elif call.kind in ("matmul", "apart"):
        core = _core_axes(call)
        if lead > call.out.ndim - core:
            return None
    depth = (call.reads[0].ndim if call.kind == "reduce" else call.out.ndim) - lead
    out = _as_rows(call.out, call.out.shape[:lead], rows, call.out.ndim - lead)
    args = [_argument(call, a, lead, rows, depth, core) for a in call.args]
    if not isinstance(out, Rows) or None in args:
        return None
    return call.but(args=tuple([a for (a,) in args]), out=out, options=options)  # type: ignore[misc]


def _is_reduced_by_row(call: Call, lead: int) -> bool:
    """Whether a row alone is added up in the same order as among others: its elements lie closer together than rows do, and
    NumPy converts none, which it does some thousand at a time."""
    x, out = call.reads[0], call.out
    assert out is not None
    within = max((abs(x.strides[axis]) for axis in call.options["axis"] if x.shape[axis] > 1), default=0)
    return (all(abs(s) >= within for n, s in zip(x.shape[:lead], x.strides) if n > 1)
            and (x.dtype == out.dtype or out.dtype.kind != "f"))


def _coarser(forms: dict[int, Call], counts: set[int]) -> dict[int, Call]:
    """The call with fewer rows, of several each, for numbers of rows that other calls have: 2048 rows are 32 times 64."""
    found: dict[int, Call] = {}
    for count in counts - forms.keys():
        finest = min((n for n in forms if n % count == 0), default=0)
        if finest:
            found[count] = _split(forms[finest], count, finest // count)
    return found


def _split(form: Call, rows: int, each: int) -> Call:
    def split(x: Any) -> Any:
        if not isinstance(x, Rows):
            return x
        return Rows(x.buffer, x.offset, (rows, each, *x.shape[1:]), (x.strides[0] * each, *x.strides), x.dtype)

    options = form.options
    if form.kind == "reduce":
        options = options | {"axis": tuple([axis + 1 for axis in options["axis"]])}
    return form.but(args=tuple([split(a) for a in form.args]), out=split(form.out), options=options)


def _core_axes(call: Call) -> int:
    """How many of the result's axes are not looped over."""
    assert call.out is not None
    return 2 if call.kind == "apart" else {"matmul": 2, "vecdot": 0}.get(call.name, call.out.ndim)


def _argument(call: Call, a: Any, lead: int, rows: int, depth: int, core: int) -> tuple[Any] | None:
    """The argument for some rows, in a tuple; None where it cannot be split."""
    assert call.out is not None
    if not isinstance(a, View):
        return (a,)
    if call.kind == "matmul":
        own = {"matmul": 2, "vecdot": 1}[call.name]
        if a.ndim < own:
            return None
        depth = call.out.ndim - core - lead + own
    found = _as_rows(a, call.out.shape[:lead], rows, depth)
    return None if found is None else (found,)


def _as_rows(view: View, lead: tuple[int, ...], rows: int, depth: int) -> View | None:
    """A view with its axes before the last `depth` as rows; as it is where it has none of them; None where it has but some."""
    extra = view.ndim - depth
    if extra <= 0 or all(n == 1 for n in view.shape[:extra]):
        start = max(extra, 0)
        return View(view.buffer, view.offset, view.shape[start:], view.strides[start:], view.dtype)
    if extra > len(lead) or (1,) * (len(lead) - extra) + view.shape[:extra] != lead:
        return None
    axes = [(n, s) for n, s in zip(view.shape[:extra], view.strides[:extra]) if n != 1]
    if any(outer[1] != inner[0] * inner[1] for outer, inner in itertools.pairwise(axes)):
        return None
    return Rows(view.buffer, view.offset, (rows, *view.shape[extra:]), (axes[-1][1], *view.strides[extra:]), view.dtype)


# Groups --------------------------------------------------------------------------------------------------------------


def _best_group(
    calls: list[Any], rows: list[dict[int, Call]], placed: list[bool], first: int, tile: int
) -> tuple[list[int], int]:
    """The longest run that starts with a call, and its number of rows; the call alone where none is worth a loop."""
    best: tuple[list[int], int] = [first], 0
    for count in sorted(rows[first], reverse=True):
        if _step(rows[first][count], tile) >= count:
            continue
        group = _group(calls, rows, placed, first, count)
        if len(group) > len(best[0]):
            best = group, count
    return best


def _group(calls: list[Any], rows: list[dict[int, Call]], placed: list[bool], first: int, count: int) -> list[int]:
    """The calls after `first` that can be made together with it: split alike, on what it has, past what they do not need."""
    group = [first]
    known = set(calls[first].buffers())
    read: set[Buffer] = set()
    written: set[Buffer] = set()
    whole = {v.buffer for v in _invariant(rows[first][count])}
    if _crosses(rows[first][count], [], rows, count, whole):
        return group
    for j in range(first + 1, len(calls)):
        if placed[j]:
            continue
        if j > group[-1] + REACH:
            break
        call, form = calls[j], rows[j].get(count)
        touched = set(call.buffers())
        if (form is not None and call.out is not None and touched & known and not touched & written
                and call.out.buffer not in read and not _crosses(form, group, rows, count, whole)):
            group.append(j)
            known |= touched
            whole |= {v.buffer for v in _invariant(form)}
        else:
            read |= {v.buffer for v in call.reads}
            written |= {call.out.buffer} if call.out is not None else set()
    return group


def _invariant(form: Call) -> list[View]:
    return [v for v in form.reads if not isinstance(v, Rows)]


def _crosses(form: Call, group: list[int], rows: list[dict[int, Call]], count: int, whole: set[Buffer]) -> bool:
    """Whether one turn would see what another turn writes: a buffer read as a whole, or split in another way."""
    assert form.out is not None
    made = {rows[i][count].out.buffer for i in group}  # type: ignore[union-attr]
    if form.out.buffer in whole or any(v.buffer in made | {form.out.buffer} for v in _invariant(form)):
        return True
    own = [v for v in (*form.reads, form.out) if isinstance(v, Rows)]
    others = [v for i in group for v in (*rows[i][count].reads, rows[i][count].out) if isinstance(v, Rows)]
    written = made | {form.out.buffer}
    return any(not same_rows(a, b) for a in own for b in (*own, *others) if a.buffer is b.buffer and a.buffer in written)


def same_rows(a: View, b: View) -> bool:
    """Whether row i of one view shares no byte with row j ≠ i of the other: they are equal, or in step, and a row of both
    together is no longer than the step."""
    step = abs(a.strides[0])
    if a.strides[0] != b.strides[0]:
        return False
    if (a.offset, a.shape[1:], a.strides[1:]) == (b.offset, b.shape[1:], b.strides[1:]):
        return True
    spans = [View(v.buffer, v.offset, v.shape[1:], v.strides[1:], v.dtype).span() for v in (a, b)]
    return max(end for _, end in spans) - min(start for start, _ in spans) <= step


# Loops ---------------------------------------------------------------------------------------------------------------


def _step(form: Call, tile: int) -> int:
    """How many rows of its largest array fit into a tile."""
    largest = max(math.prod(v.shape[1:]) * v.dtype.itemsize for v in (*form.reads, form.out) if isinstance(v, Rows))
    return max(1, tile // max(largest, 1))


def _loop(forms: list[Call], rows: int, tile: int) -> Loop:
    step = min(_step(form, tile) for form in forms)
    return Loop(rows, -(-rows // -(-rows // step)), forms)


def _with_tile_buffers(program: Program) -> Program:
    """Buffers that live in one turn of a loop hold the rows of one turn."""
    users: dict[Buffer, set[int]] = defaultdict(set)
    for i, item in enumerate(program.calls):
        for call in item.calls if isinstance(item, Loop) else [item]:
            for buffer in call.buffers():
                users[buffer].add(i)
    items: list[Call | Loop] = []
    for item in program.calls:
        items.append(_local(item, users) if isinstance(item, Loop) else item)
    return dataclasses.replace(program, calls=items)


def _local(loop: Loop, users: dict[Buffer, set[int]]) -> Loop:
    views: dict[Buffer, list[View]] = defaultdict(list)
    for call in loop.calls:
        for view in (*call.reads, *([call.out] if call.out else [])):
            views[view.buffer].append(view)
    small = {b: Buffer(b.nbytes // loop.rows * loop.step, "tile") for b, seen in views.items()
             if b.kind == "temp" and len(users[b]) == 1 and all(_is_row_of(v, loop.rows) for v in seen)}

    def shrunk(x: Any) -> Any:
        if not isinstance(x, View) or x.buffer not in small:
            return x
        return Rows(small[x.buffer], x.offset, (loop.step, *x.shape[1:]), x.strides, x.dtype)

    calls = [c.but(args=tuple([shrunk(a) for a in c.args]), out=shrunk(c.out)) for c in loop.calls]
    return dataclasses.replace(loop, calls=calls)


def _is_row_of(view: View, rows: int) -> bool:
    """Whether the view's rows are those of its buffer, one after another."""
    return isinstance(view, Rows) and view.strides[0] * rows == view.buffer.nbytes and view.offset < view.strides[0]
