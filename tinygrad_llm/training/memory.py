"""Memory that processes share, and that has no name under which it could be left behind."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from multiprocessing import RawArray, reduction
from multiprocessing.context import assert_spawning
from typing import Any

import numpy as np

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector that a processor loads."""


class SharedMemory:
    """So many zero bytes. A process that inherits this, or is sent it while it is started, sees the same bytes.

    On Linux it is an anonymous file in memory (memfd): it takes pages as they are touched, from RAM and not from the
    64 MB that a container has in /dev/shm. Elsewhere it is multiprocessing's own: a file that is deleted as soon as it
    is made (macOS), a part of the page file (Windows). In each case it goes when the last process that uses it goes,
    however that one ends; multiprocessing.shared_memory has names, which a killed run leaves behind.
    """

    _descriptor = -1

    def __init__(self, nbytes: int, alone: bool = False) -> None:
        """alone: no other process will have it, and a fork gets a copy of its own, as of all other memory."""
        self.nbytes = nbytes
        if alone:
            private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
            memory = mmap.mmap(-1, max(nbytes, 1), **private)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without large pages
                    memory.madvise(mmap.MADV_HUGEPAGE)
            self._open(memory)
            return
        try:
            self._descriptor = os.memfd_create("tinygrad_llm")
            os.ftruncate(self._descriptor, max(nbytes, 1))
        except (AttributeError, OSError):  # another system, or a kernel or a filter that refuses it, or so many bytes
            self.seal()
            self._open(RawArray("B", nbytes + ALIGNMENT))
        else:
            self._open(self._descriptor)

    def _open(self, source: Any) -> None:
        """source    a descriptor, which the mapping does not need once it is made; a mapping; or an array"""
        self._source = source
        mapped = mmap.mmap(source, max(self.nbytes, 1)) if isinstance(source, int) else source
        self._bytes = mapped if isinstance(mapped, mmap.mmap) else memoryview(mapped)
        self._start = -np.frombuffer(self._bytes, np.uint8).ctypes.data % ALIGNMENT

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The bytes from offset on as an array. Each call gives one whose `base` is no other array of ours, or the
        engine would take all arrays in this memory for views of one tensor."""
        return np.ndarray(shape, dtype, memoryview(self._bytes), self._start + offset)

    def seal(self) -> None:
        """No further process will be sent this; those that have it keep it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    __del__ = seal

    def __getstate__(self) -> tuple[int, Any]:
        assert_spawning(self)
        return self.nbytes, reduction.DupFd(self._descriptor) if self._descriptor >= 0 else self._source

    def __setstate__(self, state: tuple[int, Any]) -> None:
        self.nbytes, source = state
        self._descriptor = source.detach() if hasattr(source, "detach") else -1
        self._open(source if self._descriptor < 0 else self._descriptor)
        self.seal()
