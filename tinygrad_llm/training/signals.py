"""Ctrl-C between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after a whole step; what `fit` had a folder for is saved.

    signum   the signal; a command line exits with 128 + signum, as shells expect: 130 after Ctrl-C
    result   the FitResult so far
    """

    def __init__(self, message: str, signum: int, result: Any) -> None:
        super().__init__(message)
        self.signum, self.result = signum, result


class StopSignals:
    """Inside the `with` block, the first SIGINT or SIGTERM sets `signum`; a second one acts as it did before.

    A signal that the process was told to ignore stays ignored, and outside the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.signum)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                    self._before[signum] = signal.signal(signum, self._caught)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _caught(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.__exit__()
