"""The machine: what it is, how busy, and how much memory and time a tree of processes takes. Standard library only.

What only /proc knows is None (or an estimate by getrusage) where there is no /proc.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
LIBRARY_PREFIXES = "OMP_", "OPENBLAS_", "MKL_", "VECLIB_", "GOTO_", "KMP_", "DNNL_", "ONEDNN_"
PROC = Path("/proc")
ROOT = Path(__file__).resolve().parents[1]


def describe() -> dict[str, Any]:
    """CPU, cores that we may use, memory, system, versions, commit, and what the environment tells BLAS and OpenMP."""
    return {
        "cpu": describe_cpu(), "cores": cores(), "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(),
        "versions": _versions("numpy", "torch"), "commit": _commit(),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(LIBRARY_PREFIXES)},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def is_intel() -> bool:
    """Whether the processor is one of Intel's."""
    try:
        return "GenuineIntel" in (PROC / "cpuinfo").read_text()
    except OSError:
        return "Intel" in platform.processor()


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """The load average of the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def thread_environment(threads: int | None) -> dict[str, str]:
    """What a worker's environment gets: nothing, unless a number of threads was asked for that is not the default."""
    untouched = not any(name in os.environ for name in THREAD_VARIABLES)
    if threads is None or (untouched and threads == cores()):
        return {}
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def os_threads(pid: int | str = "self") -> int | None:
    """Threads of a process."""
    return _status(pid).get("Threads")


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    below: dict[int, list[int]] = {}
    for entry in PROC.glob("[0-9]*/stat"):
        if fields := _stat(entry):
            below.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found = [pid]
    for process in found:
        found += below.get(process, [])
    return found


def peak_mb(pid: int) -> float | None:
    """The largest resident memory of a tree of processes, 1e6 bytes.

    Of one process it is its peak. Of several it is the larger of the first one's peak and of what all have now, pages that
    they share counted once (proportional set sizes): peaks, added, would count those pages in each.
    """
    processes = tree(pid)
    peak = _status(pid).get("VmHWM", 0)
    if len(processes) > 1:
        peak = max(peak, sum(_status(process, "smaps_rollup").get("Pss", 0) for process in processes))
    return peak * 1024 / 1e6 or None


class Bystanders:
    """How many cores others kept busy, on average, between start and read: all busy time less that of our processes."""

    def __init__(self, pids: list[int]) -> None:
        self.pids = pids
        self.start = time.monotonic(), _busy_ticks(), self._own()

    def read(self) -> float | None:
        """Cores, or None where there is no /proc/stat."""
        began, busy, own = self.start
        now = _busy_ticks()
        if busy is None or now is None:
            return None
        ticks = now - busy - (self._own() - own)
        return round(max(0.0, ticks / os.sysconf("SC_CLK_TCK") / max(time.monotonic() - began, 1e-9)), 2)

    def _own(self) -> int:
        stats = [_stat(PROC / str(p) / "stat") for pid in (*self.pids, os.getpid()) for p in tree(pid)[: _depth(pid)]]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats if fields)


def _depth(pid: int) -> int | None:
    return 1 if pid == os.getpid() else None  # our own descendants are the pids that we were given


def _stat(path: Path) -> list[str] | None:
    """The fields of /proc/PID/stat after the name: 0 state, 1 parent, 11 and 12 ticks in user and system mode."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _status(pid: int | str, file: str = "status") -> dict[str, int]:
    """The numbers in a file of /proc/PID; sizes in KiB."""
    try:
        lines = [line.split() for line in (PROC / str(pid) / file).read_text().splitlines()]
    except OSError:
        return {}
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _busy_ticks() -> int | None:
    try:
        user, nice, system, _, _, irq, soft, steal = map(int, (PROC / "stat").read_text().split(None, 9)[1:9])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + soft + steal


def describe_cpu() -> str:
    """The processor's name, and the widest vectors that it has."""
    try:
        text = (PROC / "cpuinfo").read_text()
        lines = [line.partition(":") for line in text.splitlines()]
        found = {key.strip(): value.strip() for key, _, value in lines}
        extra = ", AVX-512" if "avx512f" in text else ", AVX2" if "avx2" in text else ""
        return found.get("model name", platform.machine()) + extra
    except OSError:
        return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit, with a + where the sources differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = ["status", "--porcelain", "--", "tinygrad_llm", "reference", "benchmarks"]
        changed = subprocess.run([*git, *changes], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + "+" * bool(changed.strip())
