"""Ctrl-C between two steps, never inside one; and the end of the program, for a run in another thread."""

from __future__ import annotations

import atexit
import os
import signal
import sys
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
    program's own. Outside the main thread Python lets nobody catch a signal: there a KeyboardInterrupt that ends the main
    thread sets SIGINT, and the end of the program, which daemon threads do not see, SIGTERM: it waits until the block is left.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}
        self._process, self._left = os.getpid(), threading.Event()

    def __bool__(self) -> bool:
        if not self.signum and self in _ELSEWHERE and _main_was_interrupted():
            self.signum = signal.SIGINT
        return bool(self.signum)

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in STOPPING:
                taken = (signal.SIG_IGN, None) if signum in _ENDING else ()
                if signal.getsignal(signum) not in taken and (signum in _ENDING or signal.getsignal(signum) == signal.SIG_DFL):
                    self._before[signum] = signal.signal(signum, self._caught)
        else:
            _ELSEWHERE.add(self)
            atexit.unregister(_end)
            atexit.register(_end)  # the last that is registered comes first: before the workers are ended
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
        _ELSEWHERE.discard(self)
        self._left.set()

    def _caught(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.__exit__()


_ELSEWHERE: set[StopSignals] = set()  # in threads that are not the main one


def _main_was_interrupted() -> bool:
    """Whether Ctrl-C has ended the main thread: Python then waits for the others."""
    last = getattr(sys, "last_type", None) or Exception
    return not threading.main_thread().is_alive() and issubclass(last, KeyboardInterrupt)


def _end() -> None:
    """After Ctrl-C in the main thread, or its end, daemon threads would be cut off inside a step."""
    running = [stop for stop in _ELSEWHERE if stop._process == os.getpid()]  # a fork has no threads of its parent
    for stop in running:
        stop.signum = signal.SIGTERM
    for stop in running:
        stop._left.wait()
