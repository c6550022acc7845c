"""The model in JAX on the CPU: one jitted function from the state and a batch to the next state, whose buffers it takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from benchmarks.cases import Case
from benchmarks.sides import engine
from benchmarks.sides.peer import BETA1, BETA2, DECAY, EPS, Peer, parameter_shapes
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import sinusoidal_positions

jax.config.update("jax_platforms", "cpu")
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"relu": jax.nn.relu, "gelu": partial(jax.nn.gelu, approximate=False)}


class State(NamedTuple):
    """The weights, AdamW's two moments of each, and the number of steps."""

    weights: Any
    m: Any
    v: Any
    steps: Any


class Engine(Peer):
    """XLA reads the number of its threads from NPROC, when the first array is made."""

    packages = "jax", "jaxlib"

    def __init__(self, threads: int | None = None) -> None:
        super().__init__(threads)
        if threads is not None:
            os.environ["NPROC"] = str(threads)

    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        weights = {name: jnp.asarray(array) for name, array in draw(parameter_shapes(case.config)).items()}
        zeros = partial(jax.tree.map, jnp.zeros_like, weights)
        self.state = State(weights, zeros(), zeros(), jnp.zeros((), jnp.int32))
        positions = jnp.asarray(sinusoidal_positions(case.context, case.d_model), dtype)
        self.step = jax.jit(partial(train_step, case.config, positions, engine.LR), donate_argnums=0)

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        losses = []
        for ids, targets in batches:
            self.state, loss = self.step(self.state, ids.astype(np.int32), targets.astype(np.int32))
            losses.append(loss)
        return [float(loss) for loss in losses]  # read at the end: the Python code runs ahead

    def product(self, size: int) -> Callable[[], Any]:
        a, multiply = jnp.ones((size, size), jnp.float32), jax.jit(jnp.matmul)
        return lambda: multiply(a, a).block_until_ready()

    def wait(self) -> None:
        jax.block_until_ready(getattr(self, "state", None))


def train_step(
    config: TransformerConfig, positions: Any, lr: float, state: State, ids: Any, targets: Any
) -> tuple[State, Any]:
    """Forward, backward and AdamW: the next state, and the loss before."""
    value, grads = jax.value_and_grad(partial(loss, config, positions))(state.weights, ids, targets)
    steps = state.steps + 1
    m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, state.m, grads)
    v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, state.v, grads)

    def moved(p: Any, m: Any, v: Any) -> Any:
        root = jnp.sqrt(v / (1 - BETA2**steps))
        return p * (1 - lr * DECAY) - lr / (1 - BETA1**steps) * m / (root + EPS)

    return State(jax.tree.map(moved, state.weights, m, v), m, v, steps), value


def loss(config: TransformerConfig, positions: Any, weights: Any, ids: Any, targets: Any) -> Any:
    """Mean cross entropy of int32 [B, T] ids and targets."""
    x = weights["tok_embed.weight"][ids] + positions
    for i in range(config.n_layers):
        x = block(config, {name.removeprefix(f"blocks.{i}."): p for name, p in weights.items()}, x)
    logits = norm(config, weights, "final_norm", x) @ weights["lm_head.weight"].T
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def block(config: TransformerConfig, p: Any, x: Any) -> Any:
    """[B, T, d] → [B, T, d]"""
    b, t, d = x.shape
    qkv = linear(p, "attn.qkv_proj", norm(config, p, "norm1", x)).reshape(b, t, 3, config.n_heads, config.head_dim)
    q, k, v = (qkv[:, :, i] for i in range(3))  # each [B, T, H, D]
    x = x + linear(p, "attn.out_proj", jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(b, t, d))
    hidden = ACTIVATIONS[config.activation](linear(p, "ffn.up_proj", norm(config, p, "norm2", x)))
    return x + linear(p, "ffn.down_proj", hidden)


def norm(config: TransformerConfig, p: Any, name: str, x: Any) -> Any:
    return jax.nn.standardize(x, axis=-1, epsilon=config.norm_eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def linear(p: Any, name: str, x: Any) -> Any:
    """x Wᵀ + b"""
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]
