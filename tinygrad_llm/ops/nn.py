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
    e = np.exp(x - np.max(x, -1, keepdims=True))
    p = e / _dot(e, np.ones(e.shape[-1], e.dtype))
    return p, lambda g: ((g - _dot(g, p)) * p,)


@op(x="*B N>0", definition=log_softmax_of, torch="F.log_softmax(x, -1)")
def log_softmax(x: Any) -> tuple[Any, Vjp]:
    """x − ln Σ eˣ along the last axis.   dx = g − softmax(x) Σ g"""
    z = x - np.max(x, -1, keepdims=True)
    out = z - np.log(_dot(np.exp(z), np.ones(z.shape[-1], z.dtype)))
    return out, lambda g: (g - np.exp(out) * _dot(g, np.ones(g.shape[-1], g.dtype)),)


def _dot(x: Any, y: Any) -> Any:
    """Σ x y along the last axis, which stays, in one pass: np.sum and np.mean take three times as long as np.vecdot."""
    return np.vecdot(x, y)[..., None]


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
    n, ones = x.shape[-1], np.ones(x.shape[-1], x.dtype)
    normal = x - _dot(x, ones) / n
    scale = 1 / np.sqrt(_dot(normal, normal) / n + eps)
    normal *= scale
    has_bias = bias is not None

    def vjp(g: Any) -> tuple[Any, ...]:
        w = ones if weight is None else weight
        inner, dweight = _along(g, normal, w, weight is not None)
        away = normal * inner
        away += _dot(g, w) / n
        dx = g * w
        dx -= away
        dx *= scale
        return dx, dweight, total(g, tuple(range(g.ndim - 1))) if has_bias else None

    out = normal if weight is None else normal * weight
    return out if bias is None else out + bias, vjp


def _along(g: Any, normal: Any, w: Any, has_weight: bool) -> tuple[Any, Any]:
    """(mean(g w x̂) of each row, Σ g x̂ over the rows)."""
    along = g * normal
    return _dot(along, w) / g.shape[-1], total(along, tuple(range(g.ndim - 1))) if has_weight else None


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    out = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    return out if weight is None else out * weight


@op(x="*B N>0", weight="?N", options={"eps": (1e-5, 1e-3)}, definition=_rms_norm,
    torch="F.rms_norm(x, x.shape[-1:], weight, eps)")
def rms_norm(x: Any, weight: Any, eps: float = 1e-5) -> tuple[Any, Vjp]:
    """weight · x̂,  x̂ = x / √(E[x²] + eps).   Zhang & Sennrich 2019, arXiv:1910.07467

    With ĝ = g · weight:   dx = (ĝ − x̂ · mean(ĝ x̂)) / √(E[x²] + eps),  dweight = Σ g x̂
    """
    n, ones = x.shape[-1], np.ones(x.shape[-1], x.dtype)
    scale = 1 / np.sqrt(_dot(x, x) / n + eps)
    normal = x * scale

    def vjp(g: Any) -> tuple[Any, ...]:
        w = ones if weight is None else weight
        inner, dweight = _along(g, normal, w, weight is not None)
        dx = g * w
        dx -= normal * inner
        dx *= scale
        return dx, dweight

    return normal if weight is None else normal * weight, vjp


@op(weight="V D", ids="*B int < V", torch="F.embedding(ids, weight)")
def embedding(weight: Any, ids: Any) -> tuple[Any, Vjp]:
    """Row ids[...] of weight for each id.   dweight = Σ of the g of all places where the row was taken"""
    rows = weight.shape[0]
    taken = np.take(weight, ids, 0, mode="clip")  # none is to be clipped, all are checked; indexing takes three times as long
    return taken, lambda g: (compute(add_rows, g, ids, rows=rows), None)


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
    out.fill(0)
    flat = ids.reshape(-1)
    if flat.size:
        order = flat.argsort(kind="stable")
        ordered, is_first = flat.take(order), np.ones(flat.size, bool)
        np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
        (starts,) = is_first.nonzero()
        rows_in_order = x.reshape((flat.size, x.shape[-1])).take(order, 0)
        out[ordered.take(starts)] = np.add.reduceat(rows_in_order, starts, 0)
    return out
