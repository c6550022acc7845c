"""The fused ops of a Transformer. Each names its `definition`, the same function in primitive NumPy calls: read that first."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_llm.ops.declare import Vjp, compute, op
from tinygrad_llm.ops.opaque import opaque
from tinygrad_llm.ops.sums import total


def _softmax(x: Any) -> Any:
    """eˣ / Σ eˣ along the last axis, the largest taken out first so that nothing overflows."""
    e = np.exp(x - np.max(x, -1, keepdims=True))
    return e / np.sum(e, -1, keepdims=True)


def log_softmax_of(x: Any) -> Any:
    z = x - np.max(x, -1, keepdims=True)
    return z - np.log(np.sum(np.exp(z), -1, keepdims=True))


@op(x="*B N>0", definition=_softmax, torch="F.softmax(x, -1)")
def softmax(x: Any) -> tuple[Any, Vjp]:
    """p = eˣ / Σ eˣ along the last axis.   dx = p · (g − Σ g p)"""
    p = _softmax(x)
    return p, lambda g: (p * (g - np.sum(g * p, -1, keepdims=True)),)


@op(x="*B N>0", definition=log_softmax_of, torch="F.log_softmax(x, -1)")
def log_softmax(x: Any) -> tuple[Any, Vjp]:
    """x − ln Σ eˣ along the last axis.   dx = g − softmax(x) Σ g"""
    out = log_softmax_of(x)
    return out, lambda g: (g - np.exp(out) * np.sum(g, -1, keepdims=True),)


def _layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    centred = x - np.mean(x, -1, keepdims=True)
    out = centred / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


@op(x="*B N>0", weight="?N", bias="?N", options={"eps": (1e-5, 1e-3)}, definition=_layer_norm,
    torch="F.layer_norm(x, x.shape[-1:], weight, bias, eps)")
def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> tuple[Any, Vjp]:
    """weight · x̂ + bias,  x̂ = (x − E[x]) / √(Var[x] + eps).   Ba et al. 2016, arXiv:1607.06450

    With ĝ = g · weight:   dx = (ĝ − mean ĝ − x̂ · mean(ĝ x̂)) / √(Var[x] + eps),  dweight = Σ g x̂,  dbias = Σ g
    """
    centred = x - np.mean(x, -1, keepdims=True)
    scale = 1 / np.sqrt(np.mean(centred * centred, -1, keepdims=True) + eps)
    normal = centred * scale
    has_bias = bias is not None

    def vjp(g: Any) -> tuple[Any, ...]:
        leading = tuple(range(g.ndim - 1))
        gw = g if weight is None else g * weight
        dx = scale * (gw - np.mean(gw, -1, keepdims=True) - normal * np.mean(gw * normal, -1, keepdims=True))
        return dx, None if weight is None else total(g * normal, leading), total(g, leading) if has_bias else None

    out = normal if weight is None else normal * weight
    return out if bias is None else out + bias, vjp


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    out = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    return out if weight is None else out * weight


@op(x="*B N>0", weight="?N", options={"eps": (1e-5, 1e-3)}, definition=_rms_norm,
    torch="F.rms_norm(x, x.shape[-1:], weight, eps)")
def rms_norm(x: Any, weight: Any, eps: float = 1e-5) -> tuple[Any, Vjp]:
    """weight · x̂,  x̂ = x / √(E[x²] + eps).   Zhang & Sennrich 2019, arXiv:1910.07467

    With ĝ = g · weight:   dx = (ĝ − x̂ · mean(ĝ x̂)) / √(E[x²] + eps),  dweight = Σ g x̂
    """
    scale = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    normal = x * scale

    def vjp(g: Any) -> tuple[Any, ...]:
        gw = g if weight is None else g * weight
        dx = scale * (gw - normal * np.mean(gw * normal, -1, keepdims=True))
        return dx, None if weight is None else total(g * normal, tuple(range(g.ndim - 1)))

    return normal if weight is None else normal * weight, vjp


@op(weight="V D", ids="*B int < V", torch="F.embedding(ids, weight)")
def embedding(weight: Any, ids: Any) -> tuple[Any, Vjp]:
    """Row ids[...] of weight for each id.   dweight = Σ of the g of all places where the row was taken"""
    rows = weight.shape[0]
    return weight[ids], lambda g: (compute(add_rows, g, ids, rows=rows), None)


@op(x="*B D", ids="*B int < rows", options={"rows": (7,)},
    torch="torch.zeros(rows, x.shape[-1], dtype=x.dtype).index_put((ids,), x, accumulate=True)")
def add_rows(x: Any, ids: Any, rows: int) -> tuple[Any, Vjp]:
    """A matrix of `rows` rows in which row ids[n] is the sum of the x[n]; leading axes are flattened.   dx = g[ids]

    Rows are sorted by id and added in runs: `out[ids] += x` would keep only the last of repeated rows, and
    `np.add.at` is slow on matrices.
    """
    return _add_rows(x, ids, rows), lambda g: (g[ids], None)


@opaque(lambda x, ids, rows: ((rows, x.shape[-1]), x.dtype))
def _add_rows(x: Any, ids: Any, rows: int, out: Any = None) -> Any:
    out = np.empty((rows, x.shape[-1]), x.dtype) if out is None else out
    out[...] = 0
    flat = ids.reshape(-1)
    if flat.size:
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        out[ordered[starts]] = np.add.reduceat(x.reshape((flat.size, x.shape[-1]))[order], starts, axis=0)
    return out
