"""The decoder-only Transformer in idiomatic PyTorch: the same names, shapes and function as tinygrad_llm.model.

Shapes: B sequences of T tokens, V tokens in the vocabulary, d = d_model features, H heads of D = d/H features.
Where a config option selects a part, a table below maps the option to the part: another norm, activation or kind of
position is another row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinygrad_llm.config import TransformerConfig

INIT_STD = 0.02

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}

NORMS: dict[str, Callable[..., nn.Module]] = {
    "layernorm": lambda c, **factory: nn.LayerNorm(c.d_model, eps=c.norm_eps, bias=c.bias, **factory),
}

POSITIONS: dict[str, Callable[..., nn.Module]] = {
    "sinusoidal": lambda c, **factory: SinusoidalPositions(c.context_length, c.d_model, **factory),
    "learned": lambda c, **factory: nn.Embedding(c.context_length, c.d_model, **factory),
}


def sinusoidal_table(context_length: int, d_model: int) -> np.ndarray:
    """PE[t, 2i] = sin(t / 10000^(2i/d)),  PE[t, 2i+1] = cos(same angle);  [T, d] float64.   arXiv:1706.03762, 3.5"""
    position = np.arange(context_length, dtype=np.float64)[:, None]
    angle = position / 10000.0 ** (np.arange(0, d_model, 2, dtype=np.float64) / d_model)
    table = np.empty((context_length, d_model))
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle[:, : d_model // 2])
    return table


class SinusoidalPositions(nn.Module):
    """The fixed table, looked up by position as nn.Embedding is: [T] int64 -> [T, d]. Has no key in the state dict."""

    table: Tensor

    def __init__(self, context_length: int, d_model: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.size = context_length, d_model
        dtype = dtype or torch.get_default_dtype()
        self.register_buffer("table", self._made(device, dtype), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        return F.embedding(positions, self.table)

    def _made(self, device: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(sinusoidal_table(*self.size), dtype=dtype, device=device)

    def _apply(self, fn: Any, recurse: bool = True) -> SinusoidalPositions:
        """Rounds the float64 table anew, so that `model.double()` gets the table and not its float32 rounding."""
        super()._apply(fn, recurse)
        self.table = self._made(self.table.device, self.table.dtype)
        return self


class LayerCache:
    """Keys and values of the `length` positions that a layer has read, in memory for all: [B, H, context_length, D]."""

    def __init__(self, shape: tuple[int, ...], **factory: Any) -> None:
        self.keys, self.values, self.length = torch.zeros(shape, **factory), torch.zeros(shape, **factory), 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v of the next T positions, [B, H, T, D] -> those of all, [B, H, length, D]."""
        start, self.length = self.length, self.length + k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KVCache:
    """What every layer remembers of B sequences; `model(ids, cache)` reads on from there."""

    def __init__(self, config: TransformerConfig, batch: int = 1, device: Any = None, dtype: Any = None) -> None:
        shape = (batch, config.n_heads, config.context_length, config.head_dim)
        self.layers = [LayerCache(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]

    @property
    def length(self) -> int:
        """How many positions it has."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forget them."""
        for layer in self.layers:
            layer.length = 0


class Attention(nn.Module):
    """softmax(q kᵀ / √D + causal mask) v for H heads at once, then a projection: [B, T, d] -> [B, T, d]"""

    def __init__(self, config: TransformerConfig, **factory: Any) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.dropout = config.n_heads, config.head_dim, config.dropout
        self.qkv_proj = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias, **factory)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias, **factory)

    def forward(self, x: Tensor, past: LayerCache | None = None) -> Tensor:
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)  # each [B, T, d]
        q, k, v = self._split(q), self._split(k), self._split(v)  # each [B, H, T, D]; RoPE would turn q and k here
        dropout = self.dropout if self.training else 0.0
        if past is None or not past.length:
            k, v = (k, v) if past is None else past.append(k, v)
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # [B, H, T, D]
        else:
            k, v = past.append(k, v)  # [B, H, S, D]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=_last_rows(q, k))  # [B, H, T, D]
        y = y.transpose(1, 2).flatten(2)  # [B, T, H, D] -> [B, T, d]
        return self.out_proj(y)  # [B, T, d]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, T, d] -> [B, T, H, D] -> [B, H, T, D]


def _last_rows(q: Tensor, k: Tensor) -> Tensor | None:
    """Where the last T of S positions may look, [T, S]; one of them looks everywhere."""
    t, s = q.shape[2], k.shape[2]
    return None if t == 1 else torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)


class FeedForward(nn.Module):
    """down_proj(activation(up_proj(x))), position by position: [B, T, d] -> [B, T, d_ff] -> [B, T, d]"""

    def __init__(self, config: TransformerConfig, **factory: Any) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=config.bias, **factory)  # type: ignore[arg-type]
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=config.bias, **factory)  # type: ignore[arg-type]
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Block(nn.Module):
    """Attention, then feed-forward, each on a residual path; x + f(norm(x)) or, post-norm, norm(x + f(x))."""

    def __init__(self, config: TransformerConfig, **factory: Any) -> None:
        super().__init__()
        self.norm1 = NORMS[config.norm](config, **factory)
        self.attn = Attention(config, **factory)
        self.norm2 = NORMS[config.norm](config, **factory)
        self.ffn = FeedForward(config, **factory)
        self.dropout = nn.Dropout(config.dropout)
        self.pre_norm = config.norm_position == "pre"

    def forward(self, x: Tensor, past: LayerCache | None = None) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attn(self.norm1(x), past))
            return x + self.dropout(self.ffn(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attn(x, past)))
        return self.norm2(x + self.dropout(self.ffn(x)))


class Transformer(nn.Module):
    """ids [B, T] int64 -> logits [B, T, V]. The initial weights come from torch's global generator.

    With a cache, ids are those that come after what it holds; it takes them in, and logits [B, 1, V] are the last one's.
    """

    def __init__(self, config: TransformerConfig, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.tok_embed = nn.Embedding(config.vocab_size, config.d_model, **factory)
        self.pos_embed = POSITIONS[config.positions](config, **factory)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, **factory) for _ in range(config.n_layers))
        self.final_norm = NORMS[config.norm](config, **factory)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False, **factory)
        if config.tie_embeddings:
            self.lm_head.weight = self.tok_embed.weight
        initialize(self)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        start = 0 if cache is None else cache.length
        self._check(ids, start, cache)
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)  # [T]
        x = self.dropout(self.tok_embed(ids) + self.pos_embed(positions))  # [B, T, d]
        if cache is None:
            for block in self.blocks:
                x = block(x)  # [B, T, d]
            return self.lm_head(self.final_norm(x))  # [B, T, V]
        for block, past in zip(self.blocks, cache.layers):
            x = block(x, past)  # [B, T, d]
        return self.lm_head(self.final_norm(x[:, -1:]))  # [B, 1, V]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy, nats per token. Raises ValueError where targets are not shaped as ids."""
        if targets.shape != ids.shape:
            raise ValueError(f"targets: got shape {tuple(targets.shape)}, expected that of ids, {tuple(ids.shape)}")
        return F.cross_entropy(self(ids).flatten(0, 1), targets.flatten())

    def _check(self, ids: Tensor, start: int, cache: KVCache | None) -> None:
        if ids.dim() != 2:
            raise ValueError(f"ids: got shape {tuple(ids.shape)}, expected [B, T]")
        if start + ids.shape[1] > self.config.context_length:
            limit = f"at most context_length = {self.config.context_length}"
            after = f" after {start}" if start else ""
            raise ValueError(f"ids: got {ids.shape[1]} tokens in a sequence{after}, expected {limit}")
        if cache is not None:
            self._check_cache(ids, cache)

    def _check_cache(self, ids: Tensor, cache: KVCache) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError("cache: got it in grad mode, expected torch.inference_mode(): what it holds has no gradient")
        shape = (ids.shape[0], self.config.n_heads, self.config.context_length, self.config.head_dim)
        got = (len(cache.layers), *cache.layers[0].keys.shape)
        if got != (self.config.n_layers, *shape):
            raise ValueError(f"cache: got [L, B, H, T, D] = {list(got)}, expected {[self.config.n_layers, *shape]}, that of "
                             "the model and ids")


def initial_std(name: str, config: TransformerConfig) -> float:
    """Standard deviation of a new matrix: 0.02, that of GPT-2, with two exceptions.

    The projections that end a residual path get 0.02 / √(2 n_layers), so that the sum of 2 n_layers residual terms
    starts with the variance of one (Radford et al. 2019). An untied token embedding that sinusoids are added to gets
    1, the size of the sinusoids; at 0.02 the position would drown the token.
    """
    if name.endswith(("attn.out_proj.weight", "ffn.down_proj.weight")):
        return INIT_STD / math.sqrt(2 * config.n_layers)
    beside_sinusoids = config.positions == "sinusoidal" and not config.tie_embeddings
    return 1.0 if name == "tok_embed.weight" and beside_sinusoids else INIT_STD


@torch.no_grad()
def initialize(model: Transformer) -> None:
    """Draws every matrix from N(0, initial_std²) and zeroes every bias; the weights of norms stay the ones they are."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, initial_std(name, model.config))
        elif name.endswith(".bias"):
            parameter.zero_()
