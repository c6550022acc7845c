"""tinygrad-llm train --backend torch: the same run in PyTorch, from the same initial weights, over the same batches."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tinygrad_llm.checkpoint import CheckpointFolder
from tinygrad_llm.cli.errors import UserError, say
from tinygrad_llm.cli.loading import TorchModel
from tinygrad_llm.data import BatchLoader
from tinygrad_llm.model import Transformer
from tinygrad_llm.optim import warmup_cosine
from tinygrad_llm.training import Evaluation, evaluate
from tinygrad_llm.training.metrics import MetricsFile
from tinygrad_llm.training.resuming import describe_model
from tinygrad_llm.training.signals import StopSignals


def refuse_what_torch_lacks(settings: Any) -> None:
    """Resuming, accumulation and workers are our own trainer's."""
    if settings.resume:
        raise UserError("--resume: got a run with --backend torch, expected --backend numpy: only that can be resumed")
    if settings.accumulate != 1:
        raise UserError(f"--accumulate: got {settings.accumulate}, expected 1 with --backend torch")
    if settings.workers not in ("auto", 1):
        raise UserError(f"--workers: got {settings.workers}, expected 1 with --backend torch, which has threads of its own")


class TorchRun:
    """A run of reference.train.train_step, which leaves a best model, as our own runs do, for eval and generate.

    model      a copy of `ours` in PyTorch
    waiting    losses that are still on the device: to read one waits for it
    """

    def __init__(self, settings: Any, data: Any, ours: Transformer, reference: Any, about: dict[str, Any]) -> None:
        reference.model.torch.manual_seed(settings.seed)  # of dropout
        self.settings, self.data, self.reference = settings, data, reference
        self.model = TorchModel(ours, settings.device, reference)
        self.optimizer = reference.train.make_optimizer(self.model.module, settings)
        self.batches = BatchLoader(data.train, settings.batch_size, settings.seed)
        self.about = describe_model(ours, data.tokenizer, about)
        self.waiting: list[Any] = []
        self.best = math.inf

    def fit(self) -> tuple[Evaluation, int]:
        """The last evaluation and 0, or 128 + the signal that ended the training."""
        settings, quiet = self.settings, self.settings.quiet or None
        with CheckpointFolder(settings.out) as folder, StopSignals() as stop:
            metrics = MetricsFile(Path(settings.out) / "metrics.jsonl")
            bar = tqdm(range(1, settings.steps + 1), unit="step", dynamic_ncols=True, disable=quiet)
            for step in bar:
                self._step(step)
                if stop or step % settings.eval_every == 0 or step == settings.steps:
                    evaluation = self._evaluate(step, metrics)
                    self._save_if_best(step, evaluation, folder)
                if stop:
                    say(
                        f"stopped after step {step:,}; its model is saved; a run in PyTorch cannot be resumed"
                    )
                    break
            metrics.close()
        return evaluation, 128 + stop.signum if stop else 0

    def _step(self, step: int) -> None:
        settings = self.settings
        minimum = settings.lr * settings.min_lr_ratio
        rate = warmup_cosine(step - 1, settings.lr, settings.warmup_steps, settings.steps, minimum)
        for group in self.optimizer.param_groups:
            group.update(lr=rate, betas=settings.betas)
        model, batch = self.model, next(self.batches)
        train_step = self.reference.train.train_step
        self.waiting.append(train_step(model.module, self.optimizer, batch, settings.grad_clip, model.device))

    def _evaluate(self, step: int, metrics: MetricsFile) -> Evaluation:
        self._write_losses(step, metrics)
        settings, data = self.settings, self.data
        limits = {"batch_size": settings.batch_size, "max_tokens": settings.eval_tokens}
        evaluation = evaluate(self.model, data.test, tokenizer=data.tokenizer, **limits)
        values = evaluation.to_dict()
        metrics.write({"step": step, "test_loss": values.pop("loss"), **values})
        if not settings.quiet:
            with suppress(OSError):  # not worth a run
                tqdm.write(f"step {step:,}  test {evaluation}")
        return evaluation

    def _write_losses(self, step: int, metrics: MetricsFile) -> None:
        for number, loss in enumerate(map(float, self.waiting), step - len(self.waiting) + 1):
            if not math.isfinite(loss):
                raise FloatingPointError(f"step {number}: got a loss of {loss}, expected a finite number")
            metrics.write({"step": number, "loss": loss})
        self.waiting.clear()

    def _save_if_best(self, step: int, evaluation: Evaluation, folder: CheckpointFolder) -> None:
        if evaluation.loss < self.best:
            self.best = evaluation.loss
            state = self.reference.bridge.numpy_state(self.model.module)
            folder.save_best(state, {"step": step, **self.about, "evaluation": evaluation.to_dict()})
