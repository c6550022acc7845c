"""How it is measured: turns, medians, ratios round by round, and no ratio where the two did not do the same."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tinygrad_llm.policy import compare_float32

T = TypeVar("T")
SAME_WORK = 1e-4  # largest |x − truth| / (1 + |truth|) that rounding explains
STUDENT = 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306  # 97.5 % quantiles of t for 1, 2, ... degrees of freedom
PAUSE = 0.1  # seconds between turns: until BLAS threads, which wait in a loop for more work, have gone to sleep


def interleave(
    turns: Mapping[str, Callable[[int], T]], rounds: int, pause: float | None = None,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, list[T]]:
    """A B A B ...: in each round every side has one turn, turn(round). The results of each side, in order.

    tell(rounds done, rounds) is called after each.
    """
    results: dict[str, list[T]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in turns.items():
            time.sleep(PAUSE if pause is None else pause)
            results[name].append(turn(number))
        tell(number + 1, rounds)
    return results


def summary(values: Sequence[float]) -> dict[str, float]:
    """median, low, high"""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def fitting_count(seconds_each: float, target: float, most: int) -> int:
    """How many of that duration make up the target, seconds; at least 1, at most `most`."""
    return min(most, max(1, math.ceil(target / max(seconds_each, 1e-9))))


class Power(NamedTuple):
    """y = scale · x^exponent; the exponent is known to ± half_width with a confidence of 95 %."""

    scale: float
    exponent: float
    half_width: float


def fit_power(x: Sequence[float], y: Sequence[float]) -> Power | None:
    """Least squares on logarithms, with Student's t; None for fewer than three points."""
    if len(x) < 3:
        return None
    u, v = np.log(x), np.log(y)
    spread = np.sum((u - u.mean()) ** 2)
    exponent = np.sum((u - u.mean()) * (v - v.mean())) / spread
    scale = v.mean() - exponent * u.mean()
    free = len(x) - 2
    error = np.sqrt(np.sum((v - scale - exponent * u) ** 2) / free / spread)
    return Power(float(np.exp(scale)), float(exponent), STUDENT[min(free, len(STUDENT)) - 1] * float(error))


class Line(NamedTuple):
    """y = start + slope · x, no y further from it than `worst`, a share of y."""

    start: float
    slope: float
    worst: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Least squares of (line − y) / y, as times are measured to so many percent; None for fewer than three points."""
    if len(x) < 3:
        return None
    rows = np.array([[1 / b, a / b] for a, b in zip(x, y)])
    (start, slope), *_ = np.linalg.lstsq(rows, np.ones(len(x)), rcond=None)
    return Line(float(start), float(slope), float(np.max(np.abs(rows @ [start, slope] - 1))))


def disagreement(ours: Sequence[float], theirs: Sequence[float], truth: Sequence[float]) -> str | None:
    """None where ours passes the float32 policy with theirs in torch's place, and theirs did the same work at all.

    truth is float64. Otherwise who is how far off. Of theirs only SAME_WORK is asked: torch's own layer norm was seen
    2.2e-5 off, where ours was not, and that one is more accurate is no reason to refuse a ratio. But the policy allows
    ours 4 times the error of theirs, so without a bound two that are wrong together would be equal.
    """
    judge, other = np.asarray(truth, np.float64), np.asarray(theirs, np.float32)
    mine = compare_float32(np.asarray(ours, np.float32), other, judge, "ours")
    error = float(np.max(np.abs(other - judge) / (1 + np.abs(judge))))
    if not error <= SAME_WORK:
        return f"theirs: error {error:.2g} against float64, expected at most {SAME_WORK:.2g}"
    return None if mine.passed else f"ours: error {mine.error:.2g} against float64, theirs {error:.2g}"


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
