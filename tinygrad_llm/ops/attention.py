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
    e = np.exp(scores - np.maximum(np.max(scores, -1, keepdims=True), float(np.finfo(scores.dtype).min)))
    total = np.sum(e, -1, keepdims=True)
    return np.matmul(e / (total + (total == 0)), value)


@op(query="*B T D", key="*B S>0 D", value="*B S E", options={"is_causal": (False, True), "scale": (None, 0.3)},
    definition=_attention, torch="F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)")
def attention(query: Any, key: Any, value: Any, is_causal: bool = False, scale: float | None = None) -> tuple[Any, Vjp]:
    """P V,  P = softmax(Q Kᵀ · scale), scale = 1/√D by default.   Vaswani et al. 2017, arXiv:1706.03762

    For each block of query rows:   e = exp(Q Kᵀ · scale − largest of its row),  out = (e V) / Σ e.   And back, with
    ĝ = g / Σ e:   dV = eᵀ ĝ,  dP = ĝ Vᵀ,  dS = e · (dP − Σ dP e / Σ e),  dQ = dS K · scale,  dK = dSᵀ Q · scale.
    Σ dP e is also Σ g · out, over the shorter rows of the output (Dao et al. 2022, arXiv:2205.14135), but only the former
    cancels exactly where a row looks at one position alone: the latter's rounding is noise that Adam makes steps of.
    A row whose scores are all −∞ gives zeros, as in torch: −∞ is never the largest, and Σ e, else at least 1, is taken for 1.
    """
    out = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype, like=query)
    vjp = _attend(query, key, value, out, is_causal, _scale(query, scale))

    def new_vjp(g: Any) -> tuple[Any, Any, Any]:
        gradients = np.empty_like(query), np.empty_like(key), np.empty_like(value)
        vjp(g, *gradients)
        return gradients

    return out, new_vjp


def _attention_qkvpacked(qkv: Any, is_causal: bool, scale: float | None) -> Any:
    query, key, value = _unpacked(qkv)
    return np.swapaxes(_attention(query, key, value, is_causal, scale), -3, -2)


@op(qkv="*B T>0 3 H D", options={"is_causal": (False, True), "scale": (None, 0.3)}, definition=_attention_qkvpacked,
    torch="F.scaled_dot_product_attention(*qkv[None, None].transpose(-4, -2).unbind(-3), is_causal=is_causal, scale=scale)"
          "[0, 0].transpose(-3, -2)")  # with these axes in front, torch takes code that has second derivatives
def attention_qkvpacked(qkv: Any, is_causal: bool = False, scale: float | None = None) -> tuple[Any, Vjp]:
    """attention of H heads whose Q, K and V one product has made, [*B, T, 3, H, D] → [*B, T, H, D].

    The gradients of Q, K and V are written into the places of one array; apart, each would come back from its slice as a
    whole array of zeros around it, and the three be added.
    """
    out = np.empty_like(qkv[..., 0, :, :])
    vjp = _attend(*_unpacked(qkv), np.swapaxes(out, -3, -2), is_causal, _scale(qkv, scale))

    def packed_vjp(g: Any) -> tuple[Any]:
        d = np.empty_like(qkv)
        vjp(np.swapaxes(g, -3, -2), *_unpacked(d))
        return (d,)

    return out, packed_vjp


def _unpacked(qkv: Any) -> tuple[Any, Any, Any]:
    heads = np.swapaxes(qkv, -4, -2)
    return heads[..., 0, :, :], heads[..., 1, :, :], heads[..., 2, :, :]


def _attend(query: Any, key: Any, value: Any, out: Any, is_causal: bool, factor: float) -> Any:
    """Writes the attention into out; returns vjp(g, dq, dk, dv), which writes its gradients."""
    scaled, turned = query * factor, _turned(key)
    blocks = _blocks(query.shape[-2], key.shape[-2], is_causal)
    strips = [_strip(scaled[..., a:b, :], turned[..., :end], a if is_causal else end) for a, b, end in blocks]
    sums = [np.maximum(np.vecdot(np.ones(e.shape[-1], e.dtype), e), 1)[..., None] for e in strips]
    for (a, b, end), e, total in zip(blocks, strips, sums):
        out[..., a:b, :] = np.matmul(e, value[..., :end, :]) / total

    def vjp(g: Any, dq: Any, dk: Any, dv: Any) -> None:
        values = _turned(value)
        for (a, b, end), e, total in reversed(list(zip(blocks, strips, sums))):
            share = g[..., a:b, :] / total
            ds = np.matmul(share, values[..., :end])
            ds -= np.vecdot(e, ds)[..., None] / total
            ds *= e
            dq[..., a:b, :] = np.matmul(ds, key[..., :end, :]) * factor
            for d, part in ((dk, np.matmul(np.swapaxes(ds, -1, -2), scaled[..., a:b, :])),
                            (dv, np.matmul(np.swapaxes(e, -1, -2), share))):
                if (a, b, end) == blocks[-1]:  # it looks at every key
                    d[...] = part
                else:
                    d[..., :end, :] += part

    return vjp


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
    scores -= np.max(scores, -1, keepdims=True, initial=np.finfo(scores.dtype).min)
    return np.exp(scores)


@functools.lru_cache(maxsize=64)
def _hidden(t: int, s: int) -> Any:
    """float32 [T, S]: −∞ where position t may not look, else 0. A sum, because np.where takes ten times as long."""
    return np.where(look_ahead(t, s), np.float32(-np.inf), np.float32(0))


def _turned(x: Any) -> Any:
    """xᵀ in memory of its own, which products read faster."""
    return np.swapaxes(x, -1, -2).copy()


def look_ahead(t: int, s: int) -> Any:
    """bool [T, S], True where position t may not look: at every s > t."""
    return np.arange(s) > np.arange(t)[:, None]


def _scale(query: Any, scale: float | None) -> float:
    return 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
