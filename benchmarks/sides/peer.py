"""What the sides of other libraries share. They train, and do nothing else: decoding and single ops are torch's."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from benchmarks import kernels
from benchmarks.machine import cores
from benchmarks.sides import engine
from tinygrad_llm.config import TransformerConfig

BLAS_VARIABLES = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"
Arrays = dict[str, np.ndarray]
BETA1, BETA2, EPS, DECAY = 0.9, 0.999, 1e-8, 0.01  # torch.optim.AdamW's defaults


def parameter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """name → shape, as in the state dict of both models; weights are (out, in)."""
    d, f, v = config.d_model, config.hidden_width, config.vocab_size
    parts = {"norm1": (d,), "attn.qkv_proj": (3 * d, d), "attn.out_proj": (d, d), "norm2": (d,), "ffn.up_proj": (f, d),
             "ffn.down_proj": (d, f)}
    layers = {f"blocks.{i}.{part}": shape for i in range(config.n_layers) for part, shape in parts.items()}
    pairs = {f"{name}.{kind}": shape if kind == "weight" else shape[:1]
             for name, shape in {**layers, "final_norm": (d,)}.items() for kind in ("weight", "bias")}
    return {"tok_embed.weight": (v, d), **pairs, "lm_head.weight": (v, d)}


class AdamW:
    """AdamW on a dict of arrays, in place, as careful users of NumPy write it.   Loshchilov & Hutter, arXiv:1711.05101"""

    def __init__(self, weights: Arrays, lr: float) -> None:
        self.lr, self.steps = lr, 0
        self.m, self.v = ({name: np.zeros_like(p) for name, p in weights.items()} for _ in range(2))

    def step(self, weights: Arrays, grads: Arrays) -> None:
        self.steps += 1
        size, root = self.lr / (1 - BETA1**self.steps), math.sqrt(1 - BETA2**self.steps)
        for name, p in weights.items():
            g, m, v = grads[name], self.m[name], self.v[name]
            m *= BETA1
            m += (1 - BETA1) * g
            v *= BETA2
            v += (1 - BETA2) * g * g
            p *= 1 - self.lr * DECAY
            p -= size * m / (np.sqrt(v) / root + EPS)


class Peer(engine.Engine):
    """A side that only trains; `packages` are those whose versions the report names."""

    packages: tuple[str, ...] = ()

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def describe(self) -> dict[str, Any]:
        about = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.packages)
        return {"about": about, "threads": self.threads or self.default_threads(), "python": platform.python_version()}

    def default_threads(self) -> int:
        """What the library takes by itself."""
        return cores()

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        refuse()

    def functional(self) -> Any:
        refuse()

    def tensor(self, array: np.ndarray, requires_grad: bool = False) -> Any:
        refuse()

    def array(self, tensor: Any) -> np.ndarray:
        refuse()

    def adamw(self, parameters: list[Any]) -> Callable[[], Any]:
        refuse()

    def no_grad(self) -> contextlib.AbstractContextManager[Any]:
        refuse()


class NumPyPeer(Peer):
    """One whose products are NumPy's."""

    def describe(self) -> dict[str, Any]:
        return super().describe() | kernels.openblas()

    def default_threads(self) -> int:
        """Those of the environment that the worker was started in, or one a core."""
        return next((int(os.environ[name]) for name in BLAS_VARIABLES if os.environ.get(name, "").isdigit()), cores())

    def product(self, size: int) -> Callable[[], Any]:
        a = np.ones((size, size), np.float32)
        out = np.empty_like(a)
        return lambda: np.matmul(a, a, out=out)


def refuse() -> NoReturn:
    """What a side that only trains answers to the rest."""
    raise NotImplementedError("this side trains, and does nothing else")
