"""Recorded programs that are wrong when they run again: what should be read or drawn anew was kept."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from reference.bugs.patch import Bug, method


def _kept_weights(original: Any, library: Any) -> Any:
    def memory(self: Any, buffer: Any) -> Any:
        if buffer.array is not None and buffer not in self.memory:
            self.memory[buffer] = buffer.array.copy()
        return self.memory[buffer] if buffer.array is not None else original(self, buffer)

    return memory


def _drawn_while_recorded(original: Any, library: Any) -> Any:
    def draw(like: Any, generator: Any) -> Any:
        source = copy.deepcopy(generator) if hasattr(like, "__record_call__") else generator  # one that moves would be noticed
        return source.random(like.shape, dtype=np.float32)

    return draw


BUGS = [
    Bug("replay", "weights of the recording", "a copy that is a constant from then on",
        method("capture.replay.Replay._memory", _kept_weights)),
    Bug("replay", "dropout's mask of the recording", "drawn by a call that leaves no trace",
        method("nn.functional._uniform", _drawn_while_recorded)),
]  # fmt: skip
