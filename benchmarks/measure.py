"""How it is measured: turns, medians, ratios round by round, and no ratio where the two did not do the same."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from tinygrad_llm.policy import compare_float32

T = TypeVar("T")
FARTHEST = 1e-2  # relative
PAUSE = 0.1  # seconds between turns: until BLAS threads, which wait in a loop for more work, have gone to sleep


def interleave(turns: Mapping[str, Callable[[int], T]], rounds: int, pause: float | None = None) -> dict[str, list[T]]:
    """A B A B ...: in each round every side has one turn, turn(round). The results of each side, in order."""
    results: dict[str, list[T]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            time.sleep(PAUSE if pause is None else pause)
            results[name].append(turn(number))
    return results


def summary(values: Sequence[float]) -> dict[str, float]:
    """median, low, high"""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def fitting_count(seconds_each: float, target: float, most: int) -> int:
    """How many of that duration make up the target, seconds; at least 1, at most `most`."""
    return min(most, max(1, math.ceil(target / max(seconds_each, 1e-9))))


def disagreement(ours: Sequence[float], theirs: Sequence[float], truth: Sequence[float]) -> str | None:
    """None where two float32 results are equal by the tolerance policy: each passes, with the other in torch's place.

    truth is float64. Otherwise who is how far off. Two that are far off together are not equal either: the policy
    allows 4 times the other's error, and FARTHEST bounds both.
    """
    mine, other = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
    judge = np.asarray(truth, np.float64)
    for who, one, two in (("ours", mine, other), ("theirs", other, mine)):
        verdict = compare_float32(one, two, judge, who)
        if not verdict.passed or verdict.error > FARTHEST:
            return f"{who}: error {verdict.error:.2g} against float64"
    return None


def ratio_record(
    ours: str, theirs: str, seconds: Mapping[str, Sequence[float]], why_not: str | None, **about: Any
) -> dict[str, Any]:
    """time(theirs) / time(ours) of each round, the median, and that of the fastest turns (`best`), which other work on
    the machine disturbs least; none of them where the two disagree, for why_not."""
    record = {"kind": "ratio", **about, "ours": ours, "against": theirs, "agree": why_not is None, "why_not": why_not}
    if why_not is not None:
        return {**record, "rounds": None, "median": None, "low": None, "high": None, "best": None}
    rounds = [b / a for a, b in zip(seconds[ours], seconds[theirs])]
    return {**record, "rounds": rounds, **summary(rounds), "best": min(seconds[theirs]) / min(seconds[ours])}
