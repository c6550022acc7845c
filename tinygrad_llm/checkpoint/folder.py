"""The checkpoints of one run: a folder that always holds a good one, and that one process writes in."""

from __future__ import annotations

import os
import re
import warnings
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
from tinygrad_llm.checkpoint.lock import FolderLock, FolderMovedError
from tinygrad_llm.checkpoint.state import Tensors


class Loaded(NamedTuple):
    """A checkpoint, and the file it came from."""

    tensors: Tensors
    metadata: dict[str, Any]
    path: Path


class CheckpointFolder:
    """The checkpoints of one run: step-00000123.safetensors, the newest `keep` good ones, and best.safetensors.

    Any process may read. One may write: the first save takes a lock, which is freed by close(), at the end of a `with`
    block, or with the process, however that ends. A forked child does not have it. (On Windows there is no lock.)
    Each save looks whether the folder is still the one that was locked; check() does so between them.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        if type(keep) is not int or keep < 1:
            raise ValueError(f"keep: got {keep!r}, expected an integer >= 1")
        self.folder = Path(folder)
        self.keep = keep
        self._lock: FolderLock | None = None
        self._told = False
        self._good: dict[Path, tuple[int, int, int]] = {}

    def save(self, step: int, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Path:
        """Write the checkpoint of `step` (steps done, >= 0), remove the oldest beyond `keep`; returns its path.

        Raises what save_checkpoint and check raise; CheckpointError if another run writes here; ValueError if a good checkpoint
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
        """Make the folder and become its one writer, if not already. Raises CheckpointError if another is; else as check."""
        if self._lock is not None:
            self._lock.check()
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            what = "a file" if self.folder.exists() else "a link to nothing"
            raise CheckpointError(f"{self.folder}: got {what}, expected a folder, or a name that is free") from None
        self._lock = FolderLock(self.folder)

    def check(self) -> None:
        """Raise CheckpointError unless what was locked is there still: FolderMovedError, which knows where the folder is now,
        where it was moved away, removed or replaced. A removed .lock is made again, with a warning, unless another run has been
        here since."""
        if self._lock is not None:
            self._lock.check()

    def follow(self, moved: FolderMovedError) -> None:
        """Write where the folder is now; where it is gone, in a new one of its name. Raises `moved` where neither can be."""
        if moved.now is not None and self._lock is not None:
            self.folder = self._lock.folder = moved.now
        elif not os.path.lexists(self.folder):
            self.close()
            self.lock()
        else:
            raise moved

    def close(self) -> None:
        """Let another run write here. The next save takes the lock again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None}  # of a copy: it is another writer

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
        for pattern in (".step-*.tmp", ".best.*.tmp", ".loss.png.*.tmp"):  # of a writer that was killed; we hold the lock
            for leftover in self.folder.glob(pattern):
                self._remove(leftover)
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
                self._remove(path)
            elif self._is_good(path):
                kept += 1

    def _remove(self, path: Path) -> None:
        """A file too many is not worth a run: where it cannot be removed, one warning says so."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if not self._told:
                warnings.warn(f"{path}: cannot be removed ({error.strerror}); it stays", RuntimeWarning, stacklevel=5)
            self._told = True

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
