"""How this program is called: what the commands in its messages and examples begin with, so that they can be typed again."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "tinygrad-llm"
PACKAGE = Path(__file__).parents[1]


def as_typed(started: str, path: str | None = None) -> str:
    """The program, as one types it: by its name if the shell finds it, else as it was started: `.venv/bin/tinygrad-llm`.

    started    sys.argv[0]
    path       what is searched, instead of $PATH
    """
    if Path(started) == PACKAGE / "__main__.py":
        return f"{python_as_typed(path)} -m {PACKAGE.name}"
    if Path(started).stem != NAME or _finds(NAME, started, path):
        return NAME
    return shlex.quote(started)


def python_as_typed(path: str | None = None) -> str:
    """The same of the interpreter that runs: python, python3, or its path, from here if it lies below."""
    for name in ("python", "python3"):
        if _finds(name, sys.executable, path):
            return name
    below = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if below.startswith(os.pardir) else below)


def _finds(name: str, file: str, path: str | None) -> bool:
    """Whether a shell finds the name in the folder of this file."""
    found = shutil.which(name, path=path)
    return found is not None and os.path.dirname(os.path.abspath(found)) == os.path.dirname(os.path.abspath(file))


PROGRAM = as_typed(sys.argv[0])
