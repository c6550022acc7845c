"""One checkpoint is one file in the safetensors format, with a checksum. No pickle anywhere.

    file   = n (8 bytes, little-endian) · header (n bytes of JSON, padded with spaces) · the bytes of every tensor
    header = {"__metadata__": {"format", "version", "sha256", "metadata"},
              name: {"dtype", "shape", "data_offsets": [begin, end]}, ...}

Any safetensors reader can read it. The SHA-256 is over the whole file with its own 64 digits taken as zeros, so a flip
of any bit is found. We write the bytes ourselves, since safetensors.numpy takes a non-contiguous array for a contiguous
one, without an error, and does not tell a full disk as an OSError.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tinygrad_llm.checkpoint.state import Tensors, decode, encode

FORMAT = "tinygrad_llm.checkpoint"
VERSION = 1

_DTYPES = {
    "F64": "f8", "F32": "f4", "F16": "f2", "C64": "c8", "BOOL": "b1",
    "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
    "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1",
}  # fmt: skip
_NAMES = {code: name for name, code in _DTYPES.items()}
_NO_DIGEST = "0" * 64
_PREFIX = f'{{"__metadata__":{{"format":"{FORMAT}","version":"{VERSION}","sha256":"'.encode()
_DIGEST = slice(8 + len(_PREFIX), 8 + len(_PREFIX) + 64)
_MAX_HEADER = 100_000_000  # bytes; what safetensors accepts
_PIECE = 16 * 2**20  # bytes per write, so that Ctrl-C is heard


class CheckpointError(ValueError):
    """A file or folder that is not a good checkpoint: which one, and what is wrong with it, in one line."""


class NewerVersionError(CheckpointError):
    """A checkpoint of a newer version of this library: no damage, and nothing that an older one may go on from or replace."""


@contextmanager
def faults_of(path: str | os.PathLike[str], got: str, expected: str) -> Iterator[None]:
    """What fails inside is the fault of what the file holds, whatever its checksum: CheckpointError, naming it."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, StopIteration, RecursionError) as error:
        raise CheckpointError(f"{path}: got {got} ({error}), expected {expected}") from None


def save_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and metadata to one file, whole or not at all.

    tensors    name → array of float64/32/16, complex64, (u)int64/32/16/8 or bool; any shape, strides and byte order
    metadata   str → any tree that flatten_state takes, arrays included

    The bytes go to a temporary file in the same folder, are synced, and are renamed over `path`; the folder is synced.
    Raises TypeError or ValueError at what cannot be stored, before the disk is touched. Raises OSError if the disk is
    full or the folder cannot be written: then no temporary file is left and what was at `path` still is.
    """
    path = Path(path)
    for name, given in (("tensors", tensors), ("metadata", metadata)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{name}: got {type(given).__name__}, expected a dict")
    everything = {name: _checked(name, array) for name, array in tensors.items()}
    encoded = encode(metadata, "metadata", everything)
    arrays = {name: _little_endian(name, array) for name, array in everything.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    head = _head(arrays, order, json.dumps(encoded, allow_nan=False, separators=(",", ":")))
    pieces = [arrays[name].reshape(-1).view(np.uint8).data for name in order]
    head[_DIGEST] = _sha256([head, *pieces]).encode()
    try:
        _write_atomically(path, [memoryview(head), *pieces])
    except OSError as error:
        raise OSError(error.errno, f"{path}: cannot be saved: {error.strerror}") from error


def _checked(name: Any, array: Any) -> np.ndarray:
    if not isinstance(name, str) or name == "__metadata__":
        raise ValueError(f"tensors: got the name {name!r}, expected a str other than '__metadata__'")
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"tensors[{name!r}]: got {type(array).__name__}, expected a NumPy array")
    return np.asarray(array)


def _little_endian(name: str, array: np.ndarray) -> np.ndarray:
    """The same values, C-contiguous and little-endian; copies only where they are not. Keeps 0-d arrays 0-d."""
    if array.dtype.str[1:] not in _NAMES:
        raise TypeError(f"tensors[{name!r}]: got dtype {array.dtype}, expected one of {', '.join(_NAMES)}")
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def _head(arrays: Tensors, order: list[str], metadata: str) -> bytearray:
    """Length and header. Tensors lie in `order`, widest dtype first, so that each is aligned in a mapped file."""
    entries, begin = {}, 0
    for name in order:
        end = begin + arrays[name].nbytes
        dtype = _NAMES[arrays[name].dtype.str[1:]]
        entries[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
        begin = end
    meta = {"format": FORMAT, "version": str(VERSION), "sha256": _NO_DIGEST, "metadata": metadata}
    header = {"__metadata__": meta, **{name: entries[name] for name in arrays}}
    try:
        raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"tensors: got a name that is not Unicode text ({error.reason})") from None
    if len(raw) > _MAX_HEADER:
        raise ValueError(f"metadata: got a header of {len(raw):,} bytes, expected at most {_MAX_HEADER:,}")
    raw += b" " * (-len(raw) % 8)
    return bytearray(struct.pack("<Q", len(raw)) + raw)


def _sha256(pieces: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file in place of the one that is there, whole or not at all; text in UTF-8. Raises OSError, naming the file.

    A link stays one, a device or a pipe is written to, and so is a file in a folder where none may be made.
    """
    raw, place = content.encode() if isinstance(content, str) else content, Path(path)
    try:
        if place.exists() and (not place.is_file() or not os.access(place.parent, os.W_OK)):
            place.write_bytes(raw)
        else:
            _write_atomically(Path(os.path.realpath(place)), [memoryview(raw)])
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _write_atomically(path: Path, pieces: list[memoryview]) -> None:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a folder or device is there already")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        try:
            for piece in pieces:
                _write_all(fd, piece)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece[:_PIECE]) :]


def _sync_folder(folder: Path) -> None:
    """A rename is on disk only when its folder is. Where folders cannot be synced (Windows), the system sees to it."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[Tensors, dict[str, Any]]:
    """The (tensors, metadata) that save_checkpoint was given; every byte has been verified. The arrays are writable.

    Raises CheckpointError, naming the file and what is wrong with it, unless it is whole and ours; FileNotFoundError if
    there is none. Never allocates more than the file's own size, whatever its header says.
    """
    path = Path(path)
    with _open(path) as file:
        meta, layout, digest = _read_head(file, path)
        in_order = dict(_read_tensors(file, path, layout, digest, meta["sha256"]))
    tensors = {name: in_order[name] for name, *_ in layout.header_order}
    with faults_of(path, "metadata that cannot be read", "some of save_checkpoint"):
        metadata = decode(json.loads(meta["metadata"]), tensors)
    return tensors, metadata


def verify_checkpoint(path: str | os.PathLike[str]) -> None:
    """Raise what load_checkpoint would raise about the file's bytes, keeping one tensor in memory at a time."""
    path = Path(path)
    with _open(path) as file:
        meta, layout, digest = _read_head(file, path)
        for _ in _read_tensors(file, path, layout, digest, meta["sha256"]):
            pass


class _Entry(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class _Layout(NamedTuple):
    header_order: list[_Entry]
    byte_order: list[_Entry]


def _open(path: Path) -> BinaryIO:
    if not path.exists():
        raise FileNotFoundError(f"{path}: got no such file, expected a checkpoint")
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
        what = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise CheckpointError(f"{path}: got {what}, expected a checkpoint file")
    return open(path, "rb")


def _read_head(file: BinaryIO, path: Path) -> tuple[dict[str, str], _Layout, Any]:
    """The checked `__metadata__`, the checked layout of the tensors, and the running SHA-256 of what was read."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise CheckpointError(f"{path}: got an empty file, expected a checkpoint")
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
        raise CheckpointError(f"{path}: got a file that is cut off or not in the safetensors format")
    raw = bytearray(prefix + file.read(length))
    header = _parse(bytes(raw[8:]), path)
    meta = _check_meta(header.pop("__metadata__", None), path)
    layout = _check_layout(header, size - 8 - length, path)
    raw[_DIGEST] = _NO_DIGEST.encode()
    return meta, layout, hashlib.sha256(raw)


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: got a file with a damaged header, or not in the safetensors format")
    return header


def _check_meta(meta: Any, path: Path) -> dict[str, str]:
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: got a safetensors file of some other kind, expected format {FORMAT!r}")
    version = str(meta.get("version"))
    if version != str(VERSION):
        said = f"{path}: got version {version!r:.40}, expected {str(VERSION)!r}"
        if re.fullmatch("[0-9]{1,9}", version) and int(version) > VERSION:
            raise NewerVersionError(f"{said}; a newer tinygrad_llm wrote it, which can go on with it")
        raise CheckpointError(said)
    if not isinstance(meta.get("sha256"), str) or not isinstance(meta.get("metadata"), str):
        raise CheckpointError(f"{path}: got a header without 'sha256' or 'metadata', expected both")
    return meta


def _check_layout(header: dict[str, Any], size: int, path: Path) -> _Layout:
    """The tensors must tile the `size` bytes after the header without a gap, or nothing is allocated."""
    try:
        entries = [_entry(name, fields) for name, fields in header.items()]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: got a damaged header, expected dtype, shape and place of each tensor") from None
    byte_order = sorted(entries, key=lambda entry: (entry.begin, entry.end))
    starts = [0, *(entry.end for entry in byte_order)]
    if any(entry.begin != start for entry, start in zip(byte_order, starts, strict=False)):
        raise CheckpointError(f"{path}: got a damaged header, expected tensors one after the other")
    if starts[-1] != size:
        what = "cut off" if starts[-1] > size else "with bytes after its end"
        raise CheckpointError(f"{path}: got a file {what}: {size:,} bytes of tensors, expected {starts[-1]:,}")
    return _Layout(entries, byte_order)


def _entry(name: str, fields: Any) -> _Entry:
    begin, end = fields["data_offsets"]
    entry = _Entry(name, np.dtype("<" + _DTYPES[fields["dtype"]]), tuple(fields["shape"]), begin, end)
    if not all(type(n) is int and n >= 0 for n in (*entry.shape, begin, end)):
        raise ValueError("expected integers >= 0")
    if end - begin != math.prod(entry.shape) * entry.dtype.itemsize:
        raise ValueError("expected as many bytes as the shape says")
    return entry


def _read_tensors(
    file: BinaryIO, path: Path, layout: _Layout, digest: Any, expected: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Each (name, array), as its bytes come; after the last, raises if the checksum is wrong."""
    for entry in layout.byte_order:
        try:
            array = np.empty(entry.shape, entry.dtype)
        except ValueError:  # no bytes, but too many or too large axes
            raise CheckpointError(f"{path}: got a damaged header, expected shapes that NumPy can make") from None
        raw = array.reshape(-1).view(np.uint8)
        if file.readinto(raw) != raw.size:  # type: ignore[attr-defined]
            raise CheckpointError(f"{path}: got a file that was cut off while it was read")
        digest.update(raw)
        yield entry.name, array.astype(entry.dtype.newbyteorder("="), copy=False)
    if digest.hexdigest() != expected:
        raise CheckpointError(f"{path}: got a damaged or edited file: its SHA-256 is not the one it was saved with")
