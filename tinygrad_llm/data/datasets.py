"""(input, target) pairs of sequences: the target is the input one token later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from tinygrad_llm.data._checks import as_integers, check_int

Pair = tuple[np.ndarray, np.ndarray]


class Dataset(Protocol):
    """What a BatchLoader asks of a dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...
    def batch(self, indices: Any) -> Pair: ...


class _Pairs:
    """A dataset given its length and its batches."""

    def __len__(self) -> int:
        raise NotImplementedError

    def _gather(self, indices: np.ndarray) -> Pair:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Pair:
        """The pair of that index, int64 [T] each; negative indices count from the end, as in a list."""
        inputs, targets = self.batch([index])
        return inputs[0], targets[0]

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def batch(self, indices: Any) -> Pair:
        """The pairs of B indices, stacked: int64 [B, T] each, copies.

        Raises TypeError when an index is no integer, IndexError when it is outside [-len, len).
        """
        wanted = as_integers("index", indices)
        outside = (wanted < -len(self)) | (wanted >= len(self))
        if outside.any():
            raise IndexError(f"index: got {wanted[outside][0]}, expected an index in [0, {len(self)})")
        return self._gather(np.where(wanted < 0, wanted + len(self), wanted))


class SequenceDataset(_Pairs):
    """Windows of a text: pair i is tokens[i·stride : i·stride + T] and the same window one token later.

    tokens           integer array [N]; a memory-mapped one is read only where a window is asked for
    context_length   T, tokens in a window, T < N
    stride           tokens from the start of a window to the start of the next; None means T: in one pass every token
                     is a target once, save a rest of fewer than T at the end. 1 gives every window of the text

    [1, 5, 2, 6, 3, 7, 4, 8, 9] with T = 8 is one pair, [1, 5, 2, 6, 3, 7, 4, 8] → [5, 2, 6, 3, 7, 4, 8, 9].
    Raises TypeError or ValueError, naming the argument; a negative token is refused (memory-mapped: not looked for).
    """

    def __init__(self, tokens: Any, context_length: int, stride: int | None = None) -> None:
        self.tokens = as_integers("tokens", tokens)
        self.context_length = check_int("context_length", context_length, 1)
        self.stride = self.context_length if stride is None else check_int("stride", stride, 1)
        if len(self.tokens) <= self.context_length:
            raise ValueError(
                f"context_length: got {context_length}, expected less than {len(self.tokens)}, the tokens in the text"
            )
        if not isinstance(self.tokens, np.memmap):
            _refuse_negative("tokens", self.tokens)

    def __len__(self) -> int:
        """⌊(N - T - 1) / stride⌋ + 1 windows."""
        return (len(self.tokens) - self.context_length - 1) // self.stride + 1

    def __repr__(self) -> str:
        return f"SequenceDataset({len(self):,} windows of {self.context_length} from {len(self.tokens):,} tokens)"

    def _gather(self, indices: np.ndarray) -> Pair:
        starts = indices.astype(np.int64)[:, None] * self.stride
        windows = np.asarray(self.tokens[starts + np.arange(self.context_length + 1)]).astype(np.int64)
        return windows[:, :-1].copy(), windows[:, 1:].copy()


class PairDataset(_Pairs):
    """Pairs that are given one by one, such as [1, 5, 2, 6, 3, 7, 4, 8] → [5, 2, 6, 3, 7, 4, 8, 9].

    inputs, targets   integers of one shape, [N, T], or [T] for a single pair. A target may be negative, such as the
                      ignore_index -100 of cross_entropy; an input may not
    Raises TypeError or ValueError, naming the argument.
    """

    def __init__(self, inputs: Any, targets: Any) -> None:
        ids, wanted = as_integers("inputs", inputs, (1, 2)), as_integers("targets", targets, (1, 2))
        if ids.shape != wanted.shape:
            raise ValueError(f"targets: got shape {wanted.shape}, expected {ids.shape}, that of inputs")
        if ids.size == 0:
            raise ValueError(f"inputs: got shape {ids.shape}, expected at least one token")
        _refuse_negative("inputs", ids)
        self.inputs = np.atleast_2d(ids).astype(np.int64)
        self.targets = np.atleast_2d(wanted).astype(np.int64)

    @property
    def context_length(self) -> int:
        """T, tokens in an input."""
        return self.inputs.shape[1]

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        return f"PairDataset({len(self):,} pairs of {self.context_length} tokens)"

    def _gather(self, indices: np.ndarray) -> Pair:
        return self.inputs[indices], self.targets[indices]


def _refuse_negative(name: str, tokens: np.ndarray) -> None:
    if tokens.dtype.kind == "i" and tokens.size and tokens.min() < 0:
        raise ValueError(f"{name}: got {tokens.min()}, expected token ids >= 0")
