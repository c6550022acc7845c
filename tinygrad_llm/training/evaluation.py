"""How well a model predicts text that it has not seen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_llm import threads
from tinygrad_llm.autograd import no_grad
from tinygrad_llm.data import BatchLoader, SequenceDataset, Tokenizer
from tinygrad_llm.nn import Module
from tinygrad_llm.nn import functional as F

IGNORED = -100
"""A target that does not count: the ignore_index of cross_entropy."""

Batch = tuple[np.ndarray, np.ndarray]


class Stopped(Exception):
    """An evaluation that was told to stop before its last batch."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    loss            mean of −ln p(next token), in nats per token
    perplexity      e^loss
    accuracy        part of the tokens that were the model's first choice
    tokens          how many targets that is the mean of
    characters      how many characters these tokens are; None without a tokenizer
    bits_per_char   loss / ln 2 · tokens / characters, comparable between tokenizers; None without a tokenizer
    """

    loss: float
    perplexity: float
    accuracy: float
    tokens: int
    characters: int | None = None
    bits_per_char: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON-able values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        bits = "" if self.bits_per_char is None else f", {self.bits_per_char:.3f} bits per character"
        return (f"loss {self.loss:.4f} nats per token, perplexity {self.perplexity:.2f}, "
                f"accuracy {self.accuracy:.1%}{bits}, over {self.tokens:,} tokens")


def evaluate(
    model: Any, data: Any, *, batch_size: int = 32, tokenizer: Tokenizer | None = None, max_tokens: int | None = None,
    should_stop: Callable[[], Any] = bool,
) -> Evaluation:
    """The model's loss, perplexity, next-token accuracy and bits per character on data. Draws no random number.

    data         a SequenceDataset, read as consecutive windows whatever its stride, the rest at the end as a shorter
                 one, so every token but the first is predicted exactly once; a PairDataset; a BatchLoader, whose
                 dataset is taken; or batches (ids, targets), int [B, T] each. Targets of −100 do not count
    batch_size   pairs in a batch: changes the memory needed and not, rounding apart, the result
    tokenizer    of the data, for bits per character
    max_tokens   predict at most so many tokens (but one window), in windows spread evenly over a dataset; None: all
    should_stop  asked before each batch; when true, Stopped is raised

    The first tokens of a window are predicted from few others, so a longer context_length alone lowers the loss.
    The model's modules are in eval mode meanwhile and then in the mode that each was in before.
    Raises ValueError where there is no token to predict, FloatingPointError for a loss that is not finite.
    """
    totals = _Totals(tokenizer)
    size = threads.mean_size(model.parameters()) if hasattr(model, "parameters") else math.inf  # as the reference's
    with evaluation_mode(model):
        for ids, targets in _batches(data, batch_size, max_tokens):
            if should_stop():
                raise Stopped
            with threads.suited_to(size, np.size(ids)):
                totals.add(model(ids).numpy(), targets)
    return totals.result()


@contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """model.eval() and no_grad() inside the block; afterwards each module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


class _Totals:
    """Sums over tokens, in float64, so that batches of any size weigh what they hold."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer
        self.loss, self.right, self.tokens, self.characters = 0.0, 0, 0, 0

    def add(self, logits: np.ndarray, targets: np.ndarray) -> None:
        """logits [B, T, V], targets int [B, T]"""
        counted = targets != IGNORED
        rows, wanted = logits[counted], targets[counted]  # [N, V], [N]
        self.loss += float(np.sum(F.cross_entropy(rows, wanted, reduction="none").numpy(), dtype=np.float64))
        self.right += int((rows.argmax(-1) == wanted).sum())
        self.tokens += wanted.size
        if self.tokenizer is not None:
            self.characters += _count_characters(self.tokenizer.decode_bytes(wanted))

    def result(self) -> Evaluation:
        if not self.tokens:
            raise ValueError("evaluate: data: got no token to predict, expected at least one")
        loss = self.loss / self.tokens
        if not math.isfinite(loss):
            raise FloatingPointError(f"evaluate: got a loss of {loss}, expected a finite number")
        perplexity = math.exp(loss) if loss < 709 else math.inf
        bits = loss / math.log(2) * self.tokens / self.characters if self.characters else None
        return Evaluation(loss, perplexity, self.right / self.tokens, self.tokens, self.characters or None, bits)


def _count_characters(text: bytes) -> int:
    """The bytes that begin a UTF-8 character: additive, even where a token ends inside a character."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) & 0xC0 != 0x80))


def _batches(data: Any, batch_size: int, max_tokens: int | None) -> Iterable[Batch]:
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"evaluate: {name}: got {value!r}, expected an integer >= 1")
    if isinstance(data, BatchLoader):
        data = data.dataset
    if hasattr(data, "batch"):
        return _dataset_batches(data, batch_size, max_tokens)
    if not isinstance(data, Iterable):
        raise TypeError(f"evaluate: data: got {type(data).__name__}, expected a dataset or batches (ids, targets)")
    return ((np.asarray(ids), np.asarray(targets)) for ids, targets in data)


def _dataset_batches(data: Any, batch_size: int, max_tokens: int | None) -> Iterator[Batch]:
    rest = None
    if isinstance(data, SequenceDataset):
        length = data.context_length
        data = SequenceDataset(data.tokens, length)
        rest = np.asarray(data.tokens[len(data) * length :], dtype=np.int64)
    count = len(data)
    if max_tokens is not None and max_tokens < count * data.context_length:
        count, rest = max(max_tokens // data.context_length, 1), None
    indices = np.arange(count) * len(data) // count
    for start in range(0, len(indices), batch_size):
        yield data.batch(indices[start : start + batch_size])
    if rest is not None and len(rest) > 1:
        yield rest[None, :-1], rest[None, 1:]
