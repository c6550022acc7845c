"""The checkpoints of one run: a folder that always holds a good one, and that one process writes in."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.checkpoint.file import (
    CheckpointError,
    NewerVersionError,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from tinygrad_llm.checkpoint.state import Tensors

try:
    import fcntl
except ImportError:  # Windows: folders go unlocked
    fcntl = None  # type: ignore[assignment]


class Loaded(NamedTuple):
    """A checkpoint, and the file it came from."""

    tensors: Tensors
    metadata: dict[str, Any]
    path: Path


class CheckpointFolder:
    """The checkpoints of one run: step-00000123.safetensors, the newest `keep` good ones, and best.safetensors.

    Any process may read. One may write: the first save takes a lock, which is freed by close(), at the end of a `with`
    block, or with the process, however that ends. (On Windows there is no lock.)
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        if type(keep) is not int or keep < 1:
            raise ValueError(f"keep: got {keep!r}, expected an integer >= 1")
        self.folder = Path(folder)
        self.keep = keep
        self._unlock: weakref.finalize | None = None
        self._good: dict[Path, tuple[int, int, int]] = {}

    def save(self, step: int, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step` (steps done, >= 0), remove the oldest beyond `keep`; returns its path.

        Raises what save_checkpoint raises; CheckpointError if another run writes here; ValueError if a good checkpoint
        of a later step is here, as that run would then be found by latest() in place of this one.
        """
        if type(step) is not int or step < 0:
            raise ValueError(f"step: got {step!r}, expected an integer >= 0")
        self.lock()
        self._refuse_to_go_back(step)
        path = self._write(f"step-{step:08d}.safetensors", tensors, metadata)
        self._prune()
        return path

    def save_best(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Path:
        """Write best.safetensors in place of the one before; returns its path. A file of its own: never pruned."""
        self.lock()
        return self._write("best.safetensors", tensors, metadata)

    def latest(self) -> Loaded:
        """The newest good checkpoint. One that is torn or tampered with is skipped, with a warning that names it.

        Raises CheckpointError, listing what was found, if none is good; NewerVersionError for one of a newer version.
        """
        for path in reversed(self.steps()):
            try:
                loaded = self._load(path)
            except NewerVersionError:
                raise
            except FileNotFoundError:  # its writer has replaced it by a newer one since we looked
                return self.latest()
            except (CheckpointError, OSError) as error:
                warnings.warn(f"{error}; looking for an older checkpoint", RuntimeWarning, stacklevel=2)
            else:
                return loaded
        found = ", ".join(sorted(file.name for file in self._files("*"))) or "nothing"
        raise CheckpointError(f"{self.folder}: got no good checkpoint of a step, expected one; found {found}")

    def best(self) -> Loaded:
        """What save_best wrote last. Raises what load_checkpoint raises."""
        return self._load(self.folder / "best.safetensors")

    def steps(self) -> list[Path]:
        """The files of steps, good or not, oldest step first. Empty where there is no folder."""
        return sorted((path for path in self._files("step-*.safetensors") if _step_of(path) >= 0), key=_step_of)

    def lock(self) -> None:
        """Make the folder and become its one writer, if not already. Raises CheckpointError if another is."""
        if self._unlock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._unlock = weakref.finalize(self, _unlock, *_lock(self.folder))

    def close(self) -> None:
        """Let another run write here. The next save takes the lock again."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    def __enter__(self) -> CheckpointFolder:
        self.lock()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _files(self, pattern: str) -> list[Path]:
        return [path for path in self.folder.glob(pattern) if path.is_file() and not path.name.startswith(".")]

    def _load(self, path: Path) -> Loaded:
        loaded = Loaded(*load_checkpoint(path), path)
        self._good[path] = _stamp(path)
        return loaded

    def _write(self, name: str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Path:
        for pattern in (".step-*.tmp", ".best.*.tmp"):  # of a writer that was killed; we hold the lock
            for leftover in self.folder.glob(pattern):
                leftover.unlink(missing_ok=True)
        path = self.folder / name
        save_checkpoint(path, tensors, metadata)
        self._good[path] = _stamp(path)
        return path

    def _refuse_to_go_back(self, step: int) -> None:
        for path in reversed(self.steps()):
            if _step_of(path) >= step:
                _check_version(path)
            if _step_of(path) > step and self._is_good(path):
                raise ValueError(
                    f"step: got {step}, expected {_step_of(path)} or more, as {path} is there; "
                    "resume from it or choose an empty folder"
                )

    def _prune(self) -> None:
        """Bad files newer than the last one kept stay: they do not count, and someone may want to look at them."""
        kept = 0
        for path in reversed(self.steps()):
            if kept == self.keep:
                path.unlink(missing_ok=True)
            elif self._is_good(path):
                kept += 1

    def _is_good(self, path: Path) -> bool:
        """Verified once, and again when the file has changed."""
        try:
            if self._good.get(path) != _stamp(path):
                verify_checkpoint(path)
                self._good[path] = _stamp(path)
        except (CheckpointError, OSError):
            return False
        return True


def _check_version(path: Path) -> None:
    """NewerVersionError for a file that a newer version wrote: it is not written over."""
    try:
        verify_checkpoint(path)
    except NewerVersionError:
        raise
    except (CheckpointError, OSError):
        pass


def _step_of(path: Path) -> int:
    match = re.fullmatch(r"step-([0-9]+)\.safetensors", path.name)
    return int(match[1]) if match else -1


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


_LOCKED: set[Path] = set()  # by this process: POSIX locks do not exclude their own process


def _lock(folder: Path) -> tuple[int, Path]:
    """Lock folder/.lock; returns what _unlock needs. The system frees the lock of a process that is killed."""
    where = folder.resolve()
    if where in _LOCKED:
        raise CheckpointError(f"{folder}: got a folder that this process writes in already, expected one writer")
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock_file(fd, folder)
        with contextlib.suppress(OSError):  # for the other's error message; a full disk is no reason to stop here
            os.ftruncate(fd, 0)
            os.write(fd, str(os.getpid()).encode())
    except BaseException:
        os.close(fd)
        raise
    _LOCKED.add(where)
    return fd, where


def _lock_file(fd: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            warnings.warn(f"{folder}: cannot be locked ({error.strerror}); let no other run write there", stacklevel=4)
            return
        pid = os.pread(fd, 20, 0).decode(errors="replace") or "unknown"
        message = f"{folder}: got a folder that process {pid} writes in, expected one writer"
        raise CheckpointError(message) from None


def _unlock(fd: int, where: Path) -> None:
    _LOCKED.discard(where)
    os.close(fd)
