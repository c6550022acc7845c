"""The sum of all workers' gradients in one memory: worker 0 writes it, worker 1 adds its own, ..., piece by piece.

    worker 0   ── W3's gradient ──▶ written │ ── W2's ──▶ written │ ...
    worker 1   ──── W3's ──── waits for its turn ──▶ added │ ──── W2's ──▶ added │ ...

Each sum is added up in the order of the workers, so that its bits are the same every time; and a worker needs memory for
the pieces of the moment, not for a gradient of its own. A piece is a parameter's gradient, or, where a program makes that
in several calls on rows apart, the rows of one of them.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tinygrad_llm.capture.ir import Buffer, Call, Loop, View, c_strides
from tinygrad_llm.capture.passes.calls import renamed
from tinygrad_llm.capture.program import Program
from tinygrad_llm.ops.nn import ADD_ROWS, sums_of_rows

_PIECE = struct.Struct("qq")
_END = _PIECE.pack(0, 0)
Span = tuple[int, int]
"""First byte, and the byte after the last, counted from the start of the sum."""


class Sum:
    """The sum, as one worker sees it.

    arrays          a parameter's place in it, of each parameter; all lie in one memory
    before, after   pipes: from the worker before, which says what it is done with, and to the one after; None: there is none
    """

    def __init__(self, arrays: Sequence[np.ndarray], before: Connection | None = None, after: Connection | None = None) -> None:
        self.arrays, self.before, self.after = arrays, before, after
        self.start = min((_address(a) for a in arrays), default=0)
        self.ready: dict[int, int] = {}  # first byte → end of each piece that the worker before is done with
        self.all_ready = before is None

    @property
    def is_first(self) -> bool:
        """Whether this worker writes what the others add to."""
        return self.before is None

    def span(self, array: np.ndarray) -> Span:
        """Where a contiguous part of it lies."""
        start = _address(array) - self.start
        return start, start + array.nbytes

    def add(self, part: np.ndarray | float, out: np.ndarray) -> None:
        """Add to a part of the sum when its turn has come; the first writes it."""
        self.wait(self.span(out))
        if self.is_first:
            np.copyto(out, part)
        else:
            np.add(out, part, out=out)
        self.done(self.span(out))

    def add_rows(self, x: np.ndarray, ids: np.ndarray, rows: int, out: np.ndarray) -> None:
        """add(add_rows(x, ids, rows), out), which reads and writes no other rows than ids name; a −0 elsewhere stays one."""
        index, sums = sums_of_rows(x, ids, rows)
        self.wait(self.span(out))
        out[index] += sums
        self.done(self.span(out))

    def wait(self, piece: Span) -> None:
        """Until the worker before is done with a piece."""
        while not (self.all_ready or self.ready.get(piece[0]) == piece[1] or self._covers(piece)):
            self._receive()

    def done(self, piece: Span) -> None:
        """Tell the worker after."""
        if self.after is not None:
            self.after.send_bytes(_PIECE.pack(*piece))

    def finish(self) -> None:
        """The worker before is done with everything, and so is this one: the end of its part in a step."""
        while not self.all_ready:
            self._receive()
        if self.after is not None:
            self.after.send_bytes(_END)
        self.ready.clear()
        self.all_ready = self.is_first

    def _receive(self) -> None:
        assert self.before is not None
        message = self.before.recv_bytes()
        start, stop = _PIECE.unpack(message)
        self.ready[start] = stop
        self.all_ready = message == _END

    def _covers(self, piece: Span) -> bool:
        """Whether pieces that are ready, cut elsewhere, make up this one."""
        shared = [min(stop, piece[1]) - max(start, piece[0]) for start, stop in self.ready.items()]
        return sum(n for n in shared if n > 0) == piece[1] - piece[0]


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


# Programs -------------------------------------------------------------------------------------------------------------


class SumCall:
    """What a program calls of a sum, by the name it is listed under."""

    def __init__(self, name: str, function: Callable[..., None]) -> None:
        self.__name__, self.function = name, function

    def __call__(self, *args: Any, **options: Any) -> None:
        self.function(*args, **options)


def told(program: Program, found: Mapping[int, int], total: Sum) -> Program:
    """The program, which writes the sum itself, with a word to the worker after as soon as a piece is done.

    found    parameter → output of the program; the program is not planned yet
    """
    items = list(program.calls)
    spans: dict[int, list[Span]] = {}
    for i, output in found.items():
        start = total.span(total.arrays[i])[0]
        for at, view in _pieces(items, program.outputs[output]).items():
            spans.setdefault(at, []).append((start + view.offset, start + view.offset + view.nbytes))
    calls: list[Call | Loop] = []
    for at, item in enumerate(items):
        calls.append(item)
        calls += [Call(SumCall("done", total.done), "check", (span,), None, op="sum of workers") for span in spans.get(at, ())]
    return dataclasses.replace(program, calls=calls)


def added(program: Program, found: Mapping[int, int], total: Sum) -> Program:
    """The program with its gradients in memory of the moment, from where each piece is added to the sum; of an embedding, the
    rows that the batch has taken, without the zeros of all the others."""
    items, outputs = list(program.calls), list(program.outputs)
    moved: dict[Buffer, Buffer] = {}
    additions: dict[int, list[Call]] = {}
    for i, output in found.items():
        whole = program.outputs[output]
        place = Buffer(whole.buffer.nbytes, "extern", total.arrays[i].reshape(-1).view(np.uint8))
        for at, view in _pieces(items, whole).items():
            item = items[at]
            if isinstance(item, Call) and item.function is ADD_ROWS and item.out == whole and not _is_read(items, whole.buffer):
                items[at] = dataclasses.replace(item, function=SumCall("add_rows_in_turn", total.add_rows),
                                                out=dataclasses.replace(whole, buffer=place))
                continue
            if view is whole:
                source = dataclasses.replace(whole, buffer=moved.setdefault(whole.buffer, Buffer(whole.buffer.nbytes)))
            else:
                assert isinstance(item, Call)
                source = View(Buffer(view.nbytes), 0, view.shape, c_strides(view.shape, view.dtype.itemsize), view.dtype)
                items[at] = dataclasses.replace(item, out=source)
            target = dataclasses.replace(view, buffer=place)
            additions.setdefault(at, []).append(
                Call(SumCall("add_in_turn", total.add), "opaque", (source,), target, op="sum of workers"))
        outputs[output] = dataclasses.replace(whole, buffer=place)
    calls: list[Call | Loop] = []
    for at, item in enumerate(items):
        calls.append(renamed(item, moved) if isinstance(item, Call)
                     else dataclasses.replace(item, calls=[renamed(c, moved) for c in item.calls]))
        calls += additions.get(at, [])
    return dataclasses.replace(program, calls=calls, outputs=outputs)


def _pieces(items: Sequence[Call | Loop], whole: View) -> dict[int, View]:
    """Number of a call → what of an output is finished by it: its rows, or else, by the last call, the whole."""
    writers = [at for at, item in enumerate(items) if any(_writes(call, whole.buffer) for call in _calls(item))]
    views = [item.out for at in writers if isinstance(item := items[at], Call) and item.out is not None]
    apart = len(views) == len(writers) > 1 and all(view.is_contiguous() for view in views)
    if apart and not _is_read(items, whole.buffer):
        spans = sorted(view.span() for view in views)
        ends = [0, *[end for _, end in spans]]
        if [start for start, _ in spans] == ends[:-1] and ends[-1] == whole.buffer.nbytes:
            return dict(zip(writers, views))
    return {writers[-1]: whole}


def _calls(item: Call | Loop) -> Sequence[Call]:
    return item.calls if isinstance(item, Loop) else [item]


def _is_read(items: Sequence[Call | Loop], buffer: Buffer) -> bool:
    return any(view.buffer is buffer for item in items for call in _calls(item) for view in call.reads)


def _writes(call: Call, buffer: Buffer) -> bool:
    return call.out is not None and call.out.buffer is buffer
