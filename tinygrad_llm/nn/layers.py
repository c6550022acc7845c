"""The layers: each is a few parameters and one function of nn.functional. Initial values are torch's defaults."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinygrad_llm.autograd import Tensor
from tinygrad_llm.autograd.randomness import chosen
from tinygrad_llm.functions.base import taking, whole
from tinygrad_llm.nn import functional as F
from tinygrad_llm.nn.module import Module, Parameter
from tinygrad_llm.ops import ShapeError
from tinygrad_llm.ops.numbers import plain


class PaddingError(AssertionError, ValueError):
    """An Embedding's argument that does not fit its table (torch: AssertionError)."""


def _empty(shape: tuple[int, ...], dtype: Any) -> Parameter:
    return Parameter.from_array(np.empty(shape, np.float32 if dtype is None else dtype)).requires_grad_()  # type: ignore[return-value]


def _size(name: str, argument: str, value: Any) -> int:
    size = whole(name, argument, value)
    if size < 0:
        raise ShapeError(f"{name}: {argument}: got {size}, expected none below 0")
    return size


def _trailing(name: str, shape: Any) -> tuple[int, ...]:
    """normalized_shape as a tuple, of an integer too."""
    sizes = shape if isinstance(shape, tuple | list) else (shape,)
    return tuple([_size(name, "normalized_shape", n) for n in sizes])


class Linear(Module):
    """y = x Wᵀ + b.   x [..., in_features] → [..., out_features];  W (out, in) and b drawn from U(−1/√in, 1/√in)

    The numbers come from `generator`, by default from the library's (tinygrad_llm.manual_seed).
    """

    bias: Parameter | None

    @taking("device")
    def __init__(self, in_features: int, out_features: int, bias: bool = True, *,
                 generator: np.random.Generator | None = None, dtype: Any = None) -> None:
        self.in_features = _size("Linear", "in_features", in_features)
        self.out_features = _size("Linear", "out_features", out_features)
        self.weight = _empty((self.out_features, self.in_features), dtype)
        self.register_parameter("bias", _empty((self.out_features,), dtype) if bias else None)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: np.random.Generator | None = None) -> None:
        """Draw the initial values again."""
        generator, bound = chosen("Linear: generator", generator), 1 / math.sqrt(self.in_features or math.inf)
        for p in (self.weight, self.bias):
            if p is not None:
                p.detach().copy_(generator.uniform(-bound, bound, p.shape))

    def forward(self, input: Any) -> Tensor:
        """[..., in] → [..., out]"""
        return F.linear(input, self.weight, self.bias)


class Embedding(Module):
    """Row i of weight for id i.   ids int [...] → [..., embedding_dim];  weight drawn from N(0, 1)

    padding_idx   this row is zero at first, and has no gradient; it may count from the end
    max_norm, norm_type, scale_grad_by_freq   as in nn.functional.embedding
    _weight, _freeze   the table itself, and whether it is not trained: see from_pretrained

    The numbers come from `generator`, by default from the library's. Errors: PaddingError, an AssertionError and a ValueError.
    """

    @taking("device")
    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False, _weight: Any = None,
        _freeze: bool = False, *, generator: np.random.Generator | None = None, dtype: Any = None,
    ) -> None:
        if sparse:
            raise ValueError("Embedding: sparse: got True, expected False: a gradient is an array here")
        self.num_embeddings = n = _size("Embedding", "num_embeddings", num_embeddings)
        self.embedding_dim = _size("Embedding", "embedding_dim", embedding_dim)
        if padding_idx is not None and not -n <= whole("Embedding", "padding_idx", padding_idx) < n:
            raise PaddingError(f"Embedding: padding_idx: got {padding_idx}, expected {-n} to {n - 1}")
        self.padding_idx = None if padding_idx is None else padding_idx % n
        self.max_norm, self.norm_type, self.scale_grad_by_freq = max_norm, norm_type, scale_grad_by_freq
        if _weight is not None and np.shape(_weight) != (n, self.embedding_dim):
            raise PaddingError(f"Embedding: _weight: got shape {np.shape(_weight)}, expected {(n, self.embedding_dim)}")
        self.weight = Parameter(_empty((n, self.embedding_dim), dtype) if _weight is None else _weight, not _freeze)
        if _weight is None:
            self.reset_parameters(generator)

    @classmethod
    def from_pretrained(
        cls, embeddings: Any, freeze: bool = True, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Embedding:
        """An Embedding of this table [V, d], a tensor's memory or a copy, which is trained only with freeze=False."""
        if np.ndim(embeddings) != 2:
            raise PaddingError(f"Embedding: embeddings: got shape {np.shape(embeddings)}, expected 2 axes")
        rows, width = np.shape(embeddings)
        return cls(rows, width, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, embeddings, freeze)

    def reset_parameters(self, generator: np.random.Generator | None = None) -> None:
        """Draw the initial values again."""
        weight = chosen("Embedding: generator", generator).standard_normal(self.weight.shape)
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0
        self.weight.detach().copy_(weight)

    def forward(self, input: Any) -> Tensor:
        """int [...] → [..., embedding_dim]"""
        return F.embedding(input, self.weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq)


class LayerNorm(Module):
    """weight · (x − E[x]) / √(Var[x] + eps) + bias over the last axes;  weight = 1, bias = 0 at first

    Without elementwise_affine there is neither weight nor bias.
    """

    weight: Parameter | None
    bias: Parameter | None

    @taking("device")
    def __init__(
        self, normalized_shape: int | tuple[int, ...], eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True, *,
        dtype: Any = None,
    ) -> None:
        self.normalized_shape = _trailing("LayerNorm", normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self.register_parameter("weight", _empty(self.normalized_shape, dtype) if elementwise_affine else None)
        self.register_parameter("bias", _empty(self.normalized_shape, dtype) if elementwise_affine and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0 again."""
        for p, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if p is not None:
                p.detach().fill_(value)

    def forward(self, input: Any) -> Tensor:
        """[..., d] → [..., d]"""
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class RMSNorm(Module):
    """weight · x / √(E[x²] + eps) over the last axes;  weight = 1 at first, eps by default that of the dtype"""

    weight: Parameter | None

    @taking("device")
    def __init__(self, normalized_shape: int | tuple[int, ...], eps: float | None = None, elementwise_affine: bool = True, *,
                 dtype: Any = None) -> None:
        self.normalized_shape = _trailing("RMSNorm", normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self.register_parameter("weight", _empty(self.normalized_shape, dtype) if elementwise_affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1 again."""
        if self.weight is not None:
            self.weight.detach().fill_(1.0)

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
    """While training, zero each element with probability p and scale the rest by 1/(1 − p).

    The mask is drawn from `generator`; without one from the library's, which copies of the module share.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: np.random.Generator | None = None) -> None:
        p = plain(p)
        if not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ValueError(f"Dropout: p: got {p!r}, expected a probability in [0, 1]")
        chosen("Dropout: generator", generator)
        self.p, self.inplace, self.generator = p, inplace, generator

    def forward(self, input: Any) -> Tensor:
        """[...] → [...]"""
        return F.dropout(input, self.p, self.training, self.inplace, generator=self.generator)

    def extra_repr(self) -> str:
        return f"p={self.p}"
