"""Who is measured. A further side is a row of SIDES and, where it is another library, a module with an `Engine`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.sides.engine import Engine

__all__ = ["SIDES", "TRUTH", "Engine", "Side", "find_sides", "missing"]

OURS, TORCH = "benchmarks.sides.numpy_eager", "benchmarks.sides.pytorch"


@dataclass(frozen=True)
class Side:
    """One way of doing the same work.

    module, options    Engine(threads=..., **options) of this module does it, in a process of its own
    library            whose matrix products it uses: sides of one library share a measured peak
    ours               the ratios are time(another side) / time(ours)
    """

    name: str
    module: str
    library: str
    about: str
    ours: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _torch(name: str, about: str, device: str = "cpu", **options: Any) -> Side:
    return Side(name, TORCH, f"torch {device}", about, options={"device": device, **options})


SIDES = {side.name: side for side in (
    Side("numpy", OURS, "numpy", "this library, eager: a graph of vjps, one process", ours=True),
    _torch("torch-eager", "attention written out, default AdamW", naive=True),
    _torch("torch-sdpa", "scaled_dot_product_attention, fused AdamW", fused=True),
    _torch("torch-compile", "torch-sdpa, its loss under torch.compile", fused=True, compiled=True),
    _torch("torch-cuda", "torch-sdpa on the GPU", device="cuda", fused=True),
    _torch("torch-mps", "torch-sdpa on Apple's GPU", device="mps", fused=True),
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
    if side.module == TORCH and importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if side.options.get("compiled") and not _compiler():
        return "no C++ compiler"
    return None


def _compiler() -> str | None:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    return next((found for name in names if name and (found := shutil.which(name))), None)
