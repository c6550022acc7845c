"""tinygrad-llm check: is it the same function as PyTorch's?"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import tinygrad_llm
from tinygrad_llm import parity
from tinygrad_llm.checkpoint.file import write_whole
from tinygrad_llm.cli import check_text as text
from tinygrad_llm.cli.command import Command, Run, check_writable
from tinygrad_llm.cli.errors import UserError, notes_unless_refused
from tinygrad_llm.cli.model_options import ModelOptions
from tinygrad_llm.cli.program import PROGRAM
from tinygrad_llm.cli.settings import at_least_zero, integer, number, one_of, option, switch, word
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import Transformer
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import load_model

SECTIONS = ("ops", "model", "training", "kill_table")
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Settings(ModelOptions):
    """What `check` is told. A small model shows every formula; a larger one shows the same rows, later."""

    context_length: int = option(16, integer(1), "tokens in a sequence", "model")
    d_model: int = option(32, integer(1), "width of the residual stream: numbers per token", "model")
    n_layers: int = option(2, integer(1), "blocks, one above the other", "model")
    vocab_size: int = option(65, integer(1), "tokens that the model knows", "model")
    checkpoint: str | None = option(
        None, word("PATH"), "check this trained model, and not one with random weights", "model"
    )
    ops: bool = option(False, switch(), "every op against float64 truth", "sections (none named: all)")
    model: bool = option(
        False, switch(), "activations, gradients of both, growth of errors, accuracy in float32", "sections (none named: all)"
    )
    training: bool = option(
        False, switch(), "AdamW side by side, and long runs beside control runs", "sections (none named: all)"
    )
    kill_table: bool = option(
        False, switch(), "seeded bugs: which check catches which", "sections (none named: all)"
    )
    batch_size: int = option(4, integer(1), "sequences in a batch", "comparison")
    draws: int = option(
        24, integer(0), "random models of each of three sizes for the accuracy in float32; 0 leaves them out", "comparison"
    )
    steps: int = option(20, integer(0), "AdamW steps side by side; 0 leaves them out", "comparison")
    control_steps: int = option(300, integer(0), "steps of the runs beside controls; 0 leaves them out", "comparison")
    lr: float = option(1e-3, number("a number > 0", lambda v: v > 0), "learning rate of these steps", "comparison")
    weight_decay: float = option(0.1, at_least_zero(), "weight decay of these steps", "comparison")
    seed: int = option(0, integer(0), "decides the weights and the tokens", "comparison")
    device: str | None = option(
        None, one_of("cpu", "cuda", "mps"), "compare torch on this device with torch on the CPU", "other comparisons"
    )
    functions: str | None = option(
        None, word("OURS,TORCH"), "compare two functions of yours, each module:name", "other comparisons"
    )
    inputs: str | None = option(
        None, word("SPEC"), "their arguments: shape strings, such as '*B N; N in (0.1, 2)'", "other comparisons"
    )
    write_pack: str | None = option(
        None, word("DIR"), "write what torch computes, for ports to test against", "other comparisons"
    )
    pack: str | None = option(None, word("DIR"), "test ours against such a pack, without torch", "other comparisons")
    full: bool = option(False, switch(), "print every row", "output")
    html: str | None = option(None, word("FILE"), "also write the report as one HTML file", "output")
    json: str | None = option(None, word("FILE"), "also write every comparison to this file", "output")


def run(job: Run) -> int:
    """Prints the comparisons; 0 where all are equal, 1 where one is not."""
    check_writable(job.settings.json, job.settings.html)
    for name, other in MODES.items():
        if getattr(job.settings, name) is not None:
            return other(job)
    return _report(job)


def _report(job: Run) -> int:
    settings, started = job.settings, time.perf_counter()
    config, weights = _model(job)
    reference = job.reference()
    about = _about(config, settings)
    found = reference.sections.Report(reference.environment.environment(settings.seed), about, config.to_dict())
    print(f"{about}\n", flush=True)
    for name in [name for name in SECTIONS if getattr(settings, name)] or SECTIONS:
        FILL[name](found, reference, config, settings, weights)
        print(getattr(text, name)(found, settings.full), end="\n\n", flush=True)
    found.seconds = time.perf_counter() - started
    _write(found, reference, settings)
    print(text.environment(found))
    print(f"\n{text.verdict(found, settings.steps)}")
    return 0 if found.passed else 1


def _fill_ops(found: Any, reference: Any, config: TransformerConfig, settings: Settings, weights: Weights | None) -> None:
    devices = [name.partition(" ")[0] for name in reference.environment.available_devices()]
    found.ops = reference.ops_report.compare_ops(devices=devices, seed=settings.seed)


def _fill_model(found: Any, reference: Any, config: TransformerConfig, settings: Settings, weights: Weights | None) -> None:
    make, (ids, targets) = partial(_make, seed=settings.seed), _batches(config, settings)[0]
    compare, inside = reference.equivalence.compare_models, reference.activations
    found.model = compare(partial(make, config), config, ids, targets, state=weights, seed=settings.seed)
    found.activations = inside.compare_activations(make, config, ids, weights, settings.seed)
    found.activation_gradients = reference.activation_gradients.compare_activation_gradients(
        make, config, ids, targets, weights, settings.seed
    )
    found.depth = inside.growth_with_depth(make, config, ids, seed=settings.seed)
    found.length = inside.growth_with_length(make, config, batch=settings.batch_size, seed=settings.seed)
    if settings.draws:
        found.accuracy = reference.accuracy.compare_accuracy(make, config, settings.seed, settings.draws)


def _fill_training(found: Any, reference: Any, config: TransformerConfig, settings: Settings, weights: Weights | None) -> None:
    make, common = partial(_make, config, seed=settings.seed), {"state": weights, "seed": settings.seed}
    if settings.steps:
        chosen = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        batches = _batches(config, settings)[1:]
        found.training = reference.equivalence.compare_training(make, AdamW, config, batches, chosen, **common)
    if settings.control_steps:
        found.trajectories = reference.trajectories.compare_trajectories(
            make, AdamW, config, settings.control_steps, settings.batch_size, settings.lr, **common
        )


def _fill_kills(found: Any, reference: Any, config: TransformerConfig, settings: Settings, weights: Weights | None) -> None:
    found.kills = reference.killtable.kill_table(tinygrad_llm)


FILL: dict[str, Callable[..., None]] = {
    "ops": _fill_ops, "model": _fill_model, "training": _fill_training, "kill_table": _fill_kills,
}  # fmt: skip


def _make(config: TransformerConfig, dtype: Any, seed: int) -> Transformer:
    return Transformer(dataclasses.replace(config, dropout=0.0), seed, dtype)


def _model(job: Run) -> tuple[TransformerConfig, Weights | None]:
    settings = job.settings
    if settings.checkpoint is None:
        return settings.transformer_config(settings.vocab_size), None
    decided = {field.name for field in dataclasses.fields(ModelOptions)} | {"vocab_size"}
    if clash := sorted(job.chosen & decided):
        raise UserError(f"{clash[0]}: got a value beside a checkpoint, expected none: the checkpoint decides it")
    with notes_unless_refused():
        model, _, _ = load_model(settings.checkpoint)
    return model.config, model.state_dict()


def _batches(config: TransformerConfig, settings: Settings) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random tokens; the first batch is for the gradients."""
    generator = np.random.default_rng(settings.seed)
    shape = (settings.steps + 1, settings.batch_size, config.context_length + 1)
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in generator.integers(config.vocab_size, size=shape)]


def _about(config: TransformerConfig, settings: Settings) -> str:
    what = f"the weights of {settings.checkpoint}" if settings.checkpoint else f"random weights, seed {settings.seed}"
    return (
        f"{config.n_layers} blocks, d_model {config.d_model}, {config.n_heads} heads, {config.activation}, "
        f"{config.norm_position}-norm, {config.positions} positions\n{what}\n"
        f"{settings.batch_size} sequences of {config.context_length} random tokens; the truth is PyTorch in float64"
    )


def _write(found: Any, reference: Any, settings: Settings) -> None:
    if settings.json:
        _write_json(settings.json, found.to_json())
    if settings.html:
        write_whole(settings.html, reference.html.render(found))


def _write_json(path: str, data: Any) -> None:
    write_whole(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def _compare_device(job: Run) -> int:
    """Which device is wrong, and by how much."""
    reference, settings = job.reference(), job.settings
    device = str(reference.train.find_device(settings.device))
    config = settings.transformer_config(settings.vocab_size)
    found = reference.devices.compare_device(device, config, *_batches(config, settings)[0], seed=settings.seed)
    print(text.device(found, settings.full))
    if settings.json:
        _write_json(settings.json, found.to_json())
    return 0 if found.passed else 1


def _compare_functions(job: Run) -> int:
    """Two functions of the user."""
    settings = job.settings
    if settings.inputs is None:
        raise UserError("--inputs: got none, expected shape strings of the arguments, such as --inputs '*B N; N'")
    reference = job.reference()
    found = reference.functions.compare_functions(settings.functions, settings.inputs, tinygrad_llm, settings.seed)
    print(text.functions(found))
    if settings.json:
        _write_json(settings.json, found.to_json())
    return 0 if found.passed else 1


def _write_pack(job: Run) -> int:
    config, weights = _model(job)
    settings = job.settings
    files = job.reference().pack.write_pack(
        settings.write_pack, config, *_tokens(config, settings), state=weights, seed=settings.seed
    )
    print(f"{files} files in {settings.write_pack}; test a port against them, and ours with\n"
          f"  {PROGRAM} check --pack {settings.write_pack}")  # fmt: skip
    return 0


def _tokens(config: TransformerConfig, settings: Settings) -> Iterator[np.ndarray]:
    """ids and targets, int64 [batches, B, T] each: the first for the gradients, the others for AdamW."""
    yield from (np.stack(side) for side in zip(*_batches(config, settings)))


def _check_pack(job: Run) -> int:
    rows = parity.check_pack(job.settings.pack)
    print(text.pack(job.settings.pack, rows, job.settings.full))
    if job.settings.json:
        _write_json(job.settings.json, text.rows_to_json(rows))
    return 0 if all(row.passed for row in rows) else 1


MODES: dict[str, Callable[[Run], int]] = {
    "device": _compare_device, "functions": _compare_functions, "write_pack": _write_pack, "pack": _check_pack,
}  # fmt: skip

COMMAND = Command(
    "check",
    "compare every gradient with PyTorch's",
    "Run the NumPy library and PyTorch side by side: every op, the model's activations and gradients, training, in float64 "
    "(which must agree to rounding) and in float32 (judged by float64); and show that the checks catch seeded bugs.",
    f"""
# all of it, in about a minute; exit code 0: all equal, 1: not
{PROGRAM} check --html report.html
{PROGRAM} check --model --activation gelu --norm-position post
# the weights that you trained
{PROGRAM} check --model --training --checkpoint runs/demo
# is a GPU right? are two functions of mine the same?
{PROGRAM} check --device cuda
{PROGRAM} check --functions mine:np_norm,mine:torch_norm --inputs '*B N; N'
# for a port in another language
{PROGRAM} check --write-pack pack
{PROGRAM} check --pack pack
""",
    Settings,
    run,
)
