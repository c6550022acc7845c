"""The one tolerance policy: when is our result equal to PyTorch's?   Used by the tests, by `check`, by parity
packs and by benchmarks. It needs NumPy alone, so that a pack can be judged where PyTorch is not installed.

float64 is an equality of formulas:        |ours − torch| ≤ 1e-11 s + 1e-10 |torch|
float32 is judged by the float64 truth:    |ours − truth| ≤ 2e-5 (s + |truth|), or an error at most 4 times torch's

Errors are the largest of |x − truth| / (s + |truth|) over the entries. s, the scale, is 1 for values of order one.
Gradients of a mean loss are smaller than that, and a 1 would forgive too much; a gradient is linear in its cotangent,
so dividing s and the gradient by the same number is the same policy under another cotangent: compare_models takes the
largest true gradient of the model as s, where it is below 1, but no less than 0.1: a model that is sure of its answer
has gradients p − 1 that are all cancellation, as wrong as 1 is rounded, however small they are. NaN and infinities
must stand where torch (or, in float32, the truth) has them. Where the truth is zero but for rounding, only the
absolute part applies, with s = 1, and no ratio is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

FLOAT64_RTOL, FLOAT64_ATOL = 1e-10, 1e-11
FLOAT32_TOL, FLOAT32_RATIO = 2e-5, 4.0
FLOAT32_ROUNDING = 2.0**-24  # the relative error of one correct rounding
SMALLEST_SCALE = 0.1
ZERO = 1e-12  # times s: a smaller float64 truth is the rounding noise of a zero


class Verdict(StrEnum):
    """What a comparison found. The first three are passes; INCONCLUSIVE is neither pass nor failure."""

    EQUAL = "equal"
    NO_WORSE = "no worse than torch"
    EXACTLY_ZERO = "exactly zero"
    INCONCLUSIVE = "inconclusive"
    WORSE = "worse than torch"
    DIFFERENT = "different"
    MISMATCH = "mismatch"


@dataclass(frozen=True)
class Comparison:
    """One quantity in one dtype: a row of the report.

    error        ours, largest |ours − truth| / (s + |truth|); infinite where nothing could be subtracted (MISMATCH)
    torch_error  the same of torch float32; None in float64, where torch is itself the truth
    ratio        error / torch_error, neither counted as less than one rounding; None where it would say nothing
    detail       what failed, and where
    """

    name: str
    dtype: str
    verdict: Verdict
    error: float
    torch_error: float | None = None
    ratio: float | None = None
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the verdict is one of the passes."""
        return self.verdict in (Verdict.EQUAL, Verdict.NO_WORSE, Verdict.EXACTLY_ZERO)

    @property
    def failed(self) -> bool:
        """Whether ours was found wrong."""
        return not self.passed and self.verdict != Verdict.INCONCLUSIVE

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}): {self.verdict}, error {self.error:.2g}; {self.detail}".rstrip("; ")


def as_array(value: Any) -> np.ndarray:
    """Whatever np.asarray takes, and torch tensors that require a gradient or live on a GPU."""
    return value.detach().cpu().numpy() if hasattr(value, "cpu") else np.asarray(value)


def compare_float64(
    ours: Any, theirs: Any, name: str = "value", scale: float = 1.0, slack: float | np.ndarray = 0.0
) -> Comparison:
    """Equality of formulas: |ours − theirs| ≤ 1e-11 scale + 1e-10 |theirs|; float64 arrays or tensors of one shape.

    slack is a further absolute error, allowed where a caller can show that rounding alone makes it.
    """
    ours, truth = as_array(ours), as_array(theirs)
    if detail := kind_differs(ours, truth, "float64") or specials_differ(ours, truth):
        return Comparison(name, "float64", Verdict.MISMATCH, math.inf, detail=detail)
    finite = np.isfinite(truth)
    ours, truth = np.where(finite, ours, 0.0), np.where(finite, truth, 0.0)
    zero = finite.all() and _is_zero(truth, scale)
    scale = 1.0 if zero else scale
    error = _error(ours, truth, scale)
    if np.any(np.abs(ours - truth) > FLOAT64_ATOL * scale + FLOAT64_RTOL * np.abs(truth) + slack):
        return Comparison(name, "float64", Verdict.DIFFERENT, error, detail=_worst(ours, truth, scale))
    return Comparison(name, "float64", Verdict.EXACTLY_ZERO if zero else Verdict.EQUAL, error)


def compare_float32(ours: Any, theirs: Any, truth: Any, name: str = "value", scale: float = 1.0) -> Comparison:
    """Two float32 results of one shape, judged by the float64 truth: within 2e-5, or at most 4 times torch's error."""
    ours, theirs, truth = as_array(ours), as_array(theirs), as_array(truth)
    differs = kind_differs(theirs, truth, "float32", "float64", "torch's ") or kind_differs(ours, theirs, "float32")
    if detail := differs or specials_differ(ours, theirs, truth):
        return Comparison(name, "float32", Verdict.MISMATCH, math.inf, detail=detail)
    settled = np.isfinite(truth) & np.isfinite(ours)
    zero = bool(np.isfinite(truth).all()) and _is_zero(truth, scale)
    ours, truth, scale = np.where(settled, ours, 0.0), np.where(settled, truth, 0.0), 1.0 if zero else scale
    error = _error(ours, truth, scale)
    torch_error = _error(np.where(settled & np.isfinite(theirs), theirs, truth), truth, scale)
    verdict = judge_zero(error) if zero else judge(error, torch_error)
    ratio = None if zero or not truth.size else bounded_ratio(error, torch_error)
    detail = _worst(ours, truth, scale) if verdict == Verdict.WORSE else ""
    return Comparison(name, "float32", verdict, error, torch_error, ratio, detail)


def geometric_mean_ratio(rows: Iterable[Comparison]) -> float:
    """exp(mean log ratio) over the rows that have one; NaN where none has. At most 1: no less accurate than torch."""
    logs = [math.log(row.ratio) for row in rows if row.ratio is not None]
    return math.exp(math.fsum(logs) / len(logs)) if logs else math.nan


def kind_differs(got: np.ndarray, like: np.ndarray, dtype: str, like_dtype: str = "", whose: str = "") -> str:
    """Says in what got is not of this dtype and of the shape of like; an empty text where it is."""
    if got.shape != like.shape:
        return f"{whose}shape: got {got.shape}, expected {like.shape}"
    if like.dtype != (like_dtype or dtype):
        return f"reference dtype: got {like.dtype}, expected {like_dtype or dtype}"
    return "" if got.dtype == dtype else f"{whose}dtype: got {got.dtype}, expected {dtype}"


def specials_differ(ours: np.ndarray, *accepted: np.ndarray) -> str:
    """Says where ours is NaN, ∞, −∞ or finite and none of the accepted arrays is the same there."""
    agree = np.any([_special(ours) == _special(other) for other in accepted], axis=0)
    if np.all(agree):
        return ""
    where = tuple(int(i) for i in np.argwhere(~agree)[0])
    return f"at {where}: got {ours[where]}, expected {accepted[0][where]}"


def _special(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), 2, np.where(np.isinf(x), np.sign(x), 0))


def _errors(x: np.ndarray, truth: np.ndarray, scale: float) -> np.ndarray:
    """|x − truth| / (scale + |truth|), in float64."""
    return np.abs(x.astype(np.float64) - truth) / (scale + np.abs(truth))


def _error(x: np.ndarray, truth: np.ndarray, scale: float) -> float:
    return float(_errors(x, truth, scale).max(initial=0.0))


def _worst(x: np.ndarray, truth: np.ndarray, scale: float) -> str:
    at = np.unravel_index(np.argmax(_errors(x, truth, scale)), truth.shape)
    return f"at {tuple(map(int, at))}: got {x[at]!s}, expected {truth[at]!s}"


def _is_zero(truth: np.ndarray, scale: float) -> bool:
    return truth.size > 0 and bool(np.all(np.abs(truth) <= ZERO * scale))


def judge(error: float, torch_error: float, tolerance: float = FLOAT32_TOL) -> Verdict:
    """The float32 verdict of two errors."""
    if error <= tolerance:
        return Verdict.EQUAL
    return Verdict.NO_WORSE if error <= FLOAT32_RATIO * torch_error else Verdict.WORSE


def judge_zero(error: float, tolerance: float = FLOAT32_TOL) -> Verdict:
    """The verdict where the truth is zero: only the absolute part applies."""
    return Verdict.EXACTLY_ZERO if error <= tolerance else Verdict.WORSE


def bounded_ratio(error: float, torch_error: float) -> float:
    """error / torch_error, neither counted as less than one rounding."""
    return max(error, FLOAT32_ROUNDING) / max(torch_error, FLOAT32_ROUNDING)


def scale_of(values: Iterable[np.ndarray]) -> float:
    """The largest finite entry, held between 0.1 and 1; 1 where all are but the noise of zeros."""
    peak = max((float(np.abs(value[np.isfinite(value)]).max(initial=0.0)) for value in values), default=0.0)
    return 1.0 if peak <= 100 * ZERO else min(1.0, max(SMALLEST_SCALE, peak))
