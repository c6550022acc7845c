"""How many threads BLAS uses: one while products are small.

At each product OpenBLAS's threads wait for each other in a loop. Where another program keeps a core busy, one of them waits for
its turn, and a training step takes 2.2 to 3.2 times as long (docs/decisions.md).
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

WORTH_SHARING = 4_000_000
"""Multiply-adds of a product below which a second thread saves less than a sixth of a step where nothing else runs."""

LEAST_ROWS = 16
"""A product with fewer rows takes as long as with so many: its time is that of reading the matrix."""


def mean_size(parameters: Iterable[Any]) -> float:
    """Numbers in a matrix of a model, in the mean: what a product of one row multiplies."""
    sizes = [p.size for p in parameters if p.ndim > 1]
    return sum(sizes) / len(sizes) if sizes else 0.0


def suited_to(size: float, rows: int) -> AbstractContextManager[None]:
    """Inside the block one thread, if products of `rows` rows with matrices of `size` numbers are small; then as before."""
    return _ONE if size * max(rows, LEAST_ROWS) < WORTH_SHARING else _AS_IT_IS


def one() -> AbstractContextManager[None]:
    """One thread inside the block, and after it as many as before. Blocks may overlap, in other threads too.

    A limit of threadpoolctl's own that another thread sets meanwhile, and keeps for longer, takes the one for what was before.
    """
    return _ONE


class _One(AbstractContextManager[None]):
    """A block; without a state of its own, so that there need be but one."""

    def __enter__(self) -> None:
        _LIMIT.enter()

    def __exit__(self, *exception: object) -> None:
        _LIMIT.leave()


_ONE, _AS_IT_IS = _One(), nullcontext()


class _Limit:
    """Counts the blocks: the first to begin takes the threads away, the last to end gives them back."""

    def __init__(self) -> None:
        self.lock, self.blocks = threading.Lock(), 0
        self.before: list[tuple[Any, int]] = []

    def enter(self) -> None:
        with self.lock:
            if self.blocks == 0:
                self.before = [(library, n) for library in _libraries() if (n := library.get_num_threads()) and n > 1]
                for library, _ in self.before:
                    _set(library, 1)
            self.blocks += 1

    def leave(self) -> None:
        with self.lock:
            if self.blocks == 0:  # a block that began before a fork
                return
            self.blocks -= 1
            if self.blocks == 0:
                self.give_back()

    def give_back(self) -> None:
        for library, n in self.before:
            if library.get_num_threads() == 1:  # else somebody has asked for another number meanwhile
                _set(library, n)
        self.before = []


def _set(library: Any, count: int) -> None:
    """Since threadpoolctl 3.8 only the thread that was the first to set a number may, and others do nothing, without a word."""
    release = getattr(library, "clear_controlling_thread", lambda force=False: None)
    release(force=True)
    library.set_num_threads(count)
    release()


@functools.cache
def _libraries() -> list[Any]:
    """Every BLAS of this process when it is first asked for: NumPy's is there."""
    from threadpoolctl import ThreadpoolController  # it looks at all that is loaded, which takes a millisecond

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


_LIMIT = _Limit()


def _begin_anew() -> None:
    """A process that was forked inside a block is in none."""
    global _LIMIT
    before, _LIMIT = _LIMIT, _Limit()
    before.give_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
