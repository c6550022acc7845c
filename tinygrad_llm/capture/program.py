"""A program: one run of a function as the list of its NumPy calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tinygrad_llm.capture.ir import Buffer, Call, Loop, View
from tinygrad_llm.capture.listing import listing, stats


@dataclass(eq=False)
class Program:
    """The calls, with the views of what goes in and what comes out.

    places    where a buffer stands in the program's one piece of memory, `arena` bytes, in bytes from its start
    """

    calls: list[Call | Loop]
    inputs: list[View]
    outputs: list[View]
    places: dict[Buffer, int] = field(default_factory=dict)
    arena: int = 0

    def __str__(self) -> str:
        return listing(self)

    def stats(self) -> dict[str, Any]:
        """FLOPs, bytes moved, calls, buffers before and after planning; see tinygrad_llm.capture.listing.stats."""
        return stats(self)

    def flat(self) -> Iterator[Call]:
        """The calls, those of loops too."""
        for call in self.calls:
            if isinstance(call, Loop):
                yield from call.calls
            else:
                yield call
