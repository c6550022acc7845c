"""Ctrl-C between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

STOPPING = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGXCPU") if hasattr(signal, name)}
"""Ctrl-C; a polite end; a terminal or a line that is gone; what batch systems send before they kill; a limit of time."""
_ENDING = {signal.SIGINT, signal.SIGTERM}


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after a whole step; what `fit` had a folder for is saved.

    signum   the signal; a command line exits with 128 + signum, as shells expect: 130 after Ctrl-C
    result   the FitResult so far
    """

    def __init__(self, message: str, signum: int, result: Any) -> None:
        super().__init__(message)
        self.signum, self.result = signum, result


class StopSignals:
    """Inside the `with` block, the first of STOPPING sets `signum`; a second one acts as it did before.

    A signal that the process was told to ignore stays ignored (nohup), SIGHUP, SIGUSR1 and SIGXCPU stay with a handler of the
    program's own, and outside the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.signum)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                taken = (signal.SIG_IGN, None) if signum in _ENDING else ()
                if signal.getsignal(signum) not in taken and (signum in _ENDING or signal.getsignal(signum) == signal.SIG_DFL):
                    self._before[signum] = signal.signal(signum, self._caught)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _caught(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.__exit__()
