"""What is measured: the grid of models, the map of the crossover, and the arithmetic that a training step needs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinygrad_llm.config import TransformerConfig


@dataclass(frozen=True)
class Case:
    """One size of model and batch: B sequences of T tokens, d features, V tokens in the vocabulary."""

    name: str
    batch: int
    context: int
    d_model: int
    n_heads: int
    n_layers: int
    vocab: int
    activation: str = "relu"
    about: str = ""

    @property
    def config(self) -> TransformerConfig:
        """The model: pre-norm, sinusoidal positions, untied head, no dropout."""
        return TransformerConfig(
            self.vocab, self.context, self.d_model, self.n_heads, self.n_layers, activation=self.activation
        )

    @property
    def tokens(self) -> int:
        """Tokens in a batch, B T."""
        return self.batch * self.context

    @property
    def flops(self) -> int:
        """Floating-point operations in the matrix products of one step: 2 a multiply-add, backward twice forward.

        Forward, a token costs 2 (12 L d² + V d), and attention 4 d for each of the T (T + 1) / 2 pairs that the mask
        leaves, in each layer and sequence. Norms, activations, softmax, loss and AdamW are not counted.
        """
        dense = 2 * (12 * self.n_layers * self.d_model**2 + self.vocab * self.d_model) * self.tokens
        pairs = self.context * (self.context + 1) // 2
        return 3 * (dense + 4 * self.d_model * pairs * self.n_layers * self.batch)

    def to_dict(self) -> dict[str, Any]:
        """The fields, JSON-able."""
        return dataclasses.asdict(self)


def label(case: Mapping[str, Any]) -> str:
    """The name of a case in a record, with the activation where it is not relu."""
    return case["name"] + f" {case['activation']}" * (case["activation"] != "relu")


GRID = {case.name: case for case in (
    Case("toy", 2, 4, 8, 2, 1, 11, about="tests of the harness"),
    Case("S0", 2, 8, 32, 4, 2, 16, about="toy: cost of a call"),
    Case("S1", 32, 64, 128, 4, 4, 65, about="characters: small products, elementwise"),
    Case("S2", 12, 256, 384, 6, 6, 65, about="nano: products, attention"),
    Case("S3", 4, 256, 256, 8, 4, 100277, about="cl100k: the head and the loss"),
    Case("S4", 2, 512, 768, 12, 12, 50257, about="GPT-2 small: everything"),
)}


def find_cases(names: Sequence[str], activation: str = "relu") -> list[Case]:
    """The cases of the grid by name. Raises ValueError for one that is not there."""
    for name in names:
        if name not in GRID:
            raise ValueError(f"grid: got {name!r}, expected some of {', '.join(GRID)}")
    return [dataclasses.replace(GRID[name], activation=activation) for name in names]


def map_cases(widths: Sequence[int], contexts: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Every d_model × T × B: 2 layers, heads of 32 features or fewer, 256 tokens (bytes)."""
    return [
        Case(f"d{d}-T{t}-B{b}", b, t, d, max(1, d // 32), 2, 256, about="crossover")
        for d, t, b in itertools.product(widths, contexts, batches)
    ]


def scaling_cases(axes: Sequence[str]) -> list[Case]:
    """1, 2, 4, 8 and 16 times the tokens (sequences of 128), and as many layers: d = 256, all else the same.

    Raises ValueError for another axis.
    """
    for axis in axes:
        if axis not in SCALING:
            raise ValueError(f"axes: got {axis!r}, expected some of {', '.join(SCALING)}")
    return [SCALING[axis](times) for axis in axes for times in (1, 2, 4, 8, 16)]


SCALING = {
    "tokens": lambda times: Case(f"{128 * times} tokens", times, 128, 256, 4, 4, 65, about="tokens"),
    "layers": lambda times: Case(f"{times} layer{'s' * (times > 1)}", 4, 128, 256, 4, times, 65, about="layers"),
}
