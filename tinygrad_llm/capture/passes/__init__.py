"""Passes: each takes a program and returns one that does the same with less.

Those of EXACT keep every bit of the results; a program improved by them is compared with the recorded function as it is.
FAST has, among them, those that change the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinygrad_llm.capture.passes.calls import common_calls, dead_calls, sink_copies
from tinygrad_llm.capture.passes.dense import dense_operands
from tinygrad_llm.capture.passes.memory import plan_memory
from tinygrad_llm.capture.passes.peepholes import peepholes
from tinygrad_llm.capture.passes.recompute import recompute
from tinygrad_llm.capture.passes.tiles import row_tiles
from tinygrad_llm.capture.program import Program

__all__ = ["DEFAULT", "EXACT", "FAST", "Pass", "common_calls", "dead_calls", "dense_operands", "optimize", "peepholes",
           "plan_memory", "recompute", "row_tiles", "sink_copies"]

Pass = Callable[[Program], Program]
FAST: tuple[Pass, ...] = (
    dead_calls, common_calls, sink_copies, recompute, row_tiles, peepholes, dense_operands, plan_memory)
EXACT = tuple(improve for improve in FAST if improve is not peepholes)
DEFAULT = EXACT


def optimize(program: Program, passes: Sequence[Pass] = DEFAULT) -> Program:
    """The program after every pass, in order."""
    for improve in passes:
        program = improve(program)
    return program
