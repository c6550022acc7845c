"""Scaled dot-product attention. Its `definition` is the same function in primitive NumPy calls: read that first."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from tinygrad_llm.ops.constants import constant, full
from tinygrad_llm.ops.declare import Vjp, op
from tinygrad_llm.ops.opaque import opaque

_ROWS = 64  # query rows at a time: what a causal mask hides is skipped but for half a block
_FEW = 4096  # scores, at most, of which the sum of squares is tried first


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

    For each block of query rows:   e = exp(Q Kᵀ · scale),  P = e / Σ e,  out = P V.   And back:
    dV = Pᵀ g,  dP = g Vᵀ,  dS = P · (dP − Σ dP P),  dQ = dS K · scale,  dK = dSᵀ Q · scale.
    Of a row whose largest score is large, it is taken out first: see _exponentials.
    Σ dP P is also Σ g · out, over the shorter rows of the output (Dao et al. 2022, arXiv:2205.14135), but only the former
    cancels exactly where a row looks at one position alone: the latter's rounding is noise that Adam makes steps of.
    A row whose scores are all −∞ gives zeros, as in torch: its e are 0, and Σ e = 0 is taken for the least number.
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
    scaled = _turned(key, factor)
    blocks = _blocks(query.shape[-2], key.shape[-2], is_causal)
    strips = [_softmax(np.matmul(query[..., a:b, :], scaled[..., :end]), a if is_causal else end) for a, b, end in blocks]
    for (a, b, end), p in zip(blocks, strips):
        out[..., a:b, :] = np.matmul(p, value[..., :end, :])

    def vjp(g: Any, dq: Any, dk: Any, dv: Any) -> None:
        values = _turned(value, factor)  # so that ds below is dS · scale
        for (a, b, end), p in reversed(list(zip(blocks, strips))):
            share = g[..., a:b, :]
            ds = np.matmul(share, values[..., :end])
            ds -= np.vecdot(p, ds)[..., None]
            ds *= p
            dq[..., a:b, :] = np.matmul(ds, key[..., :end, :])
            for d, part in ((dk, np.matmul(np.swapaxes(ds, -1, -2), query[..., a:b, :])),
                            (dv, np.matmul(np.swapaxes(p, -1, -2), share))):
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


def _softmax(scores: Any, start: int) -> Any:
    """softmax of some rows of scores, of which row i does not look beyond key start + i."""
    p = _exponentials(scores, start)
    p /= np.maximum(np.vecdot(p, full(p.shape[-1], 1, p.dtype)), np.finfo(p.dtype).tiny)[..., None]
    return p


@opaque(lambda scores, start: (scores.shape, scores.dtype), apart=True)
def _exponentials(scores: Any, start: int, out: Any = None) -> Any:
    """e^score, 0 for keys that are hidden; of a row whose largest score is far from 0, e^(score − largest).

    To find the largest of each row takes three times as long as the exponentials, the largest and the smallest of all a fifth
    of their time. Where these are near 0, nothing is taken out. Each row is judged by itself: its bits do not depend on others.
    Without `out`, it writes over the scores.
    """
    if out is None:
        out = scores
    elif out is not scores:
        np.copyto(out, scores)
    limit, columns = _limit(out.dtype), out.shape[-1]
    tame = _are_within(out.reshape(-1), limit)
    if start < columns:
        late = out[..., start:]
        np.add(late, _hidden(late.shape[-2], late.shape[-1], out.dtype), out=late)
    if not tame:
        largest = np.max(out, -1, keepdims=True, initial=np.finfo(out.dtype).min)
        out -= np.where(np.abs(largest) > limit, largest, 0)
    return np.exp(out, out=out)


def _are_within(flat: Any, limit: float) -> bool:
    """Whether |x| ≤ limit for all x; a NaN is not. Of a few, Σ x² mostly says so in one call, a third of the time."""
    if flat.size <= _FEW and flat.dot(flat) <= limit * limit:
        return True
    return bool(np.maximum.reduce(flat, initial=0) <= limit and np.minimum.reduce(flat, initial=0) >= -limit)


@functools.cache
def _limit(dtype: Any) -> float:
    """A third of the largest x whose e^x is finite, 29 in float32: sums of e^x, and products with them, are finite too."""
    return math.log(np.finfo(dtype).max) / 3


@constant
def _hidden(t: int, s: int, dtype: Any) -> Any:
    """[T, S]: −∞ where position t may not look, else 0. A sum, because np.where takes ten times as long."""
    return np.where(look_ahead(t, s), -np.inf, 0).astype(dtype)


def _turned(x: Any, factor: float) -> Any:
    """factor · xᵀ in memory of its own, which products read faster."""
    turned = np.swapaxes(x, -1, -2)
    return np.multiply(turned, factor, out=np.empty(turned.shape, x.dtype, like=x))


def look_ahead(t: int, s: int) -> Any:
    """bool [T, S], True where position t may not look: at every s > t."""
    return np.arange(s) > np.arange(t)[:, None]


def _scale(query: Any, scale: float | None) -> float:
    return 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
