"""What a comparison ran on: whoever reads a number must be able to tell where it came from."""

from __future__ import annotations

import io
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch


def environment(seed: int, arguments: Sequence[str] | None = None) -> dict[str, str]:
    """Versions, BLAS, CPU, threads, devices, precision, seed and command line: name -> text."""
    return {
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "tinygrad-llm": _version("tinygrad-llm"),
        "NumPy": f"{np.__version__}, BLAS {_numpy_blas()}",
        "PyTorch": f"{torch.__version__}, BLAS {_torch_blas()}",
        "CPU": f"{_cpu()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"torch {torch.get_num_threads()}, NumPy's BLAS {_blas_threads()}",
        "devices": ", ".join(available_devices()),
        "precision": precision(),
        "seed": str(seed),
        "command": " ".join(["tinygrad-llm", *(sys.argv[1:] if arguments is None else arguments)]),
    }


def available_devices() -> list[str]:
    """Devices that torch can use here, the CPU first."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return found + ["mps"] * torch.backends.mps.is_available()


def precision() -> str:
    """Whether torch may compute float32 products with fewer bits than float32 has."""
    reduced = [f"{name} on" for name, on in _reduced().items() if on]
    chosen = torch.get_float32_matmul_precision()
    return f"float32 products {chosen}; " + ("; ".join(reduced) if reduced else "TF32 and reduced-precision sums off")


def _reduced() -> dict[str, bool]:
    matmul = torch.backends.cuda.matmul
    return {
        "TF32 in CUDA products": matmul.allow_tf32,
        "TF32 in cuDNN convolutions": torch.cuda.is_available() and torch.backends.cudnn.allow_tf32,
        "bfloat16 in oneDNN products": torch.get_float32_matmul_precision() == "medium",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed, run from a checkout"


def _numpy_blas() -> str:
    said: Any = io.StringIO()
    try:
        with redirect_stdout(said):
            built = np.show_config(mode="dicts")
        blas = built["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas.get('version', '')}".strip()
    except (TypeError, KeyError):
        return "unknown"


def _torch_blas() -> str:
    names = {"mkl": torch.backends.mkl.is_available(), "openblas": "BLAS_INFO=open" in torch.__config__.show()}
    return ", ".join([name for name, there in names.items() if there]) or "unknown"


def _blas_threads() -> str:
    try:
        from threadpoolctl import threadpool_info  # optional
    except ModuleNotFoundError:
        return os.environ.get("OPENBLAS_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "unknown"))
    return ", ".join(str(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas") or "unknown"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"
