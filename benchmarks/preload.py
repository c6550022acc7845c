"""MKL as on Intel's processors. MKL asks a function of its own, mkl_serv_intel_cpu_true, whether the processor is Intel's, and
without a yes it uses AVX2 where AVX-512 is there. A shared object that is loaded first and says yes is compiled when it is
wanted; LD_PRELOAD names it to one worker's process alone. Seen with MKL 2024.2, which torch 2.13 has in it.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks import machine

COMPILERS = "cc", "gcc", "clang"
SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
X86 = "x86_64", "AMD64"


def why_not() -> str | None:
    """Why MKL cannot be told; None where it can, and where nobody needs to: an Intel processor, or one without MKL."""
    if not _wanted():
        return None
    if platform.system() != "Linux":
        return f"LD_PRELOAD is Linux's, and MKL on {platform.system()} cannot be told that the processor is Intel's"
    if _compiler() is None:
        return f"no C compiler ({', '.join(COMPILERS)}), with which MKL is told that the processor is Intel's"
    return None


def environment() -> dict[str, str]:
    """What a worker's environment gets; nothing where nobody needs to be told. Raises OSError where compiling fails."""
    if not _wanted():
        return {}
    return {"LD_PRELOAD": os.pathsep.join(filter(None, [str(_library()), os.environ.get("LD_PRELOAD")]))}


def _wanted() -> bool:
    return platform.machine() in X86 and not machine.is_intel()


def _compiler() -> str | None:
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone when this process ends."""
    return tempfile.TemporaryDirectory(prefix="mkl-")


@functools.cache
def _library() -> Path:
    source, library = (Path(_folder().name) / name for name in ("intel.c", "libintel.so"))
    source.write_text(SOURCE, encoding="ascii")
    command = [_compiler() or COMPILERS[0], "-shared", "-fPIC", "-o", str(library), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise OSError(f"preload: got exit code {done.returncode} from {command[0]} ({said}), expected a shared object")
    return library
