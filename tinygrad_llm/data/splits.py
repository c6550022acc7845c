"""What is held out from training, so that a model is judged on text it has not seen."""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from tinygrad_llm.data._checks import as_integers, check_text
from tinygrad_llm.data.corpora import Corpus


@overload
def train_test_split(data: Corpus, test_fraction: float = ...) -> tuple[Corpus, Corpus]: ...
@overload
def train_test_split(data: str, test_fraction: float = ...) -> tuple[str, str]: ...
@overload
def train_test_split(data: Any, test_fraction: float = ...) -> tuple[np.ndarray, np.ndarray]: ...
def train_test_split(data: Any, test_fraction: float = 0.1) -> tuple[Any, Any]:
    """(train, test), about test_fraction of the data in test, and no part of it in both.

    A Corpus of several documents gives whole documents to either side. The last tenth of a joined text is the end of
    a play whose names, places and phrases were trained on, and a random tenth of its windows is worse: its neighbours
    overlap it. A whole play that was never seen is the question we mean to ask. Documents are taken evenly along the
    order, so that every genre is on both sides and no random number is needed; documents with the same text stay on
    one side. Where whole documents cannot give a test of between half and twice the size that was asked for (a single
    document, or a giant among dwarfs), the joined text is cut once, at a line break.

    A str is cut at a line break, a 1-D array of tokens (which may be memory-mapped and is not copied) where the
    fraction falls; the end is the test.

    Split before tokenizing; but build a CharTokenizer from the whole text. Otherwise a character that occurs in the
    test alone could not be encoded, and a test that drops it would not be this text. What leaks is which characters
    exist, not how they follow each other; the model still pays the full price of a character it was never shown.

    test_fraction is strictly between 0 and 1. Raises TypeError, or ValueError when either side would be empty.
    """
    fraction = _check_fraction(test_fraction)
    if isinstance(data, Corpus):
        return _split_documents(data, fraction) or _cut_corpus(data, fraction)
    if isinstance(data, str):
        return split_text(data, fraction)
    tokens = as_integers("tokens", data)
    cut = _cut_point("tokens", len(tokens), fraction)
    return tokens[:cut], tokens[cut:]


def split_text(text: str, test_fraction: float = 0.1) -> tuple[str, str]:
    """(train, test): text cut once, at the start of the line in which the fraction falls.

    A line that reaches back more than half of either side (text without line breaks) is cut inside.
    Raises TypeError or ValueError: test_fraction not in (0, 1), or a text of fewer than two characters.
    """
    fraction = _check_fraction(test_fraction)
    cut = _cut_point("text", len(check_text("text", text)), fraction)
    line = text.rfind("\n", 0, cut) + 1
    if cut - line <= min(cut, len(text) - cut) / 2:
        cut = line
    return text[:cut], text[cut:]


def _split_documents(corpus: Corpus, fraction: float) -> tuple[Corpus, Corpus] | None:
    """Walk the documents, and take one for the test whenever that brings the test nearer to its share so far."""
    sides: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    seen, taken, side_of = 0, 0, dict[str, bool]()
    for name, text in corpus.documents:
        seen += len(text)
        is_test = side_of.setdefault(text, taken + len(text) / 2 <= fraction * seen)
        taken += len(text) * is_test
        sides[is_test].append((name, text))
    if not (sides[True] and sides[False] and 0.5 <= taken / (fraction * seen) <= 2):
        return None
    return Corpus(f"{corpus.name} (train)", tuple(sides[False])), Corpus(f"{corpus.name} (test)", tuple(sides[True]))


def _cut_corpus(corpus: Corpus, fraction: float) -> tuple[Corpus, Corpus]:
    names = (f"{corpus.name} (train)", f"{corpus.name} (test)")
    train, test = (Corpus(name, ((name, text),)) for name, text in zip(names, split_text(corpus.text, fraction)))
    return train, test


def _cut_point(name: str, length: int, fraction: float) -> int:
    if length < 2:
        raise ValueError(f"{name}: got length {length}, expected at least 2, one for train and one for test")
    return min(max(round(length * (1 - fraction)), 1), length - 1)


def _check_fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"test_fraction: got {value!r}, expected a number between 0 and 1")
    if not 0 < value < 1:
        raise ValueError(f"test_fraction: got {value}, expected a number between 0 and 1")
    return float(value)
