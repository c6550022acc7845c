"""torch's own way to share the rows of a batch: DistributedDataParallel over gloo, two processes, each half of the threads."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import machine
from benchmarks.cases import Case
from benchmarks.process import Worker
from benchmarks.sides import Side, engine, peer, pytorch
from reference.model import Transformer

PROCESSES = 2
PATIENCE = datetime.timedelta(minutes=5)  # of one that waits for the other


class Loss(nn.Module):
    """The model's loss as a forward pass: that of a DistributedDataParallel is where it learns that a step begins."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(ids, targets)


class Engine(pytorch.Engine):
    """Rank 0 is the worker that is asked; it has rank 1 do the same at the same time. They train, and do nothing else."""

    def __init__(self, threads: int | None = None, rank: int = 0, store: str = "", **options: Any) -> None:
        self.threads = threads or machine.cores()
        super().__init__(max(1, self.threads // PROCESSES), **options)
        self.rank, self.store, self.other = rank, store, None
        if rank == 0:
            self.folder = tempfile.TemporaryDirectory(prefix="ddp-")
            self.store = (Path(self.folder.name) / "store").as_uri()
            second = {**options, "rank": 1, "store": self.store}
            self.other = Worker(Side("rank 1", __name__, "", "", needs=("torch",), options=second), threads)

    def describe(self) -> dict[str, Any]:
        about = super().describe()
        return {**about, "about": f"{about['about']}, DDP over gloo, {PROCESSES} processes",
                "threads": self.threads}

    def build(self, case: dict[str, Any], seed: int, dtype: str = "float32") -> dict[str, Any]:
        if case["batch"] % PROCESSES:
            raise ValueError(f"batch: got {case['batch']} sequences, expected a multiple of {PROCESSES} processes")
        return self._both("build", super().build, case=case, seed=seed, dtype=dtype)

    def train(self, first: int, count: int) -> dict[str, Any]:
        return self._both("train", super().train, first=first, count=count)

    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        if not dist.is_initialized():
            dist.init_process_group("gloo", init_method=self.store, rank=self.rank, world_size=PROCESSES, timeout=PATIENCE)
        super().make(case, draw, dtype)
        self.loss = DistributedDataParallel(Loss(self.model), broadcast_buffers=False, gradient_as_bucket_view=True)

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        """Each has its rows; of the losses, at the end, the mean."""
        losses = torch.tensor(super().steps([(self._rows(ids), self._rows(targets)) for ids, targets in batches]))
        dist.all_reduce(losses)
        return (losses / PROCESSES).tolist()

    def product(self, size: int) -> Callable[[], Any]:
        """With the threads of both: the peak is that of the machine."""
        torch.set_num_threads(self.threads)
        return super().product(size)

    def continued(self, prompt: Sequence[int], count: int) -> list[int]:
        peer.refuse()

    def functional(self) -> Any:
        peer.refuse()

    def _rows(self, array: np.ndarray) -> np.ndarray:
        return np.split(array, PROCESSES)[self.rank]

    def _both(self, do: str, mine: Callable[..., Any], **arguments: Any) -> Any:
        if self.other is None:
            return mine(**arguments)
        self.other.send(do, **arguments)
        answer = mine(**arguments)
        self.other.receive()
        return answer
