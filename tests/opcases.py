"""Calls of ops drawn by Hypothesis, so that failures replay and shrink; the rules of drawing are reference.opdraw's."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from reference.opdraw import ANY, Call, Sizes, draw_call
from tinygrad_llm.ops import REGISTRY, Op

OPS = [REGISTRY[name] for name in sorted(REGISTRY)]


class Drawn:
    """Choices made by Hypothesis."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def bytes(self, n: int) -> bytes:
        return self.draw(st.binary(min_size=n, max_size=n))


def cases(op: Op, sizes: Sizes = ANY) -> st.SearchStrategy[Call]:
    """A Hypothesis strategy of calls of op."""
    return st.composite(lambda draw: draw_call(op, Drawn(draw), sizes))()
