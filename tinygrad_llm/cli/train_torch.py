"""tinygrad-llm train --backend torch: the same run in PyTorch, from the same initial weights, over the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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
    """Resuming and accumulation are our own trainer's."""
    if settings.resume:
        raise UserError("--resume: got a run with --backend torch, expected --backend numpy: only that can be resumed")
    if settings.accumulate != 1:
        raise UserError(f"--accumulate: got {settings.accumulate}, expected 1 with --backend torch")


def fit(settings: Any, data: Any, ours: Transformer, reference: Any, about: dict[str, Any]) -> tuple[Evaluation, int]:
    """Trains a copy of `ours`; returns the last evaluation and 0, or 128 + the signal that ended it.

    Saves what our own runs call their best model, so that eval and generate take it.
    """
    reference.model.torch.manual_seed(settings.seed)  # of dropout
    model = TorchModel(ours, settings.device, reference)
    optimizer = reference.train.make_optimizer(model.module, settings)
    batches = BatchLoader(data.train, settings.batch_size, settings.seed)
    described = describe_model(ours, data.tokenizer, about)
    with CheckpointFolder(settings.out) as folder, StopSignals() as stop:
        metrics = MetricsFile(Path(settings.out) / "metrics.jsonl")
        losses: list[Any] = []
        best = np.inf
        disable = True if settings.quiet else None
        for step in tqdm(range(1, settings.steps + 1), unit="step", dynamic_ncols=True, disable=disable):
            _set_rate(optimizer, step - 1, settings)
            losses.append(reference.train.train_step(model.module, optimizer, next(batches), settings.grad_clip, model.device))
            if stop or step % settings.eval_every == 0 or step == settings.steps:
                _write_losses(metrics, step, losses)
                evaluation = _evaluate(model, data, settings, metrics, step)
                if evaluation.loss < best:
                    best = evaluation.loss
                    state = reference.bridge.numpy_state(model.module)
                    folder.save_best(state, {"step": step, **described, "evaluation": evaluation.to_dict()})
            if stop:
                say(f"stopped after step {step:,}; its model is saved in {settings.out}; runs in PyTorch cannot be resumed")
                break
        metrics.close()
    return evaluation, 128 + stop.signum if stop else 0


def _set_rate(optimizer: Any, step: int, settings: Any) -> None:
    for group in optimizer.param_groups:
        minimum = settings.lr * settings.min_lr_ratio
        group["lr"] = warmup_cosine(step, settings.lr, settings.warmup_steps, settings.steps, minimum)
        group["betas"] = settings.betas


def _write_losses(metrics: MetricsFile, step: int, losses: list[Any]) -> None:
    """Read only now: to read a loss waits for the GPU."""
    first = step - len(losses) + 1
    for number, loss in enumerate(map(float, losses), first):
        if not np.isfinite(loss):
            raise FloatingPointError(f"step {number}: got a loss of {loss}, expected a finite number")
        metrics.write({"step": number, "loss": loss})
    losses.clear()


def _evaluate(model: TorchModel, data: Any, settings: Any, metrics: MetricsFile, step: int) -> Evaluation:
    evaluation = evaluate(
        model, data.test, batch_size=settings.batch_size, tokenizer=data.tokenizer, max_tokens=settings.eval_tokens
    )
    values = evaluation.to_dict()
    metrics.write({"step": step, "test_loss": values.pop("loss"), **values})
    if not settings.quiet:
        tqdm.write(f"step {step:,}  test {evaluation}")
    return evaluation
