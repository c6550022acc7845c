"""Scaled dot-product attention. Its `definition` is the same function in primitive NumPy calls: read that first."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from tinygrad_llm.ops.declare import Vjp, op

_ROWS = 64  # query rows at a time: what a causal mask hides is skipped but for half a block


def _attention(query: Any, key: Any, value: Any, is_causal: bool, scale: float | None) -> Any:
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) * _scale(query, scale)
    if is_causal:
        scores = np.where(look_ahead(scores.shape[-2], scores.shape[-1]), -np.inf, scores)
    e = np.exp(scores - np.max(scores, -1, keepdims=True))
    return np.matmul(e / np.sum(e, -1, keepdims=True), value)


@op(query="*B T D", key="*B S>0 D", value="*B S E", options={"is_causal": (False, True), "scale": (None, 0.3)},
    definition=_attention, torch="F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)")
def attention(query: Any, key: Any, value: Any, is_causal: bool = False, scale: float | None = None) -> tuple[Any, Vjp]:
    """P V,  P = softmax(Q Kᵀ · scale), scale = 1/√D by default.   Vaswani et al. 2017, arXiv:1706.03762

    For each block of query rows:   e = exp(Q Kᵀ · scale − largest of its row),  out = (e V) / Σ e.   And back, with
    ĝ = g / Σ e:   dV = eᵀ ĝ,  dP = ĝ Vᵀ,  dS = e · (dP − Σ dP e / Σ e),  dQ = dS K · scale,  dK = dSᵀ Q · scale.
    Σ dP e is also Σ g · out, over the shorter rows of the output (Dao et al. 2022, arXiv:2205.14135), but only the former
    cancels exactly where a row looks at one position alone: the latter's rounding is noise that Adam makes steps of.
    """
    factor = _scale(query, scale)
    scaled, turned = query * factor, _turned(key)
    blocks = _blocks(query.shape[-2], key.shape[-2], is_causal)
    strips = [_strip(scaled[..., a:b, :], turned[..., :end], a if is_causal else end) for a, b, end in blocks]
    sums = [np.vecdot(np.ones(e.shape[-1], e.dtype), e)[..., None] for e in strips]

    def vjp(g: Any) -> tuple[Any, Any, Any]:
        values, dq, dk, dv = _turned(value), [], None, None
        for (a, b, end), e, total in reversed(list(zip(blocks, strips, sums))):  # the last block looks at every key
            share = g[..., a:b, :] / total
            ds = np.matmul(share, values[..., :end])
            ds -= np.vecdot(e, ds)[..., None] / total
            ds *= e
            dq.append(np.matmul(ds, key[..., :end, :]) * factor)
            dk = _added(dk, np.matmul(np.swapaxes(ds, -1, -2), scaled[..., a:b, :]))
            dv = _added(dv, np.matmul(np.swapaxes(e, -1, -2), share))
        return _joined(dq[::-1]), dk, dv

    return _joined([np.matmul(e, value[..., :end, :]) / total for (_, _, end), e, total in zip(blocks, strips, sums)]), vjp


def _blocks(t: int, s: int, is_causal: bool) -> list[tuple[int, int, int]]:
    """(first row, end of rows, end of the keys that they look at) of each block of query rows."""
    if not is_causal:
        return [(0, t, s)]
    starts = range(0, max(t, 1), _ROWS)
    return [(a, min(a + _ROWS, t), s if a == starts[-1] else min(a + _ROWS, s)) for a in starts]


def _strip(query: Any, turned: Any, start: int) -> Any:
    """e^(scores − largest) of some rows; row i does not look beyond key start + i."""
    scores = np.matmul(query, turned)
    rows, columns = scores.shape[-2:]
    if start < columns:
        scores[..., start:] += _hidden(rows, columns - start).astype(scores.dtype)
    scores -= np.max(scores, -1, keepdims=True)
    return np.exp(scores)


@functools.lru_cache(maxsize=64)
def _hidden(t: int, s: int) -> Any:
    """float32 [T, S]: −∞ where position t may not look, else 0. A sum, because np.where takes ten times as long."""
    return np.where(look_ahead(t, s), np.float32(-np.inf), np.float32(0))


def _turned(x: Any) -> Any:
    """xᵀ in memory of its own, which products read faster."""
    return np.swapaxes(x, -1, -2).copy()


def _added(total: Any, first: Any) -> Any:
    """total with more added to the first of its rows."""
    if total is None:
        return first
    total[..., : first.shape[-2], :] += first
    return total


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, -2)


def look_ahead(t: int, s: int) -> Any:
    """bool [T, S], True where position t may not look: at every s > t."""
    return np.arange(s) > np.arange(t)[:, None]


def _scale(query: Any, scale: float | None) -> float:
    return 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
