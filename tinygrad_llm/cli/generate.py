"""tinygrad-llm generate: text from a trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from tinygrad_llm.cli.command import Command, Run
from tinygrad_llm.cli.errors import UserError, text_of
from tinygrad_llm.cli.loading import backend_option, checkpoint_option, device_option, load_trained
from tinygrad_llm.cli.program import PROGRAM
from tinygrad_llm.cli.settings import at_least_zero, integer, number, option, switch, word, words
from tinygrad_llm.generation import stream_text


@dataclass(frozen=True)
class Settings:
    """What `generate` is told."""

    checkpoint: str | None = checkpoint_option()
    backend: str = backend_option("model")
    device: str = device_option("model")
    prompt: str | None = option(None, word(), "the text to continue; - reads it from standard input", "text")
    max_new_tokens: int = option(300, integer(0), "how many tokens to add at most", "text")
    stop: tuple[str, ...] = option((), words(), "end before this text; may be given several times", "text")
    temperature: float = option(
        0.0,
        at_least_zero(),
        "0: always the likeliest token (greedy); 1: as the model believes; between: livelier than greedy",
        "sampling",
    )
    top_k: int | None = option(None, integer(1), "draw from the K likeliest tokens only", "sampling")
    top_p: float | None = option(
        None,
        number("a number in (0, 1]", lambda v: 0 < v <= 1),
        "draw from the fewest tokens whose probabilities sum to X",
        "sampling",
    )
    seed: int = option(0, integer(0), "the same seed gives the same text", "sampling")
    json: bool = option(False, switch(), "print one JSON object at the end, and nothing before", "output")


def run(job: Run) -> int:
    """Prints the prompt, then what continues it, as it comes."""
    settings = job.settings
    if settings.prompt is None:
        raise UserError("--prompt: got none, expected a text to continue, or - for standard input")
    prompt = text_of("--prompt", settings.prompt)
    trained = load_trained(settings, job.reference)
    pieces = stream_text(
        trained.model,
        trained.tokenizer,
        prompt,
        settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        stop=settings.stop,
        seed=settings.seed,
    )
    if settings.json:
        print(json.dumps({"prompt": prompt, "text": "".join(pieces), "checkpoint": trained.metadata["path"]}))
    else:
        _stream(prompt, pieces)
    return 0


def _stream(prompt: str, pieces: Iterator[str]) -> None:
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


COMMAND = Command(
    "generate",
    "continue a text",
    "Continue a text with a trained model, one token after the other, printed as they come.",
    f"""
{PROGRAM} generate --checkpoint runs/demo --prompt "ROMEO: "
# less repetitive than always the likeliest token
{PROGRAM} generate --checkpoint runs/demo --prompt "ROMEO: " \\
    --temperature 0.8
# one speech, drawn with more care
{PROGRAM} generate --checkpoint runs/demo --prompt "JULIET: " \\
    --temperature 1 --top-p 0.9 --stop $'\\n\\n'
echo "To be" | {PROGRAM} generate --checkpoint runs/demo --prompt - --json
""",
    Settings,
    run,
)
