"""One writer in a folder: a lock on FOLDER/.lock, and a watch over whether the folder is still the one that was locked.

The lock belongs to the open file (F_OFD_SETLK; flock where there is none). One of the process (lockf) would go as soon as
that process closes any other copy of the file, such as shutil.copytree's. Forked children let go of it at once: the lock
ends with the process that took it, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import warnings
import weakref
from pathlib import Path

from tinygrad_llm.checkpoint.file import CheckpointError

try:
    import fcntl
except ImportError:  # Windows: folders go unlocked
    fcntl = None  # type: ignore[assignment]


class FolderMovedError(CheckpointError):
    """The folder that is written in is no longer where it was. `now` says where it is, None where that is not known."""

    def __init__(self, message: str, now: Path | None) -> None:
        super().__init__(message)
        self.now = now


class FolderLock:
    """The lock of an existing folder, from here to release(). Raises CheckpointError where another holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._owner, self._fd = folder, os.getpid(), -1
        self._fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_file(self._fd, folder)
            with contextlib.suppress(OSError):  # for the other's error message; a full disk is no reason to stop here
                os.ftruncate(self._fd, 0)
                os.write(self._fd, str(os.getpid()).encode())
            self._place, self._file = os.stat(folder), os.fstat(self._fd)
        except BaseException:
            self.forget()
            raise
        _HELD.add(self)

    def release(self) -> None:
        """Let another have it. Nothing in a process that was forked from the one that took it."""
        if self._fd >= 0 and self._owner == os.getpid():
            with contextlib.suppress(OSError):  # closed or not, some child may have it open until it starts its program
                _change_lock(self._fd, locked=False)
        self.forget()

    __del__ = release

    def forget(self) -> None:
        """Close the file, without a change of the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def check(self) -> None:
        """CheckpointError unless it is held, in the folder where it was taken; FolderMovedError where that is elsewhere."""
        if self._fd < 0:
            raise CheckpointError(f"{self.folder}: got a folder that process {self._owner} writes in, expected one writer, and "
                                  "not a fork of it")
        try:
            found = os.stat(os.path.join(self.folder, ".lock"))
        except (FileNotFoundError, NotADirectoryError):
            self._check_place()
            self._take_again()
        except OSError:  # whoever writes there will be told
            pass
        else:
            if not os.path.samestat(found, self._file):
                self._check_place()
                raise CheckpointError(f"{self.folder}: got another .lock than this run's: another program has written there, "
                                      "expected one writer; nothing more is saved")

    def _check_place(self) -> None:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.folder), self._place):
                return
        what = "another folder in its place" if os.path.lexists(self.folder) else "no folder there any more"
        raise FolderMovedError(f"{self.folder}: got {what}, expected the one that this run writes in", self._where())

    def _where(self) -> Path | None:
        with contextlib.suppress(OSError):  # no /proc, or the file was removed
            folder = Path(os.readlink(f"/proc/self/fd/{self._fd}")).parent
            if os.path.samestat(os.stat(folder / ".lock"), self._file):
                return folder
        return None

    def _take_again(self) -> None:
        """Where only .lock was removed. Raises CheckpointError where another has taken it meanwhile."""
        anew = FolderLock(self.folder)
        self.release()
        self._fd, self._file, anew._fd = anew._fd, anew._file, -1
        warnings.warn(f"{self.folder}: got no .lock any more, expected it to stay while this run writes; it is made again",
                      RuntimeWarning, stacklevel=4)


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_HELD):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _lock_file(fd: int, folder: Path) -> None:
    try:
        _change_lock(fd, locked=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            warnings.warn(f"{folder}: cannot be locked ({error.strerror}); let no other run write there", stacklevel=5)
            return
        pid = os.pread(fd, 20, 0).decode(errors="replace") or "unknown"
        who = "this process writes in already" if pid == str(os.getpid()) else f"process {pid} writes in"
        raise CheckpointError(f"{folder}: got a folder that {who}, expected one writer") from None


def _change_lock(fd: int, locked: bool) -> None:
    if fcntl is None:
        return
    if hasattr(fcntl, "F_OFD_SETLK"):
        kind = fcntl.F_WRLCK if locked else fcntl.F_UNLCK
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, 0, 0, 0))  # struct flock
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # a system that does not know it
                raise
    fcntl.flock(fd, (fcntl.LOCK_EX if locked else fcntl.LOCK_UN) | fcntl.LOCK_NB)
