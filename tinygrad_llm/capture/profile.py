"""Where the time of a program goes: each call timed, summed by op and by layer, or as a trace for a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinygrad_llm.capture.ir import Call
from tinygrad_llm.capture.replay import Replay


@dataclass
class Share:
    """What some calls cost in one run: seconds, floating-point operations, bytes read and written."""

    calls: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0

    def add(self, seconds: float, flops: float, nbytes: float) -> None:
        """One call more."""
        self.calls, self.seconds = self.calls + 1, self.seconds + seconds
        self.flops, self.bytes = self.flops + flops, self.bytes + nbytes


@dataclass
class Profile:
    """The calls of a program with the time of each, medians over the runs.

    calls     (call, seconds); each turn of a loop has calls of its own
    seconds   of a whole run without a clock between the calls
    """

    calls: list[tuple[Call, float]]
    seconds: float
    extra: dict[str, Share] = field(default_factory=dict)

    def by(self, key: Callable[[Call], str]) -> dict[str, Share]:
        """Shares by a name of the calls, the longest first; `extra` ones too."""
        shares: dict[str, Share] = {}
        for call, seconds in self.calls:
            shares.setdefault(key(call), Share()).add(seconds, call.flops, call.bytes)
        return dict(sorted((shares | self.extra).items(), key=lambda item: -item[1].seconds))

    def by_op(self) -> dict[str, Share]:
        """By op: linear forward, linearᵀ backward, …; what belongs to none adds up gradients."""
        return self.by(lambda call: call.op or "sums of gradients")

    def by_layer(self) -> dict[str, Share]:
        """By layer, equal layers of all blocks together, backward with forward."""
        return self.by(lambda call: re.sub(r"\.\d+\.", ".*.", call.layer) or "loss and sums")

    def trace(self) -> dict[str, Any]:
        """One run in Chrome's trace format (chrome://tracing, ui.perfetto.dev): times in µs."""
        events, at = [], 0.0
        for call, seconds in self.calls:
            events.append({"name": call.name, "cat": call.op, "ph": "X", "ts": at * 1e6, "dur": seconds * 1e6, "pid": 0,
                           "tid": 0, "args": {"op": call.op, "layer": call.layer, "bytes": call.bytes,
                                              "shape": str(call.out.shape if call.out else ())}})
            at += seconds
        return {"traceEvents": events, "displayTimeUnit": "ms"}


def profile(replay: Replay, runs: int = 5) -> Profile:
    """Time every call of a program, `runs` times after one that warms up."""
    replay.run()
    whole = [seconds_of(replay.run) for _ in range(runs)]
    with np.errstate(all="ignore"):
        timed = [_each(replay.steps) for _ in range(runs)]
    medians = np.median(np.array(timed).reshape((runs, len(replay.steps))), axis=0)
    return Profile([*zip(replay.origins, medians.tolist())], float(np.median(whole)))


def peaks(seconds: float = 0.5) -> tuple[float, float]:
    """(GFLOP/s of a float32 matrix product, GB/s of a copy that no cache holds) that this process reaches."""
    a, big = np.ones((1024, 1024), np.float32), np.ones(1 << 25, np.float32)
    out, copy = np.empty_like(a), np.empty_like(big)
    product = _fastest(lambda: np.matmul(a, a, out=out), seconds)
    return 2e-9 * 1024**3 / product, 2e-9 * big.nbytes / _fastest(lambda: np.copyto(copy, big), seconds)


def _fastest(work: Callable[[], Any], seconds: float) -> float:
    best, end = seconds_of(work), time.perf_counter() + seconds
    for _ in range(100):  # a clock may stand still
        if time.perf_counter() >= end:
            break
        best = min(best, seconds_of(work))
    return best


def seconds_of(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _each(steps: Iterable[Callable[[], Any]]) -> list[float]:
    clock, times = time.perf_counter, []
    last = clock()
    for step in steps:
        step()
        now = clock()
        times.append(now - last)
        last = now
    return times
