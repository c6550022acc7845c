"""Every command that the project gives its readers: in README, docs, the notebook, examples, help and messages."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tinygrad_llm.cli import COMMANDS
from tinygrad_llm.cli.program import PROGRAM

ROOT = Path(__file__).parents[1]
STARTS = re.compile(r"(?:echo .* \| )?(tinygrad-llm|python3?|make|pip|source|jupyter|torchrun|pytest)\s+\S")

NAMED = re.compile(r"`([^`\n]+)`|(?:^|[:(] *|  +)((?:python -m|python examples|pip install|make) [^\n)]+)")


@dataclass(frozen=True)
class Given:
    """A command, and the file that gives it."""

    where: str
    text: str


def given() -> list[Given]:
    """All of them, each text once, in the order of the sources."""
    found: dict[str, Given] = {}
    for one in [*_of_pages(), *_of_helps(), *_of_sources()]:
        found.setdefault(one.text, one)
    return list(found.values())


def _of_pages():
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield from _of_text(path.name, path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            yield from _of_text(path.name, "".join(cell["source"]))


def _of_text(where, text):
    blocks = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for language, block in blocks.findall(text):
        if language in ("", "sh", "bash", "console"):
            yield from _of_lines(where, block)
    spans = re.findall(r"`([^`]+)`", blocks.sub("", text))
    yield from (Given(where, " ".join(span.split())) for span in spans if STARTS.match(span))


def _of_lines(where, block):
    lines = block.replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#\s.*", "", line).strip() for line in lines]
    yield from (Given(where, " ".join(line.split())) for line in lines if STARTS.match(line))


def _of_helps():
    for command in COMMANDS:
        yield from _of_lines(f"{command.name} --help", command.examples.replace(PROGRAM, "tinygrad-llm"))


def _of_sources():
    """Of the texts in the program: those that are a command, or name one after a colon or in backticks."""
    rooms = [ROOT / name for name in ("tinygrad_llm", "reference", "benchmarks", "examples")]
    for path in sorted(path for room in rooms for path in room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for span in (a or b for a, b in NAMED.findall(node.value)):
                    if STARTS.match(span):
                        yield Given(path.relative_to(ROOT).as_posix(), " ".join(span.split()))


if __name__ == "__main__":
    for one in given():
        print(f"{one.where:28} {one.text}")
