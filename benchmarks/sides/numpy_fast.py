"""This library as one would train with it: the step recorded and replayed, its rows shared by processes where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.sides import engine, numpy_eager
from tinygrad_llm.training import Trainer


class Engine(numpy_eager.Engine):
    """Trainer with capture, and as many workers as it finds worthwhile, or as are asked for. Decoding and single ops are those
    of `numpy`."""

    trainer: Trainer | None = None

    def __init__(self, threads: int | None = None, workers: int | str = "auto") -> None:
        super().__init__(threads)
        self.asked = workers

    def describe(self) -> dict[str, Any]:
        """How many processes shared the rows."""
        about = super().describe()
        workers = self.trainer.workers if self.trainer else 1
        return about | {"about": f"{about['about']}, workers: {workers}"}

    def make(self, case: Case, draw: Callable[[Any], dict[str, np.ndarray]], dtype: str) -> None:
        if self.trainer is not None:
            self.trainer.close()
        super().make(case, draw, dtype)
        self.trainer = Trainer(self.model, self.optimizer, workers=self.asked, capture="fast")

    def steps(self, batches: Sequence[engine.Batch]) -> list[float]:
        assert self.trainer is not None
        return [self.trainer.step(ids, targets) for ids, targets in batches]
