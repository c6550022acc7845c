"""The model in tinygrad, https://tinygrad.org (not this project): its layers and its AdamW, a whole step in one TinyJit."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("DEV", "CPU")  # read when tinygrad is imported; it would take a GPU otherwise
from tinygrad import Context, Device, Tensor, TinyJit, dtypes, helpers, nn

from benchmarks.cases import Case
from benchmarks.sides import engine
from benchmarks.sides.peer import BETA1, BETA2, DECAY, EPS, Peer, parameter_shapes
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import sinusoidal_positions

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"relu": Tensor.relu, "gelu": lambda x: x.gelu(approximate="none")}


class Engine(Peer):
    """Kernels as tinygrad's own heuristics choose them; its BEAM search, minutes for each new size, is left off."""

    packages = ("tinygrad",)

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        if threads is not None:
            helpers.NUM_CPU_THREADS.value = threads

    def describe(self) -> dict[str, Any]:
        about = super().describe()
        return {**about, "about": f"{about['about']} on {Device.DEFAULT}"}

    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        model = Transformer(case.config)
        positions = Tensor(sinusoidal_positions(case.context, case.d_model).astype(dtype)).realize()
        weights = {name: Tensor(array) for name, array in draw(parameter_shapes(case.config)).items()}
        nn.state.load_state_dict(model, weights, verbose=False)
        parameters = nn.state.get_parameters(model)
        optimizer = nn.optim.AdamW(parameters, lr=engine.LR, b1=BETA1, b2=BETA2, eps=EPS, weight_decay=DECAY)

        @TinyJit
        @Context(TRAINING=1)
        def step(ids: Tensor, targets: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = model(ids, positions).sparse_categorical_crossentropy(targets).backward()
            return loss.realize(*optimizer.schedule_step())

        self.step = step

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        return [self.step(*(Tensor(array, dtype=dtypes.int32).realize() for array in batch)).item() for batch in batches]

    def product(self, size: int) -> Callable[[], Any]:
        a = Tensor.ones(size, size).contiguous().realize()
        return TinyJit(lambda: (a @ a).realize())

    def wait(self) -> None:
        Device[Device.DEFAULT].synchronize()


class Attention:
    """Causal self-attention: [B, T, d] → [B, T, d]"""

    def __init__(self, config: TransformerConfig) -> None:
        self.n_heads = config.n_heads
        self.qkv_proj = nn.Linear(config.d_model, 3 * config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def __call__(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (part.reshape(b, t, self.n_heads, -1).transpose(1, 2) for part in self.qkv_proj(x).chunk(3, dim=-1))
        return self.out_proj(q.scaled_dot_product_attention(k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))


class FeedForward:
    def __init__(self, config: TransformerConfig) -> None:
        self.activation = ACTIVATIONS[config.activation]
        self.up_proj = nn.Linear(config.d_model, config.hidden_width)
        self.down_proj = nn.Linear(config.hidden_width, config.d_model)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Block:
    def __init__(self, config: TransformerConfig) -> None:
        self.norm1, self.norm2 = (nn.LayerNorm(config.d_model, config.norm_eps) for _ in range(2))
        self.attn, self.ffn = Attention(config), FeedForward(config)

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Transformer:
    """ids [B, T], positions [T, d] → logits [B, T, V]"""

    def __init__(self, config: TransformerConfig) -> None:
        self.tok_embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = [Block(config) for _ in range(config.n_layers)]
        self.final_norm = nn.LayerNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.tok_embed(ids) + positions
        return self.lm_head(self.final_norm(x.sequential(self.blocks)))
