"""tinygrad-llm profile: where the time of a training step goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinygrad_llm.capture.passes import optimize
from tinygrad_llm.capture.profile import Profile, Share, peaks, profile, seconds_of
from tinygrad_llm.capture.recordings import record
from tinygrad_llm.capture.replay import Replay
from tinygrad_llm.checkpoint.file import write_whole
from tinygrad_llm.cli.command import Command, Run, check_writable
from tinygrad_llm.cli.errors import UserError
from tinygrad_llm.cli.model_options import ModelOptions
from tinygrad_llm.cli.program import PROGRAM
from tinygrad_llm.cli.settings import integer, option, switch, word
from tinygrad_llm.cli.table import table
from tinygrad_llm.model import Transformer
from tinygrad_llm.optim import AdamW


@dataclass(frozen=True)
class Settings(ModelOptions):
    """What `profile` is told."""

    vocab_size: int = option(65, integer(1), "number of tokens in the vocabulary", "model")
    batch_size: int = option(32, integer(1), "sequences in a step", "measurement")
    runs: int = option(5, integer(1), "steps that are timed; medians are shown", "measurement")
    program: bool = option(False, switch(), "print the program instead, a line for each NumPy call", "output")
    trace: str | None = option(None, word("FILE"), "write one step as a trace for chrome://tracing", "output")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "toy": {"batch_size": 2, "context_length": 8, "d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 16},
    "char": {"batch_size": 32, "context_length": 64, "d_model": 128, "n_heads": 4, "n_layers": 4, "vocab_size": 65},
    "nano": {"batch_size": 12, "context_length": 256, "d_model": 384, "n_heads": 6, "n_layers": 6, "vocab_size": 65},
    "cl100k": {"batch_size": 4, "context_length": 256, "d_model": 256, "n_heads": 8, "n_layers": 4, "vocab_size": 100277},
    "gpt2-small": {"batch_size": 2, "context_length": 512, "d_model": 768, "n_heads": 12, "n_layers": 12, "vocab_size": 50257},
}


def run(job: Run) -> int:
    """Prints the tables, or the program."""
    settings = job.settings
    check_writable(settings.trace)
    model = Transformer(settings.transformer_config(settings.vocab_size))
    replay, optimizer = _step(model, settings)
    if settings.program:
        print(replay.program)
        return 0
    measured = profile(replay, settings.runs)
    measured.extra["adamw"] = _adamw(optimizer, model, settings.runs)
    print(_report(measured, replay, settings))
    if settings.trace:
        write_whole(settings.trace, json.dumps(measured.trace()))
        print(f"\nwrote {settings.trace}: open it at chrome://tracing or ui.perfetto.dev")
    return 0


def _step(model: Transformer, settings: Any) -> tuple[Replay, AdamW]:
    """The program of loss and gradients on random tokens, ready to run."""
    def loss_and_gradients(ids: Any, targets: Any) -> Any:
        loss = model.loss(ids, targets)
        loss.backward()
        return loss

    shape = settings.batch_size, settings.context_length
    batch = [np.random.default_rng(i).integers(0, settings.vocab_size, shape) for i in range(2)]
    recording = record(loss_and_gradients, batch, model)
    replay = Replay(optimize(recording.program))
    for place, tokens in zip(replay.inputs, batch):
        place[...] = tokens
    for p, output, _ in recording.left:
        assert not isinstance(p, int)
        p.grad = type(p).wrap(replay.outputs[output])
    return replay, AdamW(model.parameters())


def _adamw(optimizer: AdamW, model: Transformer, runs: int) -> Share:
    """Reads weight, gradient and two moments of each parameter, writes three of them."""
    times = [seconds_of(optimizer.step) for _ in range(runs + 1)]
    n = model.num_parameters()
    return Share(1, float(np.median(times[1:])), 15 * n, 7 * n * model.dtype.itemsize)


def _report(measured: Profile, replay: Replay, settings: Any) -> str:
    stats = replay.program.stats()
    seconds = measured.seconds + measured.extra["adamw"].seconds
    if seconds <= 0:
        raise UserError(f"clock: got a step of {seconds} s, expected a clock that runs forward")
    product, copy = peaks()
    tokens = settings.batch_size * settings.context_length
    by_op, by_layer = measured.by_op(), measured.by_layer()
    head = [
        f"step     {1e3 * seconds:,.2f} ms, {tokens / seconds:,.0f} tokens/s, {stats['flops'] / seconds / 1e9:,.1f} GFLOP/s, "
        "in one process",
        f"machine  {product:,.0f} GFLOP/s in a product of 1024 × 1024 matrices, {copy:,.1f} GB/s in a copy",
        f"program  {stats['calls']:,} calls, {stats['flops'] / 1e9:,.2f} GFLOP, {stats['bytes_moved'] / 1e6:,.0f} MB read and "
        f"written; {stats['buffer_bytes'] / 1e6:,.1f} MB of results in {stats['arena_bytes'] / 1e6:,.1f} MB",
    ]
    return "\n\n".join(["\n".join(head), _shares("op (ᵀ: backward)", by_op), _shares("layer", by_layer)])


def _shares(title: str, shares: Mapping[str, Share]) -> str:
    whole = sum(s.seconds for s in shares.values())
    rows = [(name, f"{s.calls:,}", f"{1e3 * s.seconds:,.2f}", f"{s.seconds / whole:.1%}", f"{s.flops / s.seconds / 1e9:,.1f}",
             f"{s.bytes / s.seconds / 1e9:,.1f}") for name, s in shares.items() if s.seconds]
    return table([(title, "calls", "ms", "share", "GFLOP/s", "GB/s"), *rows])


COMMAND = Command(
    "profile",
    "where the time of a training step goes, by op and by layer",
    "Records a training step of a model with random weights as a program of NumPy calls and times each of them.",
    f"{PROGRAM} profile --preset char\n{PROGRAM} profile --preset nano --trace step.json\n"
    f"{PROGRAM} profile --preset toy --program",
    Settings,
    run,
    PRESETS,
)
