"""The functions of neural networks, with torch.nn.functional's names, arguments and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, apply
from tinygrad_llm.functions import (
    as_operand,
    as_tensor,
    broadcast_to,
    exp,
    gather,
    log,
    log1p,
    log_softmax,
    matmul,
    mul,
    neg,
    relu,
    reshape,
    sigmoid,
    softmax,
    square,
    squeeze,
    tanh,
    to,
    unsqueeze,
    where,
)
from tinygrad_llm.functions.base import only_floats
from tinygrad_llm.ops import DtypeError, IndexRangeError, ShapeError, elementwise, linalg, nn
from tinygrad_llm.ops.attention import attention, look_ahead
from tinygrad_llm.ops.opaque import as_values

__all__ = [
    "cross_entropy", "dropout", "embedding", "gelu", "kl_div", "layer_norm", "linear", "log_softmax", "mse_loss", "nll_loss",
    "one_hot", "relu", "rms_norm", "scaled_dot_product_attention", "sigmoid", "silu", "softmax", "softmin", "softplus", "tanh",
]


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """x Wᵀ + b.   input [..., in], weight [out, in], bias [out] → [..., out]"""
    return apply(linalg.linear, as_operand(input), weight, bias)


def gelu(input: Any, approximate: str = "none") -> Tensor:
    """x Φ(x); approximate="tanh" is GPT-2's form."""
    return apply(elementwise.gelu, only_floats("gelu", input), approximate=approximate)


def silu(input: Any) -> Tensor:
    """x σ(x).   Elfwing et al. 2017, arXiv:1702.03118"""
    x = only_floats("silu", input)
    return mul(x, sigmoid(x))


def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """ln(1 + e^(βx)) / β; x itself where βx > threshold, as in torch."""
    x = only_floats("softplus", input)
    large = np.asarray(x) * beta > threshold
    curved = log1p(exp(mul(where(large, 0.0, x) if large.any() else x, beta))) / beta
    return where(large, x, curved) if large.any() else curved


def softmin(input: Any, dim: int = -1, dtype: Any = None) -> Tensor:
    """e⁻ˣ / Σ e⁻ˣ along dim."""
    return softmax(neg(input), dim, dtype)


def layer_norm(
    input: Any, normalized_shape: int | tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """weight · (x − E[x]) / √(Var[x] + eps) + bias, over the trailing axes normalized_shape."""
    x, rows, shape = _rows("layer_norm", input, normalized_shape)
    if len(shape) == 1:
        return apply(nn.layer_norm, x, weight, bias, eps=eps)
    return reshape(apply(nn.layer_norm, rows, *[p if p is None else reshape(p, -1) for p in (weight, bias)], eps=eps), x.shape)


def rms_norm(input: Any, normalized_shape: int | tuple[int, ...], weight: Any = None, eps: float | None = None) -> Tensor:
    """weight · x / √(E[x²] + eps), over the trailing axes normalized_shape; eps by default that of the dtype."""
    x, rows, shape = _rows("rms_norm", input, normalized_shape)
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    if len(shape) == 1:
        return apply(nn.rms_norm, x, weight, eps=eps)
    return reshape(apply(nn.rms_norm, rows, weight if weight is None else reshape(weight, -1), eps=eps), x.shape)


def _rows(name: str, input: Any, normalized_shape: int | tuple[int, ...]) -> tuple[Any, Any, tuple[int, ...]]:
    """(input, input with the normalized axes as one where they are several, normalized_shape as a tuple)."""
    x = only_floats(name, input)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if x.shape[x.ndim - len(shape) :] != shape or not shape:
        raise ShapeError(f"{name}: normalized_shape: got {shape}, expected trailing axes of input {x.shape}")
    return x, x if len(shape) == 1 else reshape(x, (*x.shape[: x.ndim - len(shape)], math.prod(shape))), shape


def embedding(input: Any, weight: Any, padding_idx: int | None = None) -> Tensor:
    """Row input[...] of weight.   input int [...], weight [V, d] → [..., d]

    The row padding_idx, which may count from the end, takes no gradient.
    """
    ids = as_values(input)
    rows = apply(nn.embedding, weight, ids)
    if padding_idx is None:
        return rows
    if not -len(weight) <= padding_idx < len(weight):
        raise IndexRangeError(f"embedding: padding_idx: got {padding_idx}, expected {-len(weight)} to {len(weight) - 1}")
    padded = ids == padding_idx % len(weight)
    return where(padded[..., None], rows.detach(), rows) if padded.any() else rows


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """int64 [...] → int64 [..., num_classes], 1 at the class and 0 elsewhere; by default as many classes as are needed."""
    classes = np.asarray(tensor)
    if classes.dtype != np.int64:
        raise DtypeError(f"one_hot: tensor: got dtype {classes.dtype}, expected int64")
    if num_classes < 0 and not classes.size:
        raise ValueError("one_hot: num_classes: got none for a tensor without elements, expected a number")
    n = int(classes.max()) + 1 if num_classes < 0 else num_classes
    if classes.size and (classes.min() < 0 or classes.max() >= n):
        raise IndexRangeError(f"one_hot: tensor: got classes {classes.min()} to {classes.max()}, expected 0 to {n - 1}")
    return Tensor.from_array((classes[..., None] == np.arange(n)).astype(np.int64))


def dropout(input: Any, p: float = 0.5, training: bool = True, generator: np.random.Generator | None = None) -> Tensor:
    """While training: each element is 0 with probability p, else scaled by 1/(1 − p). The mask is drawn from `generator`.

    Randomness is explicit here: torch's hidden global generator has no counterpart. Srivastava et al. 2014.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p: got {p}, expected a probability in [0, 1]")
    x = as_operand(input)
    if not training or p == 0:
        return x
    if generator is None:
        raise ValueError("dropout: generator: got None, expected a numpy.random.Generator to draw the mask from")
    kept = generator.random(x.shape, dtype=np.float32) >= p
    return mul(x, kept.astype(x.dtype) * (1 / (1 - p) if p < 1 else 0.0))


def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False, *, generator: np.random.Generator | None = None,
) -> Tensor:
    """softmax(Q Kᵀ · scale + mask) V.   query [..., T, D], key [..., S, D], value [..., S, E] → [..., T, E]

    attn_mask broadcasts to [..., T, S]: bool (True takes part) or float (added to the scores). is_causal hides s > t.
    A row that may look nowhere gives zeros, as in torch. dropout_p acts on the attention weights. With enable_gqa, query
    has g times as many heads (axis −3) as key and value, each of which serves g of them: Ainslie et al. 2023, arXiv:2305.13245.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("scaled_dot_product_attention: attn_mask: got a mask together with is_causal, expected one of them")
    q, k, v = as_operand(query), as_operand(key), as_operand(value)
    if enable_gqa:
        k, v = _for_each_query_head(q, k, "key"), _for_each_query_head(q, v, "value")
    if attn_mask is None and dropout_p == 0:
        return apply(attention, q, k, v, is_causal=is_causal, scale=scale)
    scores = matmul(q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale), k.swapaxes(-1, -2))
    scores, blind = _masked(scores, attn_mask, is_causal)
    weights = softmax(scores, -1)
    weights = weights if blind is None else where(blind, 0.0, weights)
    return matmul(dropout(weights, dropout_p, generator=generator), v)


def _for_each_query_head(query: Any, heads: Any, name: str) -> Any:
    """[..., H, S, D] → [..., g · H, S, D], each head g times."""
    if min(query.ndim, heads.ndim) < 3 or heads.shape[-3] == 0 or query.shape[-3] % heads.shape[-3]:
        raise ShapeError(f"scaled_dot_product_attention: {name}: got shape {heads.shape}, expected a number of heads (axis −3) "
                         f"that divides that of query {query.shape}")
    *lead, h, s, d = heads.shape
    wide = broadcast_to(unsqueeze(heads, -3), (*lead, h, query.shape[-3] // h, s, d))
    return reshape(wide, (*lead, query.shape[-3], s, d))


def _masked(scores: Tensor, attn_mask: Any, is_causal: bool) -> tuple[Tensor, Any]:
    """The scores under the mask, and which rows see nothing (None where that cannot be)."""
    if is_causal:
        return where(look_ahead(*scores.shape[-2:]), -np.inf, scores), None
    if attn_mask is None:
        return scores, None
    mask = as_operand(attn_mask)
    hidden = ~np.asarray(mask) if mask.dtype.kind == "b" else np.isneginf(np.asarray(mask))
    blind = np.broadcast_to(hidden, np.broadcast_shapes(hidden.shape, scores.shape)).all(-1, keepdims=True)
    scores = where(hidden, -np.inf, scores) if mask.dtype.kind == "b" else scores + mask
    return (where(blind, 0.0, scores), blind) if blind.any() else (scores, None)


def cross_entropy(
    input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """−ln softmax(input)[target], in nats.   input [C], [N, C] or [N, C, ...]; target int without the C axis, or
    probabilities of input's shape.

    weight [C] scales each class and takes no gradient; targets equal to ignore_index do not count; label_smoothing ε
    mixes each target with the uniform distribution; reduction is "mean" (over the weights that count), "sum" or "none".
    """
    x, soft, target = as_operand(input), target, as_values(target)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing: got {label_smoothing}, expected a number in [0, 1]")
    classes = 0 if x.ndim == 1 else 1
    if target.dtype.kind == "f" and target.shape == x.shape:
        return _soft_cross_entropy(x, soft, weight, reduction, label_smoothing, classes)
    expected = x.shape[:classes] + x.shape[classes + 1 :]
    if target.shape != expected:
        raise ShapeError(f"cross_entropy: target: got shape {target.shape}, expected {expected} for input {x.shape}")
    order = (*(i for i in range(x.ndim) if i != classes), classes)
    rows = x if classes == x.ndim - 1 else x.permute(order)
    loss = apply(
        nn.cross_entropy, reshape(rows, (-1, x.shape[classes]) if x.size else (0, x.shape[classes])), target.reshape(-1),
        None if weight is None else np.asarray(weight), ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return reshape(loss, target.shape) if reduction == "none" else loss


def _soft_cross_entropy(x: Any, target: Any, weight: Any, reduction: str, smoothing: float, classes: int) -> Tensor:
    """−Σ_c y_c w_c ln p_c; "mean" divides by the number of rows."""
    _check_reduction("cross_entropy", reduction, ("mean", "sum", "none"))
    n, y = x.shape[classes], to(as_tensor(target), x.dtype)
    y = y * (1 - smoothing) + smoothing / n if smoothing else y
    if weight is not None:
        y = y * np.asarray(weight, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1 - classes))
    loss = -(log_softmax(x, classes) * y).sum(classes)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(x.size // n, 1)


def nll_loss(input: Any, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """−w_t · input[t] for log-probabilities input [C], [N, C] or [N, C, ...]; target int without the C axis.

    weight, ignore_index and reduction as in cross_entropy; the mean over nothing is nan with a gradient of zeros, as in torch.
    """
    _check_reduction("nll_loss", reduction, ("mean", "sum", "none"))
    x, target = only_floats("nll_loss", input), np.asarray(target)
    classes = 0 if x.ndim == 1 else 1
    expected = x.shape[:classes] + x.shape[classes + 1 :]
    if target.shape != expected:
        raise ShapeError(f"nll_loss: target: got shape {target.shape}, expected {expected} for input {x.shape}")
    used = target != ignore_index
    t = np.where(used, target, 0)
    w = np.ones(t.shape, x.dtype) if weight is None else np.asarray(weight, x.dtype)[t]
    row = squeeze(gather(x, classes, np.expand_dims(t, classes)), classes) * -w
    row = row if used.all() else where(used, row, 0.0)
    if reduction != "mean":
        return row.sum() if reduction == "sum" else row
    total = float(np.sum(w[used]))
    return row.sum() / total if total else row.sum() + math.nan


def mse_loss(input: Any, target: Any, reduction: str = "mean", weight: Any = None) -> Tensor:
    """(input − target)², which broadcast. weight, of input's shape, multiplies it, and "mean" is then over the weights."""
    _check_reduction("mse_loss", reduction, ("mean", "sum", "none"))
    x = as_tensor(input)
    loss = square(x - as_operand(target))
    if weight is None:
        return _reduced(loss, reduction)
    w = as_tensor(weight)
    if w.shape != x.shape:
        raise ShapeError(f"mse_loss: weight: got shape {w.shape}, expected {x.shape} as of input")
    return (loss * w).sum() / w.sum() if reduction == "mean" else _reduced(loss * w, reduction)


def kl_div(input: Any, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """target · (ln target − input), 0 where target is 0: input and, with log_target, target are log-probabilities.

    reduction: "batchmean" divides the sum by the size of the first axis, "mean" by the number of elements.
    """
    _check_reduction("kl_div", reduction, ("mean", "batchmean", "sum", "none"))
    x, y = only_floats("kl_div", input), only_floats("kl_div", target)
    if log_target:
        loss = exp(y) * (y - x)
    else:
        none = np.asarray(y) == 0
        entropy = where(none, 0.0, y * log(where(none, 1.0, y))) if none.any() else y * log(y)
        loss = entropy - y * x
    return loss.sum() / (x.shape[0] if x.ndim else 1) if reduction == "batchmean" else _reduced(loss, reduction)


def _check_reduction(name: str, reduction: str, allowed: tuple[str, ...]) -> None:
    if reduction not in allowed:
        raise ValueError(f"{name}: reduction: got {reduction!r}, expected one of {allowed}")


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return {"none": lambda: loss, "sum": loss.sum, "mean": loss.mean}[reduction]()
