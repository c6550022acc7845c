"""What the C library does with freed memory. glibc's defaults give a freed array's pages back to the system, which then fills
them with zeros for the next array: in eager training, a third of the time of a small model."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT = 1 << 30
"""Bytes that may stay free at the end of the heap."""

LARGEST = 1 << 25
"""Bytes above which an array has a mapping of its own, that goes with it; glibc takes no more."""

SETTINGS = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"
"""Environment variables of who wants to decide himself."""


@functools.cache
def keep_freed() -> None:
    """Freed arrays of up to 32 MB stay with the process for the next ones. Once; for glibc alone, and not where the
    environment says something of its own."""
    mallopt = _function("mallopt")
    if mallopt is not None and not any(name in os.environ for name in SETTINGS):
        mallopt(_MMAP_THRESHOLD, LARGEST)
        mallopt(_TRIM_THRESHOLD, KEPT)


def give_back_freed() -> None:
    """All that is free goes back to the system, where glibc is the C library."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
