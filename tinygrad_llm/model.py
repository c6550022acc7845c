"""The Transformer: a decoder-only language model, Vaswani et al. 2017 (arXiv:1706.03762) without the encoder.

    ids ─ tok_embed ─ + positions ─▶ blocks ─▶ final_norm ─▶ lm_head ─▶ logits

B sequences in a batch, T positions, d = d_model features, H heads of D = d / H features, V tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.functions.base import dtype_of
from tinygrad_llm.nn import Dropout, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter
from tinygrad_llm.nn import functional as F
from tinygrad_llm.ops import ShapeError
from tinygrad_llm.ops.opaque import as_values

__all__ = ["Attention", "Block", "FeedForward", "Transformer", "TransformerConfig", "sinusoidal_positions"]

ACTIVATIONS: dict[str, Callable[[Any], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),  # a lambda could not be pickled
}
NORMS: dict[str, Callable[..., Module]] = {"layernorm": LayerNorm}


def sinusoidal_positions(length: int, d_model: int) -> np.ndarray:
    """float64 [length, d]:  PE[p, 2i] = sin(p / 10000^(2i/d)),  PE[p, 2i+1] = cos of the same angle.

    Each pair of features is a clock hand; the hands turn ever more slowly, so nearby positions look alike, and a shift
    by k positions is one rotation of each pair, the same wherever it starts. Vaswani et al. 2017, section 3.5.
    """
    even = np.arange(0, d_model, 2)
    angle = np.arange(length)[:, None] / 10000 ** (even / d_model)
    table = np.zeros((length, d_model))
    table[:, 0::2], table[:, 1::2] = np.sin(angle), np.cos(angle)[:, : d_model // 2]
    return table


class Attention(Module):
    """Causal multi-head self-attention: each position reads from itself and from the past."""

    def __init__(self, config: TransformerConfig, generator: np.random.Generator, dtype: Any) -> None:
        d, options = config.d_model, {"bias": config.bias, "generator": generator, "dtype": dtype}
        self.n_heads, self.dropout, self.generator = config.n_heads, config.dropout, generator
        self.qkv_proj = Linear(d, 3 * d, **options)
        self.out_proj = Linear(d, d, **options)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] → [B, T, d]"""
        b, t, d = x.shape
        qkv = self.qkv_proj(x).reshape(b, t, 3, self.n_heads, d // self.n_heads)  # [B, T, 3, H, D]
        p = self.dropout if self.training else 0.0
        heads = F.attention_qkvpacked(qkv, p, is_causal=True, generator=self.generator)  # softmax(Q Kᵀ / √D) V: [B, T, H, D]
        return self.out_proj(heads.reshape(b, t, d))


class FeedForward(Module):
    """down(activation(up(x))): the same two-layer network at every position."""

    def __init__(self, config: TransformerConfig, generator: np.random.Generator, dtype: Any) -> None:
        options = {"bias": config.bias, "generator": generator, "dtype": dtype}
        self.activation = ACTIVATIONS[config.activation]
        self.up_proj = Linear(config.d_model, config.hidden_width, **options)
        self.down_proj = Linear(config.hidden_width, config.d_model, **options)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] → [B, T, d], [B, T, d_ff] between"""
        return self.down_proj(self.activation(self.up_proj(x)))


class Block(Module):
    """Attention, then feed-forward, each added to the residual stream; the norm comes before (pre) or after (post)."""

    def __init__(self, config: TransformerConfig, generator: np.random.Generator, dtype: Any) -> None:
        self.pre = config.norm_position == "pre"
        self.norm1 = _norm(config, dtype)
        self.attn = Attention(config, generator, dtype)
        self.norm2 = _norm(config, dtype)
        self.ffn = FeedForward(config, generator, dtype)
        self.dropout = Dropout(config.dropout, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] → [B, T, d]"""
        if self.pre:
            x = x + self.dropout(self.attn(self.norm1(x)))
            return x + self.dropout(self.ffn(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attn(x)))
        return self.norm2(x + self.dropout(self.ffn(x)))


class Transformer(Module):
    """ids [B, T] → logits [B, T, V]: at each position, scores of the token that comes next.

    seed     of the initial weights and, through `generator`, of dropout: the same seed gives the same bits
    dtype    numpy.float32 or numpy.float64
    """

    def __init__(self, config: TransformerConfig, seed: int = 0, dtype: Any = np.float32) -> None:
        if dtype_of("Transformer", dtype) not in (np.float32, np.float64):
            raise TypeError(f"dtype: got {dtype!r}, expected numpy.float32 or numpy.float64")
        self.config, self.dtype = config, np.dtype(dtype)
        self.generator = np.random.default_rng(seed)
        build = {"generator": self.generator, "dtype": dtype}
        self.tok_embed = Embedding(config.vocab_size, config.d_model, **build)
        if config.positions == "learned":
            self.pos_embed = Embedding(config.context_length, config.d_model, **build)
        self.dropout = Dropout(config.dropout, generator=self.generator)
        self.blocks = ModuleList(Block(config, self.generator, dtype) for _ in range(config.n_layers))
        self.final_norm = _norm(config, dtype)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False, **build)
        if config.tie_embeddings:
            self.lm_head.weight = self.tok_embed.weight
        self._sinusoids = sinusoidal_positions(config.context_length, config.d_model).astype(dtype)
        self._initialize()

    def forward(self, ids: Any) -> Tensor:
        """int [B, T], T ≤ context_length → logits [B, T, V]"""
        return self.lm_head(self.features(ids))

    def features(self, ids: Any) -> Tensor:
        """int [B, T] → [B, T, d]: what lm_head makes the logits of."""
        ids = self._checked(ids)
        x = self.tok_embed(ids) + self._positions(ids.shape[1])  # [B, T, d]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)

    def loss(self, ids: Any, targets: Any) -> Tensor:
        """Mean cross-entropy of what forward predicts, in nats per token.   ids, targets int [B, T]"""
        as_made = self._predicts_as_made()
        x = self.features(ids) if as_made else self(ids)  # [B, T, d], or the logits
        targets = as_values(targets)
        if targets.shape != x.shape[:2]:
            raise ShapeError(f"targets: got shape {targets.shape}, expected that of ids, {x.shape[:2]}")
        rows = x.reshape(-1, x.shape[-1])
        if as_made:
            return F.linear_cross_entropy(rows, self.lm_head.weight, targets.reshape(-1))
        return F.cross_entropy(rows, targets.reshape(-1))

    def _predicts_as_made(self) -> bool:
        """Whether the logits are features times the head's weight: not with another forward in a subclass, or another head."""
        return type(self).forward is Transformer.forward and type(self.lm_head) is Linear and self.lm_head.bias is None

    def _positions(self, length: int) -> Any:
        """[T, d]"""
        return self.pos_embed.weight[:length] if self.config.positions == "learned" else self._sinusoids[:length]

    def _checked(self, ids: Any) -> Any:
        ids = as_values(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
            raise ShapeError(f"ids: got shape {ids.shape} of {ids.dtype}, expected integers [batch, time], at least one")
        if ids.shape[1] > self.config.context_length:
            raise ShapeError(f"ids: got {ids.shape[1]} tokens in a row, expected at most context_length = "
                             f"{self.config.context_length}")
        return ids

    def _initialize(self) -> None:
        """GPT-2's initial weights: N(0, 0.02²), and 0.02 / √(2 n_layers) where a block writes into the residual stream.

        An untied token table starts at N(0, 1), the scale of the sinusoids that are added to it.
        """
        for name, p in self.named_parameters():
            residual = name.endswith(("out_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(2 * self.config.n_layers) if residual else 0.02
            if name == "tok_embed.weight" and not self.config.tie_embeddings and self.config.positions == "sinusoidal":
                std = 1.0
            if p.ndim >= 2:
                _fill(p, self.generator.standard_normal(p.shape) * std)
            elif name.endswith("bias"):
                _fill(p, np.zeros(p.shape))


def _norm(config: TransformerConfig, dtype: Any) -> Module:
    return NORMS[config.norm](config.d_model, eps=config.norm_eps, bias=config.bias, dtype=dtype)


def _fill(parameter: Parameter, values: np.ndarray) -> None:
    parameter.detach().copy_(values)
