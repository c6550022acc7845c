"""The functions of neural networks, with torch.nn.functional's names, arguments and errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, apply
from tinygrad_llm.functions import as_operand, log_softmax, matmul, mul, relu, reshape, sigmoid, softmax, tanh, where
from tinygrad_llm.ops import ShapeError, elementwise, linalg, nn

__all__ = [
    "cross_entropy", "dropout", "embedding", "gelu", "layer_norm", "linear", "log_softmax", "relu",
    "scaled_dot_product_attention", "sigmoid", "softmax", "tanh",
]


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """x Wᵀ + b.   input [..., in], weight [out, in], bias [out] → [..., out]"""
    return apply(linalg.linear, as_operand(input), weight, bias)


def gelu(input: Any, approximate: str = "none") -> Tensor:
    """x Φ(x); approximate="tanh" is GPT-2's form."""
    return apply(elementwise.gelu, as_operand(input), approximate=approximate)


def layer_norm(
    input: Any, normalized_shape: int | tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """weight · (x − E[x]) / √(Var[x] + eps) + bias, over the trailing axes normalized_shape."""
    x = as_operand(input)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if x.shape[x.ndim - len(shape) :] != shape or not shape:
        raise ShapeError(f"layer_norm: normalized_shape: got {shape}, expected trailing axes of input {x.shape}")
    if len(shape) == 1:
        return apply(nn.layer_norm, x, weight, bias, eps=eps)
    flat = [p if p is None else reshape(p, -1) for p in (weight, bias)]
    rows = reshape(x, (*x.shape[: x.ndim - len(shape)], math.prod(shape)))
    return reshape(apply(nn.layer_norm, rows, *flat, eps=eps), x.shape)


def embedding(input: Any, weight: Any) -> Tensor:
    """Row input[...] of weight.   input int [...], weight [V, d] → [..., d]"""
    return apply(nn.embedding, weight, np.asarray(input))


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
    scale: float | None = None, *, generator: np.random.Generator | None = None,
) -> Tensor:
    """softmax(Q Kᵀ · scale + mask) V.   query [..., T, D], key [..., S, D], value [..., S, E] → [..., T, E]

    attn_mask broadcasts to [..., T, S]: bool (True takes part) or float (added to the scores). is_causal hides s > t.
    A row that may look nowhere gives zeros, as in torch. dropout_p acts on the attention weights.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("scaled_dot_product_attention: attn_mask: got a mask together with is_causal, expected one of them")
    q, k, v = as_operand(query), as_operand(key), as_operand(value)
    if attn_mask is None and dropout_p == 0:
        return apply(nn.attention, q, k, v, is_causal=is_causal, scale=scale)
    scores = matmul(q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale), k.swapaxes(-1, -2))
    scores, blind = _masked(scores, attn_mask, is_causal)
    weights = softmax(scores, -1)
    weights = weights if blind is None else where(blind, 0.0, weights)
    return matmul(dropout(weights, dropout_p, generator=generator), v)


def _masked(scores: Tensor, attn_mask: Any, is_causal: bool) -> tuple[Tensor, Any]:
    """The scores under the mask, and which rows see nothing (None where that cannot be)."""
    if is_causal:
        return where(nn.look_ahead(*scores.shape[-2:]), -np.inf, scores), None
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
    x, target = as_operand(input), np.asarray(target)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing: got {label_smoothing}, expected a number in [0, 1]")
    classes = 0 if x.ndim == 1 else 1
    if target.dtype.kind == "f" and target.shape == x.shape:
        return _soft_cross_entropy(x, target, weight, reduction, label_smoothing, classes)
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
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"cross_entropy: reduction: got {reduction!r}, expected 'mean', 'sum' or 'none'")
    n = x.shape[classes]
    y = (target * (1 - smoothing) + smoothing / n).astype(x.dtype)
    if weight is not None:
        y = y * np.asarray(weight, x.dtype).reshape((-1,) + (1,) * (x.ndim - 1 - classes))
    loss = -(log_softmax(x, classes) * y).sum(classes)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(x.size // n, 1)
