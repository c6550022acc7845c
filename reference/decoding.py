"""Decoding with the reference model over a KV cache: the counterpart of tinygrad_llm.decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.model import KVCache, Transformer


class Decoder:
    """B sequences read piece by piece: ids int64 [B, T] -> logits [B, V] of the token that comes next, without gradients.

    Raises ValueError for a model whose dropout is on.
    """

    def __init__(self, model: Transformer, batch: int = 1) -> None:
        if model.training and model.config.dropout:
            raise ValueError("model: got one in training mode, with dropout, expected model.eval()")
        weight = model.lm_head.weight
        self.model, self.cache = model, KVCache(model.config, batch, weight.device, weight.dtype)

    @property
    def length(self) -> int:
        """How many positions it has read, at most context_length."""
        return self.cache.length

    def clear(self) -> None:
        """Forget what was read."""
        self.cache.clear()

    @torch.inference_mode()
    def __call__(self, ids: Tensor) -> Tensor:
        return self.model(ids, self.cache)[:, -1]


@torch.inference_mode()
def greedy(model: Transformer, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` likeliest tokens after the prompt; nothing is read back from the device before the end.

    Where they are more than context_length, each has another position than before, and the last of them are read anew.
    """
    decoder, length = Decoder(model), model.config.context_length
    ids = torch.tensor([list(prompt)], device=model.lm_head.weight.device)
    for _ in range(count):
        if ids.shape[1] > length:
            decoder.clear()
        new = ids[:, -length:] if ids.shape[1] > length else ids[:, decoder.length :]
        ids = torch.cat((ids, decoder(new).argmax(-1, keepdim=True)), dim=1)
    return ids[0, len(prompt) :].tolist()
