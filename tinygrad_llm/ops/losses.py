"""Losses. Each names its `definition`, the same function in primitive NumPy calls: read that first."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tinygrad_llm.ops.checks import unsigned
from tinygrad_llm.ops.constants import constant, full
from tinygrad_llm.ops.declare import Vjp, op
from tinygrad_llm.ops.errors import ArgumentError, IndexRangeError
from tinygrad_llm.ops.linalg import products_of_rows
from tinygrad_llm.ops.nn import log_softmax_of
from tinygrad_llm.ops.opaque import as_values, opaque
from tinygrad_llm.ops.sums import total

_CHUNK = 2**20  # logits at a time: 4 MB of float32


def _cross_entropy(logits: Any, target: Any, weight: Any, ignore_index: int, reduction: str, label_smoothing: float) -> Any:
    used, t, w = _targets("cross_entropy", logits, target, weight, ignore_index, logits.shape[-1])
    logp = log_softmax_of(logits)
    picked = logp[np.arange(t.size), t]
    row = -(1 - label_smoothing) * w * picked
    if label_smoothing:
        row = row - label_smoothing / logits.shape[-1] * np.sum(logp if weight is None else logp * weight, -1)
    return _reduced("cross_entropy", np.where(used, row, 0.0), w, reduction, label_smoothing)


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
    used, t, w = _targets("cross_entropy", logits, target, weight, ignore_index, logits.shape[-1])
    logp = log_softmax_of(logits)
    rows, v = np.arange(t.size), logits.shape[-1]
    row = -(1 - label_smoothing) * w * logp[rows, t]
    if label_smoothing:
        row = row - label_smoothing / v * np.sum(logp if weight is None else logp * weight, -1)

    @np.errstate(invalid="ignore")  # where Σ w is 0
    def vjp(g: Any) -> tuple[Any, None, None]:
        a = _shared(g, w, reduction)
        hit = np.where(used, (1 - label_smoothing) * w * a, 0)
        if label_smoothing:
            smooth, every = np.where(used, label_smoothing / v * a, 0), v if weight is None else np.sum(weight)
            d = np.exp(logp) * (hit + smooth * every)[:, None] - smooth[:, None] * (1 if weight is None else weight)
        else:
            d = np.exp(logp) * hit[:, None]
        d[rows, t] -= hit
        return d, None, None

    return _reduced("cross_entropy", np.where(used, row, 0), w, reduction, label_smoothing), vjp


def _linear_cross_entropy(x: Any, weight: Any, target: Any, bias: Any, ignore_index: int, reduction: str) -> Any:
    logits = np.matmul(x, np.swapaxes(weight, 0, 1))
    return _cross_entropy(logits if bias is None else logits + bias, target, None, ignore_index, reduction, 0.0)


@op(x="N D>0", weight="V>0 D", target="N int", bias="?V",
    options={"ignore_index": (-100, 0), "reduction": ("mean", "sum", "none")}, definition=_linear_cross_entropy,
    torch="F.cross_entropy(F.linear(x, weight, bias), target, ignore_index=ignore_index, reduction=reduction)")
def linear_cross_entropy(
    x: Any, weight: Any, target: Any, bias: Any = None, ignore_index: int = -100, reduction: str = "mean"
) -> tuple[Any, Vjp]:
    """cross_entropy(x Wᵀ + b, target) without the logits: of N × V numbers, one array is ever made and kept.

    The vocabulary goes by in chunks c, of which the strips e = exp(logits − m) are kept, m the largest of each row. With
    M the largest m, f = exp(m − M) and Z = Σ_c f Σ e:   p = e f / Z, and the loss of a row is ln Z + M − logit of the target.
    From e at the target Z / f is taken, so that e f / Z = p − y. With a the cotangent of a row's loss and r = a / (Z / f):
    dx = Σ_c r (e W_c),  dW_c = eᵀ (r x),  db_c = Σ r e.   f is at least eps², so that Z / f is finite; p errs by less than that
    """
    used, t, w = _targets("linear_cross_entropy", x, target, None, ignore_index, weight.shape[0])
    chunks = _chunks(x.shape[0], weight.shape[0])
    places = [_place(t, a, b) for a, b in chunks] if len(chunks) > 1 else [(None, _starts(t.size, weight.shape[0]) + t)]
    found = [_strip(x, weight[a:b], None if bias is None else bias[a:b], p) for (a, b), p in zip(chunks, places)]
    strips, largest, picked = ([one[i] for one in found] for i in range(3))
    top, z, wholes = _joined(strips, largest)
    row = np.where(used, np.log(z) + (top - functools.reduce(np.add, picked)), 0)
    for e, whole, (inside, at) in zip(strips, wholes, places):
        e.reshape(-1)[at] -= _only(inside, whole)
    has_bias = bias is not None

    def vjp(g: Any) -> tuple[Any, Any, None, Any]:
        share = np.where(used, _shared(g, w, reduction), 0)
        dx, dw, db = None, np.empty_like(weight), []
        for (a, b), e, whole in zip(chunks, strips, wholes):
            r = (share / whole)[:, None]
            part, dw[a:b] = _products(e, r, x, weight[a:b])
            dx = part if dx is None else dx + part
            db += [total(e * r, (0,))] if has_bias else []
        return dx, dw, None, np.concatenate(db) if has_bias else None

    return _reduced("linear_cross_entropy", row, w, reduction), vjp


def _chunks(n: int, v: int) -> list[tuple[int, int]]:
    """Start and end of each chunk of the vocabulary."""
    size = max(_CHUNK // max(n, 1) // 64 * 64, 512)
    return [(a, min(a + size, v)) for a in range(0, v, size)]


def _place(t: Any, start: int, end: int) -> tuple[Any, Any]:
    """(whether the target is in the chunk, place of its logit, or of its row's first, among those of the chunk)."""
    inside = (t >= start) & (t < end)
    return inside, _starts(t.size, end - start) + np.where(inside, t - start, 0)


@constant
def _starts(rows: int, columns: int) -> np.ndarray:
    """The place of the first element of each row in a matrix."""
    return np.arange(0, rows * columns, columns)


def _only(inside: Any, x: Any) -> Any:
    """x where the target is in the chunk, else 0; inside is None where there is but one chunk."""
    return x if inside is None else np.where(inside, x, 0)


def _strip(x: Any, weight: Any, bias: Any, place: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    """(exp(logits − largest), largest of each row, logit of the target where it is in this chunk, else 0)."""
    logits = np.matmul(x, np.swapaxes(weight, 0, 1))
    if bias is not None:
        logits += bias
    picked = _only(place[0], np.take(logits.reshape(-1), place[1], 0, mode="clip"))
    largest = np.max(logits, -1, initial=np.finfo(logits.dtype).min)  # finite, where a bias of −∞ hides the whole chunk
    logits -= largest[:, None]
    return np.exp(logits), largest, picked


def _joined(strips: list[Any], largest: list[Any]) -> tuple[Any, Any, list[Any]]:
    """(M, Z, Z / f of each chunk)"""
    sums = [_row_sums(e) for e in strips]
    if len(strips) == 1:
        return largest[0], sums[0], sums
    top, tiny = functools.reduce(np.maximum, largest), float(np.finfo(sums[0].dtype).eps) ** 2
    factors = [np.maximum(np.exp(m - top), tiny) for m in largest]
    z = functools.reduce(np.add, [f * s for f, s in zip(factors, sums)])
    return top, z, [z / f for f in factors]


def _row_sums(e: Any) -> Any:
    return np.vecdot(e, full(e.shape[-1], 1, e.dtype))


def _products(e: Any, r: Any, x: Any, weight: Any) -> tuple[Any, Any]:
    """(r e W, eᵀ (r x)), the factors r of the rows applied where the rows are shorter."""
    if weight.shape[0] <= weight.shape[1]:
        scaled = e * r
        return np.matmul(scaled, weight), products_of_rows(scaled, x)
    return np.matmul(e, weight) * r, products_of_rows(e, x * r)


def _targets(name: str, x: Any, target: Any, weight: Any, ignore_index: int, classes: int) -> tuple[Any, Any, Any]:
    """(which rows count, target with ignored rows at class 0, weight of each row, or 0, in the dtype of x)."""
    target = as_values(target)
    used = target != ignore_index
    t = np.where(used, target, 0)
    _check_classes(t, name, classes, ignore_index)
    w = used.astype(x.dtype) if weight is None else np.where(used, as_values(weight)[t], 0).astype(x.dtype)
    return used, t, w


@opaque(None)
def _check_classes(t: Any, name: str, classes: int, ignore_index: int) -> None:
    if t.size and np.maximum.reduce(unsigned(t), None) >= classes:
        bad = t[(t < 0) | (t >= classes)].flat[0]
        raise IndexRangeError(f"{name}: target: got class {bad}, expected 0 to {classes - 1}, or ignore_index = {ignore_index}")


def _shared(g: Any, w: Any, reduction: str) -> Any:
    """The cotangent of a row's loss of weight 1: g / Σ w for a mean, else g."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return g / np.sum(w) if reduction == "mean" else g


def _reduced(name: str, row: Any, w: Any, reduction: str, smoothing: float = 0) -> Any:
    if reduction == "none":
        return row
    if reduction not in ("mean", "sum"):
        raise ArgumentError(f"{name}: reduction: got {reduction!r}, expected 'mean', 'sum' or 'none'")
    if reduction == "sum":
        return np.sum(row)
    with np.errstate(divide="ignore", invalid="ignore"):
        loss, whole = np.sum(row), np.sum(w)
        return loss / whole + 0 / whole if smoothing else loss / whole  # nan where Σ w is 0, as in torch
