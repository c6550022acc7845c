"""The fused ops of a Transformer. Each names its `definition`, the same function in primitive NumPy calls: read that first."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinygrad_llm.ops.declare import Vjp, compute, op
from tinygrad_llm.ops.errors import IndexRangeError
from tinygrad_llm.ops.opaque import as_values, opaque
from tinygrad_llm.ops.sums import total


def _softmax(x: Any) -> Any:
    """eˣ / Σ eˣ along the last axis, the largest taken out first so that nothing overflows."""
    e = np.exp(x - np.max(x, -1, keepdims=True))
    return e / np.sum(e, -1, keepdims=True)


def _log_softmax(x: Any) -> Any:
    z = x - np.max(x, -1, keepdims=True)
    return z - np.log(np.sum(np.exp(z), -1, keepdims=True))


@op(x="*B N>0", definition=_softmax, torch="F.softmax(x, -1)")
def softmax(x: Any) -> tuple[Any, Vjp]:
    """p = eˣ / Σ eˣ along the last axis.   dx = p · (g − Σ g p)"""
    p = _softmax(x)
    return p, lambda g: (p * (g - np.sum(g * p, -1, keepdims=True)),)


@op(x="*B N>0", definition=_log_softmax, torch="F.log_softmax(x, -1)")
def log_softmax(x: Any) -> tuple[Any, Vjp]:
    """x − ln Σ eˣ along the last axis.   dx = g − softmax(x) Σ g"""
    out = _log_softmax(x)
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


def _cross_entropy(logits: Any, target: Any, weight: Any, ignore_index: int, reduction: str, label_smoothing: float) -> Any:
    used, t, w = _targets(logits, target, weight, ignore_index)
    logp = _log_softmax(logits)
    picked = logp[np.arange(t.size), t]
    row = -(1 - label_smoothing) * w * picked
    if label_smoothing:
        smooth = logp if weight is None else logp * weight
        row = row - np.where(used, label_smoothing / logits.shape[-1], 0).astype(logits.dtype) * np.sum(smooth, -1)
    return _reduced(row, w, reduction)


@op(logits="N V>0", target="N int", weight="?V in (0.1, 2)",
    options={"ignore_index": (-100, 0), "reduction": ("mean", "sum", "none"), "label_smoothing": (0.0, 0.1)},
    definition=_cross_entropy,
    torch="F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction=reduction, "
          "label_smoothing=label_smoothing)")
def cross_entropy(
    logits: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> tuple[Any, Vjp]:
    """−Σ_v y_v w_v ln p_v for each row, p = softmax(logits), y = (1 − ε) onehot(target) + ε / V, in nats.

    reduction: "none" one loss a row, "sum" their sum, "mean" their sum over Σ w_target; rows whose target is ignore_index
    do not count. With a the cotangent of a row's loss:   dlogits = a · (p Σ_v y_v w_v − y w).   `weight` takes no gradient
    """
    used, t, w = _targets(logits, target, weight, ignore_index)
    logp = _log_softmax(logits)
    rows, v = np.arange(t.size), logits.shape[-1]
    smooth = np.where(used, label_smoothing / v, 0).astype(logits.dtype)
    row = -(1 - label_smoothing) * w * logp[rows, t]
    if label_smoothing:
        row = row - smooth * np.sum(logp if weight is None else logp * weight, -1)
    every = v if weight is None else np.sum(weight)

    def vjp(g: Any) -> tuple[Any, None, None]:
        a = g if reduction == "none" else np.broadcast_to(g / _denominator(w, reduction), w.shape)
        hit = (1 - label_smoothing) * w * a
        d = np.exp(logp) * (hit + smooth * a * every)[:, None]
        if label_smoothing:
            d = d - (smooth * a)[:, None] * (1 if weight is None else weight)
        d[rows, t] -= hit
        return d, None, None

    return _reduced(row, w, reduction), vjp


def _targets(logits: Any, target: Any, weight: Any, ignore_index: int) -> tuple[Any, Any, Any]:
    """(which rows count, target with ignored rows at class 0, weight of each row or 0)."""
    target = as_values(target)
    used = target != ignore_index
    t = np.where(used, target, 0)
    _check_classes(t, logits.shape[-1], ignore_index)
    w = used.astype(logits.dtype) if weight is None else np.where(used, as_values(weight)[t], 0).astype(logits.dtype)
    return used, t, w


@opaque(None)
def _check_classes(t: Any, classes: int, ignore_index: int) -> None:
    if t.size and (t.min() < 0 or t.max() >= classes):
        bad = t[(t < 0) | (t >= classes)].flat[0]
        raise IndexRangeError(
            f"cross_entropy: target: got class {bad}, expected 0 to {classes - 1}, or ignore_index = {ignore_index}"
        )


def _denominator(w: Any, reduction: str) -> Any:
    """Σ w for a mean; 1 where no row counts, so that the gradient is then 0, as in torch."""
    total_weight = np.sum(w)
    return total_weight + (total_weight == 0) if reduction == "mean" else 1


def _reduced(row: Any, w: Any, reduction: str) -> Any:
    if reduction == "none":
        return row
    if reduction not in ("mean", "sum"):
        raise ValueError(f"cross_entropy: reduction: got {reduction!r}, expected 'mean', 'sum' or 'none'")
    if reduction == "sum":
        return np.sum(row)
    over_none = np.where(np.sum(w) == 0, np.nan, 0).astype(w.dtype)  # the mean over no rows is nan, as in torch
    return np.sum(row) / _denominator(w, reduction) + over_none
