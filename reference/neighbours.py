"""Weights one rounding away: what torch itself makes of them tells a kink or a cancellation from a mistake.

A relu unit whose sum is within rounding of 0 may be on in float32 and off in float64, and its gradient is then wrong by all of
itself; of a thousand draws of a small model this happens to a few, in torch as often as in ours. The comparison on the one
draw cannot say which of the two was lucky. So where, and only where, float32 misses the policy, torch is also run at
weights one rounding away, float32 beside float64: if it is then as far off, the conditioning of the function decides, and
the verdict is "inconclusive". The same rule as that of the ops (reference.ops_report).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinygrad_llm.policy import FLOAT32_RATIO, Comparison, Verdict, compare_float32

NEIGHBOURS = 16
Arrays = dict[str, np.ndarray]


def one_ulp_away(weights: Mapping[str, np.ndarray], seed: int) -> Arrays:
    """Every weight at the next float32 number up or down, one value for tied names."""
    rng = np.random.default_rng(seed + 1)
    moved: Arrays = {}
    for name, value in weights.items():
        w = np.asarray(value, np.float32)
        twin = next((n for n in moved if np.array_equal(weights[n], value)), None)
        towards = np.where(rng.random(w.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        moved[name] = moved[twin] if twin else np.nextafter(w, towards)
    return moved


def excused(
    rows: Sequence[Comparison], weights: Mapping[str, np.ndarray], run: Callable[[Mapping[str, np.ndarray], str], Arrays],
    scales: Mapping[str, float], known: dict[str, Any],
) -> list[Comparison]:
    """The rows; INCONCLUSIVE where ours was worse than torch, but at most 4 times as wrong as torch at some neighbour.

    run(weights, dtype) gives torch's results by name; scales those of the comparison. Neighbours are tried until all rows are
    excused, 16 at most. Torch's errors at them are put into known, and taken from there by a later call.
    """
    largest = known.setdefault("neighbours", dict.fromkeys(scales, 0.0))
    for seed in range(known.get("neighbours tried", 0), NEIGHBOURS):
        if not any(_unexcused(row, largest) for row in rows):
            break
        _add_errors(largest, one_ulp_away(weights, seed), run, scales)
        known["neighbours tried"] = seed + 1
    return [_excused(row, largest) for row in rows]


def _unexcused(row: Comparison, largest: Mapping[str, float]) -> bool:
    return row.verdict == Verdict.WORSE and row.error > FLOAT32_RATIO * largest[row.name]


def _excused(row: Comparison, largest: Mapping[str, float]) -> Comparison:
    if row.verdict != Verdict.WORSE or _unexcused(row, largest):
        return row
    said = f"torch's error at weights one rounding away is up to {largest[row.name]:.2g}; {row.detail}"
    return replace(row, verdict=Verdict.INCONCLUSIVE, detail=said)


def _add_errors(
    largest: dict[str, float], weights: Mapping[str, np.ndarray], run: Callable[[Mapping[str, np.ndarray], str], Arrays],
    scales: Mapping[str, float],
) -> None:  # fmt: skip
    """Torch's float32 errors at these weights into the largest by name."""
    truth, narrow = run(weights, "float64"), run(weights, "float32")
    for name, scale in scales.items():
        error = compare_float32(narrow[name], narrow[name], truth[name], name, scale).torch_error
        largest[name] = max(largest[name], error or 0.0)
