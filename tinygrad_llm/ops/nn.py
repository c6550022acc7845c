"""The fused ops of a Transformer. Each names its `definition`, the same function in primitive NumPy calls: read that first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.ops.constants import constant, full
from tinygrad_llm.ops.declare import Vjp, compute, op
from tinygrad_llm.ops.opaque import opaque
from tinygrad_llm.ops.sums import total

_FEW = 1024  # places of a matrix of zeros and ones


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
    p = e / _sum(e)
    return p, lambda g: ((g - _dot(g, p)) * p,)


@op(x="*B N>0", definition=log_softmax_of, torch="F.log_softmax(x, -1)")
def log_softmax(x: Any) -> tuple[Any, Vjp]:
    """x − ln Σ eˣ along the last axis.   dx = g − softmax(x) Σ g"""
    z = x - np.max(x, -1, keepdims=True)
    out = z - np.log(_sum(np.exp(z)))
    return out, lambda g: (g - np.exp(out) * _sum(g),)


def _dot(x: Any, y: Any) -> Any:
    """Σ x y along the last axis, which stays, in one pass: np.sum and np.mean take three times as long as np.vecdot."""
    return np.vecdot(x, y)[..., None]


def _sum(x: Any) -> Any:
    return _dot(x, full(x.shape[-1], 1, x.dtype))


def _mean(x: Any) -> Any:
    """Where n is a power of two, x / n is exact. Else its rounding would be seen where numbers are large and nearly equal."""
    n = x.shape[-1]
    return _sum(x) / n if n & (n - 1) else _dot(x, full(n, 1 / n, x.dtype))


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
    normal = x - _mean(x)
    scale = _inverse_root(_dot(normal, normal), x.shape[-1], eps)
    normal *= scale
    has_bias = bias is not None

    def vjp(g: Any) -> tuple[Any, ...]:
        w, share, inner, dweight = _along(g, normal, weight)
        away = normal * inner
        away += _dot(g, share)
        dx = g * w
        dx -= away
        dx *= scale
        return dx, dweight, total(g, tuple(range(g.ndim - 1))) if has_bias else None

    out = normal if weight is None else normal * weight
    return out if bias is None else out + bias, vjp


def _inverse_root(squares: Any, n: int, eps: float) -> Any:
    """1 / √(Σ/n + eps) of the sum of n squares. n / Σ would overflow where Σ is a denormal."""
    return math.sqrt(n) / np.sqrt(squares + n * eps)


def _along(g: Any, normal: Any, weight: Any) -> tuple[Any, Any, Any, Any]:
    """(weight, weight / n, mean(g w x̂) of each row, Σ g x̂ over the rows); ones, and None for the last, where there is none."""
    n, along = g.shape[-1], g * normal
    if weight is None:
        return full(n, 1, g.dtype), full(n, 1 / n, g.dtype), _mean(along), None
    share = weight / n
    return weight, share, _dot(along, share), total(along, tuple(range(g.ndim - 1)))


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    out = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps)
    return out if weight is None else out * weight


@op(x="*B N>0", weight="?N", options={"eps": (1e-5, 1e-3)}, definition=_rms_norm,
    torch="F.rms_norm(x, x.shape[-1:], weight, eps)")
def rms_norm(x: Any, weight: Any, eps: float = 1e-5) -> tuple[Any, Vjp]:
    """weight · x̂,  x̂ = x / √(E[x²] + eps).   Zhang & Sennrich 2019, arXiv:1910.07467

    With ĝ = g · weight:   dx = (ĝ − x̂ · mean(ĝ x̂)) / √(E[x²] + eps),  dweight = Σ g x̂
    """
    scale = _inverse_root(_dot(x, x), x.shape[-1], eps)
    normal = x * scale

    def vjp(g: Any) -> tuple[Any, ...]:
        w, _, inner, dweight = _along(g, normal, weight)
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
    `np.add.at` is slow on matrices. A few are added by a product with the matrix that has a 1 where a row goes.
    """
    return _add_rows(x, ids, rows), lambda g: (g[ids], None)


@opaque(lambda x, ids, rows: ((rows, x.shape[-1]), x.dtype))
def _add_rows(x: Any, ids: Any, rows: int, out: Any = None) -> Any:
    index, sums = sums_of_rows(x, ids, rows)
    out = np.empty((rows, x.shape[-1]), x.dtype) if out is None else out
    if index is not ...:
        out.fill(0)
    out[index] = sums
    return out


ADD_ROWS = _add_rows.__wrapped__  # type: ignore[attr-defined]
"""What a program calls to make the gradient of an embedding."""


def sums_of_rows(x: np.ndarray, ids: np.ndarray, rows: int) -> tuple[Any, np.ndarray]:
    """(rows that are named by ids, each once, or ... for all, sum of the x[n] of each)."""
    flat, lines = ids.reshape(-1), x.reshape((ids.size, x.shape[-1]))
    if 0 < flat.size * rows <= _FEW:
        sums = (_numbers(rows) == flat).astype(x.dtype).dot(lines)
        if np.isfinite(sums).all():  # or 0 times infinity has reached rows that it does not belong to
            return ..., sums
    order = flat.argsort(kind="stable")
    ordered, is_first = flat.take(order), np.ones(flat.size, bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    (starts,) = is_first.nonzero()
    return ordered.take(starts), np.add.reduceat(lines.take(order, 0), starts, 0) if starts.size else lines[:0]


@constant
def _numbers(n: int) -> np.ndarray:
    """0 … n − 1, as a column."""
    return np.arange(n)[:, None]
