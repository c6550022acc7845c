"""Decoding: a Transformer that reads on from where it was, since it keeps the keys and values of what it has read.

A position sees the past through keys and values alone, and they never change, since no position sees its future. Kept in a
KVCache, they make the cost of a token that of one position, where `model(ids)` computes the whole prefix once more.

One position is so little arithmetic that Tensors would cost several times as much. So this page is model.py once more, each
module as a function of plain arrays [rows, features], without gradients; the tests hold the two equal.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm import threads
from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.changes import changes
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import Attention, Block, FeedForward, Transformer
from tinygrad_llm.nn import Dropout, Embedding, LayerNorm, Linear
from tinygrad_llm.nn import functional as F
from tinygrad_llm.ops import IndexRangeError, ShapeError

__all__ = ["Decoder", "KVCache", "UnknownModuleError", "WeightsChangedError"]

Rows = Callable[[np.ndarray], np.ndarray]


class UnknownModuleError(TypeError):
    """A module that Decoder does not know how to compute."""


class WeightsChangedError(RuntimeError):
    """A cache holds keys and values of weights that are no more."""


class KVCache:
    """Keys and values of the `length` positions read so far, in memory for context_length of them.

    entries [n_layers, 2, B, H, context_length, D]: [i, 0] are the keys of layer i, [i, 1] its values.
    """

    def __init__(self, config: TransformerConfig, batch: int = 1, dtype: Any = np.float32) -> None:
        shape = (config.n_layers, 2, batch, config.n_heads, config.context_length, config.head_dim)
        self.entries, self.length = np.empty(shape, dtype), 0

    def append(self, layer: int, new: np.ndarray) -> np.ndarray:
        """Keys and values of the next T positions, [2, B, H, T, D] → those of all positions, [2, B, H, length + T, D].

        `length` grows when all layers have theirs; that is the caller's to do.
        """
        end = self.length + new.shape[3]
        self.entries[layer, :, :, :, self.length : end] = new
        return self.entries[layer, :, :, :, :end]


class Decoder:
    """The model in evaluation mode, B sequences read piece by piece:   ids int [B, T] → logits [B, V] of the next token.

        decoder = Decoder(model)
        logits = decoder([[1, 2, 3]])      # as model([[1, 2, 3]])[:, -1], and remembers the three
        logits = decoder([[4]])            # as model([[1, 2, 3, 4]])[:, -1], at the cost of one position

    It gives arrays, without gradients. What it remembers is of the weights at that time: raises WeightsChangedError where they
    were trained since, until it is cleared, and UnknownModuleError for a model with modules of other classes, since it would
    not run their forward.
    """

    def __init__(self, model: Any, batch: int = 1) -> None:
        _check_kind("model", model, Transformer, "forward", "features")
        if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
            raise ValueError(f"batch: got {batch!r}, expected an integer >= 1")
        self.config, self.cache = model.config, KVCache(model.config, batch, model.dtype)
        self._model = model
        self._take_weights()

    def _take_weights(self) -> None:
        model = self._model
        self._versions = [p._counter for p in model.parameters()]
        self._size = threads.mean_size(model.parameters())
        self._writes, self._parts, self._changes = self._count_writes(), self._found_parts(), changes.count
        self._tokens = _embedding("tok_embed", model.tok_embed)
        learned = self.config.positions == "learned"
        self._positions = _embedding("pos_embed", model.pos_embed) if learned else model._sinusoids
        self._blocks = [_block(f"blocks.{i}", block, self.cache, i) for i, block in enumerate(model.blocks)]
        _check_kind("dropout", model.dropout, Dropout)
        self._norm, self._head = _norm("final_norm", model.final_norm), _linear("lm_head", model.lm_head)

    def _found_parts(self) -> list[Any]:
        """Its modules and parameters, each of which may be replaced."""
        return [*map(id, self._model.modules()), *map(id, self._model.parameters())]

    def _count_writes(self) -> int:
        return sum([version.count for version in self._versions])

    @property
    def length(self) -> int:
        """How many positions it has read, at most context_length."""
        return self.cache.length

    def clear(self) -> None:
        """Forget what was read."""
        self.cache.length = 0

    def __call__(self, ids: Any) -> np.ndarray:
        """Read ids int [B, T], T ≥ 1, and remember them. → [B, V], scores of the token that comes after the last."""
        ids = self._checked(np.asarray(ids))
        if self._writes != self._count_writes() or (self._changes != changes.count and self._parts != self._found_parts()):
            self._renew()
        self._changes = changes.count
        b, t = ids.shape
        with threads.suited_to(self._size, b * t):
            x = self._tokens[ids] + self._positions[self.length : self.length + t]  # [B, T, d]
            x = x.reshape(b * t, -1)
            for block in self._blocks:
                x = block(x)
            self.cache.length += t
            return self._head(self._norm(x[t - 1 :: t]))  # the last position of each sequence

    def _renew(self) -> None:
        if self.length:
            raise WeightsChangedError(f"weights: got other ones than those of the {self.length} positions read, expected the "
                                      "same; clear() forgets these")
        self._take_weights()

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        batch, left = self.cache.entries.shape[2], self.config.context_length - self.length
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size or len(ids) != batch:
            raise ShapeError(f"ids: got shape {ids.shape} of {ids.dtype}, expected integers [{batch}, time], at least one")
        if ids.shape[1] > left:
            raise ShapeError(f"ids: got {ids.shape[1]} tokens in a row after {self.length}, expected at most {left}: the cache "
                             f"holds context_length = {self.config.context_length}")
        low, high = np.minimum.reduce(ids, None), np.maximum.reduce(ids, None)
        if low < 0 or high >= len(self._tokens):
            raise IndexRangeError(f"ids: got {low if low < 0 else high}, expected ids in [0, {len(self._tokens)})")
        return ids


# Modules as functions of arrays [rows, features] ------------------------------------------------------------------------


def _block(name: str, block: Any, cache: KVCache, layer: int) -> Rows:
    _check_kind(name, block, Block)
    _check_kind(f"{name}.dropout", block.dropout, Dropout)
    norm1, norm2 = _norm(f"{name}.norm1", block.norm1), _norm(f"{name}.norm2", block.norm2)
    attn, ffn = _attention(f"{name}.attn", block.attn, cache, layer), _feed_forward(f"{name}.ffn", block.ffn)

    def pre(x: np.ndarray) -> np.ndarray:
        x = x + attn(norm1(x))
        return x + ffn(norm2(x))

    def post(x: np.ndarray) -> np.ndarray:
        x = norm1(x + attn(x))
        return norm2(x + ffn(x))

    return pre if block.pre else post


def _attention(name: str, attention: Any, cache: KVCache, layer: int) -> Rows:
    _check_kind(name, attention, Attention)
    qkv_proj, out_proj = _linear(f"{name}.qkv_proj", attention.qkv_proj), _linear(f"{name}.out_proj", attention.out_proj)
    _, _, batch, heads, _, width = cache.entries.shape
    scale = 1 / math.sqrt(width)

    def attend(x: np.ndarray) -> np.ndarray:
        qkv = qkv_proj(x).reshape(batch, -1, 3, heads, width).transpose(2, 0, 3, 1, 4)  # [3, B, H, T, D]
        keys, values = cache.append(layer, qkv[1:])  # [B, H, S, D]: the past and the T new positions
        scores = np.matmul(qkv[0] * scale, keys.swapaxes(-1, -2))  # [B, H, T, S]
        if scores.shape[-2] > 1:
            scores += _future(*scores.shape[-2:])
        scores -= np.maximum.reduce(scores, -1, keepdims=True)
        weights = np.exp(scores, out=scores)
        read = np.matmul(weights, values)  # [B, H, T, D]
        read /= np.add.reduce(weights, -1, keepdims=True)
        return out_proj(read.swapaxes(1, 2).reshape(len(x), -1))

    return attend


@functools.lru_cache(maxsize=1)
def _future(t: int, s: int) -> np.ndarray:
    """float32 [T, S]: −∞ where the last T of S positions may not look, else 0. All layers of a call use the same."""
    return np.where(np.arange(s) > np.arange(s - t, s)[:, None], np.float32(-np.inf), np.float32(0))


def _feed_forward(name: str, ffn: Any) -> Rows:
    _check_kind(name, ffn, FeedForward)
    up, down = _linear(f"{name}.up_proj", ffn.up_proj), _linear(f"{name}.down_proj", ffn.down_proj)
    if ffn.activation is F.relu:
        return lambda x: down(np.maximum(up(x), 0))
    return lambda x: down(ffn.activation(Tensor.from_array(up(x))).numpy())


def _embedding(name: str, embedding: Any) -> np.ndarray:
    _check_kind(name, embedding, Embedding)
    return embedding.weight.numpy()


def _linear(name: str, linear: Any) -> Rows:
    _check_kind(name, linear, Linear)
    turned, bias = linear.weight.numpy().T, None if linear.bias is None else linear.bias.numpy()
    if bias is None:
        return lambda x: x.dot(turned)
    return lambda x: np.add(out := x.dot(turned), bias, out=out)


def _norm(name: str, norm: Any) -> Rows:
    _check_kind(name, norm, LayerNorm)
    weight, bias = norm.weight.numpy(), None if norm.bias is None else norm.bias.numpy()
    n, eps, ones = len(weight), norm.eps, np.ones_like(weight)

    def of_rows(x: np.ndarray) -> np.ndarray:
        x = x - (x.dot(ones) / n)[:, None]
        x /= np.sqrt(np.vecdot(x, x) / n + eps)[:, None]
        return x

    def of_one(x: np.ndarray) -> np.ndarray:
        x = x - x.dot(ones) / n
        x /= math.sqrt(x.dot(x) / n + eps)
        return x[None]

    def layer_norm(x: np.ndarray) -> np.ndarray:
        x = of_rows(x) if len(x) > 1 else of_one(x[0])  # with numbers in place of columns: in half the time
        x *= weight
        return x if bias is None else np.add(x, bias, out=x)

    return layer_norm


def _check_kind(name: str, module: Any, kind: type, *methods: str) -> None:
    """Exactly of that class, with the methods that it has there: a subclass may compute something else."""
    if type(module) is not kind or not vars(module).keys().isdisjoint(methods or ("forward",)):
        raise UnknownModuleError(f"{name}: got {type(module).__name__}, expected this library's own {kind.__name__}")
