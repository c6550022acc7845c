"""recompute: what a cheap call makes for much later is made again then, where its operands are there anyway.

    n = x̂ · w               n = x̂ · w
    a = n @ A               a = n @ A
    ...            ──▶      ...                  n takes no memory while it takes the most
    d = n.T @ g             n' = x̂ · w
                            d = n'.T @ g

Of a call that is not read before, the place is later and nothing is made twice. The idea is gradient checkpointing's (Chen et
al. 2016, arXiv:1604.06174), for single calls; numbers are made by the same calls, to the same bits.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinygrad_llm.capture.ir import Buffer, Call
from tinygrad_llm.capture.passes.calls import renamed
from tinygrad_llm.capture.program import Program

LARGE = 64 * 2**20
"""Bytes below which a program is left as it is: passes over a cache's fill cost more than its memory is worth."""

DEPTH = 3
"""How many calls may have to be made again for one array."""

CHEAP = {np.add, np.subtract, np.multiply, np.negative, np.square, np.maximum, np.minimum, np.equal, np.not_equal, np.less,
         np.greater, np.less_equal, np.greater_equal, np.logical_not, np.logical_and, np.logical_or}


def recompute(program: Program, large: int = LARGE) -> Program:
    """The program with less memory at its peak, as long as that is more than `large`."""
    peak, best = _Uses(program.calls).peak(), program
    while peak[0] > large:
        program = dataclasses.replace(program, calls=_made_later(best.calls, peak[1]))
        lower = _Uses(program.calls).peak()
        if lower[0] >= peak[0]:
            break
        peak, best = lower, program
    return best


class _Uses:
    """Where the buffers of a list of calls are touched, and where written."""

    def __init__(self, calls: Sequence[Any]) -> None:
        self.calls: Sequence[Call] = calls
        self.touched: dict[Buffer, list[int]] = defaultdict(list)
        self.written: dict[Buffer, list[int]] = defaultdict(list)
        for at, call in enumerate(self.calls):
            for buffer in dict.fromkeys(call.buffers()):
                self.touched[buffer].append(at)
            if call.out is not None:
                self.written[call.out.buffer].append(at)

    def peak(self) -> tuple[int, int]:
        """(bytes in use at once, at most; by which call)."""
        change = [0] * (len(self.calls) + 1)
        for buffer, at in self.touched.items():
            if buffer.kind == "temp":
                change[at[0]] += buffer.nbytes
                change[at[-1] + 1] -= buffer.nbytes
        in_use = np.cumsum(change)
        return int(in_use.max()), int(in_use.argmax())

    def gap(self, buffer: Buffer, peak: int) -> tuple[int, int] | None:
        """The touches next to the peak on both sides, where it is not touched at the peak itself."""
        before = [i for i in self.touched[buffer] if i <= peak]
        after = self.touched[buffer][len(before) :]
        return (before[-1], after[0]) if buffer.kind == "temp" and before and after and before[-1] < peak else None

    def again(self, buffer: Buffer, peak: int, later: int, depth: int = DEPTH) -> list[int] | None:
        """The calls to be made just before `later` to have this buffer there; None where they cannot be, or cost too much."""
        if len(self.written[buffer]) != 1 or not depth:
            return None
        made = self.written[buffer][0]
        call = self.calls[made]
        if call.kind != "ufunc" or call.function not in CHEAP:
            return None
        wanted: list[int] = []
        for operand in {view.buffer for view in call.reads}:
            if not self._is_there(operand, made, peak, later):
                before = self.again(operand, peak, later, depth - len(wanted) - 1)
                if before is None:
                    return None
                wanted += before
        return [*wanted, made]

    def _is_there(self, buffer: Buffer, made: int, peak: int, later: int) -> bool:
        """Whether a buffer still holds at `later` what it held when a call read it."""
        if any(made < at < later for at in self.written[buffer]):
            return False
        return buffer.kind != "temp" or self.touched[buffer][-1] > peak


def _made_later(calls: Sequence[Any], peak: int) -> list[Any]:
    """The calls, with whatever can be made after the peak for what reads it there made there."""
    uses = _Uses(calls)
    extra: dict[int, list[Call]] = defaultdict(list)
    fresh: dict[Buffer, Buffer] = {}
    relied: set[Buffer] = set()
    gone: set[int] = set()
    for buffer in sorted(uses.touched, key=lambda b: -b.nbytes):
        gap = uses.gap(buffer, peak)
        wanted = uses.again(buffer, peak, gap[1]) if gap and buffer not in relied else None
        if not gap or not wanted:
            continue
        made = {calls[i].out.buffer: Buffer(calls[i].out.buffer.nbytes) for i in wanted}
        operands = {view.buffer for i in wanted for view in calls[i].reads} - made.keys()
        if operands & fresh.keys():  # to read one that is gone would keep it
            continue
        fresh[buffer] = made[buffer]
        relied |= operands
        extra[gap[1]] += [renamed(calls[i], made) for i in wanted]
        if uses.touched[buffer][0] == gap[0]:  # nobody has read it before
            gone.add(gap[0])
    result: list[Any] = []
    for at, call in enumerate(calls):
        later = {b: fresh[b] for b in call.buffers() if b in fresh and at > peak}
        result += extra.get(at, [])
        if at not in gone:
            result.append(renamed(call, later))
    return result
