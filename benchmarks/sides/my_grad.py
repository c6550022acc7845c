"""The model in MyGrad: its tensors, with its own softmax, relu and cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mygrad as mg
import numpy as np
from mygrad.nnet import relu, softmax, softmax_crossentropy
from mygrad.operation_base import Operation
from scipy.special import erf

from benchmarks.cases import Case
from benchmarks.sides import engine
from benchmarks.sides.peer import AdamW, NumPyPeer, parameter_shapes
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import sinusoidal_positions

mg.turn_memory_guarding_off()  # its manual's advice for speed


class Gelu(Operation):
    """x Φ(x): MyGrad has no erf, so this is an operation of the user's."""

    def __call__(self, x: Any) -> np.ndarray:
        self.variables = (x,)
        self.cdf = 0.5 * (1.0 + erf(x.data * math.sqrt(0.5)))
        return x.data * self.cdf

    def backward_var(self, grad: np.ndarray, index: int, **_: Any) -> np.ndarray:
        x = self.variables[index].data
        return grad * (self.cdf + x * np.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi)))


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"relu": relu, "gelu": lambda x: mg.execute_op(Gelu, x)}


class Engine(NumPyPeer):
    """AdamW is written in NumPy: MyGrad has no optimizers."""

    packages = "mygrad", "numpy"

    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        self.model = Model(case.config, draw(parameter_shapes(case.config)), dtype)
        self.arrays = {name: tensor.data for name, tensor in self.model.weights.items()}
        self.optimizer = AdamW(self.arrays, engine.LR)

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        losses = []
        for ids, targets in batches:
            loss = self.model.loss(ids, targets)
            loss.backward()
            self.optimizer.step(self.arrays, {name: t.grad for name, t in self.model.weights.items()})
            losses.append(loss.item())
        return losses


class Model:
    """Activations are [B T, d], so that every product with a weight is one of two matrices.

    Numbers are NumPy's, of the dtype: MyGrad makes tensors of Python's, and float32 beside them becomes float64.
    """

    def __init__(self, config: TransformerConfig, weights: dict[str, np.ndarray], dtype: str) -> None:
        t, number = config.context_length, np.dtype(dtype).type
        self.config = config
        self.part, self.eps, self.scale = number(1 / config.d_model), number(config.norm_eps), number(config.head_dim**-0.5)
        self.weights = {name: mg.tensor(array, copy=False) for name, array in weights.items()}
        self.positions = sinusoidal_positions(t, config.d_model).astype(dtype)
        self.mask = np.triu(np.full((t, t), -np.inf, dtype), 1)

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> Any:
        """Mean cross entropy of int [B, T] ids and targets."""
        x = (self.weights["tok_embed.weight"][ids] + self.positions).reshape(ids.size, -1)
        for i in range(self.config.n_layers):
            block = f"blocks.{i}."
            x = x + self.attention(block, self.norm(block + "norm1", x), len(ids))
            x = x + self.feed_forward(block, self.norm(block + "norm2", x))
        logits = mg.matmul(self.norm("final_norm", x), self.weights["lm_head.weight"].T)
        return softmax_crossentropy(logits, targets.reshape(-1))

    def norm(self, name: str, x: Any) -> Any:
        centred = x - x.sum(axis=-1, keepdims=True) * self.part
        variance = mg.square(centred).sum(axis=-1, keepdims=True) * self.part
        normal = centred / mg.sqrt(variance + self.eps)
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, block: str, x: Any, batch: int) -> Any:
        """softmax(q kᵀ / √D + mask) v for all heads, then a projection: [B T, d] → [B T, d]"""
        heads, width = self.config.n_heads, self.config.head_dim
        qkv = self.linear(block + "attn.qkv_proj", x).reshape(batch, -1, 3, heads, width).transpose(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # each [B, H, T, D]
        scores = mg.matmul(q, k.swapaxes(-1, -2)) * self.scale + self.mask
        out = mg.matmul(softmax(scores), v).transpose(0, 2, 1, 3)  # [B, T, H, D]
        return self.linear(block + "attn.out_proj", out.reshape(*x.shape))

    def feed_forward(self, block: str, x: Any) -> Any:
        return self.linear(block + "ffn.down_proj", ACTIVATIONS[self.config.activation](self.linear(block + "ffn.up_proj", x)))

    def linear(self, name: str, x: Any) -> Any:
        """x Wᵀ + b"""
        return mg.matmul(x, self.weights[f"{name}.weight"].T) + self.weights[f"{name}.bias"]
