"""Who is measured. A further side is a row of SIDES and, where it is another library, a module with an `Engine`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import preload
from benchmarks.sides.engine import Engine

__all__ = ["SIDES", "TRUTH", "Engine", "Side", "find_sides", "missing"]

PACKAGE = "benchmarks.sides"


@dataclass(frozen=True)
class Side:
    """One way of doing the same work.

    module, options    Engine(threads=..., **options) of this module does it, in a process of its own
    library            whose matrix products it uses: sides of one library share a measured peak
    ours               the ratios are time(another side) / time(ours)
    needs              what must be importable
    intel              MKL is told that the processor is Intel's
    rival              everything that is known to make torch faster: the ratio to it is the one to look at first
    environment        further variables of its process
    """

    name: str
    module: str
    library: str
    about: str
    ours: bool = False
    needs: tuple[str, ...] = ()
    intel: bool = False
    rival: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _torch(name: str, about: str, device: str = "cpu", module: str = "pytorch", **options: Any) -> Side:
    return Side(name, f"{PACKAGE}.{module}", f"torch {device}", about, needs=("torch",), options={"device": device, **options})


def _torch_intel(name: str, about: str, rival: bool = True, module: str = "pytorch", **options: Any) -> Side:
    """A rival also has large pages for large tensors, where Linux gives them to who asks: torch's own variable."""
    pages = {"THP_MEM_ALLOC_ENABLE": "1"} if rival else {}
    return Side(name, f"{PACKAGE}.{module}", "torch cpu, MKL as on Intel's", about, needs=("torch",), intel=True, rival=rival,
                environment=pages, options={"fused": True, "intel": True, **options})


def _peer(name: str, module: str, library: str, about: str, *needs: str) -> Side:
    return Side(name, f"{PACKAGE}.{module}", library, about, needs=(name, *needs))


SIDES = {side.name: side for side in (
    Side("numpy-fast", f"{PACKAGE}.numpy_fast", "numpy",
         "this library: the step replayed as a program, rows shared by processes", ours=True),
    Side("numpy", f"{PACKAGE}.numpy_eager", "numpy", "this library, eager: a graph of vjps, one process", ours=True),
    Side("numpy-workers", f"{PACKAGE}.numpy_fast", "numpy", "numpy-fast with two processes, whatever the size", ours=True,
         options={"workers": 2}),
    _torch("torch-eager", "attention written out, default AdamW", naive=True),
    _torch("torch-sdpa", "scaled_dot_product_attention, fused AdamW", fused=True),
    _torch("torch-compile", "torch-sdpa, its loss under torch.compile", fused=True, compiled=True),
    _torch("torch-ddp", "torch-sdpa in two processes: DistributedDataParallel over gloo", module="torch_ddp", fused=True),
    _torch_intel("torch-intel", "torch-sdpa; MKL is told that the processor is Intel's where it is not", rival=False),
    _torch_intel("torch-best", "torch-intel, large pages, and the fastest way to the loss", choose_head=True),
    _torch_intel("torch-best-compile", "torch-best, its loss under torch.compile", choose_head=True, compiled=True),
    _torch_intel("torch-best-ddp", "torch-ddp, MKL as in torch-intel, large pages", module="torch_ddp"),
    _torch("torch-cuda", "torch-sdpa on the GPU", device="cuda", fused=True),
    _torch("torch-mps", "torch-sdpa on Apple's GPU", device="mps", fused=True),
    _peer("autograd", "hips_autograd", "numpy", "HIPS autograd: value_and_grad over NumPy", "scipy"),
    _peer("mygrad", "my_grad", "numpy", "MyGrad: tensors over NumPy", "scipy"),
    _peer("jax", "jax_cpu", "jax cpu", "JAX on the CPU: one jitted step, donated buffers"),
    _peer("tinygrad", "tiny_grad", "tinygrad cpu", "tinygrad (tinygrad.org, not this project) on the CPU: one TinyJit step"),
)}
TRUTH = "torch-sdpa", "numpy"  # whose float64 judges the losses: the first that is installed


def find_sides(names: Sequence[str]) -> list[Side]:
    """The sides by name. Raises ValueError for one that is not there, or is there twice."""
    for i, name in enumerate(names):
        if name not in SIDES:
            raise ValueError(f"sides: got {name!r}, expected some of {', '.join(SIDES)}")
        if name in names[:i]:
            raise ValueError(f"sides: got {name!r} twice, expected each once")
    return [SIDES[name] for name in names]


def missing(side: Side) -> str | None:
    """Why the side cannot run here, as far as that is known without importing it."""
    for module in side.needs:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    if side.options.get("compiled") and not _first_found(os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"):
        return "no C++ compiler"
    if side.intel and (reason := preload.why_not()):
        return reason
    if side.name == "tinygrad" and "DEV" not in os.environ and not _first_found(os.environ.get("CC", "clang")):
        return "no clang, with which tinygrad makes its kernels for the CPU"
    return None


def _first_found(*names: str) -> str | None:
    return next((found for name in names if name and (found := shutil.which(name))), None)
