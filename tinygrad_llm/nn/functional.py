"""The functions of neural networks, with torch.nn.functional's names, arguments and errors."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor, apply, no_grad
from tinygrad_llm.autograd import inplace as in_place
from tinygrad_llm.autograd.modes import active_recorder
from tinygrad_llm.autograd.randomness import chosen
from tinygrad_llm.functions import (
    add,
    as_operand,
    broadcast_to,
    elementwise,
    exp,
    gather,
    log,
    log1p,
    matmul,
    mul,
    neg,
    reductions,
    reshape,
    sigmoid,
    square,
    squeeze,
    sub,
    tanh,
    to,
    unsqueeze,
    where,
)
from tinygrad_llm.functions.base import (
    as_array_like,
    flag,
    guarded,
    in_single,
    no_view,
    only,
    only_floats,
    promoted,
    tensor_like,
    whole,
    whole_tuple,
)
from tinygrad_llm.functions.elementwise import broadcast_shape
from tinygrad_llm.functions.shapes import copied
from tinygrad_llm.ops import ArgumentError, DtypeError, IndexRangeError, ShapeError, linalg, losses, nn
from tinygrad_llm.ops import attention as attention_ops
from tinygrad_llm.ops import elementwise as ops
from tinygrad_llm.ops.attention import attention, look_ahead
from tinygrad_llm.ops.checks import check_below
from tinygrad_llm.ops.numbers import plain
from tinygrad_llm.ops.opaque import any_of, as_values, opaque

__all__ = [
    "attention_qkvpacked", "cross_entropy", "dropout", "embedding", "gelu", "kl_div", "layer_norm", "linear",
    "linear_cross_entropy", "log_softmax",
    "mse_loss", "nll_loss", "one_hot", "relu", "rms_norm", "scaled_dot_product_attention", "sigmoid", "silu", "softmax",
    "softmin", "softplus", "tanh",
]


def linear(input: Any, weight: Any, bias: Any = None) -> Tensor:
    """x Wᵀ + b.   input [..., in], weight [out, in], bias [out] → [..., out]"""
    if getattr(weight, "ndim", 2) == 1 or (bias is not None and weight is not None and np.shape(bias) != weight.shape[:1]):
        return _broadcast_linear(input, weight, bias)
    return apply(linalg.linear, as_operand(input), weight, bias)


def _broadcast_linear(input: Any, weight: Any, bias: Any) -> Tensor:
    """What torch takes too: a weight [in] → [...], and a bias of any shape that broadcasts to the result's."""
    x, b = as_operand(input), None if bias is None else as_array_like(bias)
    out = matmul(x, weight) if weight.ndim == 1 else apply(linalg.linear, x, weight, None)
    if b is None:
        return out
    if b.dtype != out.dtype or broadcast_shape("linear", input=out.shape, bias=b.shape) != out.shape:
        raise ShapeError(f"linear: bias: got {b.dtype} of shape {b.shape}, expected {out.dtype} that broadcasts to {out.shape}")
    return add(out, b)


def relu(input: Any, inplace: bool = False) -> Tensor:
    """max(x, 0); `inplace` writes it into input."""
    return in_place(elementwise.relu)(input) if inplace else elementwise.relu(input)


@in_single
def gelu(input: Any, approximate: str = "none") -> Tensor:
    """x Φ(x); approximate="tanh" is GPT-2's form."""
    return apply(ops.gelu, only_floats("gelu", input), approximate=approximate)


def silu(input: Any, inplace: bool = False) -> Tensor:
    """x σ(x).   Elfwing et al. 2017, arXiv:1702.03118. `inplace` writes it into input."""
    return in_place(silu)(input) if inplace else _silu(input)


@in_single
def _silu(input: Any) -> Tensor:
    return apply(ops.silu, only_floats("silu", input))


def softplus(input: Any, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """ln(1 + e^(βx)) / β; x itself where βx > threshold, as in torch."""
    beta, threshold = plain(beta), plain(threshold)
    if wrong := [v for v in (beta, threshold) if not isinstance(v, numbers.Real)]:
        raise TypeError(f"softplus: beta, threshold: got {wrong[0]!r}, expected numbers")
    return _softplus(only_floats("softplus", input), beta, threshold)


@in_single
def _softplus(x: Any, beta: float, threshold: float) -> Tensor:
    if beta == 0:  # ln 2 / 0, with the slope σ(0)
        return add(mul(x, 0.5), math.inf)
    large = as_values(x) * beta > threshold
    some = any_of(large)
    curved = log1p(exp(mul(where(large, 0.0, x) if some else x, beta))) / beta
    return where(large, x, curved) if some else curved


def softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """eˣ / Σ eˣ along dim."""
    return reductions.softmax(input, _implied_dim("softmax", input, dim, _stacklevel), dtype)


def log_softmax(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """x − ln Σ eˣ along dim."""
    return reductions.log_softmax(input, _implied_dim("log_softmax", input, dim, _stacklevel), dtype)


def softmin(input: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """e⁻ˣ / Σ e⁻ˣ along dim."""
    return reductions.softmax(neg(input), _implied_dim("softmin", input, dim, _stacklevel), dtype)


def _implied_dim(name: str, input: Any, dim: int | None, stacklevel: int) -> int:
    """dim; where there is none torch's choice, with its warning: 0 for 0, 1 or 3 axes, else 1."""
    if dim is not None:
        return dim
    warnings.warn(f"{name}: dim: got none, expected an axis: to choose it by their number is deprecated", stacklevel=stacklevel)
    return 0 if as_array_like(input).ndim in (0, 1, 3) else 1


@in_single
def layer_norm(
    input: Any, normalized_shape: int | tuple[int, ...], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """weight · (x − E[x]) / √(Var[x] + eps) + bias, over the trailing axes normalized_shape."""
    (x, rows, shape), eps = _rows("layer_norm", input, normalized_shape), plain(eps)
    if len(shape) == 1:
        return apply(nn.layer_norm, x, weight, bias, eps=eps)
    flat = [p if p is None else reshape(p, -1) for p in (weight, bias)]
    return no_view(reshape(apply(nn.layer_norm, rows, *flat, eps=eps), x.shape))


@in_single
def rms_norm(input: Any, normalized_shape: int | tuple[int, ...], weight: Any = None, eps: float | None = None) -> Tensor:
    """weight · x / √(E[x²] + eps), over the trailing axes normalized_shape; eps by default that of the dtype."""
    x, rows, shape = _rows("rms_norm", input, normalized_shape)
    eps = float(np.finfo(x.dtype).eps) if eps is None else plain(eps)
    weight = None if weight is None else tensor_like("rms_norm", "weight", weight)
    if weight is not None and weight.dtype != x.dtype and weight.shape == shape:
        return to(mul(rms_norm(x, shape, None, eps), weight), x.dtype)  # which torch takes, here alone
    if len(shape) == 1:
        return apply(nn.rms_norm, x, weight, eps=eps)
    return no_view(reshape(apply(nn.rms_norm, rows, weight if weight is None else reshape(weight, -1), eps=eps), x.shape))


def _rows(name: str, input: Any, normalized_shape: int | tuple[int, ...]) -> tuple[Any, Any, tuple[int, ...]]:
    """(input, input with the normalized axes as one where they are several, normalized_shape as a tuple)."""
    x = only_floats(name, input)
    shape = normalized_shape if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
    shape = whole_tuple(name, "normalized_shape", shape)
    if x.shape[x.ndim - len(shape) :] != shape or not shape:
        raise ShapeError(f"{name}: normalized_shape: got {shape}, expected trailing axes of input {x.shape}")
    return x, x if len(shape) == 1 else reshape(x, (*x.shape[: x.ndim - len(shape)], math.prod(shape))), shape


def embedding(
    input: Any, weight: Any, padding_idx: int | None = None, max_norm: float | None = None, norm_type: float = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Tensor:
    """Row input[...] of weight.   input int [...], weight [V, d] → [..., d]

    The row padding_idx, which may count from the end, takes no gradient. max_norm first scales the rows of weight itself
    that are looked up and longer, by norm_type, than that. scale_grad_by_freq divides gradients by how often a row occurs.
    """
    only("embedding", "sparse", sparse)
    ids, weight = as_values(input), tensor_like("embedding", "weight", weight)
    if weight.ndim != 2:
        raise ShapeError(f"embedding: weight: got shape {weight.shape}, expected 2 axes")
    if max_norm is not None:
        _shorten_rows(weight, np.asarray(ids), max_norm, norm_type)
    rows = apply(nn.embedding, weight, input if isinstance(input, Tensor) else ids)
    if scale_grad_by_freq and rows.requires_grad:
        share = (1 / np.bincount(ids.reshape(-1), minlength=len(weight))[ids, None]).astype(rows.dtype) if ids.size else 1
        rows.register_hook(lambda g: g * share)
        rows = copied(rows)  # the hook is on the way to weight: these rows have the gradient that they are given
    if padding_idx is None:
        return rows
    if not -len(weight) <= whole("embedding", "padding_idx", padding_idx) < len(weight):
        raise IndexRangeError(f"embedding: padding_idx: got {padding_idx}, expected {-len(weight)} to {len(weight) - 1}")
    padded = ids == padding_idx % len(weight)
    may_be = hasattr(padded, "__record_call__") or padded.any()  # a program is made once for all ids
    return where(padded[..., None], rows.detach(), rows) if may_be else rows


def _shorten_rows(weight: Any, ids: Any, most: float, p: float) -> None:
    """Write the rows of weight that ids name and whose p-norm is above `most` again, with that norm."""
    used = np.unique(ids[(ids >= 0) & (ids < len(weight))])
    rows = np.asarray(weight)[used].astype(np.float64)  # norms may be beyond the dtype
    norms = np.linalg.norm(rows, p, axis=1)
    long = norms > most
    with no_grad():
        weight[used[long]] = rows[long] * (most / (norms[long] + 1e-7))[:, None]


def one_hot(tensor: Any, num_classes: int = -1) -> Tensor:
    """int64 [...] → int64 [..., num_classes], 1 at the class and 0 elsewhere; by default as many classes as are needed."""
    classes = as_values(tensor)
    if classes.dtype != np.int64:
        raise DtypeError(f"one_hot: tensor: got dtype {classes.dtype}, expected int64")
    if whole("one_hot", "num_classes", num_classes) < -1:
        raise ArgumentError(f"one_hot: num_classes: got {num_classes}, expected −1 or a number of classes")
    if num_classes < 1 and not classes.size:
        raise ArgumentError("one_hot: num_classes: got none for a tensor without elements, expected a number")
    n = int(classes.max()) + 1 if num_classes < 0 else num_classes
    check_below(classes, n, "one_hot: tensor", "number of classes")
    return Tensor.from_array((classes[..., None] == np.arange(n)).astype(np.int64))


def dropout(
    input: Any, p: float = 0.5, training: bool = True, inplace: bool = False, *, generator: np.random.Generator | None = None
) -> Tensor:
    """While training: each element is 0 with probability p, else scaled by 1/(1 − p).   Srivastava et al. 2014

    The mask is drawn from `generator`, by default the library's (tinygrad_llm.manual_seed). `inplace` writes the result into
    input.
    """
    p = plain(p)
    if not isinstance(p, numbers.Real) or not 0 <= p <= 1:
        raise ValueError(f"dropout: p: got {p!r}, expected a probability in [0, 1]")
    if inplace:
        return in_place(dropout)(input, p, training, generator=generator)
    x = tensor_like("dropout", "input", input)
    if not flag("dropout", "training", training) or p == 0:
        return x
    like, recorder = as_values(x), active_recorder()
    kept = _uniform(like if recorder is None else recorder.for_drawing(like), chosen("dropout: generator", generator)) >= p
    return mul(x, Tensor.from_array(kept.astype(x.dtype) * (1 / (1 - p) if p < 1 else 0.0)))


@in_single
def attention_qkvpacked(
    qkv: Any, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, *,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """scaled_dot_product_attention of the queries, keys and values that one product has made: qkv [..., T, 3, H, D] →
    [..., T, H, D]. Dao et al. 2022 have it under this name."""
    x, scale = only_floats("attention_qkvpacked", qkv), plain(scale)
    if not dropout_p:
        return apply(attention_ops.attention_qkvpacked, x, is_causal=is_causal, scale=scale)
    q, k, v = x.transpose(-4, -2).unbind(-3)  # [..., H, T, D]
    heads = scaled_dot_product_attention(q, k, v, None, dropout_p, is_causal, scale, generator=generator)
    return heads.transpose(-3, -2)


@opaque(lambda like, generator: (like.shape, np.float32))
def _uniform(like: Any, generator: np.random.Generator, out: Any = None) -> Any:
    """Drawn from [0, 1), one for each element of `like`: anew at each run of a program."""
    drawn = generator.random(like.shape, dtype=np.float32)
    if out is not None:
        out[...] = drawn
    return drawn


@guarded("result")
@in_single
def scaled_dot_product_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: Any = None, enable_gqa: bool = False, *, generator: np.random.Generator | None = None,
) -> Tensor:
    """softmax(Q Kᵀ · scale + mask) V.   query [..., T, D], key [..., S, D], value [..., S, E] → [..., T, E]

    attn_mask broadcasts to [..., T, S]: bool (True takes part) or float (added to the scores). is_causal hides s > t.
    A row that may look nowhere gives zeros, as in torch. dropout_p acts on the attention weights. With enable_gqa, query
    has g times as many heads (axis −3) as key and value, each of which serves g of them: Ainslie et al. 2023, arXiv:2305.13245.
    """
    if attn_mask is not None and is_causal:
        raise ArgumentError("scaled_dot_product_attention: attn_mask: got a mask together with is_causal, expected one of them")
    scale = scale.item() if isinstance(scale, Tensor) else plain(scale)
    if scale is not None and not isinstance(scale, numbers.Real):
        raise TypeError(f"scaled_dot_product_attention: scale: got {scale!r}, expected a number")
    q, k, v = [only_floats("scaled_dot_product_attention", x) for x in (query, key, value)]
    if enable_gqa:
        k, v = _for_each_query_head(q, k, "key"), _for_each_query_head(q, v, "value")
    if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        lead = broadcast_shape("scaled_dot_product_attention", query=q.shape[:-2], key=k.shape[:-2], value=v.shape[:-2])
        q, k, v = [broadcast_to(x, lead + x.shape[-2:]) for x in (q, k, v)]
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
    mask = tensor_like("scaled_dot_product_attention", "attn_mask", attn_mask)
    if mask.dtype.kind not in "bf" or broadcast_shape("attention", query=scores.shape, attn_mask=mask.shape) != scores.shape:
        raise ShapeError(f"scaled_dot_product_attention: attn_mask: got {mask.dtype} of shape {mask.shape}, expected booleans "
                         f"or floats that broadcast to {scores.shape}")
    values = as_values(mask)
    hidden = ~values if mask.dtype.kind == "b" else values == -np.inf
    blind = np.broadcast_to(hidden, np.broadcast_shapes(hidden.shape, scores.shape)).all(-1, keepdims=True)
    scores = where(hidden, -np.inf, scores) if mask.dtype.kind == "b" else scores + mask
    return (where(blind, 0.0, scores), blind) if any_of(blind) else (scores, None)


@in_single
def cross_entropy(
    input: Any, target: Any, weight: Any = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:
    """−ln softmax(input)[target], in nats.   input [C], [N, C] or [N, C, ...]; target int without the C axis, or
    probabilities of input's shape.

    weight [C] scales each class and takes no gradient; targets equal to ignore_index do not count; label_smoothing ε
    mixes each target with the uniform distribution; reduction is "mean" (over the weights that count), "sum" or "none".
    """
    x, given, target = only_floats("cross_entropy", input), target, as_values(target)
    reduction, ignored = _reduction(size_average, reduce, reduction), whole("cross_entropy", "ignore_index", ignore_index)
    label_smoothing = plain(label_smoothing)
    if not isinstance(label_smoothing, numbers.Real) or not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"cross_entropy: label_smoothing: got {label_smoothing!r}, expected a number in [0, 1]")
    classes = 0 if x.ndim == 1 else 1
    if target.dtype.kind == "f" and target.shape == x.shape:
        if ignored >= 0:
            raise ArgumentError(f"cross_entropy: ignore_index: got {ignore_index} beside probabilities, expected class indices")
        return _soft_cross_entropy(x, given, weight, reduction, label_smoothing, classes)
    expected = x.shape[:classes] + x.shape[classes + 1 :]
    if target.shape != expected:
        raise ShapeError(f"cross_entropy: target: got shape {target.shape}, expected {expected} for input {x.shape}")
    order = (*(i for i in range(x.ndim) if i != classes), classes)
    rows = x if classes == x.ndim - 1 else x.permute(order)
    loss = apply(
        losses.cross_entropy, reshape(rows, (-1, x.shape[classes]) if x.size else (0, x.shape[classes])), target.reshape(-1),
        None if weight is None else as_values(weight), ignore_index=ignored, reduction=reduction,
        label_smoothing=label_smoothing, watched=(given, weight),
    )
    return no_view(reshape(loss, target.shape)) if reduction == "none" else loss


@in_single
def linear_cross_entropy(
    input: Any, linear_weight: Any, target: Any, *, linear_bias: Any = None, weight: Any = None, reduction: str = "mean",
    ignore_index: int | None = None, label_smoothing: float = 0.0, options: Any = None,
) -> Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target, weight, ...), in memory for one array of logits.

    input [in] or [N, in], linear_weight [C, ..., in], linear_bias [C, ...]; target and options as in cross_entropy. With
    weight, label_smoothing, probabilities as the target or further axes it is the two functions one after the other.
    `options` would say how torch cuts the logits into chunks, and change no value.
    """
    x, t = only_floats("linear_cross_entropy", input), as_values(target)
    ignored = -100 if ignore_index is None else ignore_index
    linear_weight = tensor_like("linear_cross_entropy", "linear_weight", linear_weight)
    linear_bias = None if linear_bias is None else tensor_like("linear_cross_entropy", "linear_bias", linear_bias)
    _check_linear("linear_cross_entropy", x, linear_weight, linear_bias)
    if weight is not None or label_smoothing or t.dtype.kind not in "iu" or x.ndim != 2 or linear_weight.ndim != 2:
        rows = linear_weight if linear_weight.ndim == 2 else reshape(linear_weight, -1, linear_weight.shape[-1])
        logits = linear(x, rows, linear_bias if linear_bias is None or linear_bias.ndim == 1 else reshape(linear_bias, -1))
        logits = logits if linear_weight.ndim == 2 else reshape(logits, (*x.shape[:1], *linear_weight.shape[:-1]))
        return cross_entropy(logits, target, weight, ignore_index=ignored, reduction=reduction, label_smoothing=label_smoothing)
    return apply(losses.linear_cross_entropy, x, linear_weight, t, linear_bias, ignore_index=ignored, reduction=reduction,
                 watched=(target,))


def _check_linear(name: str, x: Any, weight: Any, bias: Any) -> None:
    """What torch takes here is narrower than linear: one row or a matrix of them, and a bias of the weight's leading axes."""
    if x.ndim not in (1, 2) or weight.ndim < 2 or (x.ndim == 1 and weight.ndim > 2):
        raise ShapeError(f"{name}: input, linear_weight: got shapes {x.shape} and {weight.shape}, expected 1 or 2 axes and 2, "
                         "or 2 and more")
    if bias is not None and np.shape(bias) != weight.shape[:-1]:
        raise ShapeError(f"{name}: linear_bias: got shape {np.shape(bias)}, expected {weight.shape[:-1]}")


def _soft_cross_entropy(x: Any, target: Any, weight: Any, reduction: str, smoothing: float, classes: int) -> Tensor:
    """−Σ_c y_c w_c ln p_c; "mean" divides by the number of rows."""
    _check_reduction("cross_entropy", reduction, ("mean", "sum", "none"))
    n, y = x.shape[classes], as_array_like(target)
    y = y * (1 - smoothing) + smoothing / n if smoothing else y
    if weight is not None:
        w = as_values(weight)
        _check_weight("cross_entropy", w, n)
        y = y * w.reshape((-1,) + (1,) * (x.ndim - 1 - classes))
    loss = -(log_softmax(x, classes) * y).sum(classes)
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / max(x.size // n, 1)


def nll_loss(
    input: Any, target: Any, weight: Any = None, size_average: bool | None = None, ignore_index: int = -100,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:
    """−w_t · input[t] for log-probabilities input [C], [N, C] or [N, C, ...]; target int without the C axis.

    weight, ignore_index and reduction as in cross_entropy; the mean over nothing is nan with a gradient of zeros, as in torch.
    """
    _check_reduction("nll_loss", reduction := _reduction(size_average, reduce, reduction), ("mean", "sum", "none"))
    x, target = only_floats("nll_loss", input), as_values(target)
    classes = 0 if x.ndim == 1 else 1
    expected = x.shape[:classes] + x.shape[classes + 1 :]
    if target.shape != expected or target.dtype.kind not in "iu" or not x.ndim:
        raise ShapeError(f"nll_loss: target: got {target.dtype} of shape {target.shape}, expected integers of shape {expected} "
                         f"for input {x.shape}")
    used, n = target != whole("nll_loss", "ignore_index", ignore_index), x.shape[classes]
    t = np.where(used, target, 0)
    check_below(t, n, "nll_loss: target", "number of classes")
    if weight is not None:
        _check_weight("nll_loss", as_values(weight), n, x.dtype)
    return _nll_loss(x, t, used, None if weight is None else as_values(weight), classes, reduction)


@in_single
def _nll_loss(x: Any, t: Any, used: Any, weight: Any, classes: int, reduction: str) -> Tensor:
    w = np.ones(t.shape, x.dtype) if weight is None else as_values(weight)[t]
    row = squeeze(gather(x, classes, np.expand_dims(t, classes)), classes) * -w
    row = where(used, row, 0.0) if any_of(~used) else row
    if reduction != "mean":
        return row.sum() if reduction == "sum" else row
    total = np.sum(np.where(used, w, 0))
    return row.sum() / np.where(total == 0, 1, total) + np.where(total == 0, math.nan, 0).astype(x.dtype)


def _check_weight(name: str, weight: np.ndarray, classes: int, dtype: Any = None) -> None:
    if weight.shape != (classes,) or (dtype is not None and dtype != weight.dtype):
        raise ShapeError(f"{name}: weight: got {weight.dtype} of shape {weight.shape}, expected "
                         f"{'floats' if dtype is None else dtype} of shape {(classes,)}")


def mse_loss(
    input: Any, target: Any, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
    weight: Any = None,
) -> Tensor:
    """(input − target)², which broadcast. weight, of input's shape, multiplies it, and "mean" is then over the weights."""
    _check_reduction("mse_loss", reduction := _reduction(size_average, reduce, reduction), ("mean", "sum", "none"))
    x, y = as_array_like(input), as_array_like(target)
    if x.shape != y.shape:
        warnings.warn(f"mse_loss: target: got size {y.shape}, expected that of input, {x.shape}: to broadcast them will likely "
                      "lead to incorrect results; please ensure they have the same size", stacklevel=2)
    shape = broadcast_shape("mse_loss", input=x.shape, target=y.shape)
    x, y = promoted(*[a if a.shape == shape else broadcast_to(a, shape) for a in (x, y)])
    w = None if weight is None else as_array_like(weight)
    if w is not None and w.shape != np.shape(input):
        raise ShapeError(f"mse_loss: weight: got shape {w.shape}, expected {np.shape(input)} as of input")
    return _mse_loss(only_floats("mse_loss", x), y, w, reduction)


@in_single
def _mse_loss(x: Any, y: Any, w: Any, reduction: str) -> Tensor:
    loss = square(sub(x, y))
    if w is None:
        return _reduced(loss, reduction)
    return (loss * w).sum() / w.sum() if reduction == "mean" else _reduced(loss * w, reduction)


@in_single
def kl_div(
    input: Any, target: Any, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """target · (ln target − input), 0 where target is 0: input and, with log_target, target are log-probabilities.

    reduction: "batchmean" divides the sum by the size of the first axis, "mean" by the number of elements.
    """
    chosen_by_name = size_average is None and reduce is None
    _check_reduction("kl_div", reduction := _reduction(size_average, reduce, reduction), ("mean", "batchmean", "sum", "none"))
    if chosen_by_name and reduction == "mean":
        warnings.warn("kl_div: reduction: got 'mean', which divides by the number of elements, expected 'batchmean', which "
                      "divides by the batch size, as the definition does", stacklevel=3)
    x, y = only_floats("kl_div", input), only_floats("kl_div", target)
    if log_target:
        loss = exp(y) * (y - x)
    else:
        none = as_values(y) == 0
        entropy = where(none, 0.0, y * log(where(none, 1.0, y))) if any_of(none) else y * log(y)
        loss = entropy - y * x
    return loss.sum() / (x.shape[0] if x.ndim else 1) if reduction == "batchmean" else _reduced(loss, reduction)


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """reduction, or what torch's two deprecated flags mean where one of them is given, with a warning, as in torch."""
    if size_average is None and reduce is None:
        return reduction
    found = "none" if reduce is not None and not reduce else "sum" if size_average is not None and not size_average else "mean"
    warnings.warn(f"size_average and reduce are deprecated: use reduction={found!r}", stacklevel=3)
    return found


def _check_reduction(name: str, reduction: str, allowed: tuple[str, ...]) -> None:
    if reduction not in allowed:
        raise ArgumentError(f"{name}: reduction: got {reduction!r}, expected one of {allowed}")


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    return {"none": lambda: loss, "sum": loss.sum, "mean": loss.mean}[reduction]()
