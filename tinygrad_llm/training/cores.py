"""How many workers pay."""

from __future__ import annotations

import math
import os
from pathlib import Path

WORTHWHILE = 40_000_000
"""Tokens × parameters of a step below which one process works alone: on 2 cores two take longer at 28 million (0.9 times as
fast), equally long at 53, and are ahead at 56 (1.1)."""


def choose_workers(rows: int, tokens: int, parameters: int) -> int:
    """As many as there are cores, but no more than rows of a batch; one where a step is too short to be worth sharing."""
    return max(1, min(available_cores(), rows)) if tokens * parameters >= WORTHWHILE else 1


def available_cores() -> int:
    """Physical cores that this process may use: two threads of one core share its arithmetic, and a container may be
    given the time of fewer cores than it sees."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    """Which logical processors are one core, as Linux writes it: "0,4"."""
    return _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _quota() -> int:
    """Cores whose time the control group may use, rounded up."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return math.ceil(int(quota) / int(period)) if quota.isdigit() and period.isdigit() else os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
