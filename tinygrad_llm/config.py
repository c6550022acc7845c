"""TransformerConfig: every number and choice that defines a Transformer, checked when it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tinygrad_llm.ops.numbers import plain

CHOICES = {
    "activation": ("relu", "gelu", "gelu_tanh"),
    "norm": ("layernorm",),
    "norm_position": ("pre", "post"),
    "positions": ("sinusoidal", "learned"),
}


@dataclass(frozen=True)
class TransformerConfig:
    """The shape and the choices of a decoder-only Transformer.

    vocab_size       V, the number of tokens that the model knows
    context_length   T, the longest sequence that it sees, in tokens
    d_model          width of the residual stream; each of n_heads heads has d_model / n_heads features
    n_heads          attention heads in a block
    n_layers         blocks
    d_ff             hidden width of the feed-forward network; None means 4 · d_model (Vaswani et al. 2017)
    activation       "relu" | "gelu" (exact, erf) | "gelu_tanh" (the approximation of GPT-2)
    norm             "layernorm"
    norm_position    "pre": x + f(norm(x)) (GPT-2) | "post": norm(x + f(x)) (Vaswani et al. 2017)
    positions        "sinusoidal": fixed sines and cosines | "learned": a trained row per position
    bias             whether linear layers (but lm_head) and norms have a bias
    tie_embeddings   whether lm_head.weight is tok_embed.weight (Press & Wolf 2017)
    dropout          probability in [0, 1) that a value is zeroed while training
    norm_eps         added to the variance under the root, > 0

    Raises TypeError or ValueError, naming the field, what it was and what was expected.
    """

    vocab_size: int
    context_length: int
    d_model: int
    n_heads: int
    n_layers: int
    d_ff: int | None = None
    activation: str = "relu"
    norm: str = "layernorm"
    norm_position: str = "pre"
    positions: str = "sinusoidal"
    bias: bool = True
    tie_embeddings: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # NumPy's numbers as Python's, which JSON can hold
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if self.d_ff is None and isinstance(self.d_model, int):
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        for name in ("vocab_size", "context_length", "d_model", "n_heads", "n_layers", "d_ff"):
            _check_count(name, getattr(self, name))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(map(repr, allowed))}")
        for name in ("bias", "tie_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected True or False")
        _check_range("dropout", self.dropout, lambda p: 0 <= p < 1, "a number in [0, 1)")
        _check_range("norm_eps", self.norm_eps, lambda e: 0 < e < 1, "a small number > 0")
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads: got {self.n_heads}, expected a divisor of d_model = {self.d_model}")

    @property
    def head_dim(self) -> int:
        """Features of one head, d_model / n_heads."""
        return self.d_model // self.n_heads

    @property
    def hidden_width(self) -> int:
        """d_ff as a number: features between the two layers of the feed-forward network."""
        return 4 * self.d_model if self.d_ff is None else self.d_ff

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TransformerConfig:
        """The inverse of to_dict; refuses names that are not fields."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"config: got unknown field {unknown[0]!r}, expected some of {', '.join(known)}")
        return cls(**values)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected an integer >= 1")
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected an integer >= 1")


def _check_range(name: str, value: object, accepts: Any, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")
    if not accepts(value):
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
