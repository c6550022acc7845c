"""The two ways that torch has to the loss of a large vocabulary: logits [N, V] as one array, or some rows of them at a time."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reference.model import Transformer

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
NN: Any = torch.nn  # what is new in 2.13 is not known to the types of an older torch
LARGE = 8192  # V from which on it is worth a look
ROWS = 128, 256, 512, 1024
SAME = 1e-5  # largest difference of losses and gradients, as a part of the largest entry
TURNS = 2
PLAIN, CHUNKED = "cross_entropy", "linear_cross_entropy, batch_chunk_size "


def choose(rows: int, vocab: int, d: int, compiled: bool) -> str:
    """The fastest there and back of those whose loss and gradients are plain's, as measured now in a process of its own:
    what they take of memory is not to count as the model's."""
    call = f"fastest({rows}, {vocab}, {d}, {compiled}, {torch.get_num_threads()})"
    command = [sys.executable, "-c", f"from benchmarks.sides.torch_head import fastest; print({call})"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def fastest(rows: int, vocab: int, d: int, compiled: bool, threads: int) -> str:
    """A name for `find`."""
    torch.set_num_threads(threads)
    arguments, seconds, truth = _draw(rows, vocab, d), {}, None
    for name in names(rows, vocab):
        head = torch.compile(find(name)) if compiled else find(name)
        found = _there_and_back(head, *arguments)
        truth = truth or found
        if all(float((a - b).abs().max()) <= SAME * float(b.abs().max()) for a, b in zip(found, truth)):
            seconds[name] = min(_seconds(head, *arguments) for _ in range(TURNS))
    return min(seconds, key=seconds.__getitem__)


def names(rows: int, vocab: int) -> list[str]:
    """PLAIN, and where torch has it linear_cross_entropy (new in 2.13) with so many rows at a time. Its own choice of them is
    2 for S3 on a CPU, and takes several times as long."""
    chunked = hasattr(torch.nn, "LinearCrossEntropyOptions") and vocab >= LARGE
    return [PLAIN, *(f"{CHUNKED}{n}" for n in ROWS if chunked and n <= rows)]


def find(name: str) -> Head:
    """x [N, d], weight [V, d], targets [N] → the mean cross entropy of x weightᵀ and targets"""
    if name == PLAIN:
        return lambda x, weight, targets: F.cross_entropy(F.linear(x, weight), targets)
    options = NN.LinearCrossEntropyOptions(batch_chunk_size=int(name.removeprefix(CHUNKED)))
    return lambda x, weight, targets: NN.functional.linear_cross_entropy(x, weight, targets, options=options)


def headed(head: Head) -> type[Transformer]:
    """The reference model, whose loss is `head` of what its last norm gives."""

    class Headed(Transformer):
        def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
            x = self.tok_embed(ids) + self.pos_embed(torch.arange(ids.shape[1], device=ids.device))  # [B, T, d]
            for block in self.blocks:
                x = block(x)
            return head(self.final_norm(x).flatten(0, 1), self.lm_head.weight, targets.flatten())

    return Headed


def _draw(rows: int, vocab: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, d, generator=generator), torch.randn(vocab, d, generator=generator) * 0.02
    return x.requires_grad_(), weight.requires_grad_(), torch.randint(0, vocab, (rows,), generator=generator)


def _there_and_back(head: Head, x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    loss = head(x, weight, targets)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight))


def _seconds(head: Head, *arguments: Tensor) -> float:
    start = time.perf_counter()
    _there_and_back(head, *arguments)
    return time.perf_counter() - start
