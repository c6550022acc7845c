"""Switches of the engine, each for the current thread: whether to record, and whether to look for the first NaN."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import _GeneratorContextManager, contextmanager
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).resolve().parents[1])


class _Modes(threading.local):
    grad = True
    anomaly = False
    check_nan = True
    recorder: Any = None


_modes = _Modes()


def is_grad_enabled() -> bool:
    """Whether ops record what backward needs."""
    return _modes.grad


def is_anomaly_enabled() -> bool:
    """Whether each node remembers the line that called its op."""
    return _modes.anomaly


def is_anomaly_check_nan_enabled() -> bool:
    """Whether each result is searched for NaN and infinity."""
    return _modes.anomaly and _modes.check_nan


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
def detect_anomaly(check_nan: bool = True) -> Iterator[None]:
    """Raise AnomalyError at the first NaN or infinity, naming the op and the line that called it, forward or backward.

    A −∞ that an op was given, as a mask has it, is no anomaly; one that it made is. check_nan=False looks at no values and
    only remembers the lines, which other errors of backward then name.
    """
    with set_detect_anomaly(True, check_nan):
        yield


@contextmanager
def set_detect_anomaly(mode: bool, check_nan: bool = True) -> Iterator[None]:
    """detect_anomaly where mode is True; inside it, a block without it where mode is False."""
    before, (_modes.anomaly, _modes.check_nan) = (_modes.anomaly, _modes.check_nan), (bool(mode), bool(check_nan))
    try:
        yield
    finally:
        _modes.anomaly, _modes.check_nan = before


def active_recorder() -> Any:
    """What records the NumPy calls of this thread (tinygrad_llm.capture), or None."""
    return _modes.recorder


def check_write(name: str, array: Any) -> None:
    """The recorder's error for a write that it cannot record."""
    if _modes.recorder is not None:
        _modes.recorder.check_write(name, array)


def check_read(name: str) -> None:
    """The recorder's error where values are asked for that a program would not ask for again."""
    if _modes.recorder is not None:
        _modes.recorder.check_read(name)


@contextmanager
def recording(recorder: Any) -> Iterator[None]:
    """Inside, ops run on the arrays of a recorder: see tinygrad_llm.capture.record."""
    before, _modes.recorder = _modes.recorder, recorder
    try:
        yield
    finally:
        _modes.recorder = before


def calling_line() -> str:
    """`file:line: source` of the innermost caller outside this package."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_PACKAGE):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "?"
