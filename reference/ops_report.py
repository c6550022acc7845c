"""Every op, in each dtype and on each torch device: our error and torch's, both against the float64 truth.

A row pools several drawn calls of one op, each with its output and every gradient. Its verdict is the worst of theirs:

    equal, no worse than torch, exactly zero     the policy (tinygrad_llm.policy)
    inconclusive      float32 misses the policy, but torch itself errs as much on inputs one rounding away: noise decides
    worse, different, mismatch                   ours is wrong, or less accurate than it need be

ULPs (units in the last place of the truth) are a diagnostic and decide nothing: near a zero of the truth they are huge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reference.opdraw import Call, draw_calls, is_float, run_ours, run_torch
from tinygrad_llm.ops import REGISTRY, Op
from tinygrad_llm.policy import (
    FLOAT32_RATIO,
    FLOAT32_TOL,
    Comparison,
    Verdict,
    compare_float32,
    compare_float64,
    geometric_mean_ratio,
)

NEIGHBOURS = 16
SEVERITY = (
    Verdict.EXACTLY_ZERO, Verdict.EQUAL, Verdict.NO_WORSE, Verdict.INCONCLUSIVE, Verdict.WORSE, Verdict.DIFFERENT,
    Verdict.MISMATCH,
)  # fmt: skip


@dataclass(frozen=True)
class Ulps:
    """Distances in units in the last place, over all entries."""

    median: float
    p99: float
    max: float


@dataclass(frozen=True)
class OpRow:
    """One op in one dtype against torch on one device. errors are the largest, ratio is the geometric mean."""

    op: str
    dtype: str
    device: str
    calls: int
    verdict: Verdict
    error: float
    torch_error: float | None
    ratio: float | None
    ulps: Ulps
    torch_ulps: Ulps | None
    detail: str = ""

    @property
    def failed(self) -> bool:
        """Whether ours was found wrong."""
        return self.verdict in SEVERITY[4:]


def compare_ops(
    names: Iterable[str] | None = None, devices: Sequence[str] = ("cpu",), seed: int = 0, count: int = 4
) -> list[OpRow]:
    """Rows for the named ops (None: all), float64 on the CPU and float32 on each device."""
    rows = []
    for name in sorted(REGISTRY) if names is None else names:
        calls = draw_calls(REGISTRY[name], seed, count)
        rows.append(_row(REGISTRY[name], calls, np.float64, "cpu"))
        rows += [_row(REGISTRY[name], calls, np.float32, device) for device in devices]
    return rows


def judge_call(call: Call, dtype: Any, device: str = "cpu") -> list[Comparison]:
    """A comparison for the output and for each gradient of a call."""
    try:
        ours = run_ours(call, dtype)
    except Exception as error:  # a bug may raise anything; the report must name it and go on
        return [Comparison("output", np.dtype(dtype).name, Verdict.MISMATCH, np.inf, detail=f"raised {error!r}")]
    theirs, truth = run_torch(call, dtype, device), run_torch(call)
    found = [judge_value(name, ours[i], theirs[i], truth[i], dtype) for i, name in enumerate(call.names)]
    return [_excused(row, call, i) if row.verdict == Verdict.WORSE else row for i, row in enumerate(found)]


def judge_value(name: str, ours: Any, theirs: np.ndarray, truth: np.ndarray, dtype: Any) -> Comparison:
    """The output or one gradient by the policy; where torch itself leaves the dtype, the bits must agree."""
    kind = np.dtype(dtype).name
    if ours is None or theirs.dtype != dtype or truth.dtype != np.float64:
        same = ours is not None and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        detail = "" if same else f"got {ours!r}, expected {theirs!r}"
        return Comparison(name, kind, Verdict.EQUAL if same else Verdict.MISMATCH, 0.0 if same else np.inf, detail=detail)
    if dtype == np.float64:
        return compare_float64(ours, theirs, name)
    return compare_float32(ours, theirs, truth, name)


def ulps_of(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """|x − truth| in units in the last place of truth rounded to the dtype of x; finite entries only."""
    rounded = truth.astype(x.dtype)
    finite = np.isfinite(rounded) & np.isfinite(x)
    spacing = np.spacing(np.abs(rounded[finite])).astype(np.float64)
    return np.abs(x[finite].astype(np.float64) - truth[finite]) / spacing


def _row(op: Op, calls: list[Call], dtype: Any, device: str) -> OpRow:
    found = [row for call in calls for row in judge_call(call, dtype, device)]
    worst = max(found, key=lambda row: (SEVERITY.index(row.verdict), row.error))
    errors = [row.torch_error for row in found if row.torch_error is not None]
    ratio = geometric_mean_ratio(found)
    ours = [_distances(call, dtype, run_ours(call, dtype)) for call in calls] if worst.error < np.inf else []
    theirs = [_distances(call, dtype, run_torch(call, dtype, device)) for call in calls] if dtype == np.float32 else None
    return OpRow(
        op.name, np.dtype(dtype).name, device, len(calls), worst.verdict, max(row.error for row in found),
        max(errors) if errors else None, None if np.isnan(ratio) else ratio, _summary(ours),
        None if theirs is None else _summary(theirs), f"{worst.name}: {worst.detail}" if worst.detail else "",
    )  # fmt: skip


def _distances(call: Call, dtype: Any, got: list[Any]) -> np.ndarray:
    truth = run_torch(call)
    pairs = [(x, t) for x, t in zip(got, truth) if x is not None and x.dtype == dtype and x.shape == t.shape]
    with np.errstate(all="ignore"):
        return np.concatenate([np.zeros(0), *[ulps_of(x, t).ravel() for x, t in pairs]])


def _summary(distances: list[np.ndarray]) -> Ulps:
    every = np.concatenate([np.zeros(0), *distances])
    if not every.size:
        return Ulps(0.0, 0.0, 0.0)
    return Ulps(*(float(v) for v in (np.median(every), np.quantile(every, 0.99), every.max())))


def _excused(row: Comparison, call: Call, which: int) -> Comparison:
    """Inconclusive instead of worse, where torch errs as much on the call one rounding away.

    In a layer norm over two features, or over nearly constant rows, all cancels but the last bit, and torch may be lucky by
    a factor of 100. (Over 17,000 drawn gradients of layer norm, 5 of ours need this, and 512 of torch's would.)
    """
    errors = [_torch_error(neighbour, which) for neighbour in _neighbours(call)]
    if row.error <= max(FLOAT32_TOL, FLOAT32_RATIO * max(errors)):
        return replace(row, verdict=Verdict.INCONCLUSIVE, ratio=None)
    return row


def _neighbours(call: Call) -> list[Call]:
    """Calls whose floating arguments and cotangent are the next float32 numbers up or down."""
    if "neighbours" not in call.cache:
        rng = np.random.default_rng(0)
        call.cache["neighbours"] = [_stepped_call(call, rng) for _ in range(NEIGHBOURS)]
    return call.cache["neighbours"]


def _stepped_call(call: Call, rng: np.random.Generator) -> Call:
    args = tuple(_stepped(a, rng) if is_float(a) else a for a in call.args)
    return replace(call, args=args, cotangent=_stepped(call.cotangent, rng), cache={})


def _stepped(a: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    towards = np.asarray(rng.choice([-np.inf, np.inf], a.shape), np.float32)
    return np.asarray(np.nextafter(a.astype(np.float32), towards), np.float64)


def _torch_error(call: Call, which: int) -> float:
    """Of torch's float32; computed once."""
    if ("error", which) not in call.cache:
        narrow, truth = run_torch(call, np.float32)[which], run_torch(call)[which]
        call.cache["error", which] = float(np.max(np.abs(narrow - truth) / (1 + np.abs(truth)), initial=0.0))
    return call.cache["error", which]
