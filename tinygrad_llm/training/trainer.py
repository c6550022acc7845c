"""Trainer: forward, backward, clip, step; once, or until a run is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np

from tinygrad_llm.data import Tokenizer
from tinygrad_llm.nn import Module
from tinygrad_llm.optim import AdamW, WarmupCosine, clip_grad_norm_
from tinygrad_llm.training.evaluation import IGNORED, Batch
from tinygrad_llm.training.fitting import FitResult, Fitting, Options


class Trainer:
    """Trains a model whose `loss(ids, targets)` is the mean over the targets, int [B, T], that are not −100.

    schedule     has step(), called after each optimizer step
    grad_clip    largest L2 norm of all gradients together; None: no limit
    accumulate   split each batch into so many parts, one after the other, to need less memory. The gradient is that of
                 the whole batch, whatever the sizes of the parts; only the rounding differs, and the masks of dropout

        trainer = Trainer(model, AdamW(model.parameters(), lr=1e-3), grad_clip=1.0)
        loss = trainer.step(ids, targets)            for a loop of one's own
        result = trainer.fit(loader, steps=1000)     for everything else

    After a step: `steps_done`, `lr` (of the first parameter group, in that step), `grad_norm` (before clipping).
    Raises TypeError or ValueError, naming the argument.
    """

    def __init__(
        self, model: Module, optimizer: AdamW, *, schedule: WarmupCosine | None = None, grad_clip: float | None = None,
        accumulate: int = 1,
    ) -> None:
        if not hasattr(model, "loss"):
            raise TypeError(f"model: got {type(model).__name__}, expected a module with loss(ids, targets)")
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer: got {type(optimizer).__name__}, expected an optimizer such as AdamW")
        if grad_clip is not None and not 0 < grad_clip < math.inf:
            raise ValueError(f"grad_clip: got {grad_clip!r}, expected a number > 0, or None for no limit")
        if type(accumulate) is not int or accumulate < 1:
            raise ValueError(f"accumulate: got {accumulate!r}, expected an integer >= 1")
        self.model: Any = model
        self.optimizer, self.schedule, self.grad_clip, self.accumulate = optimizer, schedule, grad_clip, accumulate
        self.steps_done = 0
        self.lr = self.grad_norm = math.nan

    def step(self, ids: Any, targets: Any) -> float:
        """One optimizer step on a batch, int [B, T] each; returns the loss before it, in nats per token.

        Raises FloatingPointError, naming the step, where the loss or the gradient is not finite: then weights and
        optimizer are as they were before this step.
        """
        self._zero_grad()
        try:
            loss = self._gradients(np.asarray(ids), np.asarray(targets))
            self.grad_norm = self._clip()
            self.lr = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
        finally:
            self._zero_grad()
        if self.schedule is not None:
            self.schedule.step()
        self.steps_done += 1
        return loss

    def fit(
        self,
        batches: Iterable[Batch],
        steps: int,
        *,
        evaluate_on: Any = None,
        eval_every: int = 250,
        eval_tokens: int | None = None,
        tokenizer: Tokenizer | None = None,
        folder: str | PathLike[str] | None = None,
        checkpoint_every: int = 250,
        keep: int = 2,
        resume: bool = False,
        metrics: str | PathLike[str] | None = None,
        plot: bool = True,
        progress: bool = True,
        about: Mapping[str, Any] | None = None,
    ) -> FitResult:
        """Train until `steps` optimizer steps are done in all, those before this call included.

        batches            a BatchLoader; without a folder, any iterable of (ids, targets), int [B, T] each
        evaluate_on        the test split: a dataset, evaluated every `eval_every` steps and at the end
        eval_tokens        evaluate on about so many of its tokens, evenly spread; None: on all
        tokenizer          is saved with the model, and gives the evaluation its bits per character
        folder             where the run is kept: checkpoints every `checkpoint_every` steps, the newest `keep` of them,
                           and the best by test loss; metrics.jsonl; loss.png. One process at a time
        resume             go on where the newest good checkpoint in folder stands, or start where there is none: the
                           same bits as a run that was never stopped, if BLAS uses as many threads. False: a folder with
                           a run in it is refused
        metrics            where the JSON lines go; None: folder/metrics.jsonl
        plot               draw folder/loss.png at the end
        progress           a bar on a terminal, and a line for each evaluation
        about              anything JSON-able to be kept with the model

        Ctrl-C or SIGTERM ends it after the current step: everything is saved, then Interrupted (a KeyboardInterrupt)
        is raised; a second Ctrl-C does not wait. Raises FloatingPointError, naming the step, for a loss or gradient
        that is not finite, and saves nothing more; ValueError for a folder of another run, naming what differs.
        """
        options = Options(steps, evaluate_on, eval_every, eval_tokens, tokenizer, folder, checkpoint_every, keep,
                          resume, metrics, plot, progress, about or {})
        with Fitting(self, batches, options) as fitting:
            return fitting.run()

    def close(self) -> None:
        """Free what training holds. Nothing yet; worker processes later."""

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # One step --------------------------------------------------------------------------------------------------------

    def _gradients(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """Fills .grad with the gradient of the mean loss of the batch; returns that loss."""
        if self.accumulate == 1 or ids.ndim != 2 or ids.shape != targets.shape:
            return self._part(ids, targets, None)
        total, whole = 0.0, max(int((targets != IGNORED).sum()), 1)
        for part_ids, part_targets in self._split(ids, targets):
            total += self._part(part_ids, part_targets, int((part_targets != IGNORED).sum()) / whole)
        return total

    def _part(self, ids: np.ndarray, targets: np.ndarray, weight: float | None) -> float:
        """Adds the gradient of weight · loss; a part is weighted by its share of the targets that count."""
        loss = self.model.loss(ids, targets)
        self._refuse_nonfinite("loss", loss.item())
        loss.backward(None if weight is None else np.asarray(weight, dtype=loss.dtype))
        return loss.item() * (1.0 if weight is None else weight)

    def _split(self, ids: np.ndarray, targets: np.ndarray) -> Iterator[Batch]:
        """Parts of rows that differ by one at most, without those in which no target counts."""
        parts = min(self.accumulate, len(ids)) or 1
        for rows, wanted in zip(np.array_split(ids, parts), np.array_split(targets, parts)):
            if parts == 1 or (wanted != IGNORED).any():
                yield rows, wanted

    def _clip(self) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = clip_grad_norm_(parameters, self.grad_clip or math.inf)
        self._refuse_nonfinite("gradient norm", norm)
        return norm

    def _zero_grad(self) -> None:
        self.model.zero_grad()
        self.optimizer.zero_grad()

    def _refuse_nonfinite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"step {self.steps_done + 1}: got a {what} of {value}, expected a finite number; "
                f"weights and optimizer are those of step {self.steps_done}"
            )
