"""The reference model, as a user of torch would run it, and with attention written out."""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import kernels
from benchmarks.cases import Case
from benchmarks.sides import engine, torch_head
from reference.bridge import load_numpy_state
from reference.decoding import greedy
from reference.model import LayerCache, Transformer
from tinygrad_llm.config import TransformerConfig

LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"


class NaiveAttention(nn.Module):
    """softmax(q kᵀ / √D + causal mask) v with every T × T matrix made, as in code from before SDPA."""

    mask: Tensor

    def __init__(self, config: TransformerConfig, **factory: Any) -> None:
        super().__init__()
        d, t = config.d_model, config.context_length
        self.n_heads = config.n_heads
        self.qkv_proj = nn.Linear(d, 3 * d, bias=config.bias, **factory)
        self.out_proj = nn.Linear(d, d, bias=config.bias, **factory)
        self.register_buffer("mask", torch.ones(t, t, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor, past: LayerCache | None = None) -> Tensor:
        """[B, T, d] → [B, T, d]"""
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.n_heads, -1).transpose(1, 2) for part in self.qkv_proj(x).split(d, dim=2))
        if past is not None:
            k, v = past.append(k, v)
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))  # [B, H, T, S]
        s = k.shape[2]
        p = scores.masked_fill(self.mask[s - t : s, :s], -math.inf).softmax(dim=-1)
        return self.out_proj((p @ v).transpose(1, 2).reshape(b, t, d))


class Engine(engine.Engine):
    """naive: NaiveAttention; fused: the fused AdamW; compiled: the loss under torch.compile; choose_head: of the ways to the
    loss of a large vocabulary, the one that is the fastest here; intel: MKL was told that the processor is Intel's."""

    head = ""

    def __init__(
        self, threads: int | None = None, device: str = "cpu", naive: bool = False, fused: bool = False,
        compiled: bool = False, choose_head: bool = False, intel: bool = False,
    ) -> None:
        backends = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not backends[device]:
            raise RuntimeError(f"this torch finds no {device} device")
        if threads is not None:
            torch.set_num_threads(threads)
        self.device, self.naive, self.fused, self.compiled = torch.device(device), naive, fused, compiled
        self.choose_head, self.intel = choose_head, intel

    def describe(self) -> dict[str, Any]:
        """Versions, threads, and how much memory of the GPU was taken at most."""
        about = {"about": f"torch {torch.__version__}, {_blas()}", "threads": torch.get_num_threads(),
                 "python": platform.python_version()}
        if self.device.type == "cpu":
            about |= {**kernels.mkl(LIBRARY, self.intel), "vectors": torch.backends.cpu.get_cpu_capability()}
        if self.head:
            about |= {"head": self.head}
        if self.device.type == "cuda":
            about |= {"device": torch.cuda.get_device_name(), "device_peak_mb": torch.cuda.max_memory_allocated() / 1e6}
        return about

    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        number = getattr(torch, dtype)
        model = self._model(case)(case.config, dtype=number)
        for block in model.blocks if self.naive else ():
            block.attn = NaiveAttention(case.config, dtype=number)
        load_numpy_state(model, draw({name: tuple(p.shape) for name, p in model.named_parameters()}))
        self.model = model.to(self.device)
        self.loss = self._wrapped(self.model.loss)
        self.optimizer = self._adamw(list(self.model.parameters()))

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        losses = []
        for batch in batches:
            loss = self.loss(*(torch.from_numpy(array).to(self.device) for array in batch))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()  # read at the end: on a GPU, the Python code runs ahead

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        return greedy(self.model, prompt, count)

    def product(self, size: int) -> Callable[[], Any]:
        a = torch.ones(size, size, device=self.device)
        out = torch.empty_like(a)
        return lambda: torch.matmul(a, a, out=out)

    def functional(self) -> Any:
        return nn.functional

    def tensor(self, array: np.ndarray, requires_grad: bool = False) -> Any:
        return torch.tensor(array, device=self.device, requires_grad=requires_grad)

    def array(self, tensor: Any) -> np.ndarray:
        return tensor.detach().cpu().numpy()

    def adamw(self, parameters: list[Any]) -> Callable[[], Any]:
        return self._adamw(parameters).step

    def no_grad(self) -> contextlib.AbstractContextManager[Any]:
        return torch.no_grad()

    def wait(self) -> None:
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def _model(self, case: Case) -> type[Transformer]:
        if not self.choose_head or case.vocab < torch_head.LARGE:
            self.head = ""
            return Transformer
        self.head = torch_head.choose(case.tokens, case.vocab, case.d_model, self.compiled)
        return torch_head.headed(torch_head.find(self.head))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function) if self.compiled else function

    def _adamw(self, parameters: list[Any]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=engine.LR, fused=self.fused or None)


def _blas() -> str:
    """The BLAS that this build says it uses."""
    settings = torch.__config__.show().split("BLAS_INFO=")
    name = settings[1].partition(",")[0] if len(settings) > 1 else "unknown"
    return f"BLAS {name}"
