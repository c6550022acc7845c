"""The layers: each is a few parameters and one function of nn.functional. Initial values are torch's defaults."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.nn import functional as F
from tinygrad_llm.nn.module import Module, Parameter


def _generator(generator: np.random.Generator | None) -> np.random.Generator:
    return np.random.default_rng(0) if generator is None else generator


class Linear(Module):
    """y = x Wᵀ + b.   x [..., in_features] → [..., out_features];  W (out, in) and b drawn from U(−1/√in, 1/√in)"""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *,
                 generator: np.random.Generator | None = None, dtype: Any = np.float32) -> None:
        generator, bound = _generator(generator), 1 / math.sqrt(in_features)
        self.weight = Parameter(generator.uniform(-bound, bound, (out_features, in_features)), dtype=dtype)
        self.bias = Parameter(generator.uniform(-bound, bound, out_features), dtype=dtype) if bias else None

    def forward(self, input: Any) -> Tensor:
        """[..., in] → [..., out]"""
        return F.linear(input, self.weight, self.bias)


class Embedding(Module):
    """Row i of weight for id i.   ids int [...] → [..., embedding_dim];  weight drawn from N(0, 1)

    The row padding_idx is zero at first, and has no gradient.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, *,
                 generator: np.random.Generator | None = None, dtype: Any = np.float32) -> None:
        self.padding_idx = padding_idx
        weight = _generator(generator).standard_normal((num_embeddings, embedding_dim))
        if padding_idx is not None:
            weight[padding_idx] = 0
        self.weight = Parameter(weight, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        """int [...] → [..., embedding_dim]"""
        return F.embedding(input, self.weight, self.padding_idx)


class LayerNorm(Module):
    """weight · (x − E[x]) / √(Var[x] + eps) + bias over the last axis;  weight = 1, bias = 0 at first"""

    def __init__(self, normalized_shape: int, eps: float = 1e-5, bias: bool = True, *, dtype: Any = np.float32) -> None:
        self.eps = eps
        self.weight = Parameter(np.ones(normalized_shape), dtype=dtype)
        self.bias = Parameter(np.zeros(normalized_shape), dtype=dtype) if bias else None

    def forward(self, input: Any) -> Tensor:
        """[..., d] → [..., d]"""
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class RMSNorm(Module):
    """weight · x / √(E[x²] + eps) over the last axes;  weight = 1 at first, eps by default that of the dtype"""

    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float | None = None, elementwise_affine: bool = True, *,
                 dtype: Any = np.float32) -> None:
        self.normalized_shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.weight = Parameter(np.ones(self.normalized_shape), dtype=dtype) if elementwise_affine else None

    def forward(self, input: Any) -> Tensor:
        """[..., d] → [..., d]"""
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}"


class ReLU(Module):
    """max(x, 0)"""

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace

    def forward(self, input: Any) -> Tensor:
        """[...] → [...]"""
        return F.relu(input, self.inplace)


class GELU(Module):
    """x Φ(x);  approximate="tanh" is GPT-2's form"""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, input: Any) -> Tensor:
        """[...] → [...]"""
        return F.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x σ(x)"""

    def __init__(self, inplace: bool = False) -> None:
        self.inplace = inplace

    def forward(self, input: Any) -> Tensor:
        """[...] → [...]"""
        return F.silu(input, self.inplace)


class Dropout(Module):
    """While training, zero each element with probability p and scale the rest by 1/(1 − p)."""

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: np.random.Generator | None = None) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p: got {p}, expected a probability in [0, 1]")
        self.p, self.inplace, self.generator = p, inplace, _generator(generator)

    def forward(self, input: Any) -> Tensor:
        """[...] → [...]"""
        return F.dropout(input, self.p, self.training, self.inplace, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"
