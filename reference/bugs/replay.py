"""Recorded programs that are wrong when they run again: what should be read or drawn anew was kept."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from reference.bugs.patch import Bug, method


def _kept_weights(original: Any, library: Any) -> Any:
    def memory(self: Any, buffer: Any) -> Any:
        if buffer.array is not None and buffer not in self.memory:
            self.memory[buffer] = buffer.array.copy()
        return self.memory[buffer] if buffer.array is not None else original(self, buffer)

    return memory


def _drawn_once(original: Any, library: Any) -> Any:
    def bind(self: Any, call: Any) -> Any:
        draws = any(isinstance(a, np.random.Generator) for a in (*call.args, *call.options.values()))
        return functools.cache(original(self, call)) if draws else original(self, call)

    return bind


BUGS = [
    Bug("replay", "weights of the recording", "a copy that is a constant from then on",
        method("capture.replay.Replay._memory", _kept_weights)),
    Bug("replay", "dropout's mask of the first run", "drawn by a call that is made once",
        method("capture.replay.Replay.bind", _drawn_once)),
]  # fmt: skip
