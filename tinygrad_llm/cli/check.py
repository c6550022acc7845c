"""tinygrad-llm check: is it the same function as PyTorch's?"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tinygrad_llm.cli.command import PROGRAM, Command, Run
from tinygrad_llm.cli.errors import UserError, notes_unless_refused
from tinygrad_llm.cli.model_options import ModelOptions
from tinygrad_llm.cli.settings import at_least_zero, integer, number, option, word
from tinygrad_llm.cli.table import table
from tinygrad_llm.config import TransformerConfig
from tinygrad_llm.model import Transformer
from tinygrad_llm.optim import AdamW
from tinygrad_llm.training import load_model

WORDS = {"equal": "equal", "no worse than torch": "no worse", "exactly zero": "zero"}
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
    batch_size: int = option(4, integer(1), "sequences in a batch", "comparison")
    steps: int = option(20, integer(0), "AdamW steps side by side; 0 leaves them out", "comparison")
    lr: float = option(1e-3, number("a number > 0", lambda v: v > 0), "learning rate of these steps", "comparison")
    weight_decay: float = option(0.1, at_least_zero(), "weight decay of these steps", "comparison")
    seed: int = option(0, integer(0), "decides the weights and the tokens", "comparison")
    json: str | None = option(None, word("FILE"), "also write every comparison to this file", "output")


def run(job: Run) -> int:
    """Prints the comparisons; 0 where all are equal, 1 where one is not."""
    settings = job.settings
    config, weights = _model(job)
    reference = job.reference()
    batches = _batches(config, settings)
    print(_heading(config, settings), flush=True)
    make_ours = partial(Transformer, dataclasses.replace(config, dropout=0.0), settings.seed)
    rows = reference.equivalence.compare_models(make_ours, config, *batches[0], state=weights, seed=settings.seed)
    training = None
    if settings.steps:
        chosen = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        training = reference.equivalence.compare_training(
            make_ours, AdamW, config, batches[1:], chosen, state=weights, seed=settings.seed
        )
    _print(rows, training, reference)
    every = [*rows, *(training.rows if training else ())]
    if settings.json:
        _write_json(settings.json, config, every, training)
    print(f"\n{_verdict(every, settings.steps)}")
    return 0 if all(row.passed for row in every) else 1


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


def _heading(config: TransformerConfig, settings: Settings) -> str:
    what = f"the weights of {settings.checkpoint}" if settings.checkpoint else f"random weights, seed {settings.seed}"
    return (
        f"{config.n_layers} blocks, d_model {config.d_model}, {config.n_heads} heads, {config.activation}, "
        f"{config.norm_position}-norm, {config.positions} positions\n{what}\n"
        f"{settings.batch_size} sequences of {config.context_length} random tokens; the truth is PyTorch in float64\n"
    )


def _print(rows: list[Any], training: Any, reference: Any) -> None:
    print("Largest error of each, beside its scale; ratio: ours / torch's in float32;")
    print(f"zero: a true gradient of exactly 0\n\n{_rows(rows)}\n")
    if training:
        print(f"The loss at each AdamW step\n\n{reference.report.format_losses(training.losses)}\n")
        print("After the steps (error of float32 weights: mean, over the mean distance moved)\n")
        print(f"{_rows(training.rows)}\n")
    print(reference.report.format_summary([*rows, *(training.rows if training else ())]))


def _rows(rows: Iterable[Any]) -> str:
    """A line per quantity: its errors in float64 and float32, torch's in float32, and the worse verdict."""
    by_name: dict[str, dict[str, Any]] = {}
    for row in rows:
        by_name.setdefault(row.name, {})[row.dtype] = row
    return table(
        [("", "float64", "float32", "torch's", "ratio", ""), *(_row(*item) for item in by_name.items())], left=(0, 5)
    )


def _row(name: str, pair: Mapping[str, Any]) -> tuple[str, ...]:
    wide, narrow = pair.get("float64"), pair.get("float32")
    errors = [wide and wide.error, narrow and narrow.error, narrow and narrow.torch_error]
    ratio = f"{narrow.ratio:.2f}" if narrow and narrow.ratio is not None else ""
    shown = [row for row in (narrow, wide) if row]
    worst = next((row for row in shown if not row.passed), shown[0])
    cells = ["" if error is None else f"{error:.1e}" for error in errors]
    return (
        name.replace("[zero gradient]", "(no grad)"),
        *cells,
        ratio,
        WORDS.get(worst.verdict, worst.verdict.upper()),
    )


def _verdict(rows: Sequence[Any], steps: int) -> str:
    if failed := [row for row in rows if not row.passed]:
        first = f"the first is {failed[0].name} in {failed[0].dtype}"
        return textwrap.fill(f"{len(failed)} of {len(rows)} comparisons differ from PyTorch: {first}.", 80)
    what = "logits, loss, every parameter's gradient" + f" and {steps} AdamW steps" * bool(steps)
    return textwrap.fill(
        f"All {len(rows)} comparisons equal: {what} are PyTorch's but for rounding in float64, and in float32 no less "
        "accurate than PyTorch's own.",
        80,
    )


def _write_json(path: str, config: TransformerConfig, rows: Iterable[Any], training: Any) -> None:
    rows = [{**dataclasses.asdict(row), "passed": row.passed} for row in rows]
    losses = {name: values.tolist() for name, values in training.losses.items()} if training else {}
    result = {
        "passed": all(row["passed"] for row in rows),
        "config": config.to_dict(),
        "comparisons": rows,
        "losses": losses,
    }
    Path(path).write_text(json.dumps(_without_infinities(result), indent=1) + "\n", encoding="utf-8")


def _without_infinities(value: Any) -> Any:
    """JSON knows no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


COMMAND = Command(
    "check",
    "compare every gradient with PyTorch's",
    "Run the NumPy model and the same model in PyTorch side by side: logits, loss, the gradient of every parameter, "
    "and some AdamW steps, in float64 (which must agree to rounding) and in float32 (judged by float64).",
    f"""
# a small model with random weights; exit code 0: all equal, 1: not
{PROGRAM} check
{PROGRAM} check --activation gelu --norm-position post --positions learned
# the weights that you trained
{PROGRAM} check --checkpoint runs/demo --steps 5
{PROGRAM} check --json check.json
""",
    Settings,
    run,
)
