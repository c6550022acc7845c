"""The settings of a model, shared by the commands that make one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tinygrad_llm.cli.settings import at_least_zero, integer, number, one_of, option, switch
from tinygrad_llm.config import CHOICES, TransformerConfig


@dataclass(frozen=True)
class ModelOptions:
    """The fields of TransformerConfig but vocab_size, which the tokenizer decides."""

    context_length: int = option(64, integer(1), "tokens that the model sees at once", "model")
    d_model: int = option(128, integer(1), "width of the residual stream: numbers per token", "model")
    n_heads: int = option(4, integer(1), "attention heads in a block; divides d_model", "model")
    n_layers: int = option(4, integer(1), "blocks, one above the other", "model")
    d_ff: int | None = option(
        None, integer(1), "hidden width of the feed-forward network (default: 4 · d_model)", "model"
    )
    activation: str = option("relu", one_of(*CHOICES["activation"]), "its nonlinearity", "model")
    norm: str = option("layernorm", one_of(*CHOICES["norm"]), "kind of normalization", "model")
    norm_position: str = option("pre", one_of(*CHOICES["norm_position"]), "before or after each sublayer", "model")
    positions: str = option(
        "sinusoidal", one_of(*CHOICES["positions"]), "fixed sines and cosines, or a trained table", "model"
    )
    bias: bool = option(True, switch(True), "give linear layers and norms a bias", "model")
    tie_embeddings: bool = option(False, switch(True), "use one matrix for the embedding and the output", "model")
    dropout: float = option(
        0.0, number("a number in [0, 1)", lambda p: 0 <= p < 1), "chance to zero a value in training", "model"
    )
    norm_eps: float = option(1e-5, at_least_zero(), "added to the variance in a norm", "model")

    def transformer_config(self, vocab_size: int) -> TransformerConfig:
        """The config of these settings. Raises ValueError where they do not fit together."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelOptions)}
        return TransformerConfig(vocab_size=vocab_size, **values)
