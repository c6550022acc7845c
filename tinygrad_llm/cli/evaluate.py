"""tinygrad-llm eval: how well a model predicts text that it has not seen."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from tinygrad_llm.cli.command import Command, Run
from tinygrad_llm.cli.errors import UserError, notes_unless_refused
from tinygrad_llm.cli.loading import Trained, backend_option, checkpoint_option, device_option, load_trained
from tinygrad_llm.cli.program import PROGRAM
from tinygrad_llm.cli.settings import integer, number, option, switch, word
from tinygrad_llm.cli.table import table
from tinygrad_llm.data import Corpus, SequenceDataset, load_corpus, train_test_split
from tinygrad_llm.training import Evaluation, evaluate


@dataclass(frozen=True)
class Settings:
    """What `eval` is told."""

    checkpoint: str | None = checkpoint_option()
    backend: str = backend_option("model")
    device: str = device_option("model")
    corpus: str | None = option(
        None,
        word("NAME|PATH"),
        "auto, shakespeare, stdlib, or a text file or folder (default: what it was trained on)",
        "text",
    )
    test_fraction: float | None = option(
        None,
        number("a number in (0, 1]", lambda v: 0 < v <= 1),
        "evaluate on the part that a split by this fraction holds out; 1: on the whole text "
        "(default: as in training; 1 for another corpus)",
        "text",
    )
    batch_size: int = option(32, integer(1), "sequences computed together; no effect on the result", "text")
    max_tokens: int | None = option(
        None, integer(1), "evaluate on about so many tokens, evenly spread (default: all)", "text"
    )
    json: bool = option(False, switch(), "print one JSON object", "output")


def run(job: Run) -> int:
    """Prints loss, perplexity, accuracy and bits per character."""
    settings = job.settings
    trained = load_trained(settings, job.reference)
    text = _held_out(settings, trained)
    data = SequenceDataset(trained.tokenizer.encode(text.text), _window(trained, text))
    result = _evaluate(settings, trained, data)
    if settings.json:
        print(json.dumps({"checkpoint": trained.metadata["path"], "corpus": text.name, **result.to_dict()}))
    else:
        print(f"{trained.metadata['path']}, step {trained.metadata['step']}\n{text.name}\n\n{rows(result)}")
    return 0


def _evaluate(settings: Settings, trained: Trained, data: SequenceDataset) -> Evaluation:
    """With a bar on a terminal, which moves where `evaluate` asks before each batch whether to stop."""
    tokens = min(settings.max_tokens or len(data.tokens), len(data.tokens))
    total = math.ceil(tokens / (settings.batch_size * data.context_length))
    with tqdm(total=total, unit="batch", leave=False, disable=None, dynamic_ncols=True) as bar:
        return evaluate(
            trained.model,
            data,
            batch_size=settings.batch_size,
            tokenizer=trained.tokenizer,
            max_tokens=settings.max_tokens,
            should_stop=lambda: bar.update() and False,
        )


def rows(result: Evaluation) -> str:
    """An evaluation as a table, with units."""
    bits = "" if result.bits_per_char is None else f"{result.bits_per_char:.4f}"
    lines = [
        ("loss", f"{result.loss:.4f}", "nats per token"),
        ("perplexity", f"{result.perplexity:.4g}", "as unsure as a fair choice among so many"),
        ("accuracy", f"{result.accuracy:.2%}", "of next tokens guessed right"),
        ("bits per character", bits, "comparable between tokenizers"),
        ("tokens", f"{result.tokens:,}", "predicted, each once"),
    ]
    return table(lines, left=(0, 2))


def _held_out(settings: Settings, trained: Trained) -> Corpus:
    """The text to evaluate on: of the training corpus only what was held out, or the number would flatter."""
    name = settings.corpus or trained.settings.get("corpus")
    if name is None:
        raise UserError("--corpus: got none, expected one: the checkpoint does not say what it was trained on")
    with notes_unless_refused():
        corpus = load_corpus(name)
    fraction = settings.test_fraction
    if fraction is None:
        fraction = trained.settings.get("test_fraction", 1) if _is_its_own(corpus, name, trained) else 1
    return corpus if fraction == 1 else train_test_split(corpus, fraction)[1]


def _is_its_own(corpus: Corpus, name: str, trained: Trained) -> bool:
    """Whether it was trained on a part of this text. Raises UserError where another text is there under the same name."""
    known, same_name = trained.metadata["about"].get("corpus_sha256"), name == trained.settings.get("corpus")
    if same_name and known not in (None, corpus.sha256):
        raise UserError(f"corpus: got {name!r}, whose text has changed since training, expected it as it was: what was held "
                        "out can no longer be told; --test-fraction 1 measures all of it, what was trained on included")
    return same_name if known is None else known == corpus.sha256


def _window(trained: Trained, text: Corpus) -> int:
    """The context length; less for a text that is shorter."""
    length: Any = len(trained.tokenizer.encode(text.text))
    if length < 2:
        raise UserError(f"corpus: got a text of {length} tokens, expected at least 2")
    return min(trained.model.config.context_length, length - 1)


COMMAND = Command(
    "eval",
    "measure a trained model on text that it has not seen",
    "Measure how well a trained model predicts text that it has not seen: the part of its corpus that was held out, or "
    "another text.",
    f"""
{PROGRAM} eval --checkpoint runs/demo
# the same weights in PyTorch: the same numbers
{PROGRAM} eval --checkpoint runs/demo --backend torch
# how well does it know another author?
{PROGRAM} eval --checkpoint runs/demo --corpus sonnets.txt
""",
    Settings,
    run,
)
