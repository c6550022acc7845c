"""Attention that is wrong: masks, scales, softmax, heads."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from reference.bugs.patch import Apply, Bug, method, op_body, op_gradients

VASWANI = "Vaswani et al. 2017: softmax(Q Kᵀ / √D) V"


def attention(
    query: Any, key: Any, value: Any, *rest: Any, is_causal: bool = False, scale: float | None = None, power: float = -0.5,
    mask: str = "before", offset: int = 1, axis: int = -1, sum_term: bool = True, key_scales: int = 1, hidden: float = -np.inf,
    **options: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Attention with switches for its mistakes; without one it is right."""
    factor = query.shape[-1] ** power if scale is None else scale
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) * query.dtype.type(factor)
    ahead = np.arange(scores.shape[-1]) >= np.arange(scores.shape[-2])[:, None] + offset
    ahead = ahead if is_causal and mask != "none" else np.zeros_like(ahead)
    if mask == "before":
        scores = np.where(ahead, scores.dtype.type(hidden), scores)
    e = np.exp(scores - np.max(scores, axis, keepdims=True))
    p = e / np.sum(e, axis, keepdims=True)
    if mask == "after":
        p = np.where(ahead, p.dtype.type(0), p)

    def vjp(g: Any) -> tuple[Any, ...]:
        dp = np.matmul(g, np.swapaxes(value, -1, -2))
        mean = np.sum(dp * p, axis, keepdims=True) if sum_term else 0
        ds = p * (dp - mean) * query.dtype.type(factor)
        dk = np.matmul(np.swapaxes(ds, -1, -2), query) * query.dtype.type(factor ** (key_scales - 1))
        return np.matmul(ds, key), dk, np.matmul(np.swapaxes(p, -1, -2), g), *[None for _ in rest]

    return np.matmul(p, value), vjp


def _wrong(**mistake: Any) -> Apply:
    return op_body("attention", partial(attention, **mistake))


def _swapped(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> tuple[Any, Any]:
    if query.shape != key.shape:
        return attention(query, key, value, *rest, **options)
    out, vjp = attention(key, query, value, *rest, **options)

    def swapped(g: Any) -> tuple[Any, ...]:
        dk, dq, *others = vjp(g)
        return dq, dk, *others

    return out, swapped


def _heads(original: Any, library: Any, split: str = "right", merge: str = "right", parts: tuple[int, ...] = (0, 1, 2)) -> Any:
    """Attention.forward with switches for mistakes of its shapes."""

    def forward(self: Any, x: Any) -> Any:
        b, t, d = x.shape
        size = d // self.n_heads
        chunks = [self.qkv_proj(x)[:, :, i * d : (i + 1) * d] for i in parts]
        if split == "wrong":
            q, k, v = (chunk.reshape(b, self.n_heads, t, size) for chunk in chunks)
        elif split == "interleaved":
            q, k, v = (chunk.reshape(b, t, size, self.n_heads).permute(0, 3, 1, 2) for chunk in chunks)
        else:
            q, k, v = (chunk.reshape(b, t, self.n_heads, size).permute(0, 2, 1, 3) for chunk in chunks)
        heads = library.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged = heads.transpose(1, 2) if merge == "right" else heads
        return self.out_proj(merged.reshape(b, t, d))

    return forward


def _mistaken_heads(**mistake: Any) -> Apply:
    return method("model.Attention.forward", partial(_heads, **mistake))


def _no_subtraction(x: Any) -> tuple[Any, Any]:
    e = np.exp(x)
    p = e / np.sum(e, -1, keepdims=True)
    return p, lambda g: (p * (g - np.sum(g * p, -1, keepdims=True)),)


BUGS = [
    Bug("attention", "scale 1/D", VASWANI, _wrong(power=-1.0)),
    Bug("attention", "no scale", VASWANI, _wrong(power=0.0)),
    Bug("attention", "scale √D in place of 1/√D", VASWANI, _wrong(power=0.5)),
    Bug("attention", "key's gradient scaled twice", "scale applied to q, k and dk", _wrong(key_scales=2)),
    Bug("attention", "no causal mask", "a decoder that reads the future", _wrong(mask="none")),
    Bug("attention", "mask after the softmax", "rows then do not sum to 1", _wrong(mask="after")),
    Bug("attention", "mask off by one: sees its target", "np.triu(k=1) or k=2", _wrong(offset=2)),
    Bug("attention", "mask off by one: not itself", "np.triu(k=0)", _wrong(offset=0)),
    Bug("attention", "mask −10 in place of −∞", "a finite mask", _wrong(hidden=-10.0)),
    Bug("attention", "softmax over the queries", "axis −2 in place of −1", _wrong(axis=-2)),
    Bug("attention", "dS without Σ dP P", "softmax backward without its sum", _wrong(sum_term=False)),
    Bug("attention", "query and key swapped", "k qᵀ in place of q kᵀ", op_body("attention", _swapped)),
    Bug("attention", "dV = P g, not Pᵀ g", "a transpose",
        op_gradients("attention", lambda d, g, q, k, v, *rest: [d[0], d[1], _untransposed(d[2], g, q, k), *d[3:]])),
    Bug("attention", "heads split along the wrong axis", "reshape [B,T,d] to [B,H,T,D]", _mistaken_heads(split="wrong")),
    Bug("attention", "heads interleaved in the features", "reshape to [.., D, H]", _mistaken_heads(split="interleaved")),
    Bug("attention", "heads merged without transposing", "reshape [B,H,T,D] to [B,T,d]", _mistaken_heads(merge="wrong")),
    Bug("attention", "q, k, v packed in the order k, q, v", "the layout of qkv_proj", _mistaken_heads(parts=(1, 0, 2))),
    Bug("softmax", "gradient without its sum term", "dx = p (g − Σ g p)",
        op_gradients("softmax", lambda d, g, x: [g * _softmax(x)])),
    Bug("softmax", "gradient of zeros", "passes every test whose cotangent is all ones",
        op_gradients("softmax", lambda d, g, x: [np.zeros_like(g)])),
    Bug("softmax", "only the diagonal of the Jacobian", "dx = g p (1 − p), the sigmoid's",
        op_gradients("softmax", lambda d, g, x: [g * _softmax(x) * (1 - _softmax(x))])),
    Bug("softmax", "largest not subtracted", "overflows from 89 on in float32", op_body("softmax", _no_subtraction)),
]  # fmt: skip


def _softmax(x: Any) -> Any:
    e = np.exp(x - np.max(x, -1, keepdims=True))
    return e / np.sum(e, -1, keepdims=True)


def _untransposed(right: Any, g: Any, query: Any, key: Any) -> Any:
    scores = np.matmul(query, np.swapaxes(key, -1, -2)) / query.dtype.type(math.sqrt(query.shape[-1]))
    p = _softmax(scores)
    return np.matmul(p, g) if p.shape[-1] == p.shape[-2] else right * 0
