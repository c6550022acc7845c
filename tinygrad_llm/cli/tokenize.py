"""tinygrad-llm tokenize: a text as a model sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tinygrad_llm.cli.command import Command, Run
from tinygrad_llm.cli.errors import UserError, notes_unless_refused, text_of
from tinygrad_llm.cli.program import PROGRAM
from tinygrad_llm.cli.settings import integer, option, switch, word
from tinygrad_llm.cli.table import table
from tinygrad_llm.data import get_tokenizer, load_corpus
from tinygrad_llm.data.corpora import NAMED


@dataclass(frozen=True)
class Settings:
    """What `tokenize` is told."""

    text: str | None = option(None, word(), "the text; - reads it from standard input", "text", positional=True)
    file: str | None = option(None, word("FILE"), "take the text from this file", "text")
    corpus: str | None = option(
        None,
        word("NAME|PATH"),
        "where the char tokenizer's characters come from, and the text "
        "itself where no other is given: auto, shakespeare, stdlib, or a file or folder",
        "text",
    )
    tokenizer: str = option(
        "cl100k_base", word("NAME"), "char, or a tiktoken encoding: cl100k_base, o200k_base, gpt2, ...", "output"
    )
    show: int = option(40, integer(0), "tokens to list", "output")
    json: bool = option(False, switch(), "print one JSON object with all ids", "output")


def run(job: Run) -> int:
    """Prints ids, pieces and counts; 1 where decoding does not give the text back."""
    settings = job.settings
    with notes_unless_refused():
        corpus = load_corpus(settings.corpus).text if settings.corpus else None
    content = _content(settings, corpus)
    if not content:
        raise UserError("text: got no characters, expected at least one")
    tokenizer = get_tokenizer(settings.tokenizer, corpus or content)
    ids = tokenizer.encode(content)
    exact = tokenizer.decode(ids) == content
    show = _print_json if settings.json else _print_table
    show(settings, tokenizer, content, ids, exact)
    return 0 if exact else 1


def _content(settings: Settings, corpus: str | None) -> str:
    if settings.text is not None and settings.file is not None:
        raise UserError(f"text: got both a text and --file {settings.file!r}, expected one of them")
    if settings.file is not None:
        return load_corpus(_a_file(settings.file)).text
    if settings.text is None and corpus is None:
        raise UserError("text: got none, expected a TEXT, - for standard input, --file or --corpus")
    return text_of("text", settings.text) if settings.text is not None else corpus or ""


def _a_file(path: str) -> str:
    return f"./{path}" if path in NAMED else path


def _print_table(settings: Settings, tokenizer: Any, content: str, ids: Any, exact: bool) -> None:
    width = max(len(str(tokenizer.vocab_size - 1)), 2)
    if settings.show:
        print(f"{'id':>{width}}  piece")
    for token in ids[: settings.show].tolist():
        print(f"{token:>{width}}  {_piece(tokenizer, token)}")
    if len(ids) > settings.show:
        print(f"{'...':>{width}}  {len(ids) - settings.show:,} more{' (--show N lists more)' * bool(settings.show)}")
    print(
        "\n"
        + table(
            [
                (
                    "tokens",
                    f"{len(ids):,}",
                    f"{len(set(ids.tolist())):,} distinct of the {tokenizer.vocab_size:,} of {settings.tokenizer}",
                ),
                ("characters", f"{len(content):,}", f"{len(content) / len(ids):.2f} per token"),
                ("bytes", f"{len(content.encode()):,}", "in UTF-8"),
            ],
            left=(0, 2),
        )
    )
    print("decoding the ids gives the same text back" if exact else "decoding the ids gives ANOTHER text")


def _piece(tokenizer: Any, token: int) -> str:
    raw = tokenizer.decode_bytes([token])
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return f"{raw!r}  part of a character"


def _print_json(settings: Settings, tokenizer: Any, content: str, ids: Any, exact: bool) -> None:
    result = {
        "tokenizer": settings.tokenizer,
        "vocab_size": tokenizer.vocab_size,
        "characters": len(content),
        "tokens": len(ids),
        "round_trip": exact,
        "ids": ids.tolist(),
    }
    print(json.dumps(result))


COMMAND = Command(
    "tokenize",
    "show a text as token ids and pieces",
    "Show how a tokenizer cuts a text into tokens, the numbers that a model reads, and whether they decode to it.",
    f"""
# one token per character
{PROGRAM} tokenize --tokenizer char "Hello, world!"
# pieces of words, as GPT-4 reads them
{PROGRAM} tokenize --tokenizer cl100k_base "Hello, world!"
# the ids that a model of Shakespeare's characters has for these
{PROGRAM} tokenize --tokenizer char --corpus shakespeare "To be"
# how many tokens the plays have
{PROGRAM} tokenize --corpus shakespeare --show 0
{PROGRAM} tokenize --file notes.txt --json > ids.json
""",
    Settings,
    run,
)
