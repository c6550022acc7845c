"""The same training in PyTorch:   python -m reference.train --device cuda

Batches come from tinygrad_llm.data in the order that the NumPy trainer sees, so two runs differ in arithmetic alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from reference.bridge import load_numpy_state, numpy_adamw_state, numpy_state
from reference.model import Transformer
from tinygrad_llm.checkpoint import save_checkpoint
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.data import BatchLoader, SequenceDataset, get_tokenizer, load_corpus, train_test_split

SHOW_EVERY = 10  # steps between readings of the loss: each one waits for the GPU
FINAL_LR = 0.1  # of the peak, at the end of the cosine


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """What a training run is told; the fields are the command line's flags. Raises ValueError, naming the field."""

    corpus: str = _option("auto", "shakespeare, stdlib, auto, or a text file or folder")
    tokenizer: str = _option("char", "char, or a tiktoken encoding such as cl100k_base")
    context_length: int = _option(128, "tokens in a sequence")
    d_model: int = _option(128, "width of the model")
    n_heads: int = _option(4, "attention heads in a block")
    n_layers: int = _option(4, "blocks")
    batch_size: int = _option(32, "sequences in a batch")
    steps: int = _option(1000, "optimizer steps")
    lr: float = _option(1e-3, "peak learning rate")
    warmup_steps: int = _option(100, "steps in which the learning rate rises to its peak")
    weight_decay: float = _option(0.1, "AdamW's decay, of tensors with two or more dimensions")
    grad_clip: float = _option(1.0, "largest norm of the gradient; 0: no limit")
    seed: int = _option(0, "decides the initial weights and the order of the batches")
    eval_every: int = _option(250, "steps between evaluations on the test split")
    out: str = _option("", "folder for the weights, AdamW's state and metrics.jsonl; empty: nothing is written")
    device: str = _option("cpu", "cpu, cuda or mps")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "an integer >= 1")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "seed"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "a finite number >= 0")
        _check("lr", self.lr, 0 < self.lr < math.inf, "a finite number > 0")


@dataclass(frozen=True)
class Result:
    """The trained model, the loss of each step (nats per token, before that step), and the evaluations."""

    model: Transformer
    losses: list[float]
    evaluations: list[dict[str, float]]


@dataclass(frozen=True)
class Data:
    """The two splits as pairs of sequences, and what is needed to build a model for them and to read its loss."""

    train: SequenceDataset
    test: SequenceDataset
    tokenizer: Any
    chars_per_token: float


def train(settings: Settings, initial: Mapping[str, np.ndarray] | None = None, progress: bool = True) -> Result:
    """Trains from initial (name -> float32 array; None: drawn from the seed). Ctrl-C ends it early, saved.

    Raises ValueError for settings that cannot be, OSError for files that cannot, FloatingPointError for a loss
    that is no longer finite.
    """
    device = find_device(settings.device)
    _prepare(settings.out)
    data = load_data(settings)
    model = make_model(settings, data.tokenizer.vocab_size, device, initial)
    optimizer = make_optimizer(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, settings))
    result = Result(model, [], [])
    batches = BatchLoader(data.train, settings.batch_size, settings.seed)
    waiting: list[Tensor] = []
    with tqdm(total=settings.steps, disable=not progress, unit="step") as bar:
        try:
            for step in range(1, settings.steps + 1):
                waiting.append(train_step(model, optimizer, next(batches), settings.grad_clip, device))
                schedule.step()
                bar.update()
                if step % SHOW_EVERY == 0 or step == settings.steps:
                    _read(waiting, result.losses, bar)
                if step % settings.eval_every == 0 or step == settings.steps:
                    _report(step, model, data, settings, device, result, bar)
                    save(settings, result, optimizer, data.tokenizer)
        except KeyboardInterrupt:
            _read(waiting, result.losses, bar)
            save(settings, result, optimizer, data.tokenizer)
            bar.write(f"stopped after {len(result.losses)} steps")
    return result


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Any, Any], grad_clip: float, device: torch.device
) -> Tensor:
    """One step of AdamW on one batch; the loss before it, left on the device."""
    ids, targets = to_device(batch, device)
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())  # not model.loss: DDP wraps forward alone
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if grad_clip:
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model: Transformer, data: Data, batch_size: int, device: torch.device) -> dict[str, float]:
    """test_loss (nats per token), perplexity, next-token accuracy, bits_per_char; over all of the test split."""
    model.eval()
    loss, right, count = 0.0, 0, 0
    for batch in BatchLoader(data.test, batch_size, shuffle=False):
        ids, targets = to_device(batch, device)
        logits = model(ids)  # [B, T, V]
        loss += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        right += int((logits.argmax(-1) == targets).sum())
        count += targets.numel()
    model.train()
    mean = loss / count
    perplexity, bits = math.exp(min(mean, 700.0)), mean / math.log(2) / data.chars_per_token
    return {"test_loss": mean, "perplexity": perplexity, "accuracy": right / count, "bits_per_char": bits}


def find_device(name: str) -> torch.device:
    """The device of that name. Raises ValueError where this machine, or this build of torch, does not have it."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there = ", ".join(kind for kind, here in available.items() if here)
    if not available.get(name.split(":")[0], False):
        raise ValueError(f"device: got {name!r}, expected one that is available here: {there}")
    return torch.device(name)


def load_data(settings: Settings) -> Data:
    """Splits the corpus, then tokenizes each part; a character vocabulary is taken from both."""
    corpus = load_corpus(settings.corpus)
    tokenizer = get_tokenizer(settings.tokenizer, corpus.text)
    train_part, test_part = train_test_split(corpus)
    test_ids = tokenizer.encode(test_part.text)
    train_set = SequenceDataset(tokenizer.encode(train_part.text), settings.context_length)
    test_set = SequenceDataset(test_ids, settings.context_length)
    return Data(train_set, test_set, tokenizer, len(test_part.text) / len(test_ids))


def make_model(
    settings: Settings, vocab_size: int, device: torch.device, initial: Mapping[str, np.ndarray] | None = None
) -> Transformer:
    """The default architecture at the settings' size. Drawn on the CPU, so that a seed means the same on any device."""
    config = TransformerConfig(
        vocab_size, settings.context_length, settings.d_model, settings.n_heads, settings.n_layers
    )
    torch.manual_seed(settings.seed)
    model = Transformer(config, dtype=torch.float32)
    if initial is not None:
        load_numpy_state(model, initial)
    return model.to(device)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    """AdamW with decay for matrices and embeddings only; fused where the device has the kernel."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    try:
        return torch.optim.AdamW(groups, lr=settings.lr, fused=True)
    except RuntimeError:
        return torch.optim.AdamW(groups, lr=settings.lr)


def lr_factor(step: int, settings: Settings) -> float:
    """The part of the peak learning rate at step 0, 1, ...: (step + 1) / warmup, then half a cosine to FINAL_LR."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = min(1.0, (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps))
    return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * done))


def to_device(batch: tuple[Any, Any], device: torch.device) -> list[Tensor]:
    """(ids, targets) as int64 tensors on the device; to CUDA without waiting for the copy."""
    tensors = [torch.from_numpy(np.asarray(array, np.int64)) for array in batch]
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def save(settings: Settings, result: Result, optimizer: torch.optim.Optimizer, tokenizer: Any) -> None:
    """Weights and AdamW's state by the names of the state dict, and a JSON line per evaluation, into settings.out."""
    if not settings.out:
        return
    folder = Path(settings.out)
    about = {"config": result.model.config.to_dict(), "tokenizer": tokenizer.to_dict(), "step": len(result.losses)}
    save_checkpoint(folder / "model.safetensors", numpy_state(result.model), about)
    save_checkpoint(folder / "optimizer.safetensors", numpy_adamw_state(result.model, optimizer), about)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in result.evaluations))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. A user's mistake is one line on stderr and exit code 2."""
    try:
        train(Settings(**vars(_parser().parse_args(arguments))))
    except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m reference.train", description="Train the PyTorch reference model.")
    for option in dataclasses.fields(Settings):
        flag = "--" + option.name.replace("_", "-")
        help = f"{option.metadata['help']} (default: {option.default!r})"
        parser.add_argument(flag, type=type(option.default), default=option.default, help=help)
    return parser


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")


def _read(waiting: list[Tensor], losses: list[float], bar: tqdm) -> None:
    for loss in _taken(waiting):
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"loss: got {losses[-1]} at step {len(losses)}, expected a finite number")
    if losses:
        bar.set_postfix(loss=f"{losses[-1]:.3f}")


def _taken(waiting: list[Tensor]) -> Iterator[Tensor]:
    while waiting:
        yield waiting.pop(0)


def _report(
    step: int, model: Transformer, data: Data, settings: Settings, device: torch.device, result: Result, bar: tqdm
) -> None:
    metrics = evaluate(model, data, settings.batch_size, device)
    result.evaluations.append({"step": step, **metrics})
    if not bar.disable:
        bar.write(f"step {step}  " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def _prepare(out: str) -> None:
    """Finds out before the training, and not after it, that a folder cannot be written."""
    if not out:
        return
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "metrics.jsonl").touch()
    except OSError as error:
        raise OSError(f"out: got {out!r}, expected a folder that can be written ({error.strerror})") from None


if __name__ == "__main__":
    sys.exit(main())
