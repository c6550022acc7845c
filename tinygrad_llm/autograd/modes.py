"""Switches of the engine, each for the current thread: whether to record, and whether to look for the first NaN."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager
from pathlib import Path

_PACKAGE = str(Path(__file__).resolve().parents[1])


class _Modes(threading.local):
    grad = True
    anomaly = False


_modes = _Modes()


def is_grad_enabled() -> bool:
    """Whether ops record what backward needs."""
    return _modes.grad


def is_anomaly_enabled() -> bool:
    """Whether each result is searched for NaN and infinity."""
    return _modes.anomaly


@contextmanager
def set_grad_enabled(mode: bool) -> Iterator[None]:
    """Record (True) or do not record (False) inside the block, or inside the decorated function."""
    before, _modes.grad = _modes.grad, bool(mode)
    try:
        yield
    finally:
        _modes.grad = before


def no_grad() -> _GeneratorContextManager[None]:
    """Record nothing inside the block: results do not require grad, and no graph is kept alive."""
    return set_grad_enabled(False)


def enable_grad() -> _GeneratorContextManager[None]:
    """Record inside the block, also within no_grad."""
    return set_grad_enabled(True)


@contextmanager
def detect_anomaly() -> Iterator[None]:
    """Raise AnomalyError at the first NaN or infinity, naming the op and the line that called it, forward or backward."""
    before, _modes.anomaly = _modes.anomaly, True
    try:
        yield
    finally:
        _modes.anomaly = before


def calling_line() -> str:
    """`file:line: source` of the innermost caller outside this package."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_PACKAGE):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "?"
