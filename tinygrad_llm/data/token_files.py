"""Token files: a text of any size, tokenized once, then memory-mapped.

A token file is an ordinary .npy file (np.load reads it) of uint16 or uint32, followed by a footer that .npy readers
ignore: a JSON object, its length in 8 bytes, and 8 bytes of magic. The footer says how many tokens there are, their
CRC-32, and which tokenizer made them. One file, renamed into place when it is whole, cannot get separated from its
description, and a torn one has no footer.
"""

from __future__ import annotations

import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from tinygrad_llm.data._checks import check_int, check_path, check_text
from tinygrad_llm.data.tokenizers import CharTokenizer, TiktokenTokenizer, Tokenizer, tokenizer_from_dict

_MAGIC = b"TGLLMtok"
_TAIL = 16  # bytes: the length of the JSON, and the magic
# After a line, before a letter or digit: no encoding of tiktoken has a token across it, whatever stands on either side.
_SAFE_CUT = re.compile(r"(?<=\S\n)(?=[^\W_])")


class TokenFileInfo(NamedTuple):
    """What a token file says of its tokens: their number, dtype, CRC-32, first byte, and the tokenizer's dict."""

    length: int
    dtype: np.dtype
    crc32: int
    offset: int
    tokenizer: dict[str, Any]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and uint32 that holds every id of a vocabulary."""
    return np.dtype("<u2" if check_int("vocab_size", vocab_size, 1, 2**32) <= 2**16 else "<u4")


def write_token_file(
    path: str | os.PathLike[str],
    text: str | Iterable[str],
    tokenizer: Tokenizer,
    chunk_chars: int = 1 << 20,
    progress: bool = True,
) -> int:
    """Tokenize text, a str or pieces of one (see read_chunks), into a token file; returns the number of tokens.

    Works on about chunk_chars characters at a time, whatever the size of text; what is written is tokenizer.encode of
    the whole text, because the text is cut where no token can span. (Where a stretch of eight chunks offers no such
    place, it is cut anyway: the text still decodes exactly, but tokens at the cut may differ.)
    progress shows a bar on a terminal. The file appears under its name only when whole; a failure leaves
    what was there.
    Raises TypeError, ValueError (no text, or a character that tokenizer refuses) or OSError (cannot be written).
    """
    target, size = check_path("path", path), check_int("chunk_chars", chunk_chars, 1)
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer: got {type(tokenizer).__name__}, expected a CharTokenizer or TiktokenTokenizer")
    dtype = token_dtype(tokenizer.vocab_size)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with _Output(temporary, str(path)) as file:
            count = _write_tokens(file, _pieces(text, size), tokenizer, dtype, _bar(text, progress))
            file.finish(_header(dtype, count), target)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return count


def open_token_file(
    path: str | os.PathLike[str], tokenizer: Tokenizer | None = None, verify: bool = False
) -> np.memmap:
    """The tokens of a file of write_token_file, a read-only memory-mapped array [N] of uint16 or uint32.

    tokenizer   refuse a file that another tokenizer made
    verify      read it all, and refuse it when its CRC-32 is not the one that was written
    Raises OSError when the file cannot be read, ValueError when it is torn, damaged or of another tokenizer.
    """
    info = token_file_info(path)
    if tokenizer is not None and tokenizer.to_dict() != info.tokenizer:
        raise ValueError(f"path: got {str(path)!r}, made by another tokenizer, expected one made by {tokenizer!r}")
    tokens = np.memmap(path, info.dtype, "r", info.offset, (info.length,))
    if verify and _crc_of(tokens) != info.crc32:
        raise ValueError(f"path: got {str(path)!r}, whose tokens do not have its CRC-32, expected them as written")
    return tokens


def token_file_tokenizer(path: str | os.PathLike[str]) -> CharTokenizer | TiktokenTokenizer:
    """The tokenizer that made a token file; errors as in open_token_file."""
    values = token_file_info(path).tokenizer
    try:
        return tokenizer_from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"path: got {str(path)!r}, whose tokenizer cannot be made ({_one_line(error)}), expected a file of write_token_file"
        ) from None


def token_file_info(path: str | os.PathLike[str]) -> TokenFileInfo:
    """What the header and the footer of a token file say, checked against each other and against the file's size."""
    source = check_path("path", path)
    if source.exists() and not source.is_file() and not source.is_dir():  # a pipe may never begin
        raise OSError(f"path: got {str(path)!r}, which cannot be read (a pipe or device), expected a token file")
    try:
        with source.open("rb") as file:
            return _read_info(file)
    except OSError as error:
        reason = error.strerror
        raise OSError(f"path: got {str(path)!r}, which cannot be read ({reason}), expected a token file") from None
    except (ValueError, KeyError, TypeError, EOFError, RecursionError) as error:
        raise ValueError(
            f"path: got {str(path)!r}, which is torn or no token file ({_one_line(error)}), "
            "expected a file of write_token_file"
        ) from None


class _Output:
    """A file written under a temporary name; whatever fails is told in one line, of the path that was asked for."""

    def __init__(self, temporary: Path, path: str) -> None:
        self._temporary, self._path = temporary, path

    def __enter__(self) -> _Output:
        with self._blame():
            self._file = self._temporary.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._file.close()

    def write(self, data: bytes) -> None:
        with self._blame():
            self._file.write(data)

    def finish(self, header: bytes, target: Path) -> None:
        """Replace the first bytes by header, see everything on the disk, and give the file its name."""
        with self._blame():
            self._file.seek(0)
            self._file.write(header)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, target)

    @contextmanager
    def _blame(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror
            raise OSError(f"path: got {self._path!r}, which cannot be written ({reason}), expected a file") from None


def _write_tokens(output: _Output, pieces: Iterator[str], tokenizer: Tokenizer, dtype: np.dtype, bar: tqdm) -> int:
    """Everything but the true header, of which the length is known only at the end; returns the number of tokens."""
    count, crc, seen = 0, 0, 0
    output.write(_header(dtype, 0))
    with bar:
        for piece in pieces:
            data = _encode(tokenizer, piece, seen).astype(dtype).tobytes()
            output.write(data)
            count, crc, seen = count + len(data) // dtype.itemsize, zlib.crc32(data, crc), seen + len(piece)
            bar.update(len(piece))
    if count == 0:
        raise ValueError("text: got no characters, expected at least one")
    footer = json.dumps({"count": count, "crc32": crc, "tokenizer": tokenizer.to_dict()}).encode()
    output.write(footer + len(footer).to_bytes(8, "little") + _MAGIC)
    return count


def _header(dtype: np.dtype, count: int) -> bytes:
    """The .npy header of an array [count]; NumPy pads it so that its size does not depend on count."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype.str, "fortran_order": False, "shape": (count,)})
    return buffer.getvalue()


def _encode(tokenizer: Tokenizer, piece: str, start: int) -> np.ndarray:
    try:
        return tokenizer.encode(piece)
    except ValueError as error:
        raise ValueError(f"{error} (positions count from character {start})") from None


def _read_info(file: BinaryIO) -> TokenFileInfo:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("unknown .npy version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    offset = file.tell()
    if len(shape) != 1 or dtype.str not in ("<u2", "<u4"):
        raise ValueError(f"dtype {dtype}, shape {shape}")
    end = offset + shape[0] * dtype.itemsize
    if end + _TAIL > size:
        raise ValueError(f"{size} bytes, not the {end} and more that its header announces")
    return _read_footer(file, end, size, TokenFileInfo(shape[0], dtype, 0, offset, {}))


def _read_footer(file: BinaryIO, end: int, size: int, header: TokenFileInfo) -> TokenFileInfo:
    file.seek(end)
    footer = file.read(size - end)
    if footer[-8:] != _MAGIC or int.from_bytes(footer[-16:-8], "little") != len(footer) - _TAIL:
        raise ValueError("the footer is missing")
    values = json.loads(footer[:-_TAIL])
    if values["count"] != header.length:
        raise ValueError(f"{header.length} tokens in the header, {values['count']} in the footer")
    if type(values["crc32"]) is not int or not isinstance(values["tokenizer"], dict):
        raise ValueError("a footer without a CRC-32 or a tokenizer")
    return header._replace(crc32=values["crc32"], tokenizer=values["tokenizer"])


def _pieces(text: str | Iterable[str], size: int) -> Iterator[str]:
    """The text in pieces of at least `size` characters (the last may be shorter) that end where no token can span."""
    held = ""
    for chunk in _slices(text, size):
        held += chunk
        while len(held) >= size and (cut := _cut_in(held, size)):
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _cut_in(held: str, size: int) -> int:
    """Where to cut: the first safe place from `size` on; 0 to wait for more; the end after eight sizes of waiting."""
    if match := _SAFE_CUT.search(held, size):
        return match.start()
    return len(held) if len(held) >= 8 * size else 0


def _slices(text: str | Iterable[str], size: int) -> Iterator[str]:
    if isinstance(text, str):
        check_text("text", text)
        return (text[start : start + size] for start in range(0, len(text), size))
    if not isinstance(text, Iterable):
        raise TypeError(f"text: got {type(text).__name__}, expected a str or pieces of one")
    return (piece for chunk in text for piece in _slices_of_chunk(chunk, size))


def _slices_of_chunk(chunk: object, size: int) -> Iterator[str]:
    if not isinstance(chunk, str):
        raise TypeError(f"text: got a piece of type {type(chunk).__name__}, expected a str")
    return (chunk[start : start + size] for start in range(0, len(chunk), size))


def _bar(text: str | Iterable[str], progress: bool) -> tqdm:
    total = len(text) if isinstance(text, str) else None
    # None means: only on a terminal.
    return tqdm(total=total, unit="char", unit_scale=True, desc="tokenizing", disable=None if progress else True)


def _crc_of(tokens: np.ndarray, step: int = 1 << 22) -> int:
    crc = 0
    for start in range(0, len(tokens), step):
        crc = zlib.crc32(tokens[start : start + step].tobytes(), crc)
    return crc


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
