"""Losses, embeddings and linear layers that are wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reference.bugs.patch import Apply, Bug, method, op_body, op_gradients, op_output
from tinygrad_llm.ops import REGISTRY


def cross_entropy(**mistake: Any) -> Apply:
    """Cross entropy with mistakes; see _body."""
    original = REGISTRY["cross_entropy"].function

    def body(logits: Any, target: Any, weight: Any = None, *rest: Any, **options: Any) -> tuple[Any, Any]:
        if weight is not None or rest:
            return original(logits, target, weight, *rest, **options)
        return _body(logits, target, **options, **mistake)

    return op_body("cross_entropy", body)


def _body(
    logits: Any, target: Any, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0,
    *, classes_off: int = 0, count_ignored: bool = False, smooth_ignored: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """A plain cross entropy without class weights, and switches for its mistakes; without one it is right."""
    n, v = logits.shape
    used = (target != ignore_index)[:, None]
    y = np.zeros(logits.shape, logits.dtype)
    y[np.arange(n), np.where(used[:, 0], target, 0)] = 1 - label_smoothing
    y = np.where(used, y + label_smoothing / max(v - classes_off, 1), label_smoothing / v * smooth_ignored)
    y = y.astype(logits.dtype)
    z = logits - np.max(logits, -1, keepdims=True)
    logp = z - np.log(np.sum(np.exp(z), -1, keepdims=True))
    count = n if count_ignored else max(int(used.sum()), 1)
    row = -np.sum(y * logp, -1)
    share = logits.dtype.type(1 / count if reduction == "mean" else 1)

    def vjp(g: Any) -> tuple[Any, ...]:
        a = (g if reduction == "none" else np.broadcast_to(g * share, (n,)))[:, None]
        return a * (np.exp(logp) * np.sum(y, -1, keepdims=True) - y), None, None

    return row if reduction == "none" else np.sum(row) * share, vjp


def _mean_twice(gradients: list[Any], g: Any, logits: Any, *rest: Any) -> list[Any]:
    return [gradients[0] / logits.dtype.type(len(logits)), *gradients[1:]]


def _no_one_hot(gradients: list[Any], g: Any, logits: Any, target: Any, *rest: Any) -> list[Any]:
    d = np.array(gradients[0])
    d[np.arange(len(d)), np.where(target < 0, 0, target)] = 0
    return [d, *gradients[1:]]


def _shifted_targets(original: Any, library: Any) -> Any:
    def loss(self: Any, ids: Any, targets: Any) -> Any:
        return original(self, ids, np.asarray(ids))

    return loss


def _rolled_targets(original: Any, library: Any) -> Any:
    return lambda self, ids, targets: original(self, ids, np.roll(np.asarray(targets), -1, axis=1))


def _sum_loss(original: Any, library: Any) -> Any:
    def loss(self: Any, ids: Any, targets: Any) -> Any:
        return original(self, ids, targets) * float(np.asarray(targets).size)

    return loss


def _last_row_wins(gradients: list[Any], g: Any, weight: Any, ids: Any) -> list[Any]:
    out = np.zeros(weight.shape, g.dtype)
    out[ids] += g  # the bug itself: NumPy writes each row once
    return [out, None]


def _scaled_by_count(gradients: list[Any], g: Any, weight: Any, ids: Any) -> list[Any]:
    counts = np.bincount(np.asarray(ids).ravel(), minlength=len(weight)).clip(1)[:, None]
    return [(gradients[0] / counts).astype(g.dtype), None]


def _linear(change: Any) -> Apply:
    return op_gradients("linear", change)


BUGS = [
    Bug("loss", "targets off by one: the input itself", "predicts what it was shown",
        method("model.Transformer.loss", _shifted_targets)),
    Bug("loss", "targets off by one: one too far", "np.roll instead of a shifted slice",
        method("model.Transformer.loss", _rolled_targets)),
    Bug("loss", "gradient averaged twice", "1/N in the loss and in its backward", op_gradients("cross_entropy", _mean_twice)),
    Bug("loss", "sum in place of mean", "reduction", method("model.Transformer.loss", _sum_loss)),
    Bug("loss", "in bits, not nats", "log₂ for ln",
        op_output("cross_entropy", lambda out, *args, **options: (out / math.log(2)).astype(args[0].dtype))),
    Bug("loss", "label smoothing over V − 1 classes", "Szegedy et al. 2016 spread it over all V", cross_entropy(classes_off=1)),
    Bug("loss", "ignored targets counted in the mean", "torch divides by those that count", cross_entropy(count_ignored=True)),
    Bug("loss", "ignored targets still smoothed", "label smoothing before ignore_index", cross_entropy(smooth_ignored=True)),
    Bug("loss", "p without the one-hot", "dlogits = p − y", op_gradients("cross_entropy", _no_one_hot)),
    Bug("embedding", "+= on repeated rows", "NumPy's W[ids] += g keeps the last", op_gradients("embedding", _last_row_wins)),
    Bug("embedding", "repeated rows averaged", "a token's gradient is a sum", op_gradients("embedding", _scaled_by_count)),
    Bug("linear", "weight's gradient transposed", "gᵀ x, not xᵀ g; shapes agree where W is square",
        _linear(lambda d, g, x, w, b=None: [d[0], d[1].T.copy() if w.shape[0] == w.shape[1] else d[1], *d[2:]])),
    Bug("linear", "no bias gradient", "zeros in its place",
        _linear(lambda d, g, *rest: [*d[:2], None if d[2] is None else d[2] * 0])),
    Bug("linear", "bias gradient: mean over rows", "db = Σ g",
        _linear(lambda d, g, x, *rest: [*d[:2], None if d[2] is None else d[2] / g.dtype.type(x[..., 0].size)])),
    Bug("linear", "weight's gradient of the last sequence only", "= in place of += over a batch",
        _linear(lambda d, g, x, *rest: [d[0], _of_last(g, x) if x.ndim > 2 else d[1], *d[2:]])),
]  # fmt: skip


def _of_last(g: Any, x: Any) -> Any:
    g, x = np.reshape(g, (*x.shape[:-1], -1)), np.asarray(x)
    return np.matmul(np.swapaxes(g[-1].reshape(-1, g.shape[-1]), 0, 1), x[-1].reshape(-1, x.shape[-1]))
