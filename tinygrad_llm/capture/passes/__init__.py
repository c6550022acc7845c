"""Passes: each takes the calls of a program and returns calls that do the same with less."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tinygrad_llm.capture.program import Program

Pass = Callable[[Program], Program]
DEFAULT: tuple[Pass, ...] = ()


def optimize(program: Program, passes: Sequence[Pass]) -> Program:
    """The program after every pass, in order."""
    for improve in passes:
        program = improve(program)
    return program
