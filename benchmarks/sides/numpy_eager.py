"""This library, eager."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

import tinygrad_llm
from benchmarks import kernels
from benchmarks.cases import Case
from benchmarks.machine import os_threads
from benchmarks.sides import engine
from tinygrad_llm.generation import generate
from tinygrad_llm.nn import functional
from tinygrad_llm.optim import AdamW


class Engine(engine.Engine):
    """The threads of NumPy's BLAS come from the environment that the worker was started in."""

    model: tinygrad_llm.Transformer
    optimizer: AdamW

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def describe(self) -> dict[str, Any]:
        """BLAS, whose kernels it uses, and how many threads there are: the main one and those that BLAS has started."""
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        core = " ".join(one["architecture"] for one in threadpool_info() if "architecture" in one)
        about = f"numpy {np.__version__}, {blas['name']} {blas['version']} {core}".rstrip()
        return {"about": about, "threads": os_threads() or self.threads, "python": platform.python_version(),
                **kernels.openblas()}

    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        self.model = tinygrad_llm.Transformer(case.config, dtype=np.dtype(dtype))
        self.model.load_state_dict(draw({name: p.shape for name, p in self.model.named_parameters()}))
        self.optimizer = AdamW(self.model.parameters(), lr=engine.LR)

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        losses = []
        for ids, targets in batches:
            loss = self.model.loss(ids, targets)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        return list(generate(self.model, np.asarray(prompt), count))

    def product(self, size: int) -> Callable[[], Any]:
        a = np.ones((size, size), np.float32)
        out = np.empty_like(a)
        return lambda: np.matmul(a, a, out=out)

    def functional(self) -> Any:
        return functional

    def tensor(self, array: np.ndarray, requires_grad: bool = False) -> Any:
        return tinygrad_llm.tensor(array, requires_grad=requires_grad) if array.dtype.kind == "f" else array

    def array(self, tensor: Any) -> np.ndarray:
        return tensor.numpy()

    def adamw(self, parameters: list[Any]) -> Callable[[], Any]:
        return AdamW(parameters, lr=engine.LR).step

    def no_grad(self) -> contextlib.AbstractContextManager[Any]:
        return tinygrad_llm.no_grad()
