"""Which instructions the matrix products of a process use, and who chose them: the record of a side says it in words."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from benchmarks import machine

OPENBLAS = {  # cores that OpenBLAS has kernels for; of one that is not here, nothing is known
    "AVX-512": ("SkylakeX", "Cooperlake", "Sapphirerapids"),
    "AVX2": ("Haswell", "Zen"),
    "AVX": ("Sandybridge", "Bulldozer", "Piledriver", "Steamroller", "Excavator"),
    "SSE": ("Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Atom", "Barcelona", "Bobcat", "Katmai", "Banias"),
}
MKL = {4: "AVX", 5: "AVX2", 7: "AVX-512"}  # what mkl_serv_cpu_detect answers; 0 on a processor that is not Intel's
MKL_VARIABLES = "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE"


def openblas() -> dict[str, Any]:
    """Of this process's OpenBLAS, as `_said` puts it."""
    cores = [str(one["architecture"]) for one in threadpool_info() if one.get("internal_api") == "openblas"]
    if not cores:
        return _said("not OpenBLAS", None, [])
    kinds = (kind for kind, names in OPENBLAS.items() if cores[0].lower() in map(str.lower, names))
    return _said(f"OpenBLAS's kernels for {cores[0]}", next(kinds, None), _set(("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")))


def mkl(library: Path, intel: bool) -> dict[str, Any]:
    """Of the MKL in a shared object; `intel`: it was to be told that the processor is Intel's."""
    try:
        answer = ctypes.CDLL(str(library)).mkl_serv_cpu_detect()
    except (OSError, AttributeError):
        return _said("not MKL", None, [])
    by_itself = "AVX2" if answer == 0 and "AVX" in machine.describe_cpu() else None
    told = ["the word that the processor is Intel's"] if intel and not machine.is_intel() else []
    return _said("MKL", MKL.get(answer, by_itself), [*told, *_set(MKL_VARIABLES)])


def _set(variables: tuple[str, ...]) -> list[str]:
    return [f"{name}={os.environ[name]}" for name in variables if os.environ.get(name)]


def _said(name: str, instructions: str | None, told: list[str]) -> dict[str, Any]:
    """kernels: the words; instructions: AVX-512, AVX2, AVX, SSE or None, unknown; told: it was not left to choose."""
    how = f"by {', '.join(told)}" if told else "by its own choice"
    return {"kernels": f"{name}: {instructions or 'instructions not known'}, {how}", "instructions": instructions,
            "told": bool(told)}
