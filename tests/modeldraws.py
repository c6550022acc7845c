"""Models drawn by Hypothesis, over all choices of the architecture, and batches for them."""

import numpy as np
from hypothesis import strategies as st

from tinygrad_llm.config import TransformerConfig


@st.composite
def configs(draw, least_width=1):
    heads = draw(st.integers(1, 4))
    return TransformerConfig(
        vocab_size=draw(st.integers(1, 23)), context_length=draw(st.integers(1, 9)),
        d_model=heads * draw(st.integers(-(-least_width // heads), 5)), n_heads=heads, n_layers=draw(st.integers(1, 3)),
        d_ff=draw(st.one_of(st.none(), st.integers(1, 17))),
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh"])),
        norm_position=draw(st.sampled_from(["pre", "post"])), positions=draw(st.sampled_from(["sinusoidal", "learned"])),
        bias=draw(st.booleans()), tie_embeddings=draw(st.booleans()), norm_eps=draw(st.sampled_from([1e-5, 1e-3])),
    )


def drawn_batch(config, seed, batch):
    rng = np.random.default_rng(seed)
    length = rng.integers(1, config.context_length + 1)
    return rng.integers(0, config.vocab_size, (2, batch, length))
