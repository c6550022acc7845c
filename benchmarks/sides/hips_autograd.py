"""The model in HIPS autograd: functions of a dict of arrays, differentiated by value_and_grad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import autograd.numpy as np
import numpy
from autograd import value_and_grad
from autograd.scipy.special import erf
from autograd.tracer import getval

from benchmarks.cases import Case
from benchmarks.sides import engine
from benchmarks.sides.peer import AdamW, NumPyPeer, parameter_shapes
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import sinusoidal_positions

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: 0.5 * x * (1.0 + erf(x * math.sqrt(0.5))),
}


class Engine(NumPyPeer):
    """AdamW is written in NumPy: autograd.misc.optimizers has none with decoupled decay."""

    packages = "autograd", "numpy"

    def make(self, case: Case, draw: Callable[[Any], dict[str, numpy.ndarray]], dtype: str) -> None:
        self.weights = draw(parameter_shapes(case.config))
        self.optimizer = AdamW(self.weights, engine.LR)
        model = Model(case.config, dtype)
        self.gradient = value_and_grad(model.loss)

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        losses = []
        for ids, targets in batches:
            loss, grads = self.gradient(self.weights, ids, targets)
            self.optimizer.step(self.weights, grads)
            losses.append(float(loss))
        return losses


class Model:
    """Activations are [B T, d], so that every product with a weight is one of two matrices."""

    def __init__(self, config: TransformerConfig, dtype: str) -> None:
        t = config.context_length
        self.config = config
        self.positions = sinusoidal_positions(t, config.d_model).astype(dtype)
        self.mask = numpy.triu(numpy.full((t, t), -numpy.inf, dtype), 1)

    def loss(self, weights: Any, ids: numpy.ndarray, targets: numpy.ndarray) -> Any:
        """Mean cross entropy of int [B, T] ids and targets."""
        x = np.reshape(weights["tok_embed.weight"][ids] + self.positions, (ids.size, -1))
        for i in range(self.config.n_layers):
            p = {name: weights[f"blocks.{i}.{name}"] for name in BLOCK}
            x = x + self.attention(p, self.norm(p, "norm1", x), len(ids))
            x = x + self.feed_forward(p, self.norm(p, "norm2", x))
        logits = np.dot(self.norm(weights, "final_norm", x), weights["lm_head.weight"].T)
        logits = logits - getval(logits).max(-1, keepdims=True)
        chosen = logits[numpy.arange(ids.size), targets.reshape(-1)]
        return np.sum(np.log(np.sum(np.exp(logits), -1)) - chosen) / ids.size

    def norm(self, p: Any, name: str, x: Any) -> Any:
        """Layer norm. Sums over a Python integer: the gradient of np.mean would be float64."""
        d = self.config.d_model
        centred = x - np.sum(x, -1, keepdims=True) / d
        variance = np.sum(centred * centred, -1, keepdims=True) / d
        return centred / np.sqrt(variance + self.config.norm_eps) * p[f"{name}.weight"] + p[f"{name}.bias"]

    def attention(self, p: Any, x: Any, batch: int) -> Any:
        """softmax(q kᵀ / √D + mask) v for all heads, then a projection: [B T, d] → [B T, d]"""
        heads, width = self.config.n_heads, self.config.head_dim
        parts = np.split(linear(p, "attn.qkv_proj", x), 3, axis=1)
        q, k, v = (np.transpose(np.reshape(part, (batch, -1, heads, width)), (0, 2, 1, 3)) for part in parts)  # [B, H, T, D]
        scores = np.matmul(q, np.swapaxes(k, -1, -2)) * (1.0 / math.sqrt(width)) + self.mask
        weights = np.exp(scores - getval(scores).max(-1, keepdims=True))
        out = np.matmul(weights / np.sum(weights, -1, keepdims=True), v)  # [B, H, T, D]
        return linear(p, "attn.out_proj", np.reshape(np.transpose(out, (0, 2, 1, 3)), x.shape))

    def feed_forward(self, p: Any, x: Any) -> Any:
        return linear(p, "ffn.down_proj", ACTIVATIONS[self.config.activation](linear(p, "ffn.up_proj", x)))


def linear(p: Any, name: str, x: Any) -> Any:
    """x Wᵀ + b"""
    return np.dot(x, p[f"{name}.weight"].T) + p[f"{name}.bias"]


BLOCK = [f"{name}.{kind}" for name in ("norm1", "attn.qkv_proj", "attn.out_proj", "norm2", "ffn.up_proj", "ffn.down_proj")
         for kind in ("weight", "bias")]
